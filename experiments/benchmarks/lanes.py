"""Seeds at once on a CPU: aggregate steps per second, all numbers of seeds interleaved in one process.

    python experiments/benchmarks/lanes.py

SAC, each step with an update, with two hidden layers of as many units as a case says. In-graph, where a device has
several lanes, they are timed as a run has them and in the other way: one after the other, or together under vmap
(`in_graph.IN_TURN_BYTES`). All numbers of seeds run on the CPU devices of the greatest one, so a single seed has one
of them, with the threads of all cores. Ratios are taken within a round, whose order is reversed in every second one,
since machines drift. Writes experiments/results/lanes.json.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import ours

from agents import sac
from offpolicy_jax.training import in_graph
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.run_directory import provenance

ALWAYS, NEVER = (0, sys.maxsize), (sys.maxsize, sys.maxsize)
RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
CASES = "phys2d/Pendulum-v0:256,phys2d/Pendulum-v0:128,phys2d/Pendulum-v0:64,HalfCheetah-v5:256"


def make_arms(env: str, config: sac.Config, seeds: list[int]) -> dict[str, list[Any]]:
    """A loop and its carry for each number of seeds; where a device has several lanes, one in turn and one together."""
    arms: dict[str, list[Any]] = {}
    usual = in_graph.IN_TURN_BYTES
    for count in seeds:
        made = ours.warmed_up("sac", env, config, count)
        arms[str(count)] = list(made)
        if not isinstance(made[0], in_graph.Loop) or made[0].lanes.padded == made[0].lanes.mesh.size:
            continue
        try:
            in_graph.IN_TURN_BYTES = NEVER if made[0].in_turn else ALWAYS
            other = ours.warmed_up("sac", env, config, count)
        finally:
            in_graph.IN_TURN_BYTES = usual
        if other[0].in_turn != made[0].in_turn:  # a machine with many cores never takes turns
            arms[f"{count}, {'in turn' if other[0].in_turn else 'together'}"] = list(other)
    return arms


def measure(arms: dict[str, list[Any]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Steps per second of each arm, all seeds together, one value a round."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds):
        for name in list(arms)[:: -1 if i % 2 else 1]:
            loop, carry = arms[name]
            each = max(1, steps // loop.lanes.count)
            before = time.perf_counter()
            arms[name][1] = loop.advance(carry, each, bool)
            rates[name].append(each * loop.lanes.count / (time.perf_counter() - before))
    return rates


def in_turn_over_together(rates: dict[str, list[float]]) -> dict[str, float]:
    """For each number of seeds that was timed both ways."""
    found = {}
    for name, each in rates.items():
        count, _, way = name.partition(", ")
        if way:
            pair = (rates[count], each) if way == "together" else (each, rates[count])
            found[count] = ratio(*pair)
    return found


def ratio(rates: list[float], base: list[float]) -> float:
    """The median over rounds."""
    return round(statistics.median(x / y for x, y in zip(rates, base, strict=True)), 2)


def main() -> None:
    """Measure all cases and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--cases", default=CASES, help="environments with the units of their hidden layers")
    parser.add_argument("--steps", type=int, default=800, help="timed steps of all seeds together, per arm and round")
    parser.add_argument("--rounds", type=int, default=10, help="an even number")
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions in each seed's replay")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "lanes.json")
    args = parser.parse_args()
    seed_axis.use_cores(max(args.seeds))
    command = f"python experiments/benchmarks/lanes.py --seeds={','.join(map(str, args.seeds))} --cases={args.cases}"
    command += f" --steps={args.steps} --rounds={args.rounds} --capacity={args.capacity}"
    record: dict[str, Any] = {"command": command, **provenance()}
    for case in args.cases.split(","):
        env, units = case.rsplit(":", 1)
        config = sac.Config(
            hidden_sizes=(int(units), int(units)),
            learning_starts=ours.LEARNING_STARTS,
            replay_capacity=args.capacity,
        )
        rates = measure(make_arms(env, config, args.seeds), args.steps, args.rounds)
        first = str(args.seeds[0])
        record[case] = {
            "steps_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
            "over_the_first": {name: ratio(rates[name], rates[first]) for name in rates},
            "in_turn_over_together": in_turn_over_together(rates),
            "rounds": {name: [round(x, 1) for x in each] for name, each in rates.items()},
            "settings": {"batch_size": config.batch_size, "hidden_sizes": config.hidden_sizes},
        }
        print(case)
        for name, over in record[case]["over_the_first"].items():
            print(f"  {name:12s} {record[case]['steps_per_second'][name]:8.0f} steps/s, {over:.2f} x the first")
        print(f"  in turn over together: {record[case]['in_turn_over_together']}", flush=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
