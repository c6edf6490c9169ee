"""Demonstrations: Minari datasets in and out."""

import dataclasses
import json
import pathlib

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from offpolicy_jax import environments
from offpolicy_jax.demonstrations import Episode, absorb, load, save, transitions
from offpolicy_jax.errors import UserError


class Toy(gymnasium.Env):
    """Observations and actions of many kinds; nothing happens."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (3,), np.float64)
        self.action_space = action_space or spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


NESTED = spaces.Dict(
    {
        "z": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        "a": spaces.Tuple([spaces.Discrete(4), spaces.Box(0, 255, (2, 2, 1), np.uint8)]),
    }
)
KINDS = {
    "box": (None, None),
    "nested": (NESTED, spaces.Discrete(5, start=2)),
    "integer box": (spaces.MultiDiscrete([3, 5]), spaces.Box(-1, 2, (1,), np.int64)),
}


@pytest.fixture(params=KINDS)
def environment(request):
    gymnasium.register(
        "test/Toy-v0", Toy, kwargs=dict(zip(("observation_space", "action_space"), KINDS[request.param], strict=True))
    )
    yield environments.make("test/Toy-v0")
    del gymnasium.registry["test/Toy-v0"]


def random_episodes(environment, lengths=(4, 1, 7)):
    rng, spec, episodes = np.random.default_rng(0), environment.spec, []

    def array(s, n):
        if s.num_values is not None:
            return rng.integers(s.num_values, size=(n, *s.shape)).astype(s.dtype)
        if s.dtype == np.uint8:
            return rng.integers(256, size=(n, *s.shape)).astype(np.uint8)
        return rng.uniform(-1.0, 1.0, (n, *s.shape)).astype(s.dtype)

    for i, n in enumerate(lengths):
        observations = jax.tree.map(lambda s, n=n: array(s, n + 1), spec.observation)
        rewards = rng.normal(size=n).astype(np.float32)
        episodes.append(Episode(observations, array(spec.action, n), rewards, i == 1))
    return episodes


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), a, b)


def test_what_was_saved_is_loaded(environment, tmp_path):
    episodes = random_episodes(environment)
    save(f"{tmp_path}/toy-v3", environment, episodes, algorithm_name="sac")
    loaded = load(f"{tmp_path}/toy-v3", environment)
    assert_same(loaded, episodes)
    for one, other in zip(loaded, episodes, strict=True):
        assert one.actions.dtype == other.actions.dtype == environment.spec.action.dtype
    assert_same(load(f"{tmp_path}/toy-v3/data", environment, 2), episodes[:2])


def test_minari_reads_it_in_the_environment_s_own_units(tmp_path):
    import minari

    environment = environments.make("Pendulum-v1")
    episodes = random_episodes(environment)
    save(f"{tmp_path}/pendulum-v0", environment, episodes, algorithm_name="sac")
    data = minari.MinariDataset(tmp_path / "pendulum-v0/data")
    assert data.id == "pendulum-v0" and data.total_episodes == 3 and data.total_steps == 12
    assert data.env_spec.id == "Pendulum-v1" and data.storage.metadata["algorithm_name"] == "sac"
    first = data[0]
    assert data.action_space.contains(first.actions[0].astype(np.float32))
    np.testing.assert_allclose(first.actions, 2.0 * episodes[0].actions, rtol=1e-6)
    assert not first.terminations.any() and first.truncations.tolist() == [False] * 3 + [True]
    assert data[1].terminations.tolist() == [True]


def test_an_id_is_one_of_minari_s_own_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    environment = environments.make("phys2d/Pendulum-v0")
    save("pendulum-v0", environment, random_episodes(environment))
    assert (tmp_path / "pendulum-v0/data").is_dir()
    assert len(load("pendulum-v0", environment)) == 3
    with pytest.raises(UserError, match="already exists"):
        save("pendulum-v0", environment, random_episodes(environment))


def test_a_dataset_that_minari_recorded_itself(tmp_path, monkeypatch):
    """Its observations are float64, as MuJoCo's are; ours float32."""
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    collector = minari.DataCollector(gymnasium.make("InvertedPendulum-v5"))
    seen = []
    for seed in range(2):
        seen.append([collector.reset(seed=seed)[0]])
        done = False
        while not done:
            observation, _, terminated, truncated, _ = collector.step(collector.action_space.sample())
            seen[-1].append(observation)
            done = terminated or truncated
    collector.create_dataset("other-v0")
    episodes = load("other-v0", environments.make("InvertedPendulum-v5"))
    for episode, observations in zip(episodes, seen, strict=True):
        np.testing.assert_allclose(episode.observations, np.stack(observations), rtol=1e-6)
        assert episode.terminated and episode.observations.dtype == np.float32
        assert np.all(np.abs(episode.actions) <= 1.0)


def test_transitions_follow_each_other_within_episodes_only():
    environment = environments.make("Pendulum-v1")
    episodes = random_episodes(environment)
    data = transitions(episodes)
    np.testing.assert_array_equal(data.truncated.nonzero()[0], [3, 11])
    np.testing.assert_array_equal(data.terminated.nonzero()[0], [4])
    ends = data.terminated | data.truncated
    np.testing.assert_array_equal(data.next_observation[:-1][~ends[:-1]], data.observation[1:][~ends[:-1]])
    for i, episode in zip([3, 4, 11], episodes, strict=True):
        np.testing.assert_array_equal(data.next_observation[i], episode.observations[-1])
    np.testing.assert_array_equal(data.action, np.concatenate([e.actions for e in episodes]))


@pytest.fixture
def saved(tmp_path):
    environment = environments.make("Pendulum-v1")
    episodes = random_episodes(environment)
    save(f"{tmp_path}/pendulum-v0", environment, episodes)
    return f"{tmp_path}/pendulum-v0", environment, episodes


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("HalfCheetah-v5", r"its observations are float32\[3\], not float32\[17\]"),
        ("dm_control/pendulum-swingup-v0", r"its observations are float32\[3\], not \{orientation: float32\[2\], .*\}"),
        ("MountainCarContinuous-v0", r"its observations are float32\[3\], not float32\[2\]"),
    ],
)
def test_other_spaces_are_refused_in_one_line(id, message, saved):
    environment = environments.make(id)
    with pytest.raises(UserError, match=f"does not fit {id}: {message}") as error:
        load(saved[0], environment)
    assert "\n" not in str(error.value)


def test_an_environment_with_the_same_spaces_may_use_it(saved):
    assert_same(load(saved[0], environments.make("phys2d/Pendulum-v0")), saved[2])


def test_other_action_bounds_are_refused(saved, tmp_path):
    path, environment, _ = saved
    wide = dataclasses.make_dataclass("Wide", ["spec", "observation_space", "action_space"])
    wide = wide(environment.spec, environment.observation_space, spaces.Box(-3.0, 3.0, (1,)))
    with pytest.raises(UserError, match="its actions are in Box"):
        load(path, wide)


def damaged(tmp_path, environment, **changes):
    episode = random_episodes(environment)[0]._replace(**changes)
    save(f"{tmp_path}/bad-v0", environment, [episode])
    return f"{tmp_path}/bad-v0"


def test_bad_episodes_are_refused_in_one_line(saved, tmp_path):
    path, environment, episodes = saved
    first = episodes[0]
    cases = {
        "not finite": {"observations": np.where(np.arange(5)[:, None] == 2, np.nan, first.observations)},
        "numbers that are not finite": {"rewards": np.float32([0, np.inf, 0, 0])},
        "incomplete": {"observations": first.observations[:-1]},
    }
    for i, (message, change) in enumerate(cases.items()):
        (tmp_path / str(i)).mkdir()
        with pytest.raises(UserError, match=message) as error:
            load(damaged(tmp_path / str(i), environment, **change), environment)
        assert "\n" not in str(error.value) and "episode 0" in str(error.value)
    with pytest.raises(UserError, match="has 3 episodes: lower --demo-episodes=4"):
        load(path, environment, 4)
    save(f"{tmp_path}/empty-v0", environment, [])
    with pytest.raises(UserError, match="has no episodes"):
        load(f"{tmp_path}/empty-v0", environment)


def test_a_dataset_that_is_not_there_or_not_readable(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    environment = saved[1]
    for name in ("nothing-v0", f"{tmp_path}/nothing-v0", "no id at all"):
        with pytest.raises(UserError, match=r"there is no dataset|cannot read") as error:
            load(name, environment)
        assert "\n" not in str(error.value)
    metadata = pathlib.Path(saved[0], "data/metadata.json")
    metadata.write_text(metadata.read_text()[:-20])
    with pytest.raises(UserError, match="cannot read the dataset") as error:
        load(saved[0], environment)
    assert "\n" not in str(error.value)
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="cannot read the dataset"):
        load(str(tmp_path / "directory"), environment)


@pytest.mark.parametrize("name", ["pendulum", "a b-v0", "pendulum-v"])
def test_a_name_without_a_version_is_refused(name, saved, tmp_path):
    with pytest.raises(UserError, match="is no id of a dataset"):
        save(f"{tmp_path}/{name}", saved[1], saved[2])
    assert not (tmp_path / name).exists()


def test_metadata_is_json(saved):
    assert json.loads(pathlib.Path(saved[0], "data/metadata.json").read_text())["dataset_id"] == "pendulum-v0"


def test_a_terminated_episode_goes_on_in_the_absorbing_state():
    environment = environments.make("Pendulum-v1")
    cut, ended, _ = random_episodes(environment)  # the second terminated, after one step
    same = absorb(cut)
    np.testing.assert_array_equal(same.observations["observation"], cut.observations)
    assert not same.observations["absorbing"].any() and not same.terminated
    longer = absorb(ended)
    assert longer.observations["absorbing"].ravel().tolist() == [0.0, 1.0, 1.0]
    np.testing.assert_array_equal(longer.observations["observation"][0], ended.observations[0])
    assert not longer.observations["observation"][1:].any()
    assert longer.actions.shape == (2, 1) and longer.actions[1] == 0.0 and longer.rewards[1] == 0.0
    data = transitions([longer])
    assert data.truncated.tolist() == [False, True] and not data.terminated.any()


def test_other_action_repeats_are_refused(tmp_path):
    path, twice = str(tmp_path / "pendulum-v0"), environments.make("Pendulum-v1", action_repeat=2)
    save(path, twice, random_episodes(twice))
    assert len(load(path, twice)) == 3
    once = environments.make("Pendulum-v1")
    with pytest.raises(UserError, match="was recorded with --action-repeat=2, not 1: use that one"):
        load(path, once)
    metadata = pathlib.Path(path) / "data" / "metadata.json"
    silent = json.loads(metadata.read_text())
    del silent["action_repeat"]  # as in datasets from elsewhere: every step had an action of its own
    metadata.write_text(json.dumps(silent))
    assert len(load(path, once)) == 3
    with pytest.raises(UserError, match="was recorded with --action-repeat=1, not 2"):
        load(path, twice)
