"""SAC for discrete actions: Christodoulou 2019, "Soft Actor-Critic for Discrete Action Settings", arXiv 1910.07207.

The expectations over actions are exact sums, so nothing is sampled or reparameterised:

    soft value      V(s')  = pi(s')^T [ min_i Qbar_i(s') - alpha log pi(s') ]                               (eq. 10)
    critics         J_i    = E[ 1/2 (Q_i(s)_a - (r + gamma (1 - terminated) V(s')))^2 ]
    actor           J_pi   = E[ pi(s)^T ( alpha log pi(s) - min_i Q_i(s) ) ]                                (eq. 12)
    temperature     J(alpha) = E[ pi(s)^T ( -alpha (log pi(s) + Hbar) ) ],   Hbar = c log |A|, 0 < c < 1    (eq. 11)
"""

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.td import squared_td_error, td_target


def soft_value(q: jax.Array, log_probs: jax.Array, alpha: jax.Array) -> jax.Array:
    """Eq. 10. q (N, B, A), log_probs (B, A), alpha () -> (B,)."""
    chex.assert_rank([q, log_probs, alpha], [3, 2, 0])
    chex.assert_equal_shape([q[0], log_probs])
    return jnp.sum(jnp.exp(log_probs) * (jnp.min(q, axis=0) - alpha * log_probs), axis=-1)


def critic_loss(
    q: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    next_q: jax.Array,
    next_log_probs: jax.Array,
    alpha: jax.Array,
    discount: jax.Array | float,
) -> jax.Array:
    """Squared errors summed over critics. q, next_q (N, B, A); action int (B,); next_log_probs (B, A); rest (B,)."""
    chex.assert_rank([q, action], [3, 1])
    chex.assert_equal_shape([q[0], next_q[0]])
    chex.assert_equal_shape([action, reward])
    target = td_target(reward, terminated, soft_value(next_q, next_log_probs, alpha), discount)
    return squared_td_error(jnp.take_along_axis(q, action[None, :, None], axis=2)[..., 0], target)


def actor_loss(log_probs: jax.Array, q: jax.Array, alpha: jax.Array) -> jax.Array:
    """Eq. 12. log_probs (B, A), q (N, B, A); alpha and q are held fixed."""
    return -jnp.mean(soft_value(jax.lax.stop_gradient(q), log_probs, jax.lax.stop_gradient(alpha)))


def temperature_loss(log_alpha: jax.Array, log_probs: jax.Array, target_entropy: jax.Array | float) -> jax.Array:
    """Eq. 11, a loss of log alpha () alone, from log_probs (B, A)."""
    chex.assert_rank([log_alpha, log_probs], [0, 2])
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return jnp.exp(log_alpha) * jax.lax.stop_gradient(jnp.mean(entropy) - target_entropy)
