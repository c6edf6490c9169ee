"""MinAtar's Breakout (Young & Tian 2019, arXiv 1903.03176), in-graph: 10 x 10 cells, four channels, 0 or 255.

A ball flies along diagonals; its trail shows the cell that it left. Three rows of bricks fill again once all are gone.
A brick that is hit goes, gives reward 1 and turns the ball back up or down; the next cell after a hit is passed without
one. Where the ball meets the bottom row, the paddle sends it back up: along its own diagonal if it sits under the cell
that the ball enters, mirrored if it sits under the one that it comes from. A miss ends the episode.

Channels: paddle, ball, trail, bricks. `minatar/Breakout-v0` has MinAtar's six actions (nothing, left, up, right, down,
fire), of which left and right move the paddle; `minatar/Breakout-v1` has the three that differ (nothing, left, right).
With chance 0.1 the last action is repeated instead of the one chosen, as there by default (none at an episode's
beginning). The time limit of 1 000 steps is ours: MinAtar has none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnasium import spaces

from offpolicy_jax.environments.protocols import Step
from offpolicy_jax.environments.spaces import action_spec, observation_spec
from offpolicy_jax.transition import EnvironmentSpec

SIZE, LIMIT, STICKY = 10, 1_000, 0.1
FULL = np.zeros((SIZE, SIZE), bool)
FULL[1:4] = True


@struct.dataclass
class State:
    """State of one environment. Cells are (row, column), velocities -1 or 1 along each."""

    ball: jax.Array  # int32 (2,)
    velocity: jax.Array  # int32 (2,)
    trail: jax.Array  # int32 (2,)
    paddle: jax.Array  # int32 (): its column
    bricks: jax.Array  # bool (10, 10)
    struck: jax.Array  # bool (): the last step met a brick
    action: jax.Array  # int32 (): the last one taken
    elapsed: jax.Array  # int32 ()
    key: jax.Array  # typed key ()


@dataclasses.dataclass(frozen=True)
class Breakout:
    """Breakout as an `InGraphEnvironment`; `moves` says what each action does to the paddle's column."""

    id: str
    moves: tuple[int, ...]
    sticky: float = STICKY

    @property
    def observation_space(self) -> spaces.Box:
        """Four channels."""
        return spaces.Box(0, 255, (SIZE, SIZE, 4), np.uint8)

    @property
    def action_space(self) -> spaces.Discrete:
        """One per entry of `moves`."""
        return spaces.Discrete(len(self.moves))

    frames_per_second = 8.0

    def picture(self, observation: np.ndarray) -> np.ndarray:
        """What one observation shows, uint8 (10, 10, 3)."""
        return picture(observation)

    @property
    def spec(self) -> EnvironmentSpec:
        """What agents may know of it."""
        observation = observation_spec(self.id, self.observation_space)
        return EnvironmentSpec(self.id, observation, action_spec(self.id, self.action_space), LIMIT)

    def reset(self, key: jax.Array) -> tuple[State, jax.Array]:
        """Start an episode with the ball in the fourth row, at either wall. Returns (state, observation)."""
        now, later = jax.random.split(key)
        left = jax.random.bernoulli(now)
        ball = jnp.stack([jnp.int32(3), jnp.where(left, 0, SIZE - 1)])
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        state = State(
            ball=ball,
            velocity=jnp.stack([jnp.int32(1), jnp.where(left, 1, -1)]),
            trail=ball,
            paddle=zero + 4,
            bricks=jnp.asarray(FULL),
            struck=no,
            action=zero,
            elapsed=zero,
            key=later,
        )
        return state, observe(state)

    def step(self, state: State, action: jax.Array) -> tuple[State, Step]:
        """Advance; after an ending the returned state and `Step.observation` begin a new episode."""
        now, later = jax.random.split(state.key)
        action = jnp.where(jax.random.bernoulli(now, self.sticky), state.action, action).astype(jnp.int32)
        paddle = jnp.clip(state.paddle + jnp.asarray(self.moves)[action], 0, SIZE - 1)
        moved, reward, terminated = fly(dataclasses.replace(state, paddle=paddle))
        moved = dataclasses.replace(moved, action=action, elapsed=state.elapsed + 1, key=later)
        truncated = ~terminated & (moved.elapsed >= LIMIT)
        begun, _ = self.reset(later)
        after = jax.tree.map(lambda a, b: jnp.where(terminated | truncated, a, b), begun, moved)
        return after, Step(observe(after), observe(moved), reward, terminated, truncated)


def fly(state: State) -> tuple[State, jax.Array, jax.Array]:
    """The ball's step once the paddle has moved: (state, reward, whether it was missed)."""
    (row, column), (down, right) = state.ball + state.velocity, state.velocity
    right = jnp.where((column < 0) | (column >= SIZE), -right, right)
    column = jnp.clip(column, 0, SIZE - 1)

    ceiling = row < 0
    brick = ~ceiling & state.bricks[row, column]  # at row -1 it reads the last row, which has none
    hit = brick & ~state.struck
    bottom = ~ceiling & ~brick & (row == SIZE - 1)
    above = bottom & (state.ball[1] == state.paddle)
    ahead = bottom & ~above & (column == state.paddle)
    missed = bottom & ~above & ~ahead

    bricks = jnp.where(bottom & ~jnp.any(state.bricks), FULL, state.bricks)
    bricks = bricks.at[row, column].set(state.bricks[row, column] & ~hit)
    back = hit | above | ahead  # the row stays what it was
    moved = dataclasses.replace(
        state,
        ball=jnp.stack([jnp.where(ceiling, 0, jnp.where(back, state.ball[0], row)), column]),
        velocity=jnp.stack([jnp.where(ceiling | back, -down, down), jnp.where(ahead, -right, right)]),
        trail=state.ball,
        bricks=bricks,
        struck=brick,
    )
    return moved, hit.astype(jnp.float32), missed


def picture(observation: np.ndarray) -> np.ndarray:
    """One observation in colours, uint8 (10, 10, 3): paddle white, ball green, its trail dark, bricks red."""
    colors = np.array([(255, 255, 255), (80, 220, 80), (30, 80, 30), (200, 60, 50)], np.uint8)
    shown = observation > 0
    return np.where(shown.any(axis=-1, keepdims=True), colors[shown.argmax(axis=-1)], 0).astype(np.uint8)


def observe(state: State) -> jax.Array:
    """Paddle, ball, trail and bricks as pixels, uint8 (10, 10, 4)."""
    cell = lambda row, column: jnp.zeros((SIZE, SIZE), bool).at[row, column].set(True)  # noqa: E731
    channels = cell(SIZE - 1, state.paddle), cell(*state.ball), cell(*state.trail), state.bricks
    return jnp.stack(channels, axis=-1).astype(jnp.uint8) * 255


IDS = {
    id: Breakout(id, moves)
    for id, moves in (("minatar/Breakout-v0", (0, -1, 0, 1, 0, 0)), ("minatar/Breakout-v1", (0, -1, 1)))
}
