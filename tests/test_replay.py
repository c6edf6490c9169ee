"""The ring of transitions: what it holds and returns, and that it is never copied."""

import re
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import replay as ring
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, Transition, example_transition

SPEC = EnvironmentSpec("test/Vector-v0", ArraySpec((1,), np.dtype(np.float32)), ArraySpec((2,), np.dtype(np.float32)))
ADD = jax.jit(ring.add)


def stream(steps, num_envs=1, ending=0.0):
    """Transitions (steps, E): the observation is step + env / 10, so it names its transition; the rest is random."""
    rng = np.random.default_rng(0)
    observation = (np.arange(steps)[:, None] + np.arange(num_envs) / 10)[..., None].astype(np.float32)
    terminated = rng.random((steps, num_envs)) < ending
    return Transition(
        observation=observation,
        action=rng.normal(size=(steps, num_envs, 2)).astype(np.float32),
        reward=rng.normal(size=(steps, num_envs)).astype(np.float32),
        next_observation=observation + 1000,
        terminated=terminated,
        truncated=~terminated & (rng.random((steps, num_envs)) < ending),
    )


def rows_of(transitions, start, stop):
    return jax.tree.map(lambda x: x[start:stop], transitions)


def filled(capacity, transitions, rows_per_add=1, **kwargs):
    """A ring after adding all transitions (T, E), oldest first."""
    steps, num_envs = transitions.reward.shape
    replay = ring.init(capacity, jax.tree.map(lambda x: x[0, 0], transitions), num_envs, **kwargs)
    for i in range(0, steps, rows_per_add):
        replay = ADD(replay, rows_of(transitions, i, i + rows_per_add))
    return replay


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 10, 13])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_chronological_is_oldest_to_youngest_with_the_oldest_evicted(steps, num_envs):
    transitions = stream(steps, num_envs, ending=0.3)
    replay = filled(5 * num_envs, transitions)
    held = min(steps, 5)
    ordered, mask = jax.jit(ring.chronological)(replay)
    assert mask.shape == ordered.reward.shape == (5, num_envs)
    np.testing.assert_array_equal(mask, np.repeat(np.arange(5)[:, None] < held, num_envs, 1))
    assert_same(rows_of(ordered, 0, held), rows_of(transitions, steps - held, steps))
    assert (int(replay.size), int(replay.position)) == (held, steps % 5)


def test_capacity_is_rounded_up_to_whole_rows():
    replay = filled(10, stream(1, 4))
    assert (replay.rows, replay.num_envs, replay.capacity) == (3, 4, 12)


@pytest.mark.parametrize(("capacity", "num_envs"), [(0, 1), (-3, 1), (5, 0)])
def test_a_ring_of_nothing_is_refused(capacity, num_envs):
    with pytest.raises(ValueError, match="at least 1"):
        ring.init(capacity, example_transition(SPEC), num_envs)


@pytest.mark.parametrize("rows_per_add", [2, 3, 6])
def test_adding_many_rows_is_adding_each(rows_per_add):
    transitions = stream(18, 2)
    assert_same(filled(12, transitions, rows_per_add), filled(12, transitions))


def test_adding_rows_in_unequal_numbers_is_adding_each():
    transitions = stream(9, 1)
    replay = filled(4, rows_of(transitions, 0, 3))  # the next row is the last one
    replay = ADD(replay, rows_of(transitions, 3, 5))
    assert_same(ring.chronological(replay), ring.chronological(filled(4, rows_of(transitions, 0, 5))))


@pytest.mark.parametrize("rows", [0, 7, 12])
def test_an_add_of_nothing_or_of_more_than_the_ring_is_refused(rows):
    replay = ring.init(6, example_transition(SPEC))
    with pytest.raises(ValueError, match=f"{rows} rows"):
        ring.add(replay, stream(rows, 1))


def test_an_add_of_another_number_of_environments_is_refused():
    with pytest.raises((TypeError, ValueError)):
        ring.add(ring.init(6, example_transition(SPEC), num_envs=2), stream(1, 3))


def test_observations_may_be_trees_and_keep_their_dtypes():
    rng = np.random.default_rng(0)
    spec = EnvironmentSpec(
        "test/Tree-v0",
        {"pixels": ArraySpec((4, 4, 1), np.dtype(np.uint8)), "state": ArraySpec((), np.dtype(np.int32), num_values=9)},
        ArraySpec((), np.dtype(np.int32), num_values=3),
    )
    observation = {
        "pixels": rng.integers(0, 256, (3, 2, 4, 4, 1)).astype(np.uint8),
        "state": rng.integers(0, 9, (3, 2)).astype(np.int32),
    }
    transitions = stream(3, 2).replace(
        observation=observation,
        next_observation=observation,
        action=rng.integers(0, 3, (3, 2)).astype(np.int32),
        extras={"log_prob": rng.normal(size=(3, 2)).astype(np.float32)},
    )
    replay = ring.init(8, example_transition(spec, {"log_prob": jnp.zeros(())}), num_envs=2)
    replay = ADD(ADD(ADD(replay, rows_of(transitions, 0, 1)), rows_of(transitions, 1, 2)), rows_of(transitions, 2, 3))
    read, _ = ring.chronological(replay)
    assert_same(rows_of(read, 0, 3), transitions)
    for tree in (replay.storage, ring.sample(replay, jax.random.key(0), 5)):
        assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, transitions)
    assert ring.sample(replay, jax.random.key(0), (5, 7)).observation["pixels"].shape == (5, 7, 4, 4, 1)


@pytest.mark.parametrize("steps", [2, 5, 13])
def test_samples_are_uniform_over_what_the_ring_holds(steps):
    num_envs, draws = 3, 30_000
    transitions = stream(steps, num_envs)
    batch = jax.jit(ring.sample, static_argnums=2)(filled(5 * num_envs, transitions), jax.random.key(0), draws)
    held = rows_of(transitions, max(0, steps - 5), steps)
    names, counts = np.unique(batch.observation[:, 0], return_counts=True)
    np.testing.assert_array_equal(names, np.sort(held.observation.ravel()))  # all of it, and nothing else
    cells = len(names)
    chi_square = np.sum((counts - draws / cells) ** 2) / (draws / cells)
    assert chi_square < (cells - 1) + 6.0 * np.sqrt(2.0 * (cells - 1))


@pytest.mark.parametrize("held", [1, 65_536, 65_537, 200_000])
def test_samples_of_a_large_ring_are_uniform(held):
    draws = 100_000
    replay = ring.init(200_000, example_transition(SPEC))
    storage = replay.storage.replace(reward=jnp.arange(200_000.0)[:, None])
    replay = replay.replace(storage=storage, size=jnp.int32(held), position=jnp.int32(held % 200_000))
    row = np.asarray(jax.jit(ring.sample, static_argnums=2)(replay, jax.random.key(0), draws).reward).astype(int)
    assert row.min() >= 0 and row.max() < held
    if held > 1:
        for cell in (row * 10 // held, row % 10):  # the leading digit and the last one
            np.testing.assert_allclose(np.bincount(cell, minlength=10) / draws, 0.1, atol=0.006)


def test_a_sample_keeps_the_parts_of_a_transition_together():
    transitions = stream(9, 3, ending=0.3)
    batch = ring.sample(filled(15, transitions), jax.random.key(0), (4, 50))
    assert batch.reward.shape == (4, 50)
    step = np.asarray(batch.observation[..., 0]).astype(int)
    env = np.rint((np.asarray(batch.observation[..., 0]) - step) * 10).astype(int)
    assert_same(batch, jax.tree.map(lambda x: x[step, env], transitions))


def test_samples_differ_by_key_and_repeat_by_key():
    replay = filled(50, stream(50))
    first, again, other = (ring.sample(replay, jax.random.key(k), 20).observation for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def n_steps_by_hand(transitions, step, env, n, discount):
    reward, weight = 0.0, 1.0
    for k in range(n):
        last = jax.tree.map(lambda x, t=step + k: x[t, env], transitions)
        reward, weight = reward + weight * last.reward, weight * discount
        if last.terminated or last.truncated:
            break
    return reward, weight, last


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("steps", [5, 6, 23])  # partly filled, just full and wrapped: the ring has six rows
def test_n_step_transitions_equal_a_computation_by_hand(n, steps):
    num_envs, discount = 2, 0.8
    transitions = stream(steps, num_envs, ending=0.15)
    replay = filled(6 * num_envs, transitions)
    sample = jax.jit(ring.sample_n_step, static_argnums=(2, 3))
    batch, bootstrap = sample(replay, jax.random.key(0), (300,), n, discount)
    assert batch.reward.shape == bootstrap.shape == (300,)
    seen = set()
    for i in range(300):
        name = float(batch.observation[i, 0])
        step, env = int(name), round((name - int(name)) * 10)
        seen.add((step, env))
        reward, weight, last = n_steps_by_hand(transitions, step, env, n, discount)
        np.testing.assert_allclose([batch.reward[i], bootstrap[i]], [reward, weight], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(batch.action[i], transitions.action[step, env])
        np.testing.assert_array_equal(batch.next_observation[i], last.next_observation)
        assert (batch.terminated[i], batch.truncated[i]) == (last.terminated, last.truncated)
    # Every start with n - 1 successors in the ring, and none of those whose successors are not there yet.
    oldest = max(0, steps - 6)
    assert seen == {(step, env) for step in range(oldest, steps - n + 1) for env in range(num_envs)}


def test_n_step_extras_are_those_of_the_first_step():
    transitions = stream(6).replace(extras={"step": np.arange(6.0, dtype=np.float32)[:, None]})
    batch, _ = ring.sample_n_step(filled(6, transitions), jax.random.key(0), 40, 3, 0.9)
    np.testing.assert_array_equal(batch.extras["step"], batch.observation[:, 0])


def test_scan_batches_steps_once_per_fresh_batch_and_averages_metrics():
    replay = filled(50, stream(50))

    def step(state, batch, key):
        names = batch.observation[:, 0]
        return (state[0] + 1, state[1].at[state[0]].set(names)), {
            "names": names.mean(),
            "draw": jax.random.uniform(key),
        }

    def run(num_steps):
        return ring.scan_batches(step, (0, jnp.zeros((3, 8))), replay, jax.random.key(0), num_steps, 8)

    (count, names), metrics = run(3)
    assert count == 3
    assert len(np.unique(names, axis=0)) == 3
    np.testing.assert_allclose(metrics["names"], names.mean(), rtol=1e-5)
    (count, names), metrics = run(1)
    assert count == 1
    np.testing.assert_allclose(metrics["names"], names[0].mean(), rtol=1e-5)
    assert metrics["draw"].shape == ()


@pytest.mark.parametrize(("rollout_length", "num_envs"), [(1, 1), (2, 1), (1, 3), (5, 3)])
def test_an_update_has_the_gradient_steps_asked_for_or_one_per_environment_step(rollout_length, num_envs):
    replay = ring.init(12, example_transition(SPEC), num_envs)
    assert ring.steps_per_update(replay, rollout_length, -1) == rollout_length * num_envs
    for asked in (1, 4):
        assert ring.steps_per_update(replay, rollout_length, asked) == asked


def test_steps_per_update_are_those_of_one_seed():
    def steps(replay):
        return jnp.full((), ring.steps_per_update(replay, 2, -1))

    np.testing.assert_array_equal(jax.vmap(steps, in_axes=(ring.SEED_AXES,))(of_seeds(4, 12, 3)), [6] * 4)


# Seeds


def of_seeds(num_seeds, capacity, num_envs=1, spec=SPEC):
    example = example_transition(spec)
    return jax.vmap(lambda _: ring.init(capacity, example, num_envs), out_axes=ring.SEED_AXES)(jnp.arange(num_seeds))


ADD_SEEDS = jax.vmap(ring.add, in_axes=(ring.SEED_AXES, 0), out_axes=ring.SEED_AXES)


def test_seeds_share_position_and_size_and_keep_their_own_data():
    transitions = [stream(7, 2), jax.tree.map(lambda x: x[::-1], stream(7, 2))]
    replay, add = of_seeds(2, 10, 2), jax.jit(ADD_SEEDS)
    for i in range(7):
        replay = add(replay, jax.tree.map(lambda *x, i=i: np.stack(x)[:, i : i + 1], *transitions))
    assert replay.position.shape == replay.size.shape == ()
    assert (replay.rows, replay.num_envs, replay.capacity) == (5, 2, 10)
    sample = jax.vmap(lambda r, k: ring.sample(r, k, 20), in_axes=(ring.SEED_AXES, 0))
    keys = jax.random.split(jax.random.key(0), 2)
    batches = sample(replay, keys)
    for seed in range(2):
        alone = filled(10, transitions[seed])
        assert_same(jax.tree.map(lambda x, s=seed: x[s], replay.storage), alone.storage)
        assert_same(jax.tree.map(lambda x, s=seed: x[s], batches), ring.sample(alone, keys[seed], 20))


def test_a_lane_of_several_rings_is_read_and_written_where_it_is():
    """Partly filled, full and wrapped, with moments of its own: everything equals that ring alone."""
    make = lambda _: ring.init(6, jax.tree.map(lambda x: x[0, 0], stream(1, 2)), 2, normalize_observations=True)  # noqa: E731
    rings = jax.vmap(make, out_axes=ring.SEED_AXES)(jnp.arange(3))
    alone = [make(i) for i in range(3)]
    transitions = [jax.tree.map(lambda x, i=i: np.roll(x, i, axis=0), stream(7, 2)) for i in range(3)]

    @jax.jit
    def add(rings, lane, row):
        return ring.with_lane(rings, ring.add(ring.of_lane(rings, lane), row))

    @jax.jit
    def look(replay, key):
        n_step = ring.sample_n_step(replay, key, 8, 1, 0.9)
        return ring.chronological(replay), ring.sample(replay, key, (4, 3)), n_step

    for step in range(7):
        before = rings
        for lane in range(3):
            row = rows_of(transitions[lane], step, step + 1)
            rings = add(replace(rings, position=before.position, size=before.size), jnp.int32(lane), row)
            alone[lane] = ADD(alone[lane], row)
        for lane in range(3):
            seen = look(ring.of_lane(rings, jnp.int32(lane)), jax.random.key(step))
            assert_same(seen, look(alone[lane], jax.random.key(step)))
    stacked = jax.tree.map(lambda *x: np.stack(x), *[(x.storage, x.normalizer) for x in alone])
    assert_same((rings.storage, rings.normalizer), stacked)
    assert rings.lane is None and (int(rings.position), int(rings.size)) == (1, 3)
    with pytest.raises(ValueError, match="of_lane makes a view"):
        ring.with_lane(rings, rings)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_add_over_seeds_is_a_slice_update_and_not_a_scatter(num_envs):
    row = jax.tree.map(lambda x: jnp.zeros((4, 1, num_envs, *x.shape), x.dtype), example_transition(SPEC))
    compiled = jax.jit(ADD_SEEDS, donate_argnums=0).lower(of_seeds(4, 1000, num_envs), row).compile()
    assert "dynamic-update-slice" in compiled.as_text()
    assert not re.search(r"\bscatter\b", compiled.as_text())


def test_a_position_per_seed_is_refused():
    row = jax.tree.map(lambda x: jnp.zeros((2, 1, 1, *x.shape), x.dtype), example_transition(SPEC))
    replays = jax.vmap(lambda _: ring.init(4, example_transition(SPEC)))(jnp.arange(2))
    with pytest.raises(ValueError, match="SEED_AXES"):
        jax.vmap(ring.add)(replays, row)


# The ring is never copied

WIDE = EnvironmentSpec("test/Wide-v0", ArraySpec((17,), np.dtype(np.float32)), ArraySpec((6,), np.dtype(np.float32)))
ROW = jax.tree.map(lambda x: jnp.ones((1, 1, *x.shape), x.dtype), example_transition(WIDE))


def total(batch):
    return jnp.sum(batch.reward) + jnp.sum(batch.observation) + jnp.sum(batch.next_observation)


def add_then_sample(replay, key, steps=200, batch_size=32):
    def body(i, carry):
        replay, seen = carry
        replay = ring.add(replay, ROW)
        return replay, seen + total(ring.sample(replay, jax.random.fold_in(key, i), batch_size))

    return jax.lax.fori_loop(0, steps, body, (replay, jnp.zeros(())))


def add_then_sample_seeds(replay, keys):
    lifted = jax.vmap(add_then_sample, in_axes=(ring.SEED_AXES, 0), out_axes=(ring.SEED_AXES, 0))
    return lifted(replay, keys)


def add_then_sample_in_turn(replay, keys):
    def turn(lane, carry):
        rings, seen = carry
        one, total = add_then_sample(ring.of_lane(rings, lane), keys[lane])
        return ring.with_lane(rings, one), seen.at[lane].set(total)

    return jax.lax.fori_loop(0, keys.shape[0], turn, (replay, jnp.zeros(keys.shape[0])))


def num_bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("loop", [add_then_sample, add_then_sample_seeds, add_then_sample_in_turn])
def test_a_loop_that_adds_and_samples_needs_no_second_ring(loop):
    replay, key = ring.init(100_000, example_transition(WIDE)), jax.random.key(0)
    if loop is not add_then_sample:
        replay, key = of_seeds(2, 100_000, spec=WIDE), jax.random.split(key, 2)
    compiled = jax.jit(loop, donate_argnums=0).lower(replay, key).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(replay)
    assert memory.temp_size_in_bytes < num_bytes(replay) / 50


def test_a_donated_add_writes_in_place():
    replay = ring.init(100_000, example_transition(WIDE))
    memory = jax.jit(ring.add, donate_argnums=0).lower(replay, ROW).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(replay)
    assert memory.temp_size_in_bytes < num_bytes(replay) / 50


def seconds(run, repeats=15):
    """Least time of `run()`, after one call that is not timed: others on the same cores only ever add to it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def in_one_call(capacity):
    run, key = jax.jit(add_then_sample, donate_argnums=0), jax.random.key(0)
    replay = ring.init(capacity, example_transition(WIDE))

    def repeat():
        nonlocal replay
        replay, seen = run(replay, key)
        jax.block_until_ready(seen)

    return seconds(repeat)


def in_separate_calls(capacity):
    add = jax.jit(ring.add, donate_argnums=0)
    sample, key = jax.jit(lambda replay, key: total(ring.sample(replay, key, 32))), jax.random.key(0)
    replay = ring.init(capacity, example_transition(WIDE))

    def repeat():
        nonlocal replay
        for _ in range(20):
            replay = add(replay, ROW)
            jax.block_until_ready(sample(replay, key))

    return seconds(repeat)


@pytest.mark.parametrize("measure", [in_one_call, in_separate_calls])
def test_the_time_of_a_step_does_not_grow_with_the_ring(measure):
    small, large = measure(10_000), measure(1_000_000)  # 1.7 and 170 MB: a copy would cost some hundred times more
    assert large < 8.0 * small


# What imitation needs: forgetting, rewards of one's own, drawing by source, demonstrations


@pytest.mark.parametrize("num_envs", [1, 3])
def test_forgotten_rows_are_those_that_were_added_last(num_envs):
    transitions = stream(9, num_envs)
    replay = ring.forget(filled(10 * num_envs, rows_of(transitions, 0, 6)), 4)
    assert (int(replay.size), int(replay.position)) == (2, 2)
    replay = ADD(replay, rows_of(transitions, 6, 9))
    ordered, mask = ring.chronological(replay)
    assert mask.sum() == 5 * num_envs
    expected = jax.tree.map(lambda x: np.concatenate([x[:2], x[6:9]]), transitions)
    assert_same(rows_of(ordered, 0, 5), expected)


def test_forgetting_nothing_and_everything():
    replay = filled(10, stream(6))
    assert_same(ring.forget(replay, 0), replay)
    empty = ring.forget(replay, 6)
    assert (int(empty.size), int(empty.position)) == (0, 0)


def test_a_full_ring_can_be_forgotten_as_a_whole():
    replay = ring.forget(filled(6, stream(6)), 6)
    assert (int(replay.size), int(replay.position)) == (0, 0)


def test_a_full_ring_stays_full_and_writes_over_what_it_forgot():
    transitions = stream(16)
    replay = ring.forget(filled(10, rows_of(transitions, 0, 13)), 3)  # rows 0 to 2 were overwritten by 10 to 12
    assert (int(replay.size), int(replay.position)) == (10, 0)
    replay = ADD(replay, rows_of(transitions, 13, 16))
    held = sorted(np.asarray(replay.storage.observation).ravel().tolist())
    assert held == [*range(3, 10), 13, 14, 15]


def test_a_relabelled_view_has_the_rewards_of_its_function_everywhere():
    transitions = stream(8, 2)
    replay = filled(10, transitions)
    view = ring.relabel(replay, lambda scale, t: scale * t.observation[..., 0] + t.action[..., 1], 2.0)
    key = jax.random.key(0)
    for shape in (5, (2, 3)):
        seen, stored = ring.sample(view, key, shape), ring.sample(replay, key, shape)
        np.testing.assert_allclose(seen.reward, 2.0 * stored.observation[..., 0] + stored.action[..., 1], rtol=1e-6)
        assert_same(seen.replace(reward=0), stored.replace(reward=0))
    expected = 2.0 * transitions.observation[..., 0] + transitions.action[..., 1]
    np.testing.assert_allclose(ring.chronological(view)[0].reward, expected[3:], rtol=1e-6)
    assert_same(view.storage, replay.storage)


def test_n_step_rewards_are_summed_after_relabelling():
    view = ring.relabel(filled(10, stream(8)), lambda t: jnp.ones(t.reward.shape))
    batch, _ = ring.sample_n_step(view, jax.random.key(0), 20, 3, 0.5)
    np.testing.assert_allclose(batch.reward, 1.75)


@pytest.mark.parametrize(("sources", "num_envs"), [(3, 1), (3, 2), (7, 2)])
def test_a_source_s_transitions_are_its_own_and_uniform(sources, num_envs):
    """Four rows each; a ring of five blocks keeps the last five sources."""
    replay = filled(20 * num_envs, stream(4 * sources, num_envs))
    draw = jax.jit(lambda key, source: ring.sample_sources(replay, key, source, 4 * num_envs))
    for source in range(max(0, sources - 5), sources):
        batch = draw(jax.random.key(source), jnp.full(4_000, source))
        steps = np.round(np.asarray(batch.observation[:, 0]), 1)
        names, counts = np.unique(steps, return_counts=True)
        own = 4 * source + np.arange(4)[:, None] + np.arange(num_envs) / 10
        np.testing.assert_allclose(names, np.sort(own.ravel()), atol=0.01)
        expected = 4_000 / len(names)
        assert np.sum((counts - expected) ** 2 / expected) < 24.3  # 99.9 % of 7 degrees of freedom


def test_demonstrations_are_drawn_uniformly_and_normalised_like_the_rest():
    transitions = stream(6)
    expert = jax.tree.map(lambda x: x[:, 0], stream(5))
    replay = filled(10, transitions, normalize_observations=True, demonstrations=expert)
    drawn = jax.jit(ring.sample_demonstrations, static_argnums=2)(replay, jax.random.key(0), 5_000)
    mean, std = transitions.observation.mean(), transitions.observation.std()
    raw = np.round(np.asarray(drawn.observation[:, 0]) * std + mean).astype(int)
    counts = np.bincount(raw, minlength=5)
    assert len(counts) == 5 and np.sum((counts - 1_000) ** 2 / 1_000) < 18.5  # 99.9 % of 4 degrees of freedom
    np.testing.assert_allclose(drawn.action, expert.action[raw], rtol=1e-6)
    assert ring.sample_demonstrations(replay, jax.random.key(0), (2, 3)).reward.shape == (2, 3)
    with pytest.raises(ValueError, match="no demonstrations"):
        ring.sample_demonstrations(filled(10, transitions), jax.random.key(0), 4)


def test_demonstrations_are_shared_by_the_seeds_and_pass_through_an_add():
    expert = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), stream(5))
    replay = of_seeds(2, 8)
    replay = replay.replace(demonstrations=expert)
    row = jax.tree.map(lambda x: jnp.stack([x, x]), rows_of(stream(1), 0, 1))
    assert_same(ADD_SEEDS(replay, row).demonstrations, expert)
