"""The seed axis: lift a function of one seed to many, and spread them over devices.

Axes are pytree prefixes as for `jax.vmap`: 0 for leaves with a leading seed axis, None for what all seeds share.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from offpolicy_jax.transition import PyTree

AXIS = "seeds"


def use_cores(num_seeds: int) -> None:
    """Make one CPU device per core, as many as divide the seeds evenly. Call it before JAX's first computation.

    Small matrix products gain little from two threads each, and much from two seeds at once. Nothing happens if JAX
    runs already, or if XLA_FLAGS names a number of devices.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(n for n in range(1, cores + 1) if num_seeds % n == 0))


def mesh(num_seeds: int) -> Mesh:
    """A one-axis mesh over as many local devices as divide the seeds evenly."""
    devices = jax.local_devices()
    used = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return Mesh(np.array(devices[:used]), (AXIS,))


def keys(first_seed: int, num_seeds: int) -> jax.Array:
    """Typed keys (S,): seed i of a run is `jax.random.key(first_seed + i)`, whatever the number of seeds."""
    return jax.vmap(jax.random.key)(np.arange(first_seed, first_seed + num_seeds, dtype=np.uint32))


def over_seeds(function: Callable, in_axes: tuple, out_axes: Any, num_seeds: int, mesh: Mesh) -> Callable:
    """`function` of one seed as one of all seeds, sharded over the mesh. Jit the result.

    A single seed keeps its axis outside, but runs without vmap inside: batched products of one are slower on a CPU.
    """
    per_device = num_seeds // mesh.size
    lifted = jax.vmap(function, in_axes, out_axes) if per_device > 1 else _squeezed(function, in_axes, out_axes)
    if mesh.size == 1:
        return lifted
    return jax.shard_map(lifted, mesh=mesh, in_specs=_specs(in_axes), out_specs=_specs(out_axes), check_vma=False)


def place(tree: PyTree, axes: Any, mesh: Mesh) -> PyTree:
    """Put arrays on the mesh: leaves with a seed axis split, the others on every device.

    One device: the default one, uncommitted like what jitted functions return, so that programs compile once.
    """
    if mesh.size == 1:
        return jax.device_put(tree)
    shardings = _map_prefix(lambda axis, _: NamedSharding(mesh, P() if axis is None else P(AXIS)), axes, axes)
    return _map_prefix(lambda sharding, subtree: jax.device_put(subtree, sharding), shardings, tree)


def config_axes(config: PyTree) -> PyTree:
    """Axes of a hyper-parameter record: leaves of shape (S,) differ by seed, scalars are shared."""
    return jax.tree.map(lambda x: 0 if np.ndim(x) else None, config)


def _squeezed(function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
    def drop(axis, subtree):
        return subtree if axis is None else jax.tree.map(lambda x: x[0], subtree)

    def restore(axis, subtree):
        return subtree if axis is None else jax.tree.map(lambda x: x[None], subtree)

    def squeezed(*args):
        return _map_prefix(restore, out_axes, function(*_map_prefix(drop, in_axes, args)))

    return squeezed


def _specs(axes: Any) -> Any:
    return _map_prefix(lambda axis, _: P() if axis is None else P(AXIS), axes, axes)


def _map_prefix(function: Callable, axes: Any, tree: PyTree) -> PyTree:
    return jax.tree.map(function, axes, tree, is_leaf=lambda x: x is None)
