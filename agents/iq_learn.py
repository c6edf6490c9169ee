"""IQ-Learn (Garg et al. 2021, arXiv 2106.12142): equations in offpolicy_jax/losses/iq_learn.py; SAC's skeleton.

Order of one gradient step: critics on a batch that is half expert's and half replayed, actor on the same states with
the new critics, targets. The temperature is fixed and small, as in the public code.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.environments.absorbing import without_absorbed_action
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import uniform_before
from offpolicy_jax.losses import iq_learn as losses
from offpolicy_jax.losses import sac as sac_losses
from offpolicy_jax.networks import Critics, KernelInit, Params, TanhNormalPolicy, function
from offpolicy_jax.replay import Replay, sample, sample_demonstrations, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros

DEMONSTRATIONS = True


@struct.dataclass
class Config:
    """Hyper-parameters of IQ-Learn. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 3e-4
    """Adam's step size for the critics."""
    actor_learning_rate: float = 3e-5
    """Adam's step size for the actor."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the target critics' average."""
    temperature: float = 0.01
    """alpha, the fixed weight of entropy; the public code has 0.001 for Ant and 1 for Humanoid."""
    beta: float = 0.5
    """Scale of the implied rewards: chi-squared's weight is 1 / (4 beta)."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers, for actor and critics alike."""
    num_critics: int = struct.field(pytree_node=False, default=1)
    """Size of the ensemble that the minimum is taken over."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="orthogonal")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Expert's and replayed transitions per gradient step, each."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=1_000)
    """Uniformly random steps before learning."""
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
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    policy_network: TanhNormalPolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, expert: Transition, replayed: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every part on a batch of each kind (B, ...)."""
    value_key, next_key, actor_key = jax.random.split(key, 3)
    pi, critic = function(state.policy_network), function(state.critic_network)
    q = lambda params, s, a: critic(params, s, without_absorbed_action(s, a))  # noqa: E731
    batch: Transition = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), replace(expert, extras={}), replace(replayed, extras={})
    )
    of_expert = jnp.concatenate([jnp.ones_like(expert.reward), jnp.zeros_like(replayed.reward)])
    alpha = jnp.asarray(config.temperature)

    action, log_prob = pi(state.actor, batch.observation).sample_and_log_prob(value_key)
    next_action, next_log_prob = pi(state.actor, batch.next_observation).sample_and_log_prob(next_key)
    next_q = jnp.min(q(state.target_critics, batch.next_observation, next_action), axis=0)

    def critic_loss(critics):
        values = q(critics, batch.observation, batch.action)
        soft_value = q(critics, batch.observation, action) - alpha * log_prob
        next_value = next_q - alpha * next_log_prob
        terminated = batch.terminated.astype(jnp.float32)
        loss = losses.critic_loss(values, soft_value, next_value, terminated, of_expert, config.discount, config.beta)
        reward = values - config.discount * (1.0 - terminated) * next_value
        margin = 2.0 * jnp.mean(reward * (2.0 * of_expert - 1.0))
        return loss, {"critic/loss": loss, "critic/q_mean": jnp.mean(values), "critic/reward_margin": margin}

    def actor_loss(actor):
        action, log_prob = pi(actor, batch.observation).sample_and_log_prob(actor_key)
        return sac_losses.actor_loss(log_prob, q(critics, batch.observation, action), alpha), log_prob

    gradients, metrics = jax.grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = parameters.adam_step(
        gradients, state.critic_optimizer, state.critics, config.learning_rate
    )
    (actor_value, log_prob), gradients = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
    actor, actor_optimizer = parameters.adam_step(
        gradients, state.actor_optimizer, state.actor, config.actor_learning_rate
    )
    state = replace(
        state,
        actor=actor,
        critics=critics,
        target_critics=parameters.polyak(state.target_critics, critics, config.tau),
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
    )
    return state, metrics | {"actor/loss": actor_value, "actor/entropy": -jnp.mean(log_prob)}


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, one per environment step unless `gradient_steps` says otherwise."""
    steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    expert_key, replay_key, step_key = jax.random.split(key, 3)
    expert = sample_demonstrations(replay, expert_key, (steps, config.batch_size))
    replayed = sample(replay, replay_key, (steps, config.batch_size))
    inputs = (expert, replayed, jax.random.split(step_key, steps))
    step_once = functools.partial(gradient_step, config)
    state, metrics = jax.lax.scan(lambda state, inputs: step_once(state, *inputs), state, inputs)
    return state, jax.tree.map(jnp.mean, metrics)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"iq_learn needs continuous actions and {spec.id} has discrete ones: use --agent=bc")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    shape |= {"kernel_init": config.kernel_init}
    policy_network = TanhNormalPolicy(action_size=spec.action_size, log_std_min=-5.0, **shape)
    critic_network = Critics(num=config.num_critics, **shape)
    actor_key, critic_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    actor = policy_network.init(actor_key, observation)
    critics = critic_network.init(critic_key, observation, zeros(spec.action, (1,)))
    return State(
        actor=actor,
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
    """A sampled action (E, A), or a uniformly random one during the warm-up."""
    sample_key, random_key = jax.random.split(key)
    action = function(state.policy_network)(state.actor, observation).sample(sample_key)
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean), (E, A)."""
    return function(state.policy_network)(state.actor, observation).mode()
