"""MDPO: Tomar et al. 2022, "Mirror Descent Policy Optimization", arXiv 2005.09814.

Iteration k moves the policy by a mirror-descent step of size t_k from the reference pi_k, an earlier policy.

    on-policy        L = -E_{s, a ~ pi_k}[ rho A ] + 1 / t_k E_s[ KL(pi(.|s) || pi_k(.|s)) ],    rho = pi / pi_k
                     m steps from pi = pi_k (at the first KL has no gradient); A standardised; t_k falls from 1 to 0

Off-policy, pi_k is a copy that is refreshed every m environment steps. With the soft return's entropy weight lambda
linearised at pi_k, and actions a = f_theta(eps; s) reparameterised:

    policy, KL       L = E_{s ~ D}[ log pi(a|s) - (1 - lambda t_k) log pi_k(a|s) - t_k Q(s, a) ]
    the same / t_k   L = E[ c l(a) + q (lambda - c) l_k(a) - Q(s, a) ],        c = 1 / t_k,  l = log pi,  q = 1
    policy, Tsallis  the same with l = sum_d log_q p_d(a_d|s),                 log_q x = (x^(q-1) - 1) / (q - 1)
    critics          SAC's, with the soft value min_i Qbar_i(s', a') - lambda l(a'),       a' ~ pi

The gradient flows through a into l_k and Q as well; the reference's parameters are fixed. With lambda = c the reference
drops out, and KL's loss is SAC's actor loss at alpha = lambda. q is from 1 (KL) to 2; each p_d, the density of one
action dimension, is floored at 1e-6 in log_q, as in the public code, which takes that form at q = 1 too. That code has
a state-value network and lets the policy see the first critic alone; here both are as in SAC, with the latter as an
option of the agent.
"""

import math

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.policy_gradient import masked_mean

LOWEST_DENSITY = 1e-6
"""Densities of one dimension are floored here in q-logarithms."""


def mirror_descent_loss(
    log_ratio: jax.Array, advantage: jax.Array, kl: jax.Array, step_size: jax.Array | float, mask: jax.Array
) -> jax.Array:
    """The on-policy L from log rho, advantages and KL(pi || pi_k) of each state, all (B,). Scalar."""
    chex.assert_rank(log_ratio, 1)
    chex.assert_equal_shape([log_ratio, advantage, kl, mask])
    return masked_mean(kl / step_size - jnp.exp(log_ratio) * advantage, mask)


def policy_loss(
    log_prob: jax.Array,
    reference_log_prob: jax.Array,
    q: jax.Array,
    inverse_step_size: jax.Array | float,
    entropy_weight: jax.Array | float,
    tsallis_q: jax.Array | float = 1.0,
) -> jax.Array:
    """mean_B [c l + q (lambda - c) l_k - Q] of the same reparameterised actions, all (B,). Scalar."""
    chex.assert_rank(log_prob, 1)
    chex.assert_equal_shape([log_prob, reference_log_prob, q])
    pull = tsallis_q * (entropy_weight - inverse_step_size)
    return jnp.mean(inverse_step_size * log_prob + pull * reference_log_prob - q)


def q_logarithm(log_density: jax.Array, q: jax.Array | float) -> jax.Array:
    """log_q of densities given as logarithms, elementwise: log at q = 1, x - 1 at q = 2. Densities are floored."""
    log_density = jnp.maximum(log_density, math.log(LOWEST_DENSITY))
    x = (q - 1.0) * log_density
    small = jnp.abs(x) < 1e-4
    slope = jnp.where(small, 1.0 + 0.5 * x, jnp.expm1(x) / jnp.where(small, 1.0, x))
    return log_density * slope
