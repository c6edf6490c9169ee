"""`train`: one call from an agent and settings to trained states, a table of evaluations and a run directory."""

import dataclasses
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import environments
from offpolicy_jax.errors import UserError
from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training import checkpoints, compilation, evaluation, host, in_graph, plots
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent, check, resolve
from offpolicy_jax.training.learner import start
from offpolicy_jax.training.run_directory import LOGGERS, Row, RunDirectory, loggers, provenance
from offpolicy_jax.transition import EnvironmentSpec


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is, besides its agent and hyper-parameters."""

    env: str = "phys2d/Pendulum-v0"
    """Environment id: Gymnasium's, phys2d/..., tabular/... or dm_control/<domain>-<task>-v0."""
    steps: int = 10_000
    """Environment steps per seed, summed over its parallel environments."""
    seeds: int = 3
    """Number of seeds, trained at once."""
    seed: int = 0
    """The first seed; the others follow it."""
    num_envs: int = 1
    """Parallel environments per seed."""
    eval_every: int = 0
    """Steps between evaluations; 0: twenty evaluations."""
    eval_episodes: int = 10
    """Episodes per evaluation and seed."""
    value_bias: bool = False
    """Measure at each evaluation by how much the critics overestimate the soft return of sampled actions."""
    normalize_observations: bool = False
    """Normalise observations by their running mean and standard deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
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


FREE_ON_RESUME = ("steps", "run_dir", "resume", "checkpoint_every", "log", "progress")
"""Settings that may change when a run is resumed: they do not change the numbers."""


COLUMNS = {"step": int, "seed": int, "return": float, "length": float, "return_std": float, "episodes": int}
"""Columns of the table of evaluations; `VALUE_COLUMNS` follow if the value bias was asked for."""
VALUE_COLUMNS = {"value_bias": float, "value": float}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves: states with a leading seed axis, and its evaluations."""

    states: Any
    table: dict[str, np.ndarray]  # a row per seed and evaluation: step, seed, return, length, ... (see COLUMNS)
    summary: dict[str, Any]
    interrupted: bool = False


def train(agent: Agent, settings: Settings | None = None, config: Any = None) -> Result:
    """Train `settings.seeds` seeds at once and evaluate them as they go.

    `config` is an `agent.Config` (its defaults if None); float fields may have shape (S,), one value per seed. Raises
    UserError for bad input, for losses that stop being finite and for a disk that refuses. Ctrl-C (or SIGTERM) ends
    the run after a checkpoint, with `Result.interrupted` set.
    """
    settings = settings or Settings()
    config = agent.Config() if config is None else config
    check_settings(settings)
    check(config, settings.seeds)
    run = _Run(agent, settings, config)
    try:
        return run.train()
    finally:
        run.close()


def check_settings(settings: Settings) -> None:
    """Raises UserError, one line, for settings that no run could use."""
    limits = {"steps": 1, "seeds": 1, "seed": 0, "num_envs": 1, "eval_every": 0, "eval_episodes": 1}
    for name, low in {**limits, "checkpoint_every": 0}.items():
        flag, value = "--" + name.replace("_", "-"), getattr(settings, name)
        if value < low:
            raise UserError(f"{flag} must be at least {low}, not {value}")
        if value >= 2**31:  # steps and sizes are int32 on the device
            raise UserError(f"{flag} must be below 2147483648, not {value}")
    if settings.resume and settings.run_dir is None:
        raise UserError("--resume needs --run-dir: which run shall go on?")
    if unknown := [name for name in settings.log if name not in LOGGERS]:
        raise UserError(f"--log={unknown[0]} is unknown: use {' or '.join(LOGGERS)}")


def check_memory(agent: Agent, settings: Settings, config: Any, spec: EnvironmentSpec) -> None:
    """Raises UserError if replay, parameters and batches of all seeds cannot fit, before anything is allocated."""
    keys = jax.eval_shape(lambda: jax.random.key(0))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), np.float32) if np.ndim(x) else x, config)
    learner = jax.eval_shape(lambda c, k: start(agent, c, spec, k, settings.num_envs, False, False), one, keys)
    row = sum(x.dtype.itemsize * math.prod(x.shape[2:]) for x in jax.tree.leaves(learner.replay.storage))
    needed = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(learner))
    iteration = config.rollout_length * settings.num_envs
    batches = config.gradient_steps if getattr(config, "gradient_steps", 0) > 0 else iteration
    needed = (needed + row * getattr(config, "batch_size", 0) * batches) * settings.seeds
    if needed > (available := _memory_bytes(settings.seeds)):
        raise UserError(
            f"this run needs {needed / 1e9:,.1f} GB and the machine has {available / 1e9:,.1f}: lower --seeds, "
            "--num-envs or --config.replay_capacity, or the network and batch sizes"
        )
    if (copies := settings.seeds * max(settings.num_envs, settings.eval_episodes)) > _MOST_ENVIRONMENTS:
        raise UserError(f"{copies} environments at once are too many: lower --seeds, --num-envs or --eval-episodes")
    if iteration > settings.steps:
        raise UserError(f"one update takes {iteration} steps of a seed: ask for more --steps, or fewer --num-envs")


class _Run:
    """One call of `train`. The loop's carry is passed along; this holds what is fixed and the tables."""

    def __init__(self, agent: Agent, settings: Settings, config: Any):
        self.agent, self.settings = agent, settings
        self.name = getattr(agent, "__name__", type(agent).__name__).split(".")[-1]
        self.directory = RunDirectory(settings.run_dir) if settings.run_dir else None
        self.previous = self.check_directory(config)
        self.compilation = compilation.Clock()
        if settings.value_bias and not hasattr(agent, "predict"):
            raise UserError(f"{self.name} predicts no values: leave out --value-bias")
        num_seeds, num_envs = settings.seeds, settings.num_envs
        spec = environments.make(settings.env).spec
        self.config = resolve(config, spec, settings.steps)
        check_memory(agent, settings, self.config, spec)
        environment = environments.make(settings.env, num_seeds * num_envs)
        traced = jax.tree.map(lambda x: np.asarray(x, np.float32), self.config)
        arguments = (traced, num_seeds, num_envs, settings.normalize_observations, settings.normalize_rewards)
        if environments.is_in_graph(environment):
            loop, separate = in_graph.Loop, environment
            evaluate, value_bias = evaluation.in_graph, evaluation.value_bias_in_graph
        else:
            loop, evaluate, value_bias = host.Loop, evaluation.host, evaluation.value_bias_host
            separate = environments.make(settings.env, num_seeds * settings.eval_episodes)
        self.loop: Any = loop(agent, environment, *arguments)  # type: ignore[arg-type]
        arguments = (agent, separate, traced, num_seeds, settings.eval_episodes, self.loop.mesh)
        self.evaluate = evaluate(*arguments)  # type: ignore[arg-type]
        self.value_bias = value_bias(*arguments) if settings.value_bias else None  # type: ignore[arg-type]
        self.separate = separate
        self.schedule = (self.previous or {}).get("schedule") or self.make_schedule()
        self.loggers = []
        if self.directory:
            self.loggers = loggers(settings.log, self.directory.path, as_json(self.config))
            self.directory.create(
                agent=self.name,
                settings={k: v for k, v in dataclasses.asdict(settings).items() if k not in ("resume", "run_dir")},
                config=as_json(config),
                resolved_config=as_json(self.config),
                schedule=self.schedule,
            )
        self.table: list[Row] = []
        self.training_seconds, self.training_steps = 0.0, 0

    def train(self) -> Result:
        settings, unit = self.settings, self.loop.iteration_steps
        total = -(-settings.steps // unit) * unit
        eval_every, report_every = self.schedule["eval_every"], self.schedule["report_every"]
        carry = self.begin(total)
        step = saved_at = int(carry.learner.step)
        with _Interrupt() as interrupt, self.progress(total, step) as bar:
            while step < total and not interrupt.requested:
                next_evaluation = min(total, _next_multiple(step, eval_every, unit))
                target = min(next_evaluation, _next_multiple(step, report_every, unit))
                clock, compiling = time.perf_counter(), self.compilation.seconds
                carry = self.loop.advance(carry, target - step, lambda: interrupt.requested)
                self.training_seconds += time.perf_counter() - clock - (self.compilation.seconds - compiling)
                self.training_steps += int(carry.learner.step) - step
                bar.update(int(carry.learner.step) - step)
                step = int(carry.learner.step)
                self.check_finite(carry, step)
                if step < target:  # interrupted: what is under way goes into the checkpoint as it is
                    break
                self.report(carry, step)
                carry = self.loop.clear_totals(carry)
                if step == next_evaluation:
                    rows = self.evaluation_rows(carry, step)
                    bar.set_postfix_str(f"return {np.mean([row['return'] for row in rows]):.1f}", refresh=False)
                    self.add_evaluations(rows)
                if (step == next_evaluation and step - saved_at >= settings.checkpoint_every) or step >= total:
                    saved_at = self.checkpoint(carry, step)
            if interrupt.requested and step > saved_at:
                self.checkpoint(carry, step)
        summary = self.finish()
        return Result(carry.learner.agent, self.columns(), summary, interrupted=interrupt.requested and step < total)

    def make_schedule(self) -> dict[str, int]:
        """Steps between evaluations and between reports: fixed when a run begins, whatever --steps become later."""
        settings = self.settings
        eval_every = settings.eval_every or max(1, settings.steps // 20)
        return {
            "eval_every": eval_every,
            "report_every": min(eval_every, max(1, 1_000 // settings.seeds, settings.steps // 500)),
        }

    def close(self) -> None:
        """Close the environments."""
        self.loop.close()
        if not environments.is_in_graph(self.separate):
            self.separate.close()

    def check_directory(self, config: Any) -> dict[str, Any] | None:
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
        asked = {"agent": self.name, "settings": dataclasses.asdict(self.settings), "config": as_json(config)}
        for name, old, new in _differences(previous, asked):
            raise UserError(
                f"the run in {path} has {name}={old}, not {new}: "
                "drop that option to resume it, or choose another --run-dir"
            )
        return previous

    def begin(self, total: int) -> Any:
        """The carry to go on from: the newest checkpoint's if the run is resumed, else a fresh one."""
        seeds = np.arange(self.settings.seed, self.settings.seed + self.settings.seeds)
        carry = self.loop.start(seed_axis.keys(self.settings.seed, self.settings.seeds), seeds)
        if self.previous is None or self.directory is None:
            return carry
        newest = checkpoints.newest(self.directory.checkpoints)
        if newest is None:
            self.directory.clear()
            return carry
        step, notes = checkpoints.read_notes(newest)
        if step > total:
            raise UserError(f"the run in {self.directory.path} is at step {step} already: ask for more --steps")
        carry, arrays = checkpoints.restore(newest, carry)
        self.training_seconds, self.training_steps = notes["training_seconds"], notes["training_steps"]
        self.directory.rewind("metrics.csv", step)
        self.table = self.directory.rewind("evaluations.csv", step)
        return self.loop.load(carry, arrays)

    def check_finite(self, carry: Any, step: int) -> None:
        """Raises UserError if a loss of some seed was not finite; the others' results are written first."""
        diverged_at = np.asarray(carry.learner.totals.diverged_at)
        leaves = [np.asarray(x) for x in jax.tree.leaves(carry.learner.agent) if jnp.issubdtype(x.dtype, jnp.floating)]
        finite = np.all([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in leaves], axis=0)
        diverged_at = np.where(~finite & (diverged_at < 0), step, diverged_at)  # a bad gradient under a finite loss
        if not (bad := np.flatnonzero(diverged_at >= 0)).size:
            return
        rows = [row for row in self.evaluation_rows(carry, step) if row["seed"] - self.settings.seed not in bad]
        self.add_evaluations(rows)
        self.finish()
        which = ", ".join(f"seed {self.settings.seed + i} at step {diverged_at[i]}" for i in bad)
        advice = "start a new run with a lower --config.learning_rate, or find the cause with --debug-nans"
        kept = "; the last good checkpoint is kept" if self.directory else ""
        raise UserError(f"the losses are not finite any more ({which}){kept}: {advice}")

    def evaluation_rows(self, carry: Any, step: int) -> list[Row]:
        """One row per seed."""
        returns, lengths = self.evaluate(carry.learner)
        values = np.stack(self.value_bias(carry.learner), axis=1) if self.value_bias else np.zeros((len(returns), 0))
        return [
            {
                "step": step,
                "seed": self.settings.seed + i,
                "return": float(np.mean(returns[i])),
                "length": float(np.mean(lengths[i])),
                "return_std": float(np.std(returns[i])),
                "episodes": len(returns[i]),
                **dict(zip(VALUE_COLUMNS, values[i].tolist(), strict=False)),
            }
            for i in range(self.settings.seeds)
        ]

    def report(self, carry: Any, step: int) -> None:
        """Append the interval's mean metrics, one row per seed."""
        totals = jax.device_get(carry.learner.totals)
        updates, rows = max(1, int(totals.updates)), []
        for i in range(self.settings.seeds):
            episodes, returns, lengths = np.asarray(carry.finished[i]).tolist()
            row: Row = {"step": step, "seed": self.settings.seed + i, "updates": int(totals.updates)}
            row["train/episodes"] = int(episodes)
            row["train/return"] = returns / episodes if episodes else math.nan
            row["train/length"] = lengths / episodes if episodes else math.nan
            for name, value in sorted(totals.metrics.items()):
                row[name] = float(value[i]) / updates if totals.updates else math.nan
            rows.append(row)
        self.record("metrics.csv", rows)

    def add_evaluations(self, rows: list[Row]) -> None:
        """Take rows of an evaluation into the table and the files."""
        self.table += rows
        self.record("evaluations.csv", rows, "evaluation/")

    def record(self, name: str, rows: list[Row], prefix: str = "") -> None:
        if self.directory and rows:
            self.directory.append(name, rows)
            with self.directory.disk():
                for log in self.loggers:
                    log([{k if k in ("step", "seed") else prefix + k: v for k, v in row.items()} for row in rows])

    def checkpoint(self, carry: Any, step: int) -> int:
        if self.directory:
            with self.directory.disk():
                notes = {"training_seconds": self.training_seconds, "training_steps": self.training_steps}
                checkpoints.save(self.directory.checkpoints, step, *self.loop.save(carry), notes=notes)
        return step

    def finish(self) -> dict[str, Any]:
        """Summarise the run and draw its learning curve."""
        table = self.columns()
        summary = {"agent": self.name, "env": self.settings.env, **final_statistics(table, self.settings.seeds)}
        if self.training_steps and self.training_seconds > 0:
            rate = self.training_steps * self.settings.seeds / self.training_seconds
            summary["environment_steps_per_second"] = round(rate, 1)
        summary["learned"] = len(table["step"]) > 0 and summary["step"] >= getattr(self.config, "learning_starts", 0)
        summary["training_seconds"] = round(self.training_seconds, 3)
        summary["compile_seconds"] = round(self.compilation.seconds, 3)
        summary["peak_memory_mb"] = round(peak_memory_mb(), 1)
        summary.update(provenance())
        if self.directory:
            self.directory.write("summary.json", json.dumps(summary, indent=2) + "\n")
            if len(table["step"]):
                with self.directory.disk():
                    self.draw(table)
        return summary

    def draw(self, table: dict[str, np.ndarray]) -> None:
        assert self.directory is not None
        steps, seeds = np.unique(table["step"]), np.unique(table["seed"])
        returns = np.full((len(steps), len(seeds)), np.nan)
        returns[np.searchsorted(steps, table["step"]), np.searchsorted(seeds, table["seed"])] = table["return"]
        plots.learning_curve(
            self.directory.path / "learning_curve.png",
            steps,
            returns,
            title=f"{self.name} on {self.settings.env}",
            caption=f"Mean return of {self.settings.eval_episodes} greedy episodes per evaluation.",
        )

    def columns(self) -> dict[str, np.ndarray]:
        kinds = COLUMNS | (VALUE_COLUMNS if self.value_bias else {})
        return {name: np.array([row[name] for row in self.table], kind) for name, kind in kinds.items()}

    def progress(self, total: int, step: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=total,
            initial=step,
            unit="step",
            unit_scale=True,
            desc=f"{self.name} {self.settings.env}" + f" x{self.settings.seeds} seeds" * (self.settings.seeds > 1),
            disable=not self.settings.progress,
            file=sys.stderr,
            dynamic_ncols=True,
        )


def final_statistics(table: dict[str, np.ndarray], num_seeds: int) -> dict[str, Any]:
    """Per-seed returns at the last evaluation, their mean, IQM and 95 % bootstrap interval over seeds.

    A diverged seed counts: where one has no return, or none that is finite, the averages are None.
    """
    if not len(table["step"]):
        return {"final_return": {}}
    last = table["step"] == table["step"].max()
    returns = table["return"][last]
    seeds = table["seed"][last]
    finite = len(returns) == num_seeds and bool(np.all(np.isfinite(returns)))
    low, high = stratified_bootstrap_interval(returns) if finite else (math.nan, math.nan)
    number = lambda x: round(float(x), 4) if math.isfinite(x) else None  # noqa: E731
    return {
        "step": int(table["step"].max()),
        "final_return": {str(seed): number(x) for seed, x in zip(seeds, returns, strict=True)},
        "episodes_per_seed": int(table["episodes"][last].min()),
        "mean": number(np.mean(returns)) if finite else None,
        "iqm": number(interquartile_mean(returns)) if finite else None,
        "iqm_interval_95": [number(low), number(high)],
    }


def as_json(config: Any) -> dict[str, Any]:
    """A config as JSON types."""

    def plain(value):
        if isinstance(value, tuple):
            return list(value)
        return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def peak_memory_mb() -> float:
    """Peak memory of the accelerator if there is one, else of the process, in MB."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


_MOST_ENVIRONMENTS = 100_000


def _memory_bytes(num_seeds: int) -> float:
    """Memory of the accelerators that so many seeds use, or of the machine."""
    devices = list(seed_axis.mesh(num_seeds).devices.flat)
    return sum((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices) or os.sysconf(
        "SC_PAGE_SIZE"
    ) * os.sysconf("SC_PHYS_PAGES")


def _next_multiple(step: int, interval: int, unit: int) -> int:
    """The first multiple of the interval after a step, rounded up to whole iterations."""
    following = (step // interval + 1) * interval
    return -(-following // unit) * unit


def _differences(previous: dict[str, Any], asked: dict[str, Any]):
    if previous["agent"] != asked["agent"]:
        yield "--agent", previous["agent"], asked["agent"]
    before = {**previous, "settings": dataclasses.asdict(Settings()) | previous["settings"]}  # settings that came later
    for part, prefix in (("settings", "--"), ("config", "--config.")):
        for name, new in asked[part].items():
            new = list(new) if isinstance(new, tuple) else new
            if part == "settings" and name in FREE_ON_RESUME:
                continue
            if name not in before[part] or before[part][name] != new:
                flag = prefix + (name.replace("_", "-") if part == "settings" else name)
                yield flag, before[part].get(name, "(absent)"), new


class _Interrupt:
    """Turns Ctrl-C and SIGTERM into a request that the loop honours at a safe point. A second Ctrl-C ends at once."""

    requested = False

    def __enter__(self):
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._old[kind] = signal.signal(kind, self._handle)
        return self

    def _handle(self, kind, frame):
        if self.requested and kind == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for kind, old in self._old.items():
            signal.signal(kind, old)
