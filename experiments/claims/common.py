"""What the claim scripts share: arms trained side by side, effects with intervals, verdicts, records and figures.

A verdict is drawn from the 95 % bootstrap interval, over seeds, of an effect that the claim says is positive:
*reproduced* if it lies above zero, *not reproduced* if it lies below (or the effect is under half of the paper's), and
*inconclusive* if it spans zero; then the record says how many seeds would settle it. A bootstrap over few seeds is too
sure of itself: without any effect it lies above zero in 11 % of samples of 3 seeds, 7 % of 5 and 4 % of 10, instead of
2.5 %. Every seed counts: an arm with a diverged one has no number, and no verdict is drawn from it.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import agents
from offpolicy_jax.errors import Diverged, UserError
from offpolicy_jax.statistics import difference_interval, interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training import Result, Settings, compilation, read_finished, seeds, train, unless_interrupted
from offpolicy_jax.training.plots import comparison
from offpolicy_jax.training.run_directory import provenance
from offpolicy_jax.training.train import COLUMNS, VALUE_COLUMNS

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison: an agent and how its hyper-parameters differ from its defaults or a preset."""

    agent: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str | None = None

    def build(self, **changes: Any) -> Any:
        """Its Config, with `changes` on top."""
        module = agents.load(self.agent)
        base = module.PRESETS[self.preset] if self.preset else module.Config()
        return dataclasses.replace(base, **(self.config | changes))


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is fixed before anything runs."""

    name: str
    claim: str
    paper: str
    paper_says: str
    metric: str
    held_equal: str
    arms: dict[str, Arm]
    seeds: int
    version: int = 1
    why_again: str = ""  # of a second version: what was wrong with the first, whose record stays

    @property
    def record(self) -> str:
        """Name of the record."""
        return self.name + f"_v{self.version}" * (self.version > 1)


def run(
    claim: Claim, label: str, settings: Settings, root: pathlib.Path | None, states: bool = False, **changes: Any
) -> Result:
    """Train one arm, or go on from its checkpoint under `root` (none are written without one).

    Unless `states` are asked for, an arm that is complete is read from its files. If a seed diverges, the table is NaN
    and there are no states.
    """
    arm = claim.arms[label.split("/")[0]]
    if root is not None:
        settings = dataclasses.replace(settings, run_dir=str(root / label.replace("/", "-")), resume=True)
    print(f"{claim.name}: {label}", file=sys.stderr, flush=True)
    config = arm.build(**changes)
    if not states and (complete := read_finished(agents.load(arm.agent), settings, config)):
        return complete
    try:
        return unless_interrupted(train(agents.load(arm.agent), settings, config))
    except Diverged as error:
        print(f"{claim.name}: {label}: {error}", file=sys.stderr, flush=True)
        steps = np.repeat(np.arange(settings.eval_every, settings.steps + 1, settings.eval_every), settings.seeds)
        nothing = {name: np.full(len(steps), np.nan) for name in (*COLUMNS, *VALUE_COLUMNS)}
        return Result(None, nothing | {"step": steps}, {"diverged": str(error)})


def protocol(root: pathlib.Path) -> dict[str, Any]:
    """Settings, resolved configs, training seconds, commits and machine of every arm under `root`."""
    arms = {}
    for path in sorted(root.glob("*/config.json")):
        document, summary = json.loads(path.read_text()), path.parent / "summary.json"
        finished = json.loads(summary.read_text()) if summary.exists() else {}
        arms[path.parent.name] = {
            **{key: document[key] for key in ("settings", "resolved_config", "commits")},
            **{key: finished.get(key) for key in ("training_seconds", "machine", "versions")},
        }
    return arms


def trained_on(arms: dict[str, Any]) -> dict[str, Any]:
    """Machine and versions that all arms were trained with; nothing if they differ, or if there are no arms."""
    seen = [{key: arm[key] for key in ("machine", "versions")} for arm in arms.values() if arm["machine"]]
    return seen[0] if seen and all(each == seen[0] for each in seen) else {}


def effect(
    label: str, higher: np.ndarray, lower: np.ndarray, paper_effect: float | None = None, paired: bool = False
) -> dict:
    """The claim says `higher` is above `lower` (one number per seed each): difference of means, interval, verdict.

    `paired`: number i of both was measured under the same conditions, so their differences are what is resampled.
    """
    if not (np.isfinite(higher).all() and np.isfinite(lower).all()):
        return {"effect": label, "difference": None, "interval_95": None, "verdict": "not measured: no finite value"}
    if min(len(higher), len(lower)) < 2:
        return {"effect": label, "difference": None, "interval_95": None, "verdict": "not measured: one seed"}
    difference = float(np.mean(higher) - np.mean(lower))
    low, high = difference_interval(higher, lower, paired=paired)
    document = {"effect": label, "difference": _round(difference), "interval_95": [_round(low), _round(high)]}
    if low > 0.0 and (paper_effect is None or difference >= 0.5 * paper_effect):
        return document | {"verdict": "reproduced"}
    if high < 0.0 or low > 0.0:
        return document | {"verdict": "not reproduced"}
    n = len(higher)
    enough = math.ceil(n * (0.5 * (high - low) / difference) ** 2) + 1 if difference else None
    return document | {"verdict": "inconclusive", "seeds_that_would_settle_it": enough}


def overall(effects: Sequence[dict]) -> str:
    """The claim's verdict from those of its effects, all of which must hold; `decides=False` marks those aside."""
    verdicts = [e["verdict"] for e in effects if e.get("decides", True)]
    if all(v == "reproduced" for v in verdicts):
        return "reproduced"
    return "not reproduced" if "not reproduced" in verdicts else "inconclusive"


def main(claim: Claim, document: str | None, measure: Callable[..., tuple[dict, list[dict], Callable]]) -> int:
    """The command line of a claim script.

    `measure(seeds, quick, root)` trains and returns (measurements, effects, draw); `draw(path)` makes the figure.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs: no record, no verdict")
    parser.add_argument("--seeds", type=int, default=claim.seeds)
    parser.add_argument("--run-dir", type=pathlib.Path, help=f"default: runs/claims/{claim.name}; goes on from there")
    args = parser.parse_args()
    count = 2 if args.quick else args.seeds
    compilation.enable_cache()
    seeds.use_cores(count)
    name = claim.record + f"_seeds{count}" * (count != claim.seeds)  # another protocol is another record
    root = None if args.quick else args.run_dir or pathlib.Path("runs/claims") / name
    try:
        with jax.default_matmul_precision("highest"):  # float32 on every device, as on a CPU
            measurements, effects, draw = measure(count, args.quick, root)
    except UserError as error:
        print(f"{claim.name}: {error}", file=sys.stderr)
        return 2
    if args.quick:
        with tempfile.TemporaryDirectory() as scratch:
            draw(pathlib.Path(scratch) / "figure.png")
        print(json.dumps({"quick": True, "measurements": measurements}))
        return 0
    record = {
        "claim": claim.claim,
        **({"version": claim.version, "replaces": claim.name, "why_again": claim.why_again} if claim.why_again else {}),
        "paper": claim.paper,
        "paper_says": claim.paper_says,
        "metric": claim.metric,
        "held_equal": claim.held_equal,
        "verdict": overall(effects),
        "effects": effects,
        "measurements": measurements,
        "arms": {label: dataclasses.asdict(arm) for label, arm in claim.arms.items()},
        "seeds": count,
        "command": f"python experiments/claims/{claim.name}.py" + f" --seeds={count}" * (count != claim.seeds),
        "protocol": (arms := protocol(root) if root else {}),
        **provenance(),
        **trained_on(arms),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(RESULTS / f"{name}.png")
    write_index()
    print(f"{name}: {record['verdict']}")
    for each in effects:
        print(f"  {each['effect']}: {each['difference']} {each['interval_95']} {each['verdict']}")
    return 0


def summarize(scores: np.ndarray, decimals: int = 4) -> dict[str, Any]:
    """IQM of seeds (S,), or of seeds and tasks (S, tasks), and its interval, as JSON; none where a seed diverged."""
    whole = bool(np.isfinite(scores).all())
    interval = stratified_bootstrap_interval(scores) if whole else (math.nan, math.nan)
    numbers = (float(interquartile_mean(scores)) if whole else math.nan, *interval)
    iqm, low, high = (round(x, decimals) if math.isfinite(x) else None for x in numbers)
    return {"iqm": iqm, "iqm_interval_95": [low, high]}


def as_list(scores: np.ndarray, decimals: int = 4) -> list[float | None]:
    """Scores of seeds as JSON: None where one diverged."""
    return [round(float(x), decimals) if math.isfinite(x) else None for x in scores]


def draw_returns(panels: dict[str, Any], episodes: int = 10) -> Callable[[Any], None]:
    """`draw(path)` of greedy returns over training, for the panels of `plots.comparison`."""
    return functools.partial(
        comparison,
        panels=panels,
        xlabel="Environment steps per seed",
        ylabel="Greedy return",
        caption=f"Mean of {episodes} greedy episodes per evaluation and seed.",
    )


def write_index() -> None:
    """The table of all claims, in experiments/results/README.md."""
    lines = [
        "| claim | effect: difference of means [95 % interval] | verdict | seeds | figure |",
        "|---|---|---|---|---|",
    ]
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    records = {name: record for name, record in records.items() if "claim" in record}
    replaced = {record["replaces"]: name for name, record in records.items() if "replaces" in record}
    for name, record in records.items():
        effects = "<br>".join(f"{e['effect']}: {_text(e)}, {e['verdict']}" for e in record["effects"])
        verdict = f"**{record['verdict']}**"
        if name in replaced:
            verdict = f"{record['verdict']}, but see `{replaced[name]}`: {records[replaced[name]]['why_again']}"
        lines.append(
            f"| [`{name}`]({name}.json): {record['claim']} | {effects} | {verdict} | {record['seeds']} "
            f"| [figure]({name}.png) |"
        )
    page = (RESULTS / "README.md").read_text().split(_MARK)
    (RESULTS / "README.md").write_text(_MARK.join([page[0], "\n" + "\n".join(lines) + "\n", page[2]]))


_MARK = "<!-- written by claims/common.py -->"


def _text(effect: dict) -> str:
    if effect["difference"] is None:
        return "no number"
    return f"{effect['difference']:g} [{effect['interval_95'][0]:g}, {effect['interval_95'][1]:g}]"


def _round(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None
