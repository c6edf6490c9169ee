"""experiments/report.py on run directories that are written here: no training, every number known."""

import csv
import dataclasses
import json
import math
import re

import matplotlib.image
import numpy as np
import pytest

from experiments.report import analyse, main
from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval
from offpolicy_jax.training import Settings, results
from offpolicy_jax.training.run_directory import RunDirectory, provenance

A, B = "phys2d/Pendulum-v0", "HalfCheetah-v5"


def write_run(path, agent="sac", env=A, finals=(1.0, 2.0, 3.0), every=50, summary=None, config=None, **settings):
    """A run of 100 steps whose seeds rise on a line from 0 to their final returns; None: what a seed lost."""
    settings = dataclasses.asdict(Settings(**{"env": env, "steps": 100, "seeds": len(finals), **settings}))
    directory = RunDirectory(path)
    config = {"learning_rate": 3e-4, "hidden_sizes": [256, 256], "target": {"epochs": 4}} | (config or {})
    document = {"agent": agent, "settings": settings, "config": config, "resolved_config": config, "schedule": {}}
    directory.create(**document, **provenance(), commits=["c0ffee"])
    for step in range(every, 101, every):
        rows = [
            {"step": step, "seed": settings["seed"] + i, "return": math.nan if x is None else x * step / 100}
            for i, x in enumerate(finals)
        ]
        directory.append("evaluations.csv", rows)
    if summary is not False:
        summary = {"step": 100, "final_return": {}, "environment_steps_per_second": 1234.5} | (summary or {})
        directory.write("summary.json", json.dumps(summary))
    return path


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def pooled(root, per_env=()):
    return results.pool([seed for run in results.find_runs([root]) for seed in results.read_run(run)], per_env)


def test_a_report_end_to_end(tmp_path, capsys):
    write_run(tmp_path / "runs/one", finals=(1.0, 2.0, 3.0, 4.0))
    write_run(tmp_path / "runs/deep/two", finals=(5.0,), seed=4)  # more seeds of the same arm
    write_run(tmp_path / "runs/deep/three", "dsac_t", finals=(6.0, 7.0))
    write_run(tmp_path / "runs/four", env=B, finals=(10.0, 20.0, 30.0, 40.0, 50.0))
    write_run(tmp_path / "runs/five", "dsac_t", B, finals=(15.0, 25.0))
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), f"--out={out}"]) == 0
    assert "2 arms on 2 environments; seeds: 14 finished" in capsys.readouterr().out
    page = (out / "report.md").read_text()
    pictures = re.findall(r"\]\(([^)]*\.png)\)", page)
    assert pictures == [
        "curves_HalfCheetah-v5.png", "curves_phys2d-Pendulum-v0.png", "aggregate.png", "profile.png", "probability.png"
    ]  # fmt: skip
    for name in pictures:
        assert np.std(matplotlib.image.imread(out / name)[..., :3]) > 0.02
    for name in re.findall(r"\]\(([^)]*\.csv)\)", page):
        assert table(out / name)
    for text in ("2 to 5 seeds", "95 % percentile", "`c0ffee`", "numpy ", "--out=", "lowest and the highest final"):
        assert text in page

    report = analyse([str(tmp_path / "runs")])
    assert report.style_order(["sac"]) == ["dsac_t", "sac"]  # an arm looks the same in every picture
    final = {(row["environment"], row["arm"]): row for row in table(out / "final.csv")}
    row, scores = final[A, "sac"], [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [float(row[x]) for x in ("iqm", "mean")] == [3.0, 3.0]
    np.testing.assert_allclose([float(row["low"]), float(row["high"])], stratified_bootstrap_interval(scores))
    assert (row["seeds"], row["steps"], row["steps_per_second"]) == ("5", "100", "1234.5")
    curve = [row for row in table(out / "curves.csv") if (row["environment"], row["arm"]) == (A, "sac")]
    assert [(row["step"], float(row["iqm"])) for row in curve] == [("50", 1.5), ("100", 3.0)]
    aggregate = {(row["arm"], row["statistic"]): float(row["value"]) for row in table(out / "aggregate.csv")}
    sac = np.stack([(np.arange(1, 6) - 1) / 6, np.arange(5) / 4], axis=1)  # min-max over both arms
    assert aggregate["sac", "IQM"] == pytest.approx(float(interquartile_mean(sac)))
    assert (
        aggregate["sac", "Mean"] == pytest.approx(sac.mean()) == pytest.approx(1 - aggregate["sac", "Optimality gap"])
    )
    assert aggregate["dsac_t", "Median"] == pytest.approx(np.mean([5.5 / 6, 10.0 / 40]))
    better = {(row["arm"], row["than"]): row for row in table(out / "probability.csv")}
    assert float(better["dsac_t", "sac"]["probability_of_improvement"]) == pytest.approx((1.0 + 0.3) / 2)
    assert float(better["dsac_t", "sac"]["low"]) == pytest.approx(1.0 - float(better["sac", "dsac_t"]["high"]))
    profile = [float(row["fraction_above"]) for row in table(out / "profile.csv") if row["arm"] == "sac"]
    assert profile[0] == 1.0 and profile[-1] == 0.0 and profile == sorted(profile, reverse=True)
    assert len(table(out / "seeds.csv")) == 14


def test_arms_are_named_by_what_differs(tmp_path):
    write_run(tmp_path / "a", config={"learning_rate": 0.001})
    write_run(tmp_path / "b", env=B, config={"learning_rate": [0.0010000000474974513, 0.01, 0.1]})  # float32, by seed
    write_run(tmp_path / "c", "ppo")
    write_run(tmp_path / "d", "ppo", config={"target": {"epochs": 8}}, num_envs=2)
    write_run(tmp_path / "e", "ppo", env=B, num_envs=8, eval_episodes=3)
    seeds = {arm: [(s.env, s.seed) for s in group] for arm, group in pooled(tmp_path).items()}
    assert list(seeds) == [
        "ppo, target.epochs = 4, num_envs = 1",
        "ppo, target.epochs = 4, num_envs = 8",
        "ppo, target.epochs = 8, num_envs = 2",
        "sac, learning_rate = 0.001",
        "sac, learning_rate = 0.01",
        "sac, learning_rate = 0.1",
    ]
    assert seeds["sac, learning_rate = 0.001"] == [(A, 0), (A, 1), (A, 2), (B, 0)]
    assert len(seeds["ppo, target.epochs = 4, num_envs = 8"]) == 3


def test_settings_and_tuned_hyper_parameters_may_differ_between_environments(tmp_path):
    write_run(tmp_path / "a", config={"learning_rate": 0.1})
    write_run(tmp_path / "b", env=B, num_envs=4, config={"learning_rate": 0.2})
    assert list(pooled(tmp_path)) == ["sac, learning_rate = 0.1", "sac, learning_rate = 0.2"]
    assert list(pooled(tmp_path, ["learning_rate"])) == ["sac"]
    write_run(tmp_path / "c", config={"learning_rate": 0.3})
    assert len(pooled(tmp_path, ["learning_rate"])) == 3


def test_other_steps_and_sizes_are_other_arms(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", steps=50, config={"hidden_sizes": [64]})
    arms = ["sac, hidden_sizes = (256, 256), steps = 100", "sac, hidden_sizes = (64), steps = 50"]
    assert list(pooled(tmp_path)) == arms


@pytest.mark.parametrize("how", ["not a number", "no row", "noted"])
def test_a_diverged_seed_counts_as_the_lowest_return(tmp_path, how):
    """Its row holds no number; or survivors alone are written as the run ends; or the summary says so."""
    path = write_run(tmp_path / "a", finals=(8.0, 4.0, None if how == "not a number" else 6.0))
    if how != "not a number":
        lines = (path / "evaluations.csv").read_text().splitlines(keepends=True)
        (path / "evaluations.csv").write_text("".join(lines[:-1]))
    if how == "no row":
        (path / "summary.json").write_text(json.dumps({"step": 100, "final_return": {"0": 8.0, "1": 4.0}}))
    elif how == "noted":
        summary = {"step": 100, "final_return": {"0": 8.0, "1": 4.0, "2": None}, "diverged": {"2": 77}}
        (path / "summary.json").write_text(json.dumps(summary))
    write_run(tmp_path / "b", "ppo", finals=(10.0, 1.0))
    report = analyse([str(tmp_path)])
    cell = report.cells[A]["sac"]
    assert [seed.status for seed in cell.seeds] == ["finished", "finished", "diverged"]
    assert cell.scores.tolist() == [8.0, 4.0, 0.5]  # the lowest: PPO's second seed at step 50
    curve = cell.curve()
    half_way = 4.0 + 2.0 + (0.5 if how == "not a number" else 3.0)
    np.testing.assert_allclose(curve.middle, [half_way / 3, 12.5 / 3])
    assert curve.diverged == ([(50.0, 3.0)] if how != "not a number" else [(0.0, 0.5)])
    if how != "noted":
        return
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}", f"--reference={A}=-3:10"]) == 0
    page = (tmp_path / "out/report.md").read_text()
    assert f"**Diverged**: seed 2 of sac on {A}; counts as -3.000" in page and "1 diverged" in page
    assert [row["status"] for row in table(tmp_path / "out/seeds.csv")].count("diverged") == 1


def test_unfinished_seeds_are_shown_and_stated(tmp_path):
    write_run(tmp_path / "a", finals=(8.0, 4.0))
    write_run(tmp_path / "b", finals=(100.0,), seed=2, steps=100, summary=False)
    text = (tmp_path / "b/evaluations.csv").read_text()
    (tmp_path / "b/evaluations.csv").write_text(text[: -len("0\n")])  # a kill tore the last line
    write_run(tmp_path / "c", "ppo", steps=200)  # nothing has finished
    report = analyse([str(tmp_path)])
    cell = report.cells[A]["sac"]
    assert [seed.status for seed in cell.seeds] == ["finished", "finished", "unfinished"]
    assert cell.scores.tolist() == [8.0, 4.0] and cell.curve().unfinished == [(50.0, 50.0)]
    assert report.cells[A]["ppo"].scores.size == 0 and len(report.cells[A]["ppo"].curve().middle) == 2
    assert list(report.blocks[0].scores) == ["sac"]
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out/report.md").read_text()
    assert f"**Unfinished**: seed 2 of sac on {A}, at step 50 of 100: not in the numbers" in page
    assert f"**Unfinished**: seeds 0, 1, 2 of ppo on {A}, at step 100 of 200: no final return yet" in page
    assert "| ppo | – | – | 0 | 0 | 3 | 100 |" in page


def test_an_environment_without_a_return_yet(tmp_path):
    write_run(tmp_path / "a", finals=(8.0, 4.0))
    write_run(tmp_path / "b", env=B, summary=False)
    (tmp_path / "b/evaluations.csv").unlink()
    write_run(tmp_path / "c", "ppo", B, finals=(None, None))
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out/report.md").read_text()
    assert "No picture: no seed" in page and f"**Diverged**: seeds 0, 1 of ppo on {B}.\n" in page
    assert "| sac | – | – | 0 | 0 | 3 | 0 |" in page and "| ppo | – | – | 0 | 2 | 0 | – |" in page


def test_curves_take_the_steps_that_seeds_have_in_common(tmp_path):
    write_run(tmp_path / "a", finals=(8.0, 4.0), every=10)
    write_run(tmp_path / "b", finals=(6.0, None), every=25, seed=2)
    curve = analyse([str(tmp_path)]).cells[A]["sac"].curve()
    assert curve.x.tolist() == [50, 100] and len(curve.seeds) == 4


def test_environments_that_an_arm_lacks_and_unequal_seeds_are_stated(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", env=B, finals=(1.0, 2.0, 3.0, 4.0))
    write_run(tmp_path / "c", "ppo", finals=(1.0, 2.0))
    write_run(tmp_path / "d", "ppo", "Hopper-v5", finals=(1.0, 2.0))
    write_run(tmp_path / "e", "dqn", "CartPole-v1")
    write_run(tmp_path / "f", "c51", "CartPole-v1", finals=(7.0,))
    write_run(tmp_path / "g", "c51", "Flat-v1", finals=(7.0, 7.0))
    report = analyse([str(tmp_path)])
    blocks = {tuple(block.scores): block for block in report.blocks}
    assert set(blocks) == {("c51", "dqn"), ("ppo", "sac")}
    block = blocks["ppo", "sac"]
    assert block.envs == [A] and block.scores["sac"].shape == (3, 1) and block.scores["ppo"].shape == (2, 1)
    assert block.notes == [
        f"{B} is not in the aggregate: no final return there of ppo.",
        "Hopper-v5 is not in the aggregate: no final return there of sac.",
    ]
    assert report.notes == ["Flat-v1 is in no aggregate: it has no two different final returns."]
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out/report.md").read_text()
    assert f"{B} was not run with c51; dqn; ppo." in page and "same number of seeds on CartPole-v1" in page
    assert (tmp_path / "out/probability_1.png").exists() and (tmp_path / "out/probability_2.png").exists()


def test_without_a_common_environment_arms_with_the_same_ones_are_aggregated(tmp_path):
    for agent, envs in {"sac": (A,), "dqn": (B,), "ppo": (A, B), "props": (A, B)}.items():
        for env in envs:
            write_run(tmp_path / f"{agent}-{env.replace('/', '-')}", agent, env)
    report = analyse([str(tmp_path)])
    blocks = {tuple(block.scores): block.envs for block in report.blocks}
    assert {arms: sorted(envs) for arms, envs in blocks.items()} == {
        ("dqn",): [B], ("ppo", "props"): sorted([A, B]), ("sac",): [A]
    }  # fmt: skip
    assert any("No environment is common to dqn; ppo; props; sac" in note for note in report.notes)


def test_one_arm_takes_as_many_seeds_everywhere(tmp_path):
    write_run(tmp_path / "a", finals=(1.0, 2.0, 3.0))
    write_run(tmp_path / "b", env=B, finals=(1.0, 2.0))
    block = analyse([str(tmp_path)]).blocks[0]
    assert block.scores["sac"].tolist() == [[0.0, 0.0], [1.0, 0.5]]
    assert block.notes == [f"sac: the aggregate takes the first 2 seeds of 3 on {A}."]


def test_more_arms_than_pictures_hold(tmp_path):
    for i in range(13):
        write_run(tmp_path / str(i), finals=(float(i), i + 1.0), config={"learning_rate": 0.1 * (i + 1)})
    for agent in ("dqn", "ppo"):  # the worst of all arms, but alone there
        write_run(tmp_path / agent, agent, B, finals=(-1.0, -2.0, -2.0, -2.0, -2.0))
    assert main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    report = analyse([str(tmp_path)])
    sac = report.arms[2:]
    assert report.pictured(report.arms) == sac[1:] == report.pictured(report.cells[A])
    assert report.pictured(report.cells[B]) == ["dqn", "ppo"] == report.style_order(["dqn", "ppo"])
    page = (tmp_path / "out/report.md").read_text()
    pictures = re.findall(r"\]\(([^)]*\.png)\)", page)
    assert "at most 12 arms" in page and len(pictures) == 2 + 2 * 3
    assert all((tmp_path / "out" / name).exists() for name in pictures)
    assert len(table(tmp_path / "out/final.csv")) == 15 and len(table(tmp_path / "out/probability.csv")) == 12 * 11 + 2


def test_reference_scores(tmp_path):
    write_run(tmp_path / "a", finals=(10.0, 20.0))
    file = tmp_path / "reference.csv"
    file.write_text(f"environment,random,reference\n{A},0,40\nother,1,2\n")
    for reference in (str(file), f"{A}=0:40"):
        assert analyse([str(tmp_path / "a")], [reference]).blocks[0].scores["sac"].tolist() == [[0.25], [0.5]]


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    def fails(*arguments):
        assert main([*map(str, arguments), f"--out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("report.py: ") and error.count("\n") == 1
        return error

    good, empty = write_run(tmp_path / "good"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    assert "is not there" in fails(tmp_path / "nowhere")
    assert "is not a directory" in fails(tmp_path / "file")
    assert "holds no run" in fails(empty)
    assert "says nothing of" in fails(good, "--reference=x=1:2")
    assert "two returns that differ" in fails(good, f"--reference={A}=1:1")
    assert "two returns that differ" in fails(good, f"--reference={tmp_path / 'file.csv'}")
    assert "no run has a hyper-parameter 'rate'" in fails(good, "--per-env=rate")
    write_run(tmp_path / "again", seed=2)
    assert "both hold seed 2 of sac" in fails(good, tmp_path / "again")
    write_run(tmp_path / "other", "ppo", B)
    assert "no two of these arms have an environment in common" in fails(good, tmp_path / "other")
    assert "unrecognized arguments: --refrence" in fails(good, "--refrence=x")
    assert "are required: runs" in fails()
    for name, text, message in (
        ("evaluations.csv", "step,seed,return\n50,0,1.0\n50,1,x\n", "corrupted at line 3"),
        ("evaluations.csv", "step,seed,return\n50,0\n", "corrupted at line 2"),
        ("evaluations.csv", "step,seed,return\n50,9,1.0\n", "corrupted at line 2"),
        ("evaluations.csv", "step,seed,return\n50,0,1.0\n50,0,1.0\n", "corrupted at line 3"),
        ("evaluations.csv", "step,seed,return\n", "none of these runs has an evaluation yet"),
        ("evaluations.csv", "step,seed,return\n50,0,\n", "none of these runs has an evaluation yet"),
        ("summary.json", "{", "is not a run"),
        ("config.json", "[]", "holds no run"),
        ("config.json", "{", "is not a run"),
    ):
        bad = write_run(tmp_path / f"bad-{name}-{len(text)}-{text.count('9')}")
        (bad / name).write_text(text)
        assert message in fails(bad)
    assert "cannot write to" in (main([str(good), f"--out={tmp_path / 'file'}"]), capsys.readouterr().err)[1]
    assert main([str(good), str(good), f"--out={tmp_path / 'out'}"]) == 0  # the same directory twice is one run
    (tmp_path / "all/model").mkdir(parents=True)
    (tmp_path / "all/model/config.json").write_text('{"hidden_size": 8}')  # somebody else's
    write_run(tmp_path / "all/run")
    assert main([str(tmp_path / "all"), f"--out={tmp_path / 'out'}"]) == 0
    assert "holds no run" in fails(tmp_path / "all/model")
