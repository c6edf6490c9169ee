"""One program against one run after another: the same seeds and hyper-parameters by sweep.py and by run.py.

    python experiments/benchmarks/sweep.py --out=experiments/results/sweep.json

32 points (eight learning rates of four seeds) on in-graph Pendulum with 64x64 networks, on the same cores: wall-clock
times of whole commands, from an empty compilation cache each, as a user waits for them. The single runs share their
cache, so that only the first one compiles. `--singles=4` times four of the 32 and extrapolates: the first costs its
own, all others the mean of the rest. What was extrapolated says so.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from offpolicy_jax.training.run_directory import provenance

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1]
RATES = ("1e-4", "2e-4", "3e-4", "5e-4", "1e-3", "2e-3", "3e-3", "5e-3")


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="sac")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rates", type=int, default=8, help="how many learning rates")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each")
    parser.add_argument("--singles", type=int, default=0, help="single runs to time; 0: all of them")
    parser.add_argument("--out", type=pathlib.Path, help="write the record as JSON")
    args = parser.parse_args()
    shared = [f"--steps={args.steps}", "--config.hidden-sizes", "64", "64", "--no-progress"]
    rates, points = RATES[: args.rates], min(args.rates, len(RATES)) * args.seeds
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        options = [f"--agents={args.agent}", f"--seeds={args.seeds}", f"--grid=learning_rate={','.join(rates)}"]
        sweep = timed("sweep.py", [*options, *shared, f"--run-dir={root}/sweep"], root / "cache-sweep")
        print(f"one program of {points} points: {sweep:.1f} s", flush=True)
        singles = []
        wanted = [(rate, seed) for rate in rates for seed in range(args.seeds)][: args.singles or points]
        for rate, seed in wanted:
            options = [f"--agent={args.agent}", "--seeds=1", f"--seed={seed}", f"--config.learning-rate={rate}"]
            path = f"--run-dir={root}/{rate}-{seed}"
            singles.append(timed("run.py", [*options, *shared, path], root / "cache-run"))
            print(f"single run {len(singles)} of {len(wanted)}: {singles[-1]:.1f} s", flush=True)
    total = sum(singles)
    if len(singles) < points:
        later = singles[1:] or singles
        total += (points - len(singles)) * sum(later) / len(later)
    record = {
        "points": points,
        "sweep_seconds": sweep,
        "single_seconds": singles,
        "all_singles_seconds": total,
        "all_singles_extrapolated_from": len(singles) if len(singles) < points else None,
        "speedup": total / sweep,
        "command": " ".join(["python", "experiments/benchmarks/sweep.py", *sys.argv[1:]]),
        **provenance(),
    }
    how = f" (extrapolated from {len(singles)})" if len(singles) < points else ""
    print(f"{points} single runs: {total:.1f} s{how}; the sweep is {record['speedup']:.2f} times as fast")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def timed(script: str, arguments: list[str], cache: pathlib.Path) -> float:
    """Seconds that a command takes, with a compilation cache of its own."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    before = time.perf_counter()
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
