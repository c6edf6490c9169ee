"""Policies as files that need no agent: a function exported by `jax.export`, with a header that says what it is.

A file has three parts: a line that names the format, a line of JSON (`head -n 2 policy.bin` shows both), and the
serialised program (StableHLO in flatbuffers, never a pickle) with all parameters inside. The header holds the
program's length and SHA-256, so that a damaged file is refused. JAX loads what it exported for six months at least;
older JAX versions may not load what newer ones wrote.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
_MAGIC = b"offpolicy_jax policy 1\n"
_LONGEST_HEADER = 2**20


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy from a file: call it with observations as the environment gives them."""

    header: dict[str, Any]
    """Environment, action_repeat (for how many of its steps to hold an action), agent, seed, step, return, action
    bounds, versions, commit, and whatever else the writer put in."""
    _call: Callable[[PyTree], jax.Array] = dataclasses.field(repr=False)
    _observation: PyTree = dataclasses.field(repr=False)  # of ArraySpec

    def __call__(self, observation: PyTree) -> np.ndarray:
        """Actions in the environment's own bounds: of one observation, or of a batch (N, ...) if it has that axis."""
        leaves, specs = jax.tree.leaves(observation), jax.tree.leaves(self._observation)
        if jax.tree.structure(observation) != jax.tree.structure(self._observation):
            raise UserError(f"{self.header['environment']} has other observations: {self.header['observation']}")
        batched = any(np.ndim(x) > len(spec.shape) for x, spec in zip(leaves, specs, strict=True))
        batch = (np.shape(leaves[0])[0],) if batched else (1,)

        def fit(spec: ArraySpec, x: Any) -> np.ndarray:
            try:
                return np.asarray(x, spec.dtype).reshape(batch + spec.shape)
            except (TypeError, ValueError):
                shape = ", ".join(str(n) for n in spec.shape)
                raise UserError(f"an observation has shape {np.shape(x)}, not ({shape}) or (N, {shape})") from None

        action = np.asarray(self._call(jax.tree.map(fit, self._observation, observation)))
        return action if batched else action[0]


def save(
    path: str | os.PathLike[str],
    policy: Callable[[PyTree], jax.Array],
    spec: EnvironmentSpec,
    action_space: Any,
    header: dict[str, Any],
    platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
    """Write `policy`, which takes observations (N, ...) to actions in [-1, 1] or integers from 0; returns the header.

    The file's function returns actions in `action_space`. It is lowered for those of `platforms` that allow it. Raises
    UserError if none does, and if the file cannot be written.
    """
    from offpolicy_jax.environments.spaces import to_space  # not at the top: `load` needs no Gymnasium

    _need_flatbuffers()
    symbolic = jax_export.symbolic_shape("batch")
    arguments = jax.tree.map(lambda s: jax.ShapeDtypeStruct(symbolic + s.shape, s.dtype), spec.observation)
    function = jax.jit(lambda observation: to_space(policy(observation), action_space))
    exported = _lower(function, arguments, platforms)
    program = bytes(exported.serialize())
    discrete = np.issubdtype(action_space.dtype, np.integer)
    header = {
        "environment": spec.id,
        "action_repeat": spec.action_repeat,
        **header,
        "observation": _describe(spec.observation),
        "action": {
            "space": str(action_space).replace("\n", " "),
            "shape": list(action_space.shape),
            "dtype": "int32" if discrete else "float32",
            "bounds": "the environment's own",
        },
        "platforms": list(exported.platforms),
        "bytes": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
    }
    path = pathlib.Path(path)
    aside = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(_MAGIC + json.dumps(header).encode() + b"\n" + program)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return header


def load(path: str | os.PathLike[str]) -> Policy:
    """The policy in a file that `save` wrote. Needs neither its agent nor its environment; nothing is unpickled.

    Raises UserError, one line, for a file that is foreign or damaged, or for another platform than this one.
    """
    _need_flatbuffers()
    try:
        with open(path, "rb") as file:
            if file.readline(len(_MAGIC)) != _MAGIC:
                raise UserError(f"{path} is not a policy that offpolicy_jax exported")
            line, program = file.readline(_LONGEST_HEADER), file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    damaged = UserError(f"{path} is damaged: export the policy again")
    try:
        header = json.loads(line)
        if len(program) != header["bytes"] or hashlib.sha256(program).hexdigest() != header["sha256"]:
            raise damaged
        observation = _specs(header["observation"])
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    try:
        exported = jax_export.deserialize(bytearray(program))
    except Exception as error:  # flatbuffers raises what it likes
        reason = " ".join(str(error).split())
        raise UserError(f"this JAX ({jax.__version__}) cannot load {path}: {reason}") from error
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in exported.platforms:
        raise UserError(f"{path} is for {', '.join(exported.platforms)}, not for {here}: set JAX_PLATFORMS")
    return Policy(header, jax.jit(exported.call), observation)


def _lower(function: Any, arguments: PyTree, platforms: Sequence[str]) -> Any:
    """Exported for all platforms at once, or for those that can be lowered."""
    try:
        return jax_export.export(function, platforms=tuple(platforms))(arguments)
    except NotImplementedError as error:
        if len(platforms) == 1:
            raise UserError(f"the policy cannot be lowered for {platforms[0]}: {error}") from error
    able = []
    for platform in platforms:
        try:
            jax_export.export(function, platforms=(platform,))(arguments)
        except NotImplementedError:
            continue
        able.append(platform)
    if not able:
        raise UserError(f"the policy cannot be lowered for any of {', '.join(platforms)}")
    return jax_export.export(function, platforms=tuple(able))(arguments)


def _describe(spec: PyTree) -> Any:
    """Specs as JSON: a dictionary of parts, a list for a tuple, and for an array its shape and dtype."""
    if isinstance(spec, ArraySpec):
        return {"shape": list(spec.shape), "dtype": str(spec.dtype)}
    if isinstance(spec, dict):
        return {"dict": {name: _describe(part) for name, part in spec.items()}}
    return {"tuple": [_describe(part) for part in spec]}


def _specs(described: Any) -> PyTree:
    """The inverse of `_describe`."""
    if "dict" in described:
        return {name: _specs(part) for name, part in described["dict"].items()}
    if "tuple" in described:
        return tuple(_specs(part) for part in described["tuple"])
    shape = tuple(int(n) for n in described["shape"])
    if math.prod(shape) < 0:
        raise ValueError("a shape is negative")
    return ArraySpec(shape, np.dtype(described["dtype"]))


def _need_flatbuffers() -> None:
    import importlib.util

    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exported policies need flatbuffers: pip install 'offpolicy-jax[export]'")
