"""Gymnasium's spaces as specs, for both backends."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec, PyTree

MAX_ONE_HOT = 4096
"""Integer observations with more values than this are quantities rather than categories: they become float32."""
_UNBOUNDED = 1e10  # what MuJoCo has for infinity, where an actuator has no range


def observation_spec(id: str, space: Any) -> PyTree:
    """Specs of an observation space. Raises UserError for a kind that is not supported."""
    if isinstance(space, spaces.Dict):
        return {name: observation_spec(id, part) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(observation_spec(id, part) for part in space.spaces)
    if isinstance(space, spaces.Discrete) and space.start >= 0:
        return ArraySpec((), np.dtype(np.int32), num_values=int(space.start + space.n))
    if isinstance(space, spaces.MultiBinary):
        return ArraySpec(space.shape, np.dtype(np.int32), num_values=2)
    if isinstance(space, spaces.MultiDiscrete) and space.start.min() >= 0:
        return ArraySpec(space.shape, np.dtype(np.int32), num_values=int((space.start + space.nvec).max()))
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 2:  # pixels keep their bytes
            return ArraySpec(space.shape, np.dtype(np.uint8))
        if np.issubdtype(space.dtype, np.integer) and space.low.min() >= 0 and space.high.max() < MAX_ONE_HOT:
            return ArraySpec(space.shape, np.dtype(np.int32), num_values=int(space.high.max()) + 1)
        return ArraySpec(space.shape, np.dtype(np.float32))
    raise UserError(f"{id}: observations in {space} are not supported; use Box, Discrete, or a Dict or Tuple of them")


def action_spec(id: str, space: Any) -> ArraySpec:
    """Spec of an action space: [-1, 1] per dimension, or integers from 0. Raises UserError for other kinds."""
    if isinstance(space, spaces.Discrete):
        return ArraySpec((), np.dtype(np.int32), num_values=int(space.n))
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.integer):
            if math.prod(space.shape) == 1:  # one integer in a box is a discrete action
                return ArraySpec((), np.dtype(np.int32), num_values=int(space.high.item() - space.low.item()) + 1)
        elif len(space.shape) == 1 and max(np.abs(space.low).max(), np.abs(space.high).max()) < _UNBOUNDED:
            return ArraySpec(space.shape, np.dtype(np.float32))
    raise UserError(
        f"{id}: actions in {space} are not supported; use Discrete or a bounded one-dimensional Box of floats"
    )


def first_action(space: Any) -> int:
    """The environment's own integer for our action 0, in a discrete space."""
    return int(space.start if isinstance(space, spaces.Discrete) else space.low.item())


def to_space(action: jax.Array, space: Any) -> jax.Array:
    """From our action ([-1, 1] or an integer from 0), with any leading axes, to the environment's own."""
    if np.issubdtype(space.dtype, np.integer):  # at most one integer, perhaps in an array
        return action.astype(jnp.int32).reshape(action.shape + (1,) * len(space.shape)) + first_action(space)
    low, high = jnp.asarray(space.low, jnp.float32), jnp.asarray(space.high, jnp.float32)
    # The middle-and-half form is exact at 0 and, for symmetric bounds, at both ends.
    return (low + high) / 2 + jnp.clip(action, -1.0, 1.0) * (high - low) / 2
