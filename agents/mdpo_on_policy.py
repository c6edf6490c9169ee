"""On-policy MDPO (Tomar et al. 2022, arXiv 2005.09814): equations in offpolicy_jax/losses/mdpo.py.

Order of one update, on one rollout: values and advantages, standardised over all of it; m full-batch steps of the
policy on the mirror-descent objective, with pi_k the policy before them; then epochs of the values' minibatches with
an optimiser of their own. t_k falls from 1 to 0 over the run; learning rates stay (the paper lists
an annealed one, the public code keeps it). Each optimiser clips its own gradient's norm; the public code clips the
policy's alone, and its value loss has no factor 1/2. Actions are those of agents/ppo.py.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents import ppo
from offpolicy_jax import parameters
from offpolicy_jax.losses import mdpo as losses
from offpolicy_jax.losses import policy_gradient
from offpolicy_jax.networks import Activation, CategoricalPolicy, KernelInit, NormalPolicy, Params, StateValue, function
from offpolicy_jax.replay import Replay
from offpolicy_jax.transition import EnvironmentSpec, PyTree


@struct.dataclass
class Config:
    """Hyper-parameters of on-policy MDPO. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size for the policy."""
    value_learning_rate: float = 3e-4
    """Adam's step size for the values."""
    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 0.95
    """Trace parameter lambda of the advantages."""
    step_size: float = 1.0
    """t_0: the divergence to the last policy is weighted by 1 / t_k."""
    value_clip: float = 0.2
    """How far values may move from those before the update; inf: no clipping."""
    max_gradient_norm: float = 0.5
    """Global norm that the gradients of policy and values are clipped to, each."""
    anneal_steps: int = struct.field(pytree_node=False, default=-1)
    """Environment steps over which t_k falls to zero; -1: those of the run, 0: it stays."""
    gradient_steps: int = struct.field(pytree_node=False, default=10)
    """m: the policy's full-batch steps per update; with 1 it follows the vanilla policy gradient."""
    value_epochs: int = struct.field(pytree_node=False, default=5)
    """The values' passes over the data of an update."""
    value_minibatches: int = struct.field(pytree_node=False, default=16)
    """Parts of each pass."""
    rollout_length: int = struct.field(pytree_node=False, default=2048)
    """Steps of each parallel environment between updates."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    """Units of the hidden layers, for policy and values alike."""
    activation: Activation = struct.field(pytree_node=False, default="tanh")
    """Nonlinearity of the hidden layers."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="orthogonal")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers and 0.01 in the policy's last one."""

    @property
    def buffer_length(self) -> int:
        """Steps of each parallel environment that the replay keeps."""
        return self.rollout_length


PRESETS = {
    # For small discrete tasks, with --num-envs=8.
    "classic": Config(
        learning_rate=3e-3,
        value_learning_rate=3e-3,
        discount=0.98,
        gae_lambda=0.8,
        value_clip=float("inf"),
        value_epochs=10,
        value_minibatches=1,
        rollout_length=32,
    )
}


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    parameters: dict[str, Params]  # policy and value
    optimizers: dict[str, optax.OptState]
    policy_network: NormalPolicy | CategoricalPolicy = struct.field(pytree_node=False)
    value_network: StateValue = struct.field(pytree_node=False)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """m steps of the policy, then the values' epochs, on the replay's rollout."""
    pi, v = function(state.policy_network), function(state.value_network)
    old = state.parameters
    data = ppo.rollouts(replay, lambda o: v(old["value"], o), config.discount, config.gae_lambda)
    reference = pi(old["policy"], data.transitions.observation)
    old_log_prob = ppo.log_prob(reference, data.transitions)
    advantage = policy_gradient.standardize(data.advantage, data.mask)
    left = ppo.remaining(config.anneal_steps, step, replay, config.rollout_length)
    if config.anneal_steps > 0:  # a run that goes on beyond the annealing keeps the last update's share
        left = jnp.maximum(left, config.rollout_length * replay.num_envs / config.anneal_steps)
    step_size = config.step_size * jnp.asarray(left)

    def policy_loss(params, data):
        data, advantage, reference, old_log_prob = data
        policy = pi(params, data.transitions.observation)
        log_ratio, kl = ppo.log_prob(policy, data.transitions) - old_log_prob, policy.kl(reference)
        loss = losses.mirror_descent_loss(log_ratio, advantage, kl, step_size, data.mask)
        metrics = {
            "actor/loss": loss,
            "actor/entropy": policy_gradient.masked_mean(policy.entropy(), data.mask),
        }
        return loss, (jnp.zeros(()), metrics)

    def value_loss(params, data):
        value = v(params, data.transitions.observation)
        loss = policy_gradient.value_loss(value, data.value, data.target, config.value_clip, data.mask)
        return loss, (jnp.zeros(()), {"critic/loss": loss})

    policy, policy_optimizer, _, policy_metrics = parameters.descend_minibatches(
        policy_loss,
        old["policy"],
        state.optimizers["policy"],
        (data, advantage, reference, old_log_prob),
        key,
        epochs=config.gradient_steps,
        minibatches=1,
        learning_rate=config.learning_rate,
        max_gradient_norm=config.max_gradient_norm,
    )
    value, value_optimizer, _, value_metrics = parameters.descend_minibatches(
        value_loss,
        old["value"],
        state.optimizers["value"],
        data,
        key,  # the policy's steps, on one part, drew nothing
        epochs=config.value_epochs,
        minibatches=config.value_minibatches,
        learning_rate=config.value_learning_rate,
        max_gradient_norm=config.max_gradient_norm,
    )
    moved = pi(policy, data.transitions.observation).kl(reference)
    metrics = policy_metrics | value_metrics
    metrics |= {"actor/kl": policy_gradient.masked_mean(moved, data.mask), "actor/step_size": step_size}
    metrics |= {"critic/value_mean": policy_gradient.masked_mean(data.value, data.mask)}
    state = replace(
        state,
        parameters={"policy": policy, "value": value},
        optimizers={"policy": policy_optimizer, "value": value_optimizer},
    )
    return state, metrics


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers, for continuous or discrete actions."""
    params, pi, v = ppo.build(spec, key, config.hidden_sizes, config.activation, config.kernel_init)
    return State(params, {name: parameters.adam_init(x) for name, x in params.items()}, pi, v)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Sampled actions: (E,), or (E, A) with the sample before it is clipped to [-1, 1] as an extra."""
    return ppo.behave(function(state.policy_network)(state.parameters["policy"], observation), key)


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The likeliest action, (E,) or (E, A)."""
    return ppo.greedy(function(state.policy_network)(state.parameters["policy"], observation))


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action, V(s) (E,), and no bonus: rewards carry no entropy here."""
    action, _ = act(config, state, observation, jnp.zeros((), jnp.int32), key)
    value = function(state.value_network)(state.parameters["value"], observation)
    return action, value, jnp.zeros_like(value)
