"""From a trained run to demonstrations to agents that imitate: the commands, and what they refuse."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

import agents
from agents import dqn, proto_value, sac
from experiments import command_line, record, run
from offpolicy_jax import demonstrations, environments
from offpolicy_jax.demonstrations import Episode, load, save
from offpolicy_jax.environments import four_rooms
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, restore, rollouts, train
from offpolicy_jax.training.settings import _rows_per_update
from offpolicy_jax.training.train import _Program, load_demonstrations
from tests.agents.probing import assert_same, differ, tiny

SMALL = sac.Config(hidden_sizes=(8,), batch_size=8, learning_starts=10)


def settings(**options):
    base = {"env": "phys2d/Pendulum-v0", "steps": 40, "seeds": 2, "eval_every": 40, "eval_episodes": 2}
    return Settings(progress=False, **(base | options))


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    path = tmp_path_factory.mktemp("expert") / "run"
    train(sac, settings(run_dir=str(path)), SMALL)
    return path


@pytest.fixture(scope="module")
def demos(expert, tmp_path_factory):
    dataset = str(tmp_path_factory.mktemp("demos") / "pendulum-v0")
    assert record.main([f"--run-dir={expert}", f"--dataset={dataset}", "--episodes=2"]) == 0
    return dataset


def test_what_is_recorded_is_the_policy_of_the_run(expert, demos):
    environment = environments.make("phys2d/Pendulum-v0")
    episodes = load(demos, environment)
    assert len(episodes) == 2 and all(len(e.rewards) == 200 and not e.terminated for e in episodes)
    result = settings(run_dir=str(expert), resume=True)
    learner, config = restore(sac, result, SMALL)
    state = jax.tree.map(lambda x: x[0], learner.agent)
    np.testing.assert_allclose(sac.policy(config, state, episodes[0].observations[:-1]), episodes[0].actions, atol=1e-5)
    again = rollouts(sac, environment, config, learner, 0, 2)
    np.testing.assert_allclose(again[0].rewards, episodes[0].rewards, rtol=1e-4)
    other = rollouts(sac, environment, config, learner, 1, 2)
    assert np.max(np.abs(other[0].actions - episodes[0].actions)) > 1e-3
    sampled = rollouts(sac, environment, config, learner, 0, 2, sampled=True)
    assert np.max(np.abs(sampled[0].actions - episodes[0].actions)) > 0.1


def test_the_dataset_says_where_it_comes_from(demos):
    metadata = json.loads(pathlib.Path(demos, "data/metadata.json").read_text())
    assert metadata["algorithm_name"] == "sac" and "phys2d/Pendulum-v0" in metadata["description"]


def test_recording_on_the_host_stops_where_an_episode_ends(tmp_path):
    path = str(tmp_path / "run")
    options = {"env": "InvertedPendulum-v5", "run_dir": path, "seeds": 1, "seed": 3}
    train(sac, settings(**options), SMALL)
    dataset = f"{tmp_path}/pendulum-v0"
    assert record.main([f"--run-dir={path}", f"--dataset={dataset}", "--episodes=3", "--seed=3"]) == 0
    episodes = load(dataset, environments.make("InvertedPendulum-v5"))
    assert all(e.terminated for e in episodes) and len({len(e.rewards) for e in episodes}) > 1


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("bc", "phys2d/Pendulum-v0"),
        pytest.param("iq_learn", "phys2d/Pendulum-v0", marks=pytest.mark.slow),
        pytest.param("value_dice", "phys2d/Pendulum-v0", marks=pytest.mark.slow),
        pytest.param("ailboost", "phys2d/Pendulum-v0", marks=pytest.mark.slow),
        ("ailboost", "dm_control/pendulum-swingup-v0"),
    ],
)
def test_a_run_of_an_imitator_resumes_as_what_it_was(name, env, demos, tmp_path):
    """Cut in two, with bit-identical evaluations, in-graph and on the host."""
    if env.startswith("dm_control"):
        demos = f"{tmp_path}/swingup-v0"
        environment = environments.make(env)
        rng = np.random.default_rng(0)
        observations = {
            k: rng.normal(size=(41, *s.shape)).astype(np.float32) for k, s in environment.spec.observation.items()
        }
        save(demos, environment, [Episode(observations, np.full((40, 1), 0.5, np.float32), np.zeros(40), False)])
    agent = agents.load(name)
    config = tiny(agent)
    options = {"env": env, "demos": demos, "demo_episodes": 1, "steps": 60, "eval_every": 20, "eval_episodes": 1}
    options["normalize_observations"] = name == "value_dice"
    whole = train(agent, settings(run_dir=f"{tmp_path}/whole", **options), config)
    train(agent, settings(run_dir=f"{tmp_path}/cut", **(options | {"steps": 20})), config)
    resumed = train(agent, settings(run_dir=f"{tmp_path}/cut", resume=True, **options), config)
    assert_same(whole.states, resumed.states)
    for file in ("evaluations.csv", "metrics.csv"):
        assert pathlib.Path(tmp_path, "whole", file).read_bytes() == pathlib.Path(tmp_path, "cut", file).read_bytes()
    previous = command_line.parse(["--resume", f"--run-dir={tmp_path}/whole"])[1]  # the command needs no more to go on
    assert (previous.demos, previous.demo_episodes) == (demos, 1)
    assert ("mixture_return" in whole.table) == (name == "ailboost")
    if name == "ailboost":
        assert set(whole.summary["mixture_return"]) == {"0", "1"} and whole.summary["mixture_iqm"] is not None
        assert "of the mixture of all learners: IQM" in run.describe(whole.summary, None)
    assert np.all(np.isfinite(whole.table["return"]))
    document = json.loads(pathlib.Path(tmp_path, "whole/config.json").read_text())
    assert document["settings"]["demos"] == demos


def test_absorbing_states_go_through_a_run(tmp_path):
    path, dataset = str(tmp_path / "run"), f"{tmp_path}/pendulum-v0"
    options = {"env": "InvertedPendulum-v5", "seeds": 1, "eval_every": 20}
    train(sac, settings(run_dir=path, **options), SMALL)
    record.main([f"--run-dir={path}", f"--dataset={dataset}", "--episodes=2"])
    options |= {"demos": dataset, "absorbing_states": True, "run_dir": f"{tmp_path}/dac"}
    dac = agents.load("dac")
    result = train(dac, settings(**options), tiny(dac, replay_capacity=100))
    assert np.all(np.isfinite(result.table["return"]))
    learner, _ = restore(dac, settings(**(options | {"resume": True})), tiny(dac, replay_capacity=100))
    storage, expert = learner.replay.storage, learner.replay.demonstrations
    assert not np.any(storage.terminated) and not np.any(expert.terminated)
    for part in (storage, expert):
        inside, after = part.observation["absorbing"], part.next_observation["absorbing"]
        entered = np.sum(after) - np.sum(inside)  # each episode enters it, and stays once, but for the one under way
        assert np.sum(inside) >= 1 and entered - np.sum(inside) in (0, 1)
        assert np.all(np.asarray(part.truncated)[np.asarray(inside[..., 0]) == 1.0])
    # A policy that observes the indicator is recorded where there is none.
    assert record.main([f"--run-dir={tmp_path}/dac", f"--dataset={tmp_path}/again-v0", "--episodes=2"]) == 0
    (episode, _) = demonstrations.load(f"{tmp_path}/again-v0", environments.make("InvertedPendulum-v5"))
    assert episode.observations.shape[1:] == (4,) and episode.terminated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ailboost", "bc", "iq_learn", "value_dice"])
def test_imitators_run_on_mujoco_with_absorbing_states(name, tmp_path):
    dataset = f"{tmp_path}/pendulum-v0"
    falls = [Episode(np.zeros((6, 4), np.float32), np.zeros((5, 1), np.float32), np.ones(5, np.float32), True)] * 2
    save(dataset, environments.make("InvertedPendulum-v5"), falls)
    options = {"env": "InvertedPendulum-v5", "demos": dataset, "absorbing_states": True}
    result = train(agents.load(name), settings(**options), tiny(agents.load(name)))
    assert result.summary["learned"] and np.all(np.isfinite(result.table["return"]))


@pytest.mark.parametrize(
    ("agent", "options", "message"),
    [
        ("bc", {}, "bc imitates: name a Minari dataset by --demos"),
        ("sac", {"demos": "x-v0"}, "sac learns from no demonstrations: leave out --demos"),
        ("sac", {"absorbing_states": True}, "sac learns from the environment's own rewards"),
        ("bc", {"demo_episodes": 2}, "--demo-episodes needs --demos"),
        ("bc", {"demos": "x-v0", "clip_rewards": True}, "bc does not learn from the environment's rewards: leave out"),
        ("dac", {"demos": "x-v0", "normalize_rewards": True}, "leave out --normalize-rewards"),
        ("bc", {"demos": "nothing-v0"}, "there is no dataset nothing-v0"),
        ("bc", {"demos": "nothing-v0", "demo_episodes": -1}, "--demo-episodes must be at least 0, not -1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(agent, options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        train(agents.load(agent), settings(**options), tiny(agents.load(agent)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes=0"], "--episodes must be at least 1, not 0"),
        (["--seed=7"], "has seeds 0 to 1, not 7"),
        (["--episodes=many"], "argument --episodes: invalid int value"),
        (["--dataset={tmp}/no"], "no is no id of a dataset: end it in a version, as in no-v0"),
        (["--dataset={demos}"], "already exists: choose another --dataset"),
        (["--run-dir={tmp}/none"], "there is no run in"),
    ],
)
def test_recording_refuses_in_one_line(arguments, message, expert, demos, tmp_path, capsys):
    base = [f"--run-dir={expert}", f"--dataset={tmp_path}/new-v0"]
    assert record.main(base + [a.format(tmp=tmp_path, demos=demos) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("record.py: ") and message in lines[0]
    assert not (tmp_path / "new-v0").exists()


def test_a_learner_is_chosen_and_set_from_the_command_line():
    arguments = ["--agent=ailboost", "--config.learner=dsac_t", "--config.dsac_t.batch_size=7", "--demos=x-v0"]
    _, options, config, _ = command_line.parse(arguments)
    assert (config.learner, config.dsac_t.batch_size, options.demos) == ("dsac_t", 7, "x-v0")
    with pytest.raises(UserError, match="learner"):
        command_line.parse(["--agent=dac", "--config.learner=ppo"])


def test_values_that_never_stop_need_absorbing_states(monkeypatch):
    episode = Episode(np.zeros((3, 3), np.float32), np.zeros((2, 1), np.float32), np.zeros(2, np.float32), True)
    monkeypatch.setattr(demonstrations, "load", lambda *_: [episode])
    asked = settings(demos="falls-v0")
    environment = environments.make(asked.env)
    assert load_demonstrations(agents.load("iq_learn"), asked, environment) is not None
    with pytest.raises(UserError, match="--absorbing-states"):
        load_demonstrations(agents.load("value_dice"), asked, environment)


def test_a_diverged_seed_has_no_mixture_return():
    program = types.SimpleNamespace(
        evaluate=lambda learner: (np.ones((2, 3)), np.ones((2, 3))),
        evaluate_mixture=lambda learner: (np.full((2, 3), 7.0), np.ones((2, 3))),
        value_bias=None,
        diverged_at=np.array([-1, 20]),
        settings=settings(),
    )
    carry = types.SimpleNamespace(learner=None)
    rows = _Program.evaluation_rows(program, carry, 40)
    assert rows[0]["mixture_return"] == 7.0 and np.isnan(rows[1]["mixture_return"])


def test_batches_of_parts_need_memory_too():
    part = agents.load("sac").Config(batch_size=100, gradient_steps=3)
    count = _rows_per_update
    assert count(part, 1) == 300 and count(part.replace(gradient_steps=-1), 8) == 800
    whole = agents.load("dac").Config(sac=part)
    assert count(whole, 1) == max(300, count(whole.replace(sac=part.replace(batch_size=1)), 1))


@pytest.mark.slow
def test_proto_value_networks_pre_train_on_a_dataset_of_any_policy(tmp_path):
    """Not on what the run collects meanwhile: the networks of a run without rewards differ by dataset alone."""
    environment = environments.make("gridworld/FourRoomsPixels-v0")
    options = {"env": "gridworld/FourRoomsPixels-v0", "steps": 60, "eval_every": 60, "seeds": 2}
    inner = dqn.Config(hidden_sizes=(8,), batch_size=4, n_step=2)
    sizes = {"num_tasks": 4, "tasks_per_network": 2, "learning_starts": 8, "threshold_steps": 4, "batch_size": 8}
    params = {}
    for name, cells in (("some", (3, 4)), ("others", (90, 91))):
        observations = four_rooms.pictures()[np.resize(cells, 41)]
        save(f"{tmp_path}/{name}-v0", environment, [Episode(observations, np.zeros(40, np.int32), np.zeros(40), False)])
        run = settings(**options, demos=f"{tmp_path}/{name}-v0")
        params[name] = train(proto_value, run, proto_value.Config(dqn=inner, **sizes)).states.params
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert differ(params["some"], params["others"])
