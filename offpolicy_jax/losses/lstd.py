"""Least squares on fixed features: Lagoudakis & Parr 2003, "Least-Squares Policy Iteration", JMLR 4.

With Q(s, a) = phi(s)^T w_a, stacked as psi(s, a)^T w:

    LSTD-Q   A w = b,   A = E[ psi(s, a) (psi(s, a) - gamma (1 - terminated) psi(s', pi(s')))^T ] + ridge I
                        b = E[ psi(s, a) r ]
    LSPI     pi <- greedy(w), and again
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax import linalg
from offpolicy_jax.transition import Transition


@linalg.in_float32
def lstd_q(
    features: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    next_features: jax.Array,
    next_probs: jax.Array,
    discount: jax.Array | float,
    ridge: jax.Array | float = 1e-6,
) -> jax.Array:
    """Weights w (d, A) of the policy with probabilities `next_probs` (N, A) in the successors.

    features, next_features (N, d); integer action, reward, terminated (N,). Raises AssertionError on shapes.
    """
    chex.assert_rank([features, action, next_probs], [2, 1, 2])
    chex.assert_equal_shape([features, next_features])
    chex.assert_equal_shape([action, reward, terminated])
    (n, d), num_actions = features.shape, next_probs.shape[1]
    taken = jax.nn.one_hot(action, num_actions)
    psi = (taken[:, :, None] * features[:, None]).reshape(n, -1)
    alive = 1.0 - terminated.astype(jnp.float32)
    following = (next_probs[:, :, None] * next_features[:, None]).reshape(n, -1)
    matrix = psi.T @ (psi - discount * alive[:, None] * following) / n + ridge * jnp.eye(psi.shape[1])
    return linalg.solve(matrix, psi.T @ reward / n).reshape(num_actions, d).T


@linalg.in_float32
def lspi(
    features: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    next_features: jax.Array,
    num_actions: int,
    discount: jax.Array | float,
    ridge: jax.Array | float = 1e-6,
    iterations: int = 20,
) -> jax.Array:
    """Weights w (d, A) after so many rounds of LSTD-Q and greedy improvement, from w = 0. Shapes as in `lstd_q`."""

    def improve(_, w):
        greedy = jax.nn.one_hot(jnp.argmax(next_features @ w, axis=1), num_actions)
        return lstd_q(features, action, reward, terminated, next_features, greedy, discount, ridge)

    return jax.lax.fori_loop(0, iterations, improve, jnp.zeros((features.shape[1], num_actions)))


def lspi_head(batch: Transition, *arguments: Any) -> dict[str, jax.Array]:
    """`lspi` on features (N, d) as observations, with 1 as a last feature: a layer's kernel (d, A) and bias (A,).

    The other arguments are those of `lspi` from `num_actions` on.
    """
    now, then = (jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0) for x in (batch.observation, batch.next_observation))
    weights = lspi(now, batch.action, batch.reward, batch.terminated, then, *arguments)
    return {"kernel": weights[:-1], "bias": weights[-1]}
