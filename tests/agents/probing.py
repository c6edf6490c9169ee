"""What the tests of agents share: specs, a replay full of random experience, learning from it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.replay import Replay
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree, Transition, example_transition

_VECTOR = ArraySpec((3,), np.dtype(np.float32))
CONTINUOUS = EnvironmentSpec("test/Continuous-v0", _VECTOR, ArraySpec((2,), np.dtype(np.float32)), 20)
DISCRETE = EnvironmentSpec("test/Discrete-v0", _VECTOR, ArraySpec((), np.dtype(np.int32), num_values=4), 20)


def tiny(agent: Any, **changes: Any) -> Any:
    """A small config of any agent: the sizes that it has are cut, and `changes` made."""
    config = _cut(agent.Config())
    return config.replace(**changes)


def _cut(config: Any) -> Any:
    """The config, and those within it, at the sizes below."""
    sizes = {"hidden_sizes": (8,), "batch_size": 8, "replay_capacity": 32, "learning_starts": 0, "minibatches": 2}
    sizes |= {"value_minibatches": 2, "max_learners": 3, "learner_steps": 8, "training_steps": 8}
    sizes |= {"threshold_steps": 1, "num_tasks": 20, "lspi_transitions": 16}
    sizes |= {"discriminator_steps": 2, "discriminator_hidden_sizes": (8,), "discriminator_batch_size": 8}
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if hasattr(config, "buffer_length"):  # on-policy: a part's rollouts are longer than its owner's
        within = any(dataclasses.is_dataclass(x) for x in parts.values())
        sizes["rollout_length"] = 4 if within else 8
    inner = {name: _cut(x) for name, x in parts.items() if dataclasses.is_dataclass(x)}
    return config.replace(**{k: v for k, v in sizes.items() if k in parts} | inner)


def spec_of(agent: Any) -> EnvironmentSpec:
    """A spec that the agent accepts."""
    try:
        jax.eval_shape(lambda key: agent.init(tiny(agent), CONTINUOUS, key), jax.random.key(0))
    except UserError:
        return DISCRETE
    return CONTINUOUS


@functools.partial(jax.jit, static_argnums=(0, 2))
def start(agent: Any, config: Any, spec: EnvironmentSpec, key: jax.Array) -> Any:
    return agent.init(config, spec, key)


def full_replay(agent: Any, config: Any, spec: EnvironmentSpec, state: Any, num_envs: int = 2) -> Replay:
    """A full ring of random transitions whose actions and extras are the agent's own."""
    rows = -(-getattr(config, "replay_capacity", 32) // num_envs)
    rng = np.random.default_rng(0)
    observation, successor = rng.normal(size=(2, rows, num_envs, *spec.observation.shape)).astype(np.float32)
    act = jax.vmap(functools.partial(agent.act, config, state), in_axes=(0, None, 0))
    action, extras = jax.jit(act)(observation, jnp.int32(10**6), jax.random.split(jax.random.key(7), rows))
    example = example_transition(spec, jax.tree.map(lambda x: x[0, 0], extras))
    replay = ring.init(rows * num_envs, example, num_envs, demonstrations=demonstrations(spec))
    ending = rng.random((2, rows, num_envs)) < 0.2
    reward = rng.normal(size=(rows, num_envs)).astype(np.float32)
    return ring.add(replay, Transition(observation, action, reward, successor, ending[0], ending[1], extras))


def demonstrations(spec: EnvironmentSpec, rows: int = 12) -> Transition:
    """Random transitions, leaves (rows, ...)."""
    rng = np.random.default_rng(1)
    observation, successor = rng.normal(size=(2, rows, *spec.observation.shape)).astype(np.float32)
    if spec.discrete:
        action = rng.integers(spec.num_actions, size=rows).astype(np.int32)
    else:
        action = rng.uniform(-1.0, 1.0, (rows, *spec.action.shape)).astype(np.float32)
    ending = rng.random((2, rows)) < 0.2
    return Transition(observation, action, np.zeros(rows, np.float32), successor, *ending)


def random_experience(environment: Any, rows: int = 256, num_envs: int = 4) -> Replay:
    """A full ring of uniformly random behaviour in an in-graph environment, as it resets and goes on."""
    spec = environment.spec

    def step(carry, key):
        state, observation = carry
        shape = (num_envs, *spec.action.shape)
        if spec.discrete:
            action = jax.random.randint(key, shape, 0, spec.num_actions)
        else:
            action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        state, taken = jax.vmap(environment.step)(state, action)
        transition = Transition(
            observation, action, taken.reward, taken.next_observation, taken.terminated, taken.truncated
        )
        return (state, taken.observation), transition

    @jax.jit
    def collect(key):
        keys = jax.random.split(key, rows + 1)
        start = jax.vmap(environment.reset)(jax.random.split(keys[0], num_envs))
        _, transitions = jax.lax.scan(step, start, keys[1:])
        return ring.add(ring.init(rows * num_envs, example_transition(spec), num_envs), transitions)

    return collect(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def learn(agent: Any, config: Any, state: Any, replay: Replay, key: jax.Array, updates: jax.Array) -> Any:
    """The state after `updates` updates on a replay that stays as it is. Compiled once for all probes."""

    def update(i, state):
        return agent.update(config, state, replay, i, jax.random.fold_in(key, i))[0]

    return jax.lax.fori_loop(0, updates, update, state)


def branches(agent: Any, config: Any, states: Any, replay: Replay) -> int:
    """How many branches an update of two seeds takes at run time: `cond` on what differs by seed pays for all of them.

    `states` and the storage have a leading seed axis, what the seeds share has none.
    """

    def update(state, storage, key, step):
        return agent.update(config, state, dataclasses.replace(replay, storage=storage), step, key)

    lifted = jax.vmap(update, in_axes=(0, 0, 0, None))
    storage = jax.tree.map(lambda x: jnp.stack([x, x]), replay.storage)
    keys = jax.random.split(jax.random.key(0), 2)
    return str(jax.make_jaxpr(lifted)(states, storage, keys, jnp.int32(64))).count("cond[")


def assert_same(a: PyTree, b: PyTree) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a: PyTree, b: PyTree, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def differ(a: PyTree, b: PyTree) -> bool:
    """Whether any number differs."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(np.any(np.asarray(x) != np.asarray(y)) for x, y in pairs)
