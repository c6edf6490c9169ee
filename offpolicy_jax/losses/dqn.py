"""Deep Q-learning: Mnih et al. 2015, Nature 518; double form: van Hasselt, Guez & Silver 2016, arXiv 1509.06461.

    target   y = sum_{k<n} gamma^k r_k + gamma^n (1 - terminated) Qbar(s_n, a*)
             a* = argmax_a Q(s_n, a)        (double Q-learning, the default)
             a* = argmax_a Qbar(s_n, a)     (the original)
    loss     J = E[ H(Q(s, a) - y) ],   H(x) = 1/2 x^2 for |x| <= delta, else delta (|x| - delta / 2)

The n-step sum comes from `replay.sample_n_step`, with gamma^n as the discount of each sample. It is not corrected for
the behaviour policy, as usual.
"""

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.losses.td import td_target


def next_value(next_q: jax.Array, target_next_q: jax.Array, double: bool = True) -> jax.Array:
    """Qbar(s', a*) (B,) from Q and Qbar of the successors, (B, A) each. Raises AssertionError on shapes."""
    chex.assert_rank(next_q, 2)
    chex.assert_equal_shape([next_q, target_next_q])
    best = jnp.argmax(next_q if double else target_next_q, axis=1)
    return take(target_next_q, best)


def q_loss(
    q: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    next_value: jax.Array,
    discount: jax.Array | float,
    huber_delta: jax.Array | float = 1.0,
) -> jax.Array:
    """J, from q (B, A), integer actions (B,), and (B,) each of the rest; `discount` may be a scalar."""
    error = take(q, action) - td_target(reward, terminated, next_value, discount)
    size = jnp.abs(error)
    inner = jnp.minimum(size, huber_delta)
    return jnp.mean(inner * (size - 0.5 * inner))


def take(q: jax.Array, action: jax.Array) -> jax.Array:
    """Q(s, a) (B,) from q (B, A) and integer actions (B,). Raises AssertionError on shapes."""
    chex.assert_rank([q, action], [2, 1])
    chex.assert_equal(q.shape[0], action.shape[0])
    return jnp.take_along_axis(q, action[:, None], axis=1)[:, 0]
