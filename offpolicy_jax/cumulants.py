"""Cumulants r_i(s) of T auxiliary tasks, drawn once and never trained: equations in losses/proto_value.py.

indicator: sets of states by thresholds on random networks; hash: sets by hashing; cumulant: the random networks'
outputs themselves; behaviour and none: nothing, the cumulants are 0.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import proto_value as losses
from offpolicy_jax.networks import function
from offpolicy_jax.torsos import Outputs
from offpolicy_jax.transition import EnvironmentSpec, PyTree, zeros

TaskKind = Literal["indicator", "hash", "cumulant", "behaviour", "none"]


def draw(kind: TaskKind, network: Outputs, num_tasks: int, spec: EnvironmentSpec, key: jax.Array) -> Any:
    """Parameters of T / `network.num` random networks, coefficients of T hashes, or () where nothing is needed.

    Raises UserError for observations that cannot be hashed, and for tasks that the networks do not share evenly.
    """
    leaves = jax.tree.leaves(spec.observation)
    if kind == "hash":
        if len(leaves) > 1 or not (leaves[0].dtype == np.uint8 or 0 < (leaves[0].num_values or 0) <= 2**12):
            raise UserError(f"--config.tasks=hash reads pixels or one array of integers below 4096: not {spec.id}")
        return losses.hash_coefficients(key, num_tasks, math.prod(leaves[0].shape))
    if kind in ("indicator", "cumulant"):
        if num_tasks % network.num:
            raise UserError("--config.num_tasks must be a multiple of --config.tasks_per_network")
        keys = jax.random.split(key, num_tasks // network.num)
        return jax.vmap(lambda k: network.init(k, zeros(spec.observation, (1,))))(keys)
    return ()


def evaluate(
    kind: TaskKind,
    network: Outputs,
    drawn: Any,
    thresholds: jax.Array,
    observation: PyTree,
    rate: jax.Array | float,
    relu: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """What the thresholds (T,) are held against, f (B, T), and the cumulants r(s) (B, T).

    `rate`: chance of a hashed set; `relu`: rectify the networks' outputs.
    """
    leaf = jax.tree.leaves(observation)[0]
    if kind == "hash":
        bins = jnp.maximum(2.0, jnp.round(1.0 / rate))  # in one bin there would be every state
        r = losses.hash_indicators(drawn, leaf.reshape(len(leaf), -1), bins)
        return r, r
    if kind in ("behaviour", "none"):
        nothing = jnp.zeros((len(leaf), len(thresholds)))
        return nothing, nothing
    outputs = jax.vmap(function(network), in_axes=(0, None))(drawn, observation)
    outputs = jnp.moveaxis(outputs, 0, 1).reshape(len(leaf), -1)
    outputs = jax.nn.relu(outputs) if relu else outputs
    return outputs, outputs if kind == "cumulant" else losses.indicators(outputs, thresholds)


def activity(activation: jax.Array, rate: jax.Array | float) -> dict[str, jax.Array]:
    """Mean activation (T,) of sets, how many are dead (below a tenth of `rate`), and how many are almost everywhere."""
    return {
        "tasks/activation": jnp.mean(activation),
        "tasks/dead": jnp.sum(activation < 0.1 * rate).astype(jnp.float32),
        "tasks/always_on": jnp.sum(activation > 0.9).astype(jnp.float32),
    }
