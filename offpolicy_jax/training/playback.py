"""Policies of finished runs: restore a run's newest checkpoint, and roll one seed's policy out as whole episodes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import environments
from offpolicy_jax.demonstrations import Episode
from offpolicy_jax.environments.absorbing import with_indicator
from offpolicy_jax.environments.protocols import HostEnvironment, InGraphEnvironment
from offpolicy_jax.errors import UserError
from offpolicy_jax.normalization import Normalizer, normalize_observation
from offpolicy_jax.training import checkpoints, evaluation
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import Agent, resolve
from offpolicy_jax.training.learner import Learner
from offpolicy_jax.training.run_directory import RunDirectory
from offpolicy_jax.training.settings import Settings, make_environment
from offpolicy_jax.training.train import load_demonstrations, make_loop
from offpolicy_jax.transition import PyTree

_SEED = 2**29  # far from the seeds of training and evaluation


def restore(agent: Agent, settings: Settings, config: Any) -> tuple[Learner, Any]:
    """The learner of all seeds in the newest checkpoint of `settings.run_dir`, and the run's config, filled in.

    Raises UserError if there is none, or if settings and config give arrays of other shapes than the run's.
    """
    directory = RunDirectory(settings.run_dir or "")
    program = (directory.read_config() or {}).get("program")  # of a run that is one point of a sweep
    newest = checkpoints.newest(directory.path / program["checkpoints"] if program else directory.checkpoints)
    if newest is None:
        raise UserError(f"{settings.run_dir} has no checkpoint of a run")
    single = make_environment(settings)
    config = resolve(config, single.spec, settings.steps)
    loop, traced = make_loop(agent, settings, config, load_demonstrations(agent, settings, single), settings.seeds)
    seeds = np.arange(settings.seed, settings.seed + settings.seeds)
    carry = loop.start(seed_axis.keys(settings.seed, settings.seeds), seeds)
    like = loop.lanes.shapes(carry, loop.axes)
    lanes = (seed_axis.has_axis(loop.axes, like), program["lanes"]["first"]) if program else ()
    carry, _ = checkpoints.restore(newest, like, *lanes)
    loop.close()
    return carry.learner, traced


def greedy(
    agent: Agent, config: Any, learner: Learner, index: int, absorbing: bool = False
) -> Callable[[PyTree], jax.Array]:
    """The greedy policy of the seed at `index` as a function of observations (N, ...), as the environment gives them.

    Actions (N, ...) are in [-1, 1] or integers. Parameters and the normaliser's statistics are constants within it.
    `absorbing`: the agent observes whether it is in an absorbing state; here it never is.
    """
    config, state, normalizer = _of_seed(config, learner, index)

    return lambda observation: agent.policy(config, state, _seen(observation, normalizer, absorbing))


def _seen(observation: PyTree, normalizer: Normalizer | None, absorbing: bool) -> PyTree:
    """What the agent is given of observations (N, ...)."""
    if absorbing:
        copies = jax.tree.leaves(observation)[0].shape[0]
        observation = with_indicator(observation, jnp.zeros(copies, bool), jnp)
    return normalize_observation(normalizer, observation)


def _of_seed(config: Any, learner: Learner, index: int) -> tuple[Any, Any, Normalizer | None]:
    """Config, state and normaliser of one seed."""
    one = lambda tree: jax.tree.map(lambda x: x[index], tree)  # noqa: E731
    config = jax.tree.map(lambda x: x[index] if np.ndim(x) else x, config)
    return config, one(learner.agent), one(learner.replay.normalizer)


def rollouts(
    agent: Any,
    environment: Any,
    config: Any,
    learner: Learner,
    index: int,
    episodes: int,
    sampled: bool = False,
    absorbing: bool = False,
) -> list[Episode]:
    """Episodes of the seed at `index` in the learner, by greedy or sampled actions, from fixed starts.

    `environment` is in-graph, or a host environment of as many copies as episodes. `absorbing`: as for `greedy`.
    """
    config, state, normalizer = _of_seed(config, learner, index)

    @jax.jit
    def choose(observation, key):
        observation = _seen(observation, normalizer, absorbing)
        if sampled:
            return agent.act(config, state, observation, learner.step, key)[0]
        return agent.policy(config, state, observation)

    reset, advance = _functions(environment, episodes)
    observation, limit = reset(), environment.spec.max_episode_steps or evaluation.UNLIMITED_EPISODE_STEPS
    first, steps, alive = observation, [], np.ones(episodes, bool)
    for key in jax.random.split(jax.random.key(_SEED), limit):
        action = np.asarray(choose(observation, key))
        observation, successor, reward, terminated, truncated = advance(action)
        steps.append((action, successor, reward, terminated, alive))
        alive = alive & ~(terminated | truncated)
        if not alive.any():
            break
    actions, successors, rewards, terminated, lived = (
        jax.tree.map(lambda *x: np.stack(x), *column) for column in zip(*steps, strict=True)
    )
    found = []
    for i, length in enumerate(lived.sum(axis=0)):
        observations = jax.tree.map(
            lambda begin, later, i=i, n=length: np.concatenate([begin[i][None], later[:n, i]]), first, successors
        )
        action = np.clip(actions[:length, i], -1.0, 1.0) if actions.dtype.kind == "f" else actions[:length, i]
        found.append(Episode(observations, action, rewards[:length, i], bool(terminated[length - 1, i])))
    return found


def _functions(environment: InGraphEnvironment | HostEnvironment, episodes: int) -> Any:
    """`reset()` and `step(actions)` of so many copies, with NumPy arrays."""
    if not environments.is_in_graph(environment):
        return lambda: environment.reset(_SEED + np.arange(episodes)), environment.step
    begin, step = jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(environment.step))
    state: PyTree = None

    def reset():
        nonlocal state
        state, observation = begin(jax.random.split(jax.random.fold_in(jax.random.key(_SEED), 1), episodes))
        return jax.tree.map(np.asarray, observation)

    def advance(action):
        nonlocal state
        state, taken = step(state, action)
        return jax.tree.map(np.asarray, taken)

    return reset, advance
