"""Pixels kept once per frame: what is read equals what a ring of whole observations returns, bit for bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import frames as pixels
from offpolicy_jax import replay as ring
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, Transition, example_transition

UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
ROWS, ENVS, LIMIT, STACK = 7, 3, 4, 3
SPEC = EnvironmentSpec(
    "test/Pixels-v0",
    {  # a stack of frames with two channels each, a picture, and what is not kept as frames
        "image": ArraySpec((2, 3, 2 * STACK), UINT8, frames=STACK),
        "picture": ArraySpec((3, 2, 1), UINT8),
        "state": ArraySpec((2,), FLOAT32),
        "whole": ArraySpec((2, 2, 4), UINT8, frames=0),
    },
    ArraySpec((), np.dtype(np.int32), num_values=4),
    max_episode_steps=LIMIT,
)
ADD = jax.jit(ring.add)


def observation(history):
    """The observation after an episode's frames so far: each a mapping of arrays, the stack's newest frame last."""
    stack = [history[max(0, i)]["image"] for i in range(len(history) - STACK, len(history))]
    return history[-1] | {"image": np.concatenate(stack, axis=-1)}


def play(seed, steps, limit=LIMIT, ending=0.15):
    """Transitions (steps, ENVS) of random episodes; those that reach the limit are truncated."""
    rng = np.random.default_rng(seed)

    def frame():
        shapes = {name: leaf.shape for name, leaf in SPEC.observation.items()} | {"image": (2, 3, 2)}
        frames = {name: rng.integers(0, 256, shape).astype(np.uint8) for name, shape in shapes.items()}
        return frames | {"state": rng.normal(size=2).astype(np.float32)}

    columns = []
    for _ in range(ENVS):
        column, history = [], [frame()]
        for _ in range(steps):
            before, history = observation(history), [*history, frame()]
            terminated = rng.random() < ending
            truncated = not terminated and (len(history) > limit)
            rest = np.int32(rng.integers(4)), np.float32(rng.normal())
            column.append(Transition(before, *rest, observation(history), np.array(terminated), np.array(truncated)))
            if terminated or truncated:
                history = [frame()]
        columns.append(jax.tree.map(lambda *x: np.stack(x), *column))
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *columns)


def lost(transition):
    """What is kept of transitions: where an episode terminated, the successor's newest frame is the observation's."""
    before, after = transition.observation, transition.next_observation
    end = np.asarray(transition.terminated)[..., None, None, None]
    shifted = np.concatenate([np.asarray(before["image"])[..., 2:], np.asarray(before["image"])[..., -2:]], axis=-1)
    image, picture = np.where(end, shifted, after["image"]), np.where(end, before["picture"], after["picture"])
    return replace(transition, next_observation=after | {"image": image, "picture": picture})


@jax.jit
def look(replay, key):
    """Everything that reads: in order, drawn, with three steps each, and drawn from one source (of a full ring)."""
    source = ring.sample_sources(replay, key, jnp.zeros(20, jnp.int32), replay.capacity)
    n_step = ring.sample_n_step(replay, key, (4, 25), 3, 0.9)
    return ring.chronological(replay), (ring.sample(replay, key, 40), n_step), source


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("limit", [LIMIT, None])
def test_what_is_read_equals_a_ring_of_whole_observations(limit):
    """Random episodes, several environments, before and after the ring wraps; one and several rows per add."""
    spec = replace(SPEC, max_episode_steps=limit)
    transitions = play(0, 40, limit or 6)  # without a limit episodes may be truncated at any time
    whole = ring.init(ROWS * ENVS, example_transition(SPEC), ENVS)
    once = ring.init(ROWS * ENVS, example_transition(SPEC), ENVS, spec=spec)
    assert transitions.truncated.sum() > 5 and transitions.terminated.sum() > 5
    at = 0
    for added in (1, 1, 1, 3, 1, 1, 3, 3, 1, 1, 1, 3, 1, 1, 3, 3, 3, 1, 1, 7):
        rows = jax.tree.map(lambda x, at=at, end=at + added: x[at:end], transitions)
        whole, once, at = ADD(whole, lost(rows)), ADD(once, rows), at + added
        if at < 3:  # of three steps
            continue
        expected, seen = (look(x, jax.random.key(at)) for x in (whole, once))
        held = min(at, ROWS)
        ordered = [jax.tree.map(lambda x, held=held: x[:held], x[0]) for x in (expected, seen)]
        assert_same(*ordered)
        assert_same(expected[1], seen[1])
        if held == ROWS:
            assert_same(expected[2], seen[2])
    assert at == 40


def test_seeds_read_as_each_alone():
    rows = [play(seed, 20) for seed in (1, 2)]
    make = lambda _: ring.init(ROWS * ENVS, example_transition(SPEC), ENVS, spec=SPEC)  # noqa: E731
    both = jax.vmap(make, out_axes=ring.SEED_AXES)(jnp.arange(2))
    add = jax.jit(jax.vmap(ring.add, in_axes=(ring.SEED_AXES, 0), out_axes=ring.SEED_AXES), donate_argnums=0)
    text = add.lower(both, jax.tree.map(lambda *x: np.stack(x)[:, :1], *rows)).compile().as_text()
    assert " scatter(" not in text and "dynamic-update-slice" in text
    alone = [make(0), make(1)]
    for i in range(20):
        both = add(both, jax.tree.map(lambda *x, i=i: np.stack(x)[:, i : i + 1], *rows))
        alone = [ADD(x, jax.tree.map(lambda x, i=i: x[i : i + 1], y)) for x, y in zip(alone, rows, strict=True)]
    seen = jax.vmap(look, in_axes=(ring.SEED_AXES, None))(both, jax.random.key(0))
    for seed in range(2):
        assert_same(jax.tree.map(lambda x, s=seed: x[s], seen), look(alone[seed], jax.random.key(0)))


def test_lanes_in_turn_read_and_write_as_each_alone():
    rows = [play(seed, 20) for seed in (1, 2)]
    make = lambda _: ring.init(ROWS * ENVS, example_transition(SPEC), ENVS, spec=SPEC)  # noqa: E731
    both, alone = jax.vmap(make, out_axes=ring.SEED_AXES)(jnp.arange(2)), [make(0), make(1)]

    @jax.jit
    def add(both, rows):
        def turn(lane, rings):
            rings = replace(rings, position=both.position, size=both.size, clock=both.clock)
            row = jax.tree.map(lambda x: x[lane], rows)
            return ring.with_lane(rings, ring.add(ring.of_lane(rings, lane), row))

        return jax.lax.fori_loop(0, 2, turn, both)

    for i in range(20):
        both = add(both, jax.tree.map(lambda *x, i=i: np.stack(x)[:, i : i + 1], *rows))
        alone = [ADD(x, jax.tree.map(lambda x, i=i: x[i : i + 1], y)) for x, y in zip(alone, rows, strict=True)]
    for lane in range(2):
        seen = look(ring.of_lane(both, jnp.int32(lane)), jax.random.key(0))
        assert_same(seen, look(alone[lane], jax.random.key(0)))


@pytest.mark.parametrize("limit", [27_000, 1_000])
def test_a_stack_of_four_frames_takes_little_more_than_one(limit):
    spec = replace(SPEC, observation=ArraySpec((84, 84, 4), UINT8, frames=4), max_episode_steps=limit)
    once = jax.eval_shape(lambda: ring.init(1_000_000, example_transition(spec), spec=spec))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(once))
    assert 84 * 84 <= size / 1_000_000 <= 1.2 * 84 * 84
    whole = jax.eval_shape(lambda: ring.init(1_000_000, example_transition(spec)))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(whole)) > 7.9 * size


def test_without_a_time_limit_every_successor_is_kept():
    spec = replace(SPEC, observation=ArraySpec((84, 84, 4), UINT8, frames=4), max_episode_steps=None)
    once = jax.eval_shape(lambda: ring.init(10_000, example_transition(spec), spec=spec))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(once))
    assert 2 * 84 * 84 <= size / 10_000 <= 2.1 * 84 * 84


def test_the_ring_of_frames_is_never_copied():
    spec = replace(SPEC, observation=ArraySpec((42, 42, 4), UINT8, frames=4), max_episode_steps=500)
    row = jax.tree.map(lambda x: jnp.ones((2, 1, 2, *x.shape), x.dtype), example_transition(spec))

    def step(replay, row, key):
        replay = ring.add(replay, row)
        batch, _ = ring.sample_n_step(replay, key, 8, 3, 0.9)
        return replay, jnp.sum(batch.observation, dtype=jnp.int32) + jnp.sum(batch.next_observation, dtype=jnp.int32)

    axes = (ring.SEED_AXES, 0, None)
    lifted = jax.vmap(step, in_axes=axes, out_axes=(ring.SEED_AXES, 0))

    def loop(replay, row, key):
        def body(i, carry):
            replay, seen = lifted(carry[0], row, jax.random.fold_in(key, i))
            return replay, carry[1] + seen

        return jax.lax.fori_loop(0, 50, body, (replay, jnp.zeros(2, jnp.int32)))

    make = jax.vmap(lambda _: ring.init(20_000, example_transition(spec), 2, spec=spec), out_axes=ring.SEED_AXES)
    replay = jax.eval_shape(make, jnp.arange(2))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(replay))
    memory = jax.jit(loop, donate_argnums=0).lower(replay, row, jax.random.key(0)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 50


def test_nothing_is_kept_of_vectors_and_a_ring_of_frames_cannot_forget():
    spec = replace(SPEC, observation=SPEC.observation["state"])
    assert ring.init(10, example_transition(spec), spec=spec).frames is None
    with pytest.raises(ValueError, match="cannot forget"):
        ring.forget(ring.init(10, example_transition(SPEC), spec=SPEC), 2)
    with pytest.raises(ValueError, match="no stack of 3 frames"):
        pixels.init(replace(SPEC, observation=ArraySpec((8, 8, 4), UINT8, frames=3)), 10, 1)


@pytest.mark.parametrize(("steps", "before", "after"), [(7, 7, 11), (23, 7, 16), (5, 11, 6)])
def test_frames_find_their_places_in_a_ring_of_another_size(steps, before, after):
    def run(rows, steps):
        replay = ring.init(rows * ENVS, example_transition(SPEC), ENVS, spec=SPEC)
        for i in range(steps):
            replay = ADD(replay, jax.tree.map(lambda x, i=i: x[i : i + 1], transitions))
        return replay

    transitions, ordered = play(3, 24), jax.jit(ring.chronological)
    old, new = run(before, steps), run(after, steps)
    saved = pixels.filled(jax.tree.map(lambda x: x[None], old.frames), steps)
    seeds = jax.tree.map(lambda x: x[None], new.frames)
    images = tuple(jnp.asarray(pixels.moved(x, before, steps, seeds)[0]) for x in saved.images)
    held = min(steps, before)
    resumed = replace(new, frames=replace(new.frames, images=images), size=jnp.int32(held))
    row = jax.tree.map(lambda x: x[steps : steps + 1], transitions)
    for _ in range(2):
        (read, _), (expected, _) = ordered(resumed), ordered(replace(new, size=resumed.size))
        assert_same(jax.tree.map(lambda x: x[:held], read), jax.tree.map(lambda x: x[:held], expected))
        resumed, new = ADD(resumed, row), ADD(new, row)
