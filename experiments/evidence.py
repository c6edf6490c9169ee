"""Learning runs that the README quotes: `python experiments/evidence.py sac_half_cheetah` trains and writes the record.

Each record in experiments/results/ holds the bar that was set before the run, every seed's return, the curve, settings,
versions, commit and machine, and its picture lies beside it. A run that was cut short goes on from its checkpoint.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np

import agents
from experiments.command_line import parse_one_line
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, compilation, read_finished, seeds, train, unless_interrupted

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One run and the bar that its final greedy return is held against."""

    agent: str
    settings: Settings
    bar: float
    statistic: str  # of the final return over seeds: "mean" or "iqm"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: str | None = None


PENDULUM = Settings(env="phys2d/Pendulum-v0", steps=10_000, seeds=5, eval_every=500, eval_episodes=100)
CHEETAH = Settings(env="HalfCheetah-v5", steps=100_000, seeds=3, eval_every=10_000, value_bias=True)
HOPPER = Settings(
    env="Hopper-v5",
    steps=500_000,
    seeds=3,
    eval_every=25_000,
    normalize_observations=True,
    normalize_rewards=True,
)
CARTPOLE = Settings(env="phys2d/CartPole-v1", steps=150_000, seeds=5, num_envs=8, eval_every=7_680, eval_episodes=20)
BREAKOUT = Settings(
    env="minatar/Breakout-v0",
    steps=1_000_000,
    seeds=10,
    seed=100,
    num_envs=64,
    eval_every=102_400,
    eval_episodes=30,
    checkpoint_every=1_000_000,  # the replay of ten seeds is a gigabyte
)
RUNS = {
    "dqn_cartpole": Evidence(
        "dqn",
        # Chosen on seeds 0 to 4: the preset at 50 000 steps; its discount (0.99, 0.995, 0.998) at 75 000, after seeds
        # 100 to 109 had ended at 462 with 0.99.
        Settings(
            env="phys2d/CartPole-v1", steps=75_000, seeds=10, seed=200, num_envs=8, eval_every=3_840, eval_episodes=20
        ),
        475,
        "iqm",
        preset="classic",
    ),
    "dqn_breakout": Evidence("dqn", BREAKOUT, 5, "mean", preset="minatar"),
    "sac_pendulum": Evidence("sac", PENDULUM, -200, "iqm"),
    "sac_pendulum_256_seeds": Evidence(
        "sac", dataclasses.replace(PENDULUM, seeds=256, seed=1_000, checkpoint_every=10_000), -200, "iqm"
    ),
    "sac_half_cheetah": Evidence("sac", CHEETAH, 4_000, "mean"),
    "sac_cartpole_swingup": Evidence(
        "sac", Settings(env="dm_control/cartpole-swingup-v0", steps=100_000, seeds=2, eval_every=10_000), 750, "mean"
    ),
    "sac_inverted_pendulum": Evidence(
        "sac", Settings(env="InvertedPendulum-v5", steps=20_000, seeds=3, eval_every=2_000), 1_000, "mean"
    ),
    "sac_discrete_cartpole": Evidence(
        "sac_discrete",
        Settings(env="phys2d/CartPole-v1", steps=20_000, seeds=5, eval_every=1_000, eval_episodes=20),
        475,
        "iqm",
        # Chosen on seeds 20 to 22 and 16 000 steps.
        {"learning_rate": 1e-3, "discount": 0.995, "tau": 0.05, "target_entropy_scale": 0.5}
        | {"hidden_sizes": (64, 64), "batch_size": 128},
    ),
    # Which setting separates the default's 5 000 from public curves of about 6 000? Seeds 0 and 1: the target entropy
    # of some JAX codebases, -dim A / 2. Seeds 2 and 3: the learning rate of Spinning Up, 1e-3.
    "sac_half_cheetah_settings": Evidence(
        "sac",
        Settings(env="HalfCheetah-v5", steps=100_000, seeds=4, eval_every=10_000),
        5_700,
        "mean",
        {
            "target_entropy_scale": np.array([0.5, 0.5, 1.0, 1.0], np.float32),
            "learning_rate": np.array([3e-4, 3e-4, 1e-3, 1e-3], np.float32),
        },
    ),
    "dsac_t_pendulum": Evidence("dsac_t", PENDULUM, -200, "iqm", preset="quick"),
    "dsac_t_half_cheetah": Evidence("dsac_t", CHEETAH, 3_000, "mean"),
    "ppo_cartpole": Evidence("ppo", CARTPOLE, 475, "iqm", preset="classic"),
    "ppo_hopper": Evidence("ppo", HOPPER, 1_800, "mean"),
    "mdpo_half_cheetah": Evidence(
        "mdpo",
        CHEETAH,
        3_000,
        "mean",
        {"inverse_step_size": 0.3},  # the paper's value for this task
    ),
    "mdpo_on_policy_cartpole": Evidence("mdpo_on_policy", CARTPOLE, 475, "iqm", preset="classic"),
    "mdpo_on_policy_hopper": Evidence("mdpo_on_policy", HOPPER, 1_800, "mean"),
    "pmoe_pendulum": Evidence("pmoe", PENDULUM, -200, "iqm"),
    "pmoe_half_cheetah": Evidence("pmoe", CHEETAH, 3_500, "mean"),
}


def record(name: str, run_dir: pathlib.Path, progress: bool = True) -> dict[str, Any]:
    """Run (or finish) one of `RUNS` and return its record."""
    run = RUNS[name]
    seeds.use_cores(run.settings.seeds)
    agent = agents.load(run.agent)
    settings = dataclasses.replace(run.settings, run_dir=str(run_dir), resume=True, progress=progress)
    base = agent.PRESETS[run.preset] if run.preset else agent.Config()
    config = dataclasses.replace(base, **run.config)
    result = read_finished(agent, settings, config) or unless_interrupted(train(agent, settings, config))
    value, steps, table = result.summary[run.statistic], np.unique(result.table["step"]), result.table
    started = json.loads((run_dir / "config.json").read_text())

    def by_seed(column):
        return {
            str(s): [round(float(x), 2) for x in table[column][table["seed"] == s]] for s in np.unique(table["seed"])
        }

    return {
        "command": f"python experiments/evidence.py {name}",
        "bar": f"{run.statistic} over seeds of the final greedy return >= {run.bar:g}",
        "value": value,
        "met": value is not None and value >= run.bar,
        **result.summary,
        "curve": {
            "step": steps.tolist(),
            **{name: by_seed(name) for name in ("return", "value_bias", "value") if name in table},
        },
        "commits": started["commits"],
        **{key: started[key] for key in ("settings", "resolved_config")},
    }


def write_index() -> None:
    """The table of all records, in experiments/results/README.md."""
    lines = ["| run | final greedy return | bar | | seeds × steps | figure |", "|---|---|---|---|---|---|"]
    for name in sorted(RUNS):
        if (path := RESULTS / f"{name}.json").exists():
            document = json.loads(path.read_text())
            finals = list(document["final_return"].values())
            returns = ", ".join(f"{x:.0f}" for x in finals)
            if len(finals) > 10:
                returns = f"{min(finals):.0f} to {max(finals):.0f}"
            verdict = "met" if document["met"] else "**not met**"
            lines.append(
                f"| [`{name}`]({name}.json) on {document['env']} | {document['value']:.1f} (seeds: {returns}) "
                f"| {document['bar']} | {verdict} | {len(document['final_return'])} × {document['step']:,} "
                f"| [curve]({name}.png) |"
            )
    page = (RESULTS / "README.md").read_text().split(_MARK)
    (RESULTS / "README.md").write_text(_MARK.join([page[0], "\n" + "\n".join(lines) + "\n", page[2]]))


_MARK = "<!-- written by evidence.py -->"


def main() -> int:
    """Run what is named and write its record and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(RUNS))
    parser.add_argument("--run-dir", type=pathlib.Path, help="default: runs/evidence-<name>")
    compilation.enable_cache()
    try:
        args = parse_one_line(parser)
        for name in args.names:
            run_dir = args.run_dir or pathlib.Path("runs") / f"evidence-{name}"
            document = record(name, run_dir)
            (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
            shutil.copy(run_dir / "learning_curve.png", RESULTS / f"{name}.png")
            write_index()
            verdict = "met" if document["met"] else "NOT met"
            print(f"{name}: {document['value']} ({document['bar']}: {verdict})")
    except UserError as error:
        print(f"evidence.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
