"""What a training loop expects of an agent: a module of pure functions, config first."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from offpolicy_jax.errors import UserError
from offpolicy_jax.replay import Replay
from offpolicy_jax.transition import EnvironmentSpec, PyTree

Metrics = dict[str, jax.Array]
C = TypeVar("C")


class Agent(Protocol):
    """The interface that each module in agents/ satisfies. All functions are those of one seed."""

    Config: Any
    State: Any

    def init(self, config: Any, spec: EnvironmentSpec, key: jax.Array) -> Any:
        """A fresh State. Raises UserError if the agent cannot work in such an environment."""
        ...

    def act(
        self, config: Any, state: Any, observation: PyTree, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Behaviour in E environments at once: actions, and extras to store with them."""
        ...

    def policy(self, config: Any, state: Any, observation: PyTree) -> jax.Array:
        """Greedy actions, for evaluation."""
        ...

    def update(self, config: Any, state: Any, replay: Replay, step: jax.Array, key: jax.Array) -> tuple[Any, Metrics]:
        """Learn, every `config.rollout_length` steps of each environment; `step` counts all of a seed's steps."""
        ...

    # What only some agents have, functions like the others:
    #
    # An agent that learns from `replay.demonstrations` says so by `DEMONSTRATIONS = True`, or "optional" if it can go
    # without. One whose values never stop says NEEDS_ABSORBING_STATES = True: demonstrations that terminate are refused
    # unless there are absorbing states.
    #
    # An agent that drops experience (`replay.forget`), which is asked before each transition is stored:
    #   retain(config, replay, step) -> replay
    #
    # An agent that is a mixture of policies, each followed for a whole episode; row e of E is episode e of an
    # evaluation, and the same policy acts in it from its beginning to its end:
    #   mixture_policy(config, state, observation) -> action
    #
    # An agent with features phi that its values are linear in, for `diagnostics.feature_statistics` and
    # `diagnostics.linear_probe_error`:
    #   features(config, state, observation) -> phi                           (B, F)
    #
    # An agent whose values can be held against returns (`Settings.value_bias`):
    #   predict(config, state, observation, key) -> action, value, bonus      leaves (E, ...), (E,), (E,)
    # a sampled action, the soft return that the agent expects of it (in units of scaled reward), and what the entropy
    # of the policy adds to the value of that state, -alpha log pi(action).


def resolve(config: C, spec: EnvironmentSpec, steps: int) -> C:
    """The config with what depends on the run filled in: warm-up, annealing, phases (-1); a ring no larger than it.

    Configs within the config (a part that is an agent of its own) are filled in as well.
    """
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {k: resolve(v, spec, steps) for k, v in parts.items() if dataclasses.is_dataclass(v)}
    if getattr(config, "learning_starts", 0) == -1:
        changes["learning_starts"] = 10 * (spec.max_episode_steps or 100)
    if parts.get("replay_capacity", 0) > steps:
        changes["replay_capacity"] = steps
    if getattr(config, "anneal_steps", 0) == -1:
        changes["anneal_steps"] = steps
    if getattr(config, "pretrain_steps", 0) == -1:
        changes["pretrain_steps"] = steps // 2
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def stack(configs: Sequence[C], num_seeds: int) -> C:
    """One config for the lanes of several, S seeds each: floats that differ become (S * len(configs),).

    Raises UserError if they differ in more than floats.
    """

    def leaf(*values):
        arrays = [np.asarray(value, np.float64) for value in values]
        if all(array.ndim == 0 and array == arrays[0] for array in arrays):
            return values[0]
        return np.concatenate([np.broadcast_to(array, (num_seeds,)) for array in arrays])

    try:
        return jax.tree.map(leaf, *configs)
    except ValueError as error:
        raise UserError("configs of one program may differ in floats only: the others fix its shapes") from error


def check(config: Any, num_seeds: int = 1, path: str = "config") -> None:
    """Raises UserError, one line, for a hyper-parameter that no run of that many seeds could use."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, num_seeds, name)
            continue
        if isinstance(value, str):
            choices = typing.get_args(kinds[field.name])
            if choices and value not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, not {value}")
        if isinstance(value, bool | str):
            continue
        if isinstance(value, tuple):
            if any(not isinstance(v, int) or not 1 <= v <= _LARGEST for v in value):
                raise UserError(f"{name} must be a list of positive sizes, not {value}")
        elif isinstance(field.default, int):
            lowest = _LOWEST.get(field.name, 1)
            if not lowest <= value <= _LARGEST:
                raise UserError(f"{name} must be from {lowest} to {_LARGEST}, not {value}")
        else:
            low, high = _RANGES.get(field.name, (-math.inf, math.inf))
            array = np.asarray(value, np.float64)
            if array.shape not in ((), (num_seeds,)):
                raise UserError(f"{name} has shape {array.shape}: give one value, or one for each of {num_seeds} seeds")
            if not np.all((low <= array) & (array <= high)):
                raise UserError(f"{name} must be between {low:g} and {high:g}, not {value}")


_LARGEST = 2**31 - 1  # steps and rows are int32 on the device
_LOWEST = {"learning_starts": -1, "gradient_steps": -1, "anneal_steps": -1, "threshold_steps": 0, "pretrain_steps": -1}
_RANGES = {
    "learning_rate": (0.0, 1.0),
    "actor_learning_rate": (0.0, 1.0),
    "temperature_learning_rate": (0.0, 1.0),
    "temperature": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "beta": (1e-8, math.inf),
    "gradient_penalty": (0.0, math.inf),
    "replay_regularization": (1e-8, 1.0 - 1e-6),
    "exploration_std": (0.0, math.inf),
    "discount": (0.0, 1.0),
    "tau": (0.0, 1.0),
    "statistics_tau": (0.0, 1.0),
    "clip_width": (0.0, math.inf),
    "fixed_boundary": (0.0, math.inf),
    "epsilon": (0.0, math.inf),
    "scale_epsilon": (0.0, math.inf),
    "gae_lambda": (0.0, 1.0),
    "clip": (0.0, math.inf),
    "value_clip": (0.0, math.inf),
    "max_gradient_norm": (0.0, math.inf),
    "target_kl": (0.0, math.inf),
    "inverse_step_size": (0.0, math.inf),
    "step_size": (1e-8, math.inf),
    "value_learning_rate": (0.0, 1.0),
    "threshold_learning_rate": (0.0, 1.0),
    "adam_epsilon": (0.0, math.inf),
    "huber_delta": (1e-8, math.inf),
    "activation_rate": (1e-6, 1.0),
    "ridge": (0.0, math.inf),
    "kl_weight": (0.0, math.inf),
    "entropy_weight": (0.0, math.inf),
    "tsallis_q": (1.0, 2.0),
    "policy_regularization": (0.0, math.inf),
    "gate_loss_scale": (0.0, math.inf),
    "gate_weight": (0.0, math.inf),
    "critic_weight": (0.0, math.inf),
    "gumbel_temperature": (1e-8, math.inf),
    "initial_temperature": (1e-8, 1e8),
    "reward_scale": (1e-30, 1e30),
}
