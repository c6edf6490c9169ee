"""Reading and writing slices of arrays without copying the rest.

Writes of rows stay slice updates under `vmap` over seeds, as long as the seeds share the position. With a `lane`, rows
are those of one of several rings, stacked as (L, rows, ...).
"""

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def write_rows(rows: T, new: T, position: jax.Array, lane: jax.Array | None = None) -> T:
    """A pytree with leaves (rows, ...) where `new`, leaves (n, ...), stands from `position` on.

    With a `lane`, leaves are (L, rows, ...), and `new` stands in that one's rows.
    """
    if lane is None:
        return jax.tree.map(lambda old, x: _write(0)(old, x, position), rows, new)

    def write(old, x):
        start = (lane, position, *[0] * (x.ndim - 1))
        return jax.lax.dynamic_update_slice(old, x[None].astype(old.dtype), start)

    return jax.tree.map(write, rows, new)


def take_rows(rows: jax.Array, index: jax.Array, axes: int, lane: jax.Array | None = None) -> jax.Array:
    """The entries at `index` (...), which counts along the leading `axes` together: (...) and the remaining axes.

    With a `lane`, `rows` has an axis of L before them, and it is that one's entries. Indices must be in bounds, and so
    many entries of all lanes be fewer than 2^31.
    """
    if lane is not None:
        index = index + lane * math.prod(rows.shape[1 : axes + 1])
        axes += 1
    flat = rows.reshape(-1, *rows.shape[axes:])  # no copy: one axis of indices makes a faster gather than two
    return flat.at[index].get(mode="promise_in_bounds")


def take_lane(tree: T, lane: jax.Array) -> T:
    """Leaves (L, ...) as those of one lane, (...)."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, lane, keepdims=False), tree)


def put_lane(tree: T, one: T, lane: jax.Array) -> T:
    """Leaves (L, ...) with those of one lane, (...), in its place."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, lane, 0), tree, one)


@functools.cache
def _write(axis: int):
    """`dynamic_update_slice` along `axis` that stays one under vmap (JAX's own batching rule makes it a scatter)."""

    @jax.custom_batching.custom_vmap
    def write(ring, rows, position):
        return jax.lax.dynamic_update_slice_in_dim(ring, rows.astype(ring.dtype), position, axis)

    @write.def_vmap
    def _(axis_size, batched, ring, rows, position):
        ring_batched, rows_batched, position_batched = batched
        if position_batched:
            raise ValueError("the replay's position is shared by all seeds: give it axis None (replay.SEED_AXES)")
        if not ring_batched:
            ring = jnp.broadcast_to(ring, (axis_size, *ring.shape))
        if not rows_batched:
            rows = jnp.broadcast_to(rows, (axis_size, *rows.shape))
        return _write(axis + 1)(ring, rows, position), True

    return write
