"""DAC (Kostrikov et al. 2019, arXiv 1809.02925): equations in offpolicy_jax/losses/dac.py; any off-policy agent learns.

Order of one update: as many discriminator steps as the learner takes gradient steps, then the learner's update on the
replay seen through the newest rewards. The paper's learner is TD3, and it updates after each episode as often as that
had steps; here it is SAC (or `learner`) and the updates are spread over the steps. `--absorbing-states` adds what the
paper has for tasks that end by failure or success (section 4.2).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents import dsac_t, mdpo, pmoe, sac
from offpolicy_jax import networks, parameters
from offpolicy_jax.environments.absorbing import without_absorbed_action
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import dac as losses
from offpolicy_jax.networks import Activation, Discriminator, Encoder, Params, function, pairs
from offpolicy_jax.replay import Replay, relabel, sample, sample_demonstrations, steps_per_update
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition

DEMONSTRATIONS = True
LEARNERS: dict[str, Any] = {"sac": sac, "dsac_t": dsac_t, "pmoe": pmoe, "mdpo": mdpo}
"""Off-policy agents for continuous actions that rewards can be learned for; what acts is `state.actor`."""
Learner = Literal["sac", "dsac_t", "pmoe", "mdpo"]
SAC: TypeAlias = sac.Config
DSACT: TypeAlias = dsac_t.Config
PMOE: TypeAlias = pmoe.Config
MDPO: TypeAlias = mdpo.Config
DSACT_QUICK = dsac_t.PRESETS["quick"]


@struct.dataclass
class Config:
    """Hyper-parameters of DAC. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    learning_rate: float = 1e-3
    """Adam's step size for the discriminator."""
    gradient_penalty: float = 10.0
    """lambda, the weight of the gradient penalty."""
    reward: Literal["logit", "positive"] = struct.field(pytree_node=False, default="logit")
    """r = D, or -log(1 - sigma(D)), which is never negative."""
    learner: Learner = struct.field(pytree_node=False, default="sac")
    """The agent that learns from the rewards; its hyper-parameters are those of config.sac, config.dsac_t, ..."""
    sac: SAC = SAC()
    """SAC's, if it is the learner."""
    dsac_t: DSACT = DSACT_QUICK
    """DSAC-T's (its preset quick), if it is the learner."""
    pmoe: PMOE = PMOE()
    """PMOE's, if it is the learner."""
    mdpo: MDPO = MDPO()
    """MDPO's, if it is the learner."""
    discriminator_hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    """Units of the discriminator's hidden layers."""
    discriminator_activation: Activation = struct.field(pytree_node=False, default="tanh")
    """Nonlinearity of its hidden layers."""
    discriminator_batch_size: int = struct.field(pytree_node=False, default=256)
    """Expert's and replayed pairs in a discriminator step, each."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed; the learner's own number does not count."""
    learning_starts: int = struct.field(pytree_node=False, default=1_000)
    """Steps by the learner's warm-up policy before learning; the learner's own number does not count."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates; the learner's own number does not count."""

    @property
    def discount(self) -> Any:
        """The learner's."""
        return learner_of(self)[1].discount


@struct.dataclass
class State:
    """Everything that learning changes."""

    learner: Any  # the learner's State
    discriminator: Params
    optimizer: optax.OptState  # of the discriminator
    network: Discriminator = struct.field(pytree_node=False)
    encoder: Encoder = struct.field(pytree_node=False)


def discriminator_step(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    config: Any,
    state: Any,
    expert: Transition,
    other: Transition,
    key: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
    """One Adam step on `loss(D(expert), D(other))` and the penalty between the pairs (B, ...) of both."""
    d = function(state.network)
    expert_pairs, other_pairs = discriminator_input(state, expert), discriminator_input(state, other)
    mix = jax.random.uniform(key, (expert_pairs.shape[0], 1))
    between = mix * expert_pairs + (1.0 - mix) * other_pairs

    def total(discriminator):
        of_expert, of_other = d(discriminator, expert_pairs), d(discriminator, other_pairs)
        slope = jax.grad(lambda x: jnp.sum(d(discriminator, x)))(between)
        penalty = losses.gradient_penalty(slope)
        value = loss(of_expert, of_other)
        metrics = {
            "discriminator/loss": value,
            "discriminator/penalty": penalty,
            "discriminator/margin": jnp.mean(of_expert) - jnp.mean(of_other),
        }
        return value + config.gradient_penalty * penalty, metrics

    gradients, metrics = jax.grad(total, has_aux=True)(state.discriminator)
    discriminator, optimizer = parameters.adam_step(
        gradients, state.optimizer, state.discriminator, config.learning_rate
    )
    return replace(state, discriminator=discriminator, optimizer=optimizer), metrics


def rewarder(state: Any, form: Callable[[jax.Array], jax.Array]) -> Callable[[PyTree, Transition], jax.Array]:
    """Rewards `form(D(s, a))` from the discriminator's parameters and transitions, for `replay.relabel`."""
    return lambda params, transition: form(function(state.network)(params, discriminator_input(state, transition)))


def discriminator_input(state: Any, transition: Transition) -> jax.Array:
    """What D sees of transitions: (..., width). No action in an absorbing state, where it does nothing."""
    action = without_absorbed_action(transition.observation, transition.action)
    return pairs(state.encoder, transition.observation, action)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Discriminator steps on fresh batches, then the learner's update with their rewards."""
    agent, learner_config = learner_of(config)
    steps = steps_per_update(replay, config.rollout_length, learner_config.gradient_steps)
    discriminator_key, learner_key = jax.random.split(key)

    def discriminate(state, key):
        expert_key, replay_key, mix_key = jax.random.split(key, 3)
        expert = sample_demonstrations(replay, expert_key, config.discriminator_batch_size)
        replayed = sample(replay, replay_key, config.discriminator_batch_size)
        return discriminator_step(losses.discriminator_loss, config, state, expert, replayed, mix_key)

    state, metrics = jax.lax.scan(discriminate, state, jax.random.split(discriminator_key, steps))
    seen = relabel(replay, rewarder(state, lambda d: losses.reward(d, config.reward)), state.discriminator)
    learner, learner_metrics = agent.update(learner_config, state.learner, seen, step, learner_key)
    return replace(state, learner=learner), jax.tree.map(jnp.mean, metrics) | learner_metrics


def learner_of(config: Any) -> tuple[Any, Any]:
    """The learner's module, and its config with the lengths and the warm-up of the whole."""
    lengths = {name: getattr(config, name) for name in ("replay_capacity", "learning_starts", "rollout_length")}
    return LEARNERS[config.learner], replace(getattr(config, config.learner), **lengths)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers. Raises UserError for discrete actions."""
    learner, discriminator, network, encoder = begin(config, spec, key, bounded=False)
    return State(learner, discriminator, parameters.adam_init(discriminator), network, encoder)


def begin(
    config: Any, spec: EnvironmentSpec, key: jax.Array, bounded: bool
) -> tuple[Any, Params, Discriminator, Encoder]:
    """The learner's first state, and the discriminator's parameters, network and encoder."""
    if spec.discrete:
        raise UserError(f"learned rewards need continuous actions and {spec.id} has discrete ones: use --agent=bc")
    agent, learner_config = learner_of(config)
    learner_key, key = jax.random.split(key)
    learner = agent.init(learner_config, spec, learner_key)
    encoder = networks.encoder(spec.observation)
    network = Discriminator(config.discriminator_hidden_sizes, bounded, activation=config.discriminator_activation)
    discriminator = network.init(key, jnp.zeros((1, sum(s.width for s in encoder) + spec.action_size)))
    return learner, discriminator, network, encoder


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """The learner's behaviour."""
    agent, learner_config = learner_of(config)
    return agent.act(learner_config, state.learner, observation, step, key)


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The (newest) learner's greedy action."""
    agent, learner_config = learner_of(config)
    return agent.policy(learner_config, state.learner, observation)
