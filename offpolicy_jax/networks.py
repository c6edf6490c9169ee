"""Networks in flax.linen: MLP torso, ensembles of critics as one stack of matrices, policies.

Agents see pure `init` and `apply` only. Everything static (sizes, initialiser, encoder) is a hashable module field.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from offpolicy_jax.distributions import Categorical, Normal, NormalMixture, TanhNormal, TanhNormalMixture
from offpolicy_jax.linalg import one_by_one
from offpolicy_jax.transition import ArraySpec, PyTree

Activation = Literal["relu", "gelu", "tanh"]
KernelInit = Literal["glorot_uniform", "lecun_uniform", "orthogonal"]
Encoder = tuple[ArraySpec, ...]
"""How `flatten` reads an observation: the specs of its leaves, in tree order."""


def encoder(observation_spec: PyTree) -> Encoder:
    """The encoder of an observation spec."""
    return tuple(jax.tree.leaves(observation_spec))


def flatten(encoder: Encoder, observation: PyTree) -> jax.Array:
    """All leaves of an observation as one float32 vector (..., width); integers become one-hot, bytes are / 255."""

    def vector(spec: ArraySpec, x: jax.Array) -> jax.Array:
        batch = x.shape[: x.ndim - len(spec.shape)]
        if spec.num_values is not None:
            x = jax.nn.one_hot(x, spec.num_values, dtype=jnp.float32)
        elif spec.dtype == np.uint8:
            x = x.astype(jnp.float32) / 255.0
        return x.reshape(*batch, -1).astype(jnp.float32)

    leaves = [vector(spec, x) for spec, x in zip(encoder, jax.tree.leaves(observation), strict=True)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)


def pairs(encoder: Encoder, observation: PyTree, action: jax.Array) -> jax.Array:
    """Observation and action (..., A) side by side as one float32 vector (..., width)."""
    return jnp.concatenate([flatten(encoder, observation), action], axis=-1)


def function(network: nn.Module) -> Callable[..., Any]:
    """A network as a pure function of its parameters and inputs."""
    return network.apply


def initializer(name: KernelInit, gain: float = 1.0) -> Callable[..., jax.Array]:
    """An initialiser of matrices by name; `gain` scales the orthogonal one. Raises ValueError for another name."""
    if name == "glorot_uniform":  # Keras' default, so the official SAC code's
        return nn.initializers.glorot_uniform()
    if name == "lecun_uniform":
        return nn.initializers.lecun_uniform()
    if name == "orthogonal":
        initialize = nn.initializers.orthogonal(gain)
        return lambda key, shape, dtype=jnp.float32: one_by_one(lambda k: initialize(k, shape, dtype))(key)
    raise ValueError(f"unknown kernel_init {name!r}: use glorot_uniform, lecun_uniform or orthogonal")


def activate(name: Activation, x: jax.Array) -> jax.Array:
    """The hidden layers' nonlinearity, elementwise; gelu is the exact one (erf)."""
    return {"relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False), "tanh": jnp.tanh}[name](x)


class StackedDense(nn.Module):
    """N independent dense layers as one batched product: (B, in) or (N, B, in) -> (N, B, features)."""

    num: int
    features: int
    kernel_init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def init_stack(key, shape):
            return jax.vmap(lambda k: self.kernel_init(k, shape[1:]))(jax.random.split(key, shape[0]))

        kernel = self.param("kernel", init_stack, (self.num, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.num, 1, self.features))
        if x.ndim == 2:
            x = jnp.broadcast_to(x, (self.num, *x.shape))
        return jnp.matmul(x, kernel) + bias


class MLP(nn.Module):
    """Dense layers with a nonlinearity after each: (..., in) -> (..., hidden_sizes[-1])."""

    hidden_sizes: tuple[int, ...]
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.Dense(size, kernel_init=initializer(self.kernel_init, np.sqrt(2.0)))(x)
            x = activate(self.activation, x)
        return x


class Critics(nn.Module):
    """N state-action values Q_i(s, a): observation (B, ...), action (B, A) -> (N, B).

    `outputs` > 0 gives vectors (N, B, outputs): parameters of a distribution of returns, or, without an action, the
    values of all discrete actions.
    """

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    num: int = 2
    outputs: int = 0
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, observation: PyTree, action: jax.Array | None = None) -> jax.Array:
        x = flatten(self.encoder, observation) if action is None else pairs(self.encoder, observation, action)
        for size in self.hidden_sizes:
            x = StackedDense(self.num, size, initializer(self.kernel_init, np.sqrt(2.0)))(x)
            x = activate(self.activation, x)
        x = StackedDense(self.num, max(1, self.outputs), initializer(self.kernel_init))(x)
        return x if self.outputs else x[..., 0]


class TanhNormalPolicy(nn.Module):
    """pi(a|s) as a tanh-Gaussian with a state-dependent, clipped log standard deviation."""

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    action_size: int
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, observation: PyTree) -> TanhNormal:
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(flatten(self.encoder, observation))
        x = nn.Dense(2 * self.action_size, kernel_init=initializer(self.kernel_init))(x)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, self.log_std_min, self.log_std_max))


class MixturePolicy(nn.Module):
    """pi(a|s) as a mixture of K tanh-Gaussian experts on one torso; the gate reads the observation by itself.

    The gate's last layer starts at zero, so that all experts begin with the same weight. Without `gate_hidden_sizes`
    it is linear.
    """

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    action_size: int
    num_experts: int
    gate_hidden_sizes: tuple[int, ...] = ()
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, observation: PyTree) -> TanhNormalMixture:
        observation = flatten(self.encoder, observation)
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(observation)
        init_experts = init_each(self.num_experts, initializer(self.kernel_init))
        x = nn.Dense(self.num_experts * 2 * self.action_size, kernel_init=init_experts)(x)
        x = x.reshape(*x.shape[:-1], self.num_experts, 2 * self.action_size)
        mean, log_std = jnp.split(x, 2, axis=-1)
        gate = MLP(self.gate_hidden_sizes, self.kernel_init, self.activation, name="gate_torso")(observation)
        logits = nn.Dense(self.num_experts, kernel_init=nn.initializers.zeros, name="gate")(gate)
        return TanhNormalMixture(NormalMixture(logits, mean, jnp.clip(log_std, self.log_std_min, self.log_std_max)))


class NormalMixturePolicy(nn.Module):
    """pi(a|s) as a mixture of K unsquashed Gaussians on one torso, each with one log standard deviation for all states.

    The gate is linear in the observation and starts at zero. `output_gain` scales orthogonal initial weights of the
    experts' last layer.
    """

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    action_size: int
    num_experts: int
    kernel_init: KernelInit = "orthogonal"
    activation: Activation = "tanh"
    output_gain: float = 1.0

    @nn.compact
    def __call__(self, observation: PyTree) -> NormalMixture:
        observation = flatten(self.encoder, observation)
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(observation)
        init_experts = init_each(self.num_experts, initializer(self.kernel_init, self.output_gain))
        x = nn.Dense(self.num_experts * self.action_size, kernel_init=init_experts)(x)
        mean = x.reshape(*x.shape[:-1], self.num_experts, self.action_size)
        log_std = self.param("log_std", nn.initializers.zeros, (self.num_experts, self.action_size))
        logits = nn.Dense(self.num_experts, kernel_init=nn.initializers.zeros, name="gate")(observation)
        return NormalMixture(logits, mean, jnp.broadcast_to(log_std, mean.shape))


def init_each(num: int, initialize: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """An initialiser of `num` matrices side by side, each as if it were alone."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        one = (shape[0], shape[1] // num)
        # A loop, for a hundred heads compile as fast as one.
        each = jax.lax.map(lambda k: initialize(k, one, dtype), jax.random.split(key, num))
        return jnp.moveaxis(each, 0, 1).reshape(shape)

    return init


class CategoricalPolicy(nn.Module):
    """pi(a|s) over discrete actions. `output_gain` scales orthogonal initial weights of the last layer.

    Without `output_bias`, on one-hot states and without hidden layers, it is a table: what is learned of a state stays
    there.
    """

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    num_actions: int
    kernel_init: KernelInit = "glorot_uniform"
    activation: Activation = "relu"
    output_gain: float = 1.0
    output_bias: bool = True

    @nn.compact
    def __call__(self, observation: PyTree) -> Categorical:
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(flatten(self.encoder, observation))
        kernel_init = initializer(self.kernel_init, self.output_gain)
        return Categorical(nn.Dense(self.num_actions, use_bias=self.output_bias, kernel_init=kernel_init)(x))


class NormalPolicy(nn.Module):
    """pi(a|s) as an unsquashed Gaussian whose log standard deviation is a parameter, the same in every state."""

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    action_size: int
    kernel_init: KernelInit = "orthogonal"
    activation: Activation = "tanh"
    output_gain: float = 1.0

    @nn.compact
    def __call__(self, observation: PyTree) -> Normal:
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(flatten(self.encoder, observation))
        mean = nn.Dense(self.action_size, kernel_init=initializer(self.kernel_init, self.output_gain))(x)
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_size,))
        return Normal(mean, jnp.broadcast_to(log_std, mean.shape))


class StateValue(nn.Module):
    """V(s): observation (B, ...) -> (B,). Without `output_bias` it may be a table, like `CategoricalPolicy`."""

    encoder: Encoder
    hidden_sizes: tuple[int, ...]
    kernel_init: KernelInit = "orthogonal"
    activation: Activation = "tanh"
    output_bias: bool = True

    @nn.compact
    def __call__(self, observation: PyTree) -> jax.Array:
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(flatten(self.encoder, observation))
        return nn.Dense(1, use_bias=self.output_bias, kernel_init=initializer(self.kernel_init))(x)[..., 0]


class Discriminator(nn.Module):
    """D(x) of vectors x (B, width), as `pairs` makes them: -> (B,). `bounded`: in [-1, 1], by tanh."""

    hidden_sizes: tuple[int, ...]
    bounded: bool = False
    kernel_init: KernelInit = "orthogonal"
    activation: Activation = "relu"
    output_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = MLP(self.hidden_sizes, self.kernel_init, self.activation)(x)
        x = nn.Dense(1, use_bias=self.output_bias, kernel_init=initializer(self.kernel_init))(x)[..., 0]
        return jnp.tanh(x) if self.bounded else x


Params = Any
"""A pytree of network parameters, as `module.init` returns it."""
