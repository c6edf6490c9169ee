"""PMOE on SAC (Ren et al. 2021, arXiv 2104.09122): equations in offpolicy_jax/losses/pmoe.py.

Order of one gradient step, as in agents/sac.py: critics, policy (with the new critics), temperature, targets. With one
expert every number is SAC's. The public code's departures are options: log_prob=component, standardize_rewards, and
its gate loss is 1 / K of the paper's (gate_loss_scale). Greedy actions need a choice that it leaves to chance.
"""

import functools
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.distributions import TanhNormalMixture, take_expert
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import uniform_before
from offpolicy_jax.losses import pmoe as losses
from offpolicy_jax.losses import sac as sac_losses
from offpolicy_jax.networks import Critics, KernelInit, MixturePolicy, Params, function
from offpolicy_jax.replay import Replay, scan_batches, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of PMOE. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 3e-4
    """Adam's step size for policy, critics and temperature."""
    discount: float = 0.99
    """Discount factor gamma."""
    tau: float = 0.005
    """Weight of the new parameters in the target critics' average (0.01 in the public code)."""
    initial_temperature: float = 1.0
    """Entropy temperature alpha at the start (and throughout, if it is not learned)."""
    target_entropy_scale: float = 1.0
    """Target entropy is minus this times the action dimension."""
    reward_scale: float = 1.0
    """Factor on rewards in the critics' targets."""
    gate_loss_scale: float = 1.0
    """Factor on the gate's own loss; Gumbel-softmax has none."""
    gumbel_temperature: float = 1.0
    """Temperature of the relaxed choice under gate_gradient=gumbel."""
    num_experts: int = struct.field(pytree_node=False, default=4)
    """K, the experts of the mixture."""
    gate_gradient: Literal["frequency", "score", "gumbel"] = struct.field(pytree_node=False, default="frequency")
    """How the gate learns: the paper's frequency loss, or its baselines score function and Gumbel-softmax. With the
    last everything, log pi included, is differentiated through."""
    train_experts: Literal["best", "all"] = struct.field(pytree_node=False, default="best")
    """Which experts learn in a state: the chosen one (back-propagation-max), or all. Gumbel has the chosen one."""
    log_prob: Literal["mixture", "component"] = struct.field(pytree_node=False, default="mixture")
    """log pi in target, policy and temperature: the mixture's, or the chosen expert's own (public code)."""
    greedy: Literal["gate", "critic"] = struct.field(pytree_node=False, default="critic")
    """Whose mean is the greedy action: the expert with the largest weight, or with the largest min_i Q_i."""
    standardize_rewards: bool = struct.field(pytree_node=False, default=False)
    """Rewards of a batch as 10 (r - mean) / std (public code), whatever their scale: it removes bonuses for staying
    alive."""
    learn_temperature: bool = struct.field(pytree_node=False, default=True)
    """Adapt alpha to the target entropy."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers of the experts' common torso and of the critics."""
    gate_hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=())
    """Units of the gate's hidden layers; none: linear in the observation, as in the public code."""
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
    critics: Params
    target_critics: Params
    log_alpha: jax.Array
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    temperature_optimizer: optax.OptState
    policy_network: MixturePolicy = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every part on one batch (B, ...)."""
    next_key, actor_key = jax.random.split(key)
    pi, q = function(state.policy_network), function(state.critic_network)
    alpha = jnp.exp(state.log_alpha)

    next_action, next_log_prob = _sample(config, pi(state.actor, batch.next_observation), next_key)
    next_q = q(state.target_critics, batch.next_observation, next_action)

    def critic_loss(critics):
        values = q(critics, batch.observation, batch.action)
        reward = config.reward_scale * batch.reward
        if config.standardize_rewards:
            reward = 10.0 * (reward - jnp.mean(reward)) / (jnp.std(reward) + 1e-6)
        loss = sac_losses.critic_loss(values, reward, batch.terminated, next_q, next_log_prob, alpha, config.discount)
        return loss, jnp.mean(values)

    def q_of_each(action):
        """Q_i of M actions per state: (B, M, A) -> (N, B, M)."""
        observation = jax.tree.map(lambda x: jnp.repeat(x, action.shape[1], axis=0), batch.observation)
        return q(critics, observation, action.reshape(-1, action.shape[-1])).reshape(-1, *action.shape[:2])

    def actor_loss(actor):
        return losses.actor_loss(
            pi(actor, batch.observation).pre_tanh,
            q_of_each,
            alpha,
            actor_key,
            gate_gradient=config.gate_gradient,
            train_experts=config.train_experts,
            density=config.log_prob,
            gate_loss_scale=config.gate_loss_scale,
            gumbel_temperature=config.gumbel_temperature,
        )

    def temperature_loss(log_alpha):
        target_entropy = -config.target_entropy_scale * state.policy_network.action_size
        return sac_losses.temperature_loss(log_alpha, log_prob, target_entropy)

    def descend(gradients, optimizer, params):
        return parameters.adam_step(gradients, optimizer, params, config.learning_rate)

    (critic_value, q_mean), gradients = jax.value_and_grad(critic_loss, has_aux=True)(state.critics)
    critics, critic_optimizer = descend(gradients, state.critic_optimizer, state.critics)

    (actor_value, auxiliary), gradients = jax.value_and_grad(actor_loss, has_aux=True)(state.actor)
    log_prob, logits, gate_value = auxiliary
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
    weights = jax.nn.softmax(logits)
    metrics = {
        "critic/loss": critic_value,
        "critic/q_mean": q_mean,
        "actor/loss": actor_value,
        "actor/entropy": -jnp.mean(log_prob),  # of the actions that trained: the winners' under "best"
        "temperature/alpha": alpha,
        "gate/loss": gate_value,
        "gate/entropy": -jnp.mean(jnp.sum(weights * jax.nn.log_softmax(logits), axis=-1)),
        "gate/largest_mean_weight": jnp.max(jnp.mean(weights, axis=0)),  # 1: one expert does everything
    }
    return state, metrics


def _sample(config: Config, policy: TanhNormalMixture, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An action (B, A) of a sampled expert, and its log pi (B,)."""
    u, own = policy.pre_tanh.experts.sample_and_log_prob(key)  # (B, K, A), (B, K)
    expert = policy.pre_tanh.gate.sample(jax.random.fold_in(key, 1))[:, None]
    action, log_prob = losses.actions_of_experts(policy.pre_tanh, u, own, expert, config.log_prob)
    return action[:, 0], log_prob[:, 0]


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, one per environment step unless `gradient_steps` says otherwise."""
    num_steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    return scan_batches(functools.partial(gradient_step, config), state, replay, key, num_steps, config.batch_size)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"pmoe needs continuous actions and {spec.id} has discrete ones: use --agent=sac_discrete")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    policy_network = MixturePolicy(
        action_size=spec.action_size,
        num_experts=config.num_experts,
        gate_hidden_sizes=config.gate_hidden_sizes,
        kernel_init=config.kernel_init,
        **shape,
    )
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
    """An action (E, A) of a sampled expert, or a uniformly random one during the warm-up."""
    sample_key, random_key = jax.random.split(key)
    action = function(state.policy_network)(state.actor, observation).sample(sample_key)
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean) of one expert, (E, A): see `Config.greedy`."""
    mixture = function(state.policy_network)(state.actor, observation)
    if config.greedy == "gate":
        return mixture.mode()
    means = jnp.tanh(mixture.pre_tanh.mean)  # (E, K, A)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, config.num_experts, axis=0), observation)
    q = function(state.critic_network)(state.critics, repeated, means.reshape(-1, means.shape[-1]))
    return take_expert(means, losses.best_expert(q.reshape(-1, *means.shape[:2])))


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action (E, A), min_i Q_i of it (E,), and -alpha log pi of it (E,).

    Raises UserError if rewards are standardised by batch: such values are in no fixed unit.
    """
    if config.standardize_rewards:
        raise UserError("--value-bias needs --config.no-standardize-rewards: values have no unit otherwise")
    action, log_prob = _sample(config, function(state.policy_network)(state.actor, observation), key)
    q = function(state.critic_network)(state.critics, observation, action)
    return action, jnp.min(q, axis=0), -jnp.exp(state.log_alpha) * log_prob
