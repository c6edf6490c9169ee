"""SAC (Haarnoja et al. 2018, arXiv 1812.05905): equations in offpolicy_jax/losses/sac.py.

Order of one gradient step, as in the official code: critics, actor (with the new critics), temperature, targets.
The temperature's loss uses the actor's own sample of log pi (the official code draws a new one).
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import uniform_before
from offpolicy_jax.losses import sac as losses
from offpolicy_jax.networks import Critics, KernelInit, Params, TanhNormalPolicy, function
from offpolicy_jax.replay import Replay, scan_batches, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of SAC. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and temperature."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the target critics' average."""
    initial_temperature: float = 1.0
    """Entropy temperature alpha at the start (and throughout, if it is not learned)."""
    target_entropy_scale: float = 1.0
    """Target entropy is minus this times the action dimension: 1 in the paper, 0.5 in some JAX codebases."""
    reward_scale: float = 1.0
    """Factor on rewards in the critics' targets."""
    learn_temperature: bool = struct.field(pytree_node=False, default=True)
    """Adapt alpha to the target entropy."""
    log_temperature_loss: bool = struct.field(pytree_node=False, default=False)
    """Use log alpha in alpha's place in the temperature's loss (2019 official code, Stable-Baselines3)."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers, for actor and critics alike."""
    num_critics: int = struct.field(pytree_node=False, default=2)
    """Size of the ensemble that the minimum is taken over."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="glorot_uniform")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Transitions per gradient step."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=-1)
    """Uniformly random steps before learning; -1: ten episodes of the environment's time limit, as in the paper."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=-1)
    """Gradient steps per update; -1: as many as environment steps since the last update."""


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    actor: Params
    critics: Params
    target_critics: Params
    log_alpha: jax.Array
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    temperature_optimizer: optax.OptState
    policy_network: TanhNormalPolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every part on one batch (B, ...)."""
    next_key, actor_key = jax.random.split(key)
    pi, q = function(state.policy_network), function(state.critic_network)
    alpha = jnp.exp(state.log_alpha)

    next_action, next_log_prob = pi(state.actor, batch.next_observation).sample_and_log_prob(next_key)
    next_q = q(state.target_critics, batch.next_observation, next_action)

    def critic_loss(critics):
        values = q(critics, batch.observation, batch.action)
        reward = config.reward_scale * batch.reward
        loss = losses.critic_loss(values, reward, batch.terminated, next_q, next_log_prob, alpha, config.discount)
        return loss, jnp.mean(values)

    def actor_loss(actor):
        action, log_prob = pi(actor, batch.observation).sample_and_log_prob(actor_key)
        return losses.actor_loss(log_prob, q(critics, batch.observation, action), alpha), log_prob

    def temperature_loss(log_alpha):
        target_entropy = -config.target_entropy_scale * state.policy_network.action_size
        return losses.temperature_loss(log_alpha, log_prob, target_entropy, log_form=config.log_temperature_loss)

    def descend(gradients, optimizer, params):
        return parameters.adam_step(gradients, optimizer, params, config.learning_rate)

    (critic_value, q_mean), gradients = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = descend(gradients, state.critic_optimizer, state.critics)

    (actor_value, log_prob), gradients = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
    actor, actor_optimizer = descend(gradients, state.actor_optimizer, state.actor)

    log_alpha, temperature_optimizer = state.log_alpha, state.temperature_optimizer
    if config.learn_temperature:
        gradient = jax.grad(temperature_loss)(log_alpha)
        log_alpha, temperature_optimizer = descend(gradient, temperature_optimizer, log_alpha)

    state = replace(
        state,
        actor=actor,
        critics=critics,
        target_critics=parameters.polyak(state.target_critics, critics, config.tau),
        log_alpha=log_alpha,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        temperature_optimizer=temperature_optimizer,
    )
    metrics = {
        "critic/loss": critic_value,
        "critic/q_mean": q_mean,
        "actor/loss": actor_value,
        "actor/entropy": -jnp.mean(log_prob),
        "temperature/alpha": alpha,
    }
    return state, metrics


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, one per environment step unless `gradient_steps` says otherwise."""
    num_steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    return scan_batches(functools.partial(gradient_step, config), state, replay, key, num_steps, config.batch_size)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"sac needs continuous actions and {spec.id} has discrete ones: use --agent=sac_discrete")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    policy_network = TanhNormalPolicy(action_size=spec.action_size, kernel_init=config.kernel_init, **shape)
    critic_network = Critics(num=config.num_critics, kernel_init=config.kernel_init, **shape)
    actor_key, critic_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    actor = policy_network.init(actor_key, observation)
    critics = critic_network.init(critic_key, observation, zeros(spec.action, (1,)))
    log_alpha = jnp.log(jnp.asarray(config.initial_temperature, jnp.float32))
    return State(
        actor=actor,
        critics=critics,
        target_critics=parameters.copy(critics),
        log_alpha=log_alpha,
        actor_optimizer=parameters.adam_init(actor),
        critic_optimizer=parameters.adam_init(critics),
        temperature_optimizer=parameters.adam_init(log_alpha),
        policy_network=policy_network,
        critic_network=critic_network,
    )


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """A sampled action (E, A), or a uniformly random one during the warm-up."""
    sample_key, random_key = jax.random.split(key)
    action = function(state.policy_network)(state.actor, observation).sample(sample_key)
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean), (E, A)."""
    return function(state.policy_network)(state.actor, observation).mode()


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action (E, A), min_i Q_i of it (E,), and -alpha log pi of it (E,)."""
    action, log_prob = function(state.policy_network)(state.actor, observation).sample_and_log_prob(key)
    q = function(state.critic_network)(state.critics, observation, action)
    return action, jnp.min(q, axis=0), -jnp.exp(state.log_alpha) * log_prob
