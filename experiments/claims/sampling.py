"""What the claims about PROPS share: two tabular tasks, loops whose target policy is given, and sampling errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents import ppo, props
from offpolicy_jax import environments, parameters
from offpolicy_jax.diagnostics import last_layers, sampling_error, tabular_sampling_error
from offpolicy_jax.environments import Step
from offpolicy_jax.networks import Params, function
from offpolicy_jax.replay import SEED_AXES, chronological
from offpolicy_jax.training import host, in_graph, seeds
from offpolicy_jax.training.agent import resolve
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec

SIDE = 8
LINEAR = {"hidden_sizes": (), "kernel_init": "orthogonal"}


def _discrete(states: int, actions: int, id: str, limit: int) -> EnvironmentSpec:
    number = np.dtype(np.int32)
    return EnvironmentSpec(id, ArraySpec((), number, states), ArraySpec((), number, actions), limit)


@dataclasses.dataclass(frozen=True)
class GridWorld:
    """8 x 8 cells from one corner to the other: +1 at the goal, -1 for a bump, else -0.1, cut after 100 steps."""

    spec = _discrete(SIDE * SIDE, 4, "claims/GridWorld", 100)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        start = jnp.zeros((), jnp.int32)
        return (start, start), start

    def step(self, state: Any, action: jax.Array) -> tuple[Any, Step]:
        cell, time = state
        at = jnp.stack([cell // SIDE, cell % SIDE]) + jnp.array([[-1, 0], [1, 0], [0, -1], [0, 1]])[action]
        bump = jnp.any((at < 0) | (at >= SIDE))
        at = jnp.clip(at, 0, SIDE - 1)
        successor = (at[0] * SIDE + at[1]).astype(jnp.int32)
        terminated = successor == SIDE * SIDE - 1
        truncated = ~terminated & (time + 1 >= 100)
        ended = terminated | truncated
        reward = jnp.where(terminated, 1.0, jnp.where(bump, -1.0, -0.1))
        following = jnp.where(ended, 0, successor), jnp.where(ended, 0, time + 1)
        return following, Step(following[0], successor, reward, terminated, truncated)


@dataclasses.dataclass(frozen=True)
class TwoStep:
    """Two actions, one after the other: 0 then 0 returns 2, 0 then 1 returns 0.5, and 1 first returns 1."""

    spec = _discrete(2, 2, "claims/TwoStep", 2)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        start = jnp.zeros((), jnp.int32)
        return start, start

    def step(self, state: Any, action: jax.Array) -> tuple[Any, Step]:
        first = state == 0
        on = first & (action == 0)
        reward = jnp.where(first, jnp.where(on, 0.0, 1.0), jnp.where(action == 0, 2.0, 0.5))
        following = jnp.where(on, 1, 0).astype(jnp.int32)
        return following, Step(following, jnp.where(first, 1, 0).astype(jnp.int32), reward, ~on, jnp.zeros((), bool))


environments.register("claims/GridWorld", lambda num_envs: GridWorld())
environments.register("claims/TwoStep", lambda num_envs: TwoStep())


class Collection:
    """A run of PROPS on one environment per seed, to be advanced in pieces and looked at between them."""

    def __init__(self, config: props.Config, env: str, num_seeds: int, steps: int, target: Params | None = None):
        """`target` (seed axis on every leaf) takes the place of the first target policy."""
        environment = environments.make(env, num_seeds)
        config = resolve(config, environment.spec, steps)
        traced = jax.tree.map(lambda x: np.asarray(x, np.float32), config)
        loop = in_graph.Loop if environments.is_in_graph(environment) else host.Loop
        self.loop: Any = loop(props, environment, traced, num_seeds, 1)  # type: ignore[arg-type]
        self.carry = self.loop.start(seeds.keys(0, num_seeds), np.arange(num_seeds))
        if target is not None:
            self._replace(target)

    def _replace(self, policy: Params) -> None:
        learner = self.carry.learner
        policy, target = self.loop.lanes.place(policy), learner.agent.target
        target = dataclasses.replace(target, parameters=target.parameters | {"policy": parameters.copy(policy)})
        state = dataclasses.replace(learner.agent, target=target, behaviour=parameters.copy(policy))
        self.carry = dataclasses.replace(self.carry, learner=dataclasses.replace(learner, agent=state))

    def advance(self, steps: int) -> None:
        """Collect and learn for that many steps of every seed."""
        self.carry = self.loop.advance(self.carry, steps, lambda: False)

    @property
    def replay(self) -> Any:
        """The replay of all seeds."""
        return self.loop.lanes.take(self.carry.learner.replay, SEED_AXES)

    @property
    def target(self) -> Any:
        """PPO's state, of all seeds."""
        return self.loop.lanes.take(self.carry.learner.agent.target)


@jax.jit
def replay_errors(replay: Any, target: ppo.State) -> jax.Array:
    """Sampling error of every seed's replay against its target policy (S,), by the maximum-likelihood fit."""

    def one(storage: Any, normalizer: Any, target: ppo.State) -> jax.Array:
        data, valid = chronological(dataclasses.replace(replay, storage=storage, normalizer=normalizer))
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
        return policy_error(target, target.parameters["policy"], rows, valid.reshape(-1))

    return jax.vmap(one)(replay.storage, replay.normalizer, target)


def policy_error(state: ppo.State, policy: Params, data: Any, mask: jax.Array) -> jax.Array:
    """Sampling error of data (N, ...) against a policy of PPO's networks: all but the torso is free in the fit."""
    free, put_back = last_layers(policy)

    def log_prob(free: Params) -> jax.Array:
        return ppo.log_prob(function(state.policy_network)(put_back(free), data.observation), data)

    return sampling_error(log_prob, free, mask)


@jax.jit
def tabular_errors(replay: Any, target: ppo.State) -> jax.Array:
    """The same where observations and actions are integers, exactly."""
    network = target.policy_network
    states = network.encoder[0].num_values

    def one(storage: Any, policy: Params) -> jax.Array:
        data, valid = chronological(dataclasses.replace(replay, storage=storage))
        counts = jnp.zeros((states, network.num_actions)).at[data.observation, data.action].add(valid)
        return tabular_sampling_error(counts, function(network)(policy, jnp.arange(states)).log_probs())

    return jax.vmap(one)(replay.storage, target.parameters["policy"])
