"""`train`: one call from an agent and settings to trained states, a table of evaluations and a run directory."""

import dataclasses
import json
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import demonstrations, environments
from offpolicy_jax.errors import Diverged, UserError
from offpolicy_jax.training import checkpoints, compilation, evaluation, host, in_graph, plots
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent, check, resolve
from offpolicy_jax.training.interruption import Interrupt
from offpolicy_jax.training.run_directory import Row, RunDirectory, loggers, provenance
from offpolicy_jax.training.settings import Settings, check_memory, check_settings, differences, make_environment
from offpolicy_jax.training.summary import as_json, final_statistics, peak_memory_mb
from offpolicy_jax.transition import Transition

COLUMNS = {"step": int, "seed": int, "return": float, "length": float, "return_std": float, "episodes": int}
"""Columns of the table of evaluations; `VALUE_COLUMNS` follow if the value bias was asked for."""
VALUE_COLUMNS = {"value_bias": float, "value": float}
MIXTURE_COLUMNS = {"mixture_return": float}
"""Of agents that are a mixture of policies: what the mixture of their greedy actions returns, beside its newest one."""


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


class _Run:
    """One call of `train`. The loop's carry is passed along; this holds what is fixed and the tables."""

    def __init__(self, agent: Agent, settings: Settings, config: Any):
        self.agent, self.settings = agent, settings
        self.name = _name(agent)
        self.directory = RunDirectory(settings.run_dir) if settings.run_dir else None
        self.previous = self.check_directory(config)
        self.compilation = compilation.Clock()
        if settings.value_bias and not hasattr(agent, "predict"):
            raise UserError(f"{self.name} predicts no values: leave out --value-bias")
        num_seeds = settings.seeds
        single = make_environment(settings)
        self.config = resolve(config, single.spec, settings.steps)
        demos = load_demonstrations(agent, settings, single)
        check_memory(agent, settings, self.config, single.spec, demos)
        self.loop, traced = make_loop(agent, settings, self.config, demos)
        if environments.is_in_graph(single):
            separate: Any = single
            evaluate, value_bias = evaluation.in_graph, evaluation.value_bias_in_graph
        else:
            separate = make_environment(settings, num_seeds * settings.eval_episodes)
            evaluate, value_bias = evaluation.host, evaluation.value_bias_host
        arguments = (separate, traced, num_seeds, settings.eval_episodes, self.loop.mesh)
        self.evaluate = evaluate(agent.policy, *arguments)
        mixture = getattr(agent, "mixture_policy", None)
        self.evaluate_mixture = evaluate(mixture, *arguments) if mixture else None
        self.value_bias = value_bias(agent, *arguments) if settings.value_bias else None
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
                commits=(self.previous or {}).get("commits", []),
            )
        self.table: list[Row] = []
        self.training_seconds, self.training_steps = 0.0, 0

    def train(self) -> Result:
        settings, unit = self.settings, self.loop.iteration_steps
        total = -(-settings.steps // unit) * unit
        eval_every, report_every = self.schedule["eval_every"], self.schedule["report_every"]
        carry = self.begin(total)
        step = saved_at = int(carry.learner.step)
        if self.directory and step < total:
            self.directory.add_commit()
        with Interrupt() as interrupt, self.progress(total, step) as bar:
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
        for name, old, new in differences(previous, asked):
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
        finite = np.asarray(_finite_seeds(carry.learner.agent))
        diverged_at = np.where(~finite & (diverged_at < 0), step, diverged_at)  # a bad gradient under a finite loss
        if not (bad := np.flatnonzero(diverged_at >= 0)).size:
            return
        rows = [row for row in self.evaluation_rows(carry, step) if row["seed"] - self.settings.seed not in bad]
        self.add_evaluations(rows)
        self.finish()
        which = ", ".join(f"seed {self.settings.seed + i} at step {diverged_at[i]}" for i in bad)
        advice = "start a new run with a lower --config.learning_rate, or find the cause with --debug-nans"
        kept = "; the last good checkpoint is kept" if self.directory else ""
        raise Diverged(f"the losses are not finite any more ({which}){kept}: {advice}")

    def evaluation_rows(self, carry: Any, step: int) -> list[Row]:
        """One row per seed."""
        returns, lengths = self.evaluate(carry.learner)
        more = dict(zip(VALUE_COLUMNS, self.value_bias(carry.learner), strict=True)) if self.value_bias else {}
        if self.evaluate_mixture:
            more["mixture_return"] = np.mean(self.evaluate_mixture(carry.learner)[0], axis=1)
        return [
            {
                "step": step,
                "seed": self.settings.seed + i,
                "return": float(np.mean(returns[i])),
                "length": float(np.mean(lengths[i])),
                "return_std": float(np.std(returns[i])),
                "episodes": len(returns[i]),
                **{name: float(values[i]) for name, values in more.items()},
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
        kinds |= MIXTURE_COLUMNS if self.evaluate_mixture else {}
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


def load_demonstrations(agent: Any, settings: Settings, environment: Any) -> Transition | None:
    """The transitions of --demos, or None. Raises UserError where an agent needs them, or has no use for them."""
    dataset, name, use = settings.demos, _name(agent), getattr(agent, "DEMONSTRATIONS", False)
    if use is True or (use and dataset is not None):
        if dataset is None:
            raise UserError(f"{name} imitates: name a Minari dataset by --demos (experiments/record.py makes one)")
        inner = environment.inner if settings.absorbing_states else environment
        episodes = demonstrations.load(dataset, inner, settings.demo_episodes)
        if settings.absorbing_states:
            episodes = [demonstrations.absorb(episode) for episode in episodes]
        elif getattr(agent, "NEEDS_ABSORBING_STATES", False) and any(episode.terminated for episode in episodes):
            raise UserError(f"{name}'s values never stop, and episodes of {dataset} terminate: add --absorbing-states")
        return demonstrations.transitions(episodes)
    if settings.absorbing_states:
        raise UserError(f"{name} learns from the environment's own rewards: leave out --absorbing-states")
    if dataset is not None:
        raise UserError(f"{name} learns from no demonstrations: leave out --demos")
    return None


def make_loop(agent: Agent, settings: Settings, config: Any, demos: Transition | None) -> tuple[Any, Any]:
    """The loop of a run, of either kind, and its config with float32 leaves."""
    environment = make_environment(settings, settings.seeds * settings.num_envs)
    traced = jax.tree.map(lambda x: np.asarray(x, np.float32), config)
    kind: Any = in_graph.Loop if environments.is_in_graph(environment) else host.Loop
    normalize = settings.normalize_observations, settings.normalize_rewards
    axes = settings.seeds, settings.num_envs
    return kind(agent, environment, traced, *axes, *normalize, demos, settings.clip_rewards), traced


@jax.jit
def _finite_seeds(tree: Any) -> jax.Array:
    """Which seeds have only finite numbers, bool (S,); on the device, whose memory may be far from the host's."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x), axis=range(1, x.ndim)) for x in leaves]), axis=0)


def _name(agent: Any) -> str:
    return getattr(agent, "__name__", type(agent).__name__).split(".")[-1]


def _next_multiple(step: int, interval: int, unit: int) -> int:
    """The first multiple of the interval after a step, rounded up to whole iterations."""
    following = (step // interval + 1) * interval
    return -(-following // unit) * unit
