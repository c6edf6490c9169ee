"""AILBoost on dm_control: does it imitate from one demonstration, as well as the others, whatever its schedule?

Claim (Chang et al. 2024, arXiv 2404.08513): from as little as one demonstration AILBoost comes near the expert, nearer
than DAC, and it is robust to the number of discriminator steps per round.

Fixed before running. Tasks: cartpole-swingup and walker-stand, with each action held for two steps, as in the released
code; all steps below are of the agent, 500 to an episode. Experts: SAC at its defaults, 96 000 steps, seed 100, one for
each task; ten greedy episodes are recorded, the first is the demonstration. Arms, 100 000 steps; actors and critics of
128 x 128, batches of 128; one update for two of all steps (the released code: for two steps of training or of DAC, so
that its AILBoost has half as many updates as its DAC); seeds 20 to 22:

                          warm-up   updates of the policy   of the discriminator
    AILBoost with SAC       1 000           49 000          5 000 (512 + 512 pairs, lr 1e-3, 64 x 64 ReLU)
    the same, 10 steps      1 000           49 000            500
    DAC with SAC            1 000           49 501         49 501 (128 + 128 pairs, lr 1e-3, 128 x 128 tanh)
    IQ-Learn                1 000           49 501
    ValueDICE               2 000           49 001          its moments of observations are the replay's
    behaviour cloning           0           50 000          (and no data of the environment)

AILBoost's roll-outs count as environment steps: half of its steps after the warm-up come without an update, and the
others with one. It has its preset quick with alpha = 0.1 and the bounded discriminator of the released code. With the
paper's alpha (0.05) and step size (1e-4), development runs of 80 000 to 100 000 steps stayed far below the expert, and
with D unbounded they were unsteady. All of these were without repeats: final returns on cartpole-swingup, of the
expert's 833, 80 000 steps, 128 x 128, step size 1e-3:

    unbounded, alpha 0.2    834, 789, 379, 859, 2 (seeds 200, 201, 0, 1, 2)
    bounded, alpha 0.2      628, 237, 240 (seeds 200 to 202, as below; 664, 354, 741 one evaluation before)
    the same, penalty 1     721, 242, 610
    bounded, alpha 0.1      783, 436, 659; after 160 000 steps 771, 843, 854
    bounded, alpha 0.05     261, 368, 415
    bounded, alpha 0.1, two updates a step of training      568, 447, 355 (787, 496, 731 before)
    unbounded, alpha 0.1, a penalty of slopes above 1 only  813, 0, 608

After 160 000 steps without repeats the bounded runs with alpha 0.1 of seeds 0 to 2 returned 849, 315, 811 of 833 on
cartpole-swingup and 960, 795, 453 of 968 on walker-stand, where they were still rising: 0.79 and 0.76 of the expert.
Repeats, which the released code has, were taken up after that; no arm has been run with them.

The bounded seeds of one update a step were never below 120 at an evaluation; unbounded ones fall to 0, and some come
back. With 64 x 64 units unbounded runs were unsteadier still (120 000 steps: 840, 188, 423, and 0, 0, 51 with a penalty
of 1 in place of 10). Neither 500 discriminator steps a round, nor rounds of 300 + 300 steps, nor two updates a step of
training with 1 000 of the discriminator a round helped unbounded runs (alpha 0.2, 3 seeds, 60 000 steps). A third task,
ball_in_cup-catch, was looked at: the ball was not caught once in 80 000 steps (seeds 200, 201), so that this claim is
not about tasks whose reward is found by chance. The others are untuned, at their defaults but for sizes and for the
updates above: DAC's and IQ-Learn's default is one a step, ValueDICE's five.

Metric: greedy return of the newest policy at the end, 10 episodes, over the expert's at its own last evaluation, from
the same starts: R / R_expert; the paper says "expert-normalised" without the form. Beside it (R - R_random) /
(R_expert - R_random), with uniformly random actions. Both for all arms and over both tasks, IQM and intervals.

Confirmed if AILBoost is above 0.8 on both tasks, and if its shares with 100 and with 10 steps differ by less than 0.2.
No verdict is drawn from a task whose expert returns less than 700, or whose demonstration less than 0.8 of the expert.
DAC, the others and AILBoost's mixture are reported beside and do not decide. No arm of DAC has fewer discriminator
steps, so the study of schedules says that AILBoost is insensitive here, not that DAC is more sensitive.

After the run: a first attempt, on an H100, was cut off after 40 000 to 80 000 steps of each arm and is not used.

    python experiments/claims/ailboost_dm_control.py  (under two hours on two cores; a stopped one goes on)
"""

import contextlib
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from common import Arm, Claim, as_list, effect, main, run, summarize

from agents import sac
from experiments import record
from offpolicy_jax import demonstrations, environments
from offpolicy_jax.training import Settings, evaluation, read_finished, train, unless_interrupted
from offpolicy_jax.training.plots import comparison

TASKS, FIRST_SEED = ("cartpole-swingup", "walker-stand"), 20
STEPS, EXPERT_STEPS, EPISODES, ACTION_REPEAT = 100_000, 96_000, 10, 2
SIZES: dict[str, Any] = {"hidden_sizes": (128, 128), "batch_size": 128}
EVERY_SECOND_STEP: dict[str, Any] = {"rollout_length": 2, "gradient_steps": 1}
BOOSTING = {"alpha": 0.1, "bounded": True, "sac": sac.Config(**SIZES)}
CLAIM = Claim(
    name="ailboost_dm_control",
    claim="from one demonstration AILBoost reaches 0.8 of the expert's return, with 100 discriminator steps per round "
    "and with 10 alike",
    paper="Chang et al. 2024, arXiv 2404.08513, figure 1 and the study of schedules",
    paper_says="best of all in the IQM over five tasks; with one demonstration not in mean and optimality gap (a "
    "reviewer's remark); no verified number",
    metric="final greedy return as a share of the expert's",
    held_equal="seeds, demonstration, environment steps, updates of the policy (within 2 %), its networks and batch; "
    "the learner of AILBoost and DAC",
    arms={
        "AILBoost": Arm("ailboost", BOOSTING, "quick"),
        "AILBoost, 10 steps": Arm("ailboost", BOOSTING | {"discriminator_steps": 10}, "quick"),
        "DAC": Arm(
            "dac",
            {
                "sac": sac.Config(gradient_steps=1, **SIZES),
                "rollout_length": 2,
                "discriminator_hidden_sizes": (128, 128),
                "discriminator_batch_size": 128,
            },
        ),
        "IQ-Learn": Arm("iq_learn", SIZES | EVERY_SECOND_STEP),
        "ValueDICE": Arm("value_dice", SIZES | EVERY_SECOND_STEP),
        "behaviour cloning": Arm("bc", SIZES | EVERY_SECOND_STEP),
    },
    seeds=3,
)
ROUNDS = {"learner_steps": 50, "training_steps": 50, "discriminator_steps": 2}
QUICK = {"ailboost": ROUNDS}


def demonstrate(task, quick, root):
    """Path of the expert's dataset, the expert's last evaluation, and the returns of the ten recorded episodes."""
    env, path = f"dm_control/{task}-v0", root / f"expert-{task}"
    dataset = root / f"{task}-expert-v0"
    steps = 1_100 if quick else EXPERT_STEPS
    settings = Settings(
        env,
        steps,
        seeds=1,
        seed=100,
        action_repeat=ACTION_REPEAT,
        eval_every=steps // (5 if quick else 8),
        progress=False,
        run_dir=str(path),
        resume=True,
    )
    config = sac.Config(hidden_sizes=(8,), learning_starts=1_000) if quick else sac.Config()
    result = read_finished(sac, settings, config) or unless_interrupted(train(sac, settings, config))
    if not dataset.exists():
        with contextlib.redirect_stdout(sys.stderr):
            if record.main([f"--run-dir={path}", f"--dataset={dataset}", f"--episodes={EPISODES}"]):
                raise SystemExit(2)
    recorded = demonstrations.load(str(dataset), environments.make(env, action_repeat=ACTION_REPEAT))
    return str(dataset), float(result.table["return"][-1]), np.array([e.rewards.sum() for e in recorded])


def random_return(task, quick):
    """Mean return of uniformly random actions from the starts of evaluations."""
    environment: Any = environments.make(f"dm_control/{task}-v0", EPISODES, action_repeat=ACTION_REPEAT)
    random = np.random.default_rng(0)
    environment.reset(evaluation.SEED + np.arange(EPISODES))
    shape = (EPISODES, *environment.spec.action.shape)
    steps = 20 if quick else environment.spec.max_episode_steps
    rewards = [environment.step(random.uniform(-1.0, 1.0, shape).astype(np.float32)).reward for _ in range(steps)]
    environment.close()
    return float(np.sum(rewards, axis=0).mean())


def measure(seeds, quick, root):
    """Every arm on every task."""
    with tempfile.TemporaryDirectory() as scratch:
        return _measure(seeds, quick, root, root or pathlib.Path(scratch))


def _measure(seeds, quick, root, experts):
    steps = 1_200 if quick else STEPS
    measurements, effects, panels = {}, [], {}
    arms = {label: arm for label, arm in CLAIM.arms.items() if not quick or arm.agent == "ailboost"}
    shares, shifted = {label: [] for label in arms}, {label: [] for label in arms}
    for task in TASKS[: 1 if quick else None]:
        dataset, expert, recorded = demonstrate(task, quick, experts)
        chance = random_return(task, quick)
        usable = expert >= 700.0 and recorded[0] >= 0.8 * expert
        measurements[f"expert, {task}"] = {
            "return": round(expert, 2),
            "demonstration": round(float(recorded[0]), 2),
            "recorded": as_list(recorded, 2),
            "random": round(chance, 2),
            "usable": bool(usable),
        }
        panels[task] = {}
        for label, arm in arms.items():
            settings = Settings(
                f"dm_control/{task}-v0",
                steps,
                seeds,
                FIRST_SEED,
                action_repeat=ACTION_REPEAT,
                eval_every=steps // (1 if quick else 5),
                eval_episodes=1 if quick else EPISODES,
                demos=dataset,
                demo_episodes=1,
                normalize_observations=arm.agent == "value_dice",
                progress=False,
            )
            small: dict[str, Any] = QUICK.get(arm.agent, {}) if quick else {}
            table = run(CLAIM, f"{label}/{task}", settings, root, **small).table
            curve = table["return"].reshape(-1, seeds) / expert
            shares[label].append(curve[-1])
            shifted[label].append((curve[-1] * expert - chance) / (expert - chance))
            panels[task][label] = (np.unique(table["step"]), curve)
            measurements[f"{label}, {task}"] = {
                "share_of_expert": as_list(curve[-1]),
                **summarize(curve[-1]),
                "above_random": summarize(shifted[label][-1]),
            }
            if "mixture_return" in table:
                mixture = table["mixture_return"].reshape(-1, seeds)[-1] / expert
                measurements[f"{label}, {task}"]["mixture_share_of_expert"] = as_list(mixture)
        final = {label: each[-1] if usable else np.full(seeds, np.nan) for label, each in shares.items()}
        ten, bar = final["AILBoost, 10 steps"], np.full(seeds, 0.8)
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
    for label in arms:
        both = {name: np.stack(each[label], axis=1) for name, each in (("share", shares), ("above_random", shifted))}
        measurements[f"{label}, all tasks"] = {name: summarize(scores) for name, scores in both.items()}

    def draw(path):
        comparison(
            path,
            panels,
            xlabel="Actions per seed, each held for two steps, roll-outs of learners included",
            ylabel="Return / expert's return",
            caption="One demonstration. Mean of 10 greedy episodes of the newest policy per evaluation and seed.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
