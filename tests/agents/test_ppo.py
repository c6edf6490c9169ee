"""PPO: one update against a reference, early stop, annealing, buffers of several rollouts, and the probes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import ppo
from offpolicy_jax import environments
from offpolicy_jax import replay as ring
from offpolicy_jax.training import Settings, train
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_close, assert_same, differ, full_replay, start

SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
ONE = ppo.Config(
    hidden_sizes=(8,), rollout_length=16, epochs=1, minibatches=1, learning_rate=1e-2, anneal_steps=0, target_kl=np.inf
)


@jax.jit
def update(config, state, replay, step, key):
    return ppo.update(config, state, replay, step, key)


def setup(spec, config, num_envs=2):
    """A state that has moved from its start, and a ring full of its experience."""
    state = start(ppo, config, spec, jax.random.key(0))
    replay = full_replay(ppo, config.replace(rollout_length=32 // num_envs), spec, state, num_envs)
    state, _ = update(config, state, replay, np.int32(0), jax.random.key(1))
    return state, replay


def reference(config, state, replay):
    """One full-batch step at the old policy: there the surrogate's gradient is the policy gradient's."""
    data, _ = ring.chronological(replay)
    value = functools.partial(state.value_network.apply)
    shape = data.reward.shape
    rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    v, next_v = (
        value(state.parameters["value"], rows(x)).reshape(shape) for x in (data.observation, data.next_observation)
    )
    delta = data.reward + config.discount * (1.0 - data.terminated) * next_v - v
    advantage, following = np.zeros(shape), np.zeros(shape[1])
    for t in reversed(range(shape[0])):
        following = (
            delta[t] + config.discount * config.gae_lambda * ~(data.terminated[t] | data.truncated[t]) * following
        )
        advantage[t] = following
    target = (advantage + v).reshape(-1)
    advantage = ((advantage - advantage.mean()) / advantage.std()).reshape(-1)
    action = data.extras.get("sample", data.action)
    action = action.reshape(-1, *action.shape[2:])

    def loss(params):
        policy = state.policy_network.apply(params["policy"], rows(data.observation))
        error = value(params["value"], rows(data.observation)) - target
        gain = jnp.mean(policy.log_prob(action) * advantage)
        return (
            -gain + config.value_weight * 0.5 * jnp.mean(error**2) - config.entropy_weight * jnp.mean(policy.entropy())
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(config.learning_rate, eps=1e-5)
    )
    first = jax.tree.map(jnp.asarray, state.optimizer)
    updates, _ = optimizer.update(jax.grad(loss)(state.parameters), (optax.EmptyState(), first), state.parameters)
    return optax.apply_updates(state.parameters, updates)


@SPECS
def test_a_full_batch_step_is_the_policy_gradient_s(spec):
    config = ONE.replace(entropy_weight=0.1, max_gradient_norm=0.05)
    state, replay = setup(spec, config)
    out, metrics = update(config, state, replay, np.int32(64), jax.random.key(2))
    assert_close(out.parameters, reference(config, state, replay), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose([metrics["actor/kl"], metrics["actor/clip_fraction"]], 0.0, atol=1e-6)
    assert metrics["actor/steps"] == 1.0


def test_where_the_ring_begins_does_not_matter():
    """A buffer of two rollouts whose oldest row lies in the middle of the ring."""
    config = ONE.replace(rollout_length=8, buffer_batches=2)
    state, replay = setup(CONTINUOUS, config)
    turned = dataclasses.replace(
        replay, storage=jax.tree.map(lambda x: jnp.roll(x, 5, axis=0), replay.storage), position=jnp.int32(5)
    )
    assert_same(*(update(config, state, x, np.int32(64), jax.random.key(2))[0].parameters for x in (replay, turned)))


@SPECS
def test_the_update_stops_at_the_target_kl(spec):
    many = ONE.replace(epochs=6, minibatches=4, learning_rate=5e-2)
    state, replay = setup(spec, ONE)
    out, metrics = update(many, state, replay, np.int32(64), jax.random.key(2))
    assert metrics["actor/steps"] == 24.0
    stopped, fewer = update(many.replace(target_kl=1e-3), state, replay, np.int32(64), jax.random.key(2))
    assert 1.0 <= fewer["actor/steps"] < 24.0 and differ(stopped.parameters, out.parameters)
    none, _ = update(many.replace(target_kl=-1.0), state, replay, np.int32(64), jax.random.key(2))
    assert_same(none.parameters, state.parameters)
    assert_same(none.optimizer, state.optimizer)


def test_the_step_size_falls_to_zero_over_the_run():
    config = ONE.replace(anneal_steps=320)  # rollouts of 16 in 2 environments: ten updates
    state, replay = setup(CONTINUOUS, ONE)
    first, _ = update(config, state, replay, np.int32(32), jax.random.key(2))
    whole, _ = update(ONE, state, replay, np.int32(32), jax.random.key(2))
    assert_same(first.parameters, whole.parameters)
    half, _ = update(config, state, replay, np.int32(192), jax.random.key(2))
    halved, _ = update(
        ONE.replace(learning_rate=0.5 * ONE.learning_rate), state, replay, np.int32(32), jax.random.key(2)
    )
    assert_close(half.parameters, halved.parameters, rtol=1e-5, atol=1e-7)
    beyond, _ = update(config, state, replay, np.int32(352), jax.random.key(2))
    assert_same(beyond.parameters, state.parameters)


def test_a_clipped_action_keeps_the_density_of_its_sample():
    state, replay = setup(CONTINUOUS, ONE)
    action, sample = replay.storage.action, replay.storage.extras["sample"]
    assert np.any(np.abs(sample) > 1.0) and np.max(np.abs(action)) <= 1.0
    np.testing.assert_array_equal(action, np.clip(sample, -1.0, 1.0))
    moved = replay.replace(storage=replay.storage.replace(action=jnp.zeros_like(action)))
    assert_same(*(update(ONE, state, r, np.int32(64), jax.random.key(2)) for r in (replay, moved)))


def test_rows_that_hold_nothing_do_not_count():
    """A ring that is half empty gives the update of a ring of that half."""
    state, replay = setup(DISCRETE, ONE)
    rows = jax.tree.map(lambda x: x[:8], replay.storage)
    small = ring.add(ring.init(16, jax.tree.map(lambda x: x[0, 0], rows), 2), rows)
    large = ring.add(ring.init(32, jax.tree.map(lambda x: x[0, 0], rows), 2), rows)
    first, second = (update(ONE, state, r, np.int32(64), jax.random.key(2))[0] for r in (small, large))
    assert_close(first.parameters, second.parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("discrete", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_learns_which_action_fits_the_observation(discrete):
    environment = probes.ObservationAction(discrete=discrete)
    environments.register("probe/fits", lambda num_envs: environment)
    config = ppo.Config(hidden_sizes=(32,), rollout_length=64, minibatches=4, learning_rate=3e-3, buffer_batches=2)
    settings = Settings("probe/fits", steps=20_480, seeds=2, num_envs=4, eval_every=20_480, progress=False)
    result = train(ppo, settings, config)
    np.testing.assert_allclose(list(result.summary["final_return"].values()), 1.0)


def test_a_time_limit_does_not_end_the_value():
    """Reward 1 for ever, cut every 10 steps: V = 1 / (1 - gamma)."""
    environment = probes.ConstantReward()
    environments.register("probe/limit", lambda num_envs: environment)
    config = ppo.Config(
        hidden_sizes=(16,), rollout_length=64, minibatches=4, learning_rate=1e-2, discount=0.8, value_clip=np.inf
    )
    settings = Settings("probe/limit", steps=40_960, seeds=2, num_envs=4, eval_every=40_960, progress=False)
    state = train(ppo, settings, config).states
    value = jax.vmap(lambda p: state.value_network.apply(p, jnp.zeros((1, 1))))(state.parameters["value"])
    np.testing.assert_allclose(value, 5.0, atol=0.2)
