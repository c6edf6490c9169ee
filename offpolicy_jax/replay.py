"""Replay: one ring of transitions as a pytree plus free functions.

Storage leaves are (rows, E, ...), or (L, rows, E, ...) in a view of one `lane`: a row holds the same step of all
parallel environments of one seed. `position` and
`size` are scalars that all seeds share: under `vmap` over seeds give them axis None (`SEED_AXES`), and an add stays a
slice update instead of becoming a scatter.

The ring must never be copied. Inside a scan or loop: add first, then sample. At the top level: `add` in its own jitted
call with the replay donated, then read it in another. Sampling costs O(batch), never O(capacity).

Pixels are kept apart from the other leaves, each frame once: offpolicy_jax/frames.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from offpolicy_jax import frames as pixels
from offpolicy_jax import normalization
from offpolicy_jax.frames import Frames
from offpolicy_jax.normalization import Normalizer
from offpolicy_jax.slices import put_lane, take_lane, take_rows, write_rows
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition

T = TypeVar("T")


@struct.dataclass
class Replay:
    """A ring of transitions. Build it with `init`."""

    storage: Transition  # leaves (rows, E, ...), see `lane`; None in place of those that `frames` keeps
    position: jax.Array  # int32 (): the row that is written next
    size: jax.Array  # int32 (): rows that hold data
    normalizer: Normalizer | None = None
    rewarder: Callable[[Transition], jax.Array] | None = None  # see `relabel`
    demonstrations: Transition | None = None  # leaves (N, ...), of an expert; the same for all seeds
    frames: Frames | None = None
    clock: jax.Array | None = None  # int32 (), beside frames: rows that were ever written
    lane: jax.Array | None = None  # int32 (): which ring this is, of leaves (L, rows, E, ...), see `of_lane`

    @property
    def rows(self) -> int:
        """Rows of one ring."""
        return self.storage.reward.shape[-2]

    @property
    def num_envs(self) -> int:
        """Parallel environments per seed."""
        return self.storage.reward.shape[-1]

    @property
    def capacity(self) -> int:
        """Transitions that fit, per seed."""
        return self.rows * self.num_envs


SEED_AXES: Any = Replay(storage=0, position=None, size=None, normalizer=0, frames=0)  # type: ignore[arg-type]
"""`in_axes` and `out_axes` of a replay under `vmap` over seeds."""


def of_lane(rings: Replay, lane: jax.Array) -> Replay:
    """One of several rings, leaves (L, ...) with `SEED_AXES`. Its rows stay where they are: reads and writes go there.

    `with_lane` puts it back.
    """
    frames = rings.frames and replace(rings.frames, age=take_lane(rings.frames.age, lane))
    return replace(rings, normalizer=take_lane(rings.normalizer, lane), frames=frames, lane=lane)


def with_lane(rings: Replay, replay: Replay) -> Replay:
    """The rings after something was added to the one that `of_lane` gave.

    What they share, such as `position`, is as that one has it: put it back before the next lane adds the same rows.
    Raises ValueError for a replay that is no such view.
    """
    lane, frames = replay.lane, replay.frames
    if lane is None:
        raise ValueError("this replay is not one of several: of_lane makes a view of one")
    if rings.frames and frames:
        frames = replace(frames, age=put_lane(rings.frames.age, frames.age, lane))
    return replace(replay, normalizer=put_lane(rings.normalizer, replay.normalizer, lane), frames=frames, lane=None)


def init(
    capacity: int,
    example: Transition,
    num_envs: int = 1,
    *,
    spec: EnvironmentSpec | None = None,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
    discount: float = 0.99,
    clip_rewards: bool = False,
    demonstrations: Transition | None = None,
) -> Replay:
    """An empty ring for at least `capacity` transitions like `example` (no batch axes). Raises ValueError if < 1.

    With a `spec`, the pixels of its observations are kept once per frame. `demonstrations`, leaves (N, ...), are kept
    beside the ring for `sample_demonstrations`.
    """
    if capacity < 1 or num_envs < 1:
        raise ValueError(f"capacity and num_envs must be at least 1, not {capacity} and {num_envs}")
    rows = -(-capacity // num_envs)
    frames = pixels.init(spec, rows, num_envs) if spec else None
    stored = pixels.without(frames, example)
    storage = jax.tree.map(lambda x: jnp.zeros((rows, num_envs, *jnp.shape(x)), jnp.asarray(x).dtype), stored)
    normalizer = None
    if normalize_observations or normalize_rewards or clip_rewards:
        normalize = normalize_observations, normalize_rewards
        normalizer = normalization.init(example, num_envs, *normalize, discount, clip_rewards)
    position, size = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # two buffers, to be donated
    clock = None if frames is None else jnp.zeros((), jnp.int32)
    return Replay(storage, position, size, normalizer, demonstrations=demonstrations, frames=frames, clock=clock)


def add(replay: Replay, transition: Transition) -> Replay:
    """Write rows over the oldest ones. Leaves (n, E, ...). Raises ValueError unless n is from 1 to the ring's rows."""
    added = transition.reward.shape[0]
    if not 1 <= added <= replay.rows:
        raise ValueError(f"cannot add {added} rows to a ring of {replay.rows}")

    def write(i, carry):
        storage, frames = carry
        row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), transition)
        position = (replay.position + i) % replay.rows  # row by row, since a slice does not wrap
        storage = write_rows(storage, pixels.without(frames, row), position, replay.lane)
        return storage, frames and pixels.write(frames, row, replay.clock + i, position, replay.lane)

    carry = replay.storage, replay.frames
    storage, frames = write(0, carry) if added == 1 else jax.lax.fori_loop(0, added, write, carry)
    normalizer = replay.normalizer and normalization.update(replay.normalizer, transition)
    return replace(
        replay,
        storage=storage,
        position=(replay.position + added) % replay.rows,
        size=jnp.minimum(replay.size + added, replay.rows),
        normalizer=normalizer,
        frames=frames,
        clock=None if replay.clock is None else replay.clock + added,
    )


def forget(replay: Replay, rows: jax.Array | int) -> Replay:
    """Without the newest `rows` rows: what is added next takes their place. No data moves.

    A full ring stays full, since what the forgotten rows had overwritten is gone: they can be drawn until then. Raises
    ValueError for a ring that keeps frames once: the rows that are added next do not continue those before them.
    """
    if replay.frames is not None:
        raise ValueError("a ring that keeps frames once cannot forget: build it without spec")
    full = (replay.size == replay.rows) & (rows < replay.rows)
    return replace(
        replay,
        position=(replay.position - rows) % replay.rows,
        size=jnp.where(full, replay.size, jnp.maximum(replay.size - rows, 0)),
    )


def relabel(replay: Replay, rewarder: Callable[..., jax.Array], *arguments: PyTree) -> Replay:
    """A view of the replay whose transitions come with rewards `rewarder(*arguments, transition)`.

    The function gets a transition with any leading batch axes, normalised, and returns rewards with those axes. They
    are computed anew at every reading; the storage keeps the environment's.
    """
    return replace(replay, rewarder=jax.tree_util.Partial(rewarder, *arguments))


def sample(replay: Replay, key: jax.Array, shape: int | tuple[int, ...]) -> Transition:
    """Transitions drawn uniformly with replacement, leaves `shape + (...)`; the replay must not be empty."""
    return _read(replay, _draw(key, shape, replay.size * replay.num_envs))


def sample_sources(replay: Replay, key: jax.Array, source: jax.Array, size: int) -> Transition:
    """One transition from each source (B,), uniformly among its own; O(B). Leaves (B, ...).

    Source i wrote the i-th `size` transitions since the ring was empty, the ring's capacity is a multiple of `size`,
    and source i has not been overwritten. Draw the sources by whatever weights they have.
    """
    start = (source % (replay.capacity // size)) * size
    return _read(replay, start + _draw(key, source.shape, jnp.asarray(size)))


def sample_demonstrations(replay: Replay, key: jax.Array, shape: int | tuple[int, ...]) -> Transition:
    """Transitions of the expert drawn uniformly with replacement, leaves `shape + (...)`, normalised like all others.

    Raises ValueError if there are none.
    """
    if replay.demonstrations is None:
        raise ValueError("this replay has no demonstrations")
    index = _draw(key, shape, jnp.asarray(replay.demonstrations.reward.shape[0]))
    demonstrations = jax.tree.map(jnp.asarray, replay.demonstrations)
    drawn = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), demonstrations)
    return _view(replay, drawn)


def sample_n_step(
    replay: Replay, key: jax.Array, shape: int | tuple[int, ...], n: int, discount: jax.Array | float
) -> tuple[Transition, jax.Array]:
    """n-step transitions: reward sum_k discount^k r_k up to n steps or the first ending, with that step's successor.

    Returns the transitions, whose `next_observation`, `terminated` and `truncated` are those of the last step used,
    and the discount (`shape`) that multiplies the value there (discount^steps). Starts are drawn from the rows with
    n - 1 successors in the ring, so it must hold at least n rows. Rewards are summed after normalisation.
    """
    start = _draw(key, shape, (replay.size - (n - 1)) * replay.num_envs)
    oldest = jnp.where(replay.size == replay.rows, replay.position, 0) * replay.num_envs
    index = last = (oldest + start) % replay.capacity
    first = step = _read(replay, index)
    reward, weight = first.reward, jnp.broadcast_to(jnp.asarray(discount, jnp.float32), first.reward.shape)
    for _ in range(n - 1):
        ended = step.terminated | step.truncated
        last = jnp.where(ended, last, (last + replay.num_envs) % replay.capacity)
        step = _read(replay, last)  # XLA leaves out what is not used of it: observations
        reward = jnp.where(ended, reward, reward + weight * step.reward)
        weight = jnp.where(ended, weight, weight * discount)
    return replace(step, observation=first.observation, action=first.action, reward=reward, extras=first.extras), weight


def scan_batches(
    step: Callable[[T, Transition, jax.Array], tuple[T, dict[str, jax.Array]]],
    state: T,
    replay: Replay,
    key: jax.Array,
    num_steps: int,
    batch_size: int,
) -> tuple[T, dict[str, jax.Array]]:
    """`num_steps` calls `state, metrics = step(state, batch, key)` on fresh batches; returns the mean metrics.

    All batches are gathered at once: the ring stays out of the loop.
    """
    sample_key, step_key = jax.random.split(key)
    if num_steps == 1:
        return step(state, sample(replay, sample_key, batch_size), step_key)
    batches = sample(replay, sample_key, (num_steps, batch_size))
    keys = jax.random.split(step_key, num_steps)
    state, metrics = jax.lax.scan(lambda state, inputs: step(state, *inputs), state, (batches, keys))
    return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)


def steps_per_update(replay: Replay, rollout_length: int, gradient_steps: int) -> int:
    """Gradient steps of one update: `gradient_steps`, or one per environment step since the last if not positive."""
    return gradient_steps if gradient_steps > 0 else rollout_length * replay.num_envs


def chronological(replay: Replay) -> tuple[Transition, jax.Array]:
    """The whole ring from oldest to youngest, leaves (rows, E, ...), and which entries hold data, bool (rows, E).

    Costs a copy of the ring: meant for on-policy data, where the ring is a few rollouts long.
    """
    order = (replay.position - replay.size + jnp.arange(replay.rows)) % replay.rows
    transitions = jax.tree.map(lambda ring: take_rows(ring, order, 1, replay.lane), replay.storage)
    transitions = _add_pixels(replay, transitions, order[:, None] * replay.num_envs + jnp.arange(replay.num_envs))
    mask = jnp.broadcast_to((jnp.arange(replay.rows) < replay.size)[:, None], (replay.rows, replay.num_envs))
    return _view(replay, transitions), mask


def _draw(key: jax.Array, shape: int | tuple[int, ...], end: jax.Array) -> jax.Array:
    """Integers in [0, end), uniform to within end / 2^32: the high word of 32 random bits times `end`.

    `jax.random.randint` draws twice as many bits after a split: three rounds of threefry, which cost as much as the
    gathers that follow.
    """
    bits = jax.random.bits(key, (shape,) if isinstance(shape, int) else shape, jnp.uint32)
    high, low = bits >> 16, bits & 0xFFFF
    end = end.astype(jnp.uint32)
    end_high, end_low = end >> 16, end & 0xFFFF
    middle = high * end_low + (low * end_low >> 16)
    return (high * end_high + (middle >> 16) + (low * end_high + (middle & 0xFFFF) >> 16)).astype(jnp.int32)


def _read(replay: Replay, index: jax.Array) -> Transition:
    """The transitions at `index`, which counts rows times environments."""

    transition = jax.tree.map(lambda ring: take_rows(ring, index, 2, replay.lane), replay.storage)
    return _view(replay, _add_pixels(replay, transition, index))


def _add_pixels(replay: Replay, transition: Transition, index: jax.Array) -> Transition:
    """The stored transitions at `index` with the leaves that are kept as frames."""
    if replay.frames is None or replay.clock is None:
        return transition
    return pixels.read(replay.frames, transition, index, replay.clock, replay.position, replay.lane)


def _view(replay: Replay, transition: Transition) -> Transition:
    """A stored transition as an agent sees it: normalised, and with the rewards of `relabel`."""
    transition = normalization.normalize(replay.normalizer, transition)
    return transition if replay.rewarder is None else replace(transition, reward=replay.rewarder(transition))
