"""Evaluation in separate environments from fixed seeds, the same ones at every evaluation.

Returns are those of greedy actions. The value bias is that of sampled ones: it is what the critics predict.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax.diagnostics import value_bias
from offpolicy_jax.environments.protocols import HostEnvironment, InGraphEnvironment
from offpolicy_jax.normalization import normalize_observation, normalize_reward
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.learner import Learner
from offpolicy_jax.training.seeds import Lanes
from offpolicy_jax.transition import PyTree

Policy = Callable[[Any, Any, PyTree], jax.Array]

SEED = 2**30
"""The first seed of evaluation episodes, far from those that people train with."""
UNLIMITED_EPISODE_STEPS = 1_000
"""Evaluation episodes are cut here in environments that have no time limit: a greedy policy may never end one."""


def in_graph(policy: Policy, environment: InGraphEnvironment, config: Any, lanes: Lanes, episodes: int):
    """A function learner -> (returns, lengths), NumPy (S, episodes), for environments in JAX.

    `policy(config, state, observation)` is an agent's `policy` or `mixture_policy`; row e is episode e.
    """

    def evaluate(config, state, normalizer):
        def step(carry):
            env_state, observation, alive, returns, lengths = carry
            action = policy(config, state, normalize_observation(normalizer, observation))
            env_state, out = jax.vmap(environment.step)(env_state, action)
            returns, lengths = returns + jnp.where(alive, out.reward, 0.0), lengths + alive
            return env_state, out.observation, alive & ~(out.terminated | out.truncated), returns, lengths

        def unfinished(carry):
            alive, lengths = carry[2], carry[4]
            return jnp.any(alive & (lengths < _limit(environment)))

        env_state, observation = jax.vmap(environment.reset)(jax.random.split(jax.random.key(SEED), episodes))
        alive = jnp.ones(episodes, bool)
        carry = (env_state, observation, alive, jnp.zeros(episodes), jnp.zeros(episodes, jnp.int32))
        return jax.lax.while_loop(unfinished, step, carry)[3:]

    axes = seed_axis.config_axes(config)
    compiled = jax.jit(lanes.lift(evaluate, (axes, 0, 0), (0, 0)))
    config = lanes.place(config, axes)

    def run(learner: Learner) -> tuple[np.ndarray, np.ndarray]:
        returns, lengths = lanes.take(compiled(config, learner.agent, learner.replay.normalizer))
        return np.asarray(returns), np.asarray(lengths)

    return run


def host(policy: Policy, environment: HostEnvironment, config: Any, lanes: Lanes, episodes: int):
    """The same for a vector environment of S x episodes on the host."""

    def act(config, state, normalizer, observation):
        return policy(config, state, normalize_observation(normalizer, observation))

    axes = seed_axis.config_axes(config)
    compiled = jax.jit(lanes.lift(act, (axes, 0, 0, 0), 0))
    config = lanes.place(config, axes)
    shape = (lanes.count, episodes)
    split = functools.partial(jax.tree.map, lambda x: x.reshape(*shape, *x.shape[1:]))

    def run(learner: Learner) -> tuple[np.ndarray, np.ndarray]:
        observation = split(environment.reset(np.tile(SEED + np.arange(episodes), lanes.count)))
        alive, returns, lengths = np.ones(shape, bool), np.zeros(shape), np.zeros(shape, int)
        while (alive & (lengths < _limit(environment))).any():
            action = compiled(config, learner.agent, learner.replay.normalizer, lanes.pad(observation))
            action = np.asarray(lanes.take(action))
            observation, _, reward, terminated, truncated = map(
                split, environment.step(action.reshape(-1, *action.shape[2:]))
            )
            returns, lengths = returns + np.where(alive, reward, 0.0), lengths + alive
            alive = alive & ~(terminated | truncated)
        return returns, lengths

    return run


def value_bias_in_graph(agent: Any, environment: InGraphEnvironment, config: Any, lanes: Lanes, episodes: int):
    """A function learner -> (bias, mean prediction), NumPy (S,), in units of reward: see `diagnostics.value_bias`."""

    def rollout(config, state, normalizer):
        def step(carry, key):
            env_state, observation = carry
            action, value, bonus = agent.predict(config, state, normalize_observation(normalizer, observation), key)
            env_state, out = jax.vmap(environment.step)(env_state, action)
            ended = out.terminated | out.truncated
            reward = normalize_reward(normalizer, out.reward)
            return (env_state, out.observation), (value, reward, bonus, out.terminated, ended)

        begun = jax.vmap(environment.reset)(jax.random.split(jax.random.key(SEED), episodes))
        return jax.lax.scan(step, begun, _action_keys(environment))[1]

    axes = seed_axis.config_axes(config)
    compiled = jax.jit(lanes.lift(rollout, (axes, 0, 0), 0))
    placed = lanes.place(config, axes)

    def run(learner: Learner) -> tuple[np.ndarray, np.ndarray]:
        taken = map(np.asarray, lanes.take(compiled(placed, learner.agent, learner.replay.normalizer)))
        return _bias(config, *(np.moveaxis(x, 1, 0) for x in taken))  # (S, T, E) -> (T, S, E)

    return run


def value_bias_host(agent: Any, environment: HostEnvironment, config: Any, lanes: Lanes, episodes: int):
    """The same for a vector environment of S x episodes on the host."""

    def predict(config, state, normalizer, observation, key):
        return agent.predict(config, state, normalize_observation(normalizer, observation), key)

    axes = seed_axis.config_axes(config)
    compiled = jax.jit(lanes.lift(predict, (axes, 0, 0, 0, None), 0))
    placed = lanes.place(config, axes)
    scale = jax.jit(lanes.lift(normalize_reward, (0, 0), 0))
    shape = (lanes.count, episodes)
    split = functools.partial(jax.tree.map, lambda x: x.reshape(*shape, *x.shape[1:]))

    def run(learner: Learner) -> tuple[np.ndarray, np.ndarray]:
        normalizer, taken = learner.replay.normalizer, []
        observation = split(environment.reset(np.tile(SEED + np.arange(episodes), lanes.count)))
        alive = np.ones(shape, bool)
        for key in _action_keys(environment):
            predicted = compiled(placed, learner.agent, normalizer, lanes.pad(observation), key)
            action, value, bonus = map(np.asarray, lanes.take(predicted))
            observation, _, reward, terminated, truncated = map(
                split, environment.step(action.reshape(-1, *action.shape[2:]))
            )
            taken.append((value, reward, bonus, terminated, terminated | truncated))
            alive = alive & ~taken[-1][-1]
            if not alive.any():
                break
        value, reward, *rest = (np.stack(x) for x in zip(*taken, strict=True))
        reward = lanes.pad(np.moveaxis(reward, 0, 1))  # (S, T, E): one call for all steps
        reward = np.asarray(lanes.take(scale(normalizer, reward)))
        return _bias(config, value, np.moveaxis(reward, 1, 0), *rest)

    return run


def _action_keys(environment: InGraphEnvironment | HostEnvironment) -> jax.Array:
    """A key per step, apart from those of the resets."""
    return jax.random.split(jax.random.fold_in(jax.random.key(SEED), 1), _limit(environment))


def _bias(config: Any, value, reward, bonus, terminated, ended) -> tuple[np.ndarray, np.ndarray]:
    """The diagnostic of the first episodes in (T, S, E), in units of reward before `reward_scale`."""
    length = np.where(ended.any(axis=0), ended.argmax(axis=0) + 1, len(ended))
    scale = np.asarray(getattr(config, "reward_scale", 1.0))
    scale = scale.reshape(*scale.shape, *[1] * (length.ndim - scale.ndim))
    return value_bias(value / scale, reward, bonus / scale, terminated, length, config.discount)


def _limit(environment: InGraphEnvironment | HostEnvironment) -> int:
    return environment.spec.max_episode_steps or UNLIMITED_EPISODE_STEPS
