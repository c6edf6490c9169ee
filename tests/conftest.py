"""What every test process needs: a compilation cache of its own, and compiled programs that do not pile up."""

import gc
import os
import pathlib
import tempfile

import pytest

# For the process and the commands it starts: most of their time would be compiling. Not one cache for all: JAX writes
# its entries in place, so a process may read what another has half written. Set before jax is imported, which reads it.
_BASE = os.environ.setdefault(
    "OFFPOLICY_JAX_TEST_CACHE",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/offpolicy_jax_tests_{os.getuid()}"),
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(_BASE) / os.environ.get("PYTEST_XDIST_WORKER", "main"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Compiling takes most of the time; up to half of it is saved by two switches of XLA's code generator on CPUs that leave
# its level of optimisation alone: loops are not unrolled (those of random numbers above all), and fusions go through
# the older emitter, where jaxlib still has it (unknown extra options are ignored). Steps are up to a quarter slower,
# and programs not quite those of users; XLA_FLAGS=--xla_backend_extra_options= compiles them as theirs. Lower levels of
# optimisation would save more, but make some programs wrong (jaxlib 0.10.2): at level 0, as with
# JAX_DISABLE_MOST_OPTIMIZATIONS, an update of SAC gives NaN where levels 1 and 3 give finite values of the same
# arguments; at level 1 a vmapped L-BFGS does not end.
_OPTIONS = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling,xla_cpu_disable_new_fusion_emitters"
if "xla_backend_extra_options" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_OPTIONS}".strip()

import jax  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def drop_compiled_programs():
    """After each module: a program holds some forty memory mappings, and at the kernel's 65 530 LLVM crashes."""
    yield
    jax.clear_caches()
    gc.collect()
