"""Breakout: situations worked by hand, endings, and many environments at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import environments
from offpolicy_jax.environments import breakout

GAME = breakout.IDS["minatar/Breakout-v0"]
SURE = dataclasses.replace(GAME, sticky=0.0)
STAY, LEFT, RIGHT = 0, 1, 3
step, fly = jax.jit(SURE.step), jax.jit(breakout.fly)
FULL, NONE = breakout.FULL, np.zeros((10, 10), bool)


def situation(ball, velocity, paddle=0, bricks=FULL, struck=False):
    return dataclasses.replace(
        GAME.reset(jax.random.key(0))[0],
        ball=jnp.array(ball),
        velocity=jnp.array(velocity),
        paddle=jnp.int32(paddle),
        bricks=jnp.asarray(bricks),
        struck=jnp.asarray(struck),
    )


@pytest.mark.parametrize(
    ("before", "ball", "velocity", "reward", "missed"),
    [
        (situation((5, 4), (1, -1)), (6, 3), (1, -1), 0, False),
        (situation((5, 0), (1, -1)), (6, 0), (1, 1), 0, False),  # a wall: the column stays
        (situation((5, 9), (-1, 1)), (4, 9), (-1, -1), 0, False),
        (situation((0, 4), (-1, 1)), (0, 5), (1, 1), 0, False),  # the ceiling: the row stays
        (situation((4, 4), (-1, 1)), (4, 5), (1, 1), 1, False),  # a brick, from below
        (situation((0, 9), (1, 1)), (0, 9), (-1, -1), 1, False),  # from above, in the corner
        (situation((4, 4), (-1, 1), struck=True), (3, 5), (-1, 1), 0, False),  # passed, right after another
        (situation((8, 4), (1, 1), paddle=4), (8, 5), (-1, 1), 0, False),
        (situation((8, 4), (1, 1), paddle=5), (8, 5), (-1, -1), 0, False),  # ahead: mirrored
        (situation((8, 4), (1, 1), paddle=6), (9, 5), (1, 1), 0, True),
        (situation((8, 0), (1, -1), paddle=0), (8, 0), (-1, 1), 0, False),  # wall and paddle
    ],
)
def test_the_ball_by_hand(before, ball, velocity, reward, missed):
    after, got, ended = fly(before)
    assert (after.ball.tolist(), after.velocity.tolist()) == (list(ball), list(velocity))
    assert (float(got), bool(ended)) == (reward, missed)
    assert after.trail.tolist() == before.ball.tolist()
    assert int(after.bricks.sum()) == 30 - reward
    if reward:
        row, column = np.argwhere(~np.asarray(after.bricks) & FULL)[0]
        assert (row, column) == (before.ball[0] + before.velocity[0], ball[1])


def test_a_brick_counts_again_only_after_a_step_without_one():
    struck = [bool(fly(situation(ball, (-1, 1)))[0].struck) for ball in ((4, 4), (5, 4))]
    assert struck == [True, False]
    assert bool(fly(situation((4, 4), (-1, 1), struck=True))[0].struck)


def test_bricks_fill_again_when_the_ball_comes_down():
    assert not fly(situation((6, 4), (1, 1), 4, NONE))[0].bricks.any()
    np.testing.assert_array_equal(fly(situation((8, 4), (1, 1), 4, NONE))[0].bricks, FULL)
    one = NONE.copy()
    one[2, 2] = True
    np.testing.assert_array_equal(fly(situation((8, 4), (1, 1), 4, one))[0].bricks, one)


@pytest.mark.parametrize("id", breakout.IDS)
def test_actions_and_pixels(id):
    assert environments.make(id) == breakout.IDS[id]
    game = dataclasses.replace(breakout.IDS[id], sticky=0.0)
    step = jax.jit(game.step)
    moves = [int(step(situation((5, 4), (1, 1), 4), jnp.int32(a))[0].paddle) - 4 for a in range(game.spec.num_actions)]
    assert moves == list(game.moves)
    assert int(step(situation((5, 4), (1, 1), 0), jnp.int32(LEFT))[0].paddle) == 0
    state, out = step(situation((5, 4), (1, 1), 4), jnp.int32(LEFT))
    expected = np.zeros((10, 10, 4), np.uint8)
    expected[9, 3, 0] = expected[6, 5, 1] = expected[5, 4, 2] = 255
    expected[1:4, :, 3] = 255
    np.testing.assert_array_equal(out.next_observation, expected)
    np.testing.assert_array_equal(breakout.observe(state), out.observation)


def test_a_sticky_action_is_the_last_one():
    always = dataclasses.replace(GAME, sticky=1.0)
    state = dataclasses.replace(situation((5, 4), (1, 1), 4), action=jnp.int32(RIGHT))
    after, _ = always.step(state, jnp.int32(LEFT))
    assert (int(after.paddle), int(after.action)) == (5, RIGHT)
    keys = jax.random.split(jax.random.key(0), 2_000)
    draw = lambda key: GAME.step(dataclasses.replace(state, key=key), jnp.int32(LEFT))[0].paddle  # noqa: E731
    paddles = jax.jit(jax.vmap(draw))(keys)
    np.testing.assert_allclose(np.mean(paddles == 5), 0.1, atol=0.02)


def test_endings_begin_anew_and_keep_the_true_successor():
    def play(key):
        def one(state, action):
            state, out = GAME.step(state, action)
            return state, (state, out)

        return jax.lax.scan(one, GAME.reset(key)[0], jax.random.randint(key, (200,), 0, 6))[1]

    keys = jax.random.split(jax.random.key(1), 32)
    states, out = jax.jit(jax.vmap(play))(keys)
    done = np.asarray(out.terminated)
    assert done.any(axis=1).all() and not out.truncated.any() and len(np.unique(states.ball[:, 50], axis=0)) > 3
    np.testing.assert_array_equal(np.asarray(out.observation)[~done], np.asarray(out.next_observation)[~done])
    assert np.all(np.asarray(out.next_observation)[done][:, 9, :, 1].any(axis=1))  # the ball on the bottom row
    first = np.asarray(out.observation)[done]
    assert np.all(first[:, 3, [0, 9], 1].any(axis=1)) and np.all(first[..., 3].sum(axis=(1, 2)) == 30 * 255)
    sides = first[:, 3, 0, 1] > 0
    assert 0.4 < sides.mean() < 0.6
    assert np.all(np.asarray(states.elapsed)[done] == 0) and np.all(np.asarray(states.action)[done] == 0)
    alone = jax.jit(play)(keys[3])[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3], b), out, alone)


def test_the_time_limit_truncates():
    late = {"elapsed": jnp.int32(breakout.LIMIT - 1)}
    after, out = step(dataclasses.replace(situation((6, 4), (1, 1), 4), **late), jnp.int32(STAY))
    assert bool(out.truncated) and not bool(out.terminated) and int(after.elapsed) == 0
    _, out = step(dataclasses.replace(situation((8, 4), (1, 1), 9), **late), jnp.int32(STAY))
    assert bool(out.terminated) and not bool(out.truncated)
