"""Four rooms (Sutton, Precup & Singh 1999, section 4): 104 cells, four moves, in-graph; seen as cells or pixels.

`gridworld/FourRooms-v0` shows the cell as an integer, `gridworld/FourRoomsPixels-v0` as 13 x 13 pixels with a channel
each for walls, agent and goal. Moves are certain, a move into a wall stays. Episodes begin anywhere, and end with
reward 1 in the goal's cell or after 200 steps. `transition_matrix` is the task as a table.
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

_MAP = """
#############
#     #     #
#     #     #
#           #
#     #     #
#     #     #
## ####     #
#     ### ###
#     #     #
#     #     #
#           #
#     #     #
#############
""".strip().splitlines()
WALLS = np.array([[cell == "#" for cell in row] for row in _MAP])
CELLS = np.argwhere(~WALLS)  # (104, 2): row and column of each state
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right
LIMIT = 200

_index = np.full(WALLS.shape, -1)
_index[tuple(CELLS.T)] = np.arange(len(CELLS))
GOAL = int(_index[9, 9])  # within the lower right room
_moved = _index[tuple((CELLS[:, None] + MOVES).transpose(2, 0, 1))]
SUCCESSOR = np.where(_moved >= 0, _moved, np.arange(len(CELLS))[:, None]).astype(np.int32)  # (104, 4)


def transition_matrix() -> np.ndarray:
    """P(s'|s, a) without the goal's ending, (4, 104, 104)."""
    return np.eye(len(CELLS))[SUCCESSOR.T]


def pictures(goal: int | None = GOAL) -> np.ndarray:
    """Every state as pixels, uint8 (104, 13, 13, 3): walls, agent, goal."""
    images = np.zeros((len(CELLS), *WALLS.shape, 3), np.uint8)
    images[..., 0] = WALLS * 255
    images[np.arange(len(CELLS)), CELLS[:, 0], CELLS[:, 1], 1] = 255
    if goal is not None:
        images[:, CELLS[goal, 0], CELLS[goal, 1], 2] = 255
    return images


@struct.dataclass
class State:
    """State of one environment."""

    cell: jax.Array  # int32 ()
    elapsed: jax.Array  # int32 ()
    key: jax.Array  # typed key (): of the next start


@dataclasses.dataclass(frozen=True)
class FourRooms:
    """Four rooms as an `InGraphEnvironment`."""

    id: str
    pixels: bool = False
    goal: int = GOAL

    @property
    def observation_space(self) -> spaces.Space:
        """Cells, or pictures."""
        return spaces.Box(0, 255, (*WALLS.shape, 3), np.uint8) if self.pixels else spaces.Discrete(len(CELLS))

    @property
    def action_space(self) -> spaces.Discrete:
        """Up, down, left, right."""
        return spaces.Discrete(len(MOVES))

    @property
    def spec(self) -> EnvironmentSpec:
        """What agents may know of it."""
        observation = observation_spec(self.id, self.observation_space)
        return EnvironmentSpec(self.id, observation, action_spec(self.id, self.action_space), LIMIT)

    def reset(self, key: jax.Array) -> tuple[State, jax.Array]:
        """Start an episode in a uniformly random cell that is not the goal. Returns (state, observation)."""
        now, later = jax.random.split(key)
        cell = jax.random.randint(now, (), 0, len(CELLS) - 1)
        state = State(cell + (cell >= self.goal), jnp.zeros((), jnp.int32), later)
        return state, self._observe(state.cell)

    def step(self, state: State, action: jax.Array) -> tuple[State, Step]:
        """Move; after an ending the returned state and `Step.observation` begin a new episode."""
        cell = jnp.asarray(SUCCESSOR)[state.cell, action]
        moved = State(cell, state.elapsed + 1, state.key)
        terminated = cell == self.goal
        truncated = ~terminated & (moved.elapsed >= LIMIT)
        begun, _ = self.reset(state.key)
        done = terminated | truncated
        cells = jnp.where(done, begun.cell, cell)
        after = State(cells, jnp.where(done, 0, moved.elapsed), jnp.where(done, begun.key, state.key))
        reward = terminated.astype(jnp.float32)
        return after, Step(self._observe(cells), self._observe(cell), reward, terminated, truncated)

    frames_per_second = 8.0

    def picture(self, observation: np.ndarray) -> np.ndarray:
        """What one observation shows, uint8 (13, 13, 3): walls red, the agent green, the goal blue."""
        return observation if self.pixels else pictures(self.goal)[observation]

    def _observe(self, cell: jax.Array) -> jax.Array:
        return jnp.asarray(pictures(self.goal))[cell] if self.pixels else cell.astype(jnp.int32)


IDS = {
    id: FourRooms(id, pixels)
    for id, pixels in (("gridworld/FourRooms-v0", False), ("gridworld/FourRoomsPixels-v0", True))
}
