"""What one run leaves: its table of evaluations, and the files of its run directory."""

import dataclasses
import json
from typing import Any

import numpy as np

from offpolicy_jax.errors import UserError
from offpolicy_jax.training import plots, processes
from offpolicy_jax.training.run_directory import Row, RunDirectory, loggers
from offpolicy_jax.training.settings import Settings, identity, refuse_differences
from offpolicy_jax.training.summary import as_json, final_statistics


class Record:
    """The table and the files of one run: one agent, environment and set of hyper-parameters, with its seeds.

    `program` says where the checkpoints of a run lie that is trained as a part of a larger program.
    """

    def __init__(
        self, agent: str, settings: Settings, config: Any, kinds: dict[str, type], program: dict[str, Any] | None = None
    ):
        """Raises UserError, one line, if the run directory is taken or holds another run than this one."""
        self.agent, self.settings, self.config, self.kinds, self.program = agent, settings, config, kinds, program
        self.table: list[Row] = []
        self.directory = RunDirectory(settings.run_dir) if settings.run_dir else None
        self.previous = self._previous()
        if not processes.first():
            self.directory = None
        self._loggers: list[Any] = []

    def open(self, resolved: Any, schedule: dict[str, int], provenance: dict[str, Any]) -> None:
        """Write config.json and start the loggers."""
        if self.directory is None:
            return
        self._loggers = loggers(self.settings.log, self.directory.path, as_json(resolved))
        self.directory.create(
            agent=self.agent,
            settings={k: v for k, v in dataclasses.asdict(self.settings).items() if k not in ("resume", "run_dir")},
            config=as_json(self.config),
            resolved_config=as_json(resolved),
            schedule=schedule,
            commits=(self.previous or {}).get("commits", []),
            **({"program": self.program} if self.program else {}),
            **provenance,
        )

    def close(self) -> None:
        """End the loggers."""
        for logger in self._loggers:
            logger.close()
        self._loggers = []

    def rewind(self, step: int) -> None:
        """Go back to the tables as they were at the step of a checkpoint; to none if it is 0."""
        if self.directory is None:
            return
        if step == 0:
            self.directory.clear()
            return
        self.directory.rewind("metrics.csv", step)
        self.table = self.directory.rewind("evaluations.csv", step)

    def add_evaluations(self, rows: list[Row]) -> None:
        """Take rows of an evaluation into the table and the files."""
        self.table += rows
        self._write("evaluations.csv", rows, "evaluation/")

    def add_metrics(self, rows: list[Row]) -> None:
        """Append an interval's mean metrics, one row per seed."""
        self._write("metrics.csv", rows)

    def columns(self) -> dict[str, np.ndarray]:
        """The table of evaluations by column."""
        return {name: np.array([row[name] for row in self.table], kind) for name, kind in self.kinds.items()}

    def finish(self, learning_starts: int, more: dict[str, Any]) -> dict[str, Any]:
        """Summarise the run, with `more` about how it was computed, and draw its learning curve."""
        table = self.columns()
        summary = {"agent": self.agent, "env": self.settings.env, **final_statistics(table, self.settings.seeds)}
        summary["learned"] = len(table["step"]) > 0 and summary["step"] >= learning_starts
        summary.update(more)
        if self.directory:
            self.directory.write("summary.json", json.dumps(summary, indent=2) + "\n")
            if len(table["step"]):
                with self.directory.disk():
                    self._draw(table)
        return summary

    def _previous(self) -> dict[str, Any] | None:
        """The config of the run to resume, or None for a new one. Raises UserError if the directory is taken."""
        if self.directory is None:
            return None
        path, previous = self.directory.path, self.directory.read_config()
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: choose another --run-dir")
        if previous is None:
            if self.directory.is_foreign():
                raise UserError(f"{path} holds files that are not a run's: choose another --run-dir")
            return None
        if not self.settings.resume:
            raise UserError(f"{path} already holds a run: add --resume to continue it, or choose another --run-dir")
        refuse_differences(path, previous, identity(self.agent, self.settings, self.config))
        if previous.get("program") != self.program:
            what = "a sweep: resume that" if previous.get("program") else "no such sweep"
            raise UserError(f"the run in {path} is part of {what}, or choose another --run-dir")
        return previous

    def _write(self, name: str, rows: list[Row], prefix: str = "") -> None:
        if self.directory and rows:
            self.directory.append(name, rows)
            with self.directory.disk():
                named = [{k if k in ("step", "seed") else prefix + k: v for k, v in row.items()} for row in rows]
                for logger in self._loggers:
                    logger.log(named)

    def _draw(self, table: dict[str, np.ndarray]) -> None:
        assert self.directory is not None
        steps, seeds = np.unique(table["step"]), np.unique(table["seed"])
        returns = np.full((len(steps), len(seeds)), np.nan)
        returns[np.searchsorted(steps, table["step"]), np.searchsorted(seeds, table["seed"])] = table["return"]
        plots.learning_curve(
            self.directory.path / "learning_curve.png",
            steps,
            returns,
            title=f"{self.agent} on {self.settings.env}",
            caption=f"Mean return of {self.settings.eval_episodes} greedy episodes per evaluation.",
        )
