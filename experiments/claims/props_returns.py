"""PROPS while learning: does it return more for the same number of steps?

Claim (Corrado & Hanna 2023, arXiv 2311.08290): with less sampling error, PROPS needs fewer environment steps than PPO
and than PPO with a buffer of old batches.

Fixed before running. Tasks: CartPole (phys2d/CartPole-v1, 140 batches of n = 1 024, m = 128) and Hopper-v5 (60 batches
of n = 2 048, m = 256; observations and rewards normalised), one environment per seed. Arms: PPO; PPO with b = 2; PROPS
with b = 2. Settings, shared by all arms: those of the authors' PROPS runs (learning rate 1e-3 annealed, 10 epochs of 32
minibatches, entropy weight 0.01; behaviour 1e-3, 16 epochs, epsilon 0.3; CartPole: delta 0.03, lambda 0.1, 8
minibatches; Hopper: delta 0.05, lambda 0.3 averaged over dimensions, so 0.1 here, 16 minibatches), but b = 2 on
CartPole too, and episodes cut by the time limit are bootstrapped. Metric: greedy return averaged over the whole run
(the area under the curve), 20 evaluations of 10 episodes; 10 seeds. Confirmed if PROPS's exceeds both others' on both
tasks.

    python experiments/claims/props_returns.py      (half an hour on two cores; a stopped one goes on)
"""

import sys
from typing import Any

import numpy as np
from common import Arm, Claim, as_list, draw_returns, effect, main, run, summarize

from agents import ppo
from offpolicy_jax.training import Settings

PPO: dict[str, Any] = {"learning_rate": 1e-3, "entropy_weight": 0.01}
TASKS = {
    "phys2d/CartPole-v1": (140 * 1_024, 1_024, {"target_kl": 0.03, "kl_weight": 0.1, "minibatches": 8}, 128),
    "Hopper-v5": (60 * 2_048, 2_048, {"target_kl": 0.05, "kl_weight": 0.1, "minibatches": 16}, 256),
}
CLAIM = Claim(
    name="props_returns",
    claim="PROPS returns more than PPO and than PPO with a buffer for the same number of environment steps",
    paper="Corrado & Hanna 2023, arXiv 2311.08290; returns from the authors' archives",
    paper_says="Hopper at a quarter of 1 M steps: IQM 2 727 for PROPS, 2 304 for PPO with a buffer, 2 098 for PPO; at "
    "the end 3 352, 3 256, 3 297 (50 seeds each, every method with its own n and learning rate)",
    metric="mean over the run of the greedy return",
    held_equal="seeds, steps, networks, n, learning rate of the target, its epochs and minibatches",
    arms={
        "PPO": Arm("ppo", PPO),
        "PPO, buffer": Arm("ppo", PPO | {"buffer_batches": 2}),
        "PROPS": Arm("props", {"target": ppo.Config(**PPO, buffer_batches=2)}),
    },
    seeds=10,
)


def measure(seeds, quick, root):
    """Every arm on every task."""
    measurements, effects, panels = {}, [], {}
    for task, (steps, n, behaviour, m) in list(TASKS.items())[: 1 if quick else None]:
        steps, n, m = (512, 128, 64) if quick else (steps, n, m)
        normalize = not task.startswith("phys2d/")
        settings = Settings(
            task,
            steps,
            seeds,
            eval_every=steps // (2 if quick else 20),
            eval_episodes=10,
            normalize_observations=normalize,
            normalize_rewards=normalize,
            progress=False,
        )
        area, panels[task] = {}, {}
        for label, arm in CLAIM.arms.items():
            changes: dict[str, Any] = {"rollout_length": n}
            if arm.agent == "props":
                target = arm.config["target"].replace(rollout_length=n)
                changes = behaviour | {"target": target, "rollout_length": m}
            table = run(CLAIM, f"{label}/{task}", settings, root, **changes).table
            curve = table["return"].reshape(-1, seeds)
            area[label] = curve.mean(axis=0)
            panels[task][label] = (np.unique(table["step"]), curve)
            measurements[f"{label}, {task}"] = {
                "mean_over_run": as_list(area[label], 1),
                "final_return": as_list(curve[-1], 1),
                **{f"final_{name}": value for name, value in summarize(curve[-1], 1).items()},
            }
        effects += [
            effect(f"mean return over the run of PROPS minus {other}, {task}", area["PROPS"], area[other])
            for other in ("PPO", "PPO, buffer")
        ]
    return measurements, effects, draw_returns(panels)


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
