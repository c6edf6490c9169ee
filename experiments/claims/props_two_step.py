"""PROPS where sampling error decides: two steps, and a better branch that looks worse at first.

Claim (Corrado & Hanna 2023, arXiv 2311.08290): sampling error can lead an on-policy learner to a suboptimal policy from
which the true gradient would lead away; with less of it, PROPS finds the optimum more often.

Second version. In the first (props_two_step.json) what was called PROPS took one step per behaviour update, which is
ROS by Adam; and the policies had a bias that all states shared, so they were no tables.

Fixed before running. Task: the first action 1 returns 1; the first action 0 leads to a second choice, where 0 returns
2 and 1 returns 0.5 (sampling.py). Policies are tabular softmax; they start at P(first = 0) = 0.5 and P(second = 0) =
0.25, so that the first branch is worth 0.875 until the second choice is learned. Arms: PPO; PPO with a buffer of two
batches; PROPS with the same buffer and m = 5; ROS by Adam with the same; as a reference, PPO with n = 2 000, which has
next to no sampling error. n = 20 steps, 500 updates; PPO takes one step of learning rate 0.5 per update. PROPS has the
settings of the authors' runs of this task: learning rate 0.5, 16 epochs of one minibatch, epsilon 0.3, delta 1, no KL
term; ROS one step of learning rate 1. Metric: share of 200 seeds whose greedy return is 2. Confirmed if PROPS's share
exceeds both PPO's; ROS is reported beside.

    python experiments/claims/props_two_step.py      (three minutes on two cores)
"""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from common import Arm, Claim, effect, main
from sampling import LINEAR, Collection

from agents import ppo
from offpolicy_jax.training.plots import comparison

N, UPDATES, POINTS = 20, 500, 20
TARGET = ppo.Config(
    learning_rate=0.5,
    rollout_length=N,
    epochs=1,
    minibatches=1,
    anneal_steps=0,
    max_gradient_norm=float("inf"),
    discount=1.0,
    **LINEAR,
)
PROPS = {"learning_rate": 0.5, "kl_weight": 0.0, "target_kl": 1.0, "rollout_length": 5, "epochs": 16, "minibatches": 1}
OFF = PROPS | {"learning_rate": 0.0, "epochs": 1}
BUFFER = replace(TARGET, buffer_batches=2)
CLAIM = Claim(
    name="props_two_step",
    claim="where the better branch has to be found by rare samples, PROPS reaches the optimum more often than PPO",
    paper="Corrado & Hanna 2023, arXiv 2311.08290, example of the introduction",
    paper_says="on-policy sampling may converge to the suboptimal policy (no verified number)",
    metric="share of seeds whose greedy policy returns 2",
    held_equal="seeds, first policy, updates of the target, its learning rate",
    arms={
        "PPO": Arm("props", OFF | {"target": TARGET}),
        "PPO, buffer": Arm("props", OFF | {"target": BUFFER}),
        "PROPS": Arm("props", PROPS | {"target": BUFFER}),
        "ROS": Arm("props", {"target": BUFFER, "learning_rate": 1.0, "rollout_length": 5}, preset="ros"),
        "PPO, n = 2 000": Arm(
            "props", OFF | {"target": replace(TARGET, rollout_length=100 * N), "rollout_length": 500}
        ),
    },
    seeds=200,
    version=2,
    why_again="its PROPS took one step per update, which is ROS, and its policies were no tables",
)
FIRST = (0.5, 0.25)


def start(num_seeds):
    """Parameters of the first policy, for every seed: P(0) of `FIRST` in both states."""
    logits = np.log([[p, 1.0 - p] for p in FIRST])
    policy = {"params": {"Dense_0": {"kernel": jnp.asarray(logits, jnp.float32)}}}
    return jax.tree.map(lambda x: jnp.repeat(x[None], num_seeds, axis=0), policy)


def greedy_return(policy):
    """Return of the greedy policy, per seed (S,)."""
    choice = np.asarray(jnp.argmax(policy["params"]["Dense_0"]["kernel"], axis=-1))  # (S, 2 states)
    return np.where(choice[:, 0] == 1, 1.0, np.where(choice[:, 1] == 0, 2.0, 0.5))


def measure(seeds, quick, root):
    """Greedy return of every seed, at equal numbers of target updates."""
    updates, points = (20, 2) if quick else (UPDATES, POINTS)
    measurements, returns, panel = {}, {}, {}
    for label, arm in CLAIM.arms.items():
        print(f"{CLAIM.name}: {label}", file=sys.stderr, flush=True)
        config = arm.build()
        n = config.target.rollout_length
        run, curve = Collection(config, "claims/TwoStep", seeds, updates * n, start(seeds)), []
        for _ in range(points):
            run.advance(updates // points * n)
            curve.append(greedy_return(run.target.parameters["policy"]))
        returns[label] = curve[-1]
        panel[label] = (np.arange(1, points + 1) * (updates // points), np.array(curve))
        measurements[label] = {
            "share_of_seeds_at_the_optimum": float(np.mean(curve[-1] == 2.0)),
            "mean_greedy_return": float(np.mean(curve[-1])),
        }
    best = {label: 1.0 * (values == 2.0) for label, values in returns.items()}
    effects = [
        effect(f"share at the optimum of {label} minus {other}", best[label], best[other])
        | ({} if label == "PROPS" else {"decides": False})
        for label in ("PROPS", "ROS")
        for other in ("PPO", "PPO, buffer")
    ]

    def draw(path):
        comparison(
            path,
            {"two steps": panel},
            xlabel="Updates of the target policy",
            ylabel="Greedy return (best: 2)",
            caption=f"First policy: P(first action 0) = {FIRST[0]}, P(second action 0) = {FIRST[1]}.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
