"""Decompositions of small matrices that `vmap` turns into a loop, with the same numbers; products in full float32.

XLA's CPU backend hands the matrices of a batched LAPACK call to the threads that run the program, and waits for them on
one of those threads: calls side by side, as those of seeds in one program are, then wait for each other for ever, now
and then (jaxlib 0.10.2 with two cores). One matrix at a time needs no other thread.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with all its matrix products in float32, where the device's default keeps fewer digits.

    Networks bear TF32 (GPUs) and bfloat16 (TPUs), as they do everywhere in JAX; normal equations do not.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays, with a loop for the batch of every `vmap` around it. It has no reverse-mode gradient."""
    return jax.custom_batching.sequential_vmap(function)


@one_by_one
def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """The x of a x = b: (n, n) and (n,) or (n, k) -> as b."""
    return jnp.linalg.solve(a, b)


@one_by_one
def singular_values(x: jax.Array) -> jax.Array:
    """Of a matrix (m, n), largest first, (min(m, n),)."""
    return jnp.linalg.svd(x, compute_uv=False)


@one_by_one
def orthonormal_basis(x: jax.Array) -> jax.Array:
    """Columns (m, min(m, n)) that span those of a matrix (m, n); where its rank is lower, the last ones are 0."""
    vectors, values, _ = jnp.linalg.svd(x, full_matrices=False)
    return vectors * (values > max(x.shape) * jnp.finfo(values.dtype).eps * values[0])
