"""Results of runs, read back from their directories: a record per seed, and seeds pooled into arms."""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from offpolicy_jax.errors import UserError
from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training.plots import Curve
from offpolicy_jax.training.run_directory import RunDirectory
from offpolicy_jax.training.settings import Settings, flat

_SAME_ARM = {"env", "seeds", "seed", "eval_every", "eval_episodes", "value_bias", "checkpoint_every", "log", "progress"}
"""Settings that may differ between runs of one arm: they change what is measured or kept, not what is learned."""


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """One seed of one run: its greedy returns (K,) at steps (K,), those that are finite, and what produced them.

    It is `finished` if its last evaluation is at the steps that were asked for; `diverged` if its losses stopped being
    finite, so that nothing follows its last evaluation; else `unfinished`: interrupted, or still under way.
    """

    path: pathlib.Path
    agent: str
    env: str
    seed: int
    status: Literal["finished", "diverged", "unfinished"]
    steps: np.ndarray
    returns: np.ndarray
    config: dict[str, Any]  # hyper-parameters of this seed, as they were asked for; of configs within it, `part.name`
    settings: dict[str, Any]
    document: dict[str, Any]  # config.json
    summary: dict[str, Any]  # summary.json, empty if there is none yet


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[pathlib.Path]:
    """Run directories that are named, or lie at any depth in the directories that are. Raises UserError for none.

    What lies there with a config.json of something else is passed over.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is {'not a directory' if path.exists() else 'not there'}: name run directories")
        runs = []
        for here, inner, files in os.walk(path):
            inner[:] = sorted(name for name in inner if name != "checkpoints")
            if "config.json" in files and _is_run(pathlib.Path(here)):
                runs.append(pathlib.Path(here))
        if not runs:
            raise UserError(f"{path} holds no run (no config.json of one): name run directories, or what holds them")
        found |= {run.resolve(): run for run in runs}
    return list(found.values())


def _is_run(path: pathlib.Path) -> bool:
    """Whether config.json is a run's, or cannot be read, which is not passed over."""
    try:
        document = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return True
    return isinstance(document, dict) and {"agent", "settings", "config"} <= set(document)


def read_run(path: pathlib.Path) -> list[SeedResult]:
    """The seeds of one run. Raises UserError, one line, for files that are no run's or are corrupted."""
    try:
        document = RunDirectory(path).read_config()
        assert document is not None
        settings = dataclasses.asdict(Settings()) | document["settings"]
        first, count, steps = int(settings["seed"]), int(settings["seeds"]), int(settings["steps"])
        summary = json.loads(file.read_text()) if (file := path / "summary.json").exists() else {}
        at, survived = int(summary.get("step", -1)), summary.get("final_return", {})
        lost = {int(seed) for seed in summary.get("diverged", {})}
    except (UserError, AssertionError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run: its config.json or summary.json cannot be read") from error
    tables = _read_evaluations(path / "evaluations.csv", range(first, first + count))
    results = []
    for i, (seed, rows) in enumerate(tables.items()):
        finite = {step: value for step, value in rows.items() if math.isfinite(value)}
        last = max(finite, default=-1)
        missing = last < at and str(seed) not in survived  # a run that ends by a diverged seed omits its row
        status = "unfinished"
        if last >= steps:
            status = "finished"
        elif seed in lost or len(finite) < len(rows) or missing:
            status = "diverged"
        results.append(
            SeedResult(
                path=path,
                agent=document["agent"],
                env=settings["env"],
                seed=seed,
                status=status,
                steps=np.array(sorted(finite), np.int64),
                returns=np.array([finite[step] for step in sorted(finite)], np.float64),
                config={name: _of_seed(value, i, count) for name, value in flat(document["config"]).items()},
                settings=settings,
                document=document,
                summary=summary,
            )
        )
    return results


def pool(results: Sequence[SeedResult], per_env: Collection[str] = ()) -> dict[str, list[SeedResult]]:
    """Seeds by arm: the agent, and whatever hyper-parameters or settings differ between runs of that agent.

    Settings, such as `steps`, are part of an arm's name where they differ within an environment; so are the
    hyper-parameters `per_env`, which are otherwise chosen for each environment. Raises UserError where two runs hold
    the same seed of an arm.
    """
    agents: dict[str, list[SeedResult]] = {}
    for result in results:
        agents.setdefault(result.agent, []).append(result)
    if unknown := set(per_env) - {name for result in results for name in result.config}:
        raise UserError(f"no run has a hyper-parameter {sorted(unknown)[0]!r}: see its config.json")
    arms: dict[str, tuple[tuple, list[SeedResult]]] = {}
    for agent, group in agents.items():
        fields = [n for n in dict.fromkeys(n for r in group for n in r.config) if _differs(group, n, n in per_env)]
        settings = dict.fromkeys(name for r in group for name in r.settings if name not in _SAME_ARM)
        fields += [name for name in settings if _differs(group, name, True)]
        for result in group:
            values = [_value(result, name) for name in fields]
            label = ", ".join([agent, *(f"{name} = {_text(v)}" for name, v in zip(fields, values, strict=True))])
            order = (agent, [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in values])
            arms.setdefault(label, (order, []))[1].append(result)
    pooled = {label: arms[label][1] for label in sorted(arms, key=lambda label: arms[label][0])}
    for label, group in pooled.items():
        seen: dict[tuple[str, int], SeedResult] = {}
        for result in group:
            other = seen.setdefault((result.env, result.seed), result)
            if other is not result:
                raise UserError(
                    f"{other.path} and {result.path} both hold seed {result.seed} of {label} on {result.env}, which "
                    "would count twice: leave one out"
                )
    return pooled


@dataclasses.dataclass(frozen=True)
class Cell:
    """The seeds of one arm in one environment, by number.

    Those that count are the finished and the diverged ones; `lost` is what a diverged one scores, NaN if there is no
    return to take for it. While none has finished, the curve is that of those under way, and there are no scores.
    """

    seeds: Sequence[SeedResult]
    lost: float

    def of(self, status: str) -> list[SeedResult]:
        """The seeds of one status."""
        return [seed for seed in self.seeds if seed.status == status]

    @property
    def final(self) -> list[SeedResult]:
        """The seeds whose scores are final: none while all others are under way."""
        under_way = self.of("unfinished") and not self.of("finished")
        return [] if under_way or math.isnan(self.lost) else self.counted

    @property
    def counted(self) -> list[SeedResult]:
        """The seeds of the curve."""
        return [seed for seed in self.seeds if seed.status != "unfinished" or not self.of("finished")]

    @property
    def scores(self) -> np.ndarray:
        """Final returns (S,), or (0,)."""
        return np.array([self.lost if s.status == "diverged" else s.returns[-1] for s in self.final], np.float64)

    @property
    def steps(self) -> str:
        """Steps of the final evaluation, or how far the seeds are that are under way."""
        last = [int(s.steps[-1]) if s.steps.size else 0 for s in self.of("finished") or self.of("unfinished")]
        return " to ".join(f"{n:,}" for n in sorted({min(last), max(last)})) if last else "–"

    @property
    def rate(self) -> float | None:
        """Environment steps per second of a run, all its seeds together; the mean over runs."""
        rates = {s.path: s.summary.get("environment_steps_per_second") for s in self.seeds}
        known = [rate for rate in rates.values() if rate]
        return float(np.mean(known)) if known else None

    def curve(self) -> Curve:
        """Interquartile mean and interval at the steps at which all counted seeds were evaluated."""
        counted = self.counted
        known = [dict(zip(s.steps.tolist(), s.returns.tolist(), strict=True)) for s in counted]
        steps = sorted(set().union(*known))
        # From its last evaluation on, a diverged seed is lost.
        ends = [max(k, default=-1) if s.status == "diverged" else math.inf for s, k in zip(counted, known, strict=True)]
        common = [t for t in steps if all(t in k or t > end for k, end in zip(known, ends, strict=True))]
        table = np.array([[k.get(t, self.lost) for k in known] for t in common]).reshape(len(common), len(counted))
        rows = [(float(interquartile_mean(row)), *stratified_bootstrap_interval(row)) for row in table]
        middle, low, high = np.array(rows).reshape(-1, 3).T

        def end(seed: SeedResult) -> tuple[float, float]:
            return (float(seed.steps[-1]), float(seed.returns[-1])) if seed.steps.size else (0.0, self.lost)

        return Curve(
            np.array(common, np.float64),
            middle,
            low,
            high,
            seeds=[(s.steps, s.returns) for s in self.seeds],
            diverged=[end(s) for s in self.of("diverged")],
            unfinished=[end(s) for s in self.of("unfinished") if s.steps.size],
        )


def _read_evaluations(path: pathlib.Path, seeds: Iterable[int]) -> dict[int, dict[int, float]]:
    """Step and return of each seed's evaluations; a last line that a kill tore is left out."""
    tables: dict[int, dict[int, float]] = {seed: {} for seed in seeds}
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: it is corrupted") from error
    lines = lines[:-1] if lines and not lines[-1].endswith("\n") else lines
    if not lines:
        return tables
    header, *rows = csv.reader(lines)
    for number, row in enumerate(rows, 2):
        try:
            values = dict(zip(header, row, strict=True))
            step, table, value = int(values["step"]), tables[int(values["seed"])], values["return"]
            if step in table:
                raise ValueError
            table[step] = float(value) if value else math.nan
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is corrupted at line {number}: restore it, or leave that run out") from error
    return tables


def _of_seed(value: Any, i: int, count: int) -> Any:
    """The value of seed i of a hyper-parameter that may be a list of floats, one per seed; float32 noise is cut off."""
    if isinstance(value, list) and len(value) == count and all(isinstance(x, float) for x in value):
        value = value[i]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _value(result: SeedResult, name: str) -> Any:
    """A hyper-parameter or a setting."""
    return result.config[name] if name in result.config else result.settings.get(name, "not recorded")


def _differs(group: Sequence[SeedResult], name: str, within: bool) -> bool:
    """Whether a value differs between runs, or, `within`, between those of some environment."""
    values: dict[str, set[str]] = {}
    for result in group:
        values.setdefault(result.env if within else "", set()).add(repr(_value(result, name)))
    return any(len(each) > 1 for each in values.values())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)
