"""Proto-value networks: are their frozen features better for control than those of the baselines?

Claim (Farebrother et al. 2023, arXiv 2304.12567): after pre-training without rewards, a linear function of frozen
proto-value features controls better than one of random features, and than one of features pre-trained otherwise.

Second version. In the first (proto_value_control.json) the units of the pre-trained networks died: the features of its
proto-value arm had rank 0 for all seeds, those of `cumulant` next to none.

Fixed before running. gridworld/FourRoomsPixels-v0 (reward 1 in the goal's cell, 200 steps at most, gamma 0.99). First
phase, 32 000 steps: uniformly random moves are collected and a network (16 filters, one hidden layer of d = 128 units,
the features) learns from them, without rewards; the dataset is thus the agent's own random phase, since the target is
that of the uniformly random policy whoever collects. Second phase, 32 000 steps: double DQN, n-step 5, epsilon 0.05,
with a linear head on the frozen features, from the replay of both phases. Arms: proto-value (100 random-network
indicators, rate 0.02), cumulant (the same networks' outputs, not thresholded), behaviour (cloning), random (features as
drawn), all with the same settings; and DQN end to end with the same network, the same 64 000 steps, and its gradient
steps in both phases (epsilon falls from 1 during the first). Adam's step size is 3e-5 for the pre-trained networks
(from 1e-4 on most of their units died, in runs whose first steps after the thresholds were several times longer), 3e-4
for DQN end to end and 1e-3 for the linear heads.
Metric: share of greedy episodes (of 50) that reach the goal, mean over the ten evaluations of the second phase. 10
seeds, from 100 on. Confirmed if proto-value minus random is above zero; the other differences are reported and do not
decide. Rates and sizes were chosen on seed 0, at 12 800 steps per phase.

    python experiments/claims/proto_value_control.py      (about four hours on two cores, estimated)
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from common import Arm, Claim, draw_returns, effect, main, run

from agents import dqn, proto_value
from offpolicy_jax import diagnostics
from offpolicy_jax.environments import four_rooms
from offpolicy_jax.training import Settings

ENVIRONMENT, PHASE, FIRST_SEED = "gridworld/FourRoomsPixels-v0", 32_000, 100
CONTROL = dqn.Config(
    learning_rate=1e-3,
    n_step=5,
    hidden_sizes=(128,),
    batch_size=128,
    replay_capacity=2 * PHASE,
    epsilon_decay_steps=1,
    target_period=640,
    learning_starts=0,
    rollout_length=4,
    gradient_steps=16,
)
PRETRAINING = {
    "pretrain_steps": PHASE,
    "threshold_steps": 4_096,
    "threshold_learning_rate": 1e-2,
    "freeze_thresholds": True,
    "learning_rate": 3e-5,
    "discount": 0.9,
    "tau": 0.05,
    "activation_rate": 0.02,
    "tasks_per_network": 25,
    "replay_capacity": 2 * PHASE,
    "rollout_length": 4,
    "gradient_steps": 16,
    "dqn": CONTROL,
}
ARMS = {
    "proto-value": Arm("proto_value", PRETRAINING),
    "random": Arm("proto_value", PRETRAINING | {"tasks": "none"}),
    "cumulant": Arm("proto_value", PRETRAINING | {"tasks": "cumulant"}),
    "behaviour": Arm("proto_value", PRETRAINING | {"tasks": "behaviour"}),
    "DQN": Arm("dqn", vars(CONTROL) | {"learning_rate": 3e-4, "learning_starts": 1_024, "epsilon_decay_steps": PHASE}),
}
CLAIM = Claim(
    name="proto_value_control",
    claim="a linear function of frozen proto-value features controls better than one of random features",
    paper="Farebrother et al. 2023, arXiv 2304.12567, online evaluation",
    paper_says="linear features and about 4 M interactions come near established algorithms on Atari (abstract)",
    metric="share of greedy episodes that reach the goal, mean over the evaluations of the second phase",
    held_equal="environment steps, replay, network, second phase, seeds",
    arms=ARMS,
    seeds=10,
    version=2,
    why_again="the units of its pre-trained networks died",
)


def statistics(module, config, states):
    """What the features of all states look like, one value per seed."""
    pixels = jnp.asarray(four_rooms.pictures())
    one = lambda state: diagnostics.feature_statistics(module.features(config, state, pixels))  # noqa: E731
    return {name: np.asarray(x, float).round(4).tolist() for name, x in jax.jit(jax.vmap(one))(states).items()}


def measure(seeds, quick, root):
    """All arms on the same seeds."""
    phase = 1_280 if quick else PHASE
    settings = Settings(
        env=ENVIRONMENT,
        steps=2 * phase,
        seeds=seeds,
        seed=0 if quick else FIRST_SEED,
        num_envs=32,
        eval_every=phase // 10,
        eval_episodes=2 if quick else 50,
        checkpoint_every=2 * phase,
        progress=not quick,
    )
    curves, scores, measurements = {}, {}, {}
    for label, arm in list(ARMS.items())[: 1 if quick else None]:
        shorter = {"pretrain_steps": phase, "threshold_steps": 128} if quick and arm.agent == "proto_value" else {}
        result = run(CLAIM, label, settings, root, states=True, **shorter)
        steps, table = np.unique(result.table["step"]), result.table["return"].reshape(-1, seeds)
        curves[label], scores[label] = (steps, table), table[steps > phase].mean(axis=0)
        measurements[label] = {"score": scores[label].round(4).tolist(), "final": table[-1].round(4).tolist()}
        if result.states is not None:
            module = proto_value if arm.agent == "proto_value" else dqn
            measurements[label]["features"] = statistics(module, arm.build(**shorter), result.states)
    if quick:
        return measurements, [], lambda path: None
    effects = []
    for label in list(ARMS)[1:]:
        each = effect(f"share of proto-value minus {label}", scores["proto-value"], scores[label])
        effects.append(each if label == "random" else each | {"decides": False})
    return measurements, effects, draw_returns({ENVIRONMENT: curves}, settings.eval_episodes)


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
