"""PROPS's behaviour loss: PPO's surrogate with advantage -1, ROS's gradient at the target, masks and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import policy_gradient
from offpolicy_jax.losses import props as losses

RNG = np.random.default_rng(0)
ALL = np.ones(64, bool)


def surrogate(logits, reference, action, epsilon=0.3):
    """L_clip of a one-state softmax policy on actions (B,)."""
    log_ratio = jax.nn.log_softmax(logits)[action] - jax.nn.log_softmax(reference)[action]
    return losses.clipped_surrogate(log_ratio, epsilon, np.ones(action.shape, bool))


def test_it_is_ppo_s_surrogate_with_advantage_minus_one():
    log_ratio, mask = RNG.normal(size=64).astype(np.float32), RNG.random(64) < 0.7
    expected = policy_gradient.clipped_surrogate(log_ratio, -np.ones(64, np.float32), 0.3, mask)
    np.testing.assert_allclose(losses.clipped_surrogate(log_ratio, 0.3, mask), expected, rtol=1e-6)
    ratio = np.exp(log_ratio)
    by_hand = np.mean(np.where(ratio < 0.7, 0.7, ratio)[mask])
    np.testing.assert_allclose(expected, by_hand, rtol=1e-6)


def test_without_a_clip_it_is_the_mean_ratio():
    log_ratio = RNG.normal(size=64).astype(np.float32)
    np.testing.assert_allclose(losses.clipped_surrogate(log_ratio, np.inf, ALL), np.exp(log_ratio).mean(), rtol=1e-6)


def test_at_the_target_its_gradient_is_that_of_the_log_likelihood():
    """ROS's sign: a step down makes the data less likely."""
    logits, action = RNG.normal(size=5).astype(np.float32), RNG.integers(0, 5, 64)
    gradient = jax.grad(surrogate)(logits, logits, action)
    likelihood = lambda logits: jnp.mean(jax.nn.log_softmax(logits)[action])  # noqa: E731
    np.testing.assert_allclose(gradient, jax.grad(likelihood)(logits), rtol=1e-5, atol=1e-7)
    assert likelihood(logits - 0.1 * gradient) < likelihood(logits)


def test_in_one_state_arms_move_towards_their_due():
    """The gradient on the logits is empirical minus target: under-sampled arms gain, over-sampled ones lose."""
    logits = np.log([0.5, 0.3, 0.2]).astype(np.float32)
    action = np.array([0] * 5 + [1] * 1 + [2] * 4)
    gradient = jax.grad(surrogate)(logits, logits, action)
    np.testing.assert_allclose(gradient, [0.0, -0.2, 0.2], atol=1e-6)


def test_data_in_proportion_to_the_policy_move_nothing():
    logits, action = np.log([0.5, 0.3, 0.2]).astype(np.float32), np.repeat(np.arange(3), [50, 30, 20])
    np.testing.assert_allclose(jax.grad(surrogate)(logits, logits, action), 0.0, atol=1e-6)


def test_below_the_clip_nothing_is_pushed_further():
    gradient = jax.grad(lambda x: losses.clipped_surrogate(x, 0.3, ALL))
    np.testing.assert_array_equal(gradient(np.full(64, np.log(0.69), np.float32)), 0.0)
    assert np.all(gradient(np.full(64, np.log(0.71), np.float32)) > 0.0)
    assert np.all(gradient(np.full(64, np.log(5.0), np.float32)) > 0.0)  # not clipped above


def test_the_kl_is_weighted_and_masked():
    log_ratio, kl = RNG.normal(size=(2, 64)).astype(np.float32)
    mask = np.arange(64) < 10
    loss = losses.behaviour_loss(log_ratio, kl, 0.3, 0.2, mask)
    expected = losses.clipped_surrogate(log_ratio[:10], 0.3, ALL[:10]) + 0.2 * kl[:10].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        losses.clipped_surrogate(np.zeros((4, 1), np.float32), 0.3, ALL[:4])
    with pytest.raises(AssertionError):
        losses.clipped_surrogate(np.zeros(4, np.float32), 0.3, np.ones((4, 1), bool))
    with pytest.raises(AssertionError):
        losses.behaviour_loss(np.zeros(4, np.float32), np.zeros((4, 1), np.float32), 0.3, 0.1, ALL[:4])
