"""Torsos: shapes of the papers, and the patches' convolution against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.errors import UserError
from offpolicy_jax.torsos import by_patches, by_xla, torso
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec

IMPALA = (
    sum(
        (9 * before + 1) * channels + 4 * (9 * channels + 1) * channels
        for before, channels in ((4, 128), (128, 256), (256, 256))
    )
    + (11 * 11 * 256 + 1) * 4096
)  # 133 million
ACTION = ArraySpec((), np.dtype(np.int32), num_values=3)


def spec(*shape, dtype=np.uint8):
    return EnvironmentSpec("test/Pixels-v0", ArraySpec(shape, np.dtype(dtype)), ACTION)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (8, 4), (4, 2), (3, 2), (2, 3), (20, 5)])
@pytest.mark.parametrize("shape", [(9, 7), (84, 84)])
def test_patches_are_a_convolution(size, stride, shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 4, 5)) / size
    np.testing.assert_allclose(by_patches(x, kernel, stride), by_xla(x, kernel, stride), atol=2e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU's convolutions are slow in loops")
def test_on_a_cpu_no_convolution_is_xla_s():
    network = torso(spec(84, 84, 4), "nature", (16,))
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 84, 84, 4), jnp.uint8))
    text = jax.jit(network.apply).lower(params, jnp.zeros((2, 84, 84, 4), jnp.uint8)).as_text()
    assert "dot_general" in text and "convolution" not in text


@pytest.mark.parametrize(
    ("kind", "width", "hidden", "parameters"),
    [
        # Weights and biases, from the papers' layers: 84 -> 21 -> 11 -> 11 pixels for Nature, 84 -> 42 -> 21 -> 11.
        ("nature", 1, (512,), (8 * 8 * 4 + 1) * 32 + (16 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + (7744 + 1) * 512),
        ("impala", 8, (4096,), IMPALA),
    ],
)
def test_atari_torsos_have_the_papers_size(kind, width, hidden, parameters):
    network = torso(spec(84, 84, 4), kind, hidden, width)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 84, 84, 4), jnp.uint8))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) == parameters
    features = jax.eval_shape(network.apply, shapes, jnp.zeros((2, 84, 84, 4), jnp.uint8))
    assert features.shape == (2, hidden[-1])  # type: ignore[union-attr]


def test_auto_follows_the_observation():
    assert torso(spec(10, 10, 4), "auto", (8,)).kind == "small"
    assert torso(spec(84, 84, 4), "auto", (8,)).kind == "nature"
    vector = EnvironmentSpec("test/Vector-v0", ArraySpec((3,), np.dtype(np.float32)), ACTION)
    assert torso(vector, "auto", (8,)).kind == "mlp"
    with pytest.raises(UserError, match=r"reads pixels .* use mlp"):
        torso(vector, "nature", (8,))


def test_bytes_are_scaled_to_one():
    network = torso(spec(6, 6, 1), "small", ())
    params = network.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.uint8))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 1)).astype(np.uint8)
    plain = torso(spec(6, 6, 1, dtype=np.float32), "small", ())
    np.testing.assert_allclose(
        network.apply(params, pixels),
        plain.apply(params, pixels.astype(np.float32) / 255),
        rtol=1e-5,  # type: ignore[arg-type]
    )
