"""What both training loops share: the learner's record, its start, one update with running totals of its metrics."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from offpolicy_jax import replay as ring
from offpolicy_jax.normalization import Normalizer, normalize_observation
from offpolicy_jax.replay import Replay
from offpolicy_jax.training.agent import Agent, Metrics
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition, example_transition, zeros

_INIT, _RESET, _ACT, _UPDATE = range(4)  # purposes of a seed's keys


@struct.dataclass
class Totals:
    """Sums since the last report, one set per seed."""

    metrics: Metrics
    updates: jax.Array  # int32 (), shared by the seeds
    diverged_at: jax.Array  # int32 (): the first step with a metric that is not finite, or -1


@struct.dataclass
class Keys:
    """A seed's keys, one per purpose. They never change: a draw folds in the step, so a resumed run draws the same."""

    act: jax.Array
    update: jax.Array


@struct.dataclass
class Learner:
    """Agent, replay and counters of all seeds (a seed axis on every leaf but `step` and the replay's scalars)."""

    agent: Any
    replay: Replay
    keys: Keys
    step: jax.Array  # int32 (): environment steps per seed so far, shared by the seeds
    totals: Totals


TOTALS_AXES: Any = Totals(metrics=0, updates=None, diverged_at=0)  # type: ignore[arg-type]
AXES: Any = Learner(agent=0, replay=ring.SEED_AXES, keys=0, step=None, totals=TOTALS_AXES)  # type: ignore[arg-type]


def start(
    agent: Agent,
    config: Any,
    spec: EnvironmentSpec,
    key: jax.Array,
    num_envs: int,
    normalize_observations: bool,
    normalize_rewards: bool,
    demonstrations: Transition | None = None,
    clip_rewards: bool = False,
) -> Learner:
    """One seed's learner before its first step."""
    state = agent.init(config, spec, jax.random.fold_in(key, _INIT))
    step = jnp.zeros((), jnp.int32)
    observations = zeros(spec.observation, (num_envs,))
    _, extras = jax.eval_shape(lambda: agent.act(config, state, observations, step, key))
    extras = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), extras)
    on_policy = hasattr(config, "buffer_length")
    replay = ring.init(
        config.buffer_length * num_envs if on_policy else config.replay_capacity,
        example_transition(spec, extras),
        num_envs,
        spec=None if hasattr(agent, "retain") else spec,  # a ring that forgets keeps pixels whole
        normalize_observations=normalize_observations,
        normalize_rewards=normalize_rewards,
        discount=getattr(config, "discount", 0.99),
        clip_rewards=clip_rewards,
        demonstrations=demonstrations,
    )
    _, metrics = jax.eval_shape(lambda: agent.update(config, state, replay, step, key))
    totals = Totals(
        metrics=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics),
        updates=jnp.zeros((), jnp.int32),
        diverged_at=jnp.full((), -1, jnp.int32),
    )
    keys = Keys(act=jax.random.fold_in(key, _ACT), update=jax.random.fold_in(key, _UPDATE))
    return Learner(agent=state, replay=replay, keys=keys, step=step, totals=totals)


def act(
    agent: Agent,
    config: Any,
    state: Any,
    normalizer: Normalizer | None,
    keys: Keys,
    step: jax.Array,
    observation: PyTree,
) -> tuple[jax.Array, dict[str, Any]]:
    """Behaviour at a step, from raw observations: actions and extras."""
    observation = normalize_observation(normalizer, observation)
    return agent.act(config, state, observation, step, jax.random.fold_in(keys.act, step))


def add(agent: Any, config: Any, replay: Replay, transition: Transition, step: jax.Array) -> Replay:
    """Store a transition of E environments, leaves (E, ...), that was taken after `step` steps."""
    if hasattr(agent, "retain"):
        replay = agent.retain(config, replay, step)
    return ring.add(replay, jax.tree.map(lambda x: x[None], transition))


def learn(
    agent: Agent, config: Any, state: Any, totals: Totals, replay: Replay, keys: Keys, step: jax.Array
) -> tuple[Any, Totals]:
    """One update of one seed, its metrics added to the totals."""
    state, metrics = agent.update(config, state, replay, step, jax.random.fold_in(keys.update, step))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(metrics)]))
    totals = replace(
        totals,
        metrics=jax.tree.map(jnp.add, totals.metrics, metrics),
        updates=totals.updates + 1,
        diverged_at=jnp.where(~finite & (totals.diverged_at < 0), step, totals.diverged_at),
    )
    return state, totals


def reset_keys(key: jax.Array, num_envs: int) -> jax.Array:
    """A seed's keys (E,) for the environments' first resets."""
    return jax.random.split(jax.random.fold_in(key, _RESET), num_envs)


def clear_totals(totals: Totals) -> Totals:
    """Totals of nothing, after a report."""
    cleared = jax.tree.map(jnp.zeros_like, totals)
    return replace(cleared, diverged_at=jnp.full_like(totals.diverged_at, -1))
