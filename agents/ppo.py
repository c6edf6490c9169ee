"""PPO (Schulman et al. 2017, arXiv 1707.06347): equations in offpolicy_jax/losses/policy_gradient.py.

Order of one update, on the last `buffer_batches` rollouts in time order: values, advantages and log pi_old at the
current parameters, so that every ratio starts at 1; then epochs of shuffled minibatches, each a step on surrogate,
value and entropy together, until KL(pi_old || pi) on a minibatch passes `target_kl`. Continuous actions are an
unsquashed Gaussian's, clipped for the environment: the density is that of the sample before the clipping.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.distributions import Categorical, Normal
from offpolicy_jax.losses import policy_gradient as losses
from offpolicy_jax.networks import Activation, CategoricalPolicy, KernelInit, NormalPolicy, Params, StateValue, function
from offpolicy_jax.replay import Replay, chronological
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of PPO. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 0.95
    """Trace parameter lambda of the advantages."""
    clip: float = 0.2
    """epsilon: how far a ratio may leave 1 before its gradient stops."""
    value_clip: float = 0.2
    """The same for values, around those before the update; inf: no clipping."""
    value_weight: float = 0.5
    """Weight of the values' loss."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy."""
    max_gradient_norm: float = 0.5
    """Global norm that gradients are clipped to."""
    target_kl: float = 0.03
    """KL(pi_old || pi) on a minibatch from which on the update stops; inf: never."""
    anneal_steps: int = struct.field(pytree_node=False, default=-1)
    """Environment steps over which the step size falls to zero; -1: those of the run, 0: it stays."""
    epochs: int = struct.field(pytree_node=False, default=10)
    """Passes over the data of an update."""
    minibatches: int = struct.field(pytree_node=False, default=32)
    """Parts of each pass. A remainder that does not divide is left out of that pass."""
    rollout_length: int = struct.field(pytree_node=False, default=2048)
    """Steps of each parallel environment between updates."""
    buffer_batches: int = struct.field(pytree_node=False, default=1)
    """b: rollouts that an update learns from; above 1 the older ones are treated as if they were on-policy."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    """Units of the hidden layers, for policy and values alike."""
    activation: Activation = struct.field(pytree_node=False, default="tanh")
    """Nonlinearity of the hidden layers."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="orthogonal")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers and 0.01 in the policy's last one."""


PRESETS = {
    # For small discrete tasks, with --num-envs=8.
    "classic": Config(
        learning_rate=1e-3,
        discount=0.98,
        gae_lambda=0.8,
        value_clip=float("inf"),
        target_kl=float("inf"),
        rollout_length=32,
        minibatches=1,
    )
}


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    parameters: dict[str, Params]  # policy and value
    optimizer: optax.OptState
    policy_network: NormalPolicy | CategoricalPolicy = struct.field(pytree_node=False)
    value_network: StateValue = struct.field(pytree_node=False)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """All epochs on the replay's rollouts."""
    transitions, valid = chronological(replay)  # (T, E)
    advantage, target, value = _advantages(config, state, transitions, valid)
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    transitions = jax.tree.map(flat, transitions)
    old_log_prob = _log_prob(_policy(state, state.parameters, transitions.observation), transitions)
    data = (transitions, old_log_prob, flat(advantage), flat(target), flat(value), flat(valid))
    learning_rate = jnp.asarray(config.learning_rate)
    if config.anneal_steps > 0:
        done = (step - config.rollout_length * replay.num_envs) / config.anneal_steps
        learning_rate = learning_rate * jnp.maximum(0.0, 1.0 - done)

    def loss(params, batch):
        transitions, old_log_prob, advantage, target, old_value, mask = batch
        policy = _policy(state, params, transitions.observation)
        value = function(state.value_network)(params["value"], transitions.observation)
        log_ratio = _log_prob(policy, transitions) - old_log_prob
        surrogate = losses.clipped_surrogate(log_ratio, losses.standardize(advantage, mask), config.clip, mask)
        value_loss = losses.value_loss(value, old_value, target, config.value_clip, mask)
        entropy = losses.masked_mean(policy.entropy(), mask)
        metrics = {
            "actor/loss": surrogate,
            "actor/entropy": entropy,
            "actor/kl": losses.sampled_kl(log_ratio, mask),
            "actor/clip_fraction": losses.masked_mean(1.0 * (jnp.abs(jnp.expm1(log_ratio)) > config.clip), mask),
            "critic/loss": value_loss,
        }
        return surrogate + config.value_weight * value_loss - config.entropy_weight * entropy, metrics

    def minibatch(carry, index):
        params, optimizer, stopped = carry
        batch = jax.tree.map(lambda x: x[index], data)
        gradients, metrics = jax.grad(loss, has_aux=True)(params, batch)
        stopped = stopped | (metrics["actor/kl"] > config.target_kl)
        gradients = parameters.clip_by_global_norm(gradients, config.max_gradient_norm)
        new = parameters.adam_step(gradients, optimizer, params, learning_rate, epsilon=1e-5)
        params, optimizer = jax.tree.map(lambda a, b: jnp.where(stopped, a, b), (params, optimizer), new)
        return (params, optimizer, stopped), metrics | {"actor/steps": 1.0 - stopped}

    size = old_log_prob.shape[0] // config.minibatches
    keys = jax.random.split(key, config.epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, old_log_prob.shape[0]))(keys)
    index = order[:, : size * config.minibatches].reshape(-1, size)
    carry = (state.parameters, state.optimizer, jnp.zeros((), bool))
    (params, optimizer, _), metrics = jax.lax.scan(minibatch, carry, index)
    metrics = {name: jnp.sum(x) if name == "actor/steps" else jnp.mean(x) for name, x in metrics.items()}
    metrics["critic/value_mean"] = losses.masked_mean(value, valid)
    return replace(state, parameters=params, optimizer=optimizer), metrics


def _advantages(
    config: Config, state: State, transitions: Transition, valid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Advantages, value targets and values, (T, E) each."""
    v = function(state.value_network)
    shape = transitions.reward.shape

    def values(observation):
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)
        return v(state.parameters["value"], rows).reshape(shape)

    value, next_value = values(transitions.observation), values(transitions.next_observation)
    advantage = losses.generalized_advantages(
        transitions.reward,
        transitions.terminated,
        transitions.truncated,
        value,
        next_value,
        config.discount,
        config.gae_lambda,
        valid,
    )
    return advantage, advantage + value, value


def _policy(state: State, params: dict[str, Params], observation: PyTree) -> Normal | Categorical:
    return function(state.policy_network)(params["policy"], observation)


def _log_prob(policy: Normal | Categorical, transitions: Transition) -> jax.Array:
    """log pi (B,) of stored actions: a Gaussian's sample is in the extras, before it was clipped."""
    return policy.log_prob(transitions.extras.get("sample", transitions.action))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimiser, for continuous or discrete actions."""
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    shape |= {"kernel_init": config.kernel_init, "activation": config.activation}
    if spec.discrete:
        policy_network = CategoricalPolicy(num_actions=spec.num_actions, output_gain=0.01, **shape)
    else:
        policy_network = NormalPolicy(action_size=spec.action_size, output_gain=0.01, **shape)
    value_network = StateValue(**shape)
    policy_key, value_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    params = {
        "policy": policy_network.init(policy_key, observation),
        "value": value_network.init(value_key, observation),
    }
    return State(params, parameters.adam_init(params), policy_network, value_network)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Sampled actions: (E,), or (E, A) with the sample before it is clipped to [-1, 1] as an extra."""
    sample = _policy(state, state.parameters, observation).sample(key)
    if isinstance(state.policy_network, CategoricalPolicy):
        return sample, {}
    return jnp.clip(sample, -1.0, 1.0), {"sample": sample}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The likeliest action, (E,) or (E, A)."""
    mode = _policy(state, state.parameters, observation).mode()
    return mode if isinstance(state.policy_network, CategoricalPolicy) else jnp.clip(mode, -1.0, 1.0)


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action, V(s) (E,), and no bonus: rewards carry no entropy here."""
    action, _ = act(config, state, observation, jnp.zeros((), jnp.int32), key)
    value = function(state.value_network)(state.parameters["value"], observation)
    return action, value, jnp.zeros_like(value)
