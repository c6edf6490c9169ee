"""PPO and PROPS on in-graph CartPole beside public PPO, many seeds at once: aggregate environment steps per second.

    python experiments/benchmarks/on_policy.py --peers-python=peers/bin/python --purejaxrl=CHECKOUT
    python experiments/benchmarks/on_policy.py --quick            (ours alone, seconds)

All of them: 4 environments per seed, 128 steps, 4 epochs of 4 minibatches, 64 x 64 tanh, no evaluations, processes in
turn. Not equal: ours stores every successor, bootstraps at time limits and sums metrics; rejax steps actor and critic
apart. Ours puts a CPU device on each core where cores divide the seeds, as `run.py` does; the peers vmap on one. PROPS
collects with a behaviour policy that it updates every 32 steps (16 epochs of 16 minibatches, or until its KL) on two
batches: it does more, so a twentieth of the steps is timed. Writes experiments/results/on_policy.json; ratios are taken
within a round.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from throughput import RESULTS, interpreter, measure, side_by_side, summary


def main() -> None:
    """Run the comparison for each number of seeds and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="interpreter of an environment with the peers; without it: ours alone")
    parser.add_argument("--purejaxrl", type=pathlib.Path, help="a clone of github.com/luchris429/purejaxrl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[8, 32])
    parser.add_argument("--steps", type=int, default=512 * 200, help="timed steps per seed")
    parser.add_argument("--quick", action="store_true", help="tiny budgets: checks the script, measures nothing")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "on_policy.json")
    args = parser.parse_args()
    peers_python = interpreter(args.peers_python) if args.peers_python else None
    rounds, seeds, steps = (1, [2], 512) if args.quick else (args.rounds, args.seeds, args.steps)
    command = f"python experiments/benchmarks/on_policy.py --rounds={rounds} --steps={steps}"
    command += f" --seeds={','.join(map(str, seeds))}"
    command += " --peers-python=peers/bin/python --purejaxrl=CHECKOUT" if args.peers_python else ""
    record: dict[str, Any] = {"command": command, "steps_per_seed": steps}
    ours = (sys.executable, "ours.py", "on_policy")
    for n in seeds:
        print(f"CartPole, in-graph, {n} seeds")
        commands: dict[str, tuple[str, ...]] = {
            "ours": (*ours, f"--seeds={n}", f"--steps={steps}"),
            "ours, PROPS": (*ours, f"--seeds={n}", f"--steps={max(512, steps // 20)}", "--agent=props", "--repeats=1"),
        }
        if peers_python:
            peer = (peers_python, "peers.py")
            commands["rejax"] = (*peer, "rejax_ppo", f"--steps={steps}", f"--seeds={n}")
            if args.purejaxrl:
                checkout = f"--checkout={args.purejaxrl.resolve()}"
                commands["purejaxrl"] = (*peer, "purejaxrl_ppo", f"--steps={steps}", f"--seeds={n}", checkout)
        rates = side_by_side(commands, rounds, timeout=60)
        behind = {name: each for name, each in rates.items() if name != "ours"}
        record[f"seeds_{n}"] = {
            **summary({name: each for name, each in rates.items() if name != "ours, PROPS"}),
            "props": summary({"ours": behind.pop("ours, PROPS"), **behind}),
        }
    last = measure(sys.executable, "ours.py", "matmul", "--repeats=1")
    record |= {key: last[key] for key in ("versions", "commit", "machine")}
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
