"""Absorbing states (Kostrikov et al. 2019, arXiv 1809.02925, section 4.2), for rewards that are learned.

Where an episode ends by termination, its learned return is cut off, which favours or punishes survival whatever the
expert does. So the last step leads to an absorbing state instead; one step there, back to itself, is taken too, with
reward 0, and a time limit ends it: nothing terminates any more, and values go on for ever.

In the paper's TD3 the actor does not act in the absorbing state. Here it is a state like others, so that a learner that
maximises entropy has its entropy there too, for ever.

Observations become {"absorbing": (1,), "observation": ...}; in the absorbing state they are 1 and zeros. Actions do
nothing there: discriminators should see none (`without_absorbed_action`).
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from offpolicy_jax.environments.protocols import InGraphEnvironment, Step
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree


def spec_with_absorbing(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The spec of an environment with absorbing states. Episodes last one step longer where they terminate."""
    whole = jax.tree.map(lambda leaf: replace(leaf, frames=0), spec.observation)  # zeros follow pixels, and end early
    observation = {"absorbing": ArraySpec((1,), np.dtype(np.float32)), "observation": whole}
    limit = spec.max_episode_steps
    return replace(spec, observation=observation, max_episode_steps=None if limit is None else limit + 1)


def without_absorbed_action(observation: PyTree, action: jax.Array) -> jax.Array:
    """The action (..., A), zero where the observation is of an absorbing state."""
    if isinstance(observation, dict) and set(observation) == {"absorbing", "observation"}:
        return jnp.where(observation["absorbing"] > 0.0, 0.0, action)  # also where observations are normalised
    return action


def with_indicator(observation: PyTree, absorbed: Any, numpy: Any) -> PyTree:
    """The observation with its indicator, zeroed where `absorbed` (its leading axes). `numpy`: np or jnp."""

    def zeroed(x):
        return numpy.where(absorbed.reshape(absorbed.shape + (1,) * (x.ndim - absorbed.ndim)), numpy.zeros_like(x), x)

    return {
        "absorbing": absorbed[..., None].astype(numpy.float32),
        "observation": jax.tree.map(zeroed, observation),
    }


@struct.dataclass
class State:
    """State of one in-graph environment: the inner one, its observation, and whether the absorbing state is on."""

    inner: PyTree
    observation: PyTree
    absorbed: jax.Array  # bool ()


@dataclass(frozen=True)
class InGraphAbsorbing:
    """An in-graph environment with absorbing states."""

    inner: InGraphEnvironment

    @property
    def spec(self) -> EnvironmentSpec:
        """With the indicator among the observations."""
        return spec_with_absorbing(self.inner.spec)

    def reset(self, key: jax.Array) -> tuple[State, PyTree]:
        """Start an episode."""
        inner, observation = self.inner.reset(key)
        return State(inner, observation, jnp.zeros((), bool)), with_indicator(observation, jnp.zeros((), bool), jnp)

    def step(self, state: State, action: jax.Array) -> tuple[State, Step]:
        """Advance one step, in the absorbing state or outside it."""
        inner, taken = self.inner.step(state.inner, action)
        keep = lambda old, new: jax.tree.map(lambda a, b: jnp.where(state.absorbed, a, b), old, new)  # noqa: E731
        inner, observation = keep(state.inner, inner), keep(state.observation, taken.observation)
        begins = taken.terminated & ~state.absorbed
        return State(inner, observation, begins), Step(
            observation=with_indicator(observation, begins, jnp),
            next_observation=with_indicator(taken.next_observation, state.absorbed | taken.terminated, jnp),
            reward=jnp.where(state.absorbed, 0.0, taken.reward),
            terminated=jnp.zeros((), bool),
            truncated=taken.truncated & ~begins | state.absorbed,
        )


class HostAbsorbing:
    """A vector environment on the host (one that can hold some of its copies) with absorbing states."""

    def __init__(self, inner: Any):
        self.inner, self.spec, self.num_envs = inner, spec_with_absorbing(inner.spec), inner.num_envs
        self._absorbed = np.zeros(self.num_envs, bool)

    @property
    def observation(self) -> PyTree:
        """The observation to act on next."""
        return with_indicator(self.inner.observation, self._absorbed, np)

    @property
    def exact_resume(self) -> bool:
        """As of the inner environment."""
        return self.inner.exact_resume

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Start N episodes."""
        self.inner.reset(seeds)
        self._absorbed = np.zeros(self.num_envs, bool)
        return self.observation

    def step(self, actions: np.ndarray) -> Step:
        """Advance all environments one step, in the absorbing state or outside it."""
        before = self._absorbed
        taken = self.inner.step(actions, before)
        self._absorbed = taken.terminated
        return Step(
            observation=self.observation,
            next_observation=with_indicator(taken.next_observation, before | taken.terminated, np),
            reward=taken.reward,
            terminated=np.zeros(self.num_envs, bool),
            truncated=taken.truncated | before,
        )

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the future depends on."""
        return self.inner.get_state() | {"absorbed": self._absorbed}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `get_state()`."""
        self.inner.set_state({name: x for name, x in state.items() if name != "absorbed"})
        self._absorbed = np.asarray(state["absorbed"]) & self.exact_resume

    def close(self) -> None:
        """Free what it holds."""
        self.inner.close()
