"""Proto-value networks' equations: thresholds, hashes, targets, and agreement with dynamic programming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import parameters
from offpolicy_jax.environments import four_rooms
from offpolicy_jax.losses import proto_value as pv

RNG = np.random.default_rng(5)
B, T, A = 6, 4, 3


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_indicators_are_zero_or_one_and_carry_no_gradient():
    f, b = array(B, T), array(T)
    r = pv.indicators(f, b)
    np.testing.assert_array_equal(r, (f + b > 0).astype(np.float32))
    gradients = jax.grad(lambda f, b: jnp.sum(pv.indicators(f, b)), (0, 1))(f, b)
    assert not any(np.any(g) for g in gradients)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_the_quantile_gradient_is_the_excess_of_inactive_data(rate):
    f, b = array(200, T), array(T)
    gradient = jax.grad(pv.quantile_loss)(b, f, rate)
    np.testing.assert_allclose(gradient, ((1 - rate) - np.mean(f + b < 0, axis=0)) / T, atol=1e-6)
    assert np.all(jax.grad(pv.quantile_loss)(np.full(T, 10.0, np.float32), f, rate) > 0)  # all active: descent lowers b
    assert not np.any(jax.grad(lambda f: pv.quantile_loss(b, f, rate))(f))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_thresholds_settle_where_the_rate_of_the_data_is_active(rate):
    f = array(2_000, T) * np.array([0.1, 1.0, 2.0, 3.0], np.float32) + np.arange(T, dtype=np.float32)

    def step(carry, _):
        b, optimizer = carry
        return parameters.adam_step(jax.grad(pv.quantile_loss)(b, f, rate), optimizer, b, 1e-2), None

    b = jnp.zeros(T)
    (b, _), _ = jax.lax.scan(step, (b, parameters.adam_init(b)), length=3_000)
    np.testing.assert_allclose(np.mean(pv.indicators(f, b), axis=0), rate, atol=0.02)
    np.testing.assert_allclose(b, -np.quantile(f, 1 - rate, axis=0), atol=0.1)


def test_hashes_are_fair_coins_of_each_distinct_observation():
    coefficients = pv.hash_coefficients(jax.random.key(0), 20, 60)
    frames = RNG.integers(0, 256, (4_000, 60)).astype(np.uint8)
    r = np.asarray(pv.hash_indicators(coefficients, frames, 10))
    assert set(np.unique(r)) == {0.0, 1.0}
    np.testing.assert_allclose(r.mean(), 0.1, atol=3 * np.sqrt(0.09 / r.size))
    np.testing.assert_array_equal(r, pv.hash_indicators(coefficients, frames, 10))
    correlation = np.corrcoef(r.T)[~np.eye(20, dtype=bool)]
    assert np.abs(correlation).max() < 5 / np.sqrt(len(frames))


def test_one_pixel_more_is_another_coin():
    """Among many hashes: for a single one, a step of a pixel may always move the sum by a multiple of the bins."""
    coefficients = pv.hash_coefficients(jax.random.key(2), 1_000, 60)
    frames = RNG.integers(0, 256, (100, 60)).astype(np.uint8)
    changed = frames.copy()
    changed[:, 7] ^= 1
    r, other = (np.asarray(pv.hash_indicators(coefficients, x, 10)) for x in (frames, changed))
    assert abs(np.corrcoef(r.ravel(), other.ravel())[0, 1]) < 0.05


def test_hashes_are_exact_integer_arithmetic_over_a_whole_frame():
    size = 84 * 84 * 4
    coefficients = np.asarray(pv.hash_coefficients(jax.random.key(1), 3, size))
    frames = RNG.integers(0, 256, (5, size)).astype(np.uint8)
    frames[0] = 255
    exact = (coefficients[:, 0] + frames.astype(object) @ coefficients[:, 1:].T.astype(object)) % (2**13 - 1)
    for bins in (2, 7, 100):
        expected = (exact % bins == 0).astype(np.float32)
        np.testing.assert_array_equal(pv.hash_indicators(coefficients, frames, bins), expected)


def test_hashes_read_any_observation_that_is_one_hot_encoded():
    """Categories go up to 4 095: sums of many such products are exact too."""
    coefficients = np.asarray(pv.hash_coefficients(jax.random.key(3), 50, 300))
    data = np.full((1, 300), 4_095, np.int32)
    exact = (coefficients[:, 0] + data.astype(object) @ coefficients[:, 1:].T.astype(object)) % (2**13 - 1)
    np.testing.assert_array_equal(pv.hash_indicators(coefficients, data, 3), (exact % 3 == 0).astype(np.float32))


def test_the_target_is_that_of_the_uniform_policy():
    r, q = array(B, T), array(B, T, A)
    terminated = np.array([0, 1, 0, 0, 1, 0], bool)
    y = pv.td_target(r, terminated, q, 0.9)
    np.testing.assert_allclose(y, r + 0.9 * ~terminated[:, None] * q.mean(-1), rtol=1e-5)
    np.testing.assert_array_equal(y[terminated], r[terminated])
    np.testing.assert_allclose(pv.td_target(r, terminated, q[..., ::-1], 0.9), y, rtol=1e-6)
    assert not np.any(jax.grad(lambda q: jnp.sum(pv.td_target(r, terminated, q, 0.9)))(q))


def test_the_loss_reads_the_action_taken_and_averages_over_tasks():
    q, y, action = array(B, T, A), array(B, T), np.array([0, 1, 2, 0, 1, 2], np.int32)
    taken = np.stack([q[i, :, a] for i, a in enumerate(action)])
    np.testing.assert_allclose(pv.td_loss(q, action, y), 0.5 * np.mean((taken - y) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pv.td_target(array(B, T), np.zeros((B, 1), bool), array(B, T, A), 0.9),
        lambda: pv.td_target(array(B, T), np.zeros(B, bool), array(B, T), 0.9),
        lambda: pv.td_loss(array(B, T, A), np.zeros((B, 1), np.int32), array(B, T)),
        lambda: pv.td_loss(array(B, T, A), np.zeros(B, np.int32), array(B, 1)),
        lambda: pv.indicators(array(B, T), array(1)),
        lambda: pv.hash_indicators(np.zeros((T, 5), np.uint32), np.zeros((B, 5), np.uint8), 3),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(AssertionError):
        call()


def exact_values(cumulant, discount):
    """q (S, T, A) of the uniform policy in four rooms without a goal, by a linear solve."""
    p = four_rooms.transition_matrix()
    v = np.linalg.solve(np.eye(len(cumulant)) - discount * p.mean(0), cumulant)
    return np.stack([cumulant + discount * p[a] @ v for a in range(4)], axis=-1)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_tabular_learning_agrees_with_dynamic_programming_whoever_collected_the_data(skew):
    """One-hot features, batches drawn by a policy that prefers some actions: uniform moves are valued all the same."""
    cells, discount = len(four_rooms.CELLS), 0.9
    cumulant = (RNG.random((cells, T)) < 0.2).astype(np.float32)
    cumulant[:, 0], cumulant[:, 1] = 1.0, 0.0
    behaviour = jax.nn.log_softmax(skew * jnp.asarray(array(cells, 4)))

    def step(q, key):
        cell_key, action_key = jax.random.split(key)
        cell = jax.random.randint(cell_key, (1_000,), 0, cells)
        action = jax.random.categorical(action_key, behaviour[cell])
        successor = jnp.asarray(four_rooms.SUCCESSOR)[cell, action]
        y = pv.td_target(jnp.asarray(cumulant)[cell], jnp.zeros(1_000, bool), q[successor], discount)
        gradient = jax.grad(lambda table: pv.td_loss(table[cell], action, y))(q)
        size = jnp.zeros((cells, 4)).at[cell, action].add(1.0) / 1_000 / T  # a step of 1 over the visits: y itself
        return q - gradient / jnp.maximum(size, 1e-9)[:, None, :] * 0.9, None

    keys = jax.random.split(jax.random.key(0), 3_000)
    q, _ = jax.jit(lambda q: jax.lax.scan(step, q, keys))(jnp.zeros((cells, T, 4)))
    exact = exact_values(cumulant, discount)
    np.testing.assert_allclose(q, exact, atol=1e-2)
    np.testing.assert_allclose(q[:, 0], 1 / (1 - discount), rtol=1e-3)
    assert not np.any(q[:, 1])


def test_values_are_linear_in_cumulants_and_average_p_over_one_minus_gamma():
    cumulant = (RNG.random((len(four_rooms.CELLS), 2)) < 0.2).astype(np.float64)
    both = exact_values(np.column_stack([cumulant, cumulant.sum(1)]), 0.99)
    np.testing.assert_allclose(both[:, 2], both[:, 0] + both[:, 1])
    # Uniform cells are the random walk's stationary distribution.
    np.testing.assert_allclose(both.mean(axis=(0, 2))[:2], cumulant.mean(0) / 0.01)
