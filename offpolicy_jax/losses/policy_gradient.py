"""Policy gradients from data in time order: GAE (Schulman et al. 2016, arXiv 1506.02438) and PPO (2017, 1707.06347).

    TD error         delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
    advantage        A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}         (GAE eq. 16; ended: or cut)
    value target     V_t = A_t + V(s_t)
    surrogate        L_clip = -E[ min(rho A, clip(rho, 1 - eps, 1 + eps) A) ],  rho = pi(a|s) / pi_old(a|s)  (PPO eq. 7)
    value            L_V = 1/2 E[ max((V - target)^2, (V_old + clip(V - V_old, -eps, eps) - target)^2) ]
    distance         KL(pi_old || pi) ~ E[ rho - 1 - log rho ]

s'_t is the true successor, so that a truncated episode is bootstrapped by its own last state. Means over a batch count
the samples of `mask`.
"""

import chex
import jax
import jax.numpy as jnp


def generalized_advantages(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    discount: jax.Array | float,
    trace: jax.Array | float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """A_t (T, E) of E environments, time first; `trace` is lambda. Rows that are not `valid` (T, E) get 0."""
    chex.assert_rank(reward, 2)
    chex.assert_equal_shape([reward, terminated, truncated, value, next_value])
    valid = jnp.ones(reward.shape, bool) if valid is None else valid
    chex.assert_equal_shape([reward, valid])
    delta = jnp.where(valid, reward + discount * jnp.where(terminated, 0.0, next_value) - value, 0.0)
    carried = jnp.where(terminated | truncated, 0.0, discount * trace)

    def backwards(following, row):
        delta, carried = row
        advantage = delta + carried * following
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, carried), reverse=True)
    return jax.lax.stop_gradient(advantages)


def standardize(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / std over the samples (B,) of the mask; the others are 0."""
    chex.assert_rank(x, 1)
    mean = masked_mean(x, mask)
    std = jnp.sqrt(masked_mean(jnp.square(x - mean), mask))
    return jnp.where(mask, (x - mean) / (std + 1e-8), 0.0)


def clipped_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, epsilon: jax.Array | float, mask: jax.Array
) -> jax.Array:
    """L_clip from log rho and advantages (B,). Scalar."""
    chex.assert_rank(log_ratio, 1)
    chex.assert_equal_shape([log_ratio, advantage, mask])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon)
    return -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)


def value_loss(
    value: jax.Array, old_value: jax.Array, target: jax.Array, epsilon: jax.Array | float, mask: jax.Array
) -> jax.Array:
    """L_V from values, values before the update and targets (B,); an infinite epsilon leaves the clipping out."""
    chex.assert_rank(value, 1)
    chex.assert_equal_shape([value, old_value, target, mask])
    near = old_value + jnp.clip(value - old_value, -epsilon, epsilon)
    return 0.5 * masked_mean(jnp.maximum(jnp.square(value - target), jnp.square(near - target)), mask)


def sampled_kl(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """Estimate of KL(pi_old || pi) from actions of pi_old: never negative, and zero at pi = pi_old. log rho (B,)."""
    return masked_mean(jnp.expm1(log_ratio) - log_ratio, mask)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x (B,) over the samples of the mask; 0 if there are none."""
    chex.assert_equal_shape([x, mask])
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
