"""MDPO's policy losses and q-logarithm against NumPy, and what must hold of them whatever the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.distributions import Normal, TanhNormal
from offpolicy_jax.losses import mdpo, sac

RNG = np.random.default_rng(4)
N, B = 3, 6
QS = [1.0, 1.2, 1.5, 2.0]
NEAR_ONE = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
EACH_Q = pytest.mark.parametrize("q", QS)


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


LOG_PROB, REFERENCE, Q = array(B), array(B), array(B)
C, WEIGHT = 0.7, 0.2
LOG_DENSITY = np.linspace(np.log(1e-6) + 1e-3, 8.0, 300).astype(np.float32)


def exact_q_logarithm(log_density, q):
    """(x^(q-1) - 1) / (q - 1) in float64, of densities above the floor."""
    log_density, s = np.asarray(log_density, np.float64), np.float64(np.float32(q)) - 1.0
    return log_density if s == 0.0 else np.expm1(s * log_density) / s


def slope(log_density, q, argnum=0):
    """Derivatives by the log-density, or by q (argnum 1), elementwise."""
    return jax.vmap(jax.grad(mdpo.q_logarithm, argnums=argnum), in_axes=(0, None))(log_density, jnp.float32(q))


# The q-logarithm


@EACH_Q
def test_q_logarithm_equals_numpy(q):
    x = np.exp(np.asarray(LOG_DENSITY, np.float64))
    expected = np.log(x) if q == 1.0 else (x ** (q - 1.0) - 1.0) / (q - 1.0)
    np.testing.assert_allclose(mdpo.q_logarithm(LOG_DENSITY, q), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [*QS, *(1.0 + x for x in NEAR_ONE)])
def test_q_logarithm_of_one_is_zero_with_slope_one(q):
    assert mdpo.q_logarithm(jnp.float32(0.0), q) == 0.0
    np.testing.assert_allclose(slope(jnp.zeros(1), q), 1.0, rtol=1e-6)  # d/dx = d/dlog x where x = 1
    np.testing.assert_allclose(jax.grad(lambda x: mdpo.q_logarithm(jnp.log(x), q))(1.0), 1.0, rtol=1e-6)


def test_q_logarithm_is_log_at_one_and_linear_at_two():
    np.testing.assert_array_equal(mdpo.q_logarithm(LOG_DENSITY, 1.0), LOG_DENSITY)
    np.testing.assert_allclose(
        mdpo.q_logarithm(LOG_DENSITY, 2.0), np.exp(LOG_DENSITY.astype(np.float64)) - 1.0, rtol=1e-5
    )


@pytest.mark.parametrize("excess", [0.0, *NEAR_ONE])
def test_q_logarithm_near_one_is_exact_and_differentiable(excess):
    q = np.float32(1.0 + excess)
    x, s = LOG_DENSITY.astype(np.float64), np.float64(q) - 1.0
    value = np.asarray(mdpo.q_logarithm(LOG_DENSITY, q))
    np.testing.assert_allclose(value, exact_q_logarithm(x, q), rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(value - x)) <= s * np.max(x**2) + 1e-6  # goes to log with q
    np.testing.assert_allclose(slope(LOG_DENSITY, q), np.exp(s * x), rtol=1e-5)
    by_q = np.asarray(slope(LOG_DENSITY, q, argnum=1))
    series = x**2 * (0.5 + s * x / 3.0 + (s * x) ** 2 / 8.0 + (s * x) ** 3 / 30.0)  # of (e^(s x) - 1) / s, by s
    np.testing.assert_allclose(by_q, series, rtol=5e-3, atol=1e-6)


@EACH_Q
def test_q_logarithm_increases_with_density_and_q(q):
    every_tenth = LOG_DENSITY[::10]  # neighbours are the same to 7 digits where x is small and q = 2
    assert np.all(np.diff(mdpo.q_logarithm(every_tenth, q)) > 0.0)
    assert np.all(slope(LOG_DENSITY, q) > 0.0)
    larger = mdpo.q_logarithm(LOG_DENSITY, q + 0.1)
    assert np.all(larger >= mdpo.q_logarithm(LOG_DENSITY, q))


@EACH_Q
def test_slope_of_the_q_logarithm_is_a_power_of_the_density(q):
    expected = np.exp((q - 1.0) * LOG_DENSITY.astype(np.float64))
    np.testing.assert_allclose(slope(LOG_DENSITY, q), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [*QS, 1.0 + 1e-6, 1.0 + 1e-2])
def test_densities_below_the_floor_have_its_value_and_no_gradient(q):
    below = np.float32([np.log(1e-6) - 1e-3, -14.0, -20.0, -100.0, -1e8, -3e38])
    expected = exact_q_logarithm(np.log(1e-6), q)
    np.testing.assert_allclose(mdpo.q_logarithm(below, q), expected, rtol=1e-5)
    np.testing.assert_array_equal(slope(below, q), 0.0)
    assert np.all(np.isfinite(slope(below, q, argnum=1)))
    above = np.float32([np.log(1e-6) + 1e-3])
    np.testing.assert_allclose(slope(above, q), np.exp((q - 1.0) * above), rtol=0.05)


def test_q_may_be_traced_and_have_a_seed_axis():
    q = np.float32([*QS, *(1.0 + x for x in NEAR_ONE)])
    together = jax.jit(jax.vmap(mdpo.q_logarithm, in_axes=(None, 0)))(LOG_DENSITY, q)
    alone = np.stack([mdpo.q_logarithm(LOG_DENSITY, float(x)) for x in q])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    for gradient in jax.jit(jax.vmap(jax.grad(lambda x, q: mdpo.q_logarithm(x, q).sum(), argnums=(0, 1)), (None, 0)))(
        LOG_DENSITY, q
    ):
        assert np.all(np.isfinite(gradient))


# The policy's loss


@EACH_Q
@pytest.mark.parametrize(("c", "weight"), [(0.7, 0.2), (0.3, 0.0), (0.2, 0.9)])
def test_policy_loss_equals_numpy(q, c, weight):
    expected = 0.0
    for b in range(B):
        log_prob, reference, value = (float(x[b]) for x in (LOG_PROB, REFERENCE, Q))
        expected += (c * log_prob + q * (weight - c) * reference - value) / B
    np.testing.assert_allclose(mdpo.policy_loss(LOG_PROB, REFERENCE, Q, c, weight, q), expected, rtol=1e-4, atol=1e-6)
    if q == 1.0:  # and it is what q is without being named
        step_size = 1.0 / c
        paper = np.mean(LOG_PROB - (1.0 - weight * step_size) * REFERENCE - step_size * Q) / step_size
        np.testing.assert_allclose(mdpo.policy_loss(LOG_PROB, REFERENCE, Q, c, weight), paper, rtol=1e-4, atol=1e-6)


def test_policy_loss_differentiates_all_three_terms():
    """The reference's log-density too: it depends on the action."""
    gradients = jax.grad(mdpo.policy_loss, argnums=(0, 1, 2))(LOG_PROB, REFERENCE, Q, C, WEIGHT, 1.5)
    for gradient, expected in zip(gradients, [C, 1.5 * (WEIGHT - C), -1.0], strict=True):
        np.testing.assert_allclose(gradient, np.full(B, expected / B), rtol=1e-5)


@pytest.mark.parametrize("tsallis_q", [1.0, 1.5])
@pytest.mark.parametrize("reference", [REFERENCE, array(B) * 1e4, np.full(B, -1e8, np.float32)])
def test_with_equal_weights_it_is_sac_s_actor_loss_whatever_the_reference(reference, tsallis_q):
    alpha, q = jnp.float32(0.3), array(N, B)

    def loss(log_prob, reference, q):
        return mdpo.policy_loss(log_prob, reference, jnp.min(q, 0), alpha, alpha, tsallis_q)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(LOG_PROB, reference, q)
    expected, (for_log_prob, for_q) = jax.value_and_grad(sac.actor_loss, argnums=(0, 1))(LOG_PROB, q, alpha)
    np.testing.assert_array_equal(value, expected)
    for gradient, other in zip(gradients, [for_log_prob, np.zeros(B), for_q], strict=True):
        np.testing.assert_array_equal(gradient, other)


def test_without_entropy_it_is_the_divergence_minus_the_value():
    expected = np.mean(C * (LOG_PROB - REFERENCE) - Q)
    np.testing.assert_allclose(mdpo.policy_loss(LOG_PROB, REFERENCE, Q, C, 0.0), expected, rtol=1e-5)


def some_policy(key):
    keys = jax.random.split(jax.random.key(key), 2)
    return {"mean": jax.random.normal(keys[0], (B, 2)), "log_std": jax.random.normal(keys[1], (B, 2)) - 1.0}


def gradient_of_policy(c, weight, q, scale=1.0, shift=0.0):
    """By the policy's parameters, of tanh-Gaussians with a value that is not monotone."""
    reference = TanhNormal(**some_policy(1))

    def log_density(policy, u):
        return jnp.sum(mdpo.q_logarithm(policy.log_probs_of_pre_tanh(u), q), -1)

    def loss(policy):
        policy = TanhNormal(**policy)
        action, u, _ = policy.sample_pre_tanh_and_log_prob(jax.random.key(3))
        value = scale * jnp.sum(jnp.sin(3.0 * action), -1) + shift
        return mdpo.policy_loss(log_density(policy, u), log_density(reference, u), value, c, weight, q)

    return jax.grad(loss)(some_policy(0))


@pytest.mark.parametrize("q", [1.0, 1.5])
def test_shifting_values_or_scaling_everything_leaves_the_minimum(q):
    plain = gradient_of_policy(C, WEIGHT, q)
    assert all(np.any(x != 0.0) for x in jax.tree.leaves(plain))
    jax.tree.map(np.testing.assert_array_equal, gradient_of_policy(C, WEIGHT, q, shift=100.0), plain)
    scaled = gradient_of_policy(4.0 * C, 4.0 * WEIGHT, q, scale=4.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 4.0, b, rtol=1e-5, atol=1e-6), scaled, plain)
    value_alone = gradient_of_policy(C, WEIGHT, q, scale=4.0)
    assert np.max(np.abs(value_alone["mean"] - 4.0 * plain["mean"])) > 1e-2


# Two equally likely values of the noise per dimension, with the Gaussian's mean and variance: expectations of quadratic
# functions of it are exact.
NOISE = np.float32([[-1, -1], [-1, 1], [1, -1], [1, 1]])
OPTIMUM, CURVATURE = np.array([0.7, -1.3]), 4.0
REFERENCE_MEAN, REFERENCE_LOG_STD = np.array([-0.4, 0.5]), np.array([-0.3, 0.4])


def normal_log_density(u, mean, log_std):
    return jnp.sum(-0.5 * ((u - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2.0 * np.pi), -1)


@jax.jit
def descend(c, weight):
    """Gradient descent of the expected loss of a Gaussian, from far away."""

    def loss(policy):
        mean, log_std = policy
        u = mean + jnp.exp(log_std) * NOISE
        log_prob = normal_log_density(u, mean, log_std)
        reference = normal_log_density(u, REFERENCE_MEAN, REFERENCE_LOG_STD)
        q = -0.5 * CURVATURE * jnp.sum((u - OPTIMUM) ** 2, -1)
        return mdpo.policy_loss(log_prob, reference, q, c, weight)

    def step(policy, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, policy, jax.grad(loss)(policy)), None

    return jax.lax.scan(step, (jnp.zeros(2), jnp.array([-1.0, -2.0])), None, 1000)[0]


@pytest.mark.parametrize(("c", "weight"), [(1.0, 0.2), (0.3, 0.0), (3.0, 0.5), (0.5, 0.5), (0.5, 0.8)])
def test_the_minimum_is_the_mirror_descent_step_in_closed_form(c, weight):
    """pi is proportional to pi_k^(1 - lambda/c) exp(Q / c)."""
    mean, log_std = descend(c, weight)
    of_reference = (1.0 - weight / c) * np.exp(-2.0 * REFERENCE_LOG_STD)
    precision = of_reference + CURVATURE / c
    np.testing.assert_allclose(np.exp(-2.0 * log_std), precision, rtol=1e-3)
    expected = (of_reference * REFERENCE_MEAN + CURVATURE / c * OPTIMUM) / precision
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-4)


def test_at_the_reference_the_divergence_has_no_expected_gradient():
    """So that the expected gradient is SAC's at alpha = lambda; that of a single sample is not."""
    mean, log_std = jnp.array([0.4, -0.9]), jnp.array([-0.7, 0.2])
    reference = TanhNormal(mean, log_std)

    def loss(policy, noise, kind):
        policy = TanhNormal(*policy)
        u = policy.mean + jnp.exp(policy.log_std) * noise
        log_prob, reference_log_prob = policy.log_prob_of_pre_tanh(u), reference.log_prob_of_pre_tanh(u)
        q = jnp.sum(jnp.sin(2.0 * jnp.tanh(u)), -1)
        if kind == "sac":
            return sac.actor_loss(log_prob, q[None], jnp.float32(WEIGHT))
        if kind == "divergence":
            return mdpo.policy_loss(log_prob, reference_log_prob, jnp.zeros_like(q), C, 0.0)
        return mdpo.policy_loss(log_prob, reference_log_prob, q, C, WEIGHT)

    def gradient(kind, noise=NOISE):
        return np.concatenate(jax.grad(loss)((mean, log_std), noise, kind))

    np.testing.assert_allclose(gradient("divergence"), 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient("mdpo"), gradient("sac"), rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(gradient("sac")) > 1e-3)
    one = 0.5 * NOISE[:1]
    assert np.all(np.abs(gradient("divergence", one)) > 0.1)
    assert np.all(np.abs(gradient("mdpo", one) - gradient("sac", one)) > 0.1)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("reshape", [lambda x: x[:, None], lambda x: x[:1], lambda x: x[0], lambda x: x[None]])
def test_policy_loss_refuses_shapes_that_would_broadcast(position, reshape):
    values = [LOG_PROB, REFERENCE, Q]
    values[position] = reshape(values[position])
    with pytest.raises(AssertionError):
        mdpo.policy_loss(*values, C, WEIGHT)


def test_policy_loss_refuses_values_of_several_critics():
    with pytest.raises(AssertionError):
        mdpo.policy_loss(*(array(N, B) for _ in range(3)), C, WEIGHT)


# The on-policy loss


def test_the_mirror_descent_loss_equals_numpy():
    rng = np.random.default_rng(3)
    log_ratio, advantage, kl = rng.normal(size=(3, 16)).astype(np.float32)
    mask = np.arange(16) < 9
    expected = np.mean((kl / 0.3 - np.exp(log_ratio) * advantage)[mask])
    np.testing.assert_allclose(mdpo.mirror_descent_loss(log_ratio, advantage, kl, 0.3, mask), expected, rtol=1e-5)
    other = np.where(mask, [log_ratio, advantage, kl], 50.0)
    np.testing.assert_array_equal(
        mdpo.mirror_descent_loss(*other, 0.3, mask), mdpo.mirror_descent_loss(log_ratio, advantage, kl, 0.3, mask)
    )
    gradients = jax.jit(jax.grad(mdpo.mirror_descent_loss, argnums=(0, 1, 2)))(
        log_ratio, advantage, kl, jnp.float32(0.3), mask
    )
    ratio = np.exp(log_ratio)
    for gradient, expected in zip(gradients, [-ratio * advantage, -ratio, np.full(16, 1.0 / 0.3)], strict=True):
        np.testing.assert_allclose(gradient, np.where(mask, expected, 0.0) / 9.0, rtol=1e-4)


@pytest.mark.parametrize("step_size", [1e-3, 1.0, 1e3])
def test_the_mirror_descent_gradient_at_the_old_policy_is_the_policy_gradient(step_size):
    """-E[grad log pi A], written out for Gaussians that differ from state to state, whatever the step size."""
    mean, log_std = array(B, 2), array(B, 2)
    action, advantage = mean + np.exp(log_std) * array(B, 2), array(B)
    old = Normal(mean, log_std)

    def loss(policy):
        policy = Normal(*policy)
        log_ratio = policy.log_prob(action) - old.log_prob(action)
        return mdpo.mirror_descent_loss(log_ratio, advantage, policy.kl(old), step_size, np.ones(B, bool))

    by_mean, by_log_std = jax.grad(loss)((mean, log_std))
    noise = (action - mean) / np.exp(log_std)
    np.testing.assert_allclose(by_mean, -noise / np.exp(log_std) * advantage[:, None] / B, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_log_std, -(noise**2 - 1.0) * advantage[:, None] / B, rtol=1e-4, atol=1e-6)


OLD = np.log([0.5, 0.3, 0.2])
GAIN, ACTION = np.array([-1.0, 0.5, 1.0]), np.repeat(np.arange(3), [5, 3, 2])  # every action in proportion to pi_k


@jax.jit
def minimum(step_size):
    """Log-probabilities in a single state, by gradient descent: the mean over the actions is the expectation."""

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        kl = jnp.full(10, jnp.sum(jnp.exp(log_probs) * (log_probs - OLD)))
        log_ratio = (log_probs - OLD)[ACTION]
        return mdpo.mirror_descent_loss(log_ratio, GAIN[ACTION], kl, step_size, np.ones(10, bool))

    step = lambda _, logits: logits - 0.2 * jnp.minimum(step_size, 1.0) * jax.grad(loss)(logits)  # noqa: E731
    return jax.nn.log_softmax(jax.lax.fori_loop(0, 5_000, step, jnp.array([0.5, -0.5, 0.0])))


@pytest.mark.parametrize("step_size", [0.25, 0.5, 2.0])
def test_its_minimum_in_one_state_is_the_mirror_descent_step(step_size):
    """pi proportional to pi_k exp(t A)."""
    expected = jax.nn.softmax(OLD + step_size * GAIN)
    np.testing.assert_allclose(np.exp(minimum(step_size)), expected, rtol=1e-3)


def test_a_larger_divergence_weight_keeps_the_minimum_nearer():
    step_sizes = [0.1, 0.3, 1.0, 3.0]  # 1 / t from 10 down
    log_probs = np.stack([minimum(t) for t in step_sizes])
    divergence = np.sum(np.exp(log_probs) * (log_probs - OLD), 1)
    gain = np.exp(log_probs) @ GAIN
    assert 0.0 < divergence[0] < 0.01
    assert np.all(np.diff(divergence) > 0.01) and np.all(np.diff(gain) > 0.05)


@pytest.mark.parametrize("reshape", [lambda x: x[:, None], lambda x: x[:1], lambda x: x[0], lambda x: x[None]])
@pytest.mark.parametrize("position", range(4))
def test_the_mirror_descent_loss_refuses_shapes_that_would_broadcast(position, reshape):
    arguments = [np.zeros(4, np.float32), np.zeros(4, np.float32), np.zeros(4, np.float32), np.ones(4, bool)]
    arguments[position] = reshape(arguments[position])
    log_ratio, advantage, kl, mask = arguments
    with pytest.raises(AssertionError):
        mdpo.mirror_descent_loss(log_ratio, advantage, kl, 1.0, mask)
