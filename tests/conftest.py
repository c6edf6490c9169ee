"""One compilation cache for all tests and the commands they start: most of their time would be compiling."""

import os
import pathlib
import tempfile

_CACHE = pathlib.Path(tempfile.gettempdir()) / f"offpolicy_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
