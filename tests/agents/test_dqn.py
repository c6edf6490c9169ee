"""DQN as an agent: the probes, exploration, the target's period, and values that stay where they can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn
from offpolicy_jax.environments import make
from offpolicy_jax.errors import UserError
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_same, differ, full_replay, learn, random_experience, start

SMALL = {"hidden_sizes": (32,), "learning_rate": 1e-2, "learning_starts": 0, "target_period": 5, "discount": 0.5}


def learned(probe, updates, **changes):
    environment = probe(discrete=True)
    config = dqn.Config(**(SMALL | changes))
    state = start(dqn, config, environment.spec, jax.random.key(0))
    return learn(dqn, config, state, random_experience(environment), jax.random.key(1), updates)


def values(state, observations):
    return np.asarray(state.network.apply(state.params, jnp.asarray(observations)[:, None]))


@pytest.mark.parametrize("double", [False, True])
def test_probes(double):
    probe = functools.partial(learned, double=double)
    # A time limit is no ending: 1 / (1 - gamma), while an ending is one.
    np.testing.assert_allclose(values(probe(probes.ConstantReward, 800), [0.0]), 2.0, atol=0.1)
    np.testing.assert_allclose(values(probe(probes.OneStep, 400), [0.0]), 1.0, atol=0.05)
    q = values(probe(probes.ObservationReward, 600), [-1.0, 1.0])
    np.testing.assert_allclose(q, [[-1.0, -1.0], [1.0, 1.0]], atol=0.1)
    assert np.argmax(values(probe(probes.ObservationAction, 800), [-1.0, 1.0]), axis=1).tolist() in ([0, 1], [1, 0])


def test_n_step_returns_reach_the_same_values():
    state = learned(probes.ConstantReward, 800, n_step=3, learning_starts=12)
    np.testing.assert_allclose(values(state, [0.0]), 2.0, atol=0.1)


def test_values_stay_within_the_largest_return():
    """On CartPole random data, 1 / (1 - gamma) = 100 bounds Q; a linear loss beyond errors of 1 lets it run away."""
    environment = make("phys2d/CartPole-v1")
    replay = random_experience(environment, 1_000, 4)
    observations = replay.storage.observation.reshape(-1, 4)

    def largest(huber_delta):
        config = dqn.Config(target_period=50, huber_delta=huber_delta)
        state = start(dqn, config, environment.spec, jax.random.key(0))
        state = learn(dqn, config, state, replay, jax.random.key(1), 3_000)
        return float(jnp.max(state.network.apply(state.params, observations)))

    assert largest(dqn.Config().huber_delta) < 100.0 < largest(1.0)


def test_epsilon_falls_from_one_after_the_warm_up():
    config = dqn.Config(learning_starts=100, epsilon_decay_steps=200, epsilon=0.1)
    steps = jnp.array([0, 100, 200, 300, 10_000])
    np.testing.assert_allclose(dqn.exploration(config, steps), [1.0, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)
    config = config.replace(epsilon=0.4, hidden_sizes=(8,))  # type: ignore[attr-defined]
    state = start(dqn, config, DISCRETE, jax.random.key(0))
    observation = jnp.ones((4_000, 3))
    action = dqn.act(config, state, observation, jnp.int32(10_000), jax.random.key(1))[0]
    greedy = dqn.policy(config, state, observation)
    np.testing.assert_allclose(np.mean(action != greedy), 0.4 * 3 / 4, atol=0.03)


def test_the_target_is_copied_when_the_steps_pass_its_period():
    config = dqn.Config(**(SMALL | {"target_period": 10, "rollout_length": 4}))
    state = start(dqn, config, DISCRETE, jax.random.key(0))
    replay = full_replay(dqn, config, DISCRETE, state, num_envs=1)
    for step, due in ((4, False), (8, False), (12, True), (16, False), (20, True)):
        new, _ = jax.jit(dqn.update)(config, state, replay, np.int32(step), jax.random.key(step))
        assert differ(new.params, state.params)
        assert_same(new.target, new.params if due else state.target)
        state = new


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="discrete"):
        dqn.init(dqn.Config(), CONTINUOUS, jax.random.key(0))
    config = dqn.Config(**(SMALL | {"n_step": 3}))
    state = start(dqn, config, DISCRETE, jax.random.key(0))
    replay = full_replay(dqn, config, DISCRETE, state, num_envs=1)
    with pytest.raises(UserError, match="learning_starts must be at least 3"):
        dqn.update(config, state, replay, np.int32(1), jax.random.key(0))


def test_values_are_linear_in_the_features():
    config = dqn.Config(hidden_sizes=(8, 6))
    state = start(dqn, config, DISCRETE, jax.random.key(0))
    observation = jax.random.normal(jax.random.key(1), (5, 3))
    phi, head = dqn.features(config, state, observation), state.params["params"]["head"]
    assert phi.shape == (5, 6)
    values = phi @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(values, state.network.apply(state.params, observation), rtol=1e-5)
