"""What each agent costs beside SAC at equal network sizes, in one run: every figure is a process of its own, in turn.

    python experiments/benchmarks/cost.py              (in-graph Pendulum, so that the update is nearly everything)
    python experiments/benchmarks/cost.py --quick      (tiny budgets: checks the script, measures nothing)

Writes experiments/results/cost.json: for each agent the time of a step relative to SAC's in the same round, median
over the rounds, with all rounds, versions and settings. Two hidden layers of 256, batch 256, one update per step.

AILBoost is timed over whole rounds, of which training is a half: its time per environment step beside SAC's on a ring
of the same size, that time per update of the policy, and how both change with the number of learners that have been,
and of those that are kept.
"""

import argparse
import json
import pathlib
import statistics
import sys

from throughput import RESULTS, measure, side_by_side

SAC = "sac"
ARMS = {
    SAC: ("sac", {}),
    "dsac_t": ("dsac_t", {"hidden_sizes": [256, 256], "activation": "relu"}),
    "dsac_t, gelu": ("dsac_t", {"hidden_sizes": [256, 256]}),
    **{f"pmoe, K = {k}": ("pmoe", {"num_experts": k}) for k in (1, 2, 4, 8, 16)},
    "pmoe, K = 4, all experts": ("pmoe", {"num_experts": 4, "train_experts": "all"}),
}


RING = "sac, ring of 1M"
AILBOOST = {"1 learner": (1, 1_000), "1 000 learners": (1_000, 1_000), "10 kept": (1, 10)}  # have been, are kept


def ailboost_ratios(rates: dict[str, list[float]], updates_per_step: float) -> dict[str, float]:
    """Medians over rounds: AILBoost's time over SAC's, per step and per update, and of its own arms over another."""

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[fast], rates[slow], strict=True))

    first, thousand, ten = (f"ailboost, {name}" for name in AILBOOST)
    over_learner = ratio(first, RING)
    return {
        "time_per_step_over_sac": round(over_learner, 3),
        "time_per_update_over_sac": round(over_learner / updates_per_step, 3),
        "time_with_1_000_learners_over_1": round(ratio(thousand, first), 3),
        "time_with_1_000_kept_over_10": round(ratio(first, ten), 3),
    }


def relative_time(rates: dict[str, list[float]]) -> dict[str, float]:
    """Median over rounds of SAC's steps per second over each arm's."""
    return {
        name: round(statistics.median(a / b for a, b in zip(rates[SAC], each, strict=True)), 3)
        for name, each in rates.items()
    }


def main() -> None:
    """Measure all agents and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_000, help="timed steps per process")
    parser.add_argument("--env", default="phys2d/Pendulum-v0")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, help="default: experiments/results/cost.json; none with --quick")
    args = parser.parse_args()
    rounds, steps = (1, 20) if args.quick else (args.rounds, args.steps)
    options = (f"--env={args.env}", f"--steps={steps}", "--capacity=10000")
    ours = (sys.executable, "ours.py")
    commands: dict[str, tuple[str, ...]] = {
        name: (*ours, "train", f"--agent={agent}", f"--config={json.dumps(config)}", *options)
        for name, (agent, config) in list(ARMS.items())[: 2 if args.quick else None]
    }
    commands[RING] = (*ours, "train", f"--env={args.env}", f"--steps={steps}", "--capacity=1001000")
    period = 10 if args.quick else 1_000
    for name, (learners, kept) in AILBOOST.items():
        sizes = (f"--learners={learners}", f"--max-learners={kept}", f"--period={period}")
        commands[f"ailboost, {name}"] = (*ours, "ailboost", f"--env={args.env}", *sizes)
    rates = side_by_side(commands, rounds)
    last = measure(*ours, "matmul", "--repeats=1")
    record = {
        "command": f"python experiments/benchmarks/cost.py --rounds={rounds} --steps={steps} --env={args.env}",
        "time_per_step_over_sac": relative_time({name: rates[name] for name in ARMS if name in rates}),
        "ailboost": ailboost_ratios(rates, updates_per_step=0.5),
        "steps_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "rounds": {name: [round(x, 1) for x in each] for name, each in rates.items()},
        "config": {name: config for name, (_, config) in ARMS.items() if name in rates},
        "ailboost_learners": {f"ailboost, {name}": sizes for name, sizes in AILBOOST.items()},
        **{key: last[key] for key in ("versions", "commit", "machine")},
    }
    if out := args.out or (None if args.quick else RESULTS / "cost.json"):
        out.write_text(json.dumps(record, indent=1) + "\n")
    for name, ratio in record["time_per_step_over_sac"].items():
        print(f"{name:28s} {ratio:5.2f} x SAC's time per step")
    for name, ratio in record["ailboost"].items():
        print(f"AILBoost, {name.replace('_', ' '):28s} {ratio:5.2f}")


if __name__ == "__main__":
    main()
