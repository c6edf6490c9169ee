"""A run that is complete, read back from its files alone: nothing is compiled, and no checkpoint is needed."""

import json
from typing import Any

import numpy as np

from offpolicy_jax.training.agent import Agent
from offpolicy_jax.training.run_directory import RunDirectory
from offpolicy_jax.training.settings import Settings, differences, identity
from offpolicy_jax.training.train import COLUMNS, MIXTURE_COLUMNS, VALUE_COLUMNS, Result


def read_finished(agent: Agent, settings: Settings, config: Any) -> Result | None:
    """The table and summary, without states, of the very run that is asked for; None unless it is complete.

    `settings.run_dir` may come from another machine: `summary` says from which.
    """
    if settings.run_dir is None:
        return None
    directory = RunDirectory(settings.run_dir)
    previous, path = directory.read_config(), directory.path / "summary.json"
    if previous is None or not path.exists():
        return None
    asked = identity(agent.__name__.split(".")[-1], settings, config)  # type: ignore[attr-defined]
    summary = json.loads(path.read_text())
    if next(differences(previous, asked), None) is not None or summary.get("step", 0) < settings.steps:
        return None
    if len(summary["final_return"]) != settings.seeds:  # a diverged seed
        return None
    rows = directory.read("evaluations.csv")
    kinds = COLUMNS | VALUE_COLUMNS | MIXTURE_COLUMNS
    return Result(None, {name: np.array([row[name] for row in rows], kinds[name]) for name in rows[0]}, summary)
