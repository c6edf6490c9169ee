"""Behaviour before there is anything to act on."""

import jax
import jax.numpy as jnp


def uniform_before(start: int, step: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
    """Uniformly random actions on [-1, 1] while `step` < `start`, afterwards `action`. Shapes as `action`."""
    random = jax.random.uniform(key, action.shape, action.dtype, -1.0, 1.0)
    return jnp.where(step < start, random, action)


def epsilon_greedy(action: jax.Array, num_actions: int, epsilon: jax.Array | float, key: jax.Array) -> jax.Array:
    """The greedy `action` (E,), or with chance `epsilon` a uniformly random one in [0, num_actions)."""
    coin_key, random_key = jax.random.split(key)
    random = jax.random.randint(random_key, action.shape, 0, num_actions, action.dtype)
    return jnp.where(jax.random.bernoulli(coin_key, epsilon, action.shape), random, action)
