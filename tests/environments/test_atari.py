"""Atari: Gymnasium's own preprocessing underneath, conventions, endings, exact resume, and a run of each agent."""

import csv
import dataclasses
import json
import sys

import gymnasium
import jax
import numpy as np
import pytest

import offpolicy_jax.training.train  # noqa: F401  (its name is hidden by the function's)
from agents import dqn
from experiments.open_run import open_run
from experiments.run import main
from offpolicy_jax.environments import atari, known_ids, make
from offpolicy_jax.environments.atari import Conventions
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, train
from offpolicy_jax.training.learner import start
from tests.environments.test_host import bits, random_actions, through_a_file

PONG = "ALE/Pong-v5"
training_module = sys.modules["offpolicy_jax.training.train"]


def test_observations_are_those_of_gymnasium_s_wrappers():
    import ale_py
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    gymnasium.register_envs(ale_py)
    reference = gymnasium.make(PONG, frameskip=1, repeat_action_probability=0.25)
    reference = FrameStackObservation(AtariPreprocessing(reference, noop_max=0), 4)
    ours = make(PONG, 1)
    assert ours.spec.observation.frames == 4 and ours.spec.max_episode_steps == 27_000
    assert (ours.spec.num_actions, ours.exact_resume) == (6, True)
    expected, _ = reference.reset(seed=5)
    observation = ours.reset(np.array([5]))
    rng = np.random.default_rng(0)
    for _ in range(40):
        np.testing.assert_array_equal(observation[0], np.moveaxis(expected, 0, -1))
        assert observation.dtype == np.uint8
        action = int(rng.integers(6))
        expected, reward, terminated, truncated, _ = reference.step(action)
        step = ours.step(np.array([action]))
        observation = step.observation
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)


def test_stacks_continue_and_a_limit_truncates():
    host = make(PONG, 2, Conventions(max_frames=24, frame_stack=3, screen_size=20, noop_max=6))
    assert host.spec.max_episode_steps == 6
    before, rng = host.reset(np.array([1, 2])), np.random.default_rng(0)
    assert before.shape == (2, 20, 20, 3)
    for i in range(1, 14):
        step = host.step(random_actions(host, rng))
        np.testing.assert_array_equal(step.next_observation[..., :-1], before[..., 1:])
        assert step.truncated.all() == (i % 6 == 0) and not step.terminated.any()
        before = step.observation
        if i % 6 == 0:  # a new episode repeats its first frame, and the true successor is another one
            np.testing.assert_array_equal(before, np.repeat(before[..., -1:], 3, axis=-1))
            assert np.any(step.next_observation != before)


def test_a_lost_life_ends_an_episode_but_not_the_game():
    conventions = Conventions(life_loss=True, sticky_actions=0.0, screen_size=20, frame_stack=2)
    host = make("ALE/Breakout-v5", 1, conventions)
    lives = lambda: host._environments[0]._game.ale.lives()  # noqa: E731
    host.reset(np.array([0]))
    seen, rng = [lives()], np.random.default_rng(0)
    while len(seen) < 8:
        step = host.step(np.array([1]) if rng.random() < 0.5 else rng.integers(0, 4, 1))  # 1 serves the ball
        assert not step.truncated[0]
        if step.terminated[0]:
            seen.append(lives())
            np.testing.assert_array_equal(step.observation[..., 0], step.observation[..., 1])
            assert np.any(step.next_observation != step.observation)
    assert seen == [5, 4, 3, 2, 1, 5, 4, 3]
    host.reset(np.array([1]))  # a seed begins a game
    assert lives() == 5
    whole = make("ALE/Breakout-v5", 1, atari.whole_games(conventions))
    whole.reset(np.array([0]))
    steps = 0
    while not whole.step(np.array([1]) if rng.random() < 0.5 else rng.integers(0, 4, 1)).terminated[0]:
        steps += 1
    assert steps > 50


@pytest.mark.parametrize("sticky", [0.25, 0.0])
def test_resume_is_bit_identical(sticky):
    rng, conventions = np.random.default_rng(0), Conventions(sticky_actions=sticky, noop_max=5, max_frames=60)
    undisturbed, saved, resumed = (make(PONG, 2, conventions) for _ in range(3))
    for seed, host in zip((3, 3, 8), (undisturbed, saved, resumed), strict=True):
        host.reset(np.array([seed, seed + 1]))
    for _ in range(22):  # into the second episode
        actions = random_actions(saved, rng)
        undisturbed.step(actions)
        saved.step(actions)
    resumed.set_state(through_a_file(saved.get_state()))
    assert bits(resumed.observation) == bits(undisturbed.observation)
    for _ in range(40):  # over two more resets
        actions = random_actions(saved, rng)
        assert bits(resumed.step(actions)) == bits(undisturbed.step(actions))


def test_conventions_that_nothing_can_follow_are_refused(monkeypatch):
    for change, message in (
        ({"frame_skip": 0}, "--atari.frame-skip must be from 1"),
        ({"sticky_actions": 1.5}, "--atari.sticky-actions must be from 0 to 1"),
        ({"max_frames": 3}, "--atari.max-frames must be from 4"),
    ):
        with pytest.raises(UserError, match=message):
            train(dqn, Settings(env=PONG, atari=Conventions(**change)))
    with pytest.raises(UserError, match="ALE/<Game>-v5, not CartPole-v1"):
        train(dqn, Settings(env="CartPole-v1", atari=Conventions(frame_skip=2)))
    with pytest.raises(UserError, match="did you mean ALE/Pong-v5"):
        make("ALE/Pnog-v5")
    assert PONG in known_ids()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match=r"pip install 'offpolicy-jax\[atari\]'"):
        make(PONG)
    assert atari.known_atari_ids() == []


def test_the_replay_takes_little_more_than_a_frame_per_transition():
    spec, capacity = make(PONG).spec, 1_000_000
    config = dqn.PRESETS["paper"]
    learner = jax.eval_shape(
        lambda k: start(dqn, config, spec, k, 1, False, False), jax.eval_shape(lambda: jax.random.key(0))
    )
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(learner.replay))
    assert learner.replay.capacity == capacity
    assert 84 * 84 <= size / capacity <= 1.01 * 84 * 84


LEARNER = dqn.Config(hidden_sizes=(8,), batch_size=4, learning_starts=20, n_step=2, rollout_length=4)
CONVENTIONS = Conventions(max_frames=100, screen_size=20)
RUN = Settings(
    env=PONG, steps=80, seeds=1, eval_every=40, eval_episodes=1, progress=False, clip_rewards=True, atari=CONVENTIONS
)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = dataclasses.replace(RUN, run_dir=str(tmp_path / "whole"))
    cut = dataclasses.replace(RUN, run_dir=str(tmp_path / "cut"))
    first = train(dqn, whole, LEARNER)
    train(dqn, dataclasses.replace(cut, steps=40), LEARNER)
    second = train(dqn, dataclasses.replace(cut, resume=True), LEARNER)
    assert first.summary["learned"] and len(first.table["return"]) == 2
    jax.tree.map(np.testing.assert_array_equal, first.states, second.states)
    for name in ("evaluations.csv", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    other = dataclasses.replace(cut, resume=True, atari=dataclasses.replace(CONVENTIONS, frame_skip=3))
    with pytest.raises(UserError, match=r"--atari.frame-skip"):
        train(dqn, other, LEARNER)


def test_evaluations_and_films_are_of_whole_games(tmp_path, monkeypatch):
    made, make_environment = [], training_module.make_environment

    def watched(settings, num_envs=1):
        made.append((num_envs, settings.atari.life_loss))
        return make_environment(settings, num_envs)

    monkeypatch.setattr(training_module, "make_environment", watched)
    lives = dataclasses.replace(CONVENTIONS, life_loss=True)
    run = dataclasses.replace(RUN, steps=40, eval_episodes=3, run_dir=str(tmp_path / "run"), atari=lives)
    train(dqn, run, LEARNER)
    assert (3, False) in made and (1, True) in made and (3, True) not in made
    assert not open_run(run.run_dir).settings.atari.life_loss
    with pytest.raises(UserError, match="whole games"):
        train(dqn, dataclasses.replace(RUN, value_bias=True, atari=lives), LEARNER)


def test_the_command_trains_proto_value_networks(tmp_path, capsys):
    flags = ["--agent=proto_value", f"--env={PONG}", "--steps=80", "--seeds=1", "--eval-episodes=1", "--eval-every=80"]
    flags += ["--clip-rewards", "--atari.max-frames=100", "--atari.screen-size=20", "--no-progress"]
    config = {"num_tasks": 4, "tasks_per_network": 2, "learning_starts": 16, "threshold_steps": 8, "batch_size": 4}
    config |= {"pretrain_steps": 40, "rollout_length": 4, "dqn.batch_size": 4, "dqn.n_step": 2}
    flags += [f"--config.{name}={value}" for name, value in config.items()]
    assert main([*flags, "--config.dqn.hidden-sizes", "8", f"--run-dir={tmp_path / 'run'}"]) == 0
    assert "proto_value on ALE/Pong-v5, 80 steps" in capsys.readouterr().out
    with open(tmp_path / "run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert np.isfinite(float(rows[-1]["tasks/loss"])) and float(rows[-1]["critic/loss"]) >= 0.0
    settings = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert settings["clip_rewards"] and settings["atari"]["screen_size"] == 20
