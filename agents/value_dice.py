"""ValueDICE (Kostrikov et al. 2020, arXiv 1912.05032): equations in offpolicy_jax/losses/value_dice.py.

One gradient step descends J (with a penalty on the slope of nu) and climbs it with the policy, both from the same
parameters, as in the public code. That code makes five steps per environment step, regularises the actor's weights
towards orthogonality, and standardises observations by the demonstrations (`--normalize-observations` does it by all
that the policy met); the regularisation is left out. Values never stop here: where demonstrations terminate it needs
`--absorbing-states` (that code appends ten absorbing transitions to such an episode, here it is one). Where only the
policy's own episodes do, and there are none, nu is 0 behind their end in J (not in the penalty).
"""

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
from offpolicy_jax.losses import value_dice as losses
from offpolicy_jax.losses.dac import gradient_penalty
from offpolicy_jax.networks import Discriminator, Encoder, KernelInit, Params, TanhNormalPolicy, function, pairs
from offpolicy_jax.replay import Replay, sample, sample_demonstrations
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, zeros

DEMONSTRATIONS, NEEDS_ABSORBING_STATES = True, True


@struct.dataclass
class Config:
    """Hyper-parameters of ValueDICE. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 1e-3
    """Adam's step size for nu."""
    actor_learning_rate: float = 1e-5
    """Adam's step size for the policy."""
    discount: float = 0.99
    """Discount factor gamma."""
    replay_regularization: float = 0.1
    """rho, the share of replayed transitions in both distributions."""
    gradient_penalty: float = 10.0
    """Weight of the gradient penalty on nu."""
    exploration_std: float = 0.1
    """Standard deviation of the noise added to greedy actions."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the hidden layers, for policy and nu alike."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="orthogonal")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Expert's and replayed transitions per gradient step, each."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=2_000)
    """Uniformly random steps before learning."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=5)
    """Gradient steps per update."""


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    actor: Params
    nu: Params
    actor_optimizer: optax.OptState
    nu_optimizer: optax.OptState
    policy_network: TanhNormalPolicy = struct.field(pytree_node=False)
    nu_network: Discriminator = struct.field(pytree_node=False)
    encoder: Encoder = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, expert: Transition, replayed: Transition, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of nu and of the policy on a batch of each kind (B, ...)."""
    initial_key, expert_key, replay_key, mix_key = jax.random.split(key, 4)
    pi, nu = function(state.policy_network), function(state.nu_network)

    def joined(observation, action):
        return pairs(state.encoder, observation, without_absorbed_action(observation, action))

    def inputs(actor, observation, key):
        return joined(observation, pi(actor, observation).sample(key))

    def differences(params, actor, batch, key):
        now = joined(batch.observation, batch.action)
        later = inputs(actor, batch.next_observation, key)
        following = jnp.where(batch.terminated, 0.0, nu(params, later))
        return nu(params, now) - config.discount * following, jnp.concatenate([now, later])

    def objective(params, actor):
        of_expert, expert_inputs = differences(params, actor, expert, expert_key)
        of_replay, replay_inputs = differences(params, actor, replayed, replay_key)
        initial = nu(params, inputs(actor, expert.observation, initial_key))
        j = losses.objective(of_expert, of_replay, initial, config.replay_regularization, config.discount)
        return j, (expert_inputs, replay_inputs)

    def nu_loss(params):
        j, (expert_inputs, replay_inputs) = objective(params, state.actor)
        mix = jax.random.uniform(mix_key, (expert.reward.shape[0], 1))
        mix = jnp.concatenate([mix, mix])  # the same for a pair and its successor
        between = mix * expert_inputs + (1.0 - mix) * replay_inputs
        penalty = gradient_penalty(jax.grad(lambda x: jnp.sum(nu(params, x)))(between))
        return j + config.gradient_penalty * penalty, {"nu/objective": j, "nu/penalty": penalty}

    gradients, metrics = jax.grad(nu_loss, has_aux=True)(state.nu)
    params, nu_optimizer = parameters.adam_step(gradients, state.nu_optimizer, state.nu, config.learning_rate)
    gradients = jax.grad(lambda actor: -objective(state.nu, actor)[0])(state.actor)
    actor, actor_optimizer = parameters.adam_step(
        gradients, state.actor_optimizer, state.actor, config.actor_learning_rate
    )
    state = replace(state, actor=actor, nu=params, actor_optimizer=actor_optimizer, nu_optimizer=nu_optimizer)
    return state, metrics


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps on fresh batches."""
    expert_key, replay_key, step_key = jax.random.split(key, 3)
    steps = config.gradient_steps
    expert = sample_demonstrations(replay, expert_key, (steps, config.batch_size))
    replayed = sample(replay, replay_key, (steps, config.batch_size))
    inputs = (expert, replayed, jax.random.split(step_key, steps))
    state, metrics = jax.lax.scan(lambda state, inputs: gradient_step(config, state, *inputs), state, inputs)
    return state, jax.tree.map(jnp.mean, metrics)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"value_dice needs continuous actions and {spec.id} has discrete ones: use --agent=bc")
    if config.gradient_steps < 1:
        raise UserError(f"config.gradient_steps must be at least 1, not {config.gradient_steps}")
    encoder = networks.encoder(spec.observation)
    policy_network = TanhNormalPolicy(
        encoder, config.hidden_sizes, spec.action_size, log_std_min=-5.0, kernel_init=config.kernel_init
    )
    # J does not see a constant in nu (unless episodes end): Adam would make steps of a bias out of rounding errors.
    nu_network = Discriminator(config.hidden_sizes, kernel_init=config.kernel_init, output_bias=False)
    actor_key, nu_key = jax.random.split(key)
    actor = policy_network.init(actor_key, zeros(spec.observation, (1,)))
    nu = nu_network.init(nu_key, jnp.zeros((1, sum(s.width for s in encoder) + spec.action_size)))
    optimizers = parameters.adam_init(actor), parameters.adam_init(nu)
    return State(actor, nu, *optimizers, policy_network, nu_network, encoder)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """The greedy action with noise (E, A), or a uniformly random one during the warm-up."""
    noise_key, random_key = jax.random.split(key)
    action = policy(config, state, observation)
    action = jnp.clip(action + config.exploration_std * jax.random.normal(noise_key, action.shape), -1.0, 1.0)
    return uniform_before(config.learning_starts, step, action, random_key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The greedy action tanh(mean), (E, A)."""
    return function(state.policy_network)(state.actor, observation).mode()
