"""Off-policy MDPO (Tomar et al. 2022, arXiv 2005.09814): equations in offpolicy_jax/losses/mdpo.py.

Order of one update: every `reference_interval` environment steps the reference becomes the policy; then, as in
agents/sac.py, critics, policy (with the new critics), targets (the public code: policy, critics, targets). That code
acts by its greedy action after the warm-up (`behaviour=greedy`); nothing in the paper does, so actions are sampled.
"""

import functools
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.distributions import TanhNormal
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import uniform_before
from offpolicy_jax.losses import mdpo as losses
from offpolicy_jax.losses import sac as sac_losses
from offpolicy_jax.networks import Critics, KernelInit, Params, TanhNormalPolicy, function
from offpolicy_jax.replay import Replay, scan_batches, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of off-policy MDPO. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size for policy and critics."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the target critics' average."""
    inverse_step_size: float = 1.0
    """c = 1 / t_k, the weight of staying near the reference; per environment in the paper, 0.3 for HalfCheetah."""
    entropy_weight: float = 0.2
    """lambda, the fixed weight of entropy in the soft return."""
    tsallis_q: float = 1.0
    """q of divergence=tsallis, from 1 (nearly KL) to 2."""
    reward_scale: float = 1.0
    """Factor on rewards in the critics' targets."""
    policy_regularization: float = 0.0
    """Weight of mean^2 + log_std^2 in the policy's loss: 1e-3 in the public code, not in the paper."""
    divergence: Literal["kl", "tsallis"] = struct.field(pytree_node=False, default="kl")
    """Bregman divergence to the reference, and form of the entropy."""
    reference_interval: int = struct.field(pytree_node=False, default=1_000)
    """m: environment steps of a seed between refreshes of the reference policy."""
    behaviour: Literal["sampled", "greedy"] = struct.field(pytree_node=False, default="sampled")
    """Actions after the warm-up: sampled from the policy, or its greedy ones (public code)."""
    policy_value: Literal["min", "first"] = struct.field(pytree_node=False, default="min")
    """What the policy climbs: the least of the critics, or the first of them (public code)."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers, for policy and critics alike."""
    num_critics: int = struct.field(pytree_node=False, default=2)
    """Size of the ensemble that the minimum is taken over."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="glorot_uniform")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Transitions per gradient step."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=-1)
    """Uniformly random steps before learning; -1: ten episodes of the environment's time limit."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=-1)
    """Gradient steps per update; -1: as many as environment steps since the last update."""


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    actor: Params
    reference: Params
    critics: Params
    target_critics: Params
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    policy_network: TanhNormalPolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every part on one batch (B, ...)."""
    next_key, actor_key = jax.random.split(key)
    pi, q = function(state.policy_network), function(state.critic_network)

    next_action, _, next_log_prob = _sample(config, pi(state.actor, batch.next_observation), next_key)
    next_q = q(state.target_critics, batch.next_observation, next_action)

    def critic_loss(critics):
        values = q(critics, batch.observation, batch.action)
        weight = jnp.asarray(config.entropy_weight)
        reward = config.reward_scale * batch.reward
        loss = sac_losses.critic_loss(values, reward, batch.terminated, next_q, next_log_prob, weight, config.discount)
        return loss, jnp.mean(values)

    def policy_loss(actor):
        policy = pi(actor, batch.observation)
        action, u, log_prob = _sample(config, policy, actor_key)
        reference_log_prob = _log_density(config, pi(state.reference, batch.observation), u)
        values = q(critics, batch.observation, action)
        loss = losses.policy_loss(
            log_prob,
            reference_log_prob,
            jnp.min(values, axis=0) if config.policy_value == "min" else values[0],
            config.inverse_step_size,
            config.entropy_weight,
            config.tsallis_q if config.divergence == "tsallis" else 1.0,
        )
        size = jnp.mean(jnp.square(policy.mean)) + jnp.mean(jnp.square(policy.log_std))
        return loss + config.policy_regularization * size, (log_prob, reference_log_prob)

    def descend(gradients, optimizer, params):
        return parameters.adam_step(gradients, optimizer, params, config.learning_rate)

    (critic_value, q_mean), gradients = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = descend(gradients, state.critic_optimizer, state.critics)

    (policy_value, log_probs), gradients = jax.value_and_grad(policy_loss, has_aux=True)(state.actor)
    actor, actor_optimizer = descend(gradients, state.actor_optimizer, state.actor)
    log_prob, reference_log_prob = log_probs

    state = replace(
        state,
        actor=actor,
        critics=critics,
        target_critics=parameters.polyak(state.target_critics, critics, config.tau),
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
    )
    metrics = {
        "critic/loss": critic_value,
        "critic/q_mean": q_mean,
        "actor/loss": policy_value,
        "actor/entropy": -jnp.mean(log_prob),
        # Mean of l - l_k on the policy's actions: 0 where both are one; an estimate of KL if that is the form.
        "actor/divergence": jnp.mean(log_prob - reference_log_prob),
    }
    return state, metrics


def _sample(config: Config, policy: TanhNormal, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An action (B, A), its pre-tanh sample (B, A), and l (B,)."""
    action, u, log_prob = policy.sample_pre_tanh_and_log_prob(key)
    return action, u, log_prob if config.divergence == "kl" else _log_density(config, policy, u)


def _log_density(config: Config, policy: TanhNormal, u: jax.Array) -> jax.Array:
    """l (B,) of a pre-tanh sample (B, A): log or the sum of q-logarithms."""
    if config.divergence == "kl":
        return policy.log_prob_of_pre_tanh(u)
    return jnp.sum(losses.q_logarithm(policy.log_probs_of_pre_tanh(u), config.tsallis_q), axis=-1)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, after a refresh of the reference where `step` passes a multiple of m."""
    before = step - config.rollout_length * replay.num_envs
    due = step // config.reference_interval != before // config.reference_interval
    reference = jax.lax.cond(due, lambda: state.actor, lambda: state.reference)
    num_steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    step_once = functools.partial(gradient_step, config)
    return scan_batches(step_once, replace(state, reference=reference), replay, key, num_steps, config.batch_size)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"mdpo needs continuous actions and {spec.id} has discrete ones: use --agent=sac_discrete")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    policy_network = TanhNormalPolicy(action_size=spec.action_size, kernel_init=config.kernel_init, **shape)
    critic_network = Critics(num=config.num_critics, kernel_init=config.kernel_init, **shape)
    actor_key, critic_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    actor = policy_network.init(actor_key, observation)
    critics = critic_network.init(critic_key, observation, zeros(spec.action, (1,)))
    return State(
        actor=actor,
        reference=parameters.copy(actor),
        critics=critics,
        target_critics=parameters.copy(critics),
        actor_optimizer=parameters.adam_init(actor),
        critic_optimizer=parameters.adam_init(critics),
        policy_network=policy_network,
        critic_network=critic_network,
    )


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """An action (E, A) of the behaviour that the config names, or a uniformly random one during the warm-up."""
    sample_key, random_key = jax.random.split(key)
    policy = function(state.policy_network)(state.actor, observation)
    action = policy.sample(sample_key) if config.behaviour == "sampled" else policy.mode()
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean), (E, A)."""
    return function(state.policy_network)(state.actor, observation).mode()


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action (E, A), min_i Q_i of it (E,), and -lambda l of it (E,)."""
    action, _, log_prob = _sample(config, function(state.policy_network)(state.actor, observation), key)
    q = function(state.critic_network)(state.critics, observation, action)
    return action, jnp.min(q, axis=0), -config.entropy_weight * log_prob
