"""Proto-value networks: Farebrother et al. 2023, "Proto-Value Networks", arXiv 2304.12567.

T auxiliary tasks, each the indicator of a random set of states, are valued for the uniformly random policy; what the
network's last hidden layer then holds are the features phi.

    cumulants  r_i(s) = 1[ u_i(s) > 0 ],   u_i(s) = f_i(s) + b_i      f_i: an output of a frozen random network
    thresholds L_QR = E_i[ u_i ((1 - p) - 1[u_i < 0]) ],  of b alone:  P(u_i > 0) -> p
    or hashes  r_i(s) = 1[ h_i(s) mod m = 0 ],   h_i(s) = (a_i0 + sum_j a_ij x_j(s)) mod (2^13 - 1),   m = 1 / p
    target     y_i = r_i(s) + gamma (1 - terminated) 1/|A| sum_a' qbar_i(s', a')
    loss       L_TD = mean_i E[ 1/2 (q_i(s, a) - y_i)^2 ]

The expectation over actions is exact, so the target does not depend on the policy that collected the data. q_i is the
discounted measure of the set's visits: from r_i(s) up to 1 / (1 - gamma), p / (1 - gamma) on average. As released,
f_i ends in a ReLU, whose dead units make tasks that are everywhere on or off: here f_i is linear unless asked.
"""

import chex
import jax
import jax.numpy as jnp

_PRIME = 2**13 - 1


def indicators(outputs: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Cumulants r_i in {0, 1} (B, T), from f (B, T) and b (T,); no gradient passes."""
    return jax.lax.stop_gradient((_shifted(outputs, thresholds) > 0).astype(jnp.float32))


def quantile_loss(thresholds: jax.Array, outputs: jax.Array, rate: jax.Array | float) -> jax.Array:
    """L_QR, of b (T,), with f (B, T) held fixed. Its gradient in b_i is ((1 - p) - P(u_i < 0)) / T."""
    u = _shifted(jax.lax.stop_gradient(outputs), thresholds)
    return jnp.mean(u * ((1.0 - rate) - jax.lax.stop_gradient(u < 0)))


def hash_coefficients(key: jax.Array, num_tasks: int, size: int) -> jax.Array:
    """Random coefficients a, uint32 (T, 1 + size), in [0, 2^13 - 1)."""
    return jax.random.randint(key, (num_tasks, 1 + size), 0, _PRIME).astype(jnp.uint32)


def hash_indicators(coefficients: jax.Array, data: jax.Array, bins: jax.Array | int) -> jax.Array:
    """Cumulants (B, T): each task's independent coin with chance 1 / `bins` for every distinct row of `data`.

    `coefficients` (T, 1 + D); `data` (B, D), integers in [0, 2^12). The sums are exact: products stay below 2^25, and
    2^7 of them below 2^32, so they are reduced in blocks of that length.
    """
    chex.assert_rank([coefficients, data], 2)
    chex.assert_equal(coefficients.shape[1], data.shape[1] + 1)
    padding = (0, -data.shape[1] % _BLOCK)
    blocks = (-1, (data.shape[1] + padding[1]) // _BLOCK, _BLOCK)
    data = jnp.pad(data.astype(jnp.uint32), ((0, 0), padding)).reshape(blocks)
    factors = jnp.pad(coefficients[:, 1:], ((0, 0), padding)).reshape(blocks)
    sums = jnp.einsum("bkd,tkd->btk", data, factors) % _PRIME
    total = (coefficients[:, 0] + jnp.sum(sums, axis=-1)) % _PRIME
    return (total % jnp.asarray(bins, jnp.uint32) == 0).astype(jnp.float32)


_BLOCK = 2**7


def td_target(cumulant: jax.Array, terminated: jax.Array, next_q: jax.Array, discount: jax.Array | float) -> jax.Array:
    """y (B, T) of the uniformly random policy, from r(s) (B, T), terminated (B,) and qbar(s', .) (B, T, A)."""
    chex.assert_rank([cumulant, terminated, next_q], [2, 1, 3])
    chex.assert_equal_shape([cumulant, next_q[..., 0]])
    chex.assert_equal(terminated.shape[0], cumulant.shape[0])
    alive = 1.0 - terminated.astype(jnp.float32)
    return jax.lax.stop_gradient(cumulant + discount * alive[:, None] * jnp.mean(next_q, axis=-1))


def td_loss(q: jax.Array, action: jax.Array, target: jax.Array) -> jax.Array:
    """L_TD, from q (B, T, A), integer actions (B,) and y (B, T). Raises AssertionError on shapes."""
    chex.assert_rank([q, action, target], [3, 1, 2])
    chex.assert_equal_shape([q[..., 0], target])
    taken = jnp.take_along_axis(q, action[:, None, None], axis=2)[..., 0]
    return 0.5 * jnp.mean(jnp.square(taken - target))


def _shifted(outputs: jax.Array, thresholds: jax.Array) -> jax.Array:
    chex.assert_rank([outputs, thresholds], [2, 1])
    chex.assert_equal(outputs.shape[1], thresholds.shape[0])
    return outputs + thresholds
