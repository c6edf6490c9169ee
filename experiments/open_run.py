"""A finished run, opened by its directory: what record.py, video.py and export.py begin with."""

import argparse
import dataclasses
import math
from typing import Any, Literal

import agents
from experiments.command_line import parse
from offpolicy_jax.environments.atari import whole_games
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, restore
from offpolicy_jax.training.learner import Learner
from offpolicy_jax.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Finished:
    """The newest checkpoint of a run, and which of its seeds is meant."""

    name: str
    agent: Any
    settings: Settings
    config: Any
    learner: Learner
    seed: int
    greedy_return: float | None  # of that seed, at the last evaluation up to the checkpoint

    @property
    def index(self) -> int:
        """Place of the seed on the seed axis."""
        return self.seed - self.settings.seed

    @property
    def step(self) -> int:
        """Environment steps of the checkpoint."""
        return int(self.learner.step)


Seed = int | Literal["first", "best"]


def open_run(run_dir: str, seed: Seed = "best") -> Finished:
    """The run in a directory, with the seed that is asked for: a number, or that of the best last evaluation.

    Raises UserError if there is no run, no such seed or no checkpoint.
    """
    if RunDirectory(run_dir).read_config() is None:
        raise UserError(f"there is no run in {run_dir}")
    name, settings, config, _ = parse(["--resume", f"--run-dir={run_dir}"])
    if isinstance(seed, int) and not 0 <= seed - settings.seed < settings.seeds:
        last = settings.seed + settings.seeds - 1
        raise UserError(f"the run in {run_dir} has seeds {settings.seed} to {last}, not {seed}")
    agent = agents.load(name)
    learner, config = restore(agent, settings, config)
    settings = dataclasses.replace(settings, atari=whole_games(settings.atari))
    returns = _returns(RunDirectory(run_dir), int(learner.step))
    if not isinstance(seed, int):
        seed = max(returns, key=lambda s: returns[s]) if returns and seed == "best" else settings.seed
    return Finished(name, agent, settings, config, learner, seed, returns.get(seed))


def seed_or_best(text: str) -> Seed:
    """The type of a --seed option."""
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither a seed nor the word best")
    return int(text)


def _returns(directory: RunDirectory, step: int) -> dict[int, float]:
    """Greedy return of each seed that had a finite one at the last evaluation up to a step."""
    rows = [row for row in directory.read("evaluations.csv") if row["step"] <= step]
    last = max((row["step"] for row in rows), default=None)
    return {int(row["seed"]): row["return"] for row in rows if row["step"] == last and math.isfinite(row["return"])}
