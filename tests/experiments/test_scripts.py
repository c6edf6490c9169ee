"""The scripts behind the published figures still run: tiny budgets, nothing is measured here."""

import json
import sys

import pytest

from offpolicy_jax.training import Settings, seeds
from tests.experiments.scripts import EXPERIMENTS, module, script

SCRIPTS = sorted(str(p.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.rglob("*.py"))


@pytest.mark.slow
def test_scaling_prints_a_row_per_size(tmp_path):
    out = tmp_path / "rows.json"
    options = ["--seeds=1,2", "--envs=phys2d/Pendulum-v0", "--steps=40", "--capacity=2000", f"--out={out}"]
    lines = script("benchmarks/scaling.py", *options, cwd=tmp_path).splitlines()
    assert len(lines) == 3 and "compile s" in lines[0]
    rows = json.loads(out.read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 2] and all(row["compile_seconds"] > 0 for row in rows)


def test_replay_and_matmul_benchmarks(tmp_path):
    options = ["--steps=5", "--loop-steps=5", "--capacities", "50", "100", "--repeats=1"]
    result = json.loads(script("benchmarks/ours.py", "replay", *options, cwd=tmp_path))
    assert {(row["capacity"], row["mode"]) for row in result["results"]} == {
        (50, "scan"), (50, "calls"), (100, "scan"), (100, "calls")
    }  # fmt: skip
    assert json.loads(script("benchmarks/ours.py", "matmul", "--repeats=1", cwd=tmp_path))["gflops_per_second"] > 1


@pytest.mark.slow
def test_agents_are_timed_beside_sac(tmp_path):
    printed = script("benchmarks/cost.py", "--quick", f"--out={tmp_path / 'cost.json'}", cwd=tmp_path)
    record = json.loads((tmp_path / "cost.json").read_text())
    agents = {
        "sac",
        "dsac_t",
        "sac, ring of 1M",
        *(f"ailboost, {n}" for n in ("1 learner", "1 000 learners", "10 kept")),
    }
    assert set(record["steps_per_second"]) == agents and "dsac_t" in printed
    assert (
        set(record["time_per_step_over_sac"]) == {"sac", "dsac_t"} and record["ailboost"]["time_per_step_over_sac"] > 0
    )
    assert record["time_per_step_over_sac"]["dsac_t"] > 0.0


@pytest.mark.parametrize("path", SCRIPTS)
def test_every_script_imports(path, monkeypatch):
    for folder in ("benchmarks", "claims"):
        monkeypatch.syspath_prepend(str(EXPERIMENTS / folder))
    assert module(path).__doc__


def test_cost_is_relative_to_sac_within_rounds(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
    rates = {"sac": [100.0, 200.0, 300.0], "other": [50.0, 50.0, 100.0]}
    assert module("benchmarks/cost.py").relative_time(rates) == {"sac": 1.0, "other": 3.0}


def test_cost_of_ailboost_is_per_step_and_per_update(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
    rates = {"sac, ring of 1M": [30.0], "ailboost, 1 learner": [20.0]}
    rates |= {"ailboost, 1 000 learners": [10.0], "ailboost, 10 kept": [40.0]}
    assert list(module("benchmarks/cost.py").ailboost_ratios(rates, 0.5).values()) == [1.5, 3.0, 2.0, 2.0]


def test_ratios_are_taken_within_rounds():
    summary = module("benchmarks/throughput.py").summary({"ours": [200.0, 300.0, 600.0], "peer": [100.0, 200.0, 200.0]})
    assert summary["ours_over_peer"] == {"peer": 2.0} and summary["steps_per_second"] == {"ours": 300.0, "peer": 200.0}


def test_a_sweep_is_held_against_single_runs(tmp_path, monkeypatch, capsys):
    """Of 32 single runs at 10 seconds, the first at 30, three are timed; the sweep takes 70."""
    benchmark, times = module("benchmarks/sweep.py"), iter([70.0, 30.0, 10.0, 10.0])
    monkeypatch.setattr(benchmark, "timed", lambda script, arguments, cache: next(times))
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--singles=3", f"--out={tmp_path / 'sweep.json'}"])
    benchmark.main()
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert (record["points"], record["all_singles_seconds"], record["speedup"]) == (32, 340.0, 340.0 / 70.0)
    assert record["all_singles_extrapolated_from"] == 3 and "extrapolated from 3" in capsys.readouterr().out


def test_arithmetic_of_an_update():
    gflops = module("benchmarks/ours.py").sac_update_gflops(17, 6)
    assert 0.5 < gflops < 0.65  # 2 x 256 x about 1.15 million multiply-adds


def test_the_peers_interpreter_is_found_from_where_the_benchmark_starts(tmp_path, monkeypatch):
    benchmark = module("benchmarks/throughput.py")
    (tmp_path / "peers").symlink_to(sys.executable)  # as in a virtual environment: not to be resolved
    monkeypatch.chdir(tmp_path)
    assert benchmark.interpreter("./peers") == str(tmp_path / "peers")
    with pytest.raises(SystemExit, match=r"nowhere/python is not there: peers\.py says how"):
        benchmark.interpreter("nowhere/python")


def test_updates_alone_are_timed(tmp_path):
    out = script("benchmarks/ours.py", "update", "--env=phys2d/Pendulum-v0", "--steps=2", cwd=tmp_path)
    assert json.loads(out.splitlines()[-1])["steps_per_second"] > 0


def test_peers_explain_themselves(tmp_path):
    assert "sbx_sac" in script("benchmarks/peers.py", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_scaling_keeps_the_rows_of_what_works_and_names_what_fails(tmp_path):
    out = tmp_path / "rows.json"
    options = ["--seeds=2", "--steps=1", "--envs=Nothing-v0,phys2d/Pendulum-v0", f"--out={out}"]
    assert "failed: " in script("benchmarks/scaling.py", *options, cwd=tmp_path)
    document = json.loads(out.read_text())
    failed, row = document["rows"]
    assert "Nothing-v0" in failed["failed"] and row["steps"] == 400 and row["steps_per_second"] > 0
    assert "--envs=Nothing-v0,phys2d/Pendulum-v0" in document["command"]


@pytest.mark.slow
def test_seeds_at_once_are_timed_in_turn_and_together(tmp_path):
    options = ["--seeds=1,8", "--steps=8", "--rounds=2", "--cases=phys2d/Pendulum-v0:128,phys2d/Pendulum-v0:8"]
    script("benchmarks/lanes.py", *options, f"--out={tmp_path / 'lanes.json'}", cwd=tmp_path)
    record = json.loads((tmp_path / "lanes.json").read_text())
    large, small = (record[f"phys2d/Pendulum-v0:{units}"] for units in (128, 8))
    both = {"8"} if seeds.num_cores() < 8 else set()  # with a core for each there is nothing to wait for
    assert set(large["in_turn_over_together"]) == set(small["in_turn_over_together"]) == both
    assert set(large["rounds"]) == {"1", "8"} | {f"{count}, together" for count in both}
    assert set(small["rounds"]) == {"1", "8"} | {f"{count}, in turn" for count in both}
    assert all(len(each) == 2 for each in large["rounds"].values())


def test_lanes_are_compared_within_rounds(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks"))
    lanes = module("benchmarks/lanes.py")
    rates = {"4": [2.0, 9.0, 4.0], "4, together": [1.0, 3.0, 2.0], "8": [1.0, 1.0, 1.0], "8, in turn": [0.5, 0.5, 0.5]}
    assert lanes.in_turn_over_together(rates) == {"4": 2.0, "8": 0.5}


def test_evidence_writes_a_record_and_the_index(tmp_path, monkeypatch):
    evidence = module("evidence.py")
    settings = Settings(env="phys2d/Pendulum-v0", steps=40, seeds=2, eval_every=20, eval_episodes=1, progress=False)
    config = {"hidden_sizes": (8,), "batch_size": 4, "learning_starts": 10}
    monkeypatch.setattr(evidence, "RUNS", {"tiny": evidence.Evidence("sac", settings, -1e9, "mean", config)})
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    (tmp_path / "README.md").write_text("above" + evidence._MARK + evidence._MARK + "below")
    monkeypatch.setattr(sys, "argv", ["evidence.py", "tiny", f"--run-dir={tmp_path / 'run'}"])
    assert evidence.main() == 0
    document = json.loads((tmp_path / "tiny.json").read_text())
    assert document["met"] and document["curve"]["step"] == [20, 40] and len(document["curve"]["return"]["1"]) == 2
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("above") and page.endswith("below") and "`tiny`" in page
    many = document | {"final_return": {str(i): float(-i) for i in range(12)}}
    (tmp_path / "tiny.json").write_text(json.dumps(many))
    evidence.write_index()
    assert "(seeds: -11 to 0)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "tiny.png").exists()


def test_evidence_runs_name_agents_presets_and_fields_that_exist():
    evidence = module("evidence.py")
    for run in evidence.RUNS.values():
        agent = evidence.agents.load(run.agent)
        assert agent.Config(**run.config) and (run.preset is None or run.preset in agent.PRESETS)


@pytest.mark.slow
def test_the_pipeline_on_atari_is_measured(tmp_path):
    record = json.loads(script("benchmarks/atari.py", "--quick", f"--run-dir={tmp_path / 'run'}", cwd=tmp_path))
    assert record["frames_per_second"] > 0 and 0.0 <= record["dormant_units"] < 1.0
    assert record["features"] == 256 and 1 <= record["effective_rank"] <= 64
    # A short ring has some frames more than rows, and the flags of each transition.
    assert 400 <= record["replay_bytes_per_transition"] < 1.2 * record["bytes_of_a_frame"]
    for phase in ("pre_training", "control"):
        assert record[phase]["step"] and len({len(column) for column in record[phase].values()}) == 1
    assert max(record["pre_training"]["step"]) <= 60 < min(record["control"]["step"])
    assert abs(record["linear_probe_return"]) <= 21 and str(tmp_path) not in json.dumps(record)


@pytest.mark.slow
def test_on_policy_agents_are_timed(tmp_path):
    printed = script("benchmarks/on_policy.py", "--quick", f"--out={tmp_path / 'on.json'}", cwd=tmp_path)
    record = json.loads((tmp_path / "on.json").read_text())["seeds_2"]
    assert (
        set(record["steps_per_second"]) == set(record["props"]["steps_per_second"]) == {"ours"} and "PROPS" in printed
    )
