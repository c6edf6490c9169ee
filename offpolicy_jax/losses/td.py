"""Temporal-difference targets and errors that every value-based method shares."""

import chex
import jax
import jax.numpy as jnp


def td_target(
    reward: jax.Array, terminated: jax.Array, next_value: jax.Array, discount: jax.Array | float
) -> jax.Array:
    """y = r + discount (1 - terminated) V(s'), with the gradient stopped; all of shape (B,).

    A truncated step is not a terminated one: its successor's value counts. `discount` may be (B,), for n-step targets.
    Raises AssertionError if shapes differ.
    """
    chex.assert_rank(reward, 1)
    chex.assert_equal_shape([reward, terminated, next_value])
    chex.assert_rank(jnp.asarray(discount), {0, 1})
    chex.assert_is_broadcastable(jnp.shape(discount), reward.shape)
    return jax.lax.stop_gradient(reward + discount * jnp.where(terminated, 0.0, next_value))


def squared_td_error(q: jax.Array, target: jax.Array) -> jax.Array:
    """Sum over critics of 1/2 mean_B (Q_i - y)^2: q (N, B), target (B,) -> scalar. Raises AssertionError on shapes."""
    chex.assert_rank([q, target], [2, 1])
    chex.assert_axis_dimension(q, 1, target.shape[0])
    return 0.5 * jnp.sum(jnp.mean(jnp.square(q - target), axis=1))
