"""What a run is besides its agent: settings, and what is refused before anything runs."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from offpolicy_jax import environments
from offpolicy_jax import replay as replays
from offpolicy_jax.environments.atari import DOPAMINE, Conventions
from offpolicy_jax.environments.atari import check as check_conventions
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent
from offpolicy_jax.training.learner import start
from offpolicy_jax.training.run_directory import LOGGERS
from offpolicy_jax.training.summary import as_json
from offpolicy_jax.transition import EnvironmentSpec, Transition


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is, besides its agent and hyper-parameters."""

    env: str = "phys2d/Pendulum-v0"
    """Environment id: Gymnasium's, ALE/<Game>-v5, phys2d/..., tabular/..., gridworld/... or
    dm_control/<domain>-<task>-v0."""
    steps: int = 10_000
    """Environment steps per seed, summed over its parallel environments."""
    seeds: int = 3
    """Number of seeds, trained at once."""
    seed: int = 0
    """The first seed; the others follow it."""
    num_envs: int = 1
    """Parallel environments per seed."""
    action_repeat: int = 1
    """Repeat each action for so many of the environment's own steps, summing their rewards, on Gymnasium's and
    dm_control's host environments. All steps of a run, and its discounts, are then per action; a time limit that is no
    multiple is rounded down."""
    eval_every: int = 0
    """Steps between evaluations; 0: twenty evaluations."""
    eval_episodes: int = 10
    """Episodes per evaluation and seed."""
    value_bias: bool = False
    """Measure at each evaluation by how much the critics overestimate the soft return of sampled actions, in units of
    reward (normalised ones if rewards are)."""
    normalize_observations: bool = False
    """Normalise observations by their running mean and standard deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_rewards: bool = False
    """Let the agent see the signs of rewards alone, as usual on Atari; evaluations report the true returns."""
    atari: Conventions = DOPAMINE
    """How the games of ALE/<Game>-v5 are played."""
    demos: str | None = None
    """Demonstrations for agents that imitate, or pre-train: a Minari dataset, by its id or its directory. All of it is
    in memory, stacks of frames whole (56 kB per transition of Atari)."""
    demo_episodes: int = 0
    """Use this many of them, the first ones; 0: all."""
    absorbing_states: bool = False
    """Let terminated episodes go on in an absorbing state, for agents that imitate (DAC, section 4.2)."""
    run_dir: str | None = None
    """Directory of the run's files; none are written without one."""
    resume: bool = False
    """Continue the run in run_dir, exactly; start it if it has no checkpoint yet."""
    checkpoint_every: int = 0
    """Least number of steps between checkpoints, which are taken at evaluations; 0: at each of them."""
    log: tuple[str, ...] = ()
    """Further sinks for the metrics: tensorboard, wandb."""
    progress: bool = True
    """Show a progress bar."""


FREE_ON_RESUME = ("steps", "run_dir", "resume", "checkpoint_every", "log", "progress", "demos")
"""Settings that may change when a run is resumed: they do not change the numbers.

Demonstrations are in the checkpoint; the dataset, wherever it is by now, only tells their shapes.
"""


def make_environment(settings: Settings, num_envs: int = 1) -> Any:
    """The environment of a run, in so many copies if it is on the host."""
    environment = environments.make(settings.env, num_envs, settings.atari, settings.action_repeat)
    return environments.with_absorbing(environment) if settings.absorbing_states else environment


def check_settings(settings: Settings) -> None:
    """Raises UserError, one line, for settings that no run could use."""
    limits = {"steps": 1, "seeds": 1, "seed": 0, "num_envs": 1, "action_repeat": 1, "eval_every": 0, "eval_episodes": 1}
    for name, low in {**limits, "checkpoint_every": 0, "demo_episodes": 0}.items():
        flag, value = "--" + name.replace("_", "-"), getattr(settings, name)
        if value < low:
            raise UserError(f"{flag} must be at least {low}, not {value}")
        if value >= 2**31:  # steps and sizes are int32 on the device
            raise UserError(f"{flag} must be below 2147483648, not {value}")
    if settings.demo_episodes and settings.demos is None:
        raise UserError("--demo-episodes needs --demos: of which dataset?")
    if settings.clip_rewards and settings.normalize_rewards:
        raise UserError("--clip-rewards and --normalize-rewards exclude each other: leave out one")
    check_conventions(settings.atari)
    if settings.value_bias and settings.atari.life_loss:
        raise UserError("--value-bias is measured in whole games, and values end at a lost life: leave out one of them")
    if settings.atari != DOPAMINE and not settings.env.startswith("ALE/"):
        raise UserError(f"--atari.… is for environments ALE/<Game>-v5, not {settings.env}")
    environments.check_action_repeat(settings.env, settings.action_repeat)
    if settings.resume and settings.run_dir is None:
        raise UserError("--resume needs --run-dir: which run shall go on?")
    if unknown := [name for name in settings.log if name not in LOGGERS]:
        raise UserError(f"--log={unknown[0]} is unknown: use {' or '.join(LOGGERS)}")


def check_size(
    agent: Agent,
    settings: Settings,
    config: Any,
    spec: EnvironmentSpec,
    num_lanes: int,
    demonstrations: Transition | None = None,
) -> None:
    """Raises UserError if what all lanes hold cannot fit, or their environments are too many, before any is made."""
    keys = jax.eval_shape(lambda: jax.random.key(0))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), np.float32) if np.ndim(x) else x, config)
    learner = jax.eval_shape(
        lambda c, k: start(agent, c, spec, k, settings.num_envs, False, False, demonstrations), one, keys
    )
    batch = jax.eval_shape(lambda replay, key: replays.sample(replay, key, 1), learner.replay, keys)
    row = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(batch))
    needed = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(learner))
    iteration = config.rollout_length * settings.num_envs
    needed = (needed + row * _rows_per_update(config, iteration)) * num_lanes
    if needed > (available := _memory_bytes(num_lanes)):
        raise UserError(
            f"this run needs {needed / 1e9:,.1f} GB and the machine has {available / 1e9:,.1f}: lower --seeds, "
            "--num-envs, --config.replay_capacity or --config.max_learners, or the network and batch sizes"
        )
    if (copies := num_lanes * max(settings.num_envs, settings.eval_episodes)) > _MOST_ENVIRONMENTS:
        raise UserError(f"{copies} environments at once are too many: lower --seeds, --num-envs or --eval-episodes")


def check_steps(settings: Settings, config: Any) -> None:
    """Raises UserError for a run that ends before its first update, or within pre-training."""
    if (iteration := config.rollout_length * settings.num_envs) > settings.steps:
        raise UserError(f"one update takes {iteration} steps of a seed: ask for more --steps, or fewer --num-envs")
    if (first := getattr(config, "pretrain_steps", 0)) >= settings.steps:
        raise UserError(
            f"--steps={settings.steps} end within pre-training, {first} steps: ask for more --steps, or for a lower "
            "--config.pretrain-steps"
        )


def identity(agent: str, settings: Settings, config: Any) -> dict[str, Any]:
    """What makes a run the one that it is, as config.json holds it."""
    return {"agent": agent, "settings": dataclasses.asdict(settings), "config": as_json(config)}


def refuse_differences(path: pathlib.Path, previous: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises UserError if the run in `path` is not the one that is asked for."""
    for name, old, new in differences(previous, asked):
        raise UserError(
            f"the run in {path} has {name}={old}, not {new}: drop that option to resume it, or choose another --run-dir"
        )


def differences(previous: dict[str, Any], asked: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Flag, old and new value of everything in which a run that is asked for differs from the one to resume."""
    if previous["agent"] != asked["agent"]:
        yield "--agent", previous["agent"], asked["agent"]
    before = {**previous, "settings": dataclasses.asdict(Settings()) | previous["settings"]}  # settings that came later
    for part, prefix in (("settings", "--"), ("config", "--config.")):
        old_values = flat(before[part])
        for name, new in flat(asked[part]).items():
            new = list(new) if isinstance(new, tuple) else new
            if part == "settings" and name in FREE_ON_RESUME:
                continue
            if name not in old_values or old_values[name] != new:
                flag = prefix + (name.replace("_", "-") if part == "settings" else name)
                yield flag, old_values.get(name, "(absent)"), new


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values of configs within configs under the names that flags give them, `part.name`."""
    nested = {k: flat(v) for k, v in values.items() if isinstance(v, dict)}
    inner = {f"{k}.{name}": value for k, flat in nested.items() for name, value in flat.items()}
    return {k: v for k, v in values.items() if k not in nested} | inner


_MOST_ENVIRONMENTS = 100_000


def _rows_per_update(config: Any, iteration: int) -> int:
    """Transitions that an update draws at once: the agent's own batches, or those of the greatest of its parts."""
    batches = config.gradient_steps if getattr(config, "gradient_steps", 0) > 0 else iteration
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    inside = [_rows_per_update(part, iteration) for part in parts if dataclasses.is_dataclass(part)]
    return max(getattr(config, "batch_size", 0) * batches, *inside, 0)


def _memory_bytes(num_lanes: int) -> float:
    """Memory of the accelerators that so many lanes use, or of the machine."""
    devices = seed_axis.lanes(num_lanes).mesh.local_devices
    limit = sum((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices)
    here = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return here * jax.process_count()
