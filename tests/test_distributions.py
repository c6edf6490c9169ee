"""Distributions against numeric integrals, float64 formulas and Monte Carlo."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.distributions import Categorical, Normal, TanhNormal, log_one_minus_tanh_squared

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
