"""On-policy MDPO: do ten gradient steps per iteration beat one?

Claim (Tomar et al. 2022, arXiv 2005.09814): one step per iteration, which is the vanilla policy gradient, is inferior;
ten are best, since only then does the divergence to the last policy act.

Fixed before running. Task: Hopper-v5, 250 000 steps, observations and rewards normalised, one environment per seed.
Arms: on-policy MDPO with m = 1, 5 and 10 full-batch steps per 2 048 environment steps, else the agent's defaults (the
paper's settings, but for learning rates that stay; PPO's is annealed); PPO beside. Metric: greedy return averaged over
the whole run, 20 evaluations of 10 episodes; 5 seeds. Confirmed if m = 10 exceeds m = 1; m = 5 and PPO are reported
beside. Beside that, KL(new || old) of consecutive policies, in nats: the mean of each tenth of the run (for PPO, a mean
of its minibatches' sampled KL(old || new)).

    python experiments/claims/mdpo_inner_steps.py      (twenty minutes on two cores; a stopped one goes on)
"""

import csv
import sys
from typing import Any

import numpy as np
from common import Arm, Claim, draw_returns, effect, main, run

from offpolicy_jax.training import Settings

TASK = "Hopper-v5"
CLAIM = Claim(
    name="mdpo_inner_steps",
    claim="on-policy MDPO with ten gradient steps per iteration returns more than with one",
    paper="Tomar et al. 2022, arXiv 2005.09814, ablation of m",
    paper_says="m = 10 is best and m = 1 inferior (no verified number)",
    metric="mean over the run of the greedy return",
    held_equal="seeds, steps, networks, advantages; learning rates of the arms of MDPO",
    arms={
        "MDPO, m = 1": Arm("mdpo_on_policy", {"gradient_steps": 1}),
        "MDPO, m = 5": Arm("mdpo_on_policy", {"gradient_steps": 5}),
        "MDPO, m = 10": Arm("mdpo_on_policy", {"gradient_steps": 10}),
        "PPO": Arm("ppo"),
    },
    seeds=5,
)


def divergences(path):
    """Mean actor/kl of each tenth of a run, over seeds, from its metrics.csv."""
    with open(path) as file:
        rows = [float(row["actor/kl"]) for row in csv.DictReader(file)]
    return [float(f"{np.mean(part):.4g}") for part in np.array_split(rows, 10)]


def measure(seeds, quick, root):
    """Every arm on Hopper."""
    steps = 512 if quick else 250_000
    small: dict[str, Any] = {"rollout_length": 256} if quick else {}
    settings = Settings(
        TASK,
        steps,
        seeds,
        eval_every=steps // (2 if quick else 20),
        normalize_observations=True,
        normalize_rewards=True,
        progress=False,
    )
    measurements, area, panel = {}, {}, {}
    for label in CLAIM.arms:
        table = run(CLAIM, label, settings, root, **small).table
        curve = table["return"].reshape(-1, seeds)
        area[label] = curve.mean(axis=0)
        panel[label] = (np.unique(table["step"]), curve)
        measurements[label] = {
            "mean_over_run": area[label].round(1).tolist(),
            "final_return": curve[-1].round(1).tolist(),
        }
        if root is not None:
            measurements[label]["kl_of_consecutive_policies"] = divergences(root / label / "metrics.csv")
    effects = [
        effect("mean return over the run of m = 10 minus m = 1", area["MDPO, m = 10"], area["MDPO, m = 1"]),
        effect("m = 10 minus m = 5", area["MDPO, m = 10"], area["MDPO, m = 5"]) | {"decides": False},
        effect("m = 10 minus PPO", area["MDPO, m = 10"], area["PPO"]) | {"decides": False},
    ]
    return measurements, effects, draw_returns({TASK: panel})


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
