"""PMOE: Ren et al. 2021, "Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning", 2104.09122.

    policy          pi(a|s) = sum_k w_k(s) pi_k(a|s),     w = softmax(gate(s)),  k = 1 .. K experts
    best expert     j = argmax_k min_i Q_i(s, a_k),       a_k ~ pi_k(.|s), one reparameterised action per expert
    gate            L_frep = E_s || onehot(j) - w(s) ||^2                         (frequency loss; j held fixed)
    experts, best   L = E_s[ alpha log pi(a_j|s) - min_i Q_i(s, a_j) ]            (back-propagation-max)
    experts, all    L = E_s sum_k [ alpha log pi(a_k|s) - min_i Q_i(s, a_k) ]     (back-propagation-all)
    target          SAC's, with a' of an expert k' ~ w(s')

The gate learns from L_frep alone: its fixed point is w_k(s) = P(expert k is the best | s). The baselines of the paper
for it are a score-function gradient (`score_loss`) and straight-through Gumbel-softmax (`straight_through`).

log pi is that of the mixture, so that the temperature weighs the policy's true entropy; the public code takes the
chosen expert's own density, which misses up to log K of it. Except under Gumbel-softmax, its gradient is taken with
respect to the expert that acts, weights and other experts held fixed. Scores of the experts then do not cancel over the
mixture's actions: two equal experts are pushed apart with half the strength of their mixture's entropy gradient.
"""

import functools
from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from offpolicy_jax.distributions import Normal, NormalMixture, tanh_log_jacobian
from offpolicy_jax.losses.policy_gradient import masked_mean


def best_expert(q: jax.Array) -> jax.Array:
    """j (B,): the expert whose action has the largest min_i Q_i; the first of equals. q (N, B, K)."""
    chex.assert_rank(q, 3)
    return jnp.argmax(jnp.min(q, axis=0), axis=-1)


def frequency_loss(logits: jax.Array, best: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """L_frep, the gate's Brier score, from gate logits (B, K) and best experts j (B,). The public code divides by K.

    With a mask (B,), the mean over its samples.
    """
    chex.assert_rank([logits, best], [2, 1])
    chex.assert_axis_dimension(logits, 0, best.shape[0])
    score = jnp.sum(jnp.square(jax.nn.one_hot(best, logits.shape[1]) - jax.nn.softmax(logits)), axis=-1)
    return jnp.mean(score) if mask is None else masked_mean(score, mask)


def score_loss(logits: jax.Array, expert: jax.Array, value: jax.Array) -> jax.Array:
    """Score-function gradient of E_{k ~ w}[value_k], for gate logits (B, K), sampled experts (B,), values (B, K).

    The baseline is the values' mean under w. Values are held fixed.
    """
    chex.assert_rank([logits, expert, value], [2, 1, 2])
    chex.assert_equal_shape([logits, value])
    chex.assert_axis_dimension(logits, 0, expert.shape[0])
    baseline = jnp.sum(jax.nn.softmax(logits) * value, axis=-1, keepdims=True)
    advantage = jax.lax.stop_gradient(value - baseline)
    log_weights = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.sum(jax.nn.one_hot(expert, logits.shape[1]) * log_weights * advantage, axis=-1))


def straight_through(logits: jax.Array, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Gumbel-softmax choice (B, K): one-hot in the forward pass, with the gradient of the relaxed sample."""
    chex.assert_rank(logits, 2)
    soft = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), logits.shape[1])
    return hard + soft - jax.lax.stop_gradient(soft)


def log_prob_of_expert_actions(
    logits: jax.Array, experts: Normal, u: jax.Array, own: jax.Array, expert: jax.Array
) -> jax.Array:
    """log sum_k w_k N(u; expert k), (B, M), of M pre-tanh samples per state, u (B, M, A), drawn from `expert` (B, M).

    `own` (B, M) are their log-densities under the expert that they come from, and carry its gradient; weights and other
    experts are held fixed. logits (B, K), experts (B, K, A).
    """
    chex.assert_rank([logits, experts.mean, u, own, expert], [2, 3, 3, 2, 2])
    chex.assert_equal_shape([own, expert])
    chex.assert_shape(u, (logits.shape[0], own.shape[1], experts.mean.shape[-1]))
    chex.assert_shape(experts.mean, (*logits.shape, u.shape[-1]))
    fixed = jax.tree.map(lambda x: jax.lax.stop_gradient(x)[:, None], experts)  # (B, 1, K, A)
    each = fixed.log_prob(u[:, :, None])  # (B, M, K)
    each = jnp.where(jax.nn.one_hot(expert, logits.shape[1], dtype=bool), own[..., None], each)
    return jax.nn.logsumexp(jax.lax.stop_gradient(jax.nn.log_softmax(logits))[:, None] + each, axis=-1)


def actions_of_experts(
    mixture: NormalMixture,
    u: jax.Array,
    own: jax.Array,
    expert: jax.Array,
    density: Literal["mixture", "component"],
) -> tuple[jax.Array, jax.Array]:
    """Actions (B, M, A) of `expert`s (B, M) and their log pi (B, M), the mixture's or the expert's own.

    From pre-tanh samples u (B, K, A) of all experts of the `mixture`, and their log-densities `own` (B, K).
    """
    chex.assert_rank([u, own, expert], [3, 2, 2])
    chex.assert_equal_shape_prefix([u, own], 2)
    chex.assert_axis_dimension(expert, 0, own.shape[0])
    u, own = jnp.take_along_axis(u, expert[..., None], axis=1), jnp.take_along_axis(own, expert, axis=1)
    if density == "mixture":
        own = log_prob_of_expert_actions(mixture.logits, mixture.experts, u, own, expert)
    return jnp.tanh(u), own - tanh_log_jacobian(u)


def expert_loss(log_prob: jax.Array, q: jax.Array, alpha: jax.Array) -> jax.Array:
    """mean_B sum_M [alpha log pi - min_i Q_i]: log_prob (B, M), q (N, B, M), alpha () held fixed. M = 1 is "best"."""
    chex.assert_rank([log_prob, q, alpha], [2, 3, 0])
    chex.assert_shape(q, (q.shape[0], *log_prob.shape))
    value = jnp.min(q, axis=0) - jax.lax.stop_gradient(alpha) * log_prob
    return -jnp.mean(jnp.sum(value, axis=-1))


def actor_loss(
    mixture: NormalMixture,
    q_of_each: Callable[[jax.Array], jax.Array],
    alpha: jax.Array,
    key: jax.Array,
    *,
    gate_gradient: Literal["frequency", "score", "gumbel"],
    train_experts: Literal["best", "all"],
    density: Literal["mixture", "component"],
    gate_loss_scale: jax.Array | float,
    gumbel_temperature: jax.Array | float,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """The experts' and the gate's loss on one batch; log pi (B,) of what trained, gate logits (B, K), the gate's part.

    `mixture` has leaves (B, K, ...); `q_of_each` gives Q_i (N, B, M) of M actions per state (B, M, A). Of all experts,
    log pi is the mean by the gate.
    """
    gate_key = jax.random.fold_in(key, 1)
    u, own = mixture.experts.sample_and_log_prob(key)  # (B, K, A), (B, K)
    if gate_gradient == "gumbel":
        choice = straight_through(mixture.logits, gate_key, gumbel_temperature)
        u = jnp.sum(choice[..., None] * u, axis=1, keepdims=True)
        log_prob = jnp.sum(choice * own, axis=1, keepdims=True)
        if density == "mixture":
            log_prob = mixture.log_prob(u[:, 0])[:, None]
        log_prob = log_prob - tanh_log_jacobian(u)
        loss = expert_loss(log_prob, q_of_each(jnp.tanh(u)), alpha)
        return loss, (log_prob[:, 0], mixture.logits, jnp.zeros(()))

    of_experts = functools.partial(actions_of_experts, mixture, u, own, density=density)
    everyone = jnp.broadcast_to(jnp.arange(own.shape[1]), own.shape)
    if train_experts == "all":
        action, log_prob = of_experts(everyone)
        q_of_action = q_of_each(action)
        values = jax.lax.stop_gradient(q_of_action)
    else:  # the winner is found first, so that it alone is differentiated
        values = q_of_each(jax.lax.stop_gradient(jnp.tanh(u)))
    if gate_gradient == "frequency":
        expert = best_expert(values)
        gate_loss = frequency_loss(mixture.logits, expert)
    else:
        expert = mixture.gate.sample(gate_key)
        gate_loss = score_loss(mixture.logits, expert, jnp.min(values, axis=0) - alpha * of_experts(everyone)[1])
    if train_experts == "best":
        action, log_prob = of_experts(expert[:, None])
        q_of_action = q_of_each(action)
    loss = expert_loss(log_prob, q_of_action, alpha)
    if train_experts == "all":  # as if the gate had chosen
        log_prob = jnp.sum(jax.nn.softmax(mixture.logits) * log_prob, axis=1, keepdims=True)
    return loss + gate_loss_scale * gate_loss, (log_prob[:, 0], mixture.logits, gate_loss)
