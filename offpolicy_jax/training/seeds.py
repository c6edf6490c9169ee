"""The seed axis: lift a function of one seed to many, and spread them over devices.

Axes are pytree prefixes as for `jax.vmap`: 0 for leaves with a leading seed axis, None for what all seeds share.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from offpolicy_jax.slices import put_lane, take_lane
from offpolicy_jax.training import processes
from offpolicy_jax.transition import PyTree

AXIS = "seeds"


def use_cores(num_seeds: int) -> None:
    """Make one CPU device per core, as long as padding adds less than a quarter to the seeds.

    Small matrix products gain little from two threads each, and much from two seeds at once. Call it before JAX's first
    computation: nothing happens if JAX runs already, or if XLA_FLAGS names a number of devices.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    fitting = [n for n in range(1, min(num_cores(), num_seeds) + 1) if 4 * (-num_seeds % n) < num_seeds]
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(fitting))


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keys(first_seed: int, num_seeds: int, runs: int = 1) -> jax.Array:
    """Typed keys (S,): seed i of a run is `jax.random.key(first_seed + i)`, whatever the number of seeds.

    Of several runs with the same seeds: (S * runs,), one run after the other.
    """
    seeds = np.arange(first_seed, first_seed + num_seeds, dtype=np.uint32)
    return jax.vmap(jax.random.key)(np.tile(seeds, runs))


@dataclasses.dataclass(frozen=True)
class Lanes:
    """What runs side by side, and on which devices. A lane is one seed with one set of hyper-parameters.

    Every device holds equally many. What is missing is padded by copies of the last lane, which compute what it does
    and are dropped where results leave the devices.
    """

    count: int
    mesh: Mesh

    @property
    def padded(self) -> int:
        """Lanes on all devices, copies included."""
        return -(-self.count // self.mesh.size) * self.mesh.size

    def lift(self, function: Callable, in_axes: tuple, out_axes: Any, of_several: Callable | None = None) -> Callable:
        """`function` of one lane as one of all `padded` lanes, sharded over the mesh. Jit the result.

        A single lane keeps its axis outside, but runs without vmap inside: batched products of one are slower on a CPU.
        Where a device has several lanes, `of_several`, of leaves (L, ...), runs instead of `function` under vmap.
        """
        if self.padded == self.mesh.size:
            lifted = _squeezed(function, in_axes, out_axes)
        else:
            lifted = of_several or jax.vmap(function, in_axes, out_axes)
        if self.mesh.size == 1:
            return lifted
        return jax.shard_map(
            lifted, mesh=self.mesh, in_specs=_specs(in_axes), out_specs=_specs(out_axes), check_vma=False
        )

    def pad(self, tree: PyTree, axes: Any = 0) -> PyTree:
        """Leaves (count, ...) as (padded, ...)."""
        if self.padded == self.count:
            return tree
        rows = np.minimum(np.arange(self.padded), self.count - 1)
        return _map_lanes(lambda x: x[rows], axes, tree)

    def take(self, tree: PyTree, axes: Any = 0) -> PyTree:
        """Leaves (padded, ...) as (count, ...), in the host's memory if there are copies or processes to look past."""
        if self.padded == self.count and not self._split_over_processes:
            return tree
        return _map_lanes(lambda x: _on_host(x)[: self.count], axes, tree)

    def shapes(self, tree: PyTree, axes: Any = 0) -> PyTree:
        """What `take` would return, as shapes."""
        leaf = lambda x, lead: jax.ShapeDtypeStruct((*lead, *x.shape[len(lead) :]), x.dtype)  # noqa: E731
        shared = lambda axis, subtree: jax.tree.map(lambda x: leaf(x, () if axis is None else (self.count,)), subtree)  # noqa: E731
        return _map_prefix(shared, axes, tree)

    def place(self, tree: PyTree, axes: Any = 0) -> PyTree:
        """Put arrays (count, ...) on the devices: leaves with a seed axis padded and split, the others on every device.

        One device: the default one, uncommitted like what jitted functions return, so that programs compile once.
        """
        if self.mesh.size == 1:
            return jax.device_put(tree)

        def put(axis, subtree):
            sharding = NamedSharding(self.mesh, _spec(axis))
            if self._split_over_processes:
                return jax.tree.map(lambda x: _from_every_process(x, sharding), subtree)
            return jax.device_put(subtree, sharding)

        return _map_prefix(put, axes, self.pad(tree, axes))

    @property
    def _split_over_processes(self) -> bool:
        return self.mesh.size > len(self.mesh.local_devices)


def lanes(count: int) -> Lanes:
    """So many lanes over as many devices as lower the number that one of them holds; over all, of several processes."""
    devices = jax.devices()
    each = -(-count // len(devices))
    used = -(-count // each) if jax.process_count() == 1 else len(devices)
    return Lanes(count, Mesh(np.array(devices[:used]), (AXIS,)))


def config_axes(config: PyTree) -> PyTree:
    """Axes of a hyper-parameter record: leaves of shape (S,) differ by seed, scalars are shared."""
    return jax.tree.map(lambda x: 0 if np.ndim(x) else None, config)


def of_lane(tree: PyTree, axes: Any, lane: jax.Array) -> PyTree:
    """Leaves (L, ...), of the L lanes of a device, as those of one lane; what all share stays."""
    return _map_prefix(lambda axis, subtree: subtree if axis is None else take_lane(subtree, lane), axes, tree)


def with_lane(tree: PyTree, one: PyTree, axes: Any, lane: jax.Array) -> PyTree:
    """The inverse of `of_lane`: leaves (L, ...) with one lane's in place, and what all share as that lane has it."""
    return _map_prefix(lambda axis, old, new: new if axis is None else put_lane(old, new, lane), axes, tree, one)


def with_shared(tree: PyTree, source: PyTree, axes: Any) -> PyTree:
    """The tree with what all lanes share from another one."""
    return _map_prefix(lambda axis, subtree, shared: shared if axis is None else subtree, axes, tree, source)


def has_axis(axes: Any, tree: PyTree) -> PyTree:
    """Which leaves of a tree have a seed axis, as a tree of booleans."""
    return _map_prefix(lambda axis, subtree: jax.tree.map(lambda _: axis is not None, subtree), axes, tree)


def _squeezed(function: Callable, in_axes: tuple, out_axes: Any) -> Callable:
    def squeezed(*args):
        return _map_lanes(lambda x: x[None], out_axes, function(*_map_lanes(lambda x: x[0], in_axes, args)))

    return squeezed


def _specs(axes: Any) -> Any:
    return _map_prefix(lambda axis, _: _spec(axis), axes, axes)


def _spec(axis: int | None) -> P:
    return P() if axis is None else P(AXIS)


def _on_host(x: Any) -> Any:
    """A whole array as NumPy, or as keys."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_on_host(jax.random.key_data(x)))
    return np.asarray(x) if not isinstance(x, jax.Array) or x.is_fully_addressable else processes.gather(x)


def _from_every_process(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, as one of which each holds its part."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_from_every_process(jax.random.key_data(x), sharding))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _map_lanes(function: Callable, axes: Any, tree: PyTree) -> PyTree:
    """The tree with a function of every leaf that has a seed axis."""
    return _map_prefix(lambda axis, subtree: subtree if axis is None else jax.tree.map(function, subtree), axes, tree)


def _map_prefix(function: Callable, axes: Any, *trees: PyTree) -> PyTree:
    return jax.tree.map(function, axes, *trees, is_leaf=lambda x: x is None)
