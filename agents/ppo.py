"""PPO (Schulman et al. 2017, arXiv 1707.06347): equations in offpolicy_jax/losses/policy_gradient.py.

Order of one update, on the last `buffer_batches` rollouts in time order: values, advantages and log pi_old at the
current parameters, so that every ratio starts at 1; then epochs of shuffled minibatches, each a step on surrogate,
value and entropy together, until KL(pi_old || pi) on a minibatch passes `target_kl`. Continuous actions are an
unsquashed Gaussian's, clipped for the environment: the density is that of the sample before the clipping. Where
observations are normalised, it is by the moments of the update, not those of the step: log pi_old is of the policy on
the observations as they are learned from. On the host a rollout's first action is the policy's before the update.
"""

from collections.abc import Callable
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

    @property
    def buffer_length(self) -> int:
        """Steps of each parallel environment that the replay keeps."""
        return self.rollout_length * self.buffer_batches


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
    data = rollouts(replay, lambda o: _value(state, state.parameters, o), config.discount, config.gae_lambda)
    old_log_prob = log_prob(_policy(state, state.parameters, data.transitions.observation), data.transitions)

    def loss(params, batch):
        batch, old_log_prob = batch
        policy = _policy(state, params, batch.transitions.observation)
        value = _value(state, params, batch.transitions.observation)
        log_ratio = log_prob(policy, batch.transitions) - old_log_prob
        advantage = losses.standardize(batch.advantage, batch.mask)
        surrogate = losses.clipped_surrogate(log_ratio, advantage, config.clip, batch.mask)
        value_loss = losses.value_loss(value, batch.value, batch.target, config.value_clip, batch.mask)
        entropy = losses.masked_mean(policy.entropy(), batch.mask)
        kl = losses.sampled_kl(log_ratio, batch.mask)
        metrics = {
            "actor/loss": surrogate,
            "actor/entropy": entropy,
            "actor/kl": kl,
            "actor/clip_fraction": losses.masked_mean(1.0 * (jnp.abs(jnp.expm1(log_ratio)) > config.clip), batch.mask),
            "critic/loss": value_loss,
        }
        return surrogate + config.value_weight * value_loss - config.entropy_weight * entropy, (kl, metrics)

    params, optimizer, steps, metrics = parameters.descend_minibatches(
        loss,
        state.parameters,
        state.optimizer,
        (data, old_log_prob),
        key,
        epochs=config.epochs,
        minibatches=config.minibatches,
        learning_rate=config.learning_rate * remaining(config.anneal_steps, step, replay, config.rollout_length),
        max_gradient_norm=config.max_gradient_norm,
        largest_distance=config.target_kl,
        valid=data.mask,
    )
    metrics |= {"actor/steps": steps, "critic/value_mean": losses.masked_mean(data.value, data.mask)}
    return replace(state, parameters=params, optimizer=optimizer), metrics


METRICS = ("actor/loss", "actor/entropy", "actor/kl", "actor/clip_fraction", "actor/steps")
METRICS += ("critic/loss", "critic/value_mean")
"""Names of what `update` reports."""


@struct.dataclass
class Rollouts:
    """On-policy experience as N = T E rows; `mask` says which of them hold data."""

    transitions: Transition
    advantage: jax.Array
    target: jax.Array  # of the value
    value: jax.Array  # at the parameters before the update
    mask: jax.Array


def rollouts(
    replay: Replay, value: Callable[[PyTree], jax.Array], discount: jax.Array | float, trace: jax.Array | float
) -> Rollouts:
    """The replay's experience with generalised advantages; `value` maps observations (N, ...) to V (N,)."""
    transitions, valid = chronological(replay)  # (T, E)
    rows = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)  # noqa: E731
    v, next_v = (value(rows(o)).reshape(valid.shape) for o in (transitions.observation, transitions.next_observation))
    advantage = losses.generalized_advantages(
        transitions.reward, transitions.terminated, transitions.truncated, v, next_v, discount, trace, valid
    )
    return Rollouts(*rows((transitions, advantage, advantage + v, v, valid)))


def remaining(anneal_steps: int, step: jax.Array, replay: Replay, rollout_length: int) -> jax.Array | float:
    """What is left of the annealing in an update: 1 in the first, one update's share in the last, then 0; 1 if none."""
    if anneal_steps <= 0:
        return 1.0
    return jnp.maximum(0.0, 1.0 - (step - rollout_length * replay.num_envs) / anneal_steps)


def _policy(state: State, params: dict[str, Params], observation: PyTree) -> Normal | Categorical:
    return function(state.policy_network)(params["policy"], observation)


def _value(state: State, params: dict[str, Params], observation: PyTree) -> jax.Array:
    return function(state.value_network)(params["value"], observation)


def log_prob(policy: Normal | Categorical, transitions: Transition) -> jax.Array:
    """log pi (B,) of stored actions: a Gaussian's sample is in the extras, before it was clipped."""
    return policy.log_prob(transitions.extras.get("sample", transitions.action))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimiser, for continuous or discrete actions."""
    params, pi, v = build(spec, key, config.hidden_sizes, config.activation, config.kernel_init)
    return State(params, parameters.adam_init(params), pi, v)


def build(
    spec: EnvironmentSpec,
    key: jax.Array,
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    kernel_init: KernelInit,
) -> tuple[dict[str, Params], NormalPolicy | CategoricalPolicy, StateValue]:
    """Parameters of policy and value, and their networks: the policy starts with nearly the same actions everywhere.

    Without hidden layers, on states and actions that are integers, both are tables.
    """
    encoder = networks.encoder(spec.observation)
    shape: dict[str, Any] = {"encoder": encoder, "hidden_sizes": hidden_sizes}
    shape |= {"kernel_init": kernel_init, "activation": activation}
    one_integer = [s.num_values is not None and not s.shape for s in encoder] == [True]
    bias = bool(hidden_sizes) or not spec.discrete or not one_integer
    if spec.discrete:
        policy_network = CategoricalPolicy(num_actions=spec.num_actions, output_gain=0.01, output_bias=bias, **shape)
    else:
        policy_network = NormalPolicy(action_size=spec.action_size, output_gain=0.01, **shape)
    value_network = StateValue(output_bias=bias, **shape)
    policy_key, value_key = jax.random.split(key)
    observation = zeros(spec.observation, (1,))
    params = {
        "policy": policy_network.init(policy_key, observation),
        "value": value_network.init(value_key, observation),
    }
    return params, policy_network, value_network


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Sampled actions: (E,), or (E, A) with the sample before it is clipped to [-1, 1] as an extra."""
    return behave(_policy(state, state.parameters, observation), key)


def behave(policy: Normal | Categorical, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """A sampled action and what is stored with it."""
    sample = policy.sample(key)
    return (sample, {}) if isinstance(policy, Categorical) else (jnp.clip(sample, -1.0, 1.0), {"sample": sample})


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The likeliest action, (E,) or (E, A)."""
    return greedy(_policy(state, state.parameters, observation))


def greedy(policy: Normal | Categorical) -> jax.Array:
    """The likeliest action, clipped to [-1, 1] if it is continuous."""
    return policy.mode() if isinstance(policy, Categorical) else jnp.clip(policy.mode(), -1.0, 1.0)


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action, V(s) (E,), and no bonus: rewards carry no entropy here."""
    action, _ = act(config, state, observation, jnp.zeros((), jnp.int32), key)
    value = _value(state, state.parameters, observation)
    return action, value, jnp.zeros_like(value)
