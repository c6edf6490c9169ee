"""Distributions against numeric integrals, float64 formulas and Monte Carlo."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.distributions import (
    Categorical,
    Normal,
    NormalMixture,
    TanhNormal,
    TanhNormalMixture,
    log_one_minus_tanh_squared,
    take_expert,
)

RNG = np.random.default_rng(0)


def array(*shape, scale=1.0):
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def integral(y, x):
    return np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x))


def normal_log_density(x, mean, log_std):
    """One dimension, in float64."""
    x, mean, log_std = (np.asarray(v, np.float64) for v in (x, mean, log_std))
    return -0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2.0 * math.pi)


@pytest.mark.parametrize(("mean", "log_std"), list(itertools.product([0.0, -0.8, 2.0], [-2.0, -0.5, 0.5])))
def test_tanh_normal_density_integrates_to_one(mean, log_std):
    u = np.linspace(-12.0, 12.0, 400_001)
    policy = TanhNormal(jnp.array([mean]), jnp.array([log_std]))
    density = np.exp(np.asarray(policy.log_prob_of_pre_tanh(u[:, None].astype(np.float32)), np.float64))
    inside = np.abs(u) < 8.0  # beyond it tanh(u) is 1 to 7 digits, and neighbouring actions no longer differ
    assert integral(density[inside], np.tanh(u[inside])) == pytest.approx(1.0, abs=2e-3)


def test_tanh_normal_density_is_the_change_of_variables():
    mean, log_std = array(50, 3), array(50, 3, scale=0.5)
    u = array(50, 3, scale=2.0)
    jacobian = np.log(1.0 - np.tanh(u.astype(np.float64)) ** 2)
    expected = (normal_log_density(u, mean, log_std) - jacobian).sum(-1)
    np.testing.assert_allclose(TanhNormal(mean, log_std).log_prob_of_pre_tanh(u), expected, rtol=1e-4, atol=1e-4)


def test_log_one_minus_tanh_squared_is_finite_and_exact_far_out():
    u = np.linspace(-100.0, 100.0, 2001, dtype=np.float32)
    value = np.asarray(log_one_minus_tanh_squared(u))
    far = np.abs(u) > 15.0
    np.testing.assert_allclose(value[far], (2 * math.log(2) - 2 * np.abs(u))[far], rtol=1e-5)
    near = np.abs(u) < 5.0
    expected = np.log(1 - np.tanh(u[near].astype(np.float64)) ** 2)
    np.testing.assert_allclose(value[near], expected, rtol=1e-4, atol=1e-6)
    slope = jax.vmap(jax.grad(log_one_minus_tanh_squared))(u)
    np.testing.assert_allclose(slope, -2.0 * np.tanh(u), atol=1e-5)


def test_tanh_normal_density_is_finite_to_twenty_with_its_gradients():
    u = np.linspace(-20.0, 20.0, 41, dtype=np.float32)[:, None]

    def total(mean, log_std, u):
        return jnp.sum(TanhNormal(mean, log_std).log_prob_of_pre_tanh(u))

    for mean, log_std in itertools.product([-20.0, 0.0, 20.0], [-5.0, 0.0, 2.0]):
        values = (np.full_like(u, mean), np.full_like(u, log_std), u)
        for x in (total(*values), *jax.grad(total, argnums=(0, 1, 2))(*values)):
            assert np.all(np.isfinite(x))


def test_saturated_samples_have_finite_log_prob_and_gradients():
    def total(mean, log_std):
        action, log_prob = TanhNormal(mean, log_std).sample_and_log_prob(jax.random.key(0))
        return jnp.sum(log_prob) + jnp.sum(action)

    mean = jnp.array([[20.0], [-20.0], [0.0], [9.0]])
    for log_std in (-20.0, 0.0, 2.0):
        for x in jax.tree.leaves(jax.value_and_grad(total, argnums=(0, 1))(mean, jnp.full_like(mean, log_std))):
            assert np.all(np.isfinite(x))


def test_tanh_normal_sample_and_log_prob_agree():
    mean, log_std, key = array(200, 3), array(200, 3, scale=0.5), jax.random.key(1)
    u = Normal(mean, log_std).sample(key)
    action, log_prob = TanhNormal(mean, log_std).sample_and_log_prob(key)
    np.testing.assert_allclose(action, np.tanh(u), rtol=1e-6)
    np.testing.assert_array_equal(action, TanhNormal(mean, log_std).sample(key))
    np.testing.assert_allclose(log_prob, TanhNormal(mean, log_std).log_prob_of_pre_tanh(u), rtol=1e-3, atol=1e-4)


def test_tanh_normal_pre_tanh_sample_comes_with_its_action_and_log_prob():
    mean, log_std, key = array(200, 3), array(200, 3, scale=0.5), jax.random.key(1)
    policy = TanhNormal(mean, log_std)
    action, u, log_prob = policy.sample_pre_tanh_and_log_prob(key)
    assert action.shape == u.shape == (200, 3) and log_prob.shape == (200,)
    np.testing.assert_array_equal(u, Normal(mean, log_std).sample(key))
    np.testing.assert_allclose(action, np.tanh(u), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, (action, log_prob), policy.sample_and_log_prob(key))
    jacobian = np.log(1.0 - np.tanh(np.asarray(u, np.float64)) ** 2)
    expected = (normal_log_density(u, mean, log_std) - jacobian).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)


def test_tanh_normal_pre_tanh_sample_is_reparameterised():
    mean, log_std, key = jnp.array([0.4]), jnp.array([-0.7]), jax.random.key(2)

    def u(mean, log_std):
        return TanhNormal(mean, log_std).sample_pre_tanh_and_log_prob(key)[1][0]

    for_mean, for_log_std = jax.grad(u, argnums=(0, 1))(mean, log_std)
    np.testing.assert_allclose(for_mean, 1.0, rtol=1e-6)
    np.testing.assert_allclose(for_log_std, u(mean, log_std) - mean, rtol=1e-5)


def test_tanh_normal_log_probs_are_those_of_each_dimension():
    mean, log_std = array(50, 3), array(50, 3, scale=0.5)
    u = array(50, 3, scale=2.0)
    policy = TanhNormal(mean, log_std)
    each = policy.log_probs_of_pre_tanh(u)
    jacobian = np.log(1.0 - np.tanh(u.astype(np.float64)) ** 2)
    np.testing.assert_allclose(each, normal_log_density(u, mean, log_std) - jacobian, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.sum(each, -1), policy.log_prob_of_pre_tanh(u), rtol=1e-4, atol=1e-4)
    for i in range(3):
        alone = TanhNormal(mean[:, i : i + 1], log_std[:, i : i + 1]).log_prob_of_pre_tanh(u[:, i : i + 1])
        np.testing.assert_allclose(each[:, i], alone, rtol=1e-4, atol=1e-4)


def test_tanh_normal_log_probs_are_finite_to_twenty_with_their_gradients():
    u = np.linspace(-20.0, 20.0, 41, dtype=np.float32)[:, None]

    def total(mean, log_std, u):
        return jnp.sum(TanhNormal(mean, log_std).log_probs_of_pre_tanh(u))

    for mean, log_std in itertools.product([-20.0, 0.0, 20.0], [-5.0, 0.0, 2.0]):
        values = (np.full_like(u, mean), np.full_like(u, log_std), u)
        for x in (total(*values), *jax.grad(total, argnums=(0, 1, 2))(*values)):
            assert np.all(np.isfinite(x))


def test_tanh_normal_log_prob_has_the_reparameterised_gradient():
    """Through the sample as well: of log N(u) at u = mean + std * noise only -log_std depends on the parameters."""
    mean, log_std, key = jnp.array([0.4]), jnp.array([-0.7]), jax.random.key(2)

    def log_prob(mean, log_std):
        return TanhNormal(mean, log_std).sample_and_log_prob(key)[1]

    u = Normal(mean, log_std).sample(key)
    for_mean, for_log_std = jax.grad(log_prob, argnums=(0, 1))(mean, log_std)
    np.testing.assert_allclose(for_mean, 2.0 * np.tanh(u), rtol=1e-5)
    np.testing.assert_allclose(for_log_std, -1.0 + 2.0 * np.tanh(u) * (u - mean), rtol=1e-5)


def test_tanh_normal_mode_is_the_tanh_of_the_mean():
    mean = array(4, 2)
    np.testing.assert_allclose(TanhNormal(mean, mean).mode(), np.tanh(mean), rtol=1e-6)


def test_normal_log_prob_equals_the_formula():
    mean, log_std, x = array(20, 3), array(20, 3, scale=0.5), array(20, 3)
    expected = normal_log_density(x, mean, log_std).sum(-1)
    np.testing.assert_allclose(Normal(mean, log_std).log_prob(x), expected, rtol=1e-4, atol=1e-5)


def test_normal_samples_have_their_mean_deviation_and_density():
    mean, log_std = np.array([1.0, -2.0], np.float32), np.array([-1.0, 0.5], np.float32)
    policy = Normal(*(np.broadcast_to(x, (50_000, 2)) for x in (mean, log_std)))
    samples, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(samples.std(0), np.exp(log_std), rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(samples.T)[0, 1], 0.0, atol=0.02)
    np.testing.assert_allclose(log_prob, policy.log_prob(samples), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(samples, policy.sample(jax.random.key(0)))


def test_normal_entropy_is_minus_the_mean_log_prob():
    policy = Normal(np.zeros((50_000, 2), np.float32), np.broadcast_to(np.float32([-1.0, 0.5]), (50_000, 2)))
    _, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    np.testing.assert_allclose(policy.entropy()[0], -log_prob.mean(), atol=0.03)


def test_normal_kl_equals_a_numeric_integral():
    x = np.linspace(-30.0, 30.0, 600_001)
    for mean, log_std, other_mean, other_log_std in [
        (0.0, 0.0, 1.0, 0.5),
        (-0.5, 0.7, 0.3, -0.2),
        (2.0, -1.0, 2.0, 0.3),
    ]:
        p, q = normal_log_density(x, mean, log_std), normal_log_density(x, other_mean, other_log_std)
        expected = integral(np.exp(p) * (p - q), x)
        first = Normal(jnp.array([mean]), jnp.array([log_std]))
        second = Normal(jnp.array([other_mean]), jnp.array([other_log_std]))
        np.testing.assert_allclose(first.kl(second), expected, rtol=1e-4)


def test_kl_to_itself_is_zero():
    normal, categorical = Normal(array(5, 3), array(5, 3)), Categorical(array(5, 3))
    np.testing.assert_allclose(normal.kl(normal), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(categorical.kl(categorical), np.zeros(5), atol=1e-6)


@pytest.mark.parametrize("kind", [Normal, TanhNormal])
def test_gaussian_densities_sum_over_the_last_axis_only(kind):
    mean, log_std, u = array(2, 3, 4), array(2, 3, 4, scale=0.5), array(2, 3, 4)
    density = (lambda d, x: d.log_prob(x)) if kind is Normal else (lambda d, x: d.log_prob_of_pre_tanh(x))
    whole = density(kind(mean, log_std), u)
    sampled = kind(mean, log_std).sample_and_log_prob(jax.random.key(0))
    assert whole.shape == sampled[1].shape == (2, 3)
    assert sampled[0].shape == (2, 3, 4)
    for i, j in np.ndindex(2, 3):
        each = [density(kind(mean[i, j, k, None], log_std[i, j, k, None]), u[i, j, k, None]) for k in range(4)]
        np.testing.assert_allclose(whole[i, j], sum(each), rtol=1e-4, atol=1e-5)
    if kind is Normal:
        assert Normal(mean, log_std).entropy().shape == Normal(mean, log_std).kl(Normal(u, mean)).shape == (2, 3)


def test_categorical_equals_its_definition():
    logits, other = array(2, 3, 5), array(2, 3, 5)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    q = np.exp(other) / np.exp(other).sum(-1, keepdims=True)
    policy, value = Categorical(logits), RNG.integers(0, 5, (2, 3))
    np.testing.assert_allclose(policy.log_probs(), np.log(p), rtol=1e-4)
    expected = [[np.log(p[i, j, value[i, j]]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(policy.log_prob(value), expected, rtol=1e-4)
    np.testing.assert_allclose(policy.entropy(), -(p * np.log(p)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(policy.kl(Categorical(other)), (p * np.log(p / q)).sum(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(policy.mode(), logits.argmax(-1))


def test_categorical_ignores_a_constant_in_the_logits_and_survives_large_ones():
    logits = array(4, 3)
    shifted = Categorical(logits + np.float32(100.0))
    np.testing.assert_allclose(shifted.log_probs(), Categorical(logits).log_probs(), atol=1e-4)
    sure = Categorical(jnp.array([1e6, 0.0, -1e6]))
    np.testing.assert_allclose(sure.entropy(), 0.0, atol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: Categorical(x).entropy())(sure.logits)))


def test_categorical_samples_with_its_probabilities():
    logits = np.log(np.float32([0.1, 0.2, 0.7]))
    policy = Categorical(np.broadcast_to(logits, (30_000, 3)))
    samples = policy.sample(jax.random.key(0))
    assert samples.dtype == policy.mode().dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(samples, minlength=3) / 30_000, [0.1, 0.2, 0.7], atol=0.015)


def some_mixture(*batch, experts=3, size=2):
    """Logits (..., K), means and log standard deviations (..., K, A)."""
    return array(*batch, experts), array(*batch, experts, size), array(*batch, experts, size, scale=0.5)


def mixture_log_density(x, logits, mean, log_std):
    """log sum_k w_k N_k(x) in float64: x (..., A)."""
    logits = np.asarray(logits, np.float64)
    log_w = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    return np.logaddexp.reduce(log_w + normal_log_density(x[..., None, :], mean, log_std).sum(-1), -1)


BIMODAL = (np.float32([0.4, -0.4]), np.float32([[-0.8], [0.6]]), np.float32([[-1.0], [-0.3]]))
"""Two experts in one dimension."""


def many(mixture, num):
    return [np.broadcast_to(x, (num, *x.shape)) for x in mixture]


@pytest.mark.parametrize("batch", [(), (20,), (2, 4)])
def test_mixture_density_equals_numpy(batch):
    mixture, u = some_mixture(*batch), array(*batch, 2, scale=1.5)
    expected = mixture_log_density(u, *mixture)
    assert NormalMixture(*mixture).log_prob(u).shape == batch
    np.testing.assert_allclose(NormalMixture(*mixture).log_prob(u), expected, rtol=1e-4, atol=1e-5)
    jacobian = np.log(1.0 - np.tanh(u.astype(np.float64)) ** 2).sum(-1)
    tanh = TanhNormalMixture(NormalMixture(*mixture))
    np.testing.assert_allclose(tanh.log_prob_of_pre_tanh(u), expected - jacobian, rtol=1e-4, atol=1e-4)


def test_tanh_mixture_density_integrates_to_one():
    u = np.linspace(-8.0, 8.0, 200_001).astype(np.float32)[:, None]
    density = TanhNormalMixture(NormalMixture(*BIMODAL)).log_prob_of_pre_tanh(u)
    density, action = np.exp(np.asarray(density, np.float64)), np.tanh(u[:, 0].astype(np.float64))
    assert integral(density, action) == pytest.approx(1.0, abs=2e-3)
    left = action <= np.tanh(-0.8)  # half of the first expert, and little of the second
    second = 0.5 * math.erfc(1.4 / math.exp(-0.3) / math.sqrt(2.0))
    w = 1.0 / (1.0 + math.exp(-0.8))
    assert integral(density[left], action[left]) == pytest.approx(w / 2 + (1 - w) * second, abs=2e-3)


def test_mixture_samples_follow_its_density():
    num, edges = 40_000, np.linspace(-3.0, 3.0, 25)
    mixture = NormalMixture(*many(BIMODAL, num))
    samples = np.asarray(mixture.sample(jax.random.key(0)))
    np.testing.assert_allclose(TanhNormalMixture(mixture).sample(jax.random.key(0)), np.tanh(samples), atol=1e-6)
    x = np.linspace(-3.0, 3.0, 2401)
    density = np.exp(mixture_log_density(x[:, None], *BIMODAL))
    expected = [integral(density[i : i + 101], x[i : i + 101]) for i in range(0, 2400, 100)]
    np.testing.assert_allclose(np.histogram(samples, edges)[0] / num, expected, atol=0.008)
    w = np.exp(BIMODAL[0]) / np.exp(BIMODAL[0]).sum()
    mean = w @ BIMODAL[1][:, 0]
    second = w @ (BIMODAL[1][:, 0] ** 2 + np.exp(2.0 * BIMODAL[2][:, 0]))
    np.testing.assert_allclose([samples.mean(), (samples**2).mean()], [mean, second], atol=0.02)


def test_all_dimensions_of_a_mixture_s_sample_are_of_one_expert():
    mean = np.float32([[-5.0, -5.0, -5.0], [5.0, 5.0, 5.0]])
    samples = NormalMixture(*many((np.zeros(2, np.float32), mean, np.zeros_like(mean)), 1000)).sample(jax.random.key(0))
    signs = np.sign(samples).sum(-1)
    assert set(signs) == {-3.0, 3.0}


def test_mixture_mode_is_the_mean_of_the_likeliest_expert():
    logits, mean, log_std = some_mixture(30)
    expected = np.stack([mean[b, logits[b].argmax()] for b in range(30)])
    np.testing.assert_array_equal(NormalMixture(logits, mean, log_std).mode(), expected)
    tanh = TanhNormalMixture(NormalMixture(logits, mean, log_std))
    np.testing.assert_allclose(tanh.mode(), np.tanh(expected), rtol=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1.0, 10.0])
def test_mixture_entropy_is_that_of_its_experts_and_at_most_log_k_more(distance):
    logits = np.float32([0.5, 0.0, -0.5])
    mean = distance * np.float32([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    mixture = NormalMixture(*many((logits, mean, np.full_like(mean, -0.5)), 40_000))
    entropy = -np.mean(mixture.log_prob(mixture.sample(jax.random.key(0))))
    of_choice = float(mixture.gate.entropy()[0])
    of_experts = 2.0 * (-0.5 + 0.5 * math.log(2.0 * math.pi * math.e))  # all the same
    np.testing.assert_allclose(mixture.experts.entropy(), of_experts, rtol=1e-5)
    noise = 0.02
    assert of_experts - noise <= entropy <= of_experts + of_choice + noise <= of_experts + math.log(3.0) + noise
    if distance != 1.0:  # identical experts, and experts that do not touch
        np.testing.assert_allclose(entropy, of_experts + (of_choice if distance else 0.0), atol=noise)


def test_a_mixture_of_one_expert_is_the_expert():
    logits, mean, log_std = some_mixture(50, experts=1)
    mixture = TanhNormalMixture(NormalMixture(logits, mean, log_std))
    alone = TanhNormal(mean[:, 0], log_std[:, 0])
    u = array(50, 2, scale=1.5)
    np.testing.assert_allclose(mixture.log_prob_of_pre_tanh(u), alone.log_prob_of_pre_tanh(u), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(mixture.mode(), alone.mode())
    expert_key = jax.random.split(jax.random.key(3))[1]
    np.testing.assert_array_equal(mixture.sample(jax.random.key(3)), alone.sample(expert_key))


def test_a_mixture_of_certain_gates_is_finite_with_its_gradients():
    _, mean, log_std = some_mixture(8)
    u = array(8, 2)

    def total(logits, mean, log_std, u):
        return jnp.sum(TanhNormalMixture(NormalMixture(logits, mean, log_std)).log_prob_of_pre_tanh(u))

    for scale in (50.0, 1000.0):  # the least likely expert's weight is 0 in float32
        logits = scale * np.sign(array(8, 3))
        for x in jax.tree.leaves(jax.value_and_grad(total, argnums=(0, 1, 2, 3))(logits, mean, log_std, u)):
            assert np.all(np.isfinite(x))
    far = NormalMixture(np.zeros(3, np.float32), mean[0], np.full_like(mean[0], -3.0))
    assert far.log_prob(np.full(2, 50.0, np.float32)) < -1e5  # no underflow: exp of it is 0


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_take_expert_takes_one_per_element(batch):
    x, expert = array(*batch, 3, 4), RNG.integers(0, 3, batch)
    taken = take_expert(jnp.asarray(x), jnp.asarray(expert))
    assert taken.shape == (*batch, 4)
    for i in np.ndindex(*batch):
        np.testing.assert_array_equal(taken[i], x[i][expert[i] if batch else expert])
