"""Drawing environments without a window: which OpenGL MuJoCo draws with, and what is missing where it cannot."""

import functools
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np

from offpolicy_jax.errors import UserError

_BACKENDS = ("egl", "osmesa", "glfw")  # the first two need no display; the last one is all there is outside Linux
_PROBE = "import mujoco.{0} as gl; context = gl.GLContext(16, 16); context.make_current(); context.free()"


@functools.cache
def choose_opengl() -> str | None:
    """Name an OpenGL that works here in the environment variable MUJOCO_GL, unless it is set; returns its name.

    Each candidate is tried in a process of its own, because a failed one cannot be unloaded. Raises UserError if none
    works.
    """
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return os.environ.get("MUJOCO_GL")
    clean = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    for name in _BACKENDS:
        command = [sys.executable, "-W", "error", "-c", _PROBE.format(name)]
        if subprocess.run(command, env=clean | {"MUJOCO_GL": name}, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return name
    raise UserError(
        "MuJoCo finds no OpenGL to draw with: install Mesa's EGL or OSMesa (apt install libegl1 libgl1-mesa-dri, or "
        "libosmesa6), or set the environment variable MUJOCO_GL to egl, osmesa or glfw"
    )


def gymnasium_options(id: str, pixels: int) -> dict[str, Any]:
    """What `gymnasium.make` has to be told so that an environment can be drawn. Raises UserError if it cannot be."""
    spec = gymnasium.registry.get(id)
    if spec is None or "mujoco" not in str(spec.entry_point):
        if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame's, or it complains of having no display
        return {"render_mode": "rgb_array"}
    choose_opengl()
    return {"render_mode": "rgb_array", "width": pixels, "height": pixels}


def square_screen(environment: Any) -> None:
    """Give Gymnasium's in-graph pendulum a screen as large as what it draws, which its default cuts off."""
    size = getattr(getattr(getattr(environment, "func_env", None), "default_params", None), "screen_dim", None)
    if size is not None and environment.render_state is not None:
        environment.render_state = environment.func_env.render_init(size, size)


def missing(id: str, error: Exception) -> UserError:
    """What to say where drawing needs a package that is absent."""
    if "pygame" in str(error):
        return UserError(f"drawing {id} needs pygame: pip install 'offpolicy-jax[video]'")
    return UserError(f"cannot draw {id}: {' '.join(str(error).split())}")


class Viewer:
    """Draws a MuJoCo simulation, from its first camera if it has one.

    Gymnasium's viewer, for dm_control's simulations as well: it asks for OpenGL when it is made, where dm_control's
    own has settled on one when it was imported.
    """

    def __init__(self, model: Any, data: Any, pixels: int) -> None:
        choose_opengl()
        from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

        model.vis.global_.offwidth = model.vis.global_.offheight = pixels
        self._viewer = OffScreenViewer(model, data, pixels, pixels)
        self._camera = 0 if model.ncam else -1

    def render(self) -> np.ndarray:
        """The picture, uint8 (pixels, pixels, 3)."""
        return np.asarray(self._viewer.render("rgb_array", self._camera))

    def close(self) -> None:
        """Free the OpenGL context."""
        self._viewer.close()
