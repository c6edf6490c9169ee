"""AILBoost's discriminator, penalty, and the weights of its learners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offpolicy_jax.losses import ailboost as losses

ALPHA = 0.05


@pytest.mark.parametrize("count", [1, 2, 3, 17, 200])
def test_weights_follow_the_recursion_and_sum_to_one(count):
    weights = np.array([1.0])
    for _ in range(count - 1):
        weights = np.append((1.0 - ALPHA) * weights, ALPHA)
    by_age = np.asarray(losses.learner_weights(256, count, ALPHA))
    np.testing.assert_allclose(by_age[:count], weights[::-1], rtol=1e-4)
    np.testing.assert_array_equal(by_age[count:], 0.0)
    np.testing.assert_allclose(by_age.sum(), 1.0, rtol=1e-5)


def test_first_weights_by_hand():
    np.testing.assert_allclose(losses.learner_weights(3, 1, 0.3), [1.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(losses.learner_weights(3, 2, 0.3), [0.3, 0.7, 0.0], rtol=1e-6)
    np.testing.assert_allclose(losses.learner_weights(3, 3, 0.3), [0.3, 0.21, 0.49], rtol=1e-6)


def test_the_oldest_that_is_kept_stands_for_those_before_it():
    full = np.asarray(losses.learner_weights(100, 100, ALPHA))
    kept = np.asarray(losses.learner_weights(10, 100, ALPHA))
    np.testing.assert_allclose(kept[:9], full[:9], rtol=1e-5)
    np.testing.assert_allclose(kept[9], full[9:].sum(), rtol=1e-4)
    np.testing.assert_array_equal(kept, losses.learner_weights(10, 10, ALPHA))


def test_extreme_steps():
    np.testing.assert_array_equal(losses.learner_weights(4, 3, 1.0), [1.0, 0.0, 0.0, 0.0])  # the newest alone
    np.testing.assert_array_equal(losses.learner_weights(4, 3, 0.0), [0.0, 0.0, 1.0, 0.0])  # the first for ever
    uniform = 1.0 - jax.random.uniform(jax.random.key(0), (100,))
    np.testing.assert_array_equal(losses.draw_ages(uniform, 4, 3, 1.0), 0)
    np.testing.assert_array_equal(losses.draw_ages(uniform, 4, 3, 0.0), 2)
    np.testing.assert_array_equal(losses.draw_ages(jnp.array([1.0, 1e-38]), 4, 3, 0.5), [0, 2])


def test_the_effective_number_of_learners_tends_to_its_limit():
    weights = np.asarray(losses.learner_weights(2_000, 2_000, ALPHA), np.float64)
    np.testing.assert_allclose(1.0 / np.sum(weights**2), (2.0 - ALPHA) / ALPHA, rtol=1e-3)


@pytest.mark.parametrize(("num", "count", "alpha"), [(8, 1, 0.3), (8, 5, 0.3), (8, 8, 0.05), (8, 100, 0.2)])
def test_learners_are_drawn_by_their_weights(num, count, alpha):
    """Chi-squared over 100 000 draws."""
    uniform = 1.0 - jax.random.uniform(jax.random.key(1), (100_000,))
    draws = np.asarray(losses.draw_ages(uniform, num, count, alpha))
    expected = 100_000 * np.asarray(losses.learner_weights(num, count, alpha))
    observed = np.bincount(draws, minlength=num)
    possible = expected > 0
    assert np.all(observed[~possible] == 0)
    statistic = np.sum(np.square(observed - expected)[possible] / expected[possible])
    assert statistic <= 24.3  # 99.9 % of 7 degrees of freedom


def descend(loss, params, steps=4_000):
    optimizer = optax.adam(1e-2)

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda p: jax.lax.fori_loop(0, steps, step, (p, optimizer.init(p)))[0])(params)


@pytest.mark.parametrize("bounded", [False, True])
def test_the_best_discriminator_of_a_table_is_the_log_ratio(bounded):
    """Clipped to [-1, 1] behind tanh. Pairs are repeated in proportion to their densities."""
    expert, mixture = np.array([1, 2, 3, 10, 4]), np.array([6, 1, 3, 2, 8])
    head = jnp.tanh if bounded else lambda x: x
    index = np.arange(5)

    def loss(table):
        d = head(table)
        return losses.discriminator_loss(d[np.repeat(index, expert)], d[np.repeat(index, mixture)])

    assert loss(jnp.zeros(5)) == 1.0
    best = np.asarray(head(descend(loss, jnp.zeros(5))))
    ratio = np.log(expert / mixture)
    np.testing.assert_allclose(best, np.clip(ratio, -1.0, 1.0) if bounded else ratio, atol=0.02)
    if not bounded:  # the variational bound is tight there
        kl = np.sum(mixture / 20 * np.log(mixture / expert))
        np.testing.assert_allclose(1.0 - loss(jnp.asarray(ratio)), kl, rtol=1e-4)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        losses.discriminator_loss(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(AssertionError):
        losses.discriminator_loss(jnp.zeros(4), jnp.zeros((4, 1)))
