"""SAC's equations against NumPy, and what must hold of them whatever the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.distributions import Normal, TanhNormal
from offpolicy_jax.losses import sac

RNG = np.random.default_rng(1)
N, B = 3, 6


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


Q, NEXT_Q = array(N, B), array(N, B)
REWARD, LOG_PROB, NEXT_LOG_PROB = array(B), array(B), array(B)
TERMINATED = np.array([0, 1, 0, 1, 0, 0], bool)
ALPHA, DISCOUNT = jnp.float32(0.3), 0.9


def critic_loss(**changes):
    arguments = {
        "q": Q,
        "reward": REWARD,
        "terminated": TERMINATED,
        "next_q": NEXT_Q,
        "next_log_prob": NEXT_LOG_PROB,
        "alpha": ALPHA,
        "discount": DISCOUNT,
    }
    return sac.critic_loss(**(arguments | changes))


def test_soft_value_equals_numpy():
    expected = NEXT_Q.min(0) - 0.3 * NEXT_LOG_PROB
    np.testing.assert_allclose(sac.soft_value(NEXT_Q, NEXT_LOG_PROB, ALPHA), expected, rtol=1e-6)


def test_minimum_is_at_most_each_single_critic():
    together = sac.soft_value(NEXT_Q, NEXT_LOG_PROB, ALPHA)
    single = np.stack([sac.soft_value(q[None], NEXT_LOG_PROB, ALPHA) for q in NEXT_Q])
    assert np.all(together <= single)
    np.testing.assert_array_equal(together, single.min(0))


def test_critic_loss_equals_numpy():
    expected = 0.0
    for i in range(N):
        for b in range(B):
            value = min(NEXT_Q[:, b]) - 0.3 * NEXT_LOG_PROB[b]
            target = REWARD[b] + (0.0 if TERMINATED[b] else 0.9 * value)
            expected += 0.5 * (Q[i, b] - target) ** 2 / B
    np.testing.assert_allclose(critic_loss(), expected, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"discount": 0.0}, {"terminated": np.ones(B, bool)}])
def test_critics_regress_to_the_reward_without_a_future(changes):
    expected = 0.5 * np.mean((Q - REWARD) ** 2, axis=1).sum()
    for alpha in (0.0, 7.0):
        loss = critic_loss(**changes, next_q=array(N, B) * 100, alpha=jnp.float32(alpha))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_critic_loss_has_gradients_for_the_online_values_alone():
    def loss(q, inputs):
        return critic_loss(q=q, **inputs)

    inputs = {"reward": REWARD, "next_q": NEXT_Q, "next_log_prob": NEXT_LOG_PROB, "alpha": ALPHA}
    for_q, for_others = jax.grad(loss, argnums=(0, 1))(Q, inputs)
    assert np.all(np.abs(for_q) > 0)
    for gradient in jax.tree.leaves(for_others):
        np.testing.assert_array_equal(gradient, 0.0)


def test_actor_loss_equals_numpy():
    expected = np.mean(0.3 * LOG_PROB - Q.min(0))
    np.testing.assert_allclose(sac.actor_loss(LOG_PROB, Q, ALPHA), expected, rtol=1e-5)


def test_actor_loss_has_no_gradient_through_alpha():
    for_log_prob, for_q, for_alpha = jax.grad(sac.actor_loss, argnums=(0, 1, 2))(LOG_PROB, Q, ALPHA)
    np.testing.assert_allclose(for_log_prob, 0.3 / B, rtol=1e-6)
    np.testing.assert_allclose(for_q, -(Q.min(0) == Q).astype(float) / B, rtol=1e-6)  # of the smallest critic
    assert for_alpha == 0.0


@pytest.mark.parametrize("log_form", [False, True])
def test_temperature_loss_equals_numpy(log_form):
    scale = np.log(0.3) if log_form else 0.3
    loss = sac.temperature_loss(jnp.log(ALPHA), LOG_PROB, -2.0, log_form=log_form)
    np.testing.assert_allclose(loss, -np.mean(scale * (LOG_PROB - 2.0)), rtol=1e-5)


@pytest.mark.parametrize("log_form", [False, True])
@pytest.mark.parametrize(("entropy_excess", "sign"), [(0.0, 0), (0.5, 1), (-0.5, -1)])
def test_temperature_falls_where_entropy_is_above_its_target(log_form, entropy_excess, sign):
    target = -2.0
    log_prob = jnp.array([1.5, 2.5, 1.0, 3.0]) - entropy_excess  # mean -target - excess
    gradient = jax.grad(sac.temperature_loss)(jnp.float32(-1.2), log_prob, target, log_form=log_form)
    np.testing.assert_allclose(gradient, entropy_excess * (1.0 if log_form else np.exp(-1.2)), rtol=1e-5)
    assert np.sign(gradient) == sign  # log alpha moves against it


@pytest.mark.parametrize("log_form", [False, True])
def test_temperature_loss_has_no_gradient_through_log_prob(log_form):
    gradient = jax.grad(sac.temperature_loss, argnums=1)(jnp.float32(-1.2), LOG_PROB, -2.0, log_form=log_form)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", ["reward", "terminated", "next_log_prob"])
@pytest.mark.parametrize("reshape", [lambda x: x[:, None], lambda x: x[:1], lambda x: x[0]])
def test_critic_loss_refuses_shapes_that_would_broadcast(name, reshape):
    values = {"reward": REWARD, "terminated": TERMINATED, "next_log_prob": NEXT_LOG_PROB}
    with pytest.raises(AssertionError):
        critic_loss(**{name: reshape(values[name])})


@pytest.mark.parametrize("name", ["q", "next_q"])
@pytest.mark.parametrize("shape", [(B,), (N, 1), (N, B, 1), (B, N)])
def test_critic_loss_refuses_values_of_another_shape(name, shape):
    with pytest.raises(AssertionError):
        critic_loss(**{name: np.zeros(shape, np.float32)})


def test_other_losses_refuse_shapes_that_would_broadcast():
    for log_prob, q, alpha in [(LOG_PROB[:, None], Q, ALPHA), (LOG_PROB, Q[0], ALPHA), (LOG_PROB, Q, ALPHA[None])]:
        with pytest.raises(AssertionError):
            sac.actor_loss(log_prob, q, alpha)
    for log_alpha, log_prob in [(ALPHA[None], LOG_PROB), (ALPHA, LOG_PROB[:, None])]:
        with pytest.raises(AssertionError):
            sac.temperature_loss(log_alpha, log_prob, -1.0)


def some_policy(key=0, size=2):
    keys = jax.random.split(jax.random.key(key), 2)
    return {"mean": jax.random.normal(keys[0], (B, size)), "log_std": jax.random.normal(keys[1], (B, size)) - 1.0}


def some_q(action):
    """Three critics of actions (B, A)."""
    return jnp.stack([jnp.sum(jnp.sin(k * action) - k * action**2, -1) for k in (0.5, 1.0, 2.0)])


def test_scaling_the_reward_is_dividing_the_temperature():
    c = 5.0

    def gradient(scale, alpha):
        def loss(policy):
            action, log_prob = TanhNormal(**policy).sample_and_log_prob(jax.random.key(3))
            return sac.actor_loss(log_prob, scale * some_q(action), jnp.float32(alpha))

        return jax.grad(loss)(some_policy())

    scaled = jax.tree.map(lambda g: g / c, gradient(c, 0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), scaled, gradient(1.0, 0.3 / c))
    # The same for the critics: c times the solution solves the task with c times the reward.
    scaled = critic_loss(q=c * Q, reward=c * REWARD, next_q=c * NEXT_Q)
    np.testing.assert_allclose(scaled / c**2, critic_loss(alpha=ALPHA / c), rtol=1e-5)


def test_actor_descends_to_the_known_optimum_of_a_quadratic_value():
    """With Q = -k/2 |a - a*|^2 and an untransformed Gaussian, the optimum is N(a*, alpha / k)."""
    optimum, k, alpha, steps = jnp.array([0.7, -1.3]), 4.0, 0.5, 400

    def loss(policy, key):
        policy = jax.tree.map(lambda x: jnp.broadcast_to(x, (512, 2)), policy)
        action, log_prob = Normal(**policy).sample_and_log_prob(key)
        q = -0.5 * k * jnp.sum((action - optimum) ** 2, -1)
        return sac.actor_loss(log_prob, jnp.stack([q, q + 1.0]), jnp.float32(alpha))

    def descend(policy, key):
        policy = jax.tree.map(lambda p, g: p - 0.1 * g, policy, jax.grad(loss)(policy, key))
        return policy, policy

    start = {"mean": jnp.zeros(2), "log_std": jnp.array([0.5, -3.0])}
    _, path = jax.lax.scan(descend, start, jax.random.split(jax.random.key(0), steps))
    end = jax.tree.map(lambda x: x[steps // 2 :].mean(0), path)
    np.testing.assert_allclose(end["mean"], optimum, atol=0.01)
    np.testing.assert_allclose(jnp.exp(2.0 * end["log_std"]), alpha / k, rtol=0.03)


def test_without_entropy_and_noise_it_is_the_deterministic_policy_gradient():
    mean = some_policy()["mean"]

    def loss(mean):
        action, log_prob = TanhNormal(mean, jnp.full_like(mean, -20.0)).sample_and_log_prob(jax.random.key(0))
        return sac.actor_loss(log_prob, some_q(action), jnp.float32(0.0))

    action = jnp.tanh(mean)
    of_action = jax.vmap(jax.grad(lambda a: jnp.min(some_q(a[None]))))(action)  # dQ/da
    np.testing.assert_allclose(jax.grad(loss)(mean), -of_action * (1.0 - action**2) / B, rtol=1e-4, atol=1e-6)


def test_without_entropy_and_noise_the_target_is_the_one_of_td3_without_noise():
    mean = some_policy()["mean"]
    policy = TanhNormal(mean, jnp.full_like(mean, -20.0))
    next_action, next_log_prob = policy.sample_and_log_prob(jax.random.key(1))
    loss = critic_loss(next_q=some_q(next_action), next_log_prob=next_log_prob, alpha=jnp.float32(0.0))
    target = REWARD + 0.9 * (1.0 - TERMINATED) * np.asarray(some_q(jnp.tanh(mean))).min(0)
    np.testing.assert_allclose(loss, 0.5 * np.mean((Q - target) ** 2, axis=1).sum(), rtol=1e-5)
