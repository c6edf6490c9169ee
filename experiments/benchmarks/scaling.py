"""How speed scales with the number of seeds on whatever device is here, in-graph and on host environments.

    python experiments/benchmarks/scaling.py --seeds=1,8,64,256

Prints aggregate environment steps (each with an update) per second, seconds of compiling and peak
memory, each measured in a process of its own, and writes them with --out. Sizes that do not fit are reported as such.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    """Measure every number of seeds on both kinds of environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 8, 64, 256])
    parser.add_argument("--envs", type=lambda s: s.split(","), default=["phys2d/Pendulum-v0", "HalfCheetah-v5"])
    parser.add_argument(
        "--steps", type=int, default=2_000, help="timed steps, of all seeds together; at least 200 of each"
    )
    parser.add_argument("--capacity", type=int, default=10_000, help="transitions in each seed's replay")
    parser.add_argument("--agent", default="sac")
    parser.add_argument("--out", type=pathlib.Path, help="write the rows as JSON")
    args = parser.parse_args()
    numbers = ",".join(map(str, args.seeds))
    command = (
        f"python experiments/benchmarks/scaling.py --seeds={numbers} --steps={args.steps} --capacity={args.capacity}"
        f" --agent={args.agent} --envs={','.join(args.envs)}"
    )
    rows = []
    print(f"{'environment':22s} {'seeds':>6s} {'steps/s':>10s} {'compile s':>9s} {'memory MB':>10s}")
    for env in args.envs:
        for seeds in args.seeds:
            rows.append(row := measure(args, env, seeds))
            if "failed" in row:
                print(f"{env:22s} {seeds:6d}  failed: {row['failed']}")
            else:
                print(
                    f"{env:22s} {seeds:6d} {row['steps_per_second']:10.0f} {row['compile_seconds']:9.1f} "
                    f"{row['peak_memory_mb']:10.0f}",
                    flush=True,
                )
            if args.out:  # after each, for a run that is stopped
                args.out.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n")


def measure(args: argparse.Namespace, env: str, seeds: int) -> dict:
    """One row, from a process of its own."""
    steps = max(200, args.steps // seeds)  # less is over too soon to be timed
    command = [sys.executable, str(HERE / "ours.py"), "train", f"--agent={args.agent}", f"--env={env}"]
    command += [f"--seeds={seeds}", f"--steps={steps}", f"--capacity={args.capacity}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"env": env, "seeds": seeds, "failed": (done.stderr.strip().splitlines() or ["?"])[-1][:120]}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
