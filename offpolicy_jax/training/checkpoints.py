"""Checkpoints: the whole carry of a run, written aside and renamed into place, so that the newest one is complete.

    checkpoints/<step>/arrays/      every array of the carry by its path in the pytree (orbax)
    checkpoints/<step>/host.npz     the state of host environments
    checkpoints/<step>/manifest.json   sizes and digests of all files

Only the filled part of the replay is stored. Nothing is ever unpickled.
"""

import errno
import hashlib
import json
import os
import pathlib
import shutil
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_jax import frames as pixels
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import PyTree

KEEP = 2
_SIZE, _POSITION, _CLOCK = (f".learner.replay.{name}" for name in ("size", "position", "clock"))
_ROWS, _IMAGES = (".learner.replay.storage", ".learner.replay.frames.ages"), ".learner.replay.frames.images"


def save(
    directory: pathlib.Path, step: int, carry: Any, host: dict[str, np.ndarray], notes: dict[str, Any] | None = None
) -> None:
    """Write the checkpoint of a step and drop all but the newest `KEEP`. Raises OSError, leaving the older ones.

    `notes`: JSON values that `read_notes` gives back.
    """
    aside, final = directory / f".{step}.partial", directory / f"{step:012d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        arrays = _flatten(_trim(carry))
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save((aside / "arrays").absolute(), arrays)
        except (ValueError, RuntimeError) as error:  # how tensorstore reports what the disk refused
            raise OSError(errno.EIO, " ".join(str(error).split())[:200]) from error
        with open(aside / "host.npz", "wb") as file:
            np.savez(file, **host)  # type: ignore[arg-type]
        (aside / "manifest.json").write_text(
            json.dumps(
                {"step": step, "rows": carry.learner.replay.rows, "notes": notes or {}, "files": _digests(aside)}
            )
        )
        for path in aside.rglob("*"):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _sync(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _complete(directory)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def newest(directory: pathlib.Path) -> pathlib.Path | None:
    """The newest complete checkpoint, or None."""
    found = _complete(directory)
    return found[-1] if found else None


def read_notes(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """Step and notes of a checkpoint. Raises UserError if it is damaged."""
    manifest = _manifest(path)
    return manifest["step"], manifest["notes"]


def restore(path: pathlib.Path, like: Any, has_axis: Any = None, first: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
    """The carry and host arrays of a checkpoint. `like`: a carry of the same run (arrays or shapes).

    A checkpoint of more lanes gives those from `first` on, of the leaves that `has_axis` marks; host arrays are whole.
    Raises UserError, one line, if the checkpoint is damaged or belongs to another program.
    """
    manifest, advice = _manifest(path), _advice(path)
    if manifest["files"] != _digests(path):
        raise UserError(f"the checkpoint {path} is damaged: {advice}")
    try:
        with _checkpointer() as checkpointer:
            stored = checkpointer.restore((path / "arrays").absolute())
        with np.load(path / "host.npz", allow_pickle=False) as file:
            host = {name: file[name] for name in file.files}
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise UserError(f"cannot read the checkpoint {path} ({type(error).__name__}): {advice}") from error
    mismatch = f"the checkpoint {path} belongs to another program or version: {advice}"
    if has_axis is not None:
        leaves = jax.tree_util.tree_leaves_with_path(like)
        for (place, x), with_axis in zip(leaves, jax.tree.leaves(has_axis), strict=True):
            if with_axis and (name := jax.tree_util.keystr(place)) in stored:
                stored[name] = stored[name][first : first + x.shape[0]]
    return _unflatten(stored, manifest["rows"], like, mismatch), host


def _advice(path: pathlib.Path) -> str:
    return f"remove {path} to go on from an older checkpoint, or start another --run-dir"


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return {key: manifest[key] for key in ("step", "rows", "notes", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} is damaged: {_advice(path)}") from error


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # slow to import, and only runs with a directory need it

    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    index = jax.process_index()  # what is saved is whole in every process: each is on its own, and waits for no other
    alone = ocp.options.MultiprocessingOptions(index, {index}, barrier_sync_key_prefix=f"process_{index}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _complete(directory: pathlib.Path) -> list[pathlib.Path]:
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def _trim(carry: Any) -> Any:
    """The carry with only the filled rows of its replay."""
    replay = carry.learner.replay
    size = int(replay.size)
    storage = jax.tree.map(lambda x: np.asarray(x)[:, :size], replay.storage)
    frames = replay.frames and pixels.filled(replay.frames, int(replay.clock))
    replay = replace(replay, storage=storage, frames=frames)
    return replace(carry, learner=replace(carry.learner, replay=replay))


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    def array(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return {jax.tree_util.keystr(path): array(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _unflatten(stored: dict[str, np.ndarray], rows: int, like: Any, mismatch: str) -> Any:
    """The carry from its arrays. A ring of more rows than the `rows` it was saved with goes on after its youngest."""
    size, position = int(stored.get(_SIZE, 0)), int(stored.get(_POSITION, 0))
    wrapped = size == rows and like.learner.replay.rows > rows

    def leaf(path, x):
        name = jax.tree_util.keystr(path)
        if name not in stored:
            raise UserError(mismatch)
        value = np.asarray(stored[name])
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(value))
        if name.startswith(_IMAGES):
            value = pixels.moved(value, rows, int(stored[_CLOCK]), like.learner.replay.frames)
        if name.startswith(_ROWS):
            if value.shape[:1] + value.shape[2:] != x.shape[:1] + x.shape[2:] or size > x.shape[1]:
                raise UserError(mismatch)
            ring = np.zeros(x.shape, x.dtype)
            ring[:, :size] = np.roll(value, -position, axis=1) if wrapped else value
            value = ring
        if name == _POSITION and wrapped:
            value = np.asarray(size)
        if value.shape != x.shape:
            raise UserError(mismatch)
        return value.astype(x.dtype)

    if len(jax.tree.leaves(like)) != len(stored):
        raise UserError(mismatch)
    return jax.tree_util.tree_map_with_path(leaf, like)


def _digests(directory: pathlib.Path) -> dict[str, str]:
    digests = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json"):
        with open(path, "rb") as file:
            digests[str(path.relative_to(directory))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
