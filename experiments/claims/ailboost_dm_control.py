"""AILBoost on dm_control: does it imitate from one demonstration, as well as the others, whatever its schedule?

Claim (Chang et al. 2024, arXiv 2404.08513): from as little as one demonstration AILBoost comes near the expert, nearer
than DAC, and it is robust to the number of discriminator steps per round.

Fixed before running. Tasks: cartpole-swingup and ball_in_cup-catch. Experts: SAC, 100 000 steps, seed 100, one for each
task; ten greedy episodes are recorded, the first is the demonstration. Arms, 100 000 steps (with AILBoost's roll-outs
counted), one update per step (AILBoost: per step of training), networks of 256 x 256 (discriminators: each paper's),
batch 256: AILBoost with SAC, 100 and 10 discriminator steps per round; DAC with SAC; IQ-Learn; ValueDICE, observations
normalised, one step per environment step (its code: five); behaviour cloning. Metric: greedy return of the newest
policy at the end, as a share of the expert's mean over its ten episodes (normalised like the paper's, but not shifted
by a random policy's), 10 episodes; 3 seeds. Confirmed if AILBoost is above 0.8 on both tasks, and if its shares with
100 and with 10 steps differ by less than 0.2. The others, and AILBoost's mixture, are reported beside.

    python experiments/claims/ailboost_dm_control.py      (two hours on two cores; a stopped one goes on)
"""

import contextlib
import pathlib
import sys
import tempfile

import numpy as np
from common import Arm, Claim, effect, main, run

from agents import sac
from experiments import record
from offpolicy_jax import demonstrations, environments
from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training import Settings, train
from offpolicy_jax.training.plots import comparison

TASKS = ("cartpole-swingup", "ball_in_cup-catch")
STEPS = 100_000
CLAIM = Claim(
    name="ailboost_dm_control",
    claim="from one demonstration AILBoost reaches 0.8 of the expert's return, whatever its discriminator's schedule",
    paper="Chang et al. 2024, arXiv 2404.08513, figure 1 and the study of schedules",
    paper_says="best of all in the IQM over five tasks, also with one demonstration (no verified number)",
    metric="final greedy return as a share of the expert's",
    held_equal="seeds, demonstration, environment steps, learner, batch and network sizes",
    arms={
        "AILBoost": Arm("ailboost"),
        "AILBoost, 10 steps": Arm("ailboost", {"discriminator_steps": 10}),
        "DAC": Arm("dac"),
        "IQ-Learn": Arm("iq_learn"),
        "ValueDICE": Arm("value_dice", {"gradient_steps": 1}),
        "behaviour cloning": Arm("bc"),
    },
    seeds=3,
)


def demonstrate(task, quick, root):
    """Path of the expert's dataset, and its mean return."""
    env, path = f"dm_control/{task}-v0", root / f"expert-{task}"
    dataset = root / f"{task}-expert-v0"
    settings = Settings(env, 1_100 if quick else STEPS, 1, 100, eval_every=0, progress=False, run_dir=str(path))
    small = sac.Config(hidden_sizes=(8,), learning_starts=1_000) if quick else sac.Config()
    if not dataset.exists():
        train(sac, Settings(**{**vars(settings), "resume": True}), small)
        with contextlib.redirect_stdout(sys.stderr):
            if record.main([f"--run-dir={path}", f"--dataset={dataset}", "--episodes=10"]):
                raise SystemExit(2)
    episodes = demonstrations.load(str(dataset), environments.make(env))
    return str(dataset), float(np.mean([e.rewards.sum() for e in episodes]))


def measure(seeds, quick, root):
    """Every arm on every task."""
    with tempfile.TemporaryDirectory() as scratch:
        return _measure(seeds, quick, root, root or pathlib.Path(scratch))


def _measure(seeds, quick, root, experts):
    steps = 1_200 if quick else STEPS
    measurements, effects, panels = {}, [], {}
    for task in TASKS[: 1 if quick else None]:
        dataset, expert = demonstrate(task, quick, experts)
        measurements[f"expert, {task}"] = {"mean_return": expert}
        final, panels[task] = {}, {}
        arms = {k: v for k, v in CLAIM.arms.items() if not quick or k.startswith("AILBoost") or v.agent == "bc"}
        for label, arm in arms.items():
            settings = Settings(
                f"dm_control/{task}-v0",
                steps,
                seeds,
                eval_every=steps // (1 if quick else 10),
                eval_episodes=1 if quick else 10,
                demos=dataset,
                demo_episodes=1,
                normalize_observations=arm.agent == "value_dice",
                progress=False,
            )
            small = {"learning_starts": 1_000} if quick and arm.agent != "bc" else {}
            table = run(CLAIM, f"{label}/{task}", settings, root, **small).table
            curve = table["return"].reshape(-1, seeds) / expert
            final[label], panels[task][label] = curve[-1], (np.unique(table["step"]), curve)
            measurements[f"{label}, {task}"] = {
                "share_of_expert": curve[-1].round(4).tolist(),
                "iqm": float(interquartile_mean(curve[-1]).round(4)),
                "iqm_interval_95": np.round(stratified_bootstrap_interval(curve[-1]), 4).tolist(),
            }
            if "mixture_return" in table:
                mixture = table["mixture_return"].reshape(-1, seeds)[-1] / expert
                measurements[f"{label}, {task}"]["mixture_share_of_expert"] = mixture.round(4).tolist()
        bar, ten = np.full(seeds, 0.8), final["AILBoost, 10 steps"]
        effects += [
            effect(f"share of AILBoost above 0.8, {task}", final["AILBoost"], bar),
            effect(
                f"share with 10 discriminator steps plus 0.2 above that with 100, {task}", ten + 0.2, final["AILBoost"]
            ),
            effect(
                f"share with 100 discriminator steps plus 0.2 above that with 10, {task}", final["AILBoost"] + 0.2, ten
            ),
        ]
        effects += [
            effect(f"share of AILBoost minus {label}, {task}", final["AILBoost"], final[label]) | {"decides": False}
            for label in arms
            if not label.startswith("AILBoost")
        ]

    def draw(path):
        comparison(
            path,
            panels,
            xlabel="Environment steps per seed, roll-outs of learners included",
            ylabel="Return / expert's return",
            caption="One demonstration. Mean of 10 greedy episodes of the newest policy per evaluation and seed.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
