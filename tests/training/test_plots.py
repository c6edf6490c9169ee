"""The learning curve is a valid picture for any shape of results, and leaves matplotlib as it was."""

import os
import subprocess
import sys
import warnings

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from offpolicy_jax.training import plots

STEPS = np.arange(0, 10_001, 1000)


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def returns(seeds: int, steps: int = len(STEPS)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.linspace(-1500, -200, steps)[:, None] + 50 * rng.normal(size=(steps, seeds))


def dark_pixels(path) -> int:
    """Pixels of the thick line's ink."""
    image = matplotlib.image.imread(path)[..., :3]
    return int(np.sum(np.all(np.abs(image - np.array([0x12, 0x35, 0x5B]) / 255) < 0.02, axis=-1)))


@pytest.mark.parametrize("seeds", [1, 2, 5, 20])
def test_writes_a_png(tmp_path, seeds):
    path = tmp_path / "curve.png"
    plots.learning_curve(path, STEPS, returns(seeds), title="sac on x", caption="Mean of 10 episodes.", random=-1200.0)
    image = matplotlib.image.imread(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert image.shape[0] > 600 and image.shape[1] > 1000  # 200 dots per inch
    assert dark_pixels(path) > 1000


def test_gaps_are_drawn_as_gaps(tmp_path):
    whole, gaps = returns(3), returns(3)
    gaps[6:, 1], gaps[2, 0] = np.nan, -np.inf
    for name, values in {"whole": whole, "gaps": gaps}.items():
        plots.learning_curve(tmp_path / f"{name}.png", STEPS, values, title="t", caption="c")
    assert 0 < dark_pixels(tmp_path / "gaps.png") < 0.7 * dark_pixels(tmp_path / "whole.png")


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("values", ["one step", "nothing finite", "alternating gaps", "constant", "huge", "step zero"])
def test_edge_cases_draw(tmp_path, seeds, values):
    y, steps = returns(seeds), STEPS
    if values in ("one step", "step zero"):
        y, steps = y[:1], STEPS[1:2] if values == "one step" else STEPS[:1]
    elif values == "nothing finite":
        y[:] = np.nan
    elif values == "alternating gaps":
        y[::2] = np.nan
    elif values == "constant":
        y[:] = 1000.0
    elif values == "huge":
        y *= 1e30
    plots.learning_curve(tmp_path / "curve.png", steps, y, title="t", caption="")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_aggregate_is_the_statistic_and_never_of_survivors_only():
    y = returns(5)
    y[3, 2] = np.nan
    mean, low, high = plots._aggregate(y)
    assert np.isnan([mean[3], low[3], high[3]]).all()
    kept = np.arange(len(y)) != 3
    assert (low[kept] < mean[kept]).all() and (mean[kept] < high[kept]).all()
    np.testing.assert_allclose(mean[0], np.mean(np.sort(y[0])[1:-1]))


def test_the_caption_states_seeds_and_interval():
    assert plots._explain(returns(1)).startswith("1 seed:")
    assert "5 seeds" in plots._explain(returns(5)) and "95\xa0% stratified bootstrap" in plots._explain(returns(5))
    y = returns(5)
    y[-1, :2] = np.nan
    assert "2 of 5 seeds" in plots._explain(y)


def test_bad_shapes_raise(tmp_path):
    with pytest.raises(ValueError, match=r"\(K, S\)"):
        plots.learning_curve(tmp_path / "x.png", STEPS, returns(2)[:-1], title="", caption="")
    with pytest.raises(ValueError, match=r"\(K, S\)"):
        plots.learning_curve(tmp_path / "x.png", STEPS, returns(2)[:, 0], title="", caption="")


def test_no_global_state(tmp_path):
    """Neither pyplot nor, before a picture is drawn, matplotlib is imported; settings are restored."""
    before = dict(matplotlib.rcParams)
    plots.learning_curve(tmp_path / "curve.png", STEPS, returns(2), title="t", caption="c")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, numpy as np; from offpolicy_jax.training import plots; assert 'matplotlib' not in sys.modules;"
        f"plots.learning_curve({str(tmp_path / 'x.png')!r}, [0, 1], np.zeros((2, 2)), title='', caption='');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize(("panels", "log"), [(1, ""), (2, "x"), (2, "xy")])
def test_a_comparison_draws_every_arm(tmp_path, panels, log):
    """Each arm's ink is there, also with a diverged seed; arms beyond the first differ in ink."""
    path, x = tmp_path / "arms.png", 10.0 ** np.arange(-2, 3)
    values = np.random.default_rng(0).normal(size=(3, len(x), 4))
    values[1, 2, 0] = np.nan
    arms = {name: (x, each) for name, each in zip("abc", values, strict=True)}
    tasks = {f"task {i}": arms for i in range(panels)}
    plots.comparison(path, tasks, xlabel="Scale", ylabel="Return", caption="Tiny.", log=log)
    image = matplotlib.image.imread(path)[..., :3]
    for color, _, _ in plots._ARMS[:3]:
        ink = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert np.sum(np.all(np.abs(image - ink) < 0.02, axis=-1)) > 200 * panels
