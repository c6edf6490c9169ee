"""experiments/run.py as a user meets it: every environment family, every error in one line, SIGKILL and resume."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from agents import ppo, props
from experiments.command_line import parse
from experiments.run import main
from offpolicy_jax.errors import UserError
from offpolicy_jax.training.summary import as_json

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--config.hidden-sizes", "16", "--config.batch-size=16", "--config.learning-starts=50", "--eval-episodes=1"]


def run(*arguments, check=True):
    """The command in this process: importing takes longer than most of what is asked of it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["--no-progress", *map(str, arguments)])
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
    done = subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stderr
    return done


def run_process(*arguments, check=True, **options):
    """The command as it is typed."""
    command = [sys.executable, str(ROOT / "experiments/run.py"), "--no-progress", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("sac", "phys2d/Pendulum-v0"),
        ("mdpo", "Pendulum-v1"),
        ("sac", "HalfCheetah-v5"),
        ("sac", "dm_control/cartpole-swingup-v0"),
        ("sac_discrete", "phys2d/CartPole-v1"),
        ("sac_discrete", "tabular/CliffWalking-v0"),
        ("sac_discrete", "CartPole-v1"),
    ],
)
def test_every_family_of_environments(agent, env, tmp_path):
    out = run(f"--agent={agent}", f"--env={env}", "--steps=200", "--eval-every=200", f"--run-dir={tmp_path}/run", *TINY)
    assert "final greedy return" in out.stdout
    assert json.loads((tmp_path / "run/summary.json").read_text())["step"] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--agent is missing"),
        (["--agent=sacc"], "unknown agent 'sacc': did you mean sac"),
        (["--agent=sac", "--env=HalfCheeta-v5"], "HalfCheetah-v5"),
        (["--agent=sac", "--env=dm_control/cartpole-swingupp-v0"], "dm_control/cartpole-swingup-v0"),
        (["--agent=dsac_t", "--preset=papr"], "no preset 'papr': use paper or quick"),
        (["--agent=sac", "--preset=paper"], "sac has no preset 'paper'"),
        (["--agent=sac", "--stpes=10"], "unknown option --stpes: did you mean --steps"),
        (["--agent=sac", "--config.taau=0.1"], "did you mean --config.tau"),
        (["--agent=sac", "--steps=many"], "many"),
        (["--agent=sac", "--steps=-5"], "--steps must be at least 1, not -5"),
        (["--agent=sac", "--seeds=0"], "--seeds must be at least 1"),
        (["--agent=sac", "--steps=99999999999"], "--steps must be below"),
        (["--agent=sac", "--config.batch-size=-3"], "config.batch_size must be from 1"),
        (["--agent=sac", "--config.hidden-sizes", "0"], "config.hidden_sizes"),
        (["--agent=sac", "--config.tau=2"], "config.tau must be between 0 and 1"),
        (["--agent=sac", "--config.kernel-init=zeros"], "zeros"),
        (["--agent=props", "--config.target.epoch=3"], "did you mean --config.target.epochs"),
        (["--agent=props", "--config.target.tau=2"], "unknown option --config.target.tau"),
        (["--agent=props", "--config.target.learning-rate=2"], "config.target.learning_rate must be between 0 and 1"),
        (["--agent=props", "--config.target.hidden-sizes", "0"], "config.target.hidden_sizes must be"),
        (["--agent=sac", "--env=CartPole-v1"], "sac needs continuous actions"),
        (["--agent=sac", "--resume"], "--resume needs --run-dir"),
        (["--agent=sac", "--log=carrier-pigeon"], "carrier-pigeon"),
        (["--agent=sac", "--seeds=100000000"], "--seeds"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert not (tmp_path / "runs").exists()  # nothing was started


def test_bad_input_ends_the_process_the_same_way(tmp_path):
    done = run_process("--agent=sac", "--seeds=0", check=False, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["phys2d/CartPole-v1", "InvertedPendulum-v5"])
def test_on_policy_rollouts(env, tmp_path):
    options = ["--agent=ppo", f"--env={env}", "--steps=200", "--eval-every=200", "--num-envs=2", "--eval-episodes=1"]
    options += ["--config.rollout-length=20", "--config.minibatches=4", "--normalize-observations"]
    run(*options, f"--run-dir={tmp_path}/run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["step"] == 200 and summary["learned"]


def test_a_preset_is_where_hyper_parameters_start_from(tmp_path):
    options = ["--agent=dsac_t", "--steps=120", f"--run-dir={tmp_path}/run", *TINY]
    run(*options, "--preset=paper", "--config.tau=0.01")
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["rollout_length"], config["reward_scale"], config["tau"]) == (20, 0.2, 0.01)
    assert run("--resume", f"--run-dir={tmp_path}/run", "--steps=160").returncode == 0  # the preset is remembered
    refused = run("--resume", f"--run-dir={tmp_path}/run", "--preset=quick", check=False)
    assert refused.returncode == 2 and "--config." in refused.stderr


def test_options_of_a_nested_config():
    """In this process: what is parsed, before anything runs."""
    name, _, config, _ = parse(["--agent=props"])
    assert name == "props" and config == props.Config()
    flags = ["--config.target.learning-rate=0.002", "--config.target.buffer_batches", "3", "--config.target.clip=inf"]
    flags += ["--config.target.hidden-sizes", "8", "9", "--config.target.activation=relu"]
    flags += ["--config.learning-rate=0.004"]
    asked = {"learning_rate": 0.002, "buffer_batches": 3, "hidden_sizes": (8, 9), "activation": "relu", "clip": np.inf}
    _, _, config, _ = parse(["--agent=props", *flags])
    assert config == props.Config(learning_rate=0.004, target=props.Config().target.replace(**asked))
    preset = props.PRESETS["cartpole"]
    _, _, config, _ = parse(["--agent=props", "--preset=cartpole", "--config.target.epochs=7"])
    assert config == preset.replace(target=preset.target.replace(epochs=7)) and preset.target.rollout_length == 1024
    assert parse(["--agent=props", "--config.target.hidden-sizes", "--steps=50"])[2].target.hidden_sizes == ()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.target.epoch=3", "unknown option --config.target.epoch: did you mean --config.target.epochs"),
        ("--config.target.lerning-rate=1", "did you mean --config.target.learning_rate"),
        ("--config.targt.clip=1", "did you mean --config.target.clip"),
        ("--config.target.epochs=many", "many"),
        ("--config.target.activation=tahn", "tahn"),
    ],
)
def test_an_option_that_a_nested_config_lacks_is_answered_with_the_nearest(flag, message):
    with pytest.raises(UserError) as error:
        parse(["--agent=props", flag])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_help_lists_the_options_of_a_nested_config(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--agent=props", "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code
    for text in ("--config.clip", "--config.target.clip", "how far a ratio may leave 1", "--config.target.epochs"):
        assert text in out


NESTED = ["--agent=props", "--env=phys2d/CartPole-v1", "--eval-every=64", "--eval-episodes=1", "--seeds=1"]
NESTED += ["--config.rollout-length=16", "--config.epochs=2", "--config.minibatches=2"]
NESTED += ["--config.target.rollout-length=32", "--config.target.epochs=3", "--config.target.minibatches=2"]
NESTED += ["--config.target.gae-lambda=0.8"]


def test_a_resumed_run_takes_over_nested_values(tmp_path):
    path, flag = tmp_path / "run/config.json", f"--run-dir={tmp_path}/run"
    run(*NESTED, flag, "--steps=64", "--config.target.hidden-sizes", "8")
    first = json.loads(path.read_text())
    assert (first["config"]["target"]["epochs"], first["config"]["epochs"]) == (3, 2)
    assert (first["config"]["target"]["anneal_steps"], first["resolved_config"]["target"]["anneal_steps"]) == (-1, 64)
    name, _, config, _ = parse(["--resume", flag])
    assert name == "props" and isinstance(config.target, ppo.Config)
    target = {"rollout_length": 32, "epochs": 3, "minibatches": 2, "gae_lambda": 0.8, "hidden_sizes": (8,)}
    outer = {"rollout_length": 16, "epochs": 2, "minibatches": 2}
    assert config == props.Config(**outer, target=props.Config().target.replace(**target))
    refused = run("--resume", flag, "--steps=128", "--config.target.epochs=4", check=False)
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1
    assert "--config.target.epochs=3, not 4" in refused.stderr
    run("--resume", flag, "--steps=128")
    again = json.loads(path.read_text())
    assert again["config"] == first["config"] and again["resolved_config"]["target"]["anneal_steps"] == 128
    assert json.loads((tmp_path / "run/summary.json").read_text())["step"] == 128


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epochs", value) for value in ("many", 3.5, True, None, {"a": 1})),
        *(("hidden_sizes", value) for value in (8, "8", None)),
        *(("clip", value) for value in ([0.1], {}, "0.2")),
        ("activation", 1),
        *((None, value) for value in (3, None, [1], "x")),
    ],
)
def test_a_nested_value_of_the_wrong_type_is_refused_in_one_line(field, value, tmp_path, capsys):
    """The file was edited. A field of None is the nested config as a whole."""
    document = {"agent": "props", "settings": {}, "config": as_json(props.Config()), "schedule": {}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    parse(["--resume", f"--run-dir={tmp_path}"])
    if field is None:
        document["config"]["target"] = value
    else:
        document["config"]["target"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert main(["--resume", f"--run-dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("run.py: config.json of the run to resume has ")
    assert f"{field or 'target'}=" in lines[0]


def test_help_lists_hyper_parameters_with_meaning_and_default():
    out = run("--agent=sac", "--help").stdout
    assert "--config.tau" in out and "Weight of the new parameters" in out and "0.005" in out
    assert "--eval-every" in out and "Steps between evaluations" in out
    assert "sac_discrete" in run("--help").stdout


@pytest.mark.parametrize("env", ["phys2d/Pendulum-v0", "InvertedPendulum-v5"])
def test_killed_run_resumes_to_the_same_bytes(env, tmp_path):
    options = ["--agent=sac", f"--env={env}", "--steps=1500", "--eval-every=100", "--seeds=2", *TINY]
    run_process(*options, f"--run-dir={tmp_path}/straight")  # on as many devices as the others
    command = [
        sys.executable,
        str(ROOT / "experiments/run.py"),
        "--no-progress",
        *options,
        f"--run-dir={tmp_path}/killed",
    ]
    for checkpoints in (2, 5, 9):  # kill it three times, a little later each time, wherever it happens to be
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            done = [int(p.name) for p in (tmp_path / "killed/checkpoints").glob("[0-9]*")]
            if done and max(done) >= 100 * checkpoints:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    run_process("--resume", f"--run-dir={tmp_path}/killed")  # what the run is comes from its directory
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert (straight / "evaluations.csv").read_bytes() == (killed / "evaluations.csv").read_bytes()


def test_ctrl_c_takes_a_checkpoint(tmp_path):
    options = ["--agent=sac", "--env=InvertedPendulum-v5", "--steps=1000000", "--eval-every=1000000", *TINY]
    command = [sys.executable, str(ROOT / "experiments/run.py"), "--no-progress", *options, f"--run-dir={tmp_path}/run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/metrics.csv").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors.strip().splitlines()[-1]
    assert [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]


def test_debug_nans_is_one_line(tmp_path):
    options = ["--agent=sac", "--debug-nans", "--config.reward-scale=1e38", "--steps=100", *TINY]
    done = run_process(*options, f"--run-dir={tmp_path}/run", check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_seeds_over_forced_host_devices_give_the_same_numbers(tmp_path):
    """On the host; in-graph too in test_points.py."""
    options = ["--agent=sac", "--env=InvertedPendulum-v5", "--steps=300", "--eval-every=100", "--seeds=5", *TINY]
    for devices in (1, 2, 4):
        count = f"--xla_force_host_platform_device_count={devices}"
        flags = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"}
        run_process(*options, f"--run-dir={tmp_path}/{devices}", env=flags)
    tables = {}
    for devices in (1, 2, 4):
        rows = (tmp_path / str(devices) / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("critic/q_mean")
        tables[devices] = np.array([float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]])
    assert len(tables[1]) >= 4
    # The last bits differ: one device multiplies matrices of five seeds at once, four devices those of two each.
    np.testing.assert_allclose(tables[2], tables[1], rtol=0.02, atol=0.02)
    np.testing.assert_allclose(tables[4], tables[1], rtol=0.02, atol=0.02)
