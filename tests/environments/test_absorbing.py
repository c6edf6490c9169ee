"""Absorbing states in place of terminations, in-graph and on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import environments
from offpolicy_jax.environments.absorbing import without_absorbed_action
from offpolicy_jax.errors import UserError
from tests import probes


def in_graph_steps(environment, count, action=0.0):
    """Every `Step` of one environment, and the observations before them."""
    state, observation = environment.reset(jax.random.key(0))
    rows = []
    for _ in range(count):
        state, taken = environment.step(state, jnp.full(environment.spec.action.shape, action))
        rows.append((observation, taken))
        observation = taken.observation
    return rows


def indicator(observation):
    return float(np.ravel(observation["absorbing"])[0])


def test_an_episode_that_terminates_ends_with_one_step_in_the_absorbing_state():
    """`OneStep`: begin -> absorbing -> absorbing, then a new episode."""
    environment = environments.with_absorbing(probes.OneStep())
    rows = in_graph_steps(environment, 6)
    for i, (observation, taken) in enumerate(rows):
        absorbed = i % 2
        assert indicator(observation) == absorbed
        assert indicator(taken.next_observation) == 1.0  # the successor of either is absorbing
        assert not np.any(taken.next_observation["observation"])
        assert indicator(taken.observation) == 1.0 - absorbed
        assert float(taken.reward) == 1.0 - absorbed
        assert not taken.terminated and bool(taken.truncated) == bool(absorbed)


def test_a_time_limit_is_left_as_it_is():
    plain, environment = probes.ConstantReward(limit=3), None
    environment = environments.with_absorbing(plain)
    for (_, taken), (_, expected) in zip(in_graph_steps(environment, 7), in_graph_steps(plain, 7), strict=True):
        assert not np.any(taken.next_observation["absorbing"]) and not np.any(taken.observation["absorbing"])
        np.testing.assert_array_equal(taken.next_observation["observation"], expected.next_observation)
        assert (taken.truncated, taken.terminated) == (expected.truncated, expected.terminated)
    assert environment.spec.max_episode_steps == 4


def host_steps(environment, count, seed=0):
    rng = np.random.default_rng(seed)
    shape = (environment.num_envs, *environment.spec.action.shape)
    return [environment.step(rng.uniform(-1.0, 1.0, shape).astype(np.float32)) for _ in range(count)]


def test_on_the_host_the_other_environments_go_on_meanwhile():
    """Each one's own steps are what they are without absorbing states, one held step after each termination aside."""
    id, seeds = "InvertedPendulum-v5", np.arange(3)
    environment = environments.with_absorbing(environments.make(id, 3))
    begun = environment.reset(seeds)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (60, 3, 1)).astype(np.float32)
    steps = [environment.step(a) for a in actions]
    assert not np.any(begun["absorbing"])
    for i in range(3):
        alone = environments.make(id)
        observation = alone.reset(seeds[i : i + 1])
        np.testing.assert_array_equal(begun["observation"][i], observation[0])
        absorbed = endings = 0
        for t, step in enumerate(steps):
            if absorbed:
                assert step.truncated[i] and step.reward[i] == 0.0 and step.next_observation["absorbing"][i] == 1.0
                assert step.observation["absorbing"][i] == 0.0
                np.testing.assert_array_equal(step.observation["observation"][i], observation[0])
                absorbed = False
                continue
            taken = alone.step(actions[t, i : i + 1])
            observation, absorbed = taken.observation, bool(taken.terminated[0])
            endings += absorbed
            assert step.reward[i] == taken.reward[0] and not step.terminated[i] and not step.truncated[i]
            assert step.next_observation["absorbing"][i] == step.observation["absorbing"][i] == absorbed
            if not absorbed:
                np.testing.assert_array_equal(step.next_observation["observation"][i], taken.next_observation[0])
        assert endings >= 2


@pytest.mark.parametrize("id", ["InvertedPendulum-v5", "CartPole-v1"])
def test_it_resumes_exactly_also_from_an_absorbing_state(id):
    environment = environments.with_absorbing(environments.make(id, 2))
    other = environments.with_absorbing(environments.make(id, 2))
    environment.reset(np.arange(2))
    action = np.ones((2, *environment.spec.action.shape), environment.spec.action.dtype)
    seen = set()
    for _ in range(40):
        seen.add(bool(np.any(environment.step(action).observation["absorbing"])))
        other.set_state(environment.get_state())
        jax.tree.map(np.testing.assert_array_equal, other.observation, environment.observation)
        state = environment.get_state()
        first, second = environment.step(action), other.step(action)
        jax.tree.map(np.testing.assert_array_equal, first, second)
        environment.set_state(state)
    assert seen == {False, True}


def test_actions_in_absorbing_states_are_hidden():
    action = np.float32([[0.5, -1.0], [0.2, 0.3]])
    observation = {"absorbing": np.float32([[1.0], [0.0]]), "observation": np.zeros((2, 3), np.float32)}
    np.testing.assert_allclose(without_absorbed_action(observation, action), [[0.0, 0.0], [0.2, 0.3]])
    np.testing.assert_array_equal(without_absorbed_action(observation["observation"], action), action)
    normalised = {**observation, "absorbing": (observation["absorbing"] - 0.02) / 0.14}
    np.testing.assert_allclose(without_absorbed_action(normalised, action), [[0.0, 0.0], [0.2, 0.3]])


def test_an_environment_that_cannot_hold_some_copies_is_refused():
    with pytest.raises(UserError, match="cannot have absorbing states"):
        environments.with_absorbing(probes.HostProbe(probes.OneStep(), 2))
