"""Temporal-difference targets and errors against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import td

RNG = np.random.default_rng(0)
B = 7
REWARD = RNG.normal(size=B).astype(np.float32)
NEXT_VALUE = RNG.normal(size=B).astype(np.float32)
TERMINATED = np.array([0, 1, 0, 0, 1, 0, 1], bool)


def test_target_equals_numpy():
    expected = [r + 0.9 * v if not d else r for r, v, d in zip(REWARD, NEXT_VALUE, TERMINATED, strict=True)]
    np.testing.assert_allclose(td.td_target(REWARD, TERMINATED, NEXT_VALUE, 0.9), expected, rtol=1e-6)


def test_target_with_a_discount_per_transition():
    discount = np.linspace(0.0, 1.0, B, dtype=np.float32)
    expected = REWARD + discount * (1.0 - TERMINATED) * NEXT_VALUE
    np.testing.assert_allclose(td.td_target(REWARD, TERMINATED, NEXT_VALUE, discount), expected, rtol=1e-6)


def test_target_is_the_reward_without_discount():
    np.testing.assert_array_equal(td.td_target(REWARD, TERMINATED, NEXT_VALUE, 0.0), REWARD)


@pytest.mark.parametrize("value", [0.0, 1e30, np.nan, np.inf])
def test_target_is_the_reward_at_a_terminal_state_whatever_the_value(value):
    target = td.td_target(REWARD, np.ones(B, bool), np.full(B, value, np.float32), 0.9)
    np.testing.assert_array_equal(target, REWARD)


def test_target_has_no_gradient():
    total = lambda r, v, g: jnp.sum(td.td_target(r, TERMINATED, v, g))  # noqa: E731
    for gradient in jax.grad(total, argnums=(0, 1, 2))(REWARD, NEXT_VALUE, 0.9):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("argument", range(4))
def test_target_refuses_a_trailing_axis(argument):
    arguments = [REWARD, TERMINATED, NEXT_VALUE, np.full(B, 0.9, np.float32)]
    arguments[argument] = arguments[argument][:, None]
    with pytest.raises(AssertionError):
        td.td_target(*arguments)


@pytest.mark.parametrize("argument", range(3))
def test_target_refuses_another_batch_size(argument):
    arguments = [REWARD, TERMINATED, NEXT_VALUE]
    arguments[argument] = arguments[argument][:1]
    with pytest.raises(AssertionError):
        td.td_target(*arguments, 0.9)


def test_squared_error_equals_numpy():
    q = RNG.normal(size=(3, B)).astype(np.float32)
    expected = sum(0.5 * np.mean((row - NEXT_VALUE) ** 2) for row in q)
    np.testing.assert_allclose(td.squared_td_error(q, NEXT_VALUE), expected, rtol=1e-6)


def test_squared_error_has_the_gradient_of_the_error():
    q = RNG.normal(size=(3, B)).astype(np.float32)
    np.testing.assert_allclose(jax.grad(td.squared_td_error)(q, NEXT_VALUE), (q - NEXT_VALUE) / B, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("q_shape", "target_shape"), [((2, B), (B, 1)), ((B,), (B,)), ((2, B), (1,)), ((2, 1), (B,))])
def test_squared_error_refuses_shapes_that_would_broadcast(q_shape, target_shape):
    with pytest.raises(AssertionError):
        td.squared_td_error(np.zeros(q_shape, np.float32), np.zeros(target_shape, np.float32))
