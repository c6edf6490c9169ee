"""Behaviour before there is anything to act on."""

import jax
import jax.numpy as jnp


def uniform_before(start: int, step: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
    """Uniformly random actions on [-1, 1] while `step` < `start`, afterwards `action`. Shapes as `action`."""
    random = jax.random.uniform(key, action.shape, action.dtype, -1.0, 1.0)
    return jnp.where(step < start, random, action)
