"""Four rooms: the table, the steps and the pictures tell the same story."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import environments
from offpolicy_jax.environments import four_rooms


def test_the_map_is_the_papers():
    assert len(four_rooms.CELLS) == 104
    p = four_rooms.transition_matrix()
    np.testing.assert_array_equal(p.sum(axis=2), 1.0)
    np.testing.assert_array_equal(p.mean(axis=0), p.mean(axis=0).T)  # what one move does, another undoes
    reached = np.linalg.matrix_power(p.mean(axis=0), 200)
    assert np.all(reached > 0)


@pytest.mark.parametrize("id", ["gridworld/FourRooms-v0", "gridworld/FourRoomsPixels-v0"])
def test_steps_follow_the_table_and_end_at_the_goal_or_the_limit(id):
    environment = environments.make(id)
    pixels = "Pixels" in id

    def cell(observation):
        if not pixels:
            return observation
        return jnp.argmax(jnp.all(jnp.asarray(four_rooms.pictures()) == observation, axis=(1, 2, 3)))

    def step(carry, key):
        state, observation, elapsed = carry
        action = jax.random.randint(key, (), 0, 4)
        state, taken = environment.step(state, action)
        row = (cell(observation), action, cell(taken.next_observation), cell(taken.observation), elapsed + 1, taken)
        ended = taken.terminated | taken.truncated
        return (state, taken.observation, jnp.where(ended, 0, elapsed + 1)), row[:5] + tuple(taken[2:])

    @jax.jit
    def walk(key):
        state, observation = environment.reset(key)
        return jax.lax.scan(step, (state, observation, 0), jax.random.split(key, 3_000))[1]

    before, action, after, shown, elapsed, reward, terminated, truncated = map(np.asarray, walk(jax.random.key(0)))
    np.testing.assert_array_equal(after, four_rooms.SUCCESSOR[before, action])
    np.testing.assert_array_equal(terminated, after == four_rooms.GOAL)
    np.testing.assert_array_equal(reward, terminated.astype(np.float32))
    np.testing.assert_array_equal(truncated, ~terminated & (elapsed == four_rooms.LIMIT))
    ended = terminated | truncated
    assert terminated.any() and truncated.any()
    np.testing.assert_array_equal(shown[~ended], after[~ended])
    assert not np.any(shown == four_rooms.GOAL)
    assert len(np.unique(shown[ended])) > min(5, ended.sum() // 2)
