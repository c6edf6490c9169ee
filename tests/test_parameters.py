"""Parameters: copies, averages and optimiser steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offpolicy_jax import parameters

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.array(0.5)}}


def shifted(by):
    return jax.tree.map(lambda x: x + by, PARAMS)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_polyak_weighs_the_new_parameters_by_tau():
    assert_equal(parameters.polyak(PARAMS, shifted(2.0), 1.0), shifted(2.0))
    assert_equal(parameters.polyak(PARAMS, shifted(2.0), 0.0), PARAMS)
    average = parameters.polyak(PARAMS, shifted(2.0), 0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), average, shifted(0.5))


def test_copy_has_buffers_of_its_own():
    for copied in (parameters.copy(PARAMS), jax.jit(parameters.copy)(PARAMS)):
        assert_equal(copied, PARAMS)
        for new, old in zip(jax.tree.leaves(copied), jax.tree.leaves(PARAMS), strict=True):
            assert new.unsafe_buffer_pointer() != old.unsafe_buffer_pointer()


def test_original_and_copy_can_both_be_donated():
    original = shifted(0.0)
    swap = jax.jit(lambda a, b: (jax.tree.map(jnp.negative, b), jax.tree.map(jnp.negative, a)), donate_argnums=(0, 1))
    first, second = swap(original, parameters.copy(original))
    assert_equal(first, second)


def gradient(params, step):
    return jax.tree.map(lambda x: jnp.sin(3.0 * x + step), params)


def optax_reference(learning_rate, steps):
    optimizer, params = optax.adam(learning_rate), PARAMS
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def adam(learning_rate, steps=5):
    params, state = PARAMS, parameters.adam_init(PARAMS)
    for step in range(steps):
        params, state = parameters.adam_step(gradient(params, step), state, params, learning_rate)
    return params


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), a, b)


def test_adam_step_is_optax_adam():
    close(adam(0.01), optax_reference(0.01, 5))


def test_adam_step_equals_the_paper_s_algorithm():
    x, m, v = np.asarray(PARAMS["w"], np.float64), 0.0, 0.0
    for step in range(5):
        g = np.sin(3.0 * x + step)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.01 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    np.testing.assert_allclose(adam(0.01)["w"], x, rtol=1e-4, atol=1e-5)


def test_adam_step_takes_a_traced_learning_rate():
    compiled = jax.jit(adam)
    for learning_rate in (0.01, 0.1):
        close(compiled(learning_rate), optax_reference(learning_rate, 5))
    assert compiled._cache_size() == 1


def test_adam_step_takes_a_learning_rate_per_seed():
    rates = jnp.array([0.01, 0.1, 0.0])
    together = jax.vmap(adam)(rates)
    for i, rate in enumerate(rates):
        close(jax.tree.map(lambda x, i=i: x[i], together), optax_reference(float(rate), 5))
    assert_equal(jax.tree.map(lambda x: x[2], together), PARAMS)


DATA = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e3, np.inf])
def test_clipping_equals_optax(limit):
    optimizer = optax.clip_by_global_norm(limit)
    for scale in (1.0, 1e-3):
        tree = jax.tree.map(lambda x: scale * x, gradient(PARAMS, 1.0))  # noqa: B023
        close(parameters.clip_by_global_norm(tree, limit), optimizer.update(tree, optimizer.init(tree))[0])
    assert_equal(parameters.clip_by_global_norm(tree, np.inf), tree)
    zero = jax.tree.map(jnp.zeros_like, tree)
    assert_equal(parameters.clip_by_global_norm(zero, limit), zero)


DISTANCE = np.random.default_rng(1).permutation(np.linspace(0.0, 1.0, 22, dtype=np.float32))
ROWS = {"x": DATA, "id": np.arange(22), "d": DISTANCE}


def row_loss(params, batch):
    """The distance is that of the batch's first row; the metrics say which rows were read."""
    error = jnp.tanh(batch["x"] @ params["w"]) + params["b"]["c"] - batch["x"][:, 0]
    loss = 100.0 * jnp.mean(error**2)
    used = jnp.zeros(22).at[batch["id"]].add(1.0)
    return loss, (batch["d"][0], {"loss": loss, "used": used})


MOVED = {"w": np.array([0.3, -0.7, 1.1], np.float32), "b": {"c": np.float32(0.2)}}


def begun_optimizer():
    """Moments and a count of steps that came before."""
    params, state = MOVED, parameters.adam_init(MOVED)
    for _ in range(3):
        params, state = parameters.adam_step(jax.tree.map(jnp.ones_like, MOVED), state, params, 0.1)
    return state


def descend_rows(key, epochs, minibatches, rate=0.05, norm=1.0, limit=np.inf, params=MOVED):
    return parameters.descend_minibatches(
        row_loss,
        params,
        begun_optimizer(),
        ROWS,
        key,
        epochs=epochs,
        minibatches=minibatches,
        learning_rate=rate,
        max_gradient_norm=norm,
        largest_distance=limit,
    )


def loop(key, epochs, minibatches, rate=0.05, norm=1.0, limit=np.inf, params=MOVED):
    """The same in plain Python with optax."""
    optimizer = optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate, eps=1e-5))
    carried, steps, seen, size = (optax.EmptyState(), begun_optimizer()), 0, [], 22 // minibatches
    parts = []
    for k in jax.random.split(key, epochs):
        order = np.asarray(jax.random.permutation(k, 22)) if minibatches > 1 else np.arange(22)
        parts += [order[i * size : (i + 1) * size] for i in range(minibatches)]
    for part in parts:
        batch = jax.tree.map(lambda x, part=part: x[part], ROWS)
        gradients, (distance, metrics) = jax.grad(row_loss, has_aux=True)(params, batch)
        seen.append(metrics)
        if distance > limit:
            break
        updates, carried = optimizer.update(gradients, carried, params)
        params, steps = optax.apply_updates(params, updates), steps + 1
    return params, carried[1], steps, jax.tree.map(lambda *x: np.mean(x, 0), *seen)


def assert_same_descent(out, expected, steps=None):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), out, expected)
    assert out[2].dtype == jnp.float32 and out[2].shape == ()


@pytest.mark.parametrize("norm", [1.0, np.inf])
@pytest.mark.parametrize(("epochs", "minibatches"), [(3, 4), (2, 1), (1, 5), (2, 7)])
def test_a_descent_equals_a_plain_loop(epochs, minibatches, norm):
    """Parameters, optimiser (which has been used before), steps and mean metrics."""
    out = descend_rows(jax.random.key(4), epochs, minibatches, norm=norm)
    assert_same_descent(out, loop(jax.random.key(4), epochs, minibatches, norm=norm))
    assert out[2] == epochs * minibatches and int(out[1][0].count) == 3 + epochs * minibatches


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.8, 0.97])
def test_a_descent_stops_for_good_however_near_later_minibatches_are(limit):
    """Each has a distance of its own: some after the first that is too far would not be."""
    for key in jax.random.split(jax.random.key(5), 3):
        out, expected = (f(key, 2, 22, limit=limit) for f in (descend_rows, loop))
        assert_same_descent(out, expected)
        assert out[2] < 22.0 and int(out[1][0].count) == 3 + out[2]


def test_a_distance_at_the_limit_is_not_above_it():
    """The distance is the number of steps so far."""

    def loss(params, batch):
        distance = jnp.round(-params)
        return jnp.sum(params), (distance, {"distance": distance})

    begin, data = jnp.float32(0.0), np.zeros((4, 1), np.float32)
    options = {"epochs": 8, "minibatches": 1, "learning_rate": 1.0, "max_gradient_norm": 10.0}
    for limit, taken in [(-0.5, 0), (0.0, 1), (1.9, 2), (2.0, 3), (2.1, 3), (7.0, 8), (np.inf, 8)]:
        params, optimizer, steps, metrics = parameters.descend_minibatches(
            loss, begin, parameters.adam_init(begin), data, jax.random.key(0), **options, largest_distance=limit
        )
        assert steps == taken and int(optimizer[0].count) == taken
        np.testing.assert_allclose(params, -taken, rtol=1e-3, atol=1e-6)
        looked_at = min(taken + 1, 8)
        np.testing.assert_allclose(metrics["distance"], np.mean(np.arange(looked_at)), rtol=1e-5)


def test_each_pass_reads_every_row_once_but_the_remainder():
    totals = [np.asarray(descend_rows(jax.random.key(6), n, 4)[3]["used"]) * 4 * n for n in (1, 2, 3)]
    passes = np.round(np.diff(np.stack([np.zeros(22), *totals]), axis=0), 3)
    for used in passes:
        assert sorted(used) == [0.0] * 2 + [1.0] * 20
    assert len({tuple(used) for used in passes}) == 3  # others each time
    other = descend_rows(jax.random.key(7), 1, 4)[3]["used"] * 4
    assert np.any(np.round(other, 3) != passes[0])


def test_each_member_of_a_batch_is_the_member_alone():
    """Keys, starts, step sizes, norms and limits of their own; none waits for, or stops with, the others."""
    keys = jax.random.split(jax.random.key(8), 4)
    rates, norms = np.float32([0.05, 0.01, 0.05, 0.1]), np.float32([1.0, 0.5, 2.0, 1.0])
    limits = np.float32([0.75, 0.85, np.inf, -1.0])
    starts = jax.tree.map(lambda x: np.stack([x, 2.0 * x, -x, x]), MOVED)

    def run(key, rate, norm, limit, params):
        return descend_rows(key, 3, 5, rate, norm, limit, params)

    together = jax.jit(jax.vmap(run))(keys, rates, norms, limits, starts)
    assert len({float(x) for x in together[2]}) == 4
    for i in range(4):
        alone = run(keys[i], rates[i], norms[i], limits[i], jax.tree.map(lambda x, i=i: x[i], starts))
        assert_same_descent(jax.tree.map(lambda x, i=i: x[i], together), alone)
    assert_equal(jax.tree.map(lambda x: x[3], (together[0], together[1])), (MOVED, begun_optimizer()))


def test_as_many_parts_as_rows_are_single_rows_and_no_more():
    key = jax.random.key(9)
    assert_same_descent(descend_rows(key, 1, 22), loop(key, 1, 22))
    with pytest.raises(ValueError, match="22 rows into 23"):
        descend_rows(key, 1, 23)


def descend_valid(key, valid, epochs=2, minibatches=4, params=MOVED):
    """Of the valid rows; the loss masks the others, as agents' losses do."""

    def loss(params, batch):
        error = jnp.tanh(batch["x"] @ params["w"]) + params["b"]["c"] - batch["x"][:, 0]
        value = jnp.sum(batch["v"] * error**2) / jnp.maximum(jnp.sum(batch["v"]), 1.0)
        used = jnp.zeros(22).at[batch["id"]].add(1.0)
        return value, (jnp.zeros(()), {"used": used, "filled": jnp.mean(1.0 * batch["v"])})

    options = {"learning_rate": 0.05, "max_gradient_norm": 1.0, "epochs": epochs, "minibatches": minibatches}
    data = ROWS | {"v": valid}
    return parameters.descend_minibatches(loss, params, begun_optimizer(), data, key, valid=valid, **options)


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (3, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (22, 4)])
def test_parts_keep_their_size_and_become_fewer_where_rows_hold_nothing(count, parts):
    """Parts of five rows, filled one after the other; a remainder is left out."""
    valid = np.random.default_rng(count).permutation(np.arange(22) < count)
    out = jax.jit(lambda v: descend_valid(jax.random.key(0), v))(valid)
    assert out[2] == 2 * parts and int(out[1][0].count) == 3 + 2 * parts
    used = np.asarray(out[3]["used"]) * 2 * parts
    assert used[valid].sum() == 2 * min(count, 5 * parts) and used.max(initial=0.0) <= 2.0
    np.testing.assert_allclose(out[3]["filled"], min(count, 5 * parts) / (5 * parts), rtol=1e-5)


def test_with_all_rows_valid_nothing_changes():
    key = jax.random.key(3)
    everything = descend_valid(key, np.ones(22, bool))
    np.testing.assert_array_equal(descend_valid(key, jnp.ones(22, bool))[0]["w"], everything[0]["w"])
    plain = parameters.descend_minibatches(
        lambda p, b: (jnp.mean((jnp.tanh(b["x"] @ p["w"]) + p["b"]["c"] - b["x"][:, 0]) ** 2), (jnp.zeros(()), {})),
        MOVED,
        begun_optimizer(),
        ROWS,
        key,
        epochs=2,
        minibatches=4,
        learning_rate=0.05,
        max_gradient_norm=1.0,
    )
    np.testing.assert_allclose(plain[0]["w"], everything[0]["w"], rtol=1e-5)
