"""Discrete SAC's equations against brute force over actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import sac_discrete as sac

RNG = np.random.default_rng(2)
N, B, A = 2, 5, 4


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


Q, NEXT_Q = array(N, B, A), array(N, B, A)
REWARD = array(B)
TERMINATED = np.array([0, 1, 0, 0, 1], bool)
ACTION = np.array([0, 3, 1, 2, 3], np.int32)
LOG_PROBS, NEXT_LOG_PROBS = (np.asarray(jax.nn.log_softmax(array(B, A))) for _ in range(2))
ALPHA, DISCOUNT = jnp.float32(0.3), 0.9


def critic_loss(**changes):
    arguments = {
        "q": Q,
        "action": ACTION,
        "reward": REWARD,
        "terminated": TERMINATED,
        "next_q": NEXT_Q,
        "next_log_probs": NEXT_LOG_PROBS,
        "alpha": ALPHA,
        "discount": DISCOUNT,
    }
    return sac.critic_loss(**(arguments | changes))


def brute_force_value(q, log_probs, alpha):
    value = np.zeros(B)
    for b in range(B):
        for a in range(A):
            value[b] += np.exp(log_probs[b, a]) * (min(q[:, b, a]) - alpha * log_probs[b, a])
    return value


def test_soft_value_equals_brute_force():
    expected = brute_force_value(NEXT_Q, NEXT_LOG_PROBS, 0.3)
    np.testing.assert_allclose(sac.soft_value(NEXT_Q, NEXT_LOG_PROBS, ALPHA), expected, rtol=1e-5)


def test_soft_value_of_the_best_policy_is_a_log_sum_exp():
    q = array(B, A)
    best = jax.nn.log_softmax(q / 0.3)
    expected = 0.3 * np.log(np.exp(q / 0.3).sum(-1))
    np.testing.assert_allclose(sac.soft_value(q[None], best, ALPHA), expected, rtol=1e-4, atol=1e-5)


def test_minimum_is_at_most_each_single_critic():
    together = sac.soft_value(NEXT_Q, NEXT_LOG_PROBS, ALPHA)
    single = np.stack([sac.soft_value(q[None], NEXT_LOG_PROBS, ALPHA) for q in NEXT_Q])
    assert np.all(together <= single)
    assert np.any(together < single.min(0))  # it is taken per action, before the expectation


def test_critic_loss_equals_brute_force():
    target = REWARD + 0.9 * (1.0 - TERMINATED) * brute_force_value(NEXT_Q, NEXT_LOG_PROBS, 0.3)
    expected = sum(0.5 * (Q[i, b, ACTION[b]] - target[b]) ** 2 / B for i in range(N) for b in range(B))
    np.testing.assert_allclose(critic_loss(), expected, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"discount": 0.0}, {"terminated": np.ones(B, bool)}])
def test_critics_regress_to_the_reward_without_a_future(changes):
    taken = Q[:, np.arange(B), ACTION]
    expected = 0.5 * np.mean((taken - REWARD) ** 2, axis=1).sum()
    for alpha in (0.0, 7.0):
        loss = critic_loss(**changes, next_q=array(N, B, A) * 100, alpha=jnp.float32(alpha))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_critic_loss_has_gradients_for_the_value_of_the_action_taken_alone():
    def loss(q, inputs):
        return critic_loss(q=q, **inputs)

    inputs = {"reward": REWARD, "next_q": NEXT_Q, "next_log_probs": NEXT_LOG_PROBS, "alpha": ALPHA}
    for_q, for_others = jax.grad(loss, argnums=(0, 1))(Q, inputs)
    taken = np.broadcast_to(np.arange(A) == ACTION[:, None], (N, B, A))
    np.testing.assert_array_equal(for_q != 0.0, taken)
    for gradient in jax.tree.leaves(for_others):
        np.testing.assert_array_equal(gradient, 0.0)


def test_actor_loss_equals_brute_force():
    expected = -brute_force_value(Q, LOG_PROBS, 0.3).mean()
    np.testing.assert_allclose(sac.actor_loss(LOG_PROBS, Q, ALPHA), expected, rtol=1e-5)


def test_actor_loss_has_no_gradient_through_values_and_alpha():
    for_log_probs, for_q, for_alpha = jax.grad(sac.actor_loss, argnums=(0, 1, 2))(LOG_PROBS, Q, ALPHA)
    assert np.all(np.abs(for_log_probs) > 0)
    np.testing.assert_array_equal(for_q, 0.0)
    assert for_alpha == 0.0


def test_optimum_of_the_actor_loss_is_the_softmax_of_q_over_alpha():
    def loss(logits):
        return sac.actor_loss(jax.nn.log_softmax(logits), Q, ALPHA)

    optimum = Q.min(0) / 0.3
    np.testing.assert_allclose(jax.grad(loss)(optimum), 0.0, atol=1e-6)
    logits, _ = jax.lax.scan(lambda x, _: (x - 20.0 * jax.grad(loss)(x), None), jnp.zeros((B, A)), length=2000)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(optimum), atol=1e-3)


def test_scaling_the_reward_is_dividing_the_temperature():
    c = 5.0
    gradient = jax.grad(lambda logits, q, alpha: sac.actor_loss(jax.nn.log_softmax(logits), q, alpha))
    scaled = gradient(LOG_PROBS, c * Q, ALPHA) / c
    np.testing.assert_allclose(scaled, gradient(LOG_PROBS, Q, ALPHA / c), rtol=1e-4, atol=1e-6)
    scaled = critic_loss(q=c * Q, reward=c * REWARD, next_q=c * NEXT_Q)
    np.testing.assert_allclose(scaled / c**2, critic_loss(alpha=ALPHA / c), rtol=1e-5)


def test_temperature_loss_equals_brute_force():
    loss = sac.temperature_loss(jnp.log(ALPHA), LOG_PROBS, 1.1)
    expected = np.mean(np.sum(np.exp(LOG_PROBS) * (-0.3 * (LOG_PROBS + 1.1)), -1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("entropy_excess", "sign"), [(0.0, 0), (0.25, 1), (-0.25, -1)])
def test_temperature_falls_where_entropy_is_above_its_target(entropy_excess, sign):
    log_probs = jnp.full((B, A), -jnp.log(float(A)))
    target = jnp.log(float(A)) - entropy_excess
    gradient = jax.grad(sac.temperature_loss)(jnp.float32(-1.2), log_probs, target)
    np.testing.assert_allclose(gradient, np.exp(-1.2) * entropy_excess, rtol=1e-4, atol=1e-6)
    assert np.sign(np.round(gradient, 5)) == sign  # log alpha moves against it


def test_temperature_loss_has_no_gradient_through_log_probs():
    gradient = jax.grad(sac.temperature_loss, argnums=1)(jnp.float32(-1.2), LOG_PROBS, 1.1)
    np.testing.assert_array_equal(gradient, 0.0)


def test_impossible_actions_do_not_spoil_the_losses():
    log_probs = jax.nn.log_softmax(np.array([[1e6, 0.0, 0.0, -1e6]] * B, np.float32))
    np.testing.assert_allclose(sac.soft_value(Q, log_probs, ALPHA), Q.min(0)[:, 0], rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(sac.actor_loss)(log_probs, Q, ALPHA)))


@pytest.mark.parametrize("name", ["action", "reward", "terminated", "next_log_probs"])
@pytest.mark.parametrize("reshape", [lambda x: x[..., None], lambda x: x[:1], lambda x: x[0]])
def test_critic_loss_refuses_shapes_that_would_broadcast(name, reshape):
    values = {"action": ACTION, "reward": REWARD, "terminated": TERMINATED, "next_log_probs": NEXT_LOG_PROBS}
    with pytest.raises(AssertionError):
        critic_loss(**{name: reshape(values[name])})


@pytest.mark.parametrize("name", ["q", "next_q"])
@pytest.mark.parametrize("shape", [(B, A), (N, 1, A), (N, B, 1), (N, B, A, 1)])
def test_critic_loss_refuses_values_of_another_shape(name, shape):
    with pytest.raises(AssertionError):
        critic_loss(**{name: np.zeros(shape, np.float32)})


def test_other_losses_refuse_shapes_that_would_broadcast():
    for log_probs, q, alpha in [
        (LOG_PROBS[:, :1], Q, ALPHA),
        (LOG_PROBS[0], Q, ALPHA),
        (LOG_PROBS, Q[0], ALPHA),
        (LOG_PROBS, Q, ALPHA[None]),
    ]:
        with pytest.raises(AssertionError):
            sac.actor_loss(log_probs, q, alpha)
    for log_alpha, log_probs in [(ALPHA[None], LOG_PROBS), (ALPHA, LOG_PROBS[0])]:
        with pytest.raises(AssertionError):
            sac.temperature_loss(log_alpha, log_probs, 1.0)
