"""DQN (Mnih et al. 2015), double and n-step: equations in offpolicy_jax/losses/dqn.py.

Order of one update: gradient steps on fresh batches, then, whenever the environment steps pass a multiple of
`target_period`, the target network becomes the online one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from offpolicy_jax import parameters, torsos
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import epsilon_greedy
from offpolicy_jax.losses import dqn as losses
from offpolicy_jax.networks import Activation, KernelInit, Params, function
from offpolicy_jax.replay import Replay, sample_n_step, steps_per_update
from offpolicy_jax.torsos import Outputs, TorsoKind, torso
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of DQN. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size."""
    discount: float = 0.99
    """Discount factor gamma."""
    epsilon: float = 0.05
    """Chance of a uniformly random action, after its decay from 1."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon: 1.5e-4 in Dopamine."""
    huber_delta: float = 100.0
    """Error from which the loss is linear. 1 suits clipped rewards; where values are larger it neglects rare terminal
    states: Q then diverges on CartPole."""
    max_gradient_norm: float = 10.0
    """Gradients with a larger global norm are scaled down to it."""
    epsilon_decay_steps: int = struct.field(pytree_node=False, default=10_000)
    """Environment steps of a seed, after the warm-up, over which epsilon falls linearly."""
    double: bool = struct.field(pytree_node=False, default=True)
    """The online network chooses the successor's action (van Hasselt et al. 2016)."""
    n_step: int = struct.field(pytree_node=False, default=1)
    """Rewards that are summed before the value of the successor."""
    target_period: int = struct.field(pytree_node=False, default=500)
    """Environment steps of a seed between copies of the network into the target network."""
    torso: TorsoKind = struct.field(pytree_node=False, default="auto")
    """Layers before the hidden ones: auto picks mlp (none) for vectors, small or nature for pixels."""
    width: int = struct.field(pytree_node=False, default=1)
    """Factor on the channels of the convolutions."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(128,))
    """Units of the hidden layers."""
    activation: Activation = struct.field(pytree_node=False, default="relu")
    """Nonlinearity of the hidden layers."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="glorot_uniform")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=64)
    """Transitions per gradient step."""
    replay_capacity: int = struct.field(pytree_node=False, default=100_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=1_000)
    """Uniformly random steps before learning; -1: ten episodes of the environment's time limit."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=1)
    """Gradient steps per update; -1: as many as environment steps since the last update."""


PRESETS = {
    "paper": Config(
        learning_rate=6.25e-5,
        adam_epsilon=1.5e-4,
        huber_delta=1.0,
        epsilon=0.01,
        epsilon_decay_steps=250_000,
        target_period=8_000,
        torso="nature",
        hidden_sizes=(512,),
        batch_size=32,
        replay_capacity=1_000_000,
        learning_starts=20_000,
        rollout_length=4,
    ),
    "classic": Config(
        discount=0.998,
        learning_rate=5e-4,
        epsilon=0.04,
        epsilon_decay_steps=8_000,
        n_step=5,
        target_period=512,
        hidden_sizes=(64, 64),
        batch_size=128,
        rollout_length=8,
        gradient_steps=32,
    ),
    "minatar": Config(
        learning_rate=5e-4,
        huber_delta=1.0,
        n_step=3,
        epsilon=0.02,
        epsilon_decay_steps=100_000,
        target_period=2_048,
        batch_size=256,
        learning_starts=10_000,
        rollout_length=4,
        gradient_steps=4,
    ),
}
"""paper: Dopamine's sizes, rates and periods with Adam, but double and with clipped gradients, for --env=ALE/<Game>-v5
--clip-rewards. classic: for CartPole with eight environments in parallel; a discount of 0.998 has the horizon of its
500 steps. With one-step targets (at 0.99) it does not get beyond half of the return. minatar: for 10 x 10 pixels with
32 environments in parallel."""


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) network it belongs to."""

    params: Params
    target: Params
    optimizer: optax.OptState
    network: Outputs = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, discount: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step on n-step transitions (B, ...), with the discount (B,) of each one's last successor."""
    q = function(state.network)
    target_next_q = q(state.target, batch.next_observation)
    next_q = q(state.params, batch.next_observation) if config.double else target_next_q
    next_value = losses.next_value(next_q, target_next_q, config.double)

    def loss(params):
        values = q(params, batch.observation)
        return losses.q_loss(
            values, batch.action, batch.reward, batch.terminated, next_value, discount, config.huber_delta
        ), jnp.mean(values)

    (value, q_mean), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradients = parameters.clip_by_global_norm(gradients, config.max_gradient_norm)
    params, optimizer = parameters.adam_step(
        gradients, state.optimizer, state.params, config.learning_rate, config.adam_epsilon
    )
    return replace(state, params=params, optimizer=optimizer), {"critic/loss": value, "critic/q_mean": q_mean}


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches, then the target network if its time has come."""
    if max(config.learning_starts, config.rollout_length * replay.num_envs) < config.n_step * replay.num_envs:
        raise UserError(f"--config.learning_starts must be at least {config.n_step * replay.num_envs}, for n_step")
    state, metrics = learn(config, state, replay, config.rollout_length, key)
    return refresh_target(config, state, step, config.rollout_length * replay.num_envs), metrics


def learn(
    config: Config, state: State, replay: Replay, rollout_length: int, key: jax.Array, seen: Callable = lambda x: x
) -> tuple[State, dict[str, jax.Array]]:
    """The gradient steps of one update. `seen(observation)` is what the network reads: frozen features, say."""
    num_steps = steps_per_update(replay, rollout_length, config.gradient_steps)
    batches = sample_n_step(replay, key, (num_steps, config.batch_size), config.n_step, config.discount)

    def one(state, inputs):
        batch, discount = inputs
        batch = replace(batch, observation=seen(batch.observation), next_observation=seen(batch.next_observation))
        return gradient_step(config, state, batch, discount)

    state, metrics = jax.lax.scan(one, state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


def refresh_target(config: Config, state: State, step: jax.Array, unit: int) -> State:
    """The target network becomes the online one if a multiple of `target_period` lies in the last `unit` steps."""
    due = step // config.target_period != (step - unit) // config.target_period
    return replace(state, target=jax.lax.cond(due, lambda: state.params, lambda: state.target))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimiser for an environment with discrete actions. Raises UserError for continuous ones."""
    if not spec.discrete:
        raise UserError(f"dqn needs discrete actions and {spec.id} has continuous ones: use --agent=sac")
    options = {"kernel_init": config.kernel_init, "activation": config.activation}
    layers = torso(spec, config.torso, config.hidden_sizes, config.width, **options)
    network = Outputs(layers, spec.num_actions)
    params = network.init(key, zeros(spec.observation, (1,)))
    return State(params, parameters.copy(params), parameters.adam_init(params), network)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """An epsilon-greedy action (E,); a uniformly random one during the warm-up."""
    epsilon = exploration(config, step)
    return epsilon_greedy(policy(config, state, observation), state.network.num, epsilon, key), {}


def exploration(config: Config, step: jax.Array) -> jax.Array:
    """Epsilon at a step: 1 in the warm-up, then falling linearly to `config.epsilon`."""
    decayed = jnp.clip((step - config.learning_starts) / config.epsilon_decay_steps, 0.0, 1.0)
    return 1.0 - decayed * (1.0 - config.epsilon)


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The action of greatest value, (E,)."""
    return jnp.argmax(function(state.network)(state.params, observation), axis=-1).astype(jnp.int32)


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: the greedy action (E,), its value (E,), and zeros (E,)."""
    q = function(state.network)(state.params, observation)
    value = jnp.max(q, axis=-1)
    return jnp.argmax(q, axis=-1).astype(jnp.int32), value, jnp.zeros_like(value)


def features(config: Config, state: State, observation: PyTree) -> jax.Array:
    """What the linear layer of the online network reads, (B, F)."""
    return torsos.features(state.network, state.params, observation)
