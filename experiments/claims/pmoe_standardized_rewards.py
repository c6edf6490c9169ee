"""PMOE, the public code's rewards: does standardising them by batch break tasks that pay for staying alive?

Claim (of this library, on the public code of Ren et al. 2021, arXiv 2104.09122, which learns from 10 (r - mean) / std
of each batch; the paper does not mention it): where each step earns the same until one falls, such rewards are all 0,
so that an agent does not learn to stay up; without standardising it does. Where only time ends episodes it is harmless.

Second version. The first (pmoe_standardized_rewards.json; seeds 40 to 44) had InvertedPendulum-v5, where the step that
falls earns 0 and the others 1. Standardised, the fall costs a lot, and both arms returned 1 000 with every seed. In v4,
as in the versions that the public code was written for, it earns 1 like the others.

Fixed before running. Arms: PMOE with rewards as they are (the default here), and with standardize_rewards. Task:
InvertedPendulum-v4 (1 for each step until it falls, 1 000 steps at most), 20 000 steps; beside it phys2d/Pendulum-v0
(no falls), 10 000 steps. Held equal: seeds 50 to 54, steps, four experts, hidden layers 64 x 64, batches of 128,
learning rates 1e-3, 1 000 steps of warm-up. Metric: greedy return of the newest policy at the end, 20 episodes.
Confirmed if on InvertedPendulum-v4 the default is above the standardised arm. The other task does not decide.

After the run: on InvertedPendulum-v4 both arms returned 1 000 with every seed, the standardised one sooner. All its
rewards are exactly 0 there, so that only the entropy bonus can have paid for staying up.

    python experiments/claims/pmoe_standardized_rewards.py      (5 seeds, ten minutes on one core)
"""

import sys

import numpy as np
from common import Arm, Claim, as_list, draw_returns, effect, main, run, summarize

from offpolicy_jax.training import Settings

FALLS = "InvertedPendulum-v4"
TASKS = {FALLS: 20_000, "phys2d/Pendulum-v0": 10_000}
SIZES = {"hidden_sizes": (64, 64), "batch_size": 128, "learning_rate": 1e-3, "learning_starts": 1_000}
EPISODES, FIRST_SEED = 20, 50
CLAIM = Claim(
    name="pmoe_standardized_rewards",
    claim="rewards standardised by batch, as in PMOE's public code, break a task that pays for staying alive",
    paper="public code of Ren et al. 2021, arXiv 2104.09122",
    paper_says="nothing: the paper does not mention that its code standardises rewards",
    metric="greedy return of the newest policy at the end, 20 episodes",
    held_equal="seeds, steps, four experts, 64 x 64 hidden units, batch 128, learning rates 1e-3, warm-up",
    arms={
        "rewards as they are": Arm("pmoe", SIZES),
        "standardised by batch": Arm("pmoe", SIZES | {"standardize_rewards": True}),
    },
    seeds=5,
    version=2,
    why_again="in InvertedPendulum-v5 the step that falls earns less",
)


def measure(seeds, quick, root):
    """Both arms on both tasks."""
    measurements, effects, panels = {}, [], {}
    for task, steps in TASKS.items():
        steps = 1_100 if quick else steps
        settings = Settings(
            task,
            steps,
            seeds,
            FIRST_SEED,
            eval_every=steps // (1 if quick else 20),
            eval_episodes=1 if quick else EPISODES,
            progress=False,
        )
        panels[task], final = {}, {}
        for label in CLAIM.arms:
            table = run(CLAIM, f"{label}/{task.replace('/', '-')}", settings, root).table
            curve = table["return"].reshape(-1, seeds)
            panels[task][label], final[label] = (np.unique(table["step"]), curve), curve[-1]
            measurements[f"{label}, {task}"] = {"return": as_list(curve[-1], 2), **summarize(curve[-1], 2)}
        difference = effect(f"return with rewards as they are minus standardised, {task}", *final.values())
        effects.append(difference | ({} if task == FALLS else {"decides": False}))
    return measurements, effects, draw_returns(panels, EPISODES)


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
