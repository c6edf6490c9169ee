"""Gymnasium's functional JAX environments (`phys2d/…`, `tabular/…`) as pure functions inside the graph.

Random numbers are split as Gymnasium splits them: `reset(jax.random.key(s))` and the steps after it, later episodes
included, are the trajectory of `gymnasium.make(id)` after `reset(seed=s)`.
"""

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
from flax import struct
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

from offpolicy_jax.environments.protocols import Step
from offpolicy_jax.environments.spaces import action_spec, observation_spec, to_space
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import EnvironmentSpec, PyTree


@struct.dataclass
class State:
    """State of one environment: what the functional environment keeps, the time limit's count, the next key."""

    inner: PyTree
    elapsed: jax.Array  # int32 (): steps since the episode began
    key: jax.Array  # typed key ()


@dataclasses.dataclass(frozen=True)
class FunctionalEnvironment:
    """A Gymnasium `FuncEnv` as an `InGraphEnvironment`. Build it with `make_in_graph` or `adapt`."""

    spec: EnvironmentSpec
    func_env: FuncEnv
    # Structure, shapes and dtypes of the inner state after a transition; the initial one is cast to them.
    inner_shape: PyTree = dataclasses.field(repr=False, compare=False)

    @property
    def observation_space(self) -> Any:
        """The environment's own observations."""
        return self.func_env.observation_space

    @property
    def action_space(self) -> Any:
        """The environment's own actions."""
        return self.func_env.action_space

    def reset(self, key: jax.Array) -> tuple[State, PyTree]:
        """Start an episode from a typed key. Returns (state, observation)."""
        now, later = jax.random.split(key)
        # By keyword here and by position in `step`, as Gymnasium calls them: environments differ in the names.
        inner = self._fixed(self.func_env.initial(rng=now))
        state = State(inner=inner, elapsed=jnp.zeros((), jnp.int32), key=later)
        return state, self._observation(inner, now)

    def step(self, state: State, action: jax.Array) -> tuple[State, Step]:
        """Advance one step; after an ending the returned state and `Step.observation` begin a new episode."""
        now, later = jax.random.split(state.key)
        action = to_space(action, self.func_env.action_space)
        inner = self._fixed(self.func_env.transition(state.inner, action, now))
        next_observation = self._observation(inner, now)
        reward = _scalar(self.func_env.reward(state.inner, action, inner, now), jnp.float32)
        terminated = _scalar(self.func_env.terminal(inner, now), jnp.bool_)
        elapsed = state.elapsed + 1
        limit = self.spec.max_episode_steps
        truncated = jnp.zeros((), jnp.bool_) if limit is None else ~terminated & (elapsed >= limit)

        successor = State(inner=inner, elapsed=elapsed, key=later), next_observation
        done = terminated | truncated
        state, observation = jax.tree.map(lambda a, b: jnp.where(done, a, b), self.reset(later), successor)
        return state, Step(observation, next_observation, reward, terminated, truncated)

    def _fixed(self, inner: PyTree) -> PyTree:
        return jax.tree.map(_fixed_leaf, inner, self.inner_shape)

    def _observation(self, inner: PyTree, key: jax.Array) -> PyTree:
        observation = self.func_env.observation(inner, key)
        return jax.tree.map(
            lambda s, x: jnp.asarray(x).astype(s.dtype).reshape(s.shape), self.spec.observation, observation
        )


def make_in_graph(id: str) -> FunctionalEnvironment:
    """Build a registered Gymnasium id that has a functional JAX form, with its registered time limit.

    Raises UserError for an id without such a form, with unsupported spaces, or that Gymnasium cannot make.
    """
    try:
        wrapped = gymnasium.make(id, disable_env_checker=True)
    except gymnasium.error.Error as error:
        raise UserError(f"cannot make {id}: {' '.join(str(error).split())}") from error
    limit = wrapped.spec.max_episode_steps if wrapped.spec else None
    environment = wrapped.unwrapped
    if not isinstance(environment, FunctionalJaxEnv):
        raise UserError(f"{id} has no functional JAX form; it runs on the host")
    # A func_env of our own: Gymnasium's vector form vmaps its methods in place, so an instance must not be shared.
    return adapt(id, environment.func_env, limit)


def adapt(id: str, func_env: FuncEnv, max_episode_steps: int | None = None) -> FunctionalEnvironment:
    """Adapt a `FuncEnv`, for example one with other parameters. Raises UserError for unsupported spaces."""
    spec = EnvironmentSpec(
        id=id,
        observation=observation_spec(id, func_env.observation_space),
        action=action_spec(id, func_env.action_space),
        max_episode_steps=max_episode_steps,
    )

    def after_one_step(key: jax.Array) -> PyTree:
        action = to_space(jnp.zeros(spec.action.shape, spec.action.dtype), func_env.action_space)
        return func_env.transition(func_env.initial(rng=key), action, key)

    return FunctionalEnvironment(spec, func_env, jax.eval_shape(after_one_step, jax.random.key(0)))


def _fixed_leaf(x: Any, target: jax.ShapeDtypeStruct) -> jax.Array:
    """`x` in the target's shape and dtype. Also drops weak types: a scan's carry must not change."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys have no other dtype to be cast to
        x = x.astype(target.dtype)
    return jnp.broadcast_to(x, target.shape)


def _scalar(x: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(x).astype(dtype).reshape(())
