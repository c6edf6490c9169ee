"""The two small protocols that every environment speaks: in-graph (pure JAX) and host (batched NumPy).

Both reset automatically and never hide anything: a `Step` carries the observation to act on next *and* the true
successor of the last action, which differ exactly where an episode has just ended.
"""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from offpolicy_jax.transition import EnvironmentSpec, PyTree


class Step(NamedTuple):
    """What one step returns. Leading axes: none in-graph (the driver vmaps), N environments on the host."""

    observation: PyTree  # to act on next: after an ending, the first observation of a new episode
    next_observation: PyTree  # the true successor, never a reset observation: what replay stores
    reward: Any  # float32
    terminated: Any  # bool: the task ended; values stop here
    truncated: Any  # bool: a time limit cut the episode; values go on


class InGraphEnvironment(Protocol):
    """One environment as pure functions, to be vmapped over environments and seeds and scanned inside jit."""

    @property
    def spec(self) -> EnvironmentSpec:
        """What agents may know of it."""
        ...

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Start an episode. Returns (state, observation); the state carries its own key for later resets."""
        ...

    def step(self, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """Advance one step and reset after an ending. Actions as in `EnvironmentSpec`: [-1, 1] or integers."""
        ...


class HostEnvironment(Protocol):
    """N independent environments stepped together with NumPy arrays."""

    @property
    def spec(self) -> EnvironmentSpec:
        """What agents may know of each environment."""
        ...

    @property
    def num_envs(self) -> int:
        """N."""
        ...

    @property
    def observation(self) -> PyTree:
        """The observation to act on next, as `reset`, `step` or `set_state` left it."""
        ...

    @property
    def exact_resume(self) -> bool:
        """Whether `set_state` continues the episodes; otherwise it starts new ones."""
        ...

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Start N episodes, environment i from `seeds[i]` (shape (N,), integers). Returns observations (N, ...).

        After this every later automatic reset is determined by the seed and the actions alone.
        """
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Advance all environments one step; those that end are reset at once (the true successor is kept)."""
        ...

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the future depends on, as arrays without pickled objects, for an exact resume."""
        ...

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `get_state()`: the same actions give bit-identical steps on the same machine."""
        ...

    def close(self) -> None:
        """Free what the environments hold."""
        ...
