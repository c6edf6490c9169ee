"""Transition and EnvironmentSpec: the data that every part of the library agrees on.

Axes come always in this order: seeds S, time T, parallel environments per seed E, batch B.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PyTree = Any
"""A nested structure of arrays; a single array is the simplest one."""


@struct.dataclass
class Transition:
    """One step of experience, with any leading batch axes (the same ones on every leaf).

    `next_observation` is the true successor, never the observation after an automatic reset. Bootstrapping stops on
    `terminated` alone: a time limit sets `truncated` and the value of the successor still counts.
    """

    observation: PyTree
    action: jax.Array  # float32 in [-1, 1], shape (..., A); or int32 in [0, n), shape (...)
    reward: jax.Array  # float32, shape (...)
    next_observation: PyTree
    terminated: jax.Array  # bool, shape (...)
    truncated: jax.Array  # bool, shape (...)
    extras: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)  # what `act` returned beside the action


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array, without batch axes. `num_values` marks integers in [0, num_values).

    The last axis of pixels (uint8, three axes) stacks `frames` frames, oldest first, repeating an episode's first one
    at its beginning, and the replay keeps each frame once. 0: it keeps them whole, for pixels that do not continue
    each other in this way, or where an episode may break off without an ending, or be truncated before its time limit.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int | None = None
    frames: int = dataclasses.field(default=1, compare=False)

    @property
    def width(self) -> int:
        """Number of floats that this array is for a network: its size, times `num_values` if it is one-hot encoded."""
        return math.prod(self.shape) * (self.num_values or 1)


@dataclasses.dataclass(frozen=True)
class EnvironmentSpec:
    """What an agent may know of an environment: its id, observations, actions and time limit.

    Continuous actions are in [-1, 1] per dimension; the environment's adapter rescales them to the true bounds.
    """

    id: str
    observation: PyTree  # of ArraySpec
    action: ArraySpec
    max_episode_steps: int | None = None
    action_repeat: int = 1  # how many of the environment's own steps one step of the agent takes

    @property
    def discrete(self) -> bool:
        """Whether an action is one integer rather than a vector of floats."""
        return self.action.num_values is not None

    @property
    def num_actions(self) -> int:
        """Number of discrete actions. Raises ValueError for continuous ones."""
        if self.action.num_values is None:
            raise ValueError(f"{self.id} has continuous actions")
        return self.action.num_values

    @property
    def action_size(self) -> int:
        """Dimension of a continuous action. Raises ValueError for discrete ones."""
        if self.discrete:
            raise ValueError(f"{self.id} has discrete actions")
        return math.prod(self.action.shape)


def zeros(spec: PyTree, batch_shape: tuple[int, ...] = ()) -> PyTree:
    """Zero arrays of shape `batch_shape + spec.shape` for a pytree of ArraySpec."""
    return jax.tree.map(lambda s: jnp.zeros(batch_shape + s.shape, s.dtype), spec)


def example_transition(spec: EnvironmentSpec, extras: Mapping[str, PyTree] | None = None) -> Transition:
    """A transition of zeros without batch axes, to size a replay. `extras`: arrays as `act` returns them."""
    observation = zeros(spec.observation)
    return Transition(
        observation=observation,
        action=zeros(spec.action),
        reward=jnp.zeros((), jnp.float32),
        next_observation=observation,
        terminated=jnp.zeros((), bool),
        truncated=jnp.zeros((), bool),
        extras=dict(extras or {}),
    )
