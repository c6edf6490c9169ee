"""`train_points`: several configs as one program, whose runs are what each would have been alone."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from agents import sac
from offpolicy_jax import environments
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, restore, train, train_points
from tests import probes

ROOT = pathlib.Path(__file__).parents[2]
SMALL = sac.Config(hidden_sizes=(8,), batch_size=8, learning_starts=20)
BOTH = pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])


@pytest.fixture(autouse=True)
def probe_environments():
    environment = probes.ConstantReward()
    environments.register("probe/in-graph", lambda num_envs: environment)
    environments.register("probe/host", lambda num_envs: probes.HostProbe(environment, num_envs))


def settings(**changes):
    base = Settings(env="probe/in-graph", seeds=2, steps=120, eval_every=40, eval_episodes=2, progress=False)
    return dataclasses.replace(base, **changes)


def point(**changes):
    return dataclasses.replace(SMALL, **changes)


@BOTH
def test_a_lane_is_the_run_that_it_would_be_alone(env):
    configs = {"slow": point(learning_rate=1e-4), "fast": point(learning_rate=1e-2, tau=0.1)}
    both = train_points(sac, settings(env=env, seed=3), configs)
    alone = train(sac, settings(env=env, seed=4, seeds=1), configs["fast"])
    for many, one in zip(jax.tree.leaves(both["fast"].states), jax.tree.leaves(alone.states), strict=True):
        np.testing.assert_allclose(many[1], one[0], rtol=2e-3, atol=2e-4)  # batched products round differently
    assert both["fast"].table["seed"].tolist() == [3, 4] * 3
    assert not np.allclose(both["fast"].states.log_alpha, both["slow"].states.log_alpha, rtol=1e-6, atol=0.0)


def test_points_and_seeds_are_one_program():
    traces = {"act": 0, "update": 0}

    def counted(name):
        def function(*args):
            traces[name] += 1
            return getattr(sac, name)(*args)

        return function

    members = {name: getattr(sac, name) for name in ("Config", "State", "init", "policy")}
    agent = types.SimpleNamespace(**members, act=counted("act"), update=counted("update"), __name__="counted")
    train(agent, settings(), SMALL)  # type: ignore[arg-type]
    first = dict(traces)
    rates = {str(rate): point(learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2)}
    train_points(agent, settings(), rates)  # type: ignore[arg-type]
    assert {name: traces[name] - first[name] for name in traces} == first


@BOTH
def test_a_point_that_diverges_ends_nothing_and_a_resumed_program_is_the_same(env, tmp_path):
    configs = {"good": point(learning_starts=60), "bad": point(reward_scale=1e29, learning_starts=60)}
    whole = train_points(sac, settings(env=env, run_dir=str(tmp_path / "whole")), configs)
    assert whole["good"].table["return"].tolist() == [10.0] * 6 and "diverged" not in whole["good"].summary
    bad = whole["bad"]
    assert bad.summary["diverged"] == {"0": 60, "1": 60} and bad.summary["iqm"] is None
    assert bad.table["return"][:2].tolist() == [10.0, 10.0] and np.all(np.isnan(bad.table["return"][2:]))
    assert bad.table["step"].tolist() == [40, 40, 80, 80, 120, 120]  # kept, not hidden

    train_points(sac, settings(env=env, run_dir=str(tmp_path / "cut"), steps=80), configs)
    again = train_points(sac, settings(env=env, run_dir=str(tmp_path / "cut"), resume=True), configs)
    assert again["bad"].summary["diverged"] == {"0": 60, "1": 60}
    for name in ("evaluations.csv", "metrics.csv"):
        for run in configs:
            assert (tmp_path / "whole" / run / name).read_bytes() == (tmp_path / "cut" / run / name).read_bytes()


def test_a_program_whose_lanes_have_all_diverged_stops():
    configs = {"a": point(reward_scale=1e29), "b": point(reward_scale=1e30)}
    results = train_points(sac, settings(steps=10_000, eval_every=5_000), configs)
    assert results["a"].table["step"].max() < 5_000 and results["a"].summary["iqm"] is None
    assert set(results["b"].summary["diverged"]) == {"0", "1"} and np.all(np.isnan(results["b"].table["return"]))


def test_every_point_is_a_run_directory(tmp_path):
    root, rates = tmp_path / "program", {"low": 1e-4, "high": np.array([1e-3, 1e-2])}
    configs = {name: point(learning_rate=rate) for name, rate in rates.items()}
    results = train_points(sac, settings(run_dir=str(root)), configs)
    for name in rates:
        names = {path.name for path in (root / name).iterdir()}
        assert names == {"config.json", "metrics.csv", "evaluations.csv", "summary.json", "learning_curve.png"}
        own = settings(run_dir=str(root / name))
        learner, _ = restore(sac, own, configs[name])  # from the checkpoint of the program
        same = jax.tree.map(np.array_equal, learner.agent, results[name].states)
        assert all(jax.tree.leaves(same)) and learner.replay.size == 120
        with pytest.raises(UserError, match="part of a sweep: resume that"):
            train(sac, dataclasses.replace(own, resume=True), configs[name])
    assert json.loads((root / "high/config.json").read_text())["config"]["learning_rate"] == [1e-3, 1e-2]
    with pytest.raises(UserError, match=r"holds something else \(high\)"):
        train_points(sac, settings(run_dir=str(root), resume=True), {"low": configs["low"]})
    with pytest.raises(UserError, match=r"learning_rate=0.0001, not 0.5"):
        train_points(sac, settings(run_dir=str(root), resume=True), configs | {"low": point(learning_rate=0.5)})
    (root / "low").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has checkpoints, but no run 'low'"):
        train_points(sac, settings(run_dir=str(root), resume=True), configs)


def test_points_that_fix_other_shapes_are_refused():
    with pytest.raises(UserError, match="may differ in floats only"):
        train_points(sac, settings(), {"a": SMALL, "b": point(batch_size=4)})


@functools.cache
def on_devices(count, env, in_turn=False):
    """Devices, lanes with copies, and what ten lanes come to, in a process of its own."""
    program = f"""
import json
from tests.training import test_points as t
from offpolicy_jax.training import in_graph, seeds, train_points
in_graph.IN_TURN_BYTES, seeds.num_cores, turns = {(0 if in_turn else 2**60, 2**60)}, lambda: 1, []
run_in_turn = in_graph.run_in_turn
in_graph.run_in_turn = lambda *args: turns.append(True) or run_in_turn(*args)
t.environments.register("probe/host", lambda num_envs: t.probes.HostProbe(t.probes.ConstantReward(), num_envs))
lanes = seeds.lanes(10)
options = t.settings(env="{env}", seeds=5, steps=60, eval_every=60)
results = train_points(t.sac, options, {{"a": t.SMALL, "b": t.point(learning_rate=1e-2)}})
assert results["b"].states.log_alpha.shape == (5,) and bool(turns) == {in_turn}
found = [r.table["return"].tolist() + r.states.log_alpha.tolist() for r in results.values()]
print(json.dumps([lanes.mesh.size, lanes.padded, found]))
"""
    forced = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": forced},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("env", "count", "padded", "in_turn"),
    [
        ("phys2d/Pendulum-v0", 4, 12, False),  # two of them are copies
        ("phys2d/Pendulum-v0", 4, 12, True),
        pytest.param("phys2d/Pendulum-v0", 2, 10, False, marks=pytest.mark.slow),
        pytest.param("probe/host", 4, 12, False, marks=pytest.mark.slow),
        pytest.param("probe/host", 2, 10, False, marks=pytest.mark.slow),
    ],
)
def test_lanes_over_forced_devices_are_padded_and_give_the_same_numbers(env, count, padded, in_turn):
    devices, lanes, found = on_devices(count, env, in_turn)
    assert (devices, lanes) == (count, padded)
    devices, lanes, expected = on_devices(1, env)
    assert (devices, lanes) == (1, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
