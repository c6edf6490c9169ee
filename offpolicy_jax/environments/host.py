"""Gymnasium and dm_control on the host: N environments in one process, stepped together with NumPy arrays.

A plain loop, because a step is short: HalfCheetah takes 30 microseconds, and two threads take longer over a batch than
one. (They pay off from Humanoid upwards, but there they would compete with the learner for the same cores.)
"""

import contextlib
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing

from offpolicy_jax.environments import host_state, rendering
from offpolicy_jax.environments.protocols import Step
from offpolicy_jax.environments.spaces import action_spec, first_action, observation_spec
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree

# MuJoCo and dm_control are imported inside the functions: listing or making other environments must not load them.


def make_host(
    id: str,
    num_envs: int,
    max_episode_steps: int | None = None,
    pixels: int | None = None,
    action_repeat: int = 1,
) -> "LoopedEnvironment":
    """Build N copies of a Gymnasium id or of `dm_control/<domain>-<task>-v0`.

    `max_episode_steps` replaces the registered time limit; with `pixels`, which MuJoCo's pictures are wide and high,
    the copies can be drawn. Each step takes `action_repeat` of the environment's own; a time limit that is no multiple
    of it is rounded down. Raises UserError for an id that cannot be made (or drawn) here and for unsupported spaces.
    """
    make_one = _Suite if id.startswith("dm_control/") else _Gymnasium
    with _without_deprecations(id):
        return LoopedEnvironment(id, [make_one(id, pixels) for _ in range(num_envs)], max_episode_steps, action_repeat)


@contextlib.contextmanager
def _without_deprecations(id: str) -> Iterator[None]:
    """MuJoCo 3.17 warns, per copy and in a log file, of attributes in the model files that Gymnasium ships."""
    registered = gymnasium.registry.get(id)
    if not (registered and "mujoco" in str(registered.entry_point)):
        yield
        return
    try:
        mujoco = host_state.load_mujoco()
    except ImportError:  # Gymnasium says what to install
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: "deprecated" in text or print(f"MuJoCo: {text}", file=sys.stderr))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def known_host_ids() -> list[str]:
    """Ids that `make_host` knows: Gymnasium's registry, and the dm_control suite where it is installed."""
    ids = [id for id in gymnasium.registry if not id.startswith(("phys2d/", "tabular/", "dm_control/"))]
    try:
        tasks = _suite().ALL_TASKS
    except ImportError:
        tasks = ()
    return ids + [f"dm_control/{domain}-{task}-v0" for domain, task in tasks]


class LoopedEnvironment:
    """N single environments as one `HostEnvironment`. Build it with `make_host`.

    Returned arrays are new at every step and belong to the caller (JAX may read them later), but where no episode has
    ended, `Step.observation` and `Step.next_observation` are the same object.

    A resumed run continues its episodes bit for bit for MuJoCo (Gymnasium's and dm_control's) and for environments
    whose state is plain numbers and arrays (classic control, toy text), and for Atari. Others (Box2D) cannot be
    captured: there `set_state` restores the random generators and starts new episodes. `exact_resume` tells which.
    """

    observation: PyTree
    """The observation to act on next, as returned last."""

    def __init__(
        self, id: str, environments: list["Single"], max_episode_steps: int | None = None, action_repeat: int = 1
    ) -> None:
        first = environments[0]
        self.num_envs = len(environments)
        observation = observation_spec(id, first.observation_space)
        if any(leaf.dtype == np.uint8 for leaf in jax.tree.leaves(observation)):
            frames = first.frames if first.get_state()[1] else 0  # a resumed run would break episodes off
            observation = jax.tree.map(lambda leaf: replace(leaf, frames=frames), observation)
        self._uncut = any(leaf.frames for leaf in jax.tree.leaves(observation) if leaf.dtype == np.uint8)
        limit = max_episode_steps or first.max_episode_steps
        if action_repeat < 1 or action_repeat > (limit or action_repeat):
            most = f"from 1 to {limit}" if limit else "at least 1"
            raise UserError(f"--action-repeat of {id} must be {most}, not {action_repeat}")
        self.spec = EnvironmentSpec(
            id=id,
            observation=observation,
            action=action_spec(id, first.action_space),
            max_episode_steps=limit and limit // action_repeat,
            action_repeat=action_repeat,
        )
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.observation = None
        self._environments = environments
        self._steps = [_repeated(environment.step, action_repeat) for environment in environments]
        self._limit = self.spec.max_episode_steps or math.inf
        self._elapsed = [0] * self.num_envs
        self._to_space = _action_map(self.spec.action, first.action_space, self.num_envs)
        leaves, self._structure = jax.tree.flatten(self.spec.observation)
        self._leaves = _leaf_getter(self.spec.observation)
        self._layout = [((self.num_envs, *leaf.shape), leaf.dtype) for leaf in leaves]
        # Before a first episode, which may change the models.
        self._physics = None
        if first.model is not None:
            models, datas = [e.model for e in environments], [e.data for e in environments]
            self._physics = host_state.Physics(models, datas)

    @property
    def exact_resume(self) -> bool:
        """Whether `set_state` continues the episodes, rather than starting new ones."""
        return all(environment.get_state()[1] for environment in self._environments)

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Start N episodes, environment i from `seeds[i]`. Returns observations (N, ...)."""
        seeds = np.asarray(seeds)
        if seeds.shape != (self.num_envs,):
            raise ValueError(f"seeds have shape {seeds.shape}, expected {(self.num_envs,)}")
        return self._reset_all([int(seed) for seed in seeds])

    def step(self, actions: np.ndarray, hold: np.ndarray | None = None) -> Step:
        """Advance all environments one step with actions (N, A) in [-1, 1] (clipped to it), or (N,) integers.

        Where `hold` (N,) is true an environment stays as it is, with reward 0.
        """
        held = () if hold is None else np.flatnonzero(hold).tolist()
        rows = self._to_space(actions)
        elapsed, limit, leaves = self._elapsed, self._limit, self._leaves
        buffers = [np.empty(shape, dtype) for shape, dtype in self._layout]
        reward = np.empty(self.num_envs, np.float32)
        terminated = np.zeros(self.num_envs, bool)
        truncated = np.zeros(self.num_envs, bool)
        ended = []
        for i, step in enumerate(self._steps):
            if i in held:
                for buffer, leaf in zip(buffers, jax.tree.leaves(self.observation), strict=True):
                    buffer[i] = leaf[i]
                reward[i] = 0.0
                continue
            observation, reward[i], terminal, cut, _ = step(rows[i])
            for buffer, leaf in zip(buffers, leaves(observation), strict=True):
                buffer[i] = leaf
            elapsed[i] += 1
            if terminal:
                terminated[i] = True
                ended.append(i)
            elif cut or elapsed[i] >= limit:
                truncated[i] = True
                ended.append(i)
                if self._uncut and elapsed[i] < limit < math.inf:
                    raise UserError(
                        f"{self.spec.id} was truncated after {elapsed[i]} steps, before its limit of {limit}"
                    )
        next_observation = self.observation = jax.tree.unflatten(self._structure, buffers)
        if ended:
            buffers = [buffer.copy() for buffer in buffers]
            for i in ended:
                self._begin(i, None, buffers)
            self.observation = jax.tree.unflatten(self._structure, buffers)
        return Step(self.observation, next_observation, reward, terminated, truncated)

    @property
    def frames_per_second(self) -> float:
        """Steps in a second of the environment's time."""
        return self._environments[0].frames_per_second / self.spec.action_repeat

    def render(self) -> np.ndarray:
        """A picture of the first environment, uint8 (height, width, 3). Raises UserError if it cannot be drawn here."""
        return self._environments[0].render()

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the future depends on, as arrays. Raises ValueError before the first reset."""
        if self.observation is None:
            raise ValueError("reset the environment before saving it")
        captured = [environment.get_state() for environment in self._environments]
        document = {
            "id": self.spec.id,
            "action_repeat": self.spec.action_repeat,
            "exact": all(complete for _, complete in captured),
            "elapsed": self._elapsed,
            "environments": [content for content, _ in captured],
            "layout": self._physics.layout() if self._physics else None,
        }
        state = {"environments": host_state.to_bytes(document)}
        for i, leaf in enumerate(jax.tree.leaves(self.observation)):
            state[f"observation_{i}"] = leaf.copy()
        return state | (self._physics.get_state() if self._physics else {})

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `get_state()`; `observation` is then the one to act on next.

        Raises UserError for the state of another environment, action repeat, number of environments or version of
        MuJoCo, and ValueError where the physics have lost their float64.
        """
        state = {name: np.asarray(array) for name, array in state.items()}
        document = host_state.from_bytes(state["environments"])
        saved = document["id"], len(document["elapsed"])
        if saved != (self.spec.id, self.num_envs):
            raise UserError(f"the saved state is of {saved[1]} x {saved[0]}, not {self.num_envs} x {self.spec.id}")
        if (repeat := document.get("action_repeat", 1)) != self.spec.action_repeat:  # once, none was saved
            raise UserError(f"the saved state is of action repeat {repeat}, not {self.spec.action_repeat}")
        if self._physics:
            self._physics.check(state, document["layout"])
        for environment, content in zip(self._environments, document["environments"], strict=True):
            environment.set_state(content, exact=document["exact"])
        if not document["exact"]:
            self._reset_all([None] * self.num_envs)
            return
        if self._physics:
            self._physics.set_state(state)
        self._elapsed = list(document["elapsed"])
        leaves = [state[f"observation_{i}"].copy() for i in range(len(self._layout))]
        self.observation = jax.tree.unflatten(self._structure, leaves)

    def close(self) -> None:
        """Free what the environments hold."""
        for environment in self._environments:
            environment.close()

    def _reset_all(self, seeds: list[int] | list[None]) -> PyTree:
        buffers = [np.empty(shape, dtype) for shape, dtype in self._layout]
        for i, seed in enumerate(seeds):
            self._begin(i, seed, buffers)
        self.observation = jax.tree.unflatten(self._structure, buffers)
        return self.observation

    def _begin(self, i: int, seed: int | None, buffers: list[np.ndarray]) -> None:
        observation = self._environments[i].reset(seed)
        for buffer, leaf in zip(buffers, self._leaves(observation), strict=True):
            buffer[i] = leaf
        self._elapsed[i] = 0


class Single:
    """One environment of a backend: what the loop and the saving need of it."""

    observation_space: spaces.Space
    action_space: spaces.Space
    max_episode_steps: int | None = None
    frames: int = 1  # that the last axis of pixels stacks
    step: Callable[[Any], tuple[Any, Any, bool, bool, Any]]  # observation, reward, terminated, truncated, ignored
    model: Any = None  # of MuJoCo, if the state is in there
    data: Any = None
    layers: list[Any]  # objects whose attributes may be state
    frames_per_second: float = 30.0

    @property
    def generator(self) -> Any:
        """The random generator of later episodes."""
        raise NotImplementedError

    def reset(self, seed: int | None) -> Any:
        """Start an episode, from a seed or from the generator as it is. Returns the observation."""
        raise NotImplementedError

    def render(self) -> np.ndarray:
        """A picture, uint8 (height, width, 3)."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what it holds."""

    def get_state(self) -> tuple[dict[str, Any], bool]:
        """State outside the physics as JSON values, and whether it is complete."""
        captured = [host_state.get_attributes(layer) for layer in self.layers]
        content = {"generator": host_state.get_generator(self.generator), "layers": [c for c, _ in captured]}
        return content, all(complete for _, complete in captured)

    def set_state(self, content: dict[str, Any], exact: bool) -> None:
        """Put back what `get_state` took; without `exact` the generator only."""
        host_state.set_generator(self.generator, content["generator"])
        if exact:
            for layer, attributes in zip(self.layers, content["layers"], strict=True):
                host_state.set_attributes(layer, attributes)


class _Gymnasium(Single):
    def __init__(self, id: str, pixels: int | None = None) -> None:
        options = rendering.gymnasium_options(id, pixels) if pixels else {}
        try:
            environment = gymnasium.make(id, disable_env_checker=True, max_episode_steps=-1, **options)
        except gymnasium.error.DependencyNotInstalled as error:
            raise rendering.missing(id, error) if pixels else _cannot_make(id, error) from error
        except (gymnasium.error.Error, ImportError) as error:  # unknown, deprecated, or needs a package that is absent
            raise _cannot_make(id, error) from error
        inner = environment.unwrapped
        if inner.spec is not None:  # which lacks the limit; the registry's has it
            self.max_episode_steps = gymnasium.registry[inner.spec.id].max_episode_steps
        if isinstance(environment, OrderEnforcing):  # the loop keeps the order itself; this saves a call per step
            environment = environment.env
        self.observation_space, self.action_space = environment.observation_space, environment.action_space
        self.step = environment.step
        self.layers = [environment]
        while isinstance(self.layers[-1], gymnasium.Wrapper):
            self.layers.append(self.layers[-1].env)
        if host_state.is_mujoco(inner):
            self.model, self.data = cast(Any, inner).model, cast(Any, inner).data
        self.frames_per_second = environment.metadata.get("render_fps", self.frames_per_second)
        if pixels:
            rendering.square_screen(inner)
        self._id, self._environment = id, environment

    @property
    def generator(self) -> np.random.Generator:
        return self._environment.unwrapped.np_random

    def reset(self, seed: int | None) -> Any:
        return self._environment.reset(seed=seed)[0]

    def render(self) -> np.ndarray:
        try:
            return np.asarray(self._environment.render())
        except gymnasium.error.DependencyNotInstalled as error:
            raise rendering.missing(self._id, error) from error

    def close(self) -> None:
        self._environment.close()


class _Suite(Single):
    def __init__(self, id: str, pixels: int | None = None) -> None:
        match = re.fullmatch(r"dm_control/(\w+)-(\w+)-v0", id)
        try:
            suite = _suite()
        except ImportError as error:
            raise UserError(f"{id} needs dm_control; install it with `pip install dm-control`") from error
        if match is None or match.groups() not in suite.ALL_TASKS:
            raise UserError(f"unknown environment {id}; dm_control ids look like dm_control/cartpole-swingup-v0")
        # Seeded because a constructor may draw the system itself, which must be the same one for every copy.
        environment = suite.load(*match.groups(), task_kwargs={"random": 0})
        # The loop counts instead, so that an episode that fails in its last step is terminated.
        limit, environment._step_limit = environment._step_limit, math.inf
        self.max_episode_steps = None if math.isinf(limit) else math.ceil(limit)
        actions = environment.action_spec()
        self.action_space = spaces.Box(actions.minimum, actions.maximum, actions.shape, actions.dtype)
        self.observation_space = spaces.Dict(
            {
                name: spaces.Box(-np.inf, np.inf, array.shape or (1,), np.float32)
                for name, array in environment.observation_spec().items()
            }
        )
        self.model, self.data = environment.physics.model.ptr, environment.physics.data.ptr
        self.layers = [environment, environment.task]
        from dm_control.rl.control import PhysicsError

        self._id, self._fatal, self._diverged = id, host_state.load_mujoco().FatalError, PhysicsError
        self._environment = environment
        self.frames_per_second = 1.0 / environment.control_timestep()
        self._viewer = rendering.Viewer(self.model, self.data, pixels) if pixels else None

    @property
    def generator(self) -> np.random.RandomState:
        return self._environment.task.random

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, None]:
        try:
            step = self._environment.step(action)
        except self._diverged as error:
            raise UserError(f"the physics of {self._id} diverged: {' '.join(str(error).split())}") from error
        last = step.last()
        return step.observation, step.reward, last and step.discount == 0, last, None

    def reset(self, seed: int | None) -> Any:
        if seed is not None:
            self._environment.task._random = np.random.RandomState(seed)
        try:
            return self._environment.reset().observation
        except self._fatal as error:  # quadruped-escape uploads its terrain to the renderer
            raise UserError(
                f"{self._id} needs OpenGL to start an episode; set the environment variable MUJOCO_GL to egl or osmesa"
            ) from error

    def render(self) -> np.ndarray:
        assert self._viewer is not None
        return self._viewer.render()

    def close(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
        self._environment.close()


def _repeated(step: Callable[[Any], Any], times: int) -> Callable[[Any], Any]:
    """The step of one environment, so many times with the same action or until the episode ends; rewards summed."""

    def repeated(action: Any) -> Any:
        total = 0.0
        for _ in range(times):
            observation, reward, terminated, truncated, _ = step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, None

    return step if times == 1 else repeated


def _cannot_make(id: str, error: Exception) -> UserError:
    return UserError(f"cannot make {id}: {' '.join(str(error).split())}")


def _suite() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it looks for a display to render on, and warns if there is none
        from dm_control import suite
    return suite


def _action_map(spec: ArraySpec, space: Any, num_envs: int) -> Callable[[Any], Any]:
    """From a batch of our actions ([-1, 1] or integers from 0) to a sequence of the environment's own."""
    shape = (num_envs, *spec.shape)

    def check(actions: np.ndarray) -> np.ndarray:
        if actions.shape != shape:
            raise ValueError(f"actions have shape {actions.shape}, expected {shape}")
        return actions

    if spec.num_values is not None:
        start, own_shape = first_action(space), space.shape
        if own_shape:  # one integer in an array
            return lambda actions: list((check(np.asarray(actions)) + start).reshape(num_envs, *own_shape))
        return lambda actions: [start + action for action in check(np.asarray(actions)).tolist()]

    dtype = space.dtype
    low, high = space.low, space.high
    # fmin and fmax turn a NaN into a bound: a diverged policy is reported by its losses, not by the physics.
    # The middle-and-half form is exact at 0 and, for symmetric bounds, at both ends.
    middle, half = (low + high) / dtype.type(2), (high - low) / dtype.type(2)
    if np.all(middle == 0) and np.all(half == 1):
        return lambda actions: np.fmin(np.fmax(check(np.asarray(actions, dtype)), low), high)
    one = dtype.type(1)
    return lambda actions: middle + np.fmin(np.fmax(check(np.asarray(actions, dtype)), -one), one) * half


def _leaf_getter(spec: PyTree) -> Callable[[Any], Any]:
    """A function from one observation to its leaves, in the order of `jax.tree.leaves(spec)`."""
    if isinstance(spec, ArraySpec):
        return lambda observation: (observation,)
    items = sorted(spec.items()) if isinstance(spec, dict) else enumerate(spec)
    parts = [(key, _leaf_getter(part)) for key, part in items]
    return lambda observation: [leaf for key, part in parts for leaf in part(observation[key])]
