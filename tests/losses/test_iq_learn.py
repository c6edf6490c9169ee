"""IQ-Learn's critic loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import iq_learn as losses

RNG = np.random.default_rng(0)
Q, VALUE = RNG.normal(size=(2, 2, 6)).astype(np.float32)
NEXT_VALUE = RNG.normal(size=6).astype(np.float32)
TERMINATED = np.float32([0, 1, 0, 0, 1, 0])
EXPERT = np.float32([1, 1, 1, 0, 0, 0])


def test_it_is_the_objective_by_hand():
    by_critic = []
    for q, value in zip(Q, VALUE, strict=True):
        later = 0.9 * (1.0 - TERMINATED) * NEXT_VALUE
        reward = q - later
        by_critic.append(reward[:3].mean() - (value - later).mean() - np.mean(reward**2) / (4.0 * 0.25))
    loss = losses.critic_loss(Q, VALUE, NEXT_VALUE, TERMINATED, EXPERT, 0.9, 0.25)
    np.testing.assert_allclose(loss, -np.mean(by_critic), rtol=1e-5)


def test_the_target_is_a_constant():
    gradient = jax.grad(lambda v: losses.critic_loss(Q, VALUE, v, TERMINATED, EXPERT, 0.9, 0.5))(NEXT_VALUE)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_best_values_of_one_step_are_the_scaled_difference_of_densities():
    """dJ/dQ(a) = p_e(a) - pi(a) - Q(a) p_mix(a) / (2 beta): actions that the expert prefers are worth more."""
    expert, policy, beta = np.array([5, 2, 1]), np.array([2, 2, 4]), 0.5
    taken = np.concatenate([np.repeat(np.arange(3), expert), np.repeat(np.arange(3), policy)])
    of_expert = np.float32([1] * 8 + [0] * 8)
    pi = policy / 8.0

    def loss(table):
        q, value = table[taken][None], jnp.full((1, 16), jnp.sum(pi * table))
        return losses.critic_loss(q, value, jnp.zeros(16), jnp.ones(16), jnp.asarray(of_expert), 0.9, beta)

    best = 2.0 * beta * (expert / 8.0 - pi) / ((expert + policy) / 16.0)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(best, jnp.float32)), 0.0, atol=1e-6)
    assert best[0] > 0.0 > best[2]


@pytest.mark.parametrize("index", range(5))
def test_shapes_are_checked(index):
    arguments = [Q, VALUE, NEXT_VALUE, TERMINATED, EXPERT]
    arguments[index] = arguments[index][..., None]
    with pytest.raises(AssertionError):
        losses.critic_loss(*arguments, 0.9, 0.5)
