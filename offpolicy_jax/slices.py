"""Slice updates that stay slice updates under `vmap` over seeds, as long as the seeds share the position."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def write_rows(rows: T, new: T, position: jax.Array) -> T:
    """A pytree with leaves (rows, ...) where `new`, leaves (n, ...), stands from `position` on."""
    return jax.tree.map(lambda old, x: _write(0)(old, x, position), rows, new)


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
