"""experiments/sweep.py as a user meets it: what becomes a program, what fails alone, what a killed sweep resumes to."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from experiments import sweep
from offpolicy_jax import environments
from tests import probes

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--config.hidden-sizes", "8", "--config.batch-size=8", "--config.learning-starts=20", "--eval-episodes=1"]
TINY += ["--steps=80", "--eval-every=40", "--seeds=2", "--no-progress"]


@pytest.fixture(autouse=True)
def probe_environment():
    environments.register("probe/in-graph", lambda num_envs: probes.ConstantReward())


def forced_devices(count):
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


def plan(*arguments, directory="runs/none"):
    return sweep.plan([*arguments, f"--run-dir={directory}"])


def test_floats_share_a_program_and_structure_makes_one_each():
    grid = ["--grid", "learning_rate=1e-4,0.001,1e-3", "--grid=num_critics=1,2", "--grid=hidden_sizes=8x8,16"]
    programs = plan("--agents=sac", "--config.tau=0.1", *grid).programs
    assert [p.title for p in programs] == [
        f"sac-phys2d-Pendulum-v0-num_critics={n},hidden_sizes={sizes}" for n in (1, 2) for sizes in ("8x8", "16")
    ]
    for program in programs:
        assert list(program.configs) == ["learning_rate=0.0001", "learning_rate=0.001"]
    last = programs[-1].configs["learning_rate=0.001"]
    assert (last.num_critics, last.hidden_sizes, last.learning_rate, last.tau) == (2, (16,), 1e-3, 0.1)


def test_names_of_nested_hyper_parameters_have_dots():
    grid = ["--grid=target.learning_rate=1e-4,1e-3", "--grid=target.epochs=2", "--env=phys2d/CartPole-v1"]
    (program,) = plan("--agents=props", *grid[:2], "--envs=phys2d/CartPole-v1", "--preset=cartpole").programs
    assert program.title.endswith("-target.epochs=2")
    config = program.configs["target.learning_rate=0.001"]
    assert (config.target.learning_rate, config.target.epochs, config.target.rollout_length) == (1e-3, 2, 1024)


def test_a_random_search_draws_within_its_ranges():
    ranges = ["--range=learning_rate=1e-5:1e-1:log", "--range", "tau=0.1:0.3", "--random=400"]
    (program,) = plan("--agents=sac", *ranges).programs
    rates = np.array([c.learning_rate for c in program.configs.values()])
    taus = np.array([c.tau for c in program.configs.values()])
    assert len(rates) == 400 and np.all((1e-5 <= rates) & (rates <= 1e-1)) and np.all((0.1 <= taus) & (taus <= 0.3))
    assert 0.4 < np.mean(rates < 1e-3) < 0.6 and 0.4 < np.mean(taus < 0.2) < 0.6
    (again,) = plan("--agents=sac", *ranges).programs
    (other,) = plan("--agents=sac", "--seed=7", *ranges).programs
    assert list(again.configs) == list(program.configs) != list(other.configs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--agents is missing"),
        (["--agents=sac,dsac"], "unknown agent 'dsac': did you mean"),
        (["--agents=sac", "--envs=HalfCheeta-v5"], "HalfCheetah-v5"),
        (["--agent=sac"], "did you mean --agents"),
        (["--agents=sac", "--env=Hopper-v5"], "did you mean --envs"),
        (["--agents=sac", "--grid"], "--grid"),
        (["--agents=sac", "--grid=taau=0.1"], "unknown hyper-parameter taau: did you mean tau"),
        (["--agents=sac", "--grid=tau="], "--grid tau= has no values"),
        (["--agents=sac", "--grid=tau=0.1,x"], "--grid tau takes a number, not x"),
        (["--agents=sac", "--grid=tau=0.1,2"], "config.tau must be between 0 and 1"),
        (["--agents=sac", "--grid=batch_size=3.5"], "--grid batch_size takes a whole number, not 3.5"),
        (["--agents=sac", "--grid=hidden_sizes=64-64"], "takes sizes such as 64x64"),
        (["--agents=sac", "--grid=learn_temperature=maybe"], "takes true or false"),
        (["--agents=sac", "--grid=kernel_init=zeros"], "config.kernel_init must be"),
        (["--agents=props", "--grid=target=1"], "target is a group of hyper-parameters"),
        (["--agents=sac", "--random=3"], "needs both --random=N and --range"),
        (["--agents=sac", "--random=x", "--range=tau=0:1"], "--random must be a number"),
        (["--agents=sac", "--random=3", "--range=tau=1:0"], "must go from a lower to a higher"),
        (["--agents=sac", "--random=3", "--range=tau=0:1:log"], "higher positive number"),
        (["--agents=sac", "--random=3", "--range=batch_size=1:9"], "--range batch_size is for floats"),
        (["--agents=sac", "--stpes=10"], "unknown option --stpes: did you mean --steps"),
        (["--agents=sac", "--steps=0"], "--steps must be at least 1"),
        (["--agents=sac", "--debug-nans"], "use run.py"),
        (["--agents=sac", "--video=mp4"], "use video.py"),
        (["--agents=,"], "need a name each"),
        (["--agents=sac", "--envs="], "need a name each"),
        (["--agents=sac", "--random=²", "--range=tau=0:1"], "--random must be a number"),
        (["--agents=sac", "--grid=tau=0.1", "--grid=tau=0.2"], "tau has values twice"),
        (["--agents=sac", "--grid=target-entropy=1", "--range=target_entropy=0:1", "--random=2"], "has values twice"),
        (["--agents=sac", "--distributed"], "--distributed needs --run-dir"),
        (["--agents=sac", "--resume"], "--resume needs --run-dir"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sweep.py: ") and message in lines[0]
    assert not list(tmp_path.iterdir())


def test_what_fails_fails_alone(tmp_path, capsys, monkeypatch):
    """One agent lacks a setting, one program runs out of memory, one goes through; a resume tries what failed again."""
    out_of_memory = []

    def train_points(agent, settings, configs):
        if "batch_size=4" in settings.run_dir and not out_of_memory:
            out_of_memory.append(True)
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a long explanation")
        trained.append(settings.run_dir)
        return original(agent, settings, configs)

    original, trained = sweep.train_points, []
    monkeypatch.setattr(sweep, "train_points", train_points)
    command = ["--agents=sac,bc", "--envs=probe/in-graph", *TINY, "--grid=batch_size=4,8", "--grid=tau=0.01,0.02"]
    command.append(f"--run-dir={tmp_path / 'sweep'}")
    assert sweep.main(command) == 1
    out, err = capsys.readouterr()
    assert [line.split(" failed: ")[0] for line in err.strip().splitlines()] == [
        "sweep.py: bc-probe-in-graph",
        "sweep.py: sac-probe-in-graph-batch_size=4",
    ]
    assert "unknown" in err and "RESOURCE_EXHAUSTED" in err
    assert "sac on probe/in-graph: 80 steps, 2 seeds a point" in out and "batch_size=8,tau=0.02" in out
    table = (tmp_path / "sweep/sweep.csv").read_text().splitlines()
    assert table[0].startswith("agent,env,batch_size,tau,iqm") and len(table) == 3
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [s["status"] for s in document["programs"]] == ["failed", "failed", "done"]
    assert "train_points" in document["programs"][1]["traceback"]

    assert sweep.main(command) == 2 and "already holds a sweep" in capsys.readouterr().err
    assert sweep.main(["--resume", command[-1], "--grid=tau=0.5"]) == 2
    assert "drop that option" in capsys.readouterr().err
    for other in ("--seeds=3", "--config.discount=0.9", "--eval-every=20", "--num-envs=2"):
        before = (tmp_path / "sweep/sweep.json").read_bytes()
        assert sweep.main([*command, "--resume", other]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert other.split("=")[0] in line and "drop that option" in line
        assert (tmp_path / "sweep/sweep.json").read_bytes() == before
    trained.clear()
    assert sweep.main(["--resume", f"--run-dir={tmp_path / 'sweep'}"]) == 1  # what it was comes from its directory
    assert [pathlib.Path(path).name for path in trained] == ["sac-probe-in-graph-batch_size=4"]
    assert len((tmp_path / "sweep/sweep.csv").read_text().splitlines()) == 5


def test_an_interrupted_sweep_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    def train_points(agent, settings, configs):
        trained.append(settings.run_dir)
        interrupted = types.SimpleNamespace(interrupted=True)
        return {name: interrupted for name in configs} if len(trained) == 1 else original(agent, settings, configs)

    original, trained = sweep.train_points, []
    monkeypatch.setattr(sweep, "train_points", train_points)
    command = ["--agents=sac", "--envs=probe/in-graph", *TINY, "--grid=batch_size=4,8", f"--run-dir={tmp_path / 's'}"]
    assert sweep.main(command) == 130
    assert f"--resume --run-dir={tmp_path / 's'}" in capsys.readouterr().err and len(trained) == 1
    (state,) = json.loads((tmp_path / "s/sweep.json").read_text())["programs"]
    assert state["status"] == "interrupted"
    assert sweep.main(["--resume", f"--run-dir={tmp_path / 's'}"]) == 0 and len(trained) == 3
    states = json.loads((tmp_path / "s/sweep.json").read_text())["programs"]
    assert [s["status"] for s in states] == ["done", "done"]

    def stop(sweep):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", stop)
    assert sweep.main(["--resume", f"--run-dir={tmp_path / 's'}"]) == 130
    assert f"--resume --run-dir={tmp_path / 's'}" in capsys.readouterr().err
    assert sweep.main(["--agents=sac", f"--run-dir={tmp_path / 'other'}"]) == 130
    assert "nothing was begun" in capsys.readouterr().err


def test_directories_that_are_taken(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert sweep.main(["--agents=sac", f"--run-dir={tmp_path}"]) == 2
    assert "not a sweep's" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text("[]")
    assert sweep.main(["--resume", f"--run-dir={tmp_path}"]) == 2
    assert "is not a sweep's" in capsys.readouterr().err


def test_the_best_point_and_the_lost_ones():
    row = {"agent": "sac", "env": "e", "seeds": 2, "diverged": 0, "step": 9, "low": -2.0, "high": 0.0}
    rows = [
        row | {"values": {"tau": 0.1}, "iqm": None, "diverged": 1},
        row | {"values": {"tau": 0.2}, "iqm": -1.0},
        row | {"values": {"tau": 0.3}, "iqm": -3.0},
    ]
    lines = sweep.describe(rows).splitlines()
    assert "tau=0.2" in lines[2] and "[-2.0, 0.0]" in lines[2] and "1 of 2 seeds diverged" in lines[4]
    assert lines[-1].startswith("  best: tau=0.2") and "fresh" in lines[-1]
    lines = sweep.describe([*rows, row | {"values": {"tau": 0.4}, "iqm": 5.0, "step": 4}]).splitlines()
    assert "9 steps" in lines[0] and "tau=0.2" in lines[2] and lines[5].endswith("after 4 steps")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    command = [sys.executable, str(ROOT / "experiments/sweep.py"), "--agents=sac", "--grid=learning_rate=1e-4,1e-3"]
    with socket.socket() as server:
        server.bind(("localhost", 0))
        address = f"localhost:{server.getsockname()[1]}"
    processes = []
    for i in (0, 1):
        flags = {"XLA_FLAGS": forced_devices(1), "JAX_COORDINATOR_ADDRESS": address}
        flags |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        options = [*TINY, "--distributed", f"--run-dir={tmp_path}/two"]
        processes.append(subprocess.Popen([*command, *options], env={**os.environ, **flags}, stdout=subprocess.PIPE))
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and b"best:" in printed[0] + printed[1]
    flags = {**os.environ, "XLA_FLAGS": forced_devices(2)}
    subprocess.run([*command, *TINY, f"--run-dir={tmp_path}/one"], check=True, env=flags, stdout=subprocess.DEVNULL)
    runs = [path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/*/learning_rate=*")]
    assert len(runs) == 2
    for run in runs:
        for name in ("evaluations.csv", "metrics.csv"):
            assert (tmp_path / "one" / run / name).read_bytes() == (tmp_path / "two" / run / name).read_bytes()


@pytest.mark.slow
def test_tasks_of_a_ray_cluster_are_the_programs(tmp_path):
    """The numbers of a sweep without Ray, and a program that fails alone (with the extra `ray`; CI goes without)."""
    pytest.importorskip("ray")
    command = [sys.executable, str(ROOT / "experiments/sweep.py"), *TINY, "--grid=num_critics=1,2"]
    command += ["--agents=sac,sac_discrete"]  # the latter fails within its tasks: Pendulum's actions are continuous
    for name, engine in (("here", []), ("ray", ["--ray"])):
        options = [f"--run-dir={tmp_path}/{name}", *engine]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
    states = [json.loads((tmp_path / name / "sweep.json").read_text())["programs"] for name in ("here", "ray")]
    by_title = [{s["title"]: (s["status"], s["error"]) for s in each} for each in states]
    assert by_title[0] == by_title[1]
    assert sorted(status for status, _ in by_title[0].values()) == ["done", "done", "failed", "failed"]
    runs = [path.relative_to(tmp_path / "here") for path in tmp_path.glob("here/sac-*/evaluations.csv")]
    assert len(runs) == 2
    for run in runs:
        assert (tmp_path / "here" / run).read_bytes() == (tmp_path / "ray" / run).read_bytes()


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_bytes(tmp_path):
    command = [sys.executable, str(ROOT / "experiments/sweep.py"), "--agents=sac", "--grid=learning_rate=1e-4,1e-3"]
    command += [*TINY, "--steps=1500", "--eval-every=100"]
    process = subprocess.Popen([*command, f"--run-dir={tmp_path}/killed"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(tmp_path.glob("killed/*/checkpoints/0*"))) >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the sweep was over before it could be killed"
    for options in ([f"--run-dir={tmp_path}/whole"], [f"--run-dir={tmp_path}/killed", "--resume"]):
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    runs = sorted(path.relative_to(tmp_path / "whole") for path in tmp_path.glob("whole/*/learning_rate=*"))
    assert len(runs) == 2
    for run in runs:
        for name in ("evaluations.csv", "metrics.csv"):
            assert (tmp_path / "whole" / run / name).read_bytes() == (tmp_path / "killed" / run / name).read_bytes()
