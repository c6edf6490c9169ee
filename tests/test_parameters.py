"""Parameters: copies, averages and optimiser steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
