"""Parameters as pytrees: copies, target averaging, optimiser steps."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from offpolicy_jax.transition import PyTree

T = TypeVar("T")


def copy(params: T) -> T:
    """A copy in its own buffers, so that online and target parameters can both be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), params)


def polyak(target: T, online: T, tau: jax.Array | float) -> T:
    """(1 - tau) target + tau online: tau is the weight of the new parameters, 1 copies them and 0 keeps the old."""
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, online)


def adam_init(params: PyTree) -> optax.OptState:
    """State for `adam_step`."""
    return optax.adam(0.0).init(params)


def adam_step(
    gradients: PyTree,
    optimizer_state: optax.OptState,
    params: T,
    learning_rate: jax.Array | float,
    epsilon: float = 1e-8,
) -> tuple[T, optax.OptState]:
    """One Adam step (Kingma & Ba 2015; beta 0.9, 0.999). The learning rate may be traced and vmapped."""
    updates, optimizer_state = optax.adam(learning_rate, eps=epsilon).update(gradients, optimizer_state)
    return optax.apply_updates(params, updates), optimizer_state  # type: ignore[return-value]


def clip_by_global_norm(gradients: T, limit: jax.Array | float) -> T:
    """Gradients scaled down so that their global norm is at most `limit`."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda x: x * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12)), gradients)


def descend_minibatches(
    loss: Callable[[T, PyTree], tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]],
    params: T,
    optimizer_state: optax.OptState,
    data: PyTree,
    key: jax.Array,
    *,
    epochs: int,
    minibatches: int,
    learning_rate: jax.Array | float,
    max_gradient_norm: jax.Array | float,
    largest_distance: jax.Array | float = jnp.inf,
    valid: jax.Array | None = None,
) -> tuple[T, optax.OptState, jax.Array, dict[str, jax.Array]]:
    """Adam steps (epsilon 1e-5) on `epochs` shuffled passes over data (N, ...), each in `minibatches` equal parts.

    `loss(params, batch)` returns (loss, (distance, metrics)). The step whose distance is above `largest_distance` is
    not taken, and ends the descent. A remainder of N is left out of its pass; one part is all of N, in order. Where
    only some rows are `valid` (N,), parts keep their size and become fewer: as many as the valid rows fill, or one with
    all of them (the loss masks the others). Returns parameters, optimiser, the number of steps taken (float32) and the
    mean metrics. Raises ValueError for more parts than rows.
    """
    data = jax.tree.map(jnp.asarray, data)
    rows = jax.tree.leaves(data)[0].shape[0]
    size = rows // minibatches
    if not size:
        raise ValueError(f"cannot cut {rows} rows into {minibatches} minibatches")
    parts: jax.Array | int = minibatches  # of a pass
    if minibatches == 1:
        part = lambda i: data  # noqa: E731
    else:
        order = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
        if valid is not None:
            parts = jnp.clip(jnp.sum(valid) // size, 1, minibatches)
            order = jnp.take_along_axis(order, jnp.argsort(~valid[order], axis=1, stable=True), axis=1)

        def part(i):
            index = jax.lax.dynamic_slice(order, (i // parts, i % parts * size), (1, size))[0]
            return jax.tree.map(lambda x: x[index], data)

    _, (_, example) = jax.eval_shape(lambda: loss(params, part(0)))

    def step(carry):
        i, _, params, optimizer_state, total = carry
        gradients, (distance, metrics) = jax.grad(loss, has_aux=True)(params, part(i))
        stop = distance > largest_distance
        gradients = clip_by_global_norm(gradients, max_gradient_norm)
        new = adam_step(gradients, optimizer_state, params, learning_rate, epsilon=1e-5)
        params, optimizer_state = jax.tree.map(lambda a, b: jnp.where(stop, a, b), (params, optimizer_state), new)
        return i + 1, stop, params, optimizer_state, jax.tree.map(jnp.add, total, metrics)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    begin = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), params, optimizer_state, nothing)
    i, stop, params, optimizer_state, total = jax.lax.while_loop(lambda c: (c[0] < epochs * parts) & ~c[1], step, begin)
    return params, optimizer_state, i - 1.0 * stop, jax.tree.map(lambda x: x / i, total)
