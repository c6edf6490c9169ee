"""The scripts behind the published claims still run, on tiny budgets; verdicts, records, arms that diverge."""

import json
import sys

import numpy as np
import pytest

from offpolicy_jax.training import Settings
from tests.experiments.scripts import EXPERIMENTS, module, script

CLAIMS = sorted(path.stem for path in (EXPERIMENTS / "claims").glob("*.py") if path.stem not in ("common", "sampling"))
SHORT = ("ailboost_tabular", "proto_value_capacity", "ros_sign")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in CLAIMS]
)
def test_claims_run(name, tmp_path):
    printed = json.loads(script(f"claims/{name}.py", "--quick", cwd=tmp_path))
    assert printed["quick"] and printed["measurements"] and not list(tmp_path.iterdir())


def test_verdicts_come_from_intervals():
    common = module("claims/common.py")
    low, high = np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0])
    assert common.effect("x", high, low)["verdict"] == "reproduced"
    assert common.effect("x", high, low, paper_effect=20.0)["verdict"] == "not reproduced"
    assert common.effect("x", low, high)["verdict"] == "not reproduced"
    unclear = common.effect("x", np.array([0.0, 3.0]), np.array([1.0, 1.5]))
    assert unclear["verdict"] == "inconclusive" and unclear["seeds_that_would_settle_it"] > 2
    assert "no finite value" in common.effect("x", np.array([0.0, np.nan]), low)["verdict"]
    assert common.effect("x", high[:1], low[:1])["verdict"] == "not measured: one seed"
    assert common.overall([common.effect("x", high, low), unclear | {"decides": False}]) == "reproduced"
    effects = [common.effect("x", high, low), unclear]
    assert common.overall(effects[:1]) == "reproduced" and common.overall(effects) == "inconclusive"
    assert common.overall([*effects, common.effect("x", low, high)]) == "not reproduced"


def test_an_arm_with_a_diverged_seed_has_no_number(tmp_path):
    common = module("claims/common.py")
    arm = common.Arm("sac", {"hidden_sizes": (8,), "batch_size": 4, "learning_starts": 10})
    claim = common.Claim("tiny", "c", "p", "s", "m", "h", {"a": arm}, 2)
    settings = Settings(env="phys2d/Pendulum-v0", steps=40, seeds=2, eval_every=20, eval_episodes=1, progress=False)
    fine = common.run(claim, "a", settings, tmp_path)
    assert np.isfinite(fine.table["return"]).all()
    assert common.protocol(tmp_path)["a"]["settings"]["steps"] == 40 and common.protocol(tmp_path)["a"]["commits"]
    result = common.run(claim, "a", settings, None, reward_scale=np.array([1.0, 1e29], np.float32))
    assert result.states is None and len(result.table["return"]) == len(fine.table["return"])
    assert np.isnan(result.table["return"]).all() and "seed 1" in result.summary["diverged"]


def test_a_claim_s_record(tmp_path, monkeypatch):
    common = module("claims/common.py")
    claim = common.Claim("tiny", "c", "p", "s", "m", "h", {"a": common.Arm("sac")}, 2)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    (tmp_path / "README.md").write_text("above" + common._MARK + common._MARK + "below")
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    effect = common.effect("more", np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert common.main(claim, "", lambda seeds, quick, root: ({"n": seeds}, [effect], lambda path: None)) == 0
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert record["verdict"] == "reproduced" and record["measurements"] == {"n": 2} and "commit" in record
    assert "**reproduced**" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tiny.py", "--seeds=3"])  # another protocol leaves the record alone
    assert common.main(claim, "", lambda seeds, quick, root: ({"n": seeds}, [effect], lambda path: None)) == 0
    assert json.loads((tmp_path / "tiny_seeds3.json").read_text())["measurements"] == {"n": 3}
    assert json.loads((tmp_path / "tiny.json").read_text())["measurements"] == {"n": 2}
