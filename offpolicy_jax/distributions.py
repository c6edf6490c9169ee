"""Action distributions as small records: Gaussian and tanh-Gaussian, their mixtures, categorical.

Leading axes are batch axes; the last axis of the parameters is the action dimension (or the number of choices).
Densities of the tanh-Gaussian are computed from the pre-tanh sample u, never from atanh(a), with the stable form
log(1 - tanh^2 u) = 2 (log 2 - u - softplus(-2u)).
"""

import math

import jax
import jax.numpy as jnp
from flax import struct


def log_one_minus_tanh_squared(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2), elementwise and finite for every finite u."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def tanh_log_jacobian(u: jax.Array) -> jax.Array:
    """log |det d tanh(u) / du| of vectors (..., A): (...)."""
    return jnp.sum(log_one_minus_tanh_squared(u), -1)


@struct.dataclass
class Normal:
    """Diagonal Gaussian N(mean, diag(exp(log_std))^2) over vectors (..., A)."""

    mean: jax.Array
    log_std: jax.Array

    def mode(self) -> jax.Array:
        """The mean, (..., A)."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """A reparameterised sample, (..., A)."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A reparameterised sample (..., A) and its log-density (...)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise, _normal_log_prob(noise, self.log_std)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log-density at (..., A), summed over dimensions: (...)."""
        return _normal_log_prob((value - self.mean) * jnp.exp(-self.log_std), self.log_std)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, (...)."""
        return jnp.sum(self.log_std + 0.5 * math.log(2.0 * math.pi * math.e), -1)

    def kl(self, other: "Normal") -> jax.Array:
        """KL(self || other) in nats, (...)."""
        ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        distance = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        return 0.5 * jnp.sum(ratio + distance - 1.0 + 2.0 * (other.log_std - self.log_std), -1)


@struct.dataclass
class TanhNormal:
    """a = tanh(u) with u ~ N(mean, diag(exp(log_std))^2): actions in (-1, 1)^A (SAC appendix C, eq. 26)."""

    mean: jax.Array
    log_std: jax.Array

    def mode(self) -> jax.Array:
        """The greedy action tanh(mean), (..., A)."""
        return jnp.tanh(self.mean)

    def sample(self, key: jax.Array) -> jax.Array:
        """A reparameterised action, (..., A)."""
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A reparameterised action (..., A) and its log-density in [-1, 1] units (...)."""
        action, _, log_prob = self.sample_pre_tanh_and_log_prob(key)
        return action, log_prob

    def log_prob_of_pre_tanh(self, u: jax.Array) -> jax.Array:
        """Log-density of the action tanh(u), given the pre-tanh sample u (..., A): (...)."""
        return Normal(self.mean, self.log_std).log_prob(u) - tanh_log_jacobian(u)

    def sample_pre_tanh_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A reparameterised action (..., A), its pre-tanh sample u (..., A) and its log-density (...)."""
        u, log_prob = Normal(self.mean, self.log_std).sample_and_log_prob(key)
        return jnp.tanh(u), u, log_prob - tanh_log_jacobian(u)

    def log_probs_of_pre_tanh(self, u: jax.Array) -> jax.Array:
        """The same for each dimension by itself, (..., A): they add up to the log-density."""
        noise = (u - self.mean) * jnp.exp(-self.log_std)
        log_prob = -0.5 * jnp.square(noise) - self.log_std - 0.5 * math.log(2.0 * math.pi)
        return log_prob - log_one_minus_tanh_squared(u)


@struct.dataclass
class Categorical:
    """A distribution over n choices with unnormalised `logits` (..., n)."""

    logits: jax.Array

    def mode(self) -> jax.Array:
        """The likeliest choice, int32 (...)."""
        return jnp.argmax(self.logits, -1).astype(jnp.int32)

    def sample(self, key: jax.Array) -> jax.Array:
        """A choice, int32 (...)."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_probs(self) -> jax.Array:
        """Log-probabilities of all choices, (..., n)."""
        return jax.nn.log_softmax(self.logits)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log-probability of integer choices (...)."""
        return jnp.take_along_axis(self.log_probs(), value[..., None], -1)[..., 0]

    def entropy(self) -> jax.Array:
        """Entropy in nats, (...)."""
        log_probs = self.log_probs()
        return -jnp.sum(jnp.exp(log_probs) * log_probs, -1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self || other) in nats, (...)."""
        log_probs = self.log_probs()
        return jnp.sum(jnp.exp(log_probs) * (log_probs - other.log_probs()), -1)


@struct.dataclass
class NormalMixture:
    """sum_k w_k N(mean_k, diag(exp(log_std_k))^2) over vectors (..., A), with w = softmax(logits) over K experts."""

    logits: jax.Array  # (..., K)
    mean: jax.Array  # (..., K, A)
    log_std: jax.Array  # (..., K, A)

    @property
    def gate(self) -> Categorical:
        """The distribution over experts."""
        return Categorical(self.logits)

    @property
    def experts(self) -> Normal:
        """All experts, as a batch (..., K)."""
        return Normal(self.mean, self.log_std)

    def mode(self) -> jax.Array:
        """The mean of the expert with the largest weight, (..., A)."""
        return take_expert(self.mean, self.gate.mode())

    def sample(self, key: jax.Array) -> jax.Array:
        """A sample of a sampled expert, (..., A)."""
        gate_key, expert_key = jax.random.split(key)
        return take_expert(self.experts.sample(expert_key), self.gate.sample(gate_key))

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log-density of the mixture at (..., A): (...)."""
        return jax.nn.logsumexp(self.gate.log_probs() + self.experts.log_prob(value[..., None, :]), -1)


@struct.dataclass
class TanhNormalMixture:
    """a = tanh(u) with u from a `NormalMixture`: the same as a mixture of tanh-Gaussians."""

    pre_tanh: NormalMixture

    def mode(self) -> jax.Array:
        """The greedy action of the expert with the largest weight, (..., A)."""
        return jnp.tanh(self.pre_tanh.mode())

    def sample(self, key: jax.Array) -> jax.Array:
        """An action of a sampled expert, (..., A)."""
        return jnp.tanh(self.pre_tanh.sample(key))

    def log_prob_of_pre_tanh(self, u: jax.Array) -> jax.Array:
        """Log-density of the action tanh(u), given the pre-tanh sample u (..., A): (...)."""
        return self.pre_tanh.log_prob(u) - tanh_log_jacobian(u)


def take_expert(x: jax.Array, expert: jax.Array) -> jax.Array:
    """The entry of one expert per element: x (..., K, A), expert int (...) -> (..., A)."""
    return jnp.take_along_axis(x, expert[..., None, None], -2)[..., 0, :]


def _normal_log_prob(noise: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-density of mean + exp(log_std) * noise, (..., A) -> (...)."""
    return -jnp.sum(0.5 * jnp.square(noise) + log_std + 0.5 * math.log(2.0 * math.pi), -1)
