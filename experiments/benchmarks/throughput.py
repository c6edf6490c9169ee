"""Speed beside public peers, in one run: every figure is a process of its own, ours and the peers' in turn.

    python experiments/benchmarks/throughput.py --peers-python=peers/bin/python     (peers.py says how to install them)
    python experiments/benchmarks/throughput.py --quick                             (ours alone, seconds)

Writes experiments/results/throughput.json: medians over the rounds, all rounds, versions and settings. Ratios are
taken within a round, since machines drift. Beside the peers stand our own updates alone, without environment or ring.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


def measure(python: str, script: str, *arguments: str, timeout: float = 600) -> dict[str, Any]:
    """Run one measurement in its own process and directory; returns the JSON of its last line.

    One that hangs is started again, twice: XLA's CPU backend does so now and then where a peer draws orthogonal weights
    for several seeds at once (`offpolicy_jax.networks.initializer` has the reason).
    """
    command = [python, str(HERE / script), *arguments]
    for attempts_left in (2, 1, 0):
        with tempfile.TemporaryDirectory() as scratch:  # MuJoCo writes logs where it is started
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=scratch)
                break
            except subprocess.TimeoutExpired:
                print(f"  {' '.join(arguments)}: nothing after {timeout:.0f} s", flush=True)
                if not attempts_left:
                    raise
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def interpreter(python: str) -> str:
    """Where an interpreter is, for `measure`, which works elsewhere. Raises SystemExit if it is not there."""
    if (found := shutil.which(python)) is None:
        raise SystemExit(f"{python} is not there: peers.py says how to install the peers")
    return os.path.abspath(found)  # not resolved: a virtual environment's is a link


def side_by_side(commands: dict[str, tuple[str, ...]], rounds: int, timeout: float = 600) -> dict[str, list[float]]:
    """Steps per second of each command, one value a round, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            rates[name].append(measure(*command, timeout=timeout)["steps_per_second"])
            print(f"  {name:24s} {rates[name][-1]:8.0f} steps/s", flush=True)
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median over rounds of ours / peer."""
    ours = rates["ours"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(ours, each, strict=True))
        for name, each in rates.items()
        if name != "ours"
    }
    return {
        "steps_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "ours_over_peer": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "rounds": {name: [round(x, 1) for x in each] for name, each in rates.items()},
    }


def compile_seconds() -> dict[str, float]:
    """Compile seconds of `run.py --agent=sac` on the default environment, with an empty and with a filled cache."""
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("cold", "warm"):
            command = [sys.executable, str(HERE.parent / "run.py"), "--agent=sac", "--steps=2100", "--no-progress"]
            environment = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache"}
            subprocess.run(
                [*command, f"--run-dir={scratch}/{kind}"],
                check=True,
                capture_output=True,
                env={**os.environ, **environment},
            )
            seconds[kind] = json.loads(pathlib.Path(f"{scratch}/{kind}/summary.json").read_text())["compile_seconds"]
    return seconds


def main() -> None:
    """Run all comparisons and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="interpreter of an environment with the peers; without it: ours alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3_000, help="timed steps per process")
    parser.add_argument("--quick", action="store_true", help="tiny budgets: checks the script, measures nothing")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "throughput.json")
    args = parser.parse_args()
    rounds, steps = (1, 20) if args.quick else (args.rounds, args.steps)
    ours, n = (sys.executable, "ours.py"), f"--steps={steps}"
    peers = (interpreter(args.peers_python), "peers.py") if args.peers_python else None
    command = f"python experiments/benchmarks/throughput.py --rounds={rounds} --steps={steps}"
    command += " --peers-python=peers/bin/python" if peers else ""  # wherever theirs is
    record: dict[str, Any] = {"command": command, "steps_per_process": steps}

    record["matmul_gflops"] = round(measure(*ours, "matmul")["gflops_per_second"], 1)
    print(f"matmul peak {record['matmul_gflops']} GFLOP/s\nHalfCheetah-v5, host, one seed")
    commands: dict[str, tuple[str, ...]] = {"ours": (*ours, "train", n)}
    if peers:
        commands |= {"sbx": (*peers, "sbx_sac", n), "stable_baselines3": (*peers, "sb3_sac", n)}
    record["half_cheetah"] = summary(side_by_side(commands, rounds))
    gflops = _update_gflops()
    achieved = gflops * record["half_cheetah"]["steps_per_second"]["ours"]
    record["half_cheetah"]["update_gflops"] = round(gflops, 4)
    record["half_cheetah"]["fraction_of_matmul_peak"] = round(achieved / record["matmul_gflops"], 3)
    print(f"  {record['half_cheetah']['fraction_of_matmul_peak']:.0%} of the matmul peak")

    print("Pendulum, in-graph, one seed")
    record["pendulum"] = {}
    for capacity in (10_000, 131_072, 1_000_000):  # rejax's default is the second, SAC's the third
        commands = {"ours": (*ours, "train", "--env=phys2d/Pendulum-v0", n, f"--capacity={capacity}")}
        if peers:
            commands["rejax"] = (*peers, "rejax_sac", n, f"--buffer-size={capacity}")
        if capacity == 10_000:
            commands["updates_alone"] = (*ours, "update", "--env=phys2d/Pendulum-v0", n)
        record["pendulum"][f"capacity_{capacity}"] = summary(side_by_side(commands, rounds))

    print("replay: add one, sample 256")
    record["replay"] = {"ours": measure(*ours, "replay", *(["--steps=20", "--loop-steps=20"] if args.quick else []))}
    if peers:
        record["replay"]["flashbax"] = measure(*peers, "flashbax_item")
    for name, each in record["replay"].items():
        for row in each["results"]:
            print(f"  {name:10s} {row['mode']:6s} capacity {row['capacity']:>9,} {row['ms_per_step']:.4f} ms")

    if not args.quick:
        record["compile_seconds"] = compile_seconds()
        print("compile seconds", record["compile_seconds"])
    last = measure(*ours, "matmul", "--repeats=1")
    record |= {key: last[key] for key in ("versions", "commit", "machine")}
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {args.out}")


def _update_gflops() -> float:
    sys.path.insert(0, str(HERE))
    from ours import sac_update_gflops

    return sac_update_gflops(17, 6)


if __name__ == "__main__":
    main()
