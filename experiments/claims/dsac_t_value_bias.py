"""DSAC-T, value bias: are its value estimates the least biased?

Claim (Duan et al. 2025, arXiv 2310.05858): learning a distribution of returns, with twins and expected targets, gives
value estimates with less bias than SAC's and DSACv1's.

Fixed before running. Arms: SAC with one critic, SAC, DSACv1, DSAC-T. Tasks: HalfCheetah-v5 and Walker2d-v5, 100 000
steps, 3 seeds, an evaluation every 10 000 steps. Held equal: seeds, steps, hidden layers 256 x 256 with ReLU, batches
of 256, learning rates 3e-4, initial temperature 1, one update per step (DSAC's delay of 2 stays: it is part of the
method). Not equal, as they belong to the agents: the cap on log sigma (0.5 against SAC's 2), the temperature's loss.
DSACv1's clipping boundary is 10. Metric: size of the mean, over the evaluations of the second half of training, of
predicted value minus Monte-Carlo soft return of the policy's own sampled actions (`offpolicy_jax.diagnostics`, 10
episodes), in units of reward. Confirmed if it is larger for each other arm than for DSAC-T, on both tasks.

    python experiments/claims/dsac_t_value_bias.py      (about three hours on two cores; a stopped one goes on)
"""

import sys

import numpy as np
from common import Arm, Claim, effect, main, run

from offpolicy_jax.training import Settings
from offpolicy_jax.training.plots import comparison

EQUAL = {"hidden_sizes": (256, 256)}
DSAC = EQUAL | {"activation": "relu", "learning_rate": 3e-4, "initial_temperature": 1.0}
TASKS = ("HalfCheetah-v5", "Walker2d-v5")
CLAIM = Claim(
    name="dsac_t_value_bias",
    claim="value estimates of DSAC-T are less biased than those of SAC, of SAC with one critic, and of DSACv1",
    paper="Duan et al. 2025, arXiv 2310.05858, figure of value estimation bias",
    paper_says="bias -42.3 on Humanoid and -10.6 on Ant, against +97.8 and -18.8 for SAC (second-hand, 30 M steps)",
    metric="size of the mean value bias over the second half of training, in units of reward",
    held_equal="seeds, 100 000 steps, 256 x 256 ReLU, batch 256, learning rates 3e-4, initial alpha 1",
    arms={
        "SAC, one critic": Arm("sac", EQUAL | {"num_critics": 1}),
        "SAC": Arm("sac", EQUAL),
        "DSACv1": Arm("dsac_t", DSAC, preset="dsac_v1"),
        "DSAC-T": Arm("dsac_t", DSAC),
    },
    seeds=3,
)


def measure(seeds, quick, root):
    """Every arm on every task; seeds of an arm are one program."""
    steps, tasks = (400, ("InvertedPendulum-v5",)) if quick else (100_000, TASKS)
    small = {"hidden_sizes": (8,), "learning_starts": 100} if quick else {}
    measurements, effects, panels = {}, [], {}
    for task in tasks:
        settings = Settings(
            task,
            steps,
            seeds,
            eval_every=steps // 10,
            eval_episodes=2 if quick else 10,
            value_bias=True,
            progress=False,
        )
        size, panels[task] = {}, {}
        for label in CLAIM.arms:
            table = run(CLAIM, f"{label}/{task}", settings, root, **small).table
            bias = table["value_bias"].reshape(-1, seeds)
            size[label] = np.abs(bias[len(bias) // 2 :].mean(axis=0))
            panels[task][label] = (np.unique(table["step"]), bias)
            measurements[f"{label}, {task}"] = {
                "mean_bias_of_second_half": bias[len(bias) // 2 :].mean(axis=0).round(2).tolist(),
                "mean_size_of_bias": np.abs(bias[len(bias) // 2 :]).mean(axis=0).round(2).tolist(),
                "final_value": table["value"][-seeds:].round(1).tolist(),
                "final_return": table["return"][-seeds:].round(1).tolist(),
            }
        effects += [
            effect(f"|bias| of {label} minus DSAC-T, {task}", size[label], size["DSAC-T"])
            for label in CLAIM.arms
            if label != "DSAC-T"
        ]

    def draw(path):
        comparison(
            path,
            panels,
            xlabel="Environment steps per seed",
            ylabel="Predicted minus true soft return (units of reward)",
            caption="Sampled actions of the current policy, 10 episodes per evaluation.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
