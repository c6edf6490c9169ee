"""The whole pipeline of proto-value networks on an Atari game, at a width that two CPU cores can train.

    python experiments/benchmarks/atari.py --run-dir=runs/atari

Pre-training from random play without rewards, then double DQN on the frozen features, in one run that a second call
continues. Reports speed, what a transition takes in the replay, the losses, and the features on transitions of the
replay: ranks, dormant units, and what a linear head on them returns beside random play. Writes
experiments/results/atari.json; --quick runs a few steps and prints the record alone.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents import dqn, proto_value
from offpolicy_jax import diagnostics, replay
from offpolicy_jax.environments.atari import Conventions
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, compilation, restore, train, unless_interrupted
from offpolicy_jax.training.settings import make_environment
from offpolicy_jax.training.summary import as_json

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
SETTINGS = Settings(
    env="ALE/Pong-v5",
    steps=60_000,
    seeds=1,
    eval_every=20_000,
    eval_episodes=3,
    clip_rewards=True,
    checkpoint_every=20_000,
)
CONFIG = proto_value.Config(
    num_tasks=20,
    learning_starts=2_000,
    threshold_steps=4_000,
    pretrain_steps=30_000,
    batch_size=32,
    rollout_length=4,
    replay_capacity=60_000,
    dqn=dqn.Config(
        n_step=5,
        batch_size=32,
        torso="nature",
        hidden_sizes=(256,),
        activation="gelu",
        huber_delta=1.0,
        target_period=2_000,
        learning_starts=0,
        epsilon_decay_steps=5_000,
    ),
)
QUICK = {"steps": 120, "eval_every": 60, "eval_episodes": 1, "atari": Conventions(max_frames=80, screen_size=20)}
QUICK_CONFIG = {"learning_starts": 20, "threshold_steps": 20, "pretrain_steps": 60, "batch_size": 4}


def measure(
    settings: Settings, config: proto_value.Config, rows: int = 2_048, random_episodes: int = 32
) -> dict[str, Any]:
    """Train, or finish, the run in `settings.run_dir`; the record without its command."""
    result = unless_interrupted(train(proto_value, settings, config))
    learner, filled = restore(proto_value, settings, config)
    one = lambda axis, x: jax.tree.map(lambda y: jnp.asarray(y if axis is None else y[0]), x)  # noqa: E731
    ring = jax.tree.map(one, replay.SEED_AXES, learner.replay, is_leaf=lambda x: x is None)
    state = jax.tree.map(lambda x: x[0], learner.agent)
    batch = replay.sample(ring, jax.random.key(0), rows)
    phi = jnp.concatenate([proto_value.features(filled, state, x) for x in np.array_split(batch.observation, 16)])
    srank, entropy_rank = diagnostics.effective_rank(phi)
    with open(pathlib.Path(settings.run_dir or "") / "metrics.csv") as file:
        metrics = list(csv.DictReader(file))
    stored = sum(x.nbytes for x in jax.tree.leaves((ring.storage, ring.frames)))
    rate = result.summary.get("environment_steps_per_second", 0.0)

    def curve(name: str, phase: list[dict[str, str]]) -> list[float]:
        return [float(f"{float(row[name]):.4g}") for row in phase]

    first = [row for row in metrics if int(row["step"]) <= filled.pretrain_steps and row["tasks/loss"]]  # after warm-up
    second = [row for row in metrics if int(row["step"]) > filled.pretrain_steps]

    return {
        **result.summary,
        "frames_per_second": rate * settings.atari.frame_skip,
        "replay_bytes_per_transition": round(stored / ring.capacity, 1),
        "bytes_of_a_frame": settings.atari.screen_size**2,
        "features": phi.shape[1],
        "effective_rank": int(srank),
        "entropy_rank": round(float(entropy_rank), 1),
        "dormant_units": round(float(diagnostics.dormant_units(phi)), 4),
        "linear_probe_return": float(result.table["return"][-1]),
        "random_return": random_return(settings, random_episodes),
        "random_episodes": random_episodes,
        "pre_training": {name: curve(name, first) for name in ("step", "tasks/loss", "tasks/activation")},
        "control": {name: curve(name, second) for name in ("step", "critic/loss", "critic/q_mean")},
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("run_dir", "resume")},
        "config": as_json(config),
    }


def random_return(settings: Settings, episodes: int) -> float:
    """Mean return of uniformly random actions."""
    host = make_environment(settings, episodes)
    rng, returns, alive = np.random.default_rng(0), np.zeros(host.num_envs), np.ones(host.num_envs, bool)
    host.reset(np.arange(host.num_envs))
    while alive.any():
        step = host.step(rng.integers(0, host.spec.num_actions, host.num_envs))
        returns, alive = returns + alive * step.reward, alive & ~(step.terminated | step.truncated)
    host.close()
    return float(np.mean(returns))


def main() -> int:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default=SETTINGS.env)
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="half of them pre-train")
    parser.add_argument("--run-dir", default="runs/benchmark-atari")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    compilation.enable_cache()
    settings = dataclasses.replace(SETTINGS, env=args.env, steps=args.steps, run_dir=args.run_dir, resume=True)
    config = dataclasses.replace(CONFIG, pretrain_steps=args.steps // 2)
    if args.quick:
        settings = dataclasses.replace(settings, **QUICK, progress=False)
        config = dataclasses.replace(CONFIG, **QUICK_CONFIG)
    try:
        record = measure(settings, config, *(64, 1) if args.quick else ())
    except UserError as error:
        print(f"atari.py: {error}", file=sys.stderr)
        return 2
    command = f"python experiments/benchmarks/atari.py --env={args.env} --steps={settings.steps}"
    text = json.dumps({"command": command, **record}, indent=1, default=np.ndarray.tolist) + "\n"
    if not args.quick:
        (RESULTS / "atari.json").write_text(text)
    print(text if args.quick else f"{RESULTS / 'atari.json'}: {record['linear_probe_return']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
