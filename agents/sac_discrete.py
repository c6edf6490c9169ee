"""SAC for discrete actions (Christodoulou 2019, arXiv 1910.07207): equations in offpolicy_jax/losses/sac_discrete.py.

Order of one gradient step: critics, actor (with the new critics), temperature, targets, as in agents/sac.py.
"""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.distributions import Categorical
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import sac_discrete as losses
from offpolicy_jax.networks import CategoricalPolicy, Critics, KernelInit, Params, function
from offpolicy_jax.replay import Replay, scan_batches, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of discrete SAC. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and temperature."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the target critics' average."""
    initial_temperature: float = 1.0
    """Entropy temperature alpha at the start (and throughout, if it is not learned)."""
    target_entropy_scale: float = 0.98
    """Target entropy is this times log(number of actions), the largest entropy there is: 0.98 in the paper."""
    reward_scale: float = 1.0
    """Factor on rewards in the critics' targets."""
    learn_temperature: bool = struct.field(pytree_node=False, default=True)
    """Adapt alpha to the target entropy."""
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
    learning_starts: int = struct.field(pytree_node=False, default=1_000)
    """Uniformly random steps before learning; -1: ten episodes of the environment's time limit."""
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
    policy_network: CategoricalPolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every part on one batch (B, ...). Nothing is sampled, so the key is unused."""
    pi, q = function(state.policy_network), function(state.critic_network)
    alpha = jnp.exp(state.log_alpha)
    next_log_probs = pi(state.actor, batch.next_observation).log_probs()
    next_q = q(state.target_critics, batch.next_observation)

    def critic_loss(critics):
        values = q(critics, batch.observation)
        reward = config.reward_scale * batch.reward
        loss = losses.critic_loss(
            values, batch.action, reward, batch.terminated, next_q, next_log_probs, alpha, config.discount
        )
        return loss, jnp.mean(values)

    def actor_loss(actor):
        log_probs = pi(actor, batch.observation).log_probs()
        return losses.actor_loss(log_probs, q(critics, batch.observation), alpha), log_probs

    def temperature_loss(log_alpha):
        target_entropy = config.target_entropy_scale * math.log(state.policy_network.num_actions)
        return losses.temperature_loss(log_alpha, log_probs, target_entropy)

    def descend(gradients, optimizer, params):
        return parameters.adam_step(gradients, optimizer, params, config.learning_rate)

    (critic_value, q_mean), gradients = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = descend(gradients, state.critic_optimizer, state.critics)

    (actor_value, log_probs), gradients = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
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
        "actor/entropy": jnp.mean(Categorical(log_probs).entropy()),
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
    """Parameters and optimisers for an environment with discrete actions. Raises UserError for continuous ones."""
    if not spec.discrete:
        raise UserError(f"sac_discrete needs discrete actions and {spec.id} has continuous ones: use --agent=sac")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    policy_network = CategoricalPolicy(num_actions=spec.num_actions, kernel_init=config.kernel_init, **shape)
    critic_network = Critics(num=config.num_critics, outputs=spec.num_actions, kernel_init=config.kernel_init, **shape)
    actor_key, critic_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    actor = policy_network.init(actor_key, observation)
    critics = critic_network.init(critic_key, observation)
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
    """A sampled action (E,), or a uniformly random one during the warm-up."""
    sample_key, random_key = jax.random.split(key)
    action = function(state.policy_network)(state.actor, observation).sample(sample_key)
    random = jax.random.randint(random_key, action.shape, 0, state.policy_network.num_actions, action.dtype)
    return jnp.where(step < config.learning_starts, random, action), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The likeliest action, (E,)."""
    return function(state.policy_network)(state.actor, observation).mode()


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action (E,), min_i Q_i of it (E,), and -alpha log pi of it (E,)."""
    choice = function(state.policy_network)(state.actor, observation)
    action = choice.sample(key)
    q = jnp.min(function(state.critic_network)(state.critics, observation), axis=0)
    value = jnp.take_along_axis(q, action[:, None], axis=1)[:, 0]
    return action, value, -jnp.exp(state.log_alpha) * choice.log_prob(action)
