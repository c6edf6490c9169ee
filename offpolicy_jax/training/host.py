"""The host loop: the environments of all seeds are one NumPy vector environment; acting, adding and learning are
each one jitted call for all seeds.

The action for the next observation is dispatched before the update that follows the current one, so that environment
stepping and Python run while the device learns: the policy that acts is one update older than in the in-graph loop.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from offpolicy_jax import replay as ring
from offpolicy_jax.environments.protocols import HostEnvironment
from offpolicy_jax.training import learner as learning
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent
from offpolicy_jax.training.learner import Learner
from offpolicy_jax.transition import PyTree, Transition


@struct.dataclass
class Carry:
    """Everything that the loop changes, but for the environments themselves."""

    learner: Learner
    observation: PyTree  # NumPy, (S, E, ...)
    action: jax.Array  # (S, E, ...): chosen for `observation`, not yet taken
    extras: dict[str, Any]
    episode_return: np.ndarray  # float64 (S, E), of the episodes under way
    episode_length: np.ndarray  # int64 (S, E)
    finished: np.ndarray  # float64 (S, 3): episodes, sum of returns, sum of lengths since the last report


AXES: Any = Carry(
    learner=learning.AXES,
    **dict.fromkeys(("observation", "action", "extras", "episode_return", "episode_length", "finished"), 0),  # type: ignore[arg-type]
)


class Loop:
    """The host loop of one agent, vector environment and set of seeds. Only the environment has hidden state."""

    def __init__(
        self,
        agent: Agent,
        environment: HostEnvironment,
        config: Any,
        num_lanes: int,
        num_envs: int,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        demonstrations: Transition | None = None,
        clip_rewards: bool = False,
    ):
        self.lanes = seed_axis.lanes(num_lanes)
        self.axes = AXES
        self.iteration_steps = config.rollout_length * num_envs
        self._environment = environment
        self._shape = (num_lanes, num_envs)
        self._rollout_length = config.rollout_length
        self._warmup = getattr(config, "learning_starts", 0)
        axes = seed_axis.config_axes(config)
        self._config = self.lanes.place(config, axes)
        self._demonstrations = self.lanes.place(demonstrations, None)

        def start(config, key, demonstrations):
            normalize, spec = (normalize_observations, normalize_rewards), environment.spec
            return learning.start(agent, config, spec, key, num_envs, *normalize, demonstrations, clip_rewards)

        def act(config, state, normalizer, keys, step, observation):
            return learning.act(agent, config, state, normalizer, keys, step, observation)

        def add(config, replay, transition, step):
            return learning.add(agent, config, replay, transition, step)

        def learn(config, state, totals, replay, keys, step):
            return learning.learn(agent, config, state, totals, replay, keys, step)

        lift = self.lanes.lift
        replay_axes, totals_axes = ring.SEED_AXES, learning.TOTALS_AXES
        self._start = jax.jit(lift(start, in_axes=(axes, 0, None), out_axes=learning.AXES))
        self._act = jax.jit(lift(act, in_axes=(axes, 0, 0, 0, None, 0), out_axes=(0, 0)))
        self._add = jax.jit(lift(add, in_axes=(axes, replay_axes, 0, None), out_axes=replay_axes), donate_argnums=1)
        self._learn = jax.jit(
            lift(learn, in_axes=(axes, 0, totals_axes, replay_axes, 0, None), out_axes=(0, totals_axes)),
            donate_argnums=(1, 2),
        )

        self._clear = jax.jit(lift(learning.clear_totals, in_axes=(totals_axes,), out_axes=totals_axes))

    def start(self, keys: jax.Array, seeds: np.ndarray) -> Carry:
        """The carry before the first step, for keys (S,) and integer seeds (S,) of the environments."""
        learner = self._start(self._config, self.lanes.place(keys), self._demonstrations)
        observation = self._environment.reset(environment_seeds(seeds, self._shape[1]))
        return self._begin(learner, observation, np.zeros((self.lanes.padded, 3)))

    def advance(self, carry: Carry, steps: int, stop: Callable[[], bool]) -> Carry:
        """Run `steps` environment steps per seed, or fewer whole iterations if `stop()`. The carry is consumed."""
        learner, observation, action, extras = carry.learner, carry.observation, carry.action, carry.extras
        episode_return, episode_length, finished = carry.episode_return, carry.episode_length, carry.finished
        num_envs, start = self._shape[1], int(learner.step)
        agent, totals, replay, keys = learner.agent, learner.totals, learner.replay, learner.keys
        step = start
        while step - start < steps and not (stop() and (step - start) % self.iteration_steps == 0):
            taken = self._environment.step(self._join(action))
            next_observation, successor, reward, terminated, truncated = self._split(taken)
            before, step = step, step + num_envs
            transition = Transition(observation, action, reward, successor, terminated, truncated, extras)
            action, extras = self._act(self._config, agent, replay.normalizer, keys, np.int32(step), next_observation)
            replay = self._add(self._config, replay, transition, np.int32(before))
            if step >= self._warmup and step % self.iteration_steps == 0:
                agent, totals = self._learn(self._config, agent, totals, replay, keys, np.int32(step))
            observation = next_observation
            episode_return, episode_length = episode_return + reward, episode_length + 1
            done = np.logical_or(terminated, truncated)
            if done.any():
                finished = finished + np.stack(
                    [done.sum(1), (episode_return * done).sum(1), (episode_length * done).sum(1)], axis=1
                )
                episode_return, episode_length = episode_return * ~done, episode_length * ~done
        learner = replace(learner, agent=agent, totals=totals, replay=replay, step=jnp.asarray(step, jnp.int32))
        jax.block_until_ready(learner)
        return Carry(learner, observation, action, extras, episode_return, episode_length, finished)

    def clear_totals(self, carry: Carry) -> Carry:
        """Start the totals anew, after a report."""
        learner = replace(carry.learner, totals=self._clear(carry.learner.totals))
        return replace(carry, learner=learner, finished=np.zeros_like(carry.finished))

    def save(self, carry: Carry) -> tuple[PyTree, dict[str, np.ndarray]]:
        """The carry as a pytree for the checkpoint, and the environments' state as host arrays."""
        return self.lanes.take(carry, AXES), self._environment.get_state()

    def load(self, carry: Carry, host: dict[str, np.ndarray]) -> Carry:
        """A carry as it was saved, with the environments put back where they were.

        Environments that cannot be saved exactly (Box2D) start new episodes, with a warning.
        """
        self._environment.set_state(host)
        learner = self.lanes.place(carry.learner, learning.AXES)
        action, extras = self.lanes.place((carry.action, carry.extras))
        carry = self.lanes.pad(jax.tree.map(np.asarray, replace(carry, learner=None, action=None, extras=None)))
        carry = replace(carry, learner=learner, action=action, extras=extras)
        if self._environment.exact_resume:
            return carry
        warnings.warn("this environment cannot be saved within an episode: new episodes begin", stacklevel=2)
        return self._begin(learner, self._environment.observation, carry.finished)

    def close(self) -> None:
        """Close the environments."""
        self._environment.close()

    def _begin(self, learner: Learner, observation: PyTree, finished: np.ndarray) -> Carry:
        """A carry at the beginning of episodes."""
        observation, step = self._split(observation), np.int32(learner.step)
        normalizer = learner.replay.normalizer
        action, extras = self._act(self._config, learner.agent, normalizer, learner.keys, step, observation)
        nothing = np.zeros((self.lanes.padded, self._shape[1]))
        return Carry(learner, observation, action, extras, nothing, nothing.astype(np.int64), finished)

    def _split(self, tree: PyTree) -> PyTree:
        """Leaves (S * E, ...) as (S, E, ...), padded: the copies have no environments of their own."""
        return self.lanes.pad(jax.tree.map(lambda x: x.reshape(*self._shape, *x.shape[1:]), tree))

    def _join(self, action: jax.Array) -> np.ndarray:
        """Actions (S, E, ...) as those of the environments, (S * E, ...)."""
        return np.asarray(self.lanes.take(action)).reshape(-1, *action.shape[2:])


def environment_seeds(seeds: np.ndarray, num_envs: int) -> np.ndarray:
    """Integers (S * E,) to seed host environments: of each seed and environment alone, whatever their number."""
    pairs = [(int(seed), env) for seed in seeds for env in range(num_envs)]
    return np.array([np.random.SeedSequence(pair).generate_state(1)[0] >> 1 for pair in pairs], np.int64)
