"""A run directory: config.json, metrics.csv, evaluations.csv, summary.json, learning_curve.png, checkpoints/."""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from offpolicy_jax.errors import UserError

Row = dict[str, float | int]
_PACKAGES = ("offpolicy-jax", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco", "dm-control", "ale-py")


class RunDirectory:
    """The files of one run. All writes raise UserError if the disk refuses; what was complete stays usable."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"

    def read_config(self) -> dict[str, Any] | None:
        """The config.json of the run that is here, or None. Raises UserError if it cannot be read."""
        try:
            config = json.loads((self.path / "config.json").read_text())
            kinds = {"agent": str, "settings": dict, "config": dict, "schedule": dict}
            if not all(isinstance(config[key], kind) for key, kind in kinds.items()):
                raise TypeError
            return config
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path / 'config.json'} is not a run's config: choose another --run-dir") from error

    def create(self, **document: Any) -> None:
        """Write config.json: what its caller says of the run, and the command."""
        document |= {"command": " ".join(sys.argv)}
        with self.disk():
            self.path.mkdir(parents=True, exist_ok=True)
        self.write("config.json", json.dumps(document, indent=2) + "\n")

    def add_commit(self, commit: str | None) -> None:
        """Note in config.json that this commit has trained here: a resumed run may have had several."""
        document = self.read_config() or {}
        commits = document.get("commits", [])
        if commit not in commits:
            self.write("config.json", json.dumps(document | {"commits": [*commits, commit]}, indent=2) + "\n")

    def is_foreign(self) -> bool:
        """Whether the directory holds files, but no run."""
        return self.path.is_dir() and any(p.name != ".config.json.partial" for p in self.path.iterdir())

    def write(self, name: str, text: str) -> None:
        """Replace a text file in one step."""
        with self.disk():
            aside = self.path / f".{name}.partial"
            aside.write_text(text)
            os.replace(aside, self.path / name)

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a CSV file; the first row ever written sets its columns."""
        rows = list(rows)
        path = self.path / name
        with self.disk():
            columns = _header(path) or list(rows[0])
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
                file.flush()
                os.fsync(file.fileno())

    def rewind(self, name: str, step: int) -> list[Row]:
        """Drop the rows of a CSV file after a step, and whatever a kill tore; returns the rows that stay."""
        kept: list[str] = []
        rows = self._rows(name, step, kept)
        with self.disk():
            if kept:
                self.write(name, "".join(kept))
            else:
                (self.path / name).unlink(missing_ok=True)
        return rows

    def read(self, name: str) -> list[Row]:
        """All whole rows of a CSV file."""
        return self._rows(name, sys.maxsize, [])

    def _rows(self, name: str, step: int, lines: list[str]) -> list[Row]:
        """Rows of a CSV file up to a step, without those that a kill tore; their text is added to `lines`."""
        path, rows = self.path / name, []
        columns = _header(path)
        if columns is None:
            return []
        header, *following = path.read_text().splitlines(keepends=True)
        lines.append(header)
        for line in following:
            values = next(csv.reader([line]))
            whole = line.endswith("\n") and len(values) == len(columns) and values[0].isdigit()
            if whole and int(values[0]) <= step:
                lines.append(line)
                rows.append({key: float(x) if x else math.nan for key, x in zip(columns, values, strict=True)})
        return rows

    def clear(self) -> None:
        """Remove the tables of a run that starts again."""
        with self.disk():
            for name in ("metrics.csv", "evaluations.csv", "summary.json", "learning_curve.png"):
                (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def disk(self):
        """A context in which an OSError becomes a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror or error}): free the disk or choose another --run-dir, "
                "then --resume from the newest checkpoint"
            ) from error


LOGGERS = ("tensorboard", "wandb")


class Logger(NamedTuple):
    """A sink for rows of metrics.csv."""

    log: Callable[[list[Row]], None]
    close: Callable[[], None]


def loggers(names: Iterable[str], path: pathlib.Path, config: dict[str, Any]) -> list[Logger]:
    """Optional sinks that take the rows of metrics.csv: "tensorboard" and "wandb", one series per seed."""
    return [{"tensorboard": _tensorboard, "wandb": _wandb}[name](path, config) for name in names]


def provenance() -> dict[str, Any]:
    """Versions, commit and machine, to be stored beside every result."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = jax.devices()[0]
    machine = {"device": device.device_kind, "devices": jax.device_count(), "cores": os.cpu_count()}
    return {"versions": versions, "commit": _commit(), "machine": machine}


def _commit() -> str | None:
    """The commit of this code, with -dirty if a tracked file differs. Results do not count: runs write them.

    Where the code lies without its history, as in a container, OFFPOLICY_JAX_COMMIT names it.
    """

    def git(*arguments: str) -> str:
        here = pathlib.Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        status = ("status", "--porcelain", "--untracked-files=no")
        dirty = git(*status, "--", ":/", ":(top,exclude)experiments/results")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("OFFPOLICY_JAX_COMMIT")


def _header(path: pathlib.Path) -> list[str] | None:
    if not path.exists() or path.stat().st_size == 0:
        return None
    with open(path, newline="") as file:
        first = file.readline()
    return next(csv.reader([first])) if first.endswith("\n") else None


def _text(value: float | int) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.9g}"  # 9 digits tell any two float32 apart


def _tensorboard(path: pathlib.Path, config: dict[str, Any]) -> Logger:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("--log=tensorboard needs tensorboardX: pip install 'offpolicy-jax[log]'") from error
    writers: dict[int, Any] = {}

    def log(rows: list[Row]) -> None:
        for row in rows:
            seed = int(row["seed"])
            writer = writers.setdefault(seed, None) or SummaryWriter(str(path / "tensorboard" / f"seed_{seed}"))
            writers[seed] = writer
            for name, value in row.items():
                if name not in ("step", "seed") and not math.isnan(value):
                    writer.add_scalar(name, value, int(row["step"]))
            writer.flush()

    def close() -> None:
        for writer in writers.values():
            writer.close()

    return Logger(log, close)


def _wandb(path: pathlib.Path, config: dict[str, Any]) -> Logger:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError("--log=wandb needs wandb: pip install 'offpolicy-jax[log]'") from error
    name = path.resolve().name
    which = f"{name}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"  # points of sweeps share names
    which = re.sub(r"[^\w.-]", "-", which)
    run = wandb.init(
        project="offpolicy_jax",
        id=which,
        name=name,
        dir=str(path),
        config=config,
        resume="allow",
        reinit="create_new",  # a sweep's program has a run per point
    )

    def log(rows: list[Row]) -> None:
        for row in rows:
            seed = int(row["seed"])
            numbers = {k: v for k, v in row.items() if k not in ("step", "seed") and not math.isnan(v)}
            run.log({f"{name}/seed_{seed}": value for name, value in numbers.items()} | {"step": int(row["step"])})

    return Logger(log, run.finish)
