"""Behaviour cloning (Pomerleau 1988): the policy of greatest likelihood under the demonstrations, E[log pi(a|s)].

A Gaussian whose spread is one parameter per action, or a categorical distribution; no squashing, so that actions at
their bounds have a finite likelihood. The environment is for evaluation only: what the policy meets there is stored
nowhere that it learns from (but `--normalize-observations` takes its moments).
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import networks, parameters
from offpolicy_jax.networks import Activation, CategoricalPolicy, NormalPolicy, Params, function
from offpolicy_jax.replay import Replay, sample_demonstrations, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, zeros

DEMONSTRATIONS = True


@struct.dataclass
class Config:
    """Hyper-parameters of behaviour cloning. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size."""
    log_std_min: float = -3.0
    """Least log standard deviation: without it the likelihood of one demonstration grows without bound."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers."""
    activation: Activation = struct.field(pytree_node=False, default="relu")
    """Nonlinearity of the hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Pairs per gradient step."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=-1)
    """Gradient steps per update; -1: as many as environment steps since the last update."""
    replay_capacity: int = struct.field(pytree_node=False, default=1)
    """Nothing is learned from the replay."""


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) network it belongs to."""

    actor: Params
    optimizer: optax.OptState
    network: NormalPolicy | CategoricalPolicy = struct.field(pytree_node=False)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on batches of demonstrations."""
    pi = function(state.network)

    def gradient_step(state, key):
        batch = sample_demonstrations(replay, key, config.batch_size)

        def loss(actor):
            policy = pi(actor, batch.observation)
            if isinstance(state.network, NormalPolicy):
                policy = replace(policy, log_std=jnp.maximum(policy.log_std, config.log_std_min))
            return -jnp.mean(policy.log_prob(batch.action))

        value, gradients = jax.value_and_grad(loss)(state.actor)
        actor, optimizer = parameters.adam_step(gradients, state.optimizer, state.actor, config.learning_rate)
        return replace(state, actor=actor, optimizer=optimizer), {"actor/loss": value}

    steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
    state, metrics = jax.lax.scan(gradient_step, state, jax.random.split(key, steps))
    return state, jax.tree.map(jnp.mean, metrics)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimiser, for discrete or continuous actions."""
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    shape |= {"kernel_init": "orthogonal", "activation": config.activation}
    network: NormalPolicy | CategoricalPolicy
    if spec.discrete:
        network = CategoricalPolicy(num_actions=spec.num_actions, **shape)
    else:
        network = NormalPolicy(action_size=spec.action_size, **shape)
    actor = network.init(key, zeros(spec.observation, (1,)))
    return State(actor, parameters.adam_init(actor), network)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """A sampled action, (E,) or (E, A). Nothing is learned from what it leads to."""
    action = function(state.network)(state.actor, observation).sample(key)
    return jnp.clip(action, -1.0, 1.0) if isinstance(state.network, NormalPolicy) else action, {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The likeliest action: the mean, clipped to [-1, 1], (E, A), or an integer (E,)."""
    action = function(state.network)(state.actor, observation).mode()
    return jnp.clip(action, -1.0, 1.0) if isinstance(state.network, NormalPolicy) else action
