"""Report on runs: `python experiments/report.py runs/a runs/b ... --out=report`, or one directory that holds them all.

Pools the seeds of each arm (an agent, and whatever differs between its runs) and writes report.md with its pictures and
tables: learning curves and final returns per environment; over environments, on normalised scores, the median, the
interquartile mean, the mean and the optimality gap, performance profiles and probabilities of improvement (Agarwal et
al. 2021, arXiv 2108.13264). Seeds are what is replicated; intervals are 95 % stratified bootstrap intervals over them.
Scores are normalised by `--reference`, else by the lowest and the highest final return in the report.
"""

import argparse
import csv
import dataclasses
import itertools
import math
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.command_line import parse_one_line
from offpolicy_jax import statistics
from offpolicy_jax.errors import UserError
from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training import plots, results
from offpolicy_jax.training.results import Cell, SeedResult
from offpolicy_jax.training.run_directory import provenance

AGGREGATES: dict[str, Callable[..., np.ndarray]] = {
    "Median": statistics.aggregate_median,
    "IQM": interquartile_mean,
    "Mean": np.mean,
    "Optimality gap": statistics.optimality_gap,
}
THRESHOLDS = 101  # of a performance profile
Rows = list[list[Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories, or directories that hold some at any depth")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report"), help="default: report")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        help="the returns that score 0 and 1: ENV=RANDOM:REFERENCE, or a CSV file with the columns environment, random "
        "and reference; may be repeated",
    )
    parser.add_argument(
        "--per-env",
        action="append",
        default=[],
        metavar="NAME",
        help="a hyper-parameter that is chosen for each environment: it makes another arm only within one",
    )
    given = sys.argv[1:] if arguments is None else arguments
    try:
        args = parse_one_line(parser, given)
        report = analyse(args.runs, args.reference, args.per_env)
        write(report, args.out, "python experiments/report.py " + shlex.join(given))
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.out / 'report.md'}: {describe(report)}")
    return 0


@dataclasses.dataclass(frozen=True)
class Block:
    """Arms that can be compared over environments, with their normalised scores (seeds, environments)."""

    envs: list[str]
    scores: dict[str, np.ndarray]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the runs say."""

    seeds: list[SeedResult]
    arms: list[str]
    merit: dict[str, float]  # of each arm: the mean over environments of its normalised interquartile mean
    cells: dict[str, dict[str, Cell]]  # by environment and arm
    scale: dict[str, tuple[float, float] | None]  # returns that score 0 and 1
    blocks: list[Block]
    notes: list[str]
    normalised_by: str

    def pictured(self, arms: Iterable[str]) -> list[str]:
        """Those of a picture's arms that it has room for, the best ones, in the order of all."""
        best = sorted(arms, key=self.merit.__getitem__, reverse=True)[: plots.MOST_ARMS]
        return [arm for arm in self.arms if arm in best]

    def style_order(self, pictured: list[str]) -> list[str]:
        """What fixes the styles of a picture: all arms, so that each looks the same everywhere, if styles suffice."""
        return self.arms if len(self.arms) <= plots.MOST_ARMS else pictured


def analyse(paths: Sequence[str], reference: Sequence[str] = (), per_env: Sequence[str] = ()) -> Report:
    """Read the runs and pool their seeds. Raises UserError, one line, for what no report can be made of."""
    seeds = [seed for run in results.find_runs(paths) for seed in results.read_run(run)]
    if not any(seed.steps.size for seed in seeds):
        raise UserError("none of these runs has an evaluation yet: wait for the first")
    pooled = results.pool(seeds, per_env)
    references = read_references(reference)
    cells: dict[str, dict[str, Cell]] = {}
    for env in sorted({seed.env for seed in seeds}):
        if reference and env not in references:
            raise UserError(f"--reference says nothing of {env}: add --reference={env}=RANDOM:REFERENCE")
        # A diverged seed scores the lowest return of any seed at any evaluation, or a random policy's if that is lower.
        returns = [seed.returns.min() for seed in seeds if seed.env == env and seed.returns.size]
        lost = float(min([*returns, *references.get(env, ())[:1]], default=math.nan))
        groups = {arm: [s for s in group if s.env == env] for arm, group in pooled.items()}
        cells[env] = {arm: Cell(sorted(g, key=lambda s: s.seed), lost) for arm, g in groups.items() if g}
    if len(pooled) > 1 and all(len(arms) == 1 for arms in cells.values()):
        raise UserError(
            "no two of these arms have an environment in common: report on each apart, or name by --per-env what is "
            "chosen for each environment"
        )
    scale = {env: references.get(env) or _min_max(arms) for env, arms in cells.items()}
    arms = list(pooled)
    blocks, notes = _blocks(arms, cells, scale)
    if len(arms) > plots.MOST_ARMS:
        notes.append(
            f"A picture shows at most {plots.MOST_ARMS} arms, the best by the interquartile mean of their normalised "
            "final returns, averaged over the environments that an arm has (without any: by name). An arm may look "
            "different in each; the tables hold all, but for the probabilities of improvement."
        )
    by = "the given random and reference returns" if reference else "the lowest and the highest final return here"
    return Report(seeds, arms, {arm: _merit(arm, cells, scale) for arm in arms}, cells, scale, blocks, notes, by)


def read_references(entries: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Returns that score 0 and 1, by environment, from ENV=RANDOM:REFERENCE or CSV files. Raises UserError."""
    table: dict[str, tuple[float, float]] = {}
    for entry in entries:
        path = pathlib.Path(entry)
        try:
            if match := re.fullmatch(r"([^=]+)=([^:]+):([^:]+)", entry):
                rows = [match.groups()]
            else:
                with path.open(newline="") as file:
                    rows = [(row["environment"], row["random"], row["reference"]) for row in csv.DictReader(file)]
            new = {str(env).strip(): (float(low), float(high)) for env, low, high in rows}
            if not all(math.isfinite(high - low) and high != low for low, high in new.values()):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(
                f"--reference={entry}: give ENV=RANDOM:REFERENCE, two returns that differ, or a CSV file with the "
                "columns environment,random,reference"
            ) from error
        table |= new
    return table


def _min_max(arms: dict[str, Cell]) -> tuple[float, float] | None:
    """The lowest and the highest final return, or None if there are no two."""
    scores = np.concatenate([cell.scores for cell in arms.values()])
    return (float(scores.min()), float(scores.max())) if len(np.unique(scores)) > 1 else None


def _normalise(scores: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return (scores - scale[0]) / (scale[1] - scale[0])


def _blocks(arms: list[str], cells: dict[str, dict[str, Cell]], scale: dict) -> tuple[list[Block], list[str]]:
    """Arms linked by shared environments, each block with the environments that all its arms have; and remarks.

    Where linked arms have no environment in common, those with the same environments make a block each.
    """
    notes = [f"{env} is in no aggregate: it has no two different final returns." for env in cells if not scale[env]]
    have = {
        arm: {env for env in cells if scale[env] and arm in cells[env] and cells[env][arm].scores.size} for arm in arms
    }
    groups: list[set[str]] = []
    for arm in (arm for arm in arms if have[arm]):
        linked = [group for group in groups if any(have[arm] & have[other] for other in group)]
        groups = [group for group in groups if group not in linked] + [{arm}.union(*linked)]
    parts: list[list[str]] = []
    for members in ([arm for arm in arms if arm in group] for group in groups):
        if set.intersection(*(have[arm] for arm in members)):
            parts.append(members)
            continue
        notes.append(f"No environment is common to {'; '.join(members)}: those with the same ones are aggregated.")
        alike: dict[frozenset[str], list[str]] = {}
        for arm in members:
            alike.setdefault(frozenset(have[arm]), []).append(arm)
        parts += alike.values()
    blocks = []
    for members in parts:
        every = [env for env in cells if any(env in have[arm] for arm in members)]
        common = [env for env in every if all(env in have[arm] for arm in members)]
        remarks = []
        for env in every:
            if lacking := [arm for arm in members if env not in have[arm]]:
                remarks.append(f"{env} is not in the aggregate: no final return there of {'; '.join(lacking)}.")
        scores = {}
        for arm in members:
            columns = [_normalise(cells[env][arm].scores, scale[env]) for env in common]
            count = min(map(len, columns))
            if more := [f"{len(c)} on {env}" for env, c in zip(common, columns, strict=True) if len(c) > count]:
                remarks.append(f"{arm}: the aggregate takes the first {count} seeds of {', '.join(more)}.")
            scores[arm] = np.stack([column[:count] for column in columns], axis=1)
        blocks.append(Block(common, scores, remarks))
    return blocks, notes


def _merit(arm: str, cells: dict[str, dict[str, Cell]], scale: dict) -> float:
    """Mean over environments of an arm's normalised interquartile mean; minus infinity if it has none."""
    final = [(env, here[arm].scores) for env, here in cells.items() if arm in here and scale[env]]
    scores = [interquartile_mean(_normalise(x, scale[env])) for env, x in final if x.size]
    return float(np.mean(scores)) if scores else -math.inf


def describe(report: Report) -> str:
    """One line."""
    statuses = [seed.status for seed in report.seeds]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in ("finished", "diverged", "unfinished") if s in statuses)
    arms, envs = _plural(len(report.arms), "arm"), _plural(len(report.cells), "environment")
    return f"{arms} on {envs}; seeds: {counts}"


def write(report: Report, out: pathlib.Path, command: str) -> None:
    """Write report.md, its pictures and tables. Raises UserError if the disk refuses."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        sections = ["# Report", _protocol(report, command)]
        sections += [_environment(report, env, out) for env in report.cells]
        tables: dict[str, Rows] = {"aggregate": [], "profile": [], "probability": []}
        for i, block in enumerate(report.blocks):
            sections.append(_aggregate(report, block, out, f"_{i + 1}" * (len(report.blocks) > 1), tables))
        _write_tables(report, out, tables)
        (out / "report.md").write_text("\n\n".join([*sections, _FILES]) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror or error}): choose another --out") from error


def _protocol(report: Report, command: str) -> str:
    """What a reader has to know of the numbers, as a list."""
    cells = [(env, arm, cell) for env, arms in report.cells.items() for arm, cell in arms.items()]
    commits = sorted({c or "unknown" for seed in report.seeds for c in seed.document.get("commits", [None])})
    versions: dict[str, set[str]] = {}
    for seed in report.seeds:
        for name, version in seed.document.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    episodes = _range(seed.settings["eval_episodes"] for seed in report.seeds)
    lines = [
        f"{describe(report)}; {_plural(_range(len(c.seeds) for _, _, c in cells), 'seed')} per arm and environment.",
        f"A score is the mean return of {episodes} greedy episodes of one seed, at its last evaluation; seeds are what "
        "is replicated, episodes are not.",
        "Intervals, in brackets and as bands: 95 % percentile intervals of the stratified bootstrap over seeds within "
        "environments (2000 resamples). Few seeds make them too narrow; one seed has none.",
        "Learning curves: interquartile mean at the steps at which all seeds of an arm were evaluated.",
    ]
    why = ", the lowest return there" + " or the random policy's" * report.normalised_by.startswith("the given")
    for env, arm, cell in cells:
        if lost := cell.of("diverged"):
            score = "" if math.isnan(cell.lost) else f"; counts as {_number(cell.lost)}{why}"
            lines.append(f"**Diverged**: {_numbers(lost)} of {arm} on {env}{score}.")
        if going := cell.of("unfinished"):
            use = "not in the numbers" if cell.of("finished") else "no final return yet"
            at = _range(int(s.steps[-1]) if s.steps.size else 0 for s in going)
            lines.append(
                f"**Unfinished**: {_numbers(going)} of {arm} on {env}, at step {at} of "
                f"{cell.seeds[0].settings['steps']:,}: {use}."
            )
    for env, arms in report.cells.items():
        if len({cell.steps for cell in arms.values() if cell.scores.size}) > 1:
            lines.append(f"Arms do not have the same steps on {env}: see its table.")
        if len({len(cell.seeds) for cell in arms.values()}) > 1:
            lines.append(f"Arms do not have the same number of seeds on {env}: see its table.")
        if lacking := [arm for arm in report.arms if arm not in arms]:
            lines.append(f"{env} was not run with {'; '.join(lacking)}.")
    if report.blocks:
        scale = [f"{env} {_number(s[0])} and {_number(s[1])}" for env, s in report.scale.items() if s]
        lines.append(f"Scores 0 and 1 of an environment are {report.normalised_by}: {'; '.join(scale)}.")
    lines += [*report.notes, *(note for block in report.blocks for note in block.notes)]
    lines += [
        f"Commits of the runs: {', '.join(f'`{c}`' for c in commits)}; of this report: `{provenance()['commit']}`.",
        "Versions: " + ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(versions.items())) + ".",
        f"Command: `{command}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _environment(report: Report, env: str, out: pathlib.Path) -> str:
    """Learning curves and final returns of one environment."""
    arms = report.cells[env]
    header = [
        "arm",
        "IQM [95 % interval]",
        "mean",
        "seeds",
        "of them diverged",
        "further unfinished",
        "steps",
        "steps/s of a run",
    ]
    rows = []
    for arm, cell in arms.items():
        iqm, low, high, mean = _final(cell)
        rows.append(
            [arm, _estimate(iqm, low, high), _number(mean), len(cell.final), len(cell.of("diverged")),
             len(cell.of("unfinished")), cell.steps, _number(cell.rate)]
        )  # fmt: skip
    picture = "No picture: no seed has a finite return yet."
    if _with_curves(arms):
        name = f"curves_{re.sub(r'[^A-Za-z0-9]+', '-', env)}.png"
        _draw_curves(report, env, out / name)
        picture = f"![Learning curves on {env}]({name})"
    return f"## {env}\n\n{picture}\n\nFinal return:\n\n{_markdown(header, rows)}"


def _with_curves(arms: dict[str, Cell]) -> list[str]:
    """The arms that have an evaluation."""
    return [arm for arm, cell in arms.items() if any(seed.steps.size for seed in cell.seeds)]


def _how_many(shown: list[str], arms: list[str]) -> str:
    """For captions of pictures that have no room for all arms."""
    return f" {len(shown)} of {len(arms)} arms." if len(shown) < len(arms) else ""


def _draw_curves(report: Report, env: str, path: pathlib.Path) -> None:
    """The picture of an environment."""
    every = _with_curves(report.cells[env])
    shown = report.pictured(every)
    arms = {arm: report.cells[env][arm] for arm in shown}
    curves = {arm: cell.curve() for arm, cell in arms.items()}
    episodes = _range(seed.settings["eval_episodes"] for cell in arms.values() for seed in cell.seeds)
    seeds = _plural(_range(len(cell.counted) for cell in arms.values()), "seed")
    caption = f"Interquartile mean of {seeds} per arm; band: 95\xa0% stratified bootstrap interval."
    if seeds == "1 seed":
        caption = "One seed per arm: no interval."
    caption += f" A seed's return is the mean of {episodes} greedy episodes."
    caption += _how_many(shown, every)
    if any(curve.diverged for curve in curves.values()):
        caption += f" A diverged seed counts as {_number(next(iter(arms.values())).lost)} from then on."
    plots.learning_curves(path, curves, title=env, caption=caption, arms=report.style_order(shown))


def _aggregate(report: Report, block: Block, out: pathlib.Path, suffix: str, tables: dict[str, Rows]) -> str:
    """Aggregates, profiles and probabilities of the arms of a block; adds the numbers to the tables."""
    envs, arms = "; ".join(block.envs), list(block.scores)
    shown = report.pictured(arms)
    panels: dict[str, dict[str, plots.Estimate]] = {}
    for name, statistic in AGGREGATES.items():
        panels[name] = {}
        for arm, scores in block.scores.items():
            axis = (0, 1)
            estimate = (float(statistic(scores, axis=axis)), *stratified_bootstrap_interval(scores, statistic))
            panels[name][arm] = estimate
            tables["aggregate"].append([arm, envs, len(scores), name, *estimate])
    seeds = _plural(_range(len(block.scores[arm]) for arm in shown), "seed")
    on = envs if len(block.envs) <= 3 else f"{len(block.envs)} environments"
    about = f"{seeds} per arm on {on}.{_how_many(shown, arms)} Scores 0 and 1: {report.normalised_by}."
    names = {kind: f"{kind}{suffix}.png" for kind in ("aggregate", "profile", "probability")}
    plots.estimates(
        out / names["aggregate"],
        {name: {arm: values[arm] for arm in shown} for name, values in panels.items()},
        title="Aggregate of final returns",
        caption=f"Bars: 95\xa0% stratified bootstrap intervals. {about} A smaller optimality gap is better.",
        order=report.style_order(shown),
    )
    low = min(float(scores.min()) for scores in block.scores.values())
    high = max(float(scores.max()) for scores in block.scores.values())
    thresholds = np.linspace(low - 0.02 * (high - low), high, THRESHOLDS)
    profiles = {
        arm: np.stack(
            [
                statistics.performance_profile(scores, thresholds),
                *statistics.performance_profile_interval(scores, thresholds),
            ]
        )
        for arm, scores in block.scores.items()
    }
    for arm, values in profiles.items():
        tables["profile"] += [[arm, envs, *row] for row in zip(thresholds, *values, strict=True)]
    plots.profiles(
        out / names["profile"],
        thresholds,
        {arm: profiles[arm] for arm in shown},
        title="Performance profiles of final returns",
        caption=f"Bands: pointwise 95\xa0% stratified bootstrap intervals. {about}",
        order=report.style_order(shown),
    )
    header = ["arm", *(f"{name} [95 % interval]" for name in AGGREGATES), "seeds"]
    rows = [[arm, *(_estimate(*panels[name][arm]) for name in AGGREGATES), len(block.scores[arm])] for arm in arms]
    text = [
        f"## Over environments: {envs}",
        f"Normalised by {report.normalised_by}.",
        f"![Aggregates]({names['aggregate']})",
        _markdown(header, rows),
        f"![Performance profiles]({names['profile']})",
    ]
    if len(arms) < 2:
        return "\n\n".join(text)
    pairs: dict[tuple[str, str], plots.Estimate] = {}
    for a, b in itertools.combinations(shown, 2):
        x, y = block.scores[a], block.scores[b]
        value = float(statistics.probability_of_improvement(x, y))
        low, high = statistics.probability_of_improvement_interval(x, y)
        pairs[a, b], pairs[b, a] = (value, low, high), (1.0 - value, 1.0 - high, 1.0 - low)
    tables["probability"] += [[a, b, envs, *estimate] for (a, b), estimate in pairs.items()]
    plots.probabilities(
        out / names["probability"],
        pairs,
        title="Probability of improvement, row over column",
        caption="Probability that a run of the row's arm scores above a run of the column's, averaged over "
        f"environments; ties count as half. {seeds} per arm on {on}.{_how_many(shown, arms)} Bold: the 95\xa0% "
        "stratified bootstrap interval does not hold 0.5.",
    )
    return "\n\n".join([*text, f"![Probabilities of improvement]({names['probability']})"])


def _write_tables(report: Report, out: pathlib.Path, tables: dict[str, Rows]) -> None:
    """The CSV files."""
    final, curves, seeds = [], [], []
    for env, arms in report.cells.items():
        for arm, cell in arms.items():
            counts = [len(cell.final), len(cell.of("diverged")), len(cell.of("unfinished"))]
            final.append([env, arm, *_final(cell), *counts, cell.steps.replace(",", ""), cell.rate])
            curve = cell.curve()
            points = zip(curve.x.astype(int), curve.middle, curve.low, curve.high, strict=True)
            curves += [[env, arm, *point, len(cell.counted)] for point in points]
            for seed in cell.seeds:
                last = [int(seed.steps[-1]), float(seed.returns[-1])] if seed.steps.size else [None, None]
                seeds.append([env, arm, seed.seed, seed.status, *last, seed.path])
    interval = ["low", "high"]
    counted = ["seeds", "diverged", "unfinished", "steps", "steps_per_second"]
    _csv(out / "final.csv", ["environment", "arm", "iqm", *interval, "mean", *counted], final)
    _csv(out / "curves.csv", ["environment", "arm", "step", "iqm", *interval, "seeds"], curves)
    _csv(out / "seeds.csv", ["environment", "arm", "seed", "status", "step", "return", "run"], seeds)
    shared = ["arm", "environments"]
    _csv(out / "aggregate.csv", [*shared, "seeds", "statistic", "value", *interval], tables["aggregate"])
    _csv(out / "profile.csv", [*shared, "threshold", "fraction_above", *interval], tables["profile"])
    _csv(
        out / "probability.csv",
        ["arm", "than", "environments", "probability_of_improvement", *interval],
        tables["probability"],
    )


_FILES = """## Files

Every number is in a table: [final.csv](final.csv), [curves.csv](curves.csv), [seeds.csv](seeds.csv) (each seed, its
status and its run), [aggregate.csv](aggregate.csv), [profile.csv](profile.csv), [probability.csv](probability.csv)."""


def _final(cell: Cell) -> tuple[float, float, float, float]:
    """Interquartile mean of the final returns, both ends of its interval, and the mean; NaN without any."""
    if not cell.scores.size:
        return math.nan, math.nan, math.nan, math.nan
    interval = stratified_bootstrap_interval(cell.scores)
    return float(interquartile_mean(cell.scores)), *interval, float(np.mean(cell.scores))


def _csv(path: pathlib.Path, header: list[str], rows: Rows) -> None:
    def text(x: Any) -> Any:
        return ("" if math.isnan(x) else f"{x:.9g}") if isinstance(x, float) else x

    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([text(x) for x in row] for row in rows)


def _markdown(header: list[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _number(x: float | None) -> str:
    """Four digits or so, and thousands separated."""
    if x is None or math.isnan(x):
        return "–"
    return f"{x:,.{0 if abs(x) >= 1000 else 1 if abs(x) >= 10 else 3}f}"


def _estimate(value: float, low: float, high: float) -> str:
    return _number(value) + ("" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]")


def _range(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)}))


def _plural(number: int | str, noun: str) -> str:
    return f"{number} {noun}{'s' * (str(number) != '1')}"


def _numbers(seeds: Sequence[SeedResult]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(str(seed.seed) for seed in seeds)}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a report leaves the accelerators to the runs
    sys.exit(main())
