"""Train an agent: `python experiments/run.py --agent=sac --env=HalfCheetah-v5 --steps=100000 --seeds=4`.

`--agent=X --help` lists every option of a run and every hyper-parameter of the agent with its default.
"""

import math
import pathlib
import sys
from typing import Any

import jax

import agents
from experiments.command_line import Command, parse
from experiments.video import main as film
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, compilation, seeds, train, video


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 2 bad input, 130 interrupted after a checkpoint."""
    try:
        name, settings, config, command = parse(sys.argv[1:] if arguments is None else arguments, __doc__)
        compilation.enable_cache()
        seeds.use_cores(settings.seeds)
        jax.config.update("jax_debug_nans", command.debug_nans)
        if command.video:  # what cannot be filmed is said before hours of training
            video.check(_film(settings, command))
            video.check_drawing(settings.env, settings.atari, settings.action_repeat)
        result = train(agents.load(name), settings, config)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: interrupted; the newest checkpoint, if there is one, is complete", file=sys.stderr)
        return 130
    except FloatingPointError as error:  # --debug-nans
        print(f"run.py: not a number: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if result.interrupted:
        print(f"run.py: interrupted; continue with --resume --run-dir={settings.run_dir}", file=sys.stderr)
        return 130
    print(describe(result.summary, settings.run_dir))
    del result  # its memory: the film is made from the checkpoint
    return film([f"--run-dir={settings.run_dir}", f"--out={_film(settings, command)}"]) if command.video else 0


def _film(settings: Settings, command: Command) -> pathlib.Path:
    return pathlib.Path(settings.run_dir or ".") / f"video.{command.video}"


SOLVED = {"phys2d/Pendulum-v0": -200, "Pendulum-v1": -200}
"""Mean returns that count as solved where Gymnasium registers no threshold (a random policy: about -1200)."""


def describe(summary: dict[str, Any], run_dir: str | None) -> str:
    """The result in a few lines."""
    lines = [f"{summary['agent']} on {summary['env']}, {summary.get('step', 0):,} steps"]
    if summary["final_return"]:
        low, high = summary["iqm_interval_95"]
        seeds, episodes = len(summary["final_return"]), summary["episodes_per_seed"]
        interval = f", 95 % bootstrap interval [{low:.1f}, {high:.1f}]" if low is not None else ""
        iqm = math.nan if summary["iqm"] is None else summary["iqm"]
        lines.append(
            f"  final greedy return: IQM {iqm:.1f}{interval} over {seeds} seed{'s' * (seeds > 1)} "
            f"({episodes} episodes each)"
        )
        if (threshold := _threshold(summary["env"])) is not None:
            verdict = "solved" if iqm >= threshold else "not solved yet"
            lines[-1] += f"\n  {verdict}: the environment counts as solved from {threshold:g} on"
    if summary.get("mixture_iqm") is not None:
        lines.append(f"  of the mixture of all learners: IQM {summary['mixture_iqm']:.1f}")
    if not summary["learned"]:
        lines.append("  nothing was learned: the run ended within the random steps of --config.learning_starts")
    if rate := summary.get("environment_steps_per_second"):
        lines.append(f"  {rate:,.0f} environment steps/s (all seeds), {summary['compile_seconds']:.1f} s compiling")
    if run_dir:
        lines.append(f"  {run_dir}/learning_curve.png, summary.json, evaluations.csv, metrics.csv")
    return "\n".join(lines)


def _threshold(env: str) -> float | None:
    import gymnasium

    registered = gymnasium.registry.get(env)
    return SOLVED.get(env, registered and registered.reward_threshold)


if __name__ == "__main__":
    sys.exit(main())
