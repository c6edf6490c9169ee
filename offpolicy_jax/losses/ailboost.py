"""AILBoost: Chang et al. 2024, "Adversarial Imitation Learning via Boosting", arXiv 2404.08513.

Learners pi_1 .. pi_T are added one by one to a mixture whose occupancy d_T comes nearer to the expert's d^e:

    mixture         d_{t+1} = (1 - alpha) d_t + alpha d^{pi_{t+1}},      a Frank-Wolfe step on KL(d || d^e)
    weights         w_1 = (1 - alpha)^{T-1},   w_i = alpha (1 - alpha)^{T-i} for i > 1
    discriminator   L_D = E_{d^e}[ e^{-D} ] + E_{d_T}[ D ] + lambda GP,   at its least D = log(d^e / d_T)
    penalty         GP = E_x[ (|grad_x D(x)| - 1)^2 ],   x = u x_e + (1 - u) x_T,  u ~ U[0, 1]   (losses/dac.py)
    learner         pi_{T+1} = argmax_pi E_{d^pi}[ r ],   r(s, a) = D(s, a)

1 - L_D (without the penalty) is a lower bound on KL(d_T || d^e). Behind tanh, as in the released code, D and with it
the reward are clipped to [-1, 1]. The penalty keeps D from vanishing where d_T = d^e: it asks for a slope of 1
everywhere. If only the last n learners are kept, the oldest of them stands for all that came before it.
"""

import chex
import jax
import jax.numpy as jnp


def discriminator_loss(expert: jax.Array, mixture: jax.Array) -> jax.Array:
    """L_D without the penalty, from D (B,) of the expert's and (B',) of the mixture's pairs. 1 at D = 0. Scalar."""
    chex.assert_rank([expert, mixture], [1, 1])
    return jnp.mean(jnp.exp(-expert)) + jnp.mean(mixture)


def learner_weights(num: int, count: jax.Array | int, alpha: jax.Array | float) -> jax.Array:
    """w by age (num,), the newest first, of `count` learners of which the last `num` are kept; 0 for those to come."""
    age = jnp.arange(num)
    kept = jnp.minimum(count, num)
    weight = jnp.power(1.0 - alpha, age) * jnp.where(age == kept - 1, 1.0, alpha)
    return jnp.where(age < kept, weight, 0.0)


def draw_ages(uniform: jax.Array, num: int, count: jax.Array | int, alpha: jax.Array | float) -> jax.Array:
    """Ages by `learner_weights`, int32, from uniform numbers in (0, 1], any shape; more are older as they fall.

    O(1) each: geometric variables cut off at the oldest.
    """
    stay = jnp.log1p(-jnp.asarray(alpha, jnp.float32))
    age = jnp.where(stay < 0.0, jnp.log(uniform) / jnp.where(stay < 0.0, stay, -1.0), jnp.inf)
    return jnp.minimum(jnp.floor(age), jnp.minimum(count, num) - 1.0).astype(jnp.int32)
