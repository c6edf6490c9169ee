"""Decompositions: NumPy's numbers under vmap, and never a batch of matrices in one LAPACK call, which can hang.

Products around them are in float32 on any device.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import diagnostics, linalg, networks
from offpolicy_jax.losses import lstd

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(4, 3, 5, 5)), RNG.normal(size=(4, 3, 5))


def test_many_linear_systems_are_solved():
    solve = jax.jit(jax.vmap(jax.vmap(linalg.solve)))
    np.testing.assert_allclose(solve(A, B), np.linalg.solve(A, B[..., None])[..., 0], rtol=1e-3, atol=1e-5)
    same = jax.vmap(linalg.solve, (None, 0))(A[0, 0], B[0])  # a batch of one of both
    np.testing.assert_allclose(same, np.linalg.solve(A[0, 0], B[0].T).T, rtol=1e-3, atol=1e-5)


def test_many_matrices_have_their_singular_values_and_spans():
    tall = A[0, :, :, :3]
    np.testing.assert_allclose(jax.vmap(linalg.singular_values)(tall), np.linalg.svd(tall)[1], rtol=1e-5)
    basis = jax.vmap(linalg.orthonormal_basis)(tall)
    np.testing.assert_allclose(np.swapaxes(basis, 1, 2) @ basis, np.tile(np.eye(3), (3, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(basis @ (np.swapaxes(basis, 1, 2) @ tall), tall, atol=1e-5)


def test_a_basis_of_few_dimensions_ends_in_zeros():
    x = np.outer(A[0, 0, 0], [1.0, 2.0, -1.0]).astype(np.float32)
    basis = np.asarray(linalg.orthonormal_basis(x))
    np.testing.assert_allclose(np.abs(basis[:, 0]), np.abs(A[0, 0, 0]) / np.linalg.norm(A[0, 0, 0]), rtol=1e-5)
    np.testing.assert_array_equal(basis[:, 1:], 0.0)
    np.testing.assert_array_equal(linalg.orthonormal_basis(jnp.zeros((4, 2))), 0.0)


FEATURES, ACTION = jnp.asarray(RNG.normal(size=(4, 20, 3)), jnp.float32), jnp.zeros((4, 20), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), 4)
LSPI = lambda x, a: lstd.lspi(x, a, x[:, 0], a > 0, x, 2, 0.9, 1e-3, 2)  # noqa: E731
PROGRAMS = {
    "orthogonal": (lambda key: networks.initializer("orthogonal")(key, (5, 7)), (KEYS,)),
    "statistics": (diagnostics.feature_statistics, (FEATURES,)),
    "probe": (diagnostics.linear_probe_error, (FEATURES, FEATURES[..., :2])),
    "cosines": (diagnostics.principal_cosines, (FEATURES, FEATURES[..., :2])),
    "lspi": (LSPI, (FEATURES, ACTION)),
}


def lapack_ranks(program, arguments):
    """Largest rank of an operand of each LAPACK call of the compiled program."""
    text = jax.jit(program).lower(*arguments).as_text()
    calls = [line for line in text.splitlines() if "custom_call @lapack" in line]
    return [max(shape.count("x") for shape in re.findall(r"tensor<([0-9x]+x)f32>", line)) for line in calls]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is the CPU's")
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_lapack_call_has_a_batch(name):
    program, arguments = PROGRAMS[name]
    ranks = lapack_ranks(jax.vmap(program), arguments)
    assert ranks and set(ranks) == {2}


def products(program, arguments):
    """The precision of each matrix product of a program, as it is written for a device."""
    text = jax.jit(program).lower(*arguments).as_text()
    return [re.search(r"precision = \[(\w+), ", line) for line in text.splitlines() if "dot_general" in line]


LOG_PROB = lambda w: jax.nn.log_softmax(FEATURES[0] @ w)[:, 0]  # noqa: E731
LEAST_SQUARES = {name: PROGRAMS[name] for name in ("probe", "cosines", "lspi")} | {
    "sampling error": (lambda w: diagnostics.sampling_error(LOG_PROB, w, jnp.ones(20), 3), (jnp.ones((3, 2)),))
}


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_products_are_in_float32_on_any_device(name):
    program, arguments = LEAST_SQUARES[name]
    if name != "sampling error":
        arguments = [x[0] for x in arguments]
    found = products(program, arguments)
    assert found and all(precision and precision[1] == "HIGHEST" for precision in found)
    assert all(precision is None or precision[1] == "DEFAULT" for precision in products(jnp.dot, (A[0, 0], A[0, 0])))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is the CPU's")
def test_a_batch_would_be_seen():
    assert 3 in lapack_ranks(jax.vmap(jnp.linalg.solve), (A[0], B[0]))
