"""Film a trained policy: `python experiments/video.py --run-dir=runs/cheetah --out=cheetah.mp4 --episodes=2`.

Greedy actions of one seed, from the newest checkpoint of a run, with its observation normaliser; episodes start from
--start, --start + 1, ..., which neither training nor evaluation has seen. No display is needed: MuJoCo draws with EGL
or OSMesa, whichever works. A .gif needs nothing else; an .mp4, and Gymnasium's own drawings of classic control and
toy text (phys2d/ and tabular/ too), need `pip install 'offpolicy-jax[video]'`.
"""

import argparse
import pathlib
import sys

from experiments.command_line import parse_one_line
from experiments.open_run import Seed, open_run, seed_or_best
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import greedy
from offpolicy_jax.training.video import check, check_drawing, film

START = 2**29
"""Far from the seeds of training and evaluation."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", required=True, help="of the trained run")
    parser.add_argument("--out", type=pathlib.Path, help="file to write, .gif or .mp4; default: RUN_DIR/video.gif")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--max-steps", type=int, help="cut each episode after so many steps")
    parser.add_argument("--seed", type=seed_or_best, default="best", metavar="SEED|best", help="whose policy")
    parser.add_argument("--start", type=int, default=START, help="seed of the first episode")
    parser.add_argument("--pixels", type=int, default=320, help="length of a picture's longer side")
    try:
        args = parse_one_line(parser, arguments)
        for name in ("episodes", "max_steps"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 <= args.start < 2**31:
            raise UserError(f"--start must be from 0 to 2147483647, not {args.start}")
        out = args.out or pathlib.Path(args.run_dir) / "video.gif"
        print(video(args.run_dir, out, args.seed, args.episodes, args.max_steps, args.start, args.pixels))
    except UserError as error:
        print(f"video.py: {error}", file=sys.stderr)
        return 2
    return 0


def video(
    run_dir: str,
    out: pathlib.Path,
    seed: Seed = "best",
    episodes: int = 1,
    max_steps: int | None = None,
    start: int = START,
    pixels: int = 320,
) -> str:
    """Write the film; returns what to say of it."""
    check(out, pixels)
    run = open_run(run_dir, seed)
    check_drawing(run.settings.env, run.settings.atari, run.settings.action_repeat)
    policy = greedy(run.agent, run.config, run.learner, run.index, run.settings.absorbing_states)
    options = {"episodes": episodes, "seed": start, "max_steps": max_steps, "pixels": pixels}
    options |= {"atari": run.settings.atari, "action_repeat": run.settings.action_repeat}
    returns = film(out, policy, run.settings.env, **options)
    which = f"episode{'s' * (episodes > 1)} from seed {start}" + f" to {start + episodes - 1}" * (episodes > 1)
    listed = ", ".join(f"{value:.1f}" for value in returns)
    cut = f", cut after {max_steps} steps" if max_steps else ""
    return f"{out}: greedy policy of seed {run.seed} at step {run.step:,}, {which}{cut}; return {listed}"


if __name__ == "__main__":
    sys.exit(main())
