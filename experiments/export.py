"""Export a trained policy: `python experiments/export.py --run-dir=runs/cheetah --out=policy.bin`.

Writes the greedy policy of one seed, from the newest checkpoint of a run, as one file: parameters and observation
normaliser inside, a header beside. Who uses it needs neither the agents of this package nor its environments:

    from offpolicy_jax.export import load

    policy = load("policy.bin")     # policy.header says what it is, and for how many steps to hold an action
    action = policy(observation)    # as Gymnasium's or dm_control's environment gives and takes them

Actions are in the environment's own bounds, not in [-1, 1]. Needs `pip install 'offpolicy-jax[export]'`.
"""

import argparse
import pathlib
import sys

from experiments.command_line import parse_one_line
from experiments.open_run import Seed, open_run, seed_or_best
from offpolicy_jax import environments, export
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import greedy
from offpolicy_jax.training.run_directory import provenance


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", required=True, help="of the trained run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="file to write")
    parser.add_argument("--seed", type=seed_or_best, default="best", metavar="SEED|best", help="whose policy")
    try:
        args = parse_one_line(parser, arguments)
        print(export_policy(args.run_dir, args.out, args.seed))
    except UserError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


def export_policy(run_dir: str, out: pathlib.Path, seed: Seed = "best") -> str:
    """Write the file; returns what to say of it."""
    run = open_run(run_dir, seed)
    environment = environments.make(run.settings.env, 1, run.settings.atari, run.settings.action_repeat)
    space = getattr(environment, "action_space", None)
    if space is None:
        raise UserError(f"{run.settings.env} has no Gymnasium space that says what its actions are")
    header = {
        "agent": run.name,
        "seed": run.seed,
        "step": run.step,
        "return": run.greedy_return,
        **provenance(),
    }
    policy = greedy(run.agent, run.config, run.learner, run.index, run.settings.absorbing_states)
    header = export.save(out, policy, environment.spec, space, header)
    value = "no evaluation" if run.greedy_return is None else f"greedy return {run.greedy_return:.1f}"
    return (
        f"{out}: {run.name} on {run.settings.env}, seed {run.seed} at step {run.step:,} ({value}); "
        f"actions in {header['action']['space']}, for {', '.join(header['platforms'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
