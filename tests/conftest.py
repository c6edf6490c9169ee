"""A compilation cache for each test process and the commands it starts: most of their time would be compiling.

Not one for all: JAX writes its entries in place, so a process may read what another has half written, and crash.
"""

import os
import pathlib
import tempfile

_BASE = os.environ.setdefault(
    "OFFPOLICY_JAX_TEST_CACHE",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/offpolicy_jax_tests_{os.getuid()}"),
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(_BASE) / os.environ.get("PYTEST_XDIST_WORKER", "main"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
