"""DAC's discriminator, penalty and rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import dac as losses


def test_the_loss_is_binary_cross_entropy():
    expert, replayed = np.float32([0.3, -2.0, 5.0]), np.float32([1.5, -0.5])
    sigma = lambda x: 1.0 / (1.0 + np.exp(-x))  # noqa: E731
    by_hand = -np.mean(np.log(sigma(expert))) - np.mean(np.log(1.0 - sigma(replayed)))
    np.testing.assert_allclose(losses.discriminator_loss(expert, replayed), by_hand, rtol=1e-5)
    np.testing.assert_allclose(losses.discriminator_loss(jnp.zeros(2), jnp.zeros(3)), 2.0 * np.log(2.0), rtol=1e-6)
    extreme = losses.discriminator_loss(jnp.array([-1e4]), jnp.array([1e4]))
    np.testing.assert_allclose(extreme, 2e4)


def test_its_minimum_in_a_table_is_the_log_ratio():
    """The gradient with respect to the logit of a cell vanishes at log(p_expert / p_replay)."""
    expert, replay = np.array([1, 2, 5]), np.array([4, 2, 2])
    index = np.arange(3)

    def loss(table):
        return losses.discriminator_loss(table[np.repeat(index, expert)], table[np.repeat(index, replay)])

    np.testing.assert_allclose(jax.grad(loss)(jnp.log(expert / replay)), 0.0, atol=1e-6)


def test_rewards():
    logit = np.float32([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(losses.reward(logit), logit)
    positive = losses.reward(logit, "positive")
    np.testing.assert_allclose(positive, -np.log(1.0 - 1.0 / (1.0 + np.exp(-logit))), rtol=1e-5)


def test_the_penalty_vanishes_for_a_slope_of_one_and_can_be_differentiated():
    unit = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(losses.gradient_penalty(unit), 0.0, atol=1e-12)
    np.testing.assert_allclose(losses.gradient_penalty(3.0 * unit), 4.0, rtol=1e-6)
    np.testing.assert_allclose(losses.gradient_penalty(np.zeros((2, 3, 4), np.float32)), 1.0, rtol=1e-5)
    slope = jax.grad(lambda w: losses.gradient_penalty(w * unit))
    np.testing.assert_allclose(slope(3.0), 4.0, rtol=1e-5)  # 2 (|w| - 1)
    assert np.isfinite(slope(0.0))


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1))])
def test_shapes_are_checked(shapes):
    with pytest.raises(AssertionError):
        losses.discriminator_loss(*(jnp.zeros(shape) for shape in shapes))
