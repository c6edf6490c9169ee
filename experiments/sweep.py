"""Train many seeds and hyper-parameters at once: agents x environments x points of a grid or a random search.

    python experiments/sweep.py --agents=sac,dsac_t --envs=phys2d/Pendulum-v0 --seeds=10 --grid learning_rate=1e-4,1e-3
    python experiments/sweep.py --agents=sac --random=32 --range learning_rate=1e-5:1e-2:log --range tau=0.001:0.05
    python experiments/sweep.py --resume --run-dir=runs/my-sweep

--agents, --envs     comma-separated names
--grid name=a,b,c    values of a hyper-parameter; repeat it for a product of several. Names of nested ones have dots
                     (target.learning_rate); sizes are written 64x64
--random=N           N points drawn at random (by --seed) within the ranges, for each point of the grid
--range name=a:b     range of a float in the random search, uniform; a:b:log is uniform in the logarithm

--distributed        one program over the devices of several processes (JAX on several hosts): start the same command in
                     each, by SLURM or mpirun or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
--ray                every program is a task of a Ray cluster

All other options are those of run.py and hold for every point: --seeds, --steps, --num-envs, --preset, --config.tau=...
Points that differ in floats only are one program with one compilation, spread over all devices; other differences
(sizes, numbers of critics, names) make a program each. Every point is an ordinary run directory; sweep.json, sweep.csv
and sweep.png sum up. Exit code: 0 done, 1 some programs failed, 2 bad input, 130 interrupted.
"""

import argparse
import csv
import dataclasses
import difflib
import gc
import io
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import agents
from experiments.command_line import flags, parse
from offpolicy_jax import environments
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, compilation, plots, processes, seeds, train_points
from offpolicy_jax.training.agent import check
from offpolicy_jax.training.run_directory import RunDirectory
from offpolicy_jax.training.settings import identity, refuse_differences

Values = dict[str, Any]
"""Hyper-parameters of a point that are its own, by their dotted names."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Points of one agent and environment that differ in floats only."""

    agent: str
    settings: Settings
    configs: dict[str, Any]  # by name, which is the point's directory
    values: dict[str, Values]

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return pathlib.PurePath(self.settings.run_dir or "").name


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What was asked for: programs, and the (agent, environment) pairs that cannot be, with the reason."""

    directory: pathlib.Path
    arguments: list[str]
    programs: list[Program]
    engine: str  # here, distributed or ray
    states: dict[str, dict[str, Any]]  # by title: what cannot run and why, and what a resumed sweep has done already


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    sweep = None
    try:
        sweep = plan(sys.argv[1:] if arguments is None else arguments)
        if sweep.engine == "ray":
            states = run_with_ray(sweep)
        else:
            prepare(sweep.programs)
            if sweep.engine == "distributed":
                processes.connect()
            for env in dict.fromkeys(program.settings.env for program in sweep.programs):
                environments.make(env)
            processes.wait("all have read sweep.json")
            states = run(sweep)
            if not processes.first():
                return 0
    except UserError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        begun = sweep if sweep and (sweep.directory / "sweep.json").exists() else None
        print(f"sweep.py: interrupted; {_go_on(begun) if begun else 'nothing was begun'}", file=sys.stderr)
        return 130
    for state in states:
        if state["status"] == "failed":
            print(f"sweep.py: {state['title']} failed: {state['error']}", file=sys.stderr)
    if any(state["status"] == "interrupted" for state in states):
        print(f"sweep.py: interrupted; {_go_on(sweep)}", file=sys.stderr)
        return 130
    print(describe(collect(sweep)))
    print(f"{sweep.directory}/sweep.csv, sweep.png, sweep.json; a run directory per point")
    return 1 if any(state["status"] == "failed" for state in states) else 0


def _go_on(sweep: Sweep) -> str:
    engine = "" if sweep.engine == "here" else f" --{sweep.engine}"
    return f"continue with --resume --run-dir={sweep.directory}{engine}"


# What to run


def plan(arguments: list[str]) -> Sweep:
    """The programs that a command asks for. Raises UserError, one line, for what no program could use."""
    arguments = [re.sub(r"^--[^=]*", lambda flag: flag.group().replace("_", "-"), a) for a in arguments]
    options, rest = _options(arguments)
    directory = pathlib.Path(options.run_dir or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    if options.ray:
        directory = directory.absolute()  # tasks may start elsewhere
    _refuse_repeats(options)
    if options.distributed and (options.ray or not options.run_dir):
        raise UserError("--distributed needs --run-dir, on a disk that all processes see, and goes without --ray")
    before = _previous(directory, options.resume, options.run_dir)
    given = [a for a in arguments if a != "--resume"]
    if before:
        given = before["arguments"] + given
        options, rest = _options(given)
    if not options.agents:
        raise UserError(f"--agents is missing: use some of {', '.join(agents.REGISTRY)}")
    for name in _names(options.agents):
        agents.load(name)
    if not _names(options.agents) or not _names(options.envs):
        raise UserError("--agents and --envs need a name each: --agents=sac --envs=phys2d/Pendulum-v0")
    grid, ranges = _grid(options.grid), _ranges(options.range)
    if bool(options.random) != bool(ranges):
        raise UserError("a random search needs both --random=N and --range name=a:b (or a:b:log)")
    programs, states = [], {}
    for agent, env in itertools.product(_names(options.agents), _names(options.envs)):
        root = directory / f"{agent}-{env.replace('/', '-')}"
        try:
            programs += list(_programs(agent, env, root, rest + ["--resume"] * bool(before), grid, ranges, options))
        except UserError as error:
            states[root.name] = {"title": root.name, "status": "failed", "error": str(error)}
    if not programs:
        raise UserError(next(iter(states.values()))["error"])
    steps = {program.title: program.settings.steps for program in programs}
    done = {s["title"]: s for s in (before or {}).get("programs", []) if s["status"] == "done"}
    states |= {title: state for title, state in done.items() if state["steps"] == steps.get(title)}
    for program in programs:
        _refuse_another(program)
    stored = [a for a in _without(given, "--run-dir") if a not in ("--distributed", "--ray")]
    engine = "ray" if options.ray else "distributed" if options.distributed else "here"
    sweep = Sweep(directory, stored, programs, engine, states)
    if before and (names := list(_points(sweep))) != (old := [tuple(point) for point in before["points"]]):
        new = next((name for name in names if name not in old), None)
        what = f"has no point {'/'.join(new)}" if new else f"has {len(old)} points, not {len(names)}"
        raise UserError(f"the sweep in {directory} {what}: drop that option to resume it, or choose another --run-dir")
    return sweep


def _refuse_another(program: Program) -> None:
    """Raises UserError if a point of the program was begun as something else than is asked for."""
    for name, config in program.configs.items():
        path = pathlib.Path(program.settings.run_dir or "") / name
        if (previous := RunDirectory(str(path)).read_config()) is not None:
            refuse_differences(path, previous, identity(program.agent, program.settings, config))


_OF_RUN = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(Settings) if f.name != "env"} | {"--preset"}


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and those of run.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--agents", default="")
    parser.add_argument("--envs", default=Settings.env)
    parser.add_argument("--grid", action="append", default=[])
    parser.add_argument("--range", action="append", default=[])
    parser.add_argument("--random", default="0")
    parser.add_argument("--run-dir")
    for name in ("--resume", "--distributed", "--ray"):
        parser.add_argument(name, action="store_true")
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if {"--help", "-h"} & set(rest):
        print(__doc__)
        if not options.agents:
            print(f"agents: {', '.join(agents.REGISTRY)}\nsettings and hyper-parameters: --agents=sac --help")
            raise SystemExit(0)
    own = ["--agents", "--envs", "--grid", "--range", "--random"]
    for argument in rest:
        flag = argument.split("=")[0]
        if flag in ("--debug-nans", "--video"):
            raise UserError(f"{flag} is for a single run: use {'run.py' if flag == '--debug-nans' else 'video.py'}")
        if flag not in _OF_RUN and (near := difflib.get_close_matches(flag, own, n=1, cutoff=0.8)):
            raise UserError(f"unknown option {flag}: did you mean {near[0]}?")
    if not options.random.isdecimal():
        raise UserError(f"--random must be a number of points, not {options.random!r}")
    options.random = int(options.random)
    return options, rest


def _refuse_repeats(options: argparse.Namespace) -> None:
    """Raises UserError for a hyper-parameter that one command gives values twice."""
    names = [text.partition("=")[0].replace("-", "_") for text in [*options.grid, *options.range]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} has values twice: list them in one --grid {name}=a,b,c or give one --range")


def _without(arguments: list[str], flag: str) -> list[str]:
    """The arguments without `--flag value` and `--flag=value`."""
    return [
        a
        for before, a in zip(["", *arguments], arguments, strict=False)
        if a != flag and before != flag and not a.startswith(flag + "=")
    ]


def _previous(directory: pathlib.Path, resume: bool, named: str | None) -> dict[str, Any] | None:
    """sweep.json of the sweep to resume, or None for a new one. Raises UserError if the directory is taken."""
    if resume and not named:
        raise UserError("--resume needs --run-dir: which sweep shall go on?")
    try:
        document = json.loads((directory / "sweep.json").read_text())
        if not isinstance(document["arguments"], list) or not isinstance(document["points"], list):
            raise TypeError
    except FileNotFoundError:
        if directory.is_dir() and any(directory.iterdir()):
            raise UserError(f"{directory} holds files that are not a sweep's: choose another --run-dir") from None
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{directory / 'sweep.json'} is not a sweep's: choose another --run-dir") from None
    if not resume:
        raise UserError(f"{directory} already holds a sweep: add --resume to continue it, or choose another --run-dir")
    return document


def _programs(
    agent: str,
    env: str,
    root: pathlib.Path,
    rest: list[str],
    grid: dict[str, list[str]],
    ranges: dict[str, tuple[float, float, bool]],
    options: argparse.Namespace,
) -> Iterator[Program]:
    """The programs of one agent and environment. Raises UserError for values that it cannot use."""
    _, settings, base, _ = parse([f"--agent={agent}", f"--env={env}", f"--run-dir={root}", *rest])
    cast = {name: [_cast(base, name, text) for text in texts] for name, texts in grid.items()}
    for name in ranges:
        if not isinstance(_get(base, name)[0], float) or not _get(base, name)[1]:
            raise UserError(f"--range {name} is for floats: list its values by --grid")
    drawn = _draw(ranges, options.random, settings.seed) if ranges else [{}]
    programs: dict[str, dict[str, Values]] = {}
    for chosen in itertools.product(*cast.values()):
        for random in drawn:
            values = dict(zip(cast, chosen, strict=True)) | random
            static = {name: value for name, value in values.items() if not _get(base, name)[1]}
            own = {name: value for name, value in values.items() if name not in static}
            points = programs.setdefault(_label(static), {})
            points[_label(own)] = values
    for label, points in programs.items():
        configs = {name: _set(base, values) for name, values in points.items()}
        for config in configs.values():
            check(config, settings.seeds)
        directory = f"{root}-{label}" if label else str(root)
        yield Program(agent, dataclasses.replace(settings, run_dir=directory), configs, points)


def _grid(texts: list[str]) -> dict[str, list[str]]:
    grid = {}
    for text in texts:
        name, _, values = text.partition("=")
        grid[name.replace("-", "_")] = _names(values)
        if not name or not _names(values):
            raise UserError(f"--grid {text} has no values: write --grid learning_rate=1e-4,3e-4")
    return grid


def _ranges(texts: list[str]) -> dict[str, tuple[float, float, bool]]:
    ranges = {}
    for text in texts:
        number = r"([-+.\deE]+)"
        match = re.fullmatch(rf"([\w.-]+)={number}:{number}(:log)?", text)
        try:
            name, low, high, log = match.groups()  # type: ignore[union-attr]
            low, high = float(low), float(high)
        except (AttributeError, ValueError):
            raise UserError(f"--range {text} is no range: write --range learning_rate=1e-5:1e-2:log") from None
        if not low < high or (log and low <= 0):
            raise UserError(f"--range {text} must go from a lower to a higher{' positive' * bool(log)} number")
        ranges[name.replace("-", "_")] = (low, high, bool(log))
    return ranges


def _draw(ranges: dict[str, tuple[float, float, bool]], count: int, seed: int) -> list[Values]:
    """So many points, four digits each, which is what their names show."""
    random = np.random.default_rng(seed)

    def number(low: float, high: float, log: bool) -> float:
        x = math.exp(random.uniform(math.log(low), math.log(high))) if log else random.uniform(low, high)
        return float(f"{x:.4g}")

    return [{name: number(*limits) for name, limits in ranges.items()} for _ in range(count)]


def _get(config: Any, name: str) -> tuple[Any, bool]:
    """A hyper-parameter's value by its dotted name, and whether it is traced. Raises UserError if there is none."""
    value, traced = config, True
    for part in name.split("."):
        fields = {f.name: f for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
        if part not in fields:
            known = flags(config, "")
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)
            raise UserError(f"unknown hyper-parameter {name}: did you mean {' or '.join(near)}?")
        traced = traced and fields[part].metadata.get("pytree_node", True)
        value = getattr(value, part)
    if dataclasses.is_dataclass(value):
        raise UserError(f"{name} is a group of hyper-parameters: name one of {', '.join(flags(value, name + '.'))}")
    return value, traced


def _set(config: Any, values: Values) -> Any:
    for name, value in values.items():
        first, _, inner = name.partition(".")
        config = dataclasses.replace(
            config, **{first: _set(getattr(config, first), {inner: value}) if inner else value}
        )
    return config


def _cast(config: Any, name: str, text: str) -> Any:
    """A value as its field holds it. Raises UserError if it cannot."""
    kind = type(_get(config, name)[0])
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            return tuple(int(size) for size in text.split("x"))
        return kind(text)
    except (KeyError, ValueError):
        what = {bool: "true or false", tuple: "sizes such as 64x64", int: "a whole number"}.get(kind, "a number")
        raise UserError(f"--grid {name} takes {what}, not {text}") from None


def _label(values: Values) -> str:
    """A name for a directory."""
    text = lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else str(x)  # noqa: E731
    return ",".join(f"{name}={text(value)}" for name, value in values.items()).replace("/", "-")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _points(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Program and name of every point."""
    for program in sweep.programs:
        yield from ((program.title, name) for name in program.configs)


# Running it


def run(sweep: Sweep) -> list[dict[str, Any]]:
    """Run one program after the other; a state of each: title, status (done, failed, interrupted), error."""
    states = dict(sweep.states)
    _write(sweep, states)
    for program in sweep.programs:
        if program.title in states:
            continue
        state = states[program.title] = execute(program)
        _write(sweep, states)
        if state["status"] == "interrupted":
            break
        jax.clear_caches()
        gc.collect()  # what a program held on the device, before the next one asks for memory
    return list(states.values())


def run_with_ray(sweep: Sweep) -> list[dict[str, Any]]:
    """`run`, with each program as a task of its own somewhere in a Ray cluster (RAY_ADDRESS; else on this machine).

    A task takes one GPU if there are any, else all cores of a machine. The run directory is on a disk that all see.
    """
    try:
        import ray  # type: ignore[import-not-found]
        from ray.exceptions import RayError  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'offpolicy-jax[ray]'") from error
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    except Exception as error:  # no cluster at the address, an older version there, ...
        raise UserError(f"Ray does not start: {' '.join(str(error).split())[:200]}") from error
    computing = [cores for node in ray.nodes() if node["Alive"] and (cores := int(node["Resources"].get("CPU", 0)))]
    cores = min(computing, default=1)
    demand: dict[str, Any] = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": cores}
    task = ray.remote(max_calls=1, max_retries=0, **demand)(_execute_in_a_task)  # a process per program
    states = dict(sweep.states)
    waiting = {task.remote(program): program.title for program in sweep.programs if program.title not in states}
    _write(sweep, states)
    while waiting:
        (done, *_), _ = ray.wait(list(waiting))
        title = waiting.pop(done)
        try:
            states[title] = ray.get(done)
        except RayError as error:  # the process is gone, as when a machine runs out of memory
            states[title] = {"title": title, "status": "failed", "error": " ".join(str(error).split())[:200]}
        _write(sweep, states)
    return list(states.values())


def prepare(programs: list[Program]) -> None:
    """Set JAX up for programs of this process, before its first computation."""
    compilation.enable_cache()
    seeds.use_cores(max(len(program.configs) * program.settings.seeds for program in programs))


def _execute_in_a_task(program: Program) -> dict[str, Any]:
    prepare([program])
    return execute(program)


def execute(program: Program) -> dict[str, Any]:
    """Train all points of a program; whatever goes wrong is its state, so that the others go on."""
    state: dict[str, Any] = {"title": program.title, "steps": program.settings.steps}
    try:
        results = train_points(
            agents.load(program.agent), dataclasses.replace(program.settings, resume=True), program.configs
        )
    except UserError as error:
        return state | {"status": "failed", "error": str(error)}
    except Exception as error:  # out of memory, or a mistake in an agent: it concerns this program alone
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return state | {"status": "failed", "error": line, "traceback": traceback.format_exc()}
    return state | {"status": "interrupted" if any(r.interrupted for r in results.values()) else "done", "error": None}


def _write(sweep: Sweep, states: dict[str, dict[str, Any]]) -> None:
    """sweep.json, sweep.csv and sweep.png, as far as the sweep has come."""
    if sweep.engine == "distributed" and not processes.first():
        return
    rows = collect(sweep)
    directory = RunDirectory(sweep.directory)
    document = {
        "command": shlex.join(sys.argv),
        "arguments": sweep.arguments,
        "points": list(_points(sweep)),
        "programs": list(states.values()),
        "results": rows,
    }
    with directory.disk():
        sweep.directory.mkdir(parents=True, exist_ok=True)
    directory.write("sweep.json", json.dumps(document, indent=1) + "\n")
    if not rows:
        return
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "values"))
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    writer = csv.DictWriter(text, [*columns[:2], *names, *columns[2:]], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v for k, v in row.items() if k != "values"} | _texts(row["values"]) for row in rows)
    directory.write("sweep.csv", text.getvalue())
    shown = list(dict.fromkeys(row["agent"] for row in rows))[: plots.MOST_ARMS]
    points = [(row["env"], row["agent"], _texts(row["values"]), (row["iqm"], row["low"], row["high"])) for row in rows]
    with directory.disk():
        plots.hyper_parameters(sweep.directory / "sweep.png", [point for point in points if point[1] in shown])


def _texts(values: Values) -> Values:
    return {k: "x".join(map(str, v)) if isinstance(v, tuple | list) else v for k, v in values.items()}


# What came out


def collect(sweep: Sweep) -> list[dict[str, Any]]:
    """A row per point that has a summary."""
    rows = []
    for program in sweep.programs:
        for name, values in program.values.items():
            path = pathlib.Path(program.settings.run_dir or "") / name
            try:
                summary = json.loads((path / "summary.json").read_text())
            except FileNotFoundError:
                continue
            low, high = summary.get("iqm_interval_95", (None, None))
            rows.append(
                {
                    "agent": program.agent,
                    "env": program.settings.env,
                    "values": values,
                    "iqm": summary.get("iqm"),
                    "low": low,
                    "high": high,
                    "mean": summary.get("mean"),
                    "seeds": program.settings.seeds,
                    "diverged": len(summary.get("diverged", {})),
                    "step": summary.get("step", 0),
                    "directory": str(path.relative_to(sweep.directory)),
                }
            )
    return rows


def describe(rows: list[dict[str, Any]], most: int = 20) -> str:
    """A table per agent and environment, best points first, and a line about the best one."""
    lines = []
    for agent, env in dict.fromkeys((row["agent"], row["env"]) for row in rows):
        mine = [row for row in rows if (row["agent"], row["env"]) == (agent, env)]
        steps = max(row["step"] for row in mine)
        mine.sort(key=lambda row: (row["step"], -math.inf if row["iqm"] is None else row["iqm"]), reverse=True)
        lines.append(f"{agent} on {env}: {steps:,} steps, {mine[0]['seeds']} seeds a point")
        names = [_label(row["values"]) or "defaults" for row in mine]
        width = max(map(len, names))
        lines.append(f"  {'':{width}s}  {'IQM':>10s}  95 % bootstrap interval")
        for name, row in list(zip(names, mine, strict=True))[:most]:
            shorter = f"  after {row['step']:,} steps" * (row["step"] < steps)
            lines.append(f"  {name:{width}s}  {_result(row)}{shorter}")
        if len(mine) > most:
            lines.append(f"  ... and {len(mine) - most} more in sweep.csv")
        if len(mine) > 1 and mine[0]["iqm"] is not None:
            lines.append(
                f"  best: {names[0]}, chosen by the seeds that it is measured with: the best of {len(mine)} looks "
                "better than it is, so confirm it with fresh ones (run.py with a --seed of its own)"
            )
    return "\n".join(lines)


def _result(row: dict[str, Any]) -> str:
    if row["iqm"] is None:
        return f"{'-':>10s}  {row['diverged']} of {row['seeds']} seeds diverged" if row["diverged"] else f"{'-':>10s}"
    interval = f"[{row['low']:.1f}, {row['high']:.1f}]" if row["low"] is not None else "one seed: none"
    return f"{row['iqm']:10.1f}  {interval}"


if __name__ == "__main__":
    sys.exit(main())
