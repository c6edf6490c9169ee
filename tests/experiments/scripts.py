"""Scripts of experiments/ as processes and as modules: they are no package."""

import importlib.util
import pathlib
import subprocess
import sys

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def script(path, *arguments, cwd):
    command = [sys.executable, str(EXPERIMENTS / path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def module(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), EXPERIMENTS / path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
