"""Environments by id: `make` picks the in-graph backend (pure JAX) where one exists, else the host (batched NumPy)."""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from offpolicy_jax.environments.protocols import HostEnvironment, InGraphEnvironment, Step
from offpolicy_jax.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from offpolicy_jax.environments.atari import Conventions

# The backends are imported inside the functions: in-graph work must not load MuJoCo, nor `import offpolicy_jax` either.

__all__ = [
    "HostEnvironment",
    "InGraphEnvironment",
    "Step",
    "check_action_repeat",
    "is_in_graph",
    "known_ids",
    "make",
    "register",
    "with_absorbing",
]

Environment = InGraphEnvironment | HostEnvironment

_IN_GRAPH = "phys2d/", "tabular/"
_constructors: dict[str, Callable[[int], Environment]] = {}


def register(id: str, constructor: Callable[[int], Environment]) -> None:
    """Let `make(id, num_envs)` return `constructor(num_envs)`, of either protocol. A later call replaces an earlier."""
    _constructors[id] = constructor


def make(id: str, num_envs: int = 1, atari: "Conventions | None" = None, action_repeat: int = 1) -> Environment:
    """Build an environment. `num_envs` is the size of a host environment; in-graph ones are vmapped by their driver.

    `atari`: how the games of `ALE/<Game>-v5` are played, if not by the defaults of `environments.atari`.
    `action_repeat`: how many of the environment's own steps one step takes; its rewards are summed.

    Raises UserError for an unknown id (naming the nearest known ones), for unsupported spaces, and where actions are
    to be repeated but the environment is not one of Gymnasium's or dm_control's on the host.
    """
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, not {num_envs}")
    check_action_repeat(id, action_repeat)
    if id in _constructors:
        return _constructors[id](num_envs)
    if id.startswith("gridworld/"):
        from offpolicy_jax.environments import four_rooms

        if id in four_rooms.IDS:
            return four_rooms.IDS[id]
    if id.startswith("minatar/"):
        from offpolicy_jax.environments import breakout

        if id in breakout.IDS:
            return breakout.IDS[id]
    if id.startswith("ALE/"):
        from offpolicy_jax.environments import atari as games

        if not (known := games.known_atari_ids()) or id in known:
            return games.make_atari(id, num_envs, atari or games.DOPAMINE)
    if id in _in_graph_ids():
        from offpolicy_jax.environments import in_graph

        return cast(InGraphEnvironment, in_graph.make_in_graph(id))
    from offpolicy_jax.environments import host

    if not _can_try(id):
        nearest = _nearest(id, known_ids())
        raise UserError(f"unknown environment {id!r}" + (f"; did you mean {' or '.join(nearest)}?" if nearest else ""))
    return host.make_host(id, num_envs, action_repeat=action_repeat)


def check_action_repeat(id: str, action_repeat: int) -> None:
    """Raises UserError if an environment of this kind cannot repeat actions."""
    if action_repeat != 1 and (id in _constructors or id.startswith(("gridworld/", "minatar/", "ALE/", *_IN_GRAPH))):
        instead = "; use --atari.frame-skip" if id.startswith("ALE/") else ""
        raise UserError(f"--action-repeat is for Gymnasium's and dm_control's host environments, not {id}{instead}")


def with_absorbing(environment: Environment) -> Environment:
    """The environment with absorbing states in place of terminations, for rewards that are learned.

    Raises UserError for a host environment that cannot hold some of its copies still.
    """
    from offpolicy_jax.environments import absorbing

    if is_in_graph(environment):
        return absorbing.InGraphAbsorbing(environment)
    if not hasattr(environment, "observation_space"):
        raise UserError(f"{environment.spec.id} cannot have absorbing states: it steps all of its copies at once")
    return absorbing.HostAbsorbing(environment)


def is_in_graph(environment: Environment) -> "TypeIs[InGraphEnvironment]":
    """Whether the environment is pure JAX functions of one environment, rather than a batched host environment."""
    return not hasattr(environment, "num_envs")


def known_ids() -> list[str]:
    """All ids that `make` knows, sorted: Gymnasium's registry, the host backend's own, and registered constructors."""
    from offpolicy_jax.environments import atari, breakout, four_rooms, host

    ids = {*_in_graph_ids(), *four_rooms.IDS, *breakout.IDS, *atari.known_atari_ids(), *_constructors}
    return sorted(ids | set(host.known_host_ids()))


def _in_graph_ids() -> list[str]:
    import gymnasium

    return [id for id in gymnasium.registry if id.startswith(_IN_GRAPH)]


def _can_try(id: str) -> bool:
    """Whether the host backend knows the id or has more to say of it than that it is unknown."""
    import gymnasium

    # Gymnasium imports the module of a "module:id" first, so such an id cannot be known yet.
    if id in gymnasium.registry or ":" in id:
        return True
    known = known_ids()  # last, because listing the dm_control suite loads MuJoCo
    has_suite = any(name.startswith("dm_control/") for name in known)
    return id in known or (id.startswith("dm_control/") and not has_suite)


def _nearest(id: str, known: list[str]) -> list[str]:
    folded = {name.casefold(): name for name in known}
    return [folded[name] for name in difflib.get_close_matches(id.casefold(), folded, n=3)]
