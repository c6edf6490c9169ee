"""The in-graph loop: collecting and learning inside one jitted, donated call per report, for environments in JAX."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from offpolicy_jax import replay as ring
from offpolicy_jax.environments.protocols import InGraphEnvironment
from offpolicy_jax.training import learner as learning
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent
from offpolicy_jax.training.learner import Learner
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition

IN_TURN_BYTES = 2**19, 2**26
"""Lanes whose agent's state has a size in this range run one after the other on a CPU: see `run_in_turn`.

experiments/results/lanes.json has the gain for SAC with two layers of 256 units (a state of 3 MB), 128 (0.8 MB) and 64
(0.2 MB); many small operations are better taken as one. Above the range, as with snapshots of thousands of learners,
copying a state out and in would cost too much. Lanes stay together where a device has more than two cores, which was
not measured, and in runs of several processes.
"""


@struct.dataclass
class Carry:
    """Everything that the loop changes."""

    learner: Learner
    environment: PyTree  # states of E environments
    observation: PyTree  # (E, ...)
    episode_return: jax.Array  # float32 (E,), of the episodes under way
    episode_length: jax.Array  # int32 (E,)
    finished: jax.Array  # float32 (3,): episodes, sum of returns, sum of lengths since the last report


AXES: Any = Carry(learner=learning.AXES, environment=0, observation=0, episode_return=0, episode_length=0, finished=0)  # type: ignore[arg-type]


def collect(agent: Agent, environment: InGraphEnvironment, config: Any, carry: Carry) -> Carry:
    """One step of E environments, added to replay."""
    learner = carry.learner
    normalizer = learner.replay.normalizer
    action, extras = learning.act(
        agent, config, learner.agent, normalizer, learner.keys, learner.step, carry.observation
    )
    state, step = jax.vmap(environment.step)(carry.environment, action)
    transition = Transition(
        observation=carry.observation,
        action=action,
        reward=step.reward,
        next_observation=step.next_observation,
        terminated=step.terminated,
        truncated=step.truncated,
        extras=extras,
    )
    done = step.terminated | step.truncated
    episode_return, episode_length = carry.episode_return + step.reward, carry.episode_length + 1
    replay = learning.add(agent, config, learner.replay, transition, learner.step)
    learner = replace(learner, replay=replay, step=learner.step + done.shape[0])
    ended = jnp.stack([done, done * episode_return, done * episode_length])
    return Carry(
        learner=learner,
        environment=state,
        observation=step.observation,
        episode_return=jnp.where(done, 0.0, episode_return),
        episode_length=jnp.where(done, 0, episode_length),
        finished=carry.finished + jnp.sum(ended, axis=1),
    )


def run(
    agent: Agent, environment: InGraphEnvironment, config: Any, carry: Carry, warmup: jax.Array, iterations: jax.Array
):
    """`warmup` iterations that only collect, then `iterations` that also learn; both counts are traced.

    Two loops rather than a branch in one: a `cond` that reads the replay inside a loop that writes it may copy it.
    """

    def rollout(carry: Carry) -> Carry:
        if config.rollout_length == 1:
            return collect(agent, environment, config, carry)
        step = lambda carry, _: (collect(agent, environment, config, carry), None)  # noqa: E731
        return jax.lax.scan(step, carry, length=config.rollout_length)[0]

    def iterate(_, carry: Carry) -> Carry:
        carry = rollout(carry)
        learner = carry.learner
        state, totals = learning.learn(
            agent, config, learner.agent, learner.totals, learner.replay, learner.keys, learner.step
        )
        return replace(carry, learner=replace(learner, agent=state, totals=totals))

    carry = jax.lax.fori_loop(0, warmup, lambda _, carry: rollout(carry), carry)
    return jax.lax.fori_loop(0, iterations, iterate, carry)


def run_in_turn(
    agent: Agent, environment: InGraphEnvironment, config: Any, carry: Carry, warmup: jax.Array, iterations: jax.Array
) -> Carry:
    """`run` for the lanes of a device, leaves (L, ...), one after the other.

    Where vmap takes every operation through all lanes, this keeps to the parameters and moments of one. What the lanes
    share, steps and the rings' positions, must come out of each turn alike: vmap refuses what does not, this cannot.
    """
    config_axes = seed_axis.config_axes(config)
    axes = replace(AXES, learner=replace(learning.AXES, replay=None))  # the rings go whole from turn to turn

    def turn(lane, now: Carry) -> Carry:
        now = seed_axis.with_shared(now, carry, AXES)  # each counts the same steps
        rings = now.learner.replay
        mine = seed_axis.of_lane(now, axes, lane)
        mine = replace(mine, learner=replace(mine.learner, replay=ring.of_lane(rings, lane)))
        mine = run(agent, environment, seed_axis.of_lane(config, config_axes, lane), mine, warmup, iterations)
        mine = replace(mine, learner=replace(mine.learner, replay=ring.with_lane(rings, mine.learner.replay)))
        return seed_axis.with_lane(now, mine, axes, lane)

    return jax.lax.fori_loop(0, carry.finished.shape[0], turn, carry)


def _take_turns(agent: Agent, config: Any, spec: EnvironmentSpec, num_devices: int) -> bool:
    """Whether lanes are faster one after the other than together, see `IN_TURN_BYTES`."""
    if jax.default_backend() != "cpu" or jax.process_count() > 1 or seed_axis.num_cores() > 2 * num_devices:
        return False  # several processes must not differ in it
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), np.float32) if np.ndim(x) else x, config)
    state = jax.eval_shape(lambda config: agent.init(config, spec, jax.random.key(0)), one)
    smallest, largest = IN_TURN_BYTES
    return smallest <= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) < largest


class Loop:
    """The in-graph loop of one agent, environment and set of seeds: compiled functions and nothing that changes."""

    def __init__(
        self,
        agent: Agent,
        environment: InGraphEnvironment,
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
        self._warmup = -(-getattr(config, "learning_starts", 0) // self.iteration_steps)
        axes = seed_axis.config_axes(config)
        self._config = self.lanes.place(config, axes)
        self._demonstrations = self.lanes.place(demonstrations, None)

        def begin(config, key, demonstrations):
            normalize, spec = (normalize_observations, normalize_rewards), environment.spec
            learner = learning.start(agent, config, spec, key, num_envs, *normalize, demonstrations, clip_rewards)
            state, observation = jax.vmap(environment.reset)(learning.reset_keys(key, num_envs))
            nothing = jnp.zeros(num_envs)
            return Carry(learner, state, observation, nothing, nothing.astype(jnp.int32), jnp.zeros(3))

        lift = self.lanes.lift
        self._begin = jax.jit(lift(begin, in_axes=(axes, 0, None), out_axes=AXES))
        one, several = (functools.partial(f, agent, environment) for f in (run, run_in_turn))
        several_per_device = self.lanes.padded > self.lanes.mesh.size
        self.in_turn = several_per_device and _take_turns(agent, config, environment.spec, self.lanes.mesh.size)
        of_several = several if self.in_turn else None
        self._run = jax.jit(lift(one, (axes, AXES, None, None), AXES, of_several=of_several), donate_argnums=1)

        def clear(totals, finished):
            return learning.clear_totals(totals), jnp.zeros_like(finished)

        axes = learning.TOTALS_AXES, 0
        self._clear = jax.jit(lift(clear, in_axes=axes, out_axes=axes))
        # A second or so: an update after a rollout of 64 steps counts as much as one after a single step, and lanes
        # follow each other on a CPU.
        lanes = self.lanes.padded if jax.default_backend() == "cpu" else 1
        self._iterations_per_call = max(1, 1_000 // (lanes * -(-self.iteration_steps // 64)))

    def start(self, keys: jax.Array, seeds: np.ndarray) -> Carry:
        """The carry before the first step, for keys (S,); seeds are unused in-graph."""
        return self._begin(self._config, self.lanes.place(keys), self._demonstrations)

    def advance(self, carry: Carry, steps: int, stop: Callable[[], bool]) -> Carry:
        """Run `steps` environment steps per seed, or fewer whole iterations if `stop()`. The carry is consumed."""
        done = int(carry.learner.step) // self.iteration_steps
        end = done + steps // self.iteration_steps
        while done < end and not stop():
            iterations = min(end - done, self._iterations_per_call)
            warmup = min(iterations, max(0, self._warmup - 1 - done))  # the iteration that ends the warm-up learns
            carry = self._run(self._config, carry, np.int32(warmup), np.int32(iterations - warmup))
            jax.block_until_ready(carry)
            done += iterations
        return carry

    def clear_totals(self, carry: Carry) -> Carry:
        """Start the totals anew, after a report."""
        totals, finished = self._clear(carry.learner.totals, carry.finished)
        return replace(carry, learner=replace(carry.learner, totals=totals), finished=finished)

    def save(self, carry: Carry) -> tuple[PyTree, dict[str, np.ndarray]]:
        """The carry as a pytree for the checkpoint, and no host arrays."""
        return self.lanes.take(carry, AXES), {}

    def load(self, carry: Carry, host: dict[str, np.ndarray]) -> Carry:
        """A carry as it was saved, back on the devices."""
        return self.lanes.place(carry, AXES)

    def close(self) -> None:
        """Nothing to free."""
