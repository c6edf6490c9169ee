"""Several processes as one: multi-host JAX, where every process runs the same program on its share of the devices.

Only the first one writes. What one process alone knows, as that Ctrl-C was pressed, is agreed upon.
"""

import os

import jax
import numpy as np

from offpolicy_jax.errors import UserError


def connect() -> None:
    """Join the processes that were started together. Call it before JAX's first computation.

    JAX finds them by itself on SLURM, Open MPI, Kubernetes and TPU pods; elsewhere every process has the environment
    variables JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    count, index = (int(os.environ[name]) if os.environ.get(name, "").isdigit() else None for name in names)
    try:
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join other processes ({' '.join(str(error).split())[:150]}): start them by SLURM or mpirun, "
            "or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; the same answer in all of them."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather(x: jax.Array) -> np.ndarray:
    """An array that is split over the processes, whole in each of them."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
