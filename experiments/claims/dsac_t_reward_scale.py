"""DSAC-T, reward scale: does variance-based gradient adjustment keep learning alive when rewards are small?

Claim (Duan et al. 2025, arXiv 2310.05858, ablation of refinement 3): without the adjustment, DSAC-T fails at reward
scales 0.01 and 0.1; with it, it does not.

Fixed before running. Arms: DSAC-T; DSAC-T without refinement 3 (no scale, and DSACv1's fixed clipping boundary of 10);
SAC. Each at scales 0.01, 0.1, 1, 10, 100. Task: phys2d/Pendulum-v0, 15 000 steps, the learning rate of the `quick`
preset (1e-3) for all. Held equal: seeds, steps, hidden layers 64 x 64, batches of 128, learning rates, warm-up, initial
temperature. Metric: mean greedy return over the last five evaluations of 20 episodes, in unscaled reward; -200 counts
as solved, about -1200 is random. Confirmed if, at 0.01 and at 0.1, DSAC-T is above -200 and DSAC-T without refinement 3
below it. The difference between the two is reported at every scale.

    python experiments/claims/dsac_t_reward_scale.py      (5 seeds a scale, a quarter of an hour on two cores)
"""

import sys

import numpy as np
from common import Arm, Claim, effect, main, run

from offpolicy_jax.training import Settings
from offpolicy_jax.training.plots import comparison

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
SIZES = {"hidden_sizes": (64, 64), "batch_size": 128, "learning_starts": 1_000}
CLAIM = Claim(
    name="dsac_t_reward_scale",
    claim="without variance-based gradient adjustment DSAC-T fails at reward scales 0.01 and 0.1; with it, it does not",
    paper="Duan et al. 2025, arXiv 2310.05858, ablation of refinement 3",
    paper_says="fails without it at 0.01 and 0.1 (second-hand, MuJoCo at 30 M steps, 5 seeds)",
    metric="mean unscaled greedy return over the last five evaluations of 20 episodes",
    held_equal="seeds, 15 000 steps, 64 x 64 hidden units, batch 128, learning rates 1e-3, warm-up, initial alpha 1",
    arms={
        "DSAC-T": Arm("dsac_t", SIZES, preset="quick"),
        "DSAC-T without refinement 3": Arm("dsac_t", SIZES | {"critic_gradient": "unadjusted"}, preset="quick"),
        "SAC": Arm("sac", SIZES | {"learning_rate": 1e-3}),
    },
    seeds=5,
)


def measure(seeds, quick, root):
    """All scales of an arm are one program: lane i has scale i mod 5, and the same seed in every arm."""
    steps = 1_200 if quick else 15_000
    settings = Settings(
        steps=steps, seeds=seeds * len(SCALES), eval_every=steps // 20, eval_episodes=20, progress=False
    )
    lanes = np.tile(np.array(SCALES, np.float32), seeds)
    final = {}
    for label in CLAIM.arms:
        table = run(CLAIM, label, settings, root, reward_scale=lanes).table
        returns = table["return"].reshape(-1, seeds, len(SCALES))  # (evaluations, seeds, scales)
        final[label] = returns[-5:].mean(axis=0)
    measurements = {
        label: {f"{scale:g}": [round(float(x), 1) for x in values[:, i]] for i, scale in enumerate(SCALES)}
        for label, values in final.items()
    }
    with_it, without_it, _ = final.values()
    solved, effects = np.full(seeds, -200.0), []
    for i, scale in enumerate(SCALES):
        if i < 2:
            effects += [
                effect(f"return of DSAC-T above -200, scale {scale:g}", with_it[:, i], solved),
                effect(f"return without refinement 3 below -200, scale {scale:g}", solved, without_it[:, i]),
            ]
        difference = effect(f"return with minus without, scale {scale:g}", with_it[:, i], without_it[:, i])
        effects.append(difference | {"decides": False})

    def draw(path):
        values = {label: (SCALES, array.T) for label, array in final.items()}
        comparison(
            path,
            {"phys2d/Pendulum-v0": values},
            xlabel="Reward scale",
            ylabel="Greedy return, unscaled",
            log="x",
            caption="Mean return of the last five evaluations, 15 000 steps per seed. About -1200 is a random policy.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
