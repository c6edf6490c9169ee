"""Discriminator-Actor-Critic: Kostrikov et al. 2019, arXiv 1809.02925 (adversarial imitation from replay).

    discriminator   L_D = -E_expert[ log sigma(D) ] - E_replay[ log(1 - sigma(D)) ] + lambda GP
    penalty         GP = E_x[ (|grad_x D(x)| - 1)^2 ],   x between an expert's and a replayed pair, as in WGAN-GP
    reward          r(s, a) = D(s, a) = log sigma(D) - log(1 - sigma(D))   ("logit", the paper's; AIRL's)
                    r(s, a) = -log(1 - sigma(D)) > 0                       ("positive", GAIL's: it rewards survival)

Replayed pairs stand for the policy's without importance weights. Rewards are computed when a batch is drawn, by the
newest D; the learner never sees the environment's.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp


def discriminator_loss(expert: jax.Array, replayed: jax.Array) -> jax.Array:
    """L_D without the penalty, from logits D (B,) of the expert's and (B',) of replayed pairs. 2 log 2 at 0. Scalar."""
    chex.assert_rank([expert, replayed], [1, 1])
    return jnp.mean(jax.nn.softplus(-expert)) + jnp.mean(jax.nn.softplus(replayed))


def gradient_penalty(gradient: jax.Array) -> jax.Array:
    """GP from the gradients (B, ...) of D at each interpolated input. Scalar; it may itself be differentiated."""
    chex.assert_axis_dimension_gt(gradient, 0, 0)
    square = jnp.sum(jnp.square(gradient.reshape(gradient.shape[0], -1)), axis=-1)
    norm = jnp.sqrt(jnp.maximum(square, 1e-12))
    return jnp.mean(jnp.square(norm - 1.0))


def reward(logit: jax.Array, form: Literal["logit", "positive"] = "logit") -> jax.Array:
    """r from D, any shape."""
    return logit if form == "logit" else jax.nn.softplus(logit)
