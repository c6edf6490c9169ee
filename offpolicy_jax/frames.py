"""Pixels in a replay, each frame once: an observation shares all its frames but the newest with the rows before it, and
its successor's newest frame is the next row's.

Step t of the ring (the t-th row ever written) keeps the newest frame of its observation in slot t % (rows + history) of
a second ring, and writes its successor's ahead, into the next slot; step t + 1 writes the same frame there, or that of
a new episode's beginning. With `history` slots more than there are rows, each row has its stack and its successor.

Where an episode is truncated, the successor is kept aside. An environment is truncated at most once in any
`max_episode_steps` consecutive steps, so step t has slot t // max_episode_steps for it, and all seeds write the same
slot. Without a time limit that period is 1: there every successor is kept. Where it terminates, nothing bootstraps from
the successor, and its newest frame is lost: what is read has the observation's newest frame there once more.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from offpolicy_jax.slices import take_rows, write_rows
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree, Transition


@struct.dataclass
class Frames:
    """The frames of some leaves of the observations. Build it with `init`."""

    images: tuple[jax.Array, ...]  # uint8 (slots aside + rows + history, E, H W C), one of each leaf with a shape
    ages: jax.Array  # uint8 (rows, E): steps since the episode began, at most history - 1
    age: jax.Array  # uint8 (E,): of the row that is written next
    shapes: tuple[tuple[int, ...] | None, ...] = struct.field(pytree_node=False)  # (frames, H, W, C) or None
    period: int = struct.field(pytree_node=False)  # least number of steps between truncations

    @property
    def rows(self) -> int:
        """Rows of the replay."""
        return self.ages.shape[-2]

    @property
    def history(self) -> int:
        """Frames of the largest stack."""
        return max(shape[0] for shape in self.shapes if shape)


def init(spec: EnvironmentSpec, rows: int, num_envs: int) -> Frames | None:
    """Room for the pixels of `rows` rows, or None if there are none: uint8 leaves (H, W, frames * C) with frames >= 1.

    Raises ValueError for a last axis that is no whole number of frames.
    """
    shapes = tuple(_shape(leaf) for leaf in jax.tree.leaves(spec.observation))
    if not any(shapes):
        return None
    ages, age = jnp.zeros((rows, num_envs), jnp.uint8), jnp.zeros(num_envs, jnp.uint8)
    frames = Frames((), ages, age, shapes, spec.max_episode_steps or 1)
    length = _aside(rows, frames.period) + rows + frames.history
    sizes = [np.prod(shape[1:]) for shape in shapes if shape]
    return replace(frames, images=tuple(jnp.zeros((length, num_envs, size), jnp.uint8) for size in sizes))


def without(frames: Frames | None, transition: Transition) -> Transition:
    """The transition with None in place of the leaves that are kept here."""
    if frames is None:
        return transition

    def rest(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([None if shape else x for x, shape in zip(leaves, frames.shapes, strict=True)])

    return replace(
        transition, observation=rest(transition.observation), next_observation=rest(transition.next_observation)
    )


def write(
    frames: Frames, transition: Transition, clock: jax.Array, position: jax.Array, lane: jax.Array | None = None
) -> Frames:
    """Keep a row, leaves (1, E, ...): step `clock` of the ring, row `position` of the replay (of one `lane`)."""
    aside, ring = _aside(frames.rows, frames.period), frames.rows + frames.history
    now, ahead, kept = aside + clock % ring, aside + (clock + 1) % ring, clock // frames.period % aside
    observations, successors = _newest(frames, transition.observation), _newest(frames, transition.next_observation)
    images = []
    for old, observation, successor in zip(frames.images, observations, successors, strict=True):
        before = jax.lax.dynamic_slice_in_dim(old, kept, 1) if lane is None else old[lane, kept][None]
        new = write_rows(old, jnp.where(transition.truncated[..., None], successor, before), kept, lane)
        new = write_rows(write_rows(new, observation, now, lane), successor, ahead, lane)
        images.append(new)
    ended = (transition.terminated | transition.truncated)[0]
    return replace(
        frames,
        images=tuple(images),
        ages=write_rows(frames.ages, frames.age[None], position, lane),
        age=jnp.where(ended, 0, jnp.minimum(frames.age + 1, frames.history - 1)),
    )


def read(
    frames: Frames,
    transition: Transition,
    index: jax.Array,
    clock: jax.Array,
    position: jax.Array,
    lane: jax.Array | None = None,
) -> Transition:
    """Transitions (...) at `index` (...), which counts rows times environments, with the leaves that are kept here."""
    num_envs = frames.ages.shape[-1]
    row, env = index // num_envs, index % num_envs
    step = clock - 1 - (position - 1 - row) % frames.rows
    age = take_rows(frames.ages, index, 2, lane).astype(jnp.int32)
    aside, ring = _aside(frames.rows, frames.period), frames.rows + frames.history
    following = jnp.where(transition.truncated, step // frames.period % aside, aside + (step + 1) % ring)
    following = jnp.where(transition.terminated, aside + step % ring, following)

    def stacks(images, shape):
        count, *frame = shape
        back = jnp.minimum(jnp.arange(count)[::-1], age[..., None])  # an episode's first frame is repeated
        slots = jnp.concatenate([aside + (step[..., None] - back) % ring, following[..., None]], axis=-1)
        seen = take_rows(images, slots * num_envs + env[..., None], 2, lane)
        seen = jnp.moveaxis(seen.reshape(*seen.shape[:-1], *frame), -4, -2)  # (..., H, W, count + 1, C)
        seen = seen.reshape(*seen.shape[:-2], -1)
        return seen[..., : -frame[-1]], seen[..., frame[-1] :]

    pairs = [stacks(*pair) for pair in zip(frames.images, filter(None, frames.shapes), strict=True)]
    return replace(
        transition,
        observation=_fill(transition.observation, [observation for observation, _ in pairs]),
        next_observation=_fill(transition.next_observation, [successor for _, successor in pairs]),
    )


def filled(frames: Frames, clock: int) -> Frames:
    """NumPy arrays with a seed axis, (S, ...), of what a ring that was written to `clock` times holds."""
    length = _aside(frames.rows, frames.period) + min(clock + 1, frames.rows + frames.history)
    return replace(
        frames,
        images=tuple(np.asarray(x)[:, :length] for x in frames.images),
        ages=np.asarray(frames.ages)[:, : min(clock, frames.rows)],
    )


def moved(images: np.ndarray, rows: int, clock: int, like: Frames) -> np.ndarray:
    """Images (S, ...) that `filled` left of a ring of `rows` rows, where they belong in one of another size."""
    places = [(_aside(n, like.period), n + like.history) for n in (rows, like.rows)]
    steps = np.arange(max(0, clock - rows - like.history + 1), clock + 1)
    periods = np.unique(np.arange(max(0, clock - rows), clock) // like.period)
    (old_aside, old_ring), (aside, ring) = places
    result = np.zeros((images.shape[0], aside + ring, *images.shape[2:]), images.dtype)
    result[:, aside + steps % ring] = images[:, old_aside + steps % old_ring]
    result[:, periods % aside] = images[:, periods % old_aside]
    return result


def _aside(rows: int, period: int) -> int:
    """Slots for successors of truncated steps: one for each period that may have a row in the ring."""
    return (rows - 1) // period + 2


def _shape(leaf: ArraySpec) -> tuple[int, ...] | None:
    if leaf.dtype != np.uint8 or len(leaf.shape) != 3 or not leaf.frames:
        return None
    height, width, channels = leaf.shape
    if channels % leaf.frames or leaf.frames > 255:
        raise ValueError(f"{channels} channels are no stack of {leaf.frames} frames")
    return leaf.frames, height, width, channels // leaf.frames


def _newest(frames: Frames, observation: PyTree) -> list[jax.Array]:
    """The newest frames of the leaves that are kept, (1, E, H W C)."""
    pairs = zip(jax.tree.leaves(observation), frames.shapes, strict=True)
    return [x[..., -shape[-1] :].reshape(*x.shape[:2], -1) for x, shape in pairs if shape]


def _fill(tree: PyTree, images: list[jax.Array]) -> PyTree:
    """The tree with the images in place of its Nones."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    remaining = iter(images)
    return structure.unflatten([next(remaining) if x is None else x for x in leaves])
