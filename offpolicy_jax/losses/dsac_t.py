"""DSAC-T: Duan et al. 2025, "Distributional Soft Actor-Critic with Three Refinements", arXiv 2310.05858.

Each critic is a Gaussian over soft returns, Z_i(s, a) = N(q_i, sigma_i^2). Bars mark targets (the policy has one too);
a' ~ pi_bar(.|s'), and V = q+ or z+ below is the next value of the least mean, drawn from the same critic:

    least critic        j    = argmin_i qbar_i(s', a')                                          (refinement 2: twins)
                        q+   = qbar_j,      z+ = qbar_j + sigmabar_j clip(zeta, -3, 3),         zeta ~ N(0, 1)
    expected target     y_q  = r + gamma (1 - terminated) (q+ - alpha log pi_bar(a'|s'))        (refinement 1)
    random target       y_z  = r + gamma (1 - terminated) (z+ - alpha log pi_bar(a'|s'))
    clipped return      C_i  = q_i + clip(y_z - q_i, -b_i, b_i),        b_i = xi E[sigma_i]     (refinement 3)
    scale               w_i  = E[sigma_i^2]                                                     (eq. 25)
    critic gradient     -(w_i + eps_w) mean{ (y_q - q_i) / (sigma_i^2 + eps) grad q_i
                                             + ((C_i - q_i)^2 - sigma_i^2) / (sigma_i^3 + eps) grad sigma_i }  (eq. 26)
    actor, temperature  SAC's, with min_i q_i: losses/sac.py

The expectations in b and w are running means over batches. Equation numbers are those that public implementations
cite. Two departures of the official code are options: w_i as (E[sigma_i])^2, at most the paper's, and `huber_loss`.
"""

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.td import td_target

NOISE_LIMIT = 3.0
"""|zeta| is clipped here."""


def least_value(q: jax.Array, std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Refinement 2: mean q+ and sample z+ (B,) of the critic with the least mean. q, std (N, B), noise (B,)."""
    chex.assert_rank([q, std, noise], [2, 2, 1])
    chex.assert_equal_shape([q, std])
    chex.assert_axis_dimension(q, 1, noise.shape[0])
    least = jnp.argmin(q, axis=0)[None]
    mean, std = (jnp.take_along_axis(x, least, axis=0)[0] for x in (q, std))
    return mean, mean + std * jnp.clip(noise, -NOISE_LIMIT, NOISE_LIMIT)


def targets(
    reward: jax.Array,
    terminated: jax.Array,
    next_value: tuple[jax.Array, jax.Array],
    next_log_prob: jax.Array,
    alpha: jax.Array,
    discount: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """y_q and y_z (B,) from `least_value`'s (q+, z+), of shape (B,) as all but alpha (); gradients are stopped."""
    chex.assert_rank([reward, alpha], [1, 0])
    chex.assert_equal_shape([reward, next_log_prob, *next_value])
    expected, random = (td_target(reward, terminated, value - alpha * next_log_prob, discount) for value in next_value)
    return expected, random


def clipped_return(q: jax.Array, target: jax.Array, boundary: jax.Array) -> jax.Array:
    """C_i (N, B): the random target y_z (B,), kept within `boundary` (N,) of q (N, B); gradients are stopped."""
    chex.assert_rank([q, target, boundary], [2, 1, 1])
    chex.assert_shape(q, (boundary.shape[0], target.shape[0]))
    limit = boundary[:, None]
    return jax.lax.stop_gradient(q + jnp.clip(target - q, -limit, limit))


def critic_loss(
    q: jax.Array,
    std: jax.Array,
    target: jax.Array,
    clipped: jax.Array,
    scale: jax.Array,
    epsilon: jax.Array | float,
) -> jax.Array:
    """A scalar whose gradient is eq. 26, summed over critics; its value means nothing.

    q, std and `clipped` = C are (N, B), `target` = y_q is (B,), `scale` = w + eps_w is (N,). With w + eps_w = 1, y_z in
    y_q's place and a fixed boundary in C this is DSACv1 (arXiv 2001.02811), but for eps.
    """
    _check(q, std, target, clipped, scale)
    toward_q = (target - q) / (jnp.square(std) + epsilon)
    toward_std = (jnp.square(clipped - q) - jnp.square(std)) / (std**3 + epsilon)
    toward_q, toward_std, scale = map(jax.lax.stop_gradient, (toward_q, toward_std, scale))
    return -jnp.sum(scale * jnp.mean(toward_q * q + toward_std * std, axis=1))


def huber_loss(
    q: jax.Array,
    std: jax.Array,
    target: jax.Array,
    clipped: jax.Array,
    scale: jax.Array,
    epsilon: jax.Array | float,
    delta: float = 50.0,
) -> jax.Array:
    """The official repository's loss since July 2025 (not in the paper); arguments as in `critic_loss`, scale = w.

    rho_i = clip(w_i / (sigma_i^2 + eps), 0.1, 10), there with w_i = (E[sigma_i])^2, weighs Huber(q - y_q) and, for
    sigma, its distance from Huber(q - C): as Huber carries 1/2, sigma^2 settles at half of the squared error.
    """
    _check(q, std, target, clipped, scale)
    fixed_std = jax.lax.stop_gradient(std)
    ratio = jnp.clip(jax.lax.stop_gradient(scale)[:, None] / (jnp.square(fixed_std) + epsilon), 0.1, 10.0)
    spread = jax.lax.stop_gradient(_huber(q - clipped, delta))
    toward_std = (jnp.square(fixed_std) - spread) / (fixed_std + epsilon)
    return jnp.sum(jnp.mean(ratio * (_huber(q - jax.lax.stop_gradient(target), delta) + toward_std * std), axis=1))


def running_mean(average: jax.Array, batch: jax.Array, tau: jax.Array | float) -> jax.Array:
    """(1 - tau) average + tau mean_B(batch), both for N critics: (N,), (N, B) -> (N,).

    A negative average marks one that has seen no batch yet: the first batch's mean replaces it.
    """
    chex.assert_rank([average, batch], [1, 2])
    chex.assert_axis_dimension(batch, 0, average.shape[0])
    mean = jax.lax.stop_gradient(jnp.mean(batch, axis=1))
    return jnp.where(average < 0.0, mean, (1.0 - tau) * average + tau * mean)


def _check(q, std, target, clipped, scale):
    chex.assert_rank([q, target, scale], [2, 1, 1])
    chex.assert_equal_shape([q, std, clipped])
    chex.assert_shape(q, (scale.shape[0], target.shape[0]))


def _huber(x: jax.Array, delta: float) -> jax.Array:
    size = jnp.abs(x)
    return jnp.where(size <= delta, 0.5 * jnp.square(x), delta * (size - 0.5 * delta))
