"""ValueDICE: Kostrikov, Nachum & Tompson 2020, arXiv 1912.05032 (imitation by off-policy distribution matching).

    difference      d(s, a, s') = nu(s, a) - gamma nu(s', a'),   a' ~ pi(s')
    objective       J = log E_mix[ e^d ] - (1 - rho) (1 - gamma) E_{s0, a0 ~ pi}[ nu(s0, a0) ] - rho E_replay[ d ]
    mixture         E_mix = (1 - rho) E_expert + rho E_replay

nu minimises J and pi maximises it: at the saddle point -J is KL(d^pi || d^expert), mixed with the replay on both sides.
Any state of the expert may begin an episode (s0).
"""

import chex
import jax
import jax.numpy as jnp


def objective(
    expert: jax.Array, replayed: jax.Array, initial: jax.Array, rho: jax.Array | float, discount: jax.Array | float
) -> jax.Array:
    """J from d (B,) of expert's and (B',) of replayed transitions and nu(s0, a0) (B'',). Scalar."""
    chex.assert_rank([expert, replayed, initial], [1, 1, 1])
    rho = jnp.asarray(rho)
    log_weights = [jnp.full(expert.shape, jnp.log1p(-rho) - jnp.log(expert.size))]
    log_weights += [jnp.full(replayed.shape, jnp.log(rho) - jnp.log(replayed.size))]
    log_mean = jax.nn.logsumexp(jnp.concatenate([expert, replayed]) + jnp.concatenate(log_weights))
    linear = (1.0 - rho) * (1.0 - discount) * jnp.mean(initial) + rho * jnp.mean(replayed)
    return log_mean - linear
