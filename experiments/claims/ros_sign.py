"""The sign of ROS: does the update of the public code raise the sampling error instead of lowering it?

A claim about an implementation (papers' equations: losses/props.py). ROS (Zhong et al. 2022, arXiv 2111.14552) moves
the behaviour policy *against* the gradient of the data's log-likelihood, so that what was sampled too often becomes
rarer. The public code of PROPS has a ROS that moves along it.

Fixed before running. Task: the 8 x 8 grid world of props_grid_world.py, tabular policies, PPO's initial policy as the
target (nearly uniform, one per seed), 4 096 steps, none forgotten. Arms: on-policy sampling; ROS, one step of Adam on
all data after every environment step, learning rate 0.1; the same with the other sign (-0.1). Metric: the exact
sampling error at the end, in nats; 20 seeds, paired by their targets. Confirmed if the equation's sign lies below
on-policy sampling and the other above it.

    python experiments/claims/ros_sign.py      (three minutes on two cores)
"""

import sys

import numpy as np
from common import Arm, Claim, as_list, effect, main
from props_grid_world import FIXED, POINTS, PROPS, N
from sampling import Collection, tabular_errors

from offpolicy_jax.training.plots import comparison

ROS = {"target": FIXED, "learning_rate": 0.1}
CLAIM = Claim(
    name="ros_sign",
    claim="ROS lowers the sampling error by the equation's sign, and raises it by that of the public code",
    paper="Zhong et al. 2022, arXiv 2111.14552; the public code of Corrado & Hanna 2023",
    paper_says="the equation descends the data's log-likelihood; the code ascends it",
    metric="exact sampling error after 4 096 steps, in nats",
    held_equal="seeds, target policies, steps, step size",
    arms={
        "on-policy": Arm("props", PROPS | {"learning_rate": 0.0, "epochs": 1}),
        "ROS": Arm("props", ROS, preset="ros"),
        "ROS, other sign": Arm("props", ROS | {"learning_rate": -0.1}, preset="ros"),
    },
    seeds=20,
)


def measure(seeds, quick, root):
    """Sampling error while the data grow."""
    points, total = (4, 512) if quick else (POINTS, N)
    curves = {}
    for label, arm in CLAIM.arms.items():
        print(f"{CLAIM.name}: {label}", file=sys.stderr, flush=True)
        run, errors = Collection(arm.build(), "claims/GridWorld", seeds, N), []
        for _ in range(points):
            run.advance(total // points)
            errors.append(np.asarray(tabular_errors(run.replay, run.target)))
        curves[label] = (np.arange(1, points + 1) * (total // points), np.array(errors))
    final = {label: errors[-1] for label, (_, errors) in curves.items()}
    effects = [
        effect("on-policy minus ROS", final["on-policy"], final["ROS"], paired=True),
        effect("ROS of the other sign minus on-policy", final["ROS, other sign"], final["on-policy"], paired=True),
    ]

    def draw(path):
        comparison(
            path,
            {"nearly uniform target": curves},
            xlabel="Environment steps per seed",
            ylabel="Sampling error (nats)",
            caption="Exact error of all data so far against the fixed target.",
            log="xy",
        )

    measurements = {label: {"sampling_error": as_list(x, 5), "mean": float(x.mean())} for label, x in final.items()}
    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
