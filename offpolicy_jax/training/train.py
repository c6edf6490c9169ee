"""`train`: one call from an agent and settings to trained states, a table of evaluations and a run directory.

`train_points` does the same for several sets of hyper-parameters at once, as one program.
"""

import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import demonstrations, environments
from offpolicy_jax.environments.atari import whole_games
from offpolicy_jax.errors import Diverged, UserError
from offpolicy_jax.training import checkpoints, compilation, evaluation, host, in_graph, learner, processes
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent, check, resolve, stack
from offpolicy_jax.training.interruption import Interrupt
from offpolicy_jax.training.record import Record
from offpolicy_jax.training.run_directory import Row, RunDirectory, provenance
from offpolicy_jax.training.settings import Settings, check_settings, check_size, check_steps, make_environment
from offpolicy_jax.training.summary import peak_memory_mb
from offpolicy_jax.transition import EnvironmentSpec, Transition

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


def unless_interrupted(result: Result) -> Result:
    """The result of a run that reached its end; raises UserError for one that was interrupted."""
    if result.interrupted:
        raise UserError("interrupted: the same again goes on from the run directory, or begins anew without one")
    return result


def train(agent: Agent, settings: Settings | None = None, config: Any = None) -> Result:
    """Train `settings.seeds` seeds at once and evaluate them as they go.

    `config` is an `agent.Config` (its defaults if None); float fields may have shape (S,), one value per seed. Raises
    UserError for bad input, for losses that stop being finite and for a disk that refuses. Ctrl-C (or SIGTERM) ends
    the run after a checkpoint, with `Result.interrupted` set.
    """
    return _train(agent, settings or Settings(), {"": agent.Config() if config is None else config}, False)[""]


def train_points(agent: Agent, settings: Settings, configs: Mapping[str, Any]) -> dict[str, Result]:
    """Train several configs at once, each with `settings.seeds` seeds, as one program with one compilation.

    The configs may differ in float fields. Each has a run directory of its own, `settings.run_dir`/name; the
    checkpoints, of all of them, lie in `settings.run_dir`. A seed that diverges ends nothing: from then on its returns
    are NaN, and the summary of its run says when. Otherwise as `train`.
    """
    return _train(agent, settings, configs, True)


def _train(agent: Agent, settings: Settings, configs: Mapping[str, Any], keep_diverged: bool) -> dict[str, Result]:
    check_settings(settings)
    for config in configs.values():
        check(config, settings.seeds)
    program = _Program(agent, settings, configs, keep_diverged)
    try:
        return program.train()
    finally:
        program.close()


class _Program:
    """One call of `train`. The loop's carry is passed along; this holds what is fixed, and the records of the runs.

    Lane i is seed i % S of config i // S, for S seeds.
    """

    def __init__(self, agent: Agent, settings: Settings, configs: Mapping[str, Any], keep_diverged: bool):
        self.agent, self.settings, self.keep_diverged = agent, settings, keep_diverged
        self.name = _name(agent)
        self.compilation = compilation.Clock()
        if settings.value_bias and not hasattr(agent, "predict"):
            raise UserError(f"{self.name} predicts no values: leave out --value-bias")
        num_lanes = len(configs) * settings.seeds
        self.checkpoints = pathlib.Path(settings.run_dir) / "checkpoints" if settings.run_dir else None
        self.names, self.records = list(configs), self.make_records(configs)
        before = [record.previous for record in self.records if record.previous]
        rewards = settings.normalize_rewards or settings.clip_rewards
        if rewards and getattr(agent, "DEMONSTRATIONS", False) is True and not before:
            flag = "--normalize-rewards" if settings.normalize_rewards else "--clip-rewards"
            raise UserError(f"{self.name} does not learn from the environment's rewards: leave out {flag}")
        processes.wait("all have looked at the run directories")  # before the first one writes there
        single = make_environment(settings)
        self.config = self.resolve(stack(list(configs.values()), settings.seeds), single.spec)
        demos = load_demonstrations(agent, settings, single)
        check_size(agent, settings, self.config, single.spec, num_lanes, demos)
        check_steps(settings, self.config)
        self.loop, traced = make_loop(agent, settings, self.config, demos, num_lanes)
        self.diverged_at = np.full(num_lanes, -1)
        if jax.process_count() > 1 and not environments.is_in_graph(single):
            raise UserError(f"{settings.env} runs on the host, which several processes cannot share: run it in one")
        if environments.is_in_graph(single):
            separate: Any = single
            evaluate, value_bias = evaluation.in_graph, evaluation.value_bias_in_graph
        else:
            whole = dataclasses.replace(settings, atari=whole_games(settings.atari))
            separate = make_environment(whole, num_lanes * settings.eval_episodes)
            evaluate, value_bias = evaluation.host, evaluation.value_bias_host
        arguments = (separate, traced, self.loop.lanes, settings.eval_episodes)
        self.evaluate = evaluate(agent.policy, *arguments)
        mixture = getattr(agent, "mixture_policy", None)
        self.evaluate_mixture = evaluate(mixture, *arguments) if mixture else None
        self.value_bias = value_bias(agent, *arguments) if settings.value_bias else None
        self.separate = separate
        self.schedule = before[0]["schedule"] if before else make_schedule(settings, len(configs))
        self.provenance = provenance()
        for record in self.records:
            record.open(self.resolve(record.config, single.spec), self.schedule, self.provenance)
        self.training_seconds, self.training_steps = 0.0, 0

    def resolve(self, config: Any, spec: EnvironmentSpec) -> Any:
        """`resolve`, but for phases, which stay where they were when a run is resumed with more steps."""
        config = resolve(config, spec, self.settings.steps)
        before = (self.records[0].previous or {}).get("resolved_config", {})
        kept = {name: before[name] for name in ("pretrain_steps",) if name in before}
        return dataclasses.replace(config, **kept)

    def make_records(self, configs: Mapping[str, Any]) -> list[Record]:
        """A record per config. Raises UserError if a directory is taken, or holds something else."""
        settings, records = self.settings, []
        kinds = COLUMNS | (VALUE_COLUMNS if settings.value_bias else {})
        kinds |= MIXTURE_COLUMNS if hasattr(self.agent, "mixture_policy") else {}
        root = pathlib.Path(settings.run_dir) if settings.run_dir else None
        if root and root.is_dir() and "" not in configs:
            known = {"checkpoints", *configs}
            if other := sorted(path.name for path in root.iterdir() if path.name not in known):
                raise UserError(f"{root} holds something else ({other[0]}): choose another --run-dir")
        for i, (name, config) in enumerate(configs.items()):
            lanes = {"first": i * settings.seeds, "count": len(configs) * settings.seeds}
            program = {"checkpoints": "../checkpoints", "lanes": lanes} if name else None
            path = None if root is None else str(root / name)
            record = Record(self.name, dataclasses.replace(settings, run_dir=path), config, kinds, program)
            records.append(record)
        gone = [name for name, record in zip(configs, records, strict=True) if record.previous is None]
        if gone and self.checkpoints and checkpoints.newest(self.checkpoints):
            raise UserError(f"{root} has checkpoints, but no run {gone[0]!r}: choose another --run-dir")
        return records

    def train(self) -> dict[str, Result]:
        settings, unit = self.settings, self.loop.iteration_steps
        total = -(-settings.steps // unit) * unit
        eval_every, report_every = self.schedule["eval_every"], self.schedule["report_every"]
        carry = self.begin(total)
        step, stopped = int(carry.learner.step), False
        saved_at = step
        if step < total:
            for record in self.records:
                if record.directory:
                    record.directory.add_commit(self.provenance["commit"])
        with Interrupt() as interrupt, self.progress(total, step) as bar:
            stop = lambda: processes.anywhere(interrupt.requested)  # noqa: E731
            while step < total and not (stopped := stop()):
                next_evaluation = min(total, _next_multiple(step, eval_every, unit))
                target = min(next_evaluation, _next_multiple(step, report_every, unit))
                clock, compiling = time.perf_counter(), self.compilation.seconds
                carry = self.loop.advance(carry, target - step, stop)
                self.training_seconds += time.perf_counter() - clock - (self.compilation.seconds - compiling)
                self.training_steps += int(carry.learner.step) - step
                bar.update(int(carry.learner.step) - step)
                step = int(carry.learner.step)
                self.check_finite(carry, step)
                if np.all(self.diverged_at >= 0):
                    self.add_evaluations(self.evaluation_rows(carry, step))
                    break
                if step < target:  # interrupted: what is under way goes into the checkpoint as it is
                    stopped = True
                    break
                self.report(carry, step)
                carry = self.loop.clear_totals(carry)
                if step == next_evaluation:
                    rows = self.evaluation_rows(carry, step)
                    bar.set_postfix_str(f"return {self.best(rows):.1f}", refresh=False)
                    self.add_evaluations(rows)
                if (step == next_evaluation and step - saved_at >= settings.checkpoint_every) or step >= total:
                    saved_at = self.checkpoint(carry, step)
            if stopped and step > saved_at:
                self.checkpoint(carry, step)
        summaries = self.finish()
        interrupted = stopped and step < total
        states = self.loop.lanes.take(carry.learner.agent)
        if len(self.records) > 1:
            states = jax.tree.map(np.asarray, states)
        return {
            name: Result(self.of_record(states, i), record.columns(), summary, interrupted)
            for i, (name, record, summary) in enumerate(zip(self.names, self.records, summaries, strict=True))
        }

    def close(self) -> None:
        """Close the environments and the loggers."""
        self.loop.close()
        for record in self.records:
            record.close()
        if not environments.is_in_graph(self.separate):
            self.separate.close()

    def begin(self, total: int) -> Any:
        """The carry to go on from: the newest checkpoint's if the program is resumed, else a fresh one."""
        settings, runs = self.settings, len(self.records)
        seeds = np.tile(np.arange(settings.seed, settings.seed + settings.seeds), runs)
        carry = self.loop.start(seed_axis.keys(settings.seed, settings.seeds, runs), seeds)
        newest = checkpoints.newest(self.checkpoints) if self.checkpoints else None
        if newest is None:
            for record in self.records:
                record.rewind(0)
            return carry
        step, notes = checkpoints.read_notes(newest)
        if step > total:
            raise UserError(f"the run in {settings.run_dir} is at step {step} already: ask for more --steps")
        carry, arrays = checkpoints.restore(newest, self.loop.lanes.shapes(carry, self.loop.axes))
        self.training_seconds, self.training_steps = notes["training_seconds"], notes["training_steps"]
        self.diverged_at = np.array(notes.get("diverged_at", self.diverged_at))
        for record in self.records:
            record.rewind(step)
        return self.loop.load(carry, arrays)

    def check_finite(self, carry: Any, step: int) -> None:
        """Note which lanes have a loss or a parameter that is not finite, and since when.

        Unless they are kept, raises Diverged after the others' results are written.
        """
        take = self.loop.lanes.take
        diverged_at = np.asarray(take(carry.learner.totals.diverged_at))
        finite = np.asarray(take(_finite_lanes(carry.learner.agent)))
        diverged_at = np.where(~finite & (diverged_at < 0), step, diverged_at)  # a bad gradient under a finite loss
        self.diverged_at = np.where(self.diverged_at < 0, diverged_at, self.diverged_at)
        if self.keep_diverged or np.all(self.diverged_at < 0):
            return
        rows = self.evaluation_rows(carry, step)
        self.records[0].add_evaluations([row for row, at in zip(rows, self.diverged_at, strict=True) if at < 0])
        self.finish()
        which = ", ".join(f"seed {seed} at step {at}" for seed, at in self.diverged(0).items())
        advice = "start a new run with a lower --config.learning_rate, or find the cause with --debug-nans"
        kept = "; the last good checkpoint is kept" if self.checkpoints else ""
        raise Diverged(f"the losses are not finite any more ({which}){kept}: {advice}")

    def diverged(self, i: int) -> dict[str, int]:
        """Seeds of a run that diverged, and the steps at which they did."""
        steps = self.of_record(self.diverged_at, i)
        return {str(self.settings.seed + s): int(step) for s, step in enumerate(steps) if step >= 0}

    def of_record(self, tree: Any, i: int) -> Any:
        """The lanes of run i in leaves (count, ...)."""
        if len(self.records) == 1:
            return tree
        seeds = self.settings.seeds
        return jax.tree.map(lambda x: x[i * seeds : (i + 1) * seeds], tree)

    def evaluation_rows(self, carry: Any, step: int) -> list[Row]:
        """One row per lane. What a lane returns is NaN once it has diverged."""
        returns, lengths = self.evaluate(carry.learner)
        values = {"return": returns.mean(1), "length": lengths.mean(1), "return_std": returns.std(1)}
        if self.evaluate_mixture:
            values["mixture_return"] = np.mean(self.evaluate_mixture(carry.learner)[0], axis=1)
        values = {name: np.where(self.diverged_at < 0, x, np.nan) for name, x in values.items()}
        values["episodes"] = np.full(len(returns), returns.shape[1])
        if self.value_bias:
            values |= dict(zip(VALUE_COLUMNS, self.value_bias(carry.learner), strict=True))
        first, seeds = self.settings.seed, self.settings.seeds
        return [
            {"step": step, "seed": first + i % seeds, **{name: x[i].item() for name, x in values.items()}}
            for i in range(len(returns))
        ]

    def best(self, rows: list[Row]) -> float:
        """The best run's mean return, of those whose seeds are all well."""
        means = [float(np.mean([row["return"] for row in self.of_rows(rows, i)])) for i in range(len(self.records))]
        return max((mean for mean in means if math.isfinite(mean)), default=math.nan)

    def report(self, carry: Any, step: int) -> None:
        """Append the interval's mean metrics, one row per lane."""
        totals = self.loop.lanes.take(carry.learner.totals, learner.TOTALS_AXES)
        totals, finished = jax.device_get((totals, self.loop.lanes.take(carry.finished)))
        updates, rows = max(1, int(totals.updates)), []
        for i in range(len(finished)):
            episodes, returns, lengths = finished[i].tolist()
            row: Row = {"step": step, "seed": self.settings.seed + i % self.settings.seeds}
            row["updates"], row["train/episodes"] = int(totals.updates), int(episodes)
            row["train/return"] = returns / episodes if episodes else math.nan
            row["train/length"] = lengths / episodes if episodes else math.nan
            for name, value in sorted(totals.metrics.items()):
                row[name] = float(value[i]) / updates if totals.updates else math.nan
            rows.append(row)
        for i, record in enumerate(self.records):
            record.add_metrics(self.of_rows(rows, i))

    def add_evaluations(self, rows: list[Row]) -> None:
        """Take the rows of an evaluation into the records."""
        for i, record in enumerate(self.records):
            record.add_evaluations(self.of_rows(rows, i))

    def of_rows(self, rows: list[Row], i: int) -> list[Row]:
        """The rows of run i, of one per lane."""
        return rows[i * self.settings.seeds : (i + 1) * self.settings.seeds]

    def checkpoint(self, carry: Any, step: int) -> int:
        if self.checkpoints:
            notes: dict[str, Any] = {
                "training_seconds": self.training_seconds,
                "training_steps": self.training_steps,
                "diverged_at": self.diverged_at.tolist(),
            }
            saved = self.loop.save(carry)
            if processes.first():
                with RunDirectory(self.checkpoints.parent).disk():
                    checkpoints.save(self.checkpoints, step, *saved, notes=notes)
        return step

    def finish(self) -> list[dict[str, Any]]:
        """Summarise every run and draw its learning curve."""
        more: dict[str, Any] = {}
        if self.training_steps and self.training_seconds > 0:
            rate = self.training_steps * self.settings.seeds / self.training_seconds
            more["environment_steps_per_second"] = round(rate, 1)
        more["training_seconds"] = round(self.training_seconds, 3)
        more["compile_seconds"] = round(self.compilation.seconds, 3)
        more["peak_memory_mb"] = round(peak_memory_mb(), 1)
        more.update(self.provenance)
        learning_starts, summaries = getattr(self.config, "learning_starts", 0), []
        for i, record in enumerate(self.records):
            diverged = {"diverged": at} if (at := self.diverged(i)) else {}
            summaries.append(record.finish(learning_starts, diverged | more))
        return summaries

    def progress(self, total: int, step: int) -> Any:
        from tqdm import tqdm

        counts = {"points": len(self.records), "seeds": self.settings.seeds}
        return tqdm(
            total=total,
            initial=step,
            unit="step",
            unit_scale=True,
            desc=f"{self.name} {self.settings.env}" + "".join(f" x{n} {what}" for what, n in counts.items() if n > 1),
            disable=not (self.settings.progress and processes.first()),
            file=sys.stderr,
            dynamic_ncols=True,
        )


def make_schedule(settings: Settings, points: int = 1) -> dict[str, int]:
    """Steps between evaluations and between reports: fixed when a run begins, whatever --steps become later.

    Of many points, each is reported less often: every report is a write to each one's files.
    """
    eval_every = settings.eval_every or max(1, settings.steps // 20)
    reports = max(1, 1_000 // (points * settings.seeds), points * settings.steps // 500)
    return {"eval_every": eval_every, "report_every": min(eval_every, reports)}


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


def make_loop(
    agent: Agent, settings: Settings, config: Any, demos: Transition | None, num_lanes: int
) -> tuple[Any, Any]:
    """The loop of so many lanes, of either kind, and their config with float32 leaves."""
    environment = make_environment(settings, num_lanes * settings.num_envs)
    traced = jax.tree.map(lambda x: np.asarray(x, np.float32), config)
    kind: Any = in_graph.Loop if environments.is_in_graph(environment) else host.Loop
    normalize = settings.normalize_observations, settings.normalize_rewards
    axes = num_lanes, settings.num_envs
    return kind(agent, environment, traced, *axes, *normalize, demos, settings.clip_rewards), traced


@jax.jit
def _finite_lanes(tree: Any) -> jax.Array:
    """Which lanes have only finite numbers, bool (S,); on the device, whose memory may be far from the host's."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x), axis=range(1, x.ndim)) for x in leaves]), axis=0)


def _name(agent: Any) -> str:
    return getattr(agent, "__name__", type(agent).__name__).split(".")[-1]


def _next_multiple(step: int, interval: int, unit: int) -> int:
    """The first multiple of the interval after a step, rounded up to whole iterations."""
    following = (step // interval + 1) * interval
    return -(-following // unit) * unit
