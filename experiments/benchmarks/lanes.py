"""Seeds at once on a CPU: aggregate steps per second, all numbers of seeds in turn within one process.

    python experiments/benchmarks/lanes.py --seeds=1,2,4,8

SAC at its defaults, each step with an update, on as many CPU devices as there are cores. In-graph, where a device has
several lanes, they are timed both ways: one after the other, which is what a run does (`in_graph.IN_TURN_BYTES`), and
together under vmap. Ratios are taken within a round, since machines drift. Writes experiments/results/lanes.json.
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

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
NEVER = (sys.maxsize, sys.maxsize)


def measure(env: str, seeds: list[int], steps: int, rounds: int, capacity: int) -> dict[str, list[float]]:
    """Steps per second of each arm, one value a round: a number of seeds, and of lanes together."""
    config = sac.Config(learning_starts=ours.LEARNING_STARTS, replay_capacity=capacity)
    arms: dict[str, Any] = {}
    usual = in_graph.IN_TURN_BYTES
    for count in seeds:
        arms[str(count)] = [count, *ours.warmed_up("sac", env, config, count)]
        loop = arms[str(count)][1]
        if isinstance(loop, in_graph.Loop) and loop.lanes.padded > loop.lanes.mesh.size:
            in_graph.IN_TURN_BYTES = NEVER
            arms[f"{count}, together"] = [count, *ours.warmed_up("sac", env, config, count)]
            in_graph.IN_TURN_BYTES = usual
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            count, loop, carry = arm
            before = time.perf_counter()
            arm[2] = loop.advance(carry, max(1, steps // count), bool)
            rates[name].append(max(1, steps // count) * count / (time.perf_counter() - before))
    return rates


def main() -> None:
    """Measure both kinds of environment and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--envs", type=lambda s: s.split(","), default=["phys2d/Pendulum-v0", "HalfCheetah-v5"])
    parser.add_argument("--steps", type=int, default=800, help="timed steps of all seeds together, per arm and round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions in each seed's replay")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "lanes.json")
    args = parser.parse_args()
    seed_axis.use_cores(max(args.seeds))
    command = f"python experiments/benchmarks/lanes.py --seeds={','.join(map(str, args.seeds))} --steps={args.steps}"
    command += f" --rounds={args.rounds} --capacity={args.capacity} --envs={','.join(args.envs)}"
    record: dict[str, Any] = {"command": command}
    for env in args.envs:
        rates = measure(env, args.seeds, args.steps, args.rounds, args.capacity)
        first = rates[str(args.seeds[0])]
        record[env] = {
            "steps_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
            "over_the_first": {
                name: round(statistics.median(x / y for x, y in zip(each, first, strict=True)), 2)
                for name, each in rates.items()
            },
            "rounds": {name: [round(x, 1) for x in each] for name, each in rates.items()},
        }
        print(env)
        for name, ratio in record[env]["over_the_first"].items():
            print(f"  {name:12s} {record[env]['steps_per_second'][name]:8.0f} steps/s, {ratio:.2f} x the first")
    args.out.write_text(json.dumps({**record, **provenance()}, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
