"""Running statistics against NumPy, and where they are applied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import normalization
from offpolicy_jax import replay as ring
from offpolicy_jax.transition import Transition

T, E = 12, 3
UPDATE = jax.jit(normalization.update)


def stream(observation=None, steps=T):
    rng = np.random.default_rng(0)
    if observation is None:
        observation = (3.0 + 2.0 * rng.normal(size=(steps, E, 2))).astype(np.float32)
    ending = rng.random((2, steps, E)) < 0.2
    return Transition(
        observation=observation,
        action=np.zeros((steps, E, 1), np.float32),
        reward=rng.normal(size=(steps, E)).astype(np.float32) + 0.5,
        next_observation=jax.tree.map(lambda x: x + np.ones_like(x), observation),
        terminated=ending[0],
        truncated=ending[1],
    )


def fed(transitions, split=(T,), observations=True, rewards=True, discount=0.9):
    """A normaliser after the transitions (T, E), `split` rows at a time."""
    example = jax.tree.map(lambda x: x[0, 0], transitions)
    normalizer = normalization.init(example, E, observations, rewards, discount)
    start = 0
    for rows in split:
        normalizer = UPDATE(normalizer, jax.tree.map(lambda x, s=start, n=rows: x[s : s + n], transitions))
        start += rows
    assert start == transitions.reward.shape[0]
    return normalizer


def discounted_returns(transitions, discount):
    """Of each environment's running episode, at every step: what rewards are measured in."""
    returns, running = [], np.zeros(E)
    for t in range(transitions.reward.shape[0]):
        running = discount * running + transitions.reward[t]
        returns.append(running)
        running = np.where(transitions.terminated[t] | transitions.truncated[t], 0.0, running)
    return np.array(returns)


SPLITS = [(T,), (1,) * T, (1, 5, 6), (6, 1, 2, 3)]


@pytest.mark.parametrize("split", SPLITS)
def test_moments_are_numpy_s_for_any_split(split):
    transitions = stream()
    moments = fed(transitions, split).observation
    assert float(moments.count) == T * E
    np.testing.assert_allclose(moments.mean, transitions.observation.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moments.m2 / moments.count, transitions.observation.var((0, 1)), rtol=1e-4)


def test_moments_survive_a_large_mean():
    transitions = stream(observation=(1000.0 + np.random.default_rng(1).normal(size=(T, E, 2))).astype(np.float32))
    moments = fed(transitions, (1,) * T).observation
    np.testing.assert_allclose(moments.m2 / moments.count, transitions.observation.var((0, 1)), rtol=1e-2)


@pytest.mark.parametrize("split", SPLITS)
def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return(split):
    transitions = stream()
    normalizer = fed(transitions, split)
    returns = discounted_returns(transitions, 0.9)
    expected = transitions.reward / np.sqrt(returns.var() + 1e-8)
    np.testing.assert_allclose(normalization.normalize_reward(normalizer, transitions.reward), expected, rtol=1e-4)


def test_observations_have_mean_zero_and_deviation_one():
    transitions = stream()
    out = np.asarray(normalization.normalize_observation(fed(transitions), transitions.observation))
    np.testing.assert_allclose(out.mean((0, 1)), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1)), 1.0, rtol=1e-4)


def test_observation_and_reward_are_clipped():
    normalizer = fed(stream())
    far = np.array([[1e6, -1e6]], np.float32)
    np.testing.assert_array_equal(normalization.normalize_observation(normalizer, far), [[10.0, -10.0]])
    np.testing.assert_array_equal(normalization.normalize_reward(normalizer, far[0]), [10.0, -10.0])


def test_nothing_is_normalised_before_any_data():
    normalizer = fed(stream(), split=(T,))
    empty = jax.tree.map(jnp.zeros_like, normalizer)
    x = np.array([[0.5, -2.0]], np.float32)
    np.testing.assert_allclose(normalization.normalize_observation(empty, x), x, rtol=1e-6)
    np.testing.assert_allclose(normalization.normalize_reward(empty, x[0]), x[0], rtol=1e-6)


@pytest.mark.parametrize(("observations", "rewards"), [(True, False), (False, True), (False, False)])
def test_each_part_can_be_left_out(observations, rewards):
    transitions = stream()
    normalizer = fed(transitions, observations=observations, rewards=rewards)
    out = normalization.normalize(normalizer, transitions)
    assert np.any(out.observation != transitions.observation) == observations
    assert np.any(out.next_observation != transitions.next_observation) == observations
    assert np.any(out.reward != transitions.reward) == rewards
    assert normalization.normalize(None, transitions) is transitions


@pytest.mark.parametrize("names", [("float", "integer"), ("z_float", "integer")])
@pytest.mark.parametrize("split", [(T,), (1,) * T])
def test_integers_pass_through_and_floats_beside_them_do_not(names, split):
    """Whichever of them comes first in the tree."""
    rng = np.random.default_rng(0)
    number, integer = names
    floats = (3.0 + rng.normal(size=(T, E, 2))).astype(np.float32)
    transitions = stream({number: floats, integer: rng.integers(0, 255, (T, E, 4)).astype(np.uint8)})
    normalizer = fed(transitions, split)
    out = normalization.normalize_observation(normalizer, transitions.observation)
    assert out[integer].dtype == np.uint8
    np.testing.assert_array_equal(out[integer], transitions.observation[integer])
    np.testing.assert_allclose(out[number], (floats - floats.mean((0, 1))) / floats.std((0, 1)), rtol=1e-3, atol=1e-4)


def test_an_integer_observation_alone_passes_through():
    observation = np.random.default_rng(0).integers(0, 9, (T, E)).astype(np.int32)
    out = normalization.normalize(fed(stream(observation)), stream(observation))
    np.testing.assert_array_equal(out.observation, observation)


def test_replay_stores_raw_data_and_reads_it_normalised():
    transitions = stream()
    example = jax.tree.map(lambda x: x[0, 0], transitions)
    replay = ring.init(T * E, example, E, normalize_observations=True, normalize_rewards=True, discount=0.9)
    add = jax.jit(ring.add)
    for t in range(T):
        replay = add(replay, jax.tree.map(lambda x, t=t: x[t : t + 1], transitions))
    np.testing.assert_array_equal(replay.storage.observation, transitions.observation)
    np.testing.assert_array_equal(replay.storage.reward, transitions.reward)

    observation, returns = transitions.observation, discounted_returns(transitions, 0.9)
    centre, deviation = observation.mean((0, 1)), observation.std((0, 1))
    read, _ = ring.chronological(replay)
    np.testing.assert_allclose(read.observation, (observation - centre) / deviation, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        read.next_observation, (transitions.next_observation - centre) / deviation, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(read.reward, transitions.reward / returns.std(), rtol=1e-3)

    known = np.sort(np.asarray(read.reward).ravel())
    sampled = np.asarray(ring.sample(replay, jax.random.key(0), 100).reward)
    nearest = known[np.abs(known[None] - sampled[:, None]).argmin(1)]
    np.testing.assert_allclose(sampled, nearest, rtol=1e-5)

    # n-step rewards are sums of normalised ones, not a normalised sum.
    batch, _ = ring.sample_n_step(replay, jax.random.key(0), 200, 2, 0.9)
    scaled = transitions.reward / returns.std()
    ended = transitions.terminated | transitions.truncated
    sums = np.where(ended[:-1], scaled[:-1], scaled[:-1] + 0.9 * scaled[1:]).ravel()
    gap = np.abs(np.asarray(batch.reward)[:, None] - sums[None]).min(1)
    assert gap.max() < 1e-3


def test_clipped_rewards_are_signs_at_reading_alone():
    transitions = stream()
    transitions = transitions.replace(reward=np.round(3.0 * transitions.reward))
    example = jax.tree.map(lambda x: x[0, 0], transitions)
    replay = jax.jit(ring.add)(ring.init(T * E, example, E, clip_rewards=True), transitions)
    np.testing.assert_array_equal(replay.storage.reward, transitions.reward)
    assert len(np.unique(transitions.reward)) > 3
    read, _ = ring.chronological(replay)
    np.testing.assert_array_equal(read.reward, np.sign(transitions.reward))
    np.testing.assert_array_equal(read.observation, transitions.observation)
    batch, _ = ring.sample_n_step(replay, jax.random.key(0), 200, 2, 1.0)  # summed after clipping
    assert set(np.unique(batch.reward)) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match="not both"):
        ring.init(4, example, clip_rewards=True, normalize_rewards=True)
