"""PROPS: Corrado & Hanna 2023, "On-Policy Policy Gradient RL Without On-Policy Sampling", arXiv 2311.08290.

The target policy theta learns on-policy; a behaviour policy phi collects, pushed away from the actions D holds already,
so that D comes nearer to what theta would do in the states of D. Every m steps phi starts again from theta:

    surrogate       L_clip = E_D[ max(r, clip(r, 1 - eps, 1 + eps)) ],          r = pi_phi(a|s) / pi_theta(a|s)
    behaviour       L = L_clip + lambda E_{s ~ D}[ KL(pi_phi(.|s) || pi_theta(.|s)) ]
    stop            where E[ r - 1 - log r ] on a minibatch passes delta
    ROS             phi = theta - alpha grad_theta E_D[ log pi_theta(a|s) ]     (Zhong et al. 2022, arXiv 2111.14552)
    sampling error  E_D[ log pi_MLE(a|s) - log pi_theta(a|s) ],                 pi_MLE the likeliest policy given D

L_clip is PPO's surrogate with advantage -1 everywhere: an action seen loses at most a factor 1 - eps. At phi = theta
its gradient is ROS's, which lowers the likelihood of D (the older public code raises it: the sign is a mistake there).
Both public codes take that step by Adam. The older one averages the Gaussian KL over the A action dimensions; here they
add up, so its lambda is A times the one here.
Sampling error is a diagnostic: offpolicy_jax/diagnostics.py.
"""

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.policy_gradient import masked_mean


def clipped_surrogate(log_ratio: jax.Array, epsilon: jax.Array | float, mask: jax.Array) -> jax.Array:
    """L_clip from log r (B,), to be minimised; an infinite epsilon leaves the clipping out. Scalar."""
    chex.assert_rank(log_ratio, 1)
    chex.assert_equal_shape([log_ratio, mask])
    ratio = jnp.exp(log_ratio)
    return masked_mean(jnp.maximum(ratio, jnp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon)), mask)


def behaviour_loss(
    log_ratio: jax.Array,
    kl: jax.Array,
    epsilon: jax.Array | float,
    kl_weight: jax.Array | float,
    mask: jax.Array,
) -> jax.Array:
    """L from log r (B,) and KL of the policies in each state (B,). Scalar."""
    chex.assert_equal_shape([log_ratio, kl])
    return clipped_surrogate(log_ratio, epsilon, mask) + kl_weight * masked_mean(kl, mask)
