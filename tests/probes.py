"""Tiny environments whose values are known, to test agents and loops: in-graph, and on the host through `HostProbe`.

Observations are float32 of shape (1,). `discrete=False` gives one action dimension in [-1, 1], `discrete=True` two
actions. After an ending, `next_observation` is a value that no episode begins with, so that mixing them up shows.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from offpolicy_jax.environments.protocols import InGraphEnvironment, Step
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree


@struct.dataclass
class ProbeState:
    """State of every probe."""

    observation: jax.Array  # float32 (1,)
    elapsed: jax.Array  # int32 ()
    key: jax.Array  # typed key ()


@dataclasses.dataclass(frozen=True)
class ConstantReward:
    """Reward 1 at every step; only the time limit ends an episode. Value: 1 / (1 - discount), whatever the limit."""

    discrete: bool = False
    limit: int = 10

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/ConstantReward", self.discrete, self.limit)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin(0.0, key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        del action
        # The observation says nothing of the time, so that a value which counts the remaining steps cannot be learned.
        return _advance(self, state, 0.0, 1.0, terminated=False, truncated=state.elapsed + 1 >= self.limit)


@dataclasses.dataclass(frozen=True)
class OneStep:
    """One step with reward 1, then the task ends. Value: 1."""

    discrete: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/OneStep", self.discrete)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin(0.0, key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        del action
        return _advance(self, state, 1.0, 1.0, terminated=True)


@dataclasses.dataclass(frozen=True)
class ObservationReward:
    """One step from a random observation of -1 or 1, which is also the reward. Value: the observation."""

    discrete: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/ObservationReward", self.discrete)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin_at_random_sign(key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        del action
        return _advance(self, state, 0.0, state.observation[0], terminated=True)


@dataclasses.dataclass(frozen=True)
class DelayedReward:
    """Two steps, from observations 0 and 1, with rewards 0 and 1. Values: discount, and 1."""

    discrete: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/DelayedReward", self.discrete)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin(0.0, key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        del action
        observation = state.observation[0]
        return _advance(self, state, observation + 1.0, observation, terminated=observation == 1.0)


@dataclasses.dataclass(frozen=True)
class ActionReward:
    """One step. Reward: -(action - 0.5)^2, best at 0.5, value 0; discrete: the action, best at 1, value 1."""

    discrete: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/ActionReward", self.discrete)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin(0.0, key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        reward = action.astype(jnp.float32) if self.discrete else -((action[0] - 0.5) ** 2)
        return _advance(self, state, 1.0, reward, terminated=True)


@dataclasses.dataclass(frozen=True)
class ObservationAction:
    """One step from a random observation of -1 or 1. Reward 1 for an action of that sign, otherwise -1. Best value: 1.

    Discrete: action 1 fits observation 1, action 0 fits observation -1.
    """

    discrete: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        return _spec("probe/ObservationAction", self.discrete)

    def reset(self, key: jax.Array) -> tuple[ProbeState, jax.Array]:
        return _begin_at_random_sign(key)

    def step(self, state: ProbeState, action: jax.Array) -> tuple[ProbeState, Step]:
        positive = action == 1 if self.discrete else action[0] > 0.0
        reward = jnp.where(positive == (state.observation[0] > 0.0), 1.0, -1.0)
        return _advance(self, state, 0.0, reward, terminated=True)


PROBES = (ConstantReward, OneStep, ObservationReward, DelayedReward, ActionReward, ObservationAction)


def _spec(id: str, discrete: bool, limit: int | None = None) -> EnvironmentSpec:
    action = ArraySpec((), np.dtype(np.int32), num_values=2) if discrete else ArraySpec((1,), np.dtype(np.float32))
    return EnvironmentSpec(id, ArraySpec((1,), np.dtype(np.float32)), action, limit)


def _begin(observation: Any, key: jax.Array) -> tuple[ProbeState, jax.Array]:
    array = jnp.asarray(observation, jnp.float32).reshape((1,))
    return ProbeState(observation=array, elapsed=jnp.zeros((), jnp.int32), key=key), array


def _begin_at_random_sign(key: jax.Array) -> tuple[ProbeState, jax.Array]:
    now, later = jax.random.split(key)
    return _begin(jax.random.rademacher(now, ()), later)


def _advance(
    environment: Any, state: ProbeState, successor: Any, reward: Any, *, terminated: Any, truncated: Any = False
) -> tuple[ProbeState, Step]:
    """The step of every probe: the given outcome, and a reset where it ended the episode."""
    terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
    next_observation = jnp.asarray(successor, jnp.float32).reshape((1,))
    going_on = ProbeState(observation=next_observation, elapsed=state.elapsed + 1, key=state.key)
    begun, _ = environment.reset(state.key)
    after = jax.tree.map(lambda a, b: jnp.where(terminated | truncated, a, b), begun, going_on)
    return after, Step(after.observation, next_observation, jnp.asarray(reward, jnp.float32), terminated, truncated)


class HostProbe:
    """Any in-graph environment as a `HostEnvironment`: environment i begins from `jax.random.key(seeds[i])`."""

    exact_resume = True
    observation: PyTree = None

    def __init__(self, environment: InGraphEnvironment | Any, num_envs: int):
        self.spec: EnvironmentSpec = environment.spec
        self.num_envs = num_envs
        self._reset = jax.jit(jax.vmap(environment.reset))
        self._step = jax.jit(jax.vmap(environment.step))
        self._state: PyTree = None
        keys = jax.random.split(jax.random.key(0), num_envs)
        state_shape, _ = jax.eval_shape(self._reset, keys)
        self._structure = jax.tree.structure(state_shape)
        self._is_key = [_is_key(leaf) for leaf in jax.tree.leaves(state_shape)]

    def reset(self, seeds: np.ndarray) -> PyTree:
        assert len(seeds) == self.num_envs
        self._state, observation = self._reset(jnp.stack([jax.random.key(int(seed)) for seed in seeds]))
        self.observation = jax.tree.map(np.asarray, observation)
        return self.observation

    def step(self, actions: np.ndarray) -> Step:
        self._state, step = self._step(self._state, actions)
        step = jax.tree.map(np.asarray, step)
        self.observation = step.observation
        return step

    def get_state(self) -> dict[str, np.ndarray]:
        leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(self._state)]
        return {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)} | {"observation": self.observation}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        leaves = [jnp.asarray(state[f"leaf_{i}"]) for i in range(len(self._is_key))]
        leaves = [jax.random.wrap_key_data(x) if key else x for x, key in zip(leaves, self._is_key, strict=True)]
        self._state = jax.tree.unflatten(self._structure, leaves)
        self.observation = state["observation"]

    def close(self) -> None:
        pass


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
