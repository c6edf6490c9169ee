"""Random actions during the warm-up, and none after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.exploration import uniform_before

ACTION = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 2)).astype(np.float32)


@pytest.mark.parametrize(("step", "random"), [(0, True), (49, True), (50, False), (51, False), (10**6, False)])
def test_actions_are_random_before_the_start_and_given_from_it_on(step, random):
    action = jax.jit(functools.partial(uniform_before, 50))(jnp.int32(step), ACTION, jax.random.key(0))
    assert action.shape == ACTION.shape and action.dtype == ACTION.dtype
    if random:
        assert np.all(action != ACTION)
    else:
        np.testing.assert_array_equal(action, ACTION)


@pytest.mark.parametrize("start", [0, -1])
def test_without_a_warm_up_no_action_is_random(start):
    np.testing.assert_array_equal(uniform_before(start, jnp.int32(0), ACTION, jax.random.key(0)), ACTION)


def test_random_actions_are_uniform_independent_and_do_not_depend_on_the_given_ones():
    given = np.full((20_000, 2), 0.3, np.float32)
    actions = np.asarray(uniform_before(50, jnp.int32(0), given, jax.random.key(0)))
    assert actions.min() >= -1.0 and actions.max() <= 1.0
    for column in actions.T:
        np.testing.assert_allclose(np.histogram(column, 8, (-1.0, 1.0))[0] / 20_000, 0.125, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(actions.T)[0, 1], 0.0, atol=0.03)
    np.testing.assert_array_equal(actions, uniform_before(50, jnp.int32(49), -given, jax.random.key(0)))
    assert np.all(actions != uniform_before(50, jnp.int32(0), given, jax.random.key(1)))
