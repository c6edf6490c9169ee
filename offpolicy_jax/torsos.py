"""Torsos: observations (B, ...) to features (B, F), by a multilayer perceptron or by convolutions over pixels.

Convolutions pad to "same" sizes, as in Dopamine: 84 x 84 pixels leave Nature's as 11 x 11 x 64.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from offpolicy_jax.errors import UserError
from offpolicy_jax.networks import (
    MLP,
    Activation,
    Encoder,
    KernelInit,
    Params,
    flatten,
    function,
    init_each,
    initializer,
)
from offpolicy_jax.transition import EnvironmentSpec, PyTree

TorsoKind = Literal["auto", "mlp", "small", "nature", "impala"]


class Torso(nn.Module):
    """Features (B, hidden_sizes[-1]) after a ReLU; without hidden layers, what comes before them.

    kind "mlp": all leaves as one vector. The others read one array of pixels (H, W, C), their channels times `width`:
    "small" is MinAtar's layer (16 filters 3 x 3), "nature" Mnih et al. 2015, "impala" Espeholt et al. 2018.
    """

    encoder: Encoder
    kind: TorsoKind = "mlp"
    hidden_sizes: tuple[int, ...] = (256, 256)
    width: int = 1
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, observation: PyTree) -> jax.Array:
        if self.kind == "mlp":
            x = flatten(self.encoder, observation)
        else:
            pixels = {"small": _small, "nature": _nature, "impala": _impala}[self.kind]
            spec, x = self.encoder[0], jax.tree.leaves(observation)[0]
            x = x.astype(jnp.float32) / (255.0 if spec.dtype == np.uint8 else 1.0)
            x = pixels(x, self.width, initializer(self.kernel_init, np.sqrt(2.0)))
            x = x.reshape(len(x), -1)
        return MLP(self.hidden_sizes, self.kernel_init, self.activation)(x)


def torso(
    spec: EnvironmentSpec, kind: TorsoKind, hidden_sizes: tuple[int, ...], width: int = 1, **options: object
) -> Torso:
    """The torso for an environment; "auto" is mlp for vectors, small up to 32 x 32 pixels, and nature beyond.

    Raises UserError where the observation is not one array of pixels and the torso needs it.
    """
    leaves = tuple(jax.tree.leaves(spec.observation))
    shape = leaves[0].shape if len(leaves) == 1 else ()
    pixels = len(shape) == 3
    if kind == "auto":
        kind = "mlp" if not pixels else "small" if max(shape[:2]) <= 32 else "nature"
    if kind != "mlp" and not pixels:
        raise UserError(
            f"--config.torso={kind} reads pixels (height, width, channels), and {spec.id} has none: use mlp"
        )
    return Torso(leaves, kind, hidden_sizes, width, **options)  # type: ignore[arg-type]


class Conv(nn.Module):
    """A convolution (B, H, W, C) -> (B, H', W', features), padded to "same".

    On a CPU, and for small images, as patches through one matrix product. XLA's convolution is many times slower on a
    CPU within a loop than alone (jaxlib 0.10.2), and bears `vmap` over seeds (kernels with a batch axis) worse.
    """

    features: int
    size: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        small = self.stride == 1 and max(x.shape[1:3]) <= 32
        convolution = by_patches if small or jax.default_backend() == "cpu" else by_xla
        return convolution(x, kernel, self.stride) + bias


def by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of images (B, H, W, C) with a kernel (k, k, C, F) as a product of patches, padded to "same"."""
    size, sizes = kernel.shape[0], x.shape[1:3]
    outputs = [-(-n // stride) for n in sizes]
    spans = [(n - 1) * stride + 1 for n in outputs]  # from the first to the last patch
    padding = [max(span - 1 + size - n, 0) for span, n in zip(spans, sizes, strict=True)]
    x = jnp.pad(x, ((0, 0), *[(n // 2, n - n // 2) for n in padding], (0, 0)))
    (height, width), offsets = spans, np.ndindex(size, size)
    patches = jnp.concatenate([x[:, i : i + height : stride, j : j + width : stride] for i, j in offsets], axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same by XLA's convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)


def _small(x: jax.Array, width: int, kernel_init: nn.initializers.Initializer) -> jax.Array:
    return nn.relu(Conv(16 * width, 3, kernel_init=kernel_init)(x))


def _nature(x: jax.Array, width: int, kernel_init: nn.initializers.Initializer) -> jax.Array:
    for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        x = nn.relu(Conv(features * width, size, stride, kernel_init)(x))
    return x


def _impala(x: jax.Array, width: int, kernel_init: nn.initializers.Initializer) -> jax.Array:
    for features in (16, 32, 32):
        x = Conv(features * width, 3, kernel_init=kernel_init)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for _ in range(2):
            y = Conv(features * width, 3, kernel_init=kernel_init)(nn.relu(x))
            x = x + Conv(features * width, 3, kernel_init=kernel_init)(nn.relu(y))
    return nn.relu(x)


class Outputs(nn.Module):
    """A linear layer on a torso's features: observation (B, ...) -> (B, num), in `groups` that are drawn separately."""

    torso: Torso
    num: int
    groups: int = 1

    @nn.compact
    def __call__(self, observation: PyTree) -> jax.Array:
        kernel_init = init_each(self.groups, initializer(self.torso.kernel_init))
        return nn.Dense(self.num, kernel_init=kernel_init, name="head")(self.torso(observation))


def features(network: Outputs, params: Params, observation: PyTree) -> jax.Array:
    """What the linear layer reads, (B, F)."""
    return function(network.torso)({"params": params["params"].get("torso", {})}, observation)
