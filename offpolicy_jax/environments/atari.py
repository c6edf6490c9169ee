"""Atari 2600 games, `ALE/<Game>-v5`, through ale-py and Gymnasium's own preprocessing, on the host.

Observations are (84, 84, 4) uint8: grey, the maximum of the last two frames of each step, resized by area, the last
four steps stacked, oldest first. `ale_py` and OpenCV are imported inside the functions.
"""

import dataclasses
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from offpolicy_jax.environments import host_state
from offpolicy_jax.environments.host import LoopedEnvironment, Single
from offpolicy_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How Atari games are played: by default as in Dopamine and Machado et al. 2018, the paper that v5 ids follow."""

    frame_skip: int = 4
    """Frames that each action lasts."""
    frame_stack: int = 4
    """Steps whose pictures an observation shows."""
    sticky_actions: float = 0.25
    """Chance, at each frame, that the emulator repeats its last action; 0 in the NoFrameskip-v4 ids."""
    noop_max: int = 0
    """Up to so many idle frames at the beginning of an episode: 30 in Mnih et al. 2015, instead of sticky actions."""
    max_frames: int = 108_000
    """Frames until an episode is truncated, half an hour of play; with `life_loss`, those of one life."""
    life_loss: bool = False
    """End an episode at the loss of a life, after which the game goes on; evaluations, films and recordings show whole
    games."""
    full_action_space: bool = False
    """All 18 actions, rather than those that have a meaning in the game."""
    screen_size: int = 84
    """Height and width of the pictures."""


DOPAMINE = Conventions()


def whole_games(conventions: Conventions) -> Conventions:
    """The same, but that a lost life ends nothing."""
    return dataclasses.replace(conventions, life_loss=False)


def check(conventions: Conventions) -> None:
    """Raises UserError, one line, for conventions under which nothing can be played."""
    limits = {"frame_skip": (1, 255), "frame_stack": (1, 255), "sticky_actions": (0, 1), "noop_max": (0, 10_000)}
    limits |= {"max_frames": (conventions.frame_skip, 2**31 - 1), "screen_size": (8, 512)}
    for name, (low, high) in limits.items():
        value = getattr(conventions, name)
        if not low <= value <= high:
            raise UserError(f"--atari.{name.replace('_', '-')} must be from {low} to {high}, not {value}")


def make_atari(id: str, num_envs: int, conventions: Conventions) -> LoopedEnvironment:
    """N copies of a game. Raises UserError where ale-py is missing."""
    check(conventions)
    try:
        import ale_py
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(f"{id} needs ale-py and OpenCV: pip install 'offpolicy-jax[atari]' ({error})") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    return LoopedEnvironment(id, [_Atari(id, conventions) for _ in range(num_envs)])


def known_atari_ids() -> list[str]:
    """Ids of `ALE/<Game>-v5`, where ale-py is installed."""
    try:
        import ale_py
    except ImportError:
        return []
    gymnasium.register_envs(ale_py)
    return [id for id in gymnasium.registry if id.startswith("ALE/")]


class _Atari(Single):
    def __init__(self, id: str, conventions: Conventions) -> None:
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        options: dict[str, Any] = {
            "frameskip": 1,  # AtariPreprocessing skips
            "repeat_action_probability": conventions.sticky_actions,
            "full_action_space": conventions.full_action_space,
            "max_num_frames_per_episode": None,  # the loop counts
        }
        try:
            game: Any = gymnasium.make(id, disable_env_checker=True, **options).unwrapped
        except (gymnasium.error.Error, TypeError) as error:
            raise UserError(f"cannot make {id}: {' '.join(str(error).split())}") from error
        self._game = game
        self._pictures = AtariPreprocessing(
            game,
            noop_max=conventions.noop_max,
            frame_skip=conventions.frame_skip,
            screen_size=conventions.screen_size,
            terminal_on_life_loss=conventions.life_loss,
        )
        self._stack: Any = FrameStackObservation(self._pictures, conventions.frame_stack)
        self._life_lost = False  # in the last step, and with it the episode, but not the game
        size, self.frames = conventions.screen_size, conventions.frame_stack
        self.observation_space = spaces.Box(0, 255, (size, size, conventions.frame_stack), np.uint8)
        self.action_space = game.action_space
        self.max_episode_steps = conventions.max_frames // conventions.frame_skip
        self.frames_per_second = 60.0 / conventions.frame_skip

    @property
    def generator(self) -> np.random.Generator:
        """Of the idle frames; the emulator's own is in its state."""
        return self._game.np_random

    def reset(self, seed: int | None) -> np.ndarray:
        if self._life_lost and seed is None:
            self._life_lost = False
            picture = self._pictures.step(0)[0]  # idle, as in the public wrappers
            if not self._game.ale.game_over():
                self._stack.obs_queue.extend([picture] * self.frames)
                return np.moveaxis(np.stack(self._stack.obs_queue), 0, -1)
        return np.moveaxis(self._stack.reset(seed=seed)[0], 0, -1)

    def step(self, action: int) -> tuple[np.ndarray, Any, bool, bool, None]:
        stack, reward, terminated, truncated, _ = self._stack.step(action)
        self._life_lost = terminated and not self._game.ale.game_over()
        return np.moveaxis(stack, 0, -1), reward, terminated, truncated, None

    def render(self) -> np.ndarray:
        """The emulator's screen."""
        return self._game.ale.getScreenRGB()

    def close(self) -> None:
        self._game.close()

    def get_state(self) -> tuple[dict[str, Any], bool]:
        emulator = self._game.ale.cloneState(include_rng=True).serialize()
        content = {
            "generator": host_state.get_generator(self.generator),
            "emulator": host_state.encode(np.frombuffer(emulator, np.uint8)),
            "pictures": host_state.encode(
                [self._pictures.obs_buffer, self._pictures.lives, list(self._stack.obs_queue)]
            ),
        }
        return content, True

    def set_state(self, content: dict[str, Any], exact: bool) -> None:
        import ale_py

        host_state.set_generator(self.generator, content["generator"])
        if exact:
            emulator = host_state.decode(content["emulator"]).tobytes()
            self._game.ale.restoreState(ale_py.ALEState(emulator))
            self._pictures.obs_buffer, self._pictures.lives, queue = host_state.decode(content["pictures"])
            self._stack.obs_queue.extend(queue)
