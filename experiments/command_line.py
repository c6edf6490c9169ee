"""The options of experiments/run.py, and of the runs that other commands open: parsed, with errors of one line."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import re
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import tyro

import agents
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings
from offpolicy_jax.training.run_directory import RunDirectory
from offpolicy_jax.training.settings import check_settings


def parse_one_line(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What `parser` makes of the arguments (the process's, if None). Raises UserError, one line, instead of exiting."""

    def refuse(message: str) -> NoReturn:
        raise UserError(message)

    parser.error = refuse
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class Command:
    """Options that are the command's own."""

    debug_nans: bool = False
    """Stop at the operation that first makes a NaN (slow)."""
    video: Literal["gif", "mp4"] | None = None
    """Film an episode of the trained policy at the end; --video alone writes a GIF. experiments/video.py films finished
    runs."""


def parse(arguments: list[str], description: str | None = None) -> tuple[str, Settings, Any, Command]:
    """Agent name, settings, config, options of the command. Raises UserError, one line, for what does not parse.

    `description` is printed above the options by --help.
    """
    arguments = [re.sub(r"^--[^=]*", lambda flag: flag.group().replace("_", "-"), a) for a in arguments]
    for i, following in enumerate([*arguments[1:], ""]):
        if arguments[i] == "--video" and following not in ("gif", "mp4"):
            arguments[i] = "--video=gif"
    previous = _previous_run(arguments)
    name = _value(arguments, "--agent") or previous.get("agent")
    if name is None:
        if "--help" in arguments or "-h" in arguments:
            print(description or "")
            print(f"agents: {', '.join(agents.REGISTRY)}\nsettings and hyper-parameters: --agent=sac --help")
            raise SystemExit(0)
        if "--resume" in arguments:
            raise UserError(f"there is no run in {_value(arguments, '--run-dir')} to resume: --agent would start one")
        raise UserError(f"--agent is missing: use one of {', '.join(agents.REGISTRY)}")
    Config = agents.load(name).Config
    settings, base = Settings(), Config()
    preset = _value(arguments, "--preset")
    if preset is not None:
        presets = getattr(agents.load(name), "PRESETS", {})
        if preset not in presets:
            known = f"use {' or '.join(presets)}" if presets else "it has none"
            raise UserError(f"{name} has no preset {preset!r}: {known}")
        base = presets[preset]
    for known, name_ in ((settings, "settings"), (base, "config")):
        _check_types(known, previous.get(name_, {}))
    with contextlib.suppress(TypeError):  # a config of another version: train() names the difference
        settings = _replace(settings, previous.get("settings", {}))
        if preset is None:
            base = _replace(base, previous.get("config", {}))

    @dataclasses.dataclass(frozen=True)
    class Options(Settings, Command):
        agent: str = name
        """Which agent learns."""
        preset: str | None = None
        """Start from a named set of hyper-parameters in the agent's file."""
        config: Config = base  # type: ignore[valid-type]
        """Hyper-parameters."""

    defaults = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Settings)}
    options, unknown = _tyro(Options, Options(**defaults), arguments, description)
    if unknown:
        raise UserError(_unknown(unknown[0], Options))
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    if values["demos"] and os.path.isdir(values["demos"]):
        values["demos"] = os.path.abspath(values["demos"])  # the run may go on from elsewhere
    check_settings(Settings(**values))  # before a directory is chosen: --resume has to name one
    if values["run_dir"] is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        values["run_dir"] = f"runs/{name}-{options.env.replace('/', '-')}-{stamp}-{os.getpid()}"
    return name, Settings(**values), options.config, Command(options.debug_nans, options.video)


def _tyro(kind: Any, default: Any, arguments: list[str], description: str | None) -> tuple[Any, list[str]]:
    """tyro's parse, with its error box folded into one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                kind, default=default, args=arguments, return_unknown_args=True, description=description, prog="run.py"
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[─-╿]", " ", box.getvalue())
        message = re.split(r" (?:Argument helptext|For full helptext)", " ".join(text.split()))[0]
        raise UserError(re.sub(r"^\w+ error (?:Error )?", "", message)) from None


def _value(arguments: list[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(flag + "="):
            return argument.split("=", 1)[1]
    return None


def _previous_run(arguments: list[str]) -> dict[str, Any]:
    """What the run to resume was asked to be: the defaults of this command."""
    path = _value(arguments, "--run-dir")
    return (RunDirectory(path).read_config() if path and "--resume" in arguments else None) or {}


def _check_types(record: Any, values: dict[str, Any]) -> None:
    """Raises UserError for a value of the run to resume that its field cannot hold."""
    for key, value in values.items():
        value, known = tuple(value) if isinstance(value, list) else value, getattr(record, key, value)
        if dataclasses.is_dataclass(known) and isinstance(value, dict):
            _check_types(known, value)
        elif type(value) is not type(known) and not (known is None and isinstance(value, str)):
            raise UserError(f"config.json of the run to resume has {key}={value!r}: choose another --run-dir")


def _replace(record: Any, values: dict[str, Any]) -> Any:
    """The record with values from JSON: lists are tuples, dictionaries are records within it."""

    def typed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _replace(getattr(record, key, None), value)
        return tuple(value) if isinstance(value, list) else value

    return dataclasses.replace(record, **{k: typed(k, v) for k, v in values.items()})


def flags(config: Any, prefix: str) -> list[str]:
    """Flags of a config's fields, and of those of the configs within it."""
    found = []
    for field in dataclasses.fields(config):
        inner = dataclasses.is_dataclass(field.default)
        found += flags(field.default, f"{prefix}{field.name}.") if inner else [prefix + field.name]
    return found


def _unknown(argument: str, options: Any) -> str:
    flag = argument.split("=", 1)[0]
    known = [k if k.startswith("--config.") else k.replace("_", "-") for k in flags(options, "--")]
    near = difflib.get_close_matches(flag.replace("-", "_"), [k.replace("-", "_") for k in known], n=3)
    names = [next(k for k in known if k.replace("-", "_") == n) for n in near]
    return f"unknown option {flag}" + (f": did you mean {' or '.join(names)}?" if names else ": see --help")
