"""Compilation: a cache of compiled programs that lasts between runs, and a clock of what compiling took."""

import os
import pathlib

import jax


def enable_cache() -> None:
    """Keep compiled programs between processes, in JAX_COMPILATION_CACHE_DIR or the user's cache directory."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "offpolicy_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class Clock:
    """Seconds that JAX spent tracing, lowering and compiling (or loading from the cache) since this was made."""

    def __init__(self) -> None:
        if not _total:  # first use: start listening
            _total.append(0.0)
            jax.monitoring.register_event_duration_secs_listener(_listen)
        self._start = _total[0]

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return _total[0] - self._start


_total: list[float] = []


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        _total[0] += duration_secs
