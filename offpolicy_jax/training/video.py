"""Films of policies: one environment, played from stated seeds and drawn without a window, as GIF or MP4."""

import importlib.util
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from offpolicy_jax import environments
from offpolicy_jax.environments.atari import Conventions
from offpolicy_jax.errors import UserError
from offpolicy_jax.training.evaluation import UNLIMITED_EPISODE_STEPS
from offpolicy_jax.transition import PyTree

FASTEST = 30.0
"""Frames per second; environments with shorter steps are drawn every second, third, ... step, in their own time."""


def film(
    path: str | os.PathLike[str],
    policy: Callable[[PyTree], Any],
    env: str,
    *,
    episodes: int = 1,
    seed: int = 0,
    max_steps: int | None = None,
    pixels: int = 320,
    atari: Conventions | None = None,
    action_repeat: int = 1,
) -> list[float]:
    """Write episodes of `env`, the first one from `seed`, the next from `seed` + 1, ..., and return their returns.

    `policy` takes observations (1, ...) to actions (1, ...), as `training.greedy` does. A frame shows the state before
    an action and is `pixels` long on its longer side. `max_steps` cuts episodes, and their returns, short. Raises
    UserError if the environment cannot be drawn here, or the file not written.
    """
    path = pathlib.Path(path)
    check(path, pixels)
    stage, returns = _Stage(env, pixels, atari, action_repeat), []
    limit = stage.spec.max_episode_steps or UNLIMITED_EPISODE_STEPS
    every = max(1, round(stage.frames_per_second / FASTEST))
    choose = jax.jit(policy)

    def frames() -> Iterator[np.ndarray]:
        for episode in range(episodes):
            observation = stage.reset(seed + episode)
            returns.append(0.0)
            for t in range(min(limit, max_steps or limit)):
                if t % every == 0:
                    yield _fit(stage.draw(observation), pixels)
                taken = stage.step(np.asarray(choose(observation)))
                observation = taken.observation
                returns[-1] += float(taken.reward[0])
                if taken.terminated[0] or taken.truncated[0]:
                    if stage.draws_observations:
                        yield _fit(stage.draw(taken.next_observation), pixels)
                    break

    try:
        _write(path, frames(), stage.frames_per_second / every)
    finally:
        stage.close()
    return returns


def check(path: str | os.PathLike[str], pixels: int = 320) -> None:
    """Raises UserError for a name or size that `film` could not write."""
    path = pathlib.Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise UserError(f"{path} is neither a .gif nor an .mp4: name one")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError("MP4 needs ffmpeg: pip install 'offpolicy-jax[video]', or write a .gif, which needs nothing")
    if not 16 <= pixels <= 2048:
        raise UserError(f"the size of a picture must be from 16 to 2048 pixels, not {pixels}")


def check_drawing(env: str, atari: Conventions | None = None, action_repeat: int = 1) -> None:
    """Raises UserError if the environment cannot be drawn here; draws one frame."""
    stage = _Stage(env, 64, atari, action_repeat)
    try:
        stage.draw(stage.reset(0))
    finally:
        stage.close()


class _Stage:
    """One environment of either kind, with a leading axis of 1 on everything, that can be drawn."""

    def __init__(self, env: str, pixels: int, atari: Conventions | None, action_repeat: int):
        environment: Any = environments.make(env, 1, atari, action_repeat)
        self.draws_observations = hasattr(environment, "picture")
        if not self.draws_observations and not env.startswith("ALE/"):  # the emulator always has its screen
            from offpolicy_jax.environments.host import make_host

            # Gymnasium's in-graph ones are drawn by their host form.
            environment = make_host(env, 1, pixels=pixels, action_repeat=action_repeat)
        if self.draws_observations:
            self._begin, self._step = jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(environment.step))
        self.spec, self.frames_per_second = environment.spec, environment.frames_per_second
        self._environment, self._state = environment, None

    def reset(self, seed: int) -> PyTree:
        if not self.draws_observations:
            return self._environment.reset(np.array([seed]))
        self._state, observation = self._begin(jax.random.key(seed)[None])
        return jax.tree.map(np.asarray, observation)

    def step(self, action: np.ndarray) -> Any:
        if not self.draws_observations:
            return self._environment.step(action)
        self._state, taken = self._step(self._state, action)
        return jax.tree.map(np.asarray, taken)

    def draw(self, observation: PyTree) -> np.ndarray:
        if self.draws_observations:
            return self._environment.picture(jax.tree.map(lambda x: x[0], observation))
        try:
            return self._environment.render()
        except UserError:
            raise
        except Exception as error:  # OpenGL's bindings raise what they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot draw {self.spec.id}: {reason}; is MUJOCO_GL set to what works here?") from error

    def close(self) -> None:
        if not self.draws_observations:
            self._environment.close()


def _fit(frame: np.ndarray, pixels: int) -> np.ndarray:
    """The frame with its longer side scaled to `pixels`, both even, which MP4 needs; few pixels stay sharp squares."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = pixels / max(height, width)
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    if size == (width, height):
        return frame
    resampling = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, resampling))


def _write(path: pathlib.Path, frames: Iterator[np.ndarray], frames_per_second: float) -> None:
    """Write the film in one step: a file that is there before is replaced only by a complete one."""
    from PIL import Image

    aside = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gif":
            pictures = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
            hundredths = max(2, round(100.0 / frames_per_second))  # GIF's unit; browsers slow down at less than 2
            first = next(pictures)
            first.save(aside, save_all=True, append_images=pictures, duration=10 * hundredths, loop=0)
        else:
            import imageio.v2

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")  # the child is ffmpeg at once
                with imageio.v2.get_writer(aside, fps=frames_per_second, macro_block_size=2) as writer:
                    for frame in frames:
                        writer.append_data(frame)  # type: ignore[attr-defined]
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
