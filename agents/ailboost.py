"""AILBoost (Chang et al. 2024, arXiv 2404.08513): equations in offpolicy_jax/losses/ailboost.py.

Time after the warm-up goes in rounds of n = `learner_steps` and m = `training_steps` environment steps of a seed:

    the policy as it is becomes learner t: a snapshot is kept, and it acts, unchanged, for n steps
    K = `discriminator_steps` on the expert's pairs and pairs of the learners, drawn by the learners' weights
    m steps of training by an off-policy agent, on rewards D and all the data in the replay, drawn uniformly

The replay holds the learners' data, n transitions each, and behind them those of the training under way, which the next
learner's overwrite. After the warm-up the first learner is an untrained policy, as in the released code. A learner goes
on in the episode that training left (that code begins a new one); on the host the first of its n actions is the
policy's before the last update. Observations are normalised, if at all, by today's moments, also for past learners.

That code takes one gradient step for two environment steps (preset `released`; the paper one for each), bounds D by
tanh (`bounded`), and evaluates an ensemble whose members are all the newest policy. Here the members are snapshots; the
mixture that is evaluated follows their greedy actions, while their data, and so d_T, come from sampled ones.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents import dac
from agents.dac import DSACT, DSACT_QUICK, MDPO, PMOE, SAC, Learner, discriminator_step, learner_of, rewarder
from offpolicy_jax import parameters
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import ailboost as losses
from offpolicy_jax.networks import Activation, Discriminator, Encoder, Params
from offpolicy_jax.replay import Replay, forget, relabel, sample_demonstrations, sample_sources, write_rows
from offpolicy_jax.transition import EnvironmentSpec, PyTree, example_transition

DEMONSTRATIONS = True


@struct.dataclass
class Config:
    """Hyper-parameters of AILBoost. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    alpha: float = 0.05
    """Weight of a new learner in the mixture; 1: the newest alone counts."""
    learning_rate: float = 1e-4
    """Adam's step size for the discriminator."""
    gradient_penalty: float = 10.0
    """lambda, the weight of the gradient penalty."""
    bounded: bool = struct.field(pytree_node=False, default=False)
    """Bound D, and with it the reward, to [-1, 1] by tanh, as the released code does."""
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
    max_learners: int = struct.field(pytree_node=False, default=100)
    """Learners whose policies and data are kept, which bounds the learner's replay too; the oldest stands for all that
    came before it (0.6 % with alpha 0.05)."""
    learner_steps: int = struct.field(pytree_node=False, default=1_000)
    """n: environment steps of a seed that a learner acts for: of whole episodes, if it is a multiple of their length
    times --num-envs (as the warm-up and m must be, then)."""
    training_steps: int = struct.field(pytree_node=False, default=1_000)
    """m: environment steps of a seed between learners."""
    discriminator_steps: int = struct.field(pytree_node=False, default=100)
    """K: steps of the discriminator per round."""
    discriminator_hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    """Units of the discriminator's hidden layers."""
    discriminator_activation: Activation = struct.field(pytree_node=False, default="relu")
    """Nonlinearity of its hidden layers."""
    discriminator_batch_size: int = struct.field(pytree_node=False, default=512)
    """Expert's and learners' pairs in a discriminator step, each."""
    learning_starts: int = struct.field(pytree_node=False, default=5_000)
    """Steps by the learner's warm-up policy before the first learner; they are forgotten then."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates; the learner's own number does not count."""

    @property
    def discount(self) -> Any:
        """The learner's."""
        return learner_of(self)[1].discount

    @property
    def replay_capacity(self) -> int:
        """Transitions: the data of all learners that are kept, and of one training or the warm-up, in whole blocks."""
        n = self.learner_steps
        return n * max(self.max_learners + -(-self.training_steps // n), -(-self.learning_starts // n))


_LARGE = {"hidden_sizes": (1024, 1024), "batch_size": 1024, "learning_rate": 1e-4}
PRESETS = {
    "paper": Config(sac=SAC(**_LARGE)),
    "released": Config(sac=SAC(gradient_steps=1, **_LARGE), bounded=True, rollout_length=2),
    "quick": Config(alpha=0.2, learning_rate=1e-3, learning_starts=1_000),
}
"""paper, released: for --action-repeat=2, as that code; without its 10 000 kept learners (--config.max-learners). Sizes
and rates of learning are SAC's; another learner keeps its own.

quick: for tens of rounds instead of thousands, and a short warm-up. With alpha 0.05 the first, untrained learner still
has a third of the mixture after 20 rounds.
"""


@struct.dataclass
class State:
    """Everything that learning changes."""

    learner: Any  # the learner's State
    snapshots: Params  # leaves (max_learners + 1, ...): `actor` of each learner kept, and of the one in training
    count: jax.Array  # int32 (): learners so far
    discriminator: Params
    optimizer: optax.OptState  # of the discriminator
    metrics: dict[str, jax.Array]  # of the discriminator's last steps and of the learner's last update
    network: Discriminator = struct.field(pytree_node=False)
    encoder: Encoder = struct.field(pytree_node=False)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Train the learner, or nothing while the newest acts, or the discriminator when it has acted for n steps."""
    unit = config.rollout_length * replay.num_envs
    for name in ("learner_steps", "training_steps", "learning_starts"):
        if getattr(config, name) % unit:
            raise UserError(f"config.{name} must be a multiple of the {unit} steps between updates")
    agent, learner_config = learner_of(config)
    n, period = config.learner_steps, config.learner_steps + config.training_steps
    discriminator_key, learner_key = jax.random.split(key)
    since = jnp.maximum(step - config.learning_starts, 0)
    count = -(-since // period)  # learners that act or have acted
    within = since - (count - 1) * period  # in (0, period], once there is a learner

    def discriminate(state, key):
        expert_key, age_key, row_key, mix_key = jax.random.split(key, 4)
        expert = sample_demonstrations(replay, expert_key, config.discriminator_batch_size)
        uniform = 1.0 - jax.random.uniform(age_key, (config.discriminator_batch_size,))
        source = count - 1 - losses.draw_ages(uniform, config.max_learners, count, config.alpha)
        mixture = sample_sources(replay, row_key, source, n)
        return discriminator_step(losses.discriminator_loss, config, state, expert, mixture, mix_key)

    def train_discriminator(state):
        state, metrics = jax.lax.scan(
            discriminate, state, jax.random.split(discriminator_key, config.discriminator_steps)
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["discriminator/kl_bound"] = 1.0 - metrics["discriminator/loss"]
        weights = losses.learner_weights(config.max_learners, count, config.alpha)
        metrics["discriminator/effective_learners"] = 1.0 / jnp.sum(jnp.square(weights))
        return replace(state, metrics=state.metrics | metrics)

    def train_learner(state):
        seen = relabel(replay, rewarder(state, lambda d: d), state.discriminator)
        own_steps = config.learning_starts + (count - 1) * config.training_steps + within - n
        learner, metrics = agent.update(learner_config, state.learner, seen, own_steps, learner_key)
        return replace(state, learner=learner, metrics=state.metrics | metrics)

    phase = jnp.where((count == 0) | (within < n), 0, jnp.where(within == n, 1, 2))
    branches = [lambda state: state, train_discriminator, train_learner]
    new = jax.lax.switch(phase, branches, replace(state, snapshots=None, count=count))
    # The last snapshot follows the actor until it begins to act: writing always is cheaper than a branch around it.
    slot = jnp.where(phase == 2, count, jnp.maximum(count - 1, 0)) % (config.max_learners + 1)
    actor = jax.tree.map(lambda x: x[None], new.learner.actor)
    return replace(new, snapshots=write_rows(state.snapshots, actor, slot)), new.metrics


def retain(config: Config, replay: Replay, step: jax.Array) -> Replay:
    """When a learner begins to act, what the warm-up or the training before it left is forgotten.

    In a full ring, of trainings longer than n, the rows beyond n can be drawn until they are overwritten.
    """
    since = step - config.learning_starts
    begins = (since >= 0) & (since % (config.learner_steps + config.training_steps) == 0)
    left = jnp.where(since == 0, config.learning_starts, config.training_steps) // replay.num_envs
    return forget(replay, jnp.where(begins, left, 0))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters, optimisers and snapshots. Raises UserError for discrete actions."""
    agent, learner_config = learner_of(config)
    learner, discriminator, network, encoder = dac.begin(config, spec, key, config.bounded)
    replay, step = ring.init(1, example_transition(spec)), jnp.zeros((), jnp.int32)
    _, metrics = jax.eval_shape(lambda: agent.update(learner_config, learner, replay, step, key))
    own = ("loss", "penalty", "margin", "kl_bound", "effective_learners")
    names = (*metrics, *(f"discriminator/{name}" for name in own))
    kept = config.max_learners + 1
    return State(
        learner=learner,
        snapshots=jax.tree.map(lambda x: jnp.zeros((kept, *x.shape), x.dtype).at[0].set(x), learner.actor),
        count=step,
        discriminator=discriminator,
        optimizer=parameters.adam_init(discriminator),
        metrics={name: jnp.zeros(()) for name in names},
        network=network,
        encoder=encoder,
    )


act, policy = dac.act, dac.policy  # of the newest learner


def mixture_policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The mixture: row e of E is one member's greedy action, drawn by the weights within the e-th of E equal strata.

    The draws are the same for all seeds. PMOE's greedy action asks today's critics, also for past learners.
    """
    agent, learner_config = learner_of(config)
    num = jax.tree.leaves(observation)[0].shape[0]
    within = jax.random.uniform(jax.random.fold_in(jax.random.key(0), state.count), (num,))
    age = losses.draw_ages(1.0 - (jnp.arange(num) + within) / num, config.max_learners, state.count, config.alpha)
    slot = jnp.maximum(state.count - 1 - age, 0) % (config.max_learners + 1)

    def member(actor, observation):
        one = jax.tree.map(lambda x: x[None], observation)
        return agent.policy(learner_config, replace(state.learner, actor=actor), one)[0]

    return jax.vmap(member)(jax.tree.map(lambda x: x[slot], state.snapshots), observation)
