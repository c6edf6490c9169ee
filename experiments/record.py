"""Record demonstrations: `python experiments/record.py --run-dir=runs/expert --episodes=10 --dataset=demos/walk-v0`.

Rolls out the policy of one seed from the newest checkpoint of a run (of a mixture: its newest member), from starts that
neither training nor evaluation has seen, and writes a Minari dataset: to a directory if its name has a /, else by its
id among Minari's own. Any agent that imitates takes it by `--demos`.
"""

import argparse
import sys

import numpy as np

from experiments.command_line import parse_one_line
from experiments.open_run import open_run
from offpolicy_jax import demonstrations, environments
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import rollouts
from offpolicy_jax.training.run_directory import provenance


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", required=True, help="of the trained run")
    parser.add_argument("--dataset", required=True, help="id or directory of the dataset to write, ending in -v0 or so")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, help="whose policy; default: the first of the run")
    parser.add_argument("--sampled", action="store_true", help="act by sampled actions, rather than greedy ones")
    try:
        args = parse_one_line(parser, arguments)
        print(record(args))
    except UserError as error:
        print(f"record.py: {error}", file=sys.stderr)
        return 2
    return 0


def record(args: argparse.Namespace) -> str:
    """Write the dataset; returns what to say of it."""
    if args.episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {args.episodes}")
    demonstrations.check_target(args.dataset)
    run = open_run(args.run_dir, "first" if args.seed is None else args.seed)
    environment = environments.make(run.settings.env, args.episodes, run.settings.atari, run.settings.action_repeat)
    if not hasattr(environment, "action_space"):
        raise UserError(f"{run.settings.env} has no Gymnasium spaces to describe a dataset by")
    options = args.episodes, args.sampled, run.settings.absorbing_states
    episodes = rollouts(run.agent, environment, run.config, run.learner, run.index, *options)
    returns = [float(np.sum(e.rewards)) for e in episodes]
    repeat = run.settings.action_repeat
    demonstrations.save(
        args.dataset,
        environment,
        episodes,
        algorithm_name=run.name,
        description=f"{'sampled' if args.sampled else 'greedy'} actions on {run.settings.env}, "
        + f"each held for {repeat} steps, " * (repeat > 1)
        + f"step {run.step}, "
        f"seed {run.seed}; mean return {np.mean(returns):.1f}; offpolicy_jax {provenance()['commit']}",
    )
    steps = sum(len(e.rewards) for e in episodes)
    return (
        f"{args.dataset}: {len(episodes)} episodes, {steps:,} steps, returns {np.mean(returns):.1f} +- "
        f"{np.std(returns):.1f} (from {min(returns):.1f} to {max(returns):.1f})"
    )


if __name__ == "__main__":
    sys.exit(main())
