"""DSAC-T (Duan et al. 2025, arXiv 2310.05858): equations in offpolicy_jax/losses/dsac_t.py.

Order of one iteration, as in the official code: running means; the gradients of critics, actor and temperature, all at
the old parameters; the critics' step; and in every `delay`-th iteration the steps of actor and temperature, then all
targets. `PRESETS` hold the paper's protocol, its baseline DSACv1, and quick settings for small tasks.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import uniform_before
from offpolicy_jax.losses import dsac_t as losses
from offpolicy_jax.losses import sac as sac_losses
from offpolicy_jax.losses.td import squared_td_error
from offpolicy_jax.networks import Activation, Critics, KernelInit, Params, TanhNormalPolicy, function
from offpolicy_jax.replay import Replay, scan_batches, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of DSAC-T. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 1e-4
    """Adam's step size for actor and critics."""
    temperature_learning_rate: float = 3e-4
    """Adam's step size for the temperature."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the averages of target critics and target policy."""
    statistics_tau: float = 0.005
    """Weight of the newest batch in the running means of sigma and sigma^2."""
    initial_temperature: float = math.e
    """Entropy temperature alpha at the start (and throughout, if it is not learned)."""
    target_entropy_scale: float = 1.0
    """Target entropy is minus this times the action dimension, in units of actions in [-1, 1]."""
    reward_scale: float = 1.0
    """Factor on rewards in the critics' targets."""
    clip_width: float = 3.0
    """xi: the random target is kept within this many mean sigmas of the critic's mean."""
    fixed_boundary: float = 10.0
    """The boundary of that clipping under critic_gradient=unadjusted, in units of scaled return."""
    epsilon: float = 0.1
    """Added to sigma^2 and sigma^3 in the denominators of the critics' gradient."""
    scale_epsilon: float = 0.1
    """eps_w: added to the gradient's scale w under critic_gradient=adjusted."""
    critic_gradient: Literal["adjusted", "huber", "unadjusted"] = struct.field(pytree_node=False, default="adjusted")
    """Refinement 3: adjusted is eq. 26, huber (with scale=square_mean) the official code since July 2025, unadjusted
    that of DSACv1."""
    scale: Literal["mean_square", "square_mean"] = struct.field(pytree_node=False, default="mean_square")
    """w: the running mean of sigma^2 (paper, eq. 25), or the square of the running mean of sigma (official code)."""
    expected_target: bool = struct.field(pytree_node=False, default=True)
    """Refinement 1: the mean moves towards the expected target, not towards a random one."""
    num_critics: int = struct.field(pytree_node=False, default=2)
    """Refinement 2: value distributions of which the one with the least mean counts."""
    learn_temperature: bool = struct.field(pytree_node=False, default=True)
    """Adapt alpha to the target entropy."""
    delay: int = struct.field(pytree_node=False, default=2)
    """Iterations between steps of actor, temperature and all targets."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256, 256))
    """Units of the hidden layers, for actor and critics alike."""
    activation: Activation = struct.field(pytree_node=False, default="gelu")
    """Nonlinearity of the hidden layers."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="glorot_uniform")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Transitions per gradient step."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=-1)
    """Steps before learning; -1: ten episodes of the environment's time limit."""
    uniform_warmup: bool = struct.field(pytree_node=False, default=True)
    """Act uniformly at random before learning, not by the initial policy."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=-1)
    """Gradient steps per update; -1: as many as environment steps since the last update."""


PRESETS = {
    # 1.5 M iterations, one every 20 environment steps: --steps=30000000. Reward scale: two of the three official codes.
    "paper": Config(
        rollout_length=20, gradient_steps=1, reward_scale=0.2, uniform_warmup=False, learning_starts=10_000
    ),
    # For small tasks: SAC's sizes and temperature, and a fast learning rate.
    "quick": Config(
        learning_rate=1e-3,
        temperature_learning_rate=1e-3,
        initial_temperature=1.0,
        hidden_sizes=(256, 256),
        learning_starts=1_000,
    ),
    # The paper's baseline (arXiv 2001.02811) in this code: one critic, random targets, a fixed boundary, no scale.
    "dsac_v1": Config(critic_gradient="unadjusted", expected_target=False, num_critics=1),
}


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    actor: Params
    critics: Params
    target_actor: Params
    target_critics: Params
    log_alpha: jax.Array
    mean_std: jax.Array  # (N,): running mean of sigma_i, -1 before the first batch
    mean_variance: jax.Array  # (N,): running mean of sigma_i^2, likewise
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    temperature_optimizer: optax.OptState
    policy_network: TanhNormalPolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, iteration: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One iteration on one batch (B, ...); `iteration` counts them, for the delay."""
    next_key, actor_key, noise_key = jax.random.split(key, 3)
    pi, z = function(state.policy_network), value_distribution(state.critic_network)
    alpha = jnp.exp(state.log_alpha)

    next_action, next_log_prob = pi(state.target_actor, batch.next_observation).sample_and_log_prob(next_key)
    next_mean, next_std = z(state.target_critics, batch.next_observation, next_action)
    noise = jax.random.normal(noise_key, next_log_prob.shape)
    expected, random = losses.targets(
        config.reward_scale * batch.reward,
        batch.terminated,
        losses.least_value(next_mean, next_std, noise),
        next_log_prob,
        alpha,
        config.discount,
    )

    def critic_loss(critics):
        q, std = z(critics, batch.observation, batch.action)
        mean_std = losses.running_mean(state.mean_std, std, config.statistics_tau)
        mean_variance = losses.running_mean(state.mean_variance, jnp.square(std), config.statistics_tau)
        scale = mean_variance if config.scale == "mean_square" else jnp.square(mean_std)
        boundary, loss = config.clip_width * mean_std, losses.critic_loss
        if config.critic_gradient == "adjusted":
            scale = scale + config.scale_epsilon
        elif config.critic_gradient == "huber":
            loss = losses.huber_loss
        else:
            scale, boundary = jnp.ones_like(scale), jnp.full_like(boundary, config.fixed_boundary)
        clipped = losses.clipped_return(q, random, boundary)
        target = expected if config.expected_target else random
        metrics = {
            "critic/squared_error": squared_td_error(q, target),
            "critic/q_mean": jnp.mean(q),
            "critic/std_mean": jnp.mean(std),
            "critic/scale": jnp.mean(scale),
            "actor/entropy": -jnp.mean(next_log_prob),  # of the target policy: the actor is not asked every time
            "temperature/alpha": alpha,
        }
        return loss(q, std, target, clipped, scale, config.epsilon), (mean_std, mean_variance, metrics)

    def actor_loss(actor):
        action, log_prob = pi(actor, batch.observation).sample_and_log_prob(actor_key)
        q, _ = z(state.critics, batch.observation, action)
        return sac_losses.actor_loss(log_prob, q, alpha), log_prob

    def temperature_loss(log_alpha, log_prob):
        target_entropy = -config.target_entropy_scale * state.policy_network.action_size
        return sac_losses.temperature_loss(log_alpha, log_prob, target_entropy, log_form=True)

    gradients, (mean_std, mean_variance, metrics) = jax.grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = parameters.adam_step(
        gradients, state.critic_optimizer, state.critics, config.learning_rate
    )

    def delayed(state: State) -> State:
        gradients, log_prob = jax.grad(actor_loss, has_aux=True)(state.actor)
        actor, actor_optimizer = parameters.adam_step(
            gradients, state.actor_optimizer, state.actor, config.learning_rate
        )
        log_alpha, temperature_optimizer = state.log_alpha, state.temperature_optimizer
        if config.learn_temperature:
            gradient = jax.grad(temperature_loss)(log_alpha, log_prob)
            log_alpha, temperature_optimizer = parameters.adam_step(
                gradient, temperature_optimizer, log_alpha, config.temperature_learning_rate
            )
        return replace(
            state,
            actor=actor,
            target_actor=parameters.polyak(state.target_actor, actor, config.tau),
            target_critics=parameters.polyak(state.target_critics, critics, config.tau),
            log_alpha=log_alpha,
            actor_optimizer=actor_optimizer,
            temperature_optimizer=temperature_optimizer,
        )

    state = jax.lax.cond(iteration % config.delay == 0, delayed, lambda state: state, state)
    state = replace(
        state, critics=critics, critic_optimizer=critic_optimizer, mean_std=mean_std, mean_variance=mean_variance
    )
    return state, metrics


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, one per environment step unless `gradient_steps` says otherwise."""
    num_steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    updates = step // (config.rollout_length * replay.num_envs)
    first = updates % config.delay * num_steps  # of this update's iterations, up to multiples of the delay

    def iterate(carry, batch, key):
        state, iteration = carry
        state, metrics = gradient_step(config, state, batch, iteration, key)
        return (state, iteration + 1), metrics

    (state, _), metrics = scan_batches(iterate, (state, first), replay, key, num_steps, config.batch_size)
    return state, metrics


def value_distribution(network: Critics):
    """Mean and standard deviation (N, B) of the soft return, as a function of parameters, observation and action."""

    def z(params: Params, observation: PyTree, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = function(network)(params, observation, action)
        return outputs[..., 0], jax.nn.softplus(outputs[..., 1])

    return z


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"dsac_t needs continuous actions and {spec.id} has discrete ones: use --agent=sac_discrete")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    shape |= {"kernel_init": config.kernel_init, "activation": config.activation}
    policy_network = TanhNormalPolicy(action_size=spec.action_size, log_std_max=0.5, **shape)
    critic_network = Critics(num=config.num_critics, outputs=2, **shape)
    actor_key, critic_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    actor = policy_network.init(actor_key, observation)
    critics = critic_network.init(critic_key, observation, zeros(spec.action, (1,)))
    log_alpha = jnp.log(jnp.asarray(config.initial_temperature, jnp.float32))
    return State(
        actor=actor,
        critics=critics,
        target_actor=parameters.copy(actor),
        target_critics=parameters.copy(critics),
        log_alpha=log_alpha,
        mean_std=jnp.full(config.num_critics, -1.0),
        mean_variance=jnp.full(config.num_critics, -1.0),
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
    if not config.uniform_warmup:
        return action, {}
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean), (E, A)."""
    return function(state.policy_network)(state.actor, observation).mode()


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action (E, A), min_i q_i of it (E,), and -alpha log pi of it (E,)."""
    action, log_prob = function(state.policy_network)(state.actor, observation).sample_and_log_prob(key)
    q, _ = value_distribution(state.critic_network)(state.critics, observation, action)
    return action, jnp.min(q, axis=0), -jnp.exp(state.log_alpha) * log_prob
