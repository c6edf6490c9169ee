"""IQ-Learn: Garg et al. 2021, arXiv 2106.12142 (inverse soft-Q learning), the online form with chi-squared divergence.

    value           V(s) = E_{a ~ pi}[ Q(s, a) - alpha log pi(a|s) ]
    implied reward  r(s, a) = Q(s, a) - gamma V(s')
    critic          J(Q) = E_expert[ r ] - E_mixed[ V(s) - gamma V(s') ] - (1 / 4 beta) E_mixed[ r^2 ],  to be maximised
    actor           SAC's: E[ alpha log pi - Q ]

"mixed" is half expert's, half replayed; V(s) is of the critic that learns and V(s') of the target. By telescoping, the
second term is (1 - gamma) E[ V(s_0) ] if the states are those of one policy; a terminated step has V(s') = 0.
"""

import chex
import jax
import jax.numpy as jnp


def critic_loss(
    q: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    expert: jax.Array,
    discount: jax.Array | float,
    beta: jax.Array | float,
) -> jax.Array:
    """-J(Q) on a mixed batch. `q`, `value` (N, B) of N critics; `next_value`, `terminated`, `expert` (B,). Scalar.

    `expert` marks the expert's rows, of which there must be some. The mean over critics, each with its own r.
    """
    chex.assert_rank(q, 2)
    chex.assert_equal_shape([q, value])
    chex.assert_shape([next_value, terminated, expert], q.shape[1:])
    later = discount * (1.0 - terminated) * jax.lax.stop_gradient(next_value)
    reward = q - later
    of_expert = jnp.sum(reward * expert, axis=-1) / jnp.sum(expert)
    j = of_expert - jnp.mean(value - later, axis=-1) - jnp.mean(jnp.square(reward), axis=-1) / (4.0 * beta)
    return -jnp.mean(j)
