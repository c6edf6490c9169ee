"""Soft actor-critic: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905.

    soft value      V(s')  = min_i Qbar_i(s', a') - alpha log pi(a'|s'),          a' ~ pi(.|s')            (eq. 3)
    target          y      = r + gamma (1 - terminated) V(s')                                             (eq. 2)
    critics         J_i    = E[ 1/2 (Q_i(s, a) - y)^2 ]                                                   (eq. 5)
    actor           J_pi   = E[ alpha log pi(a~|s) - min_i Q_i(s, a~) ],          a~ = f(eps; s)           (eq. 9)
    temperature     J(alpha) = E[ -alpha (log pi(a~|s) + Hbar) ],                 Hbar = -dim A            (eq. 18)
    targets         Qbar  <- (1 - tau) Qbar + tau Q

a' comes from the current policy: there is no target policy. No gradient flows through y, through alpha in the actor's
loss, or through log pi in the temperature's. The optimised variable is log alpha.
"""

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.td import squared_td_error, td_target


def soft_value(q: jax.Array, log_prob: jax.Array, alpha: jax.Array) -> jax.Array:
    """Eq. 3: min over critics of Q minus alpha log pi. q (N, B), log_prob (B,), alpha () -> (B,)."""
    chex.assert_rank([q, log_prob, alpha], [2, 1, 0])
    chex.assert_axis_dimension(q, 1, log_prob.shape[0])
    return jnp.min(q, axis=0) - alpha * log_prob


def critic_loss(
    q: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    next_q: jax.Array,
    next_log_prob: jax.Array,
    alpha: jax.Array,
    discount: jax.Array | float,
) -> jax.Array:
    """Eq. 5 summed over the critics. q = Q_i(s, a) and next_q = Qbar_i(s', a') are (N, B), the rest (B,); scalar."""
    target = td_target(reward, terminated, soft_value(next_q, next_log_prob, alpha), discount)
    return squared_td_error(q, target)


def actor_loss(log_prob: jax.Array, q: jax.Array, alpha: jax.Array) -> jax.Array:
    """Eq. 9. log_prob (B,) and q = Q_i(s, a~) (N, B) of the same reparameterised actions; alpha is held fixed."""
    return -jnp.mean(soft_value(q, log_prob, jax.lax.stop_gradient(alpha)))


def temperature_loss(
    log_alpha: jax.Array, log_prob: jax.Array, target_entropy: jax.Array | float, *, log_form: bool = False
) -> jax.Array:
    """Eq. 18, a loss of log alpha () alone, from log_prob (B,).

    `log_form` puts log alpha in alpha's place, as the 2019 official code and Stable-Baselines3 do: the fixed point is
    the same, but the step no longer shrinks with alpha.
    """
    chex.assert_rank([log_alpha, log_prob], [0, 1])
    scale = log_alpha if log_form else jnp.exp(log_alpha)
    return -scale * jax.lax.stop_gradient(jnp.mean(log_prob) + target_entropy)
