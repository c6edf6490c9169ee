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


ARMS = [f"agent_{i}, learning_rate = 0.0001, tau = 0.005" for i in range(12)]


def inks(path) -> list[int]:
    """Pixels of each arm's ink."""
    image = matplotlib.image.imread(path)[..., :3]
    colors = [[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color, _, _ in plots._ARMS]
    return [int(np.sum(np.all(np.abs(image - color) < 0.02, axis=-1))) for color in colors]


@pytest.mark.parametrize("count", [1, 12])
def test_pictures_of_a_report_hold_a_dozen_arms(tmp_path, count):
    """Every arm's ink is there, in the place among all arms that fixes it; a layout without room would warn."""
    arms, x = ARMS[-count:], np.linspace(0.0, 1.0, 11)
    lines = {arm: np.stack([1.0 - x**k, 0.9 - x**k, 1.1 - x**k]) for k, arm in enumerate(arms, 1)}
    curves = {
        arm: plots.Curve(x, *y, seeds=[(x, y[1])], diverged=[(0.5, 0.5)], unfinished=[(0.2, 0.2)])
        for arm, y in lines.items()
    }
    plots.learning_curves(tmp_path / "curves.png", curves, title="task", caption="c", arms=ARMS)
    plots.profiles(tmp_path / "profiles.png", x, lines, title="t", caption="c", order=ARMS)
    values = {arm: (i / 12, i / 12 - 0.1, float("nan") if i == 3 else i / 12 + 0.1) for i, arm in enumerate(arms)}
    panels = {"IQM": values, "Mean": values}
    plots.estimates(tmp_path / "estimates.png", panels, title="t", caption="c", order=ARMS)
    for name, least in {"curves": 500, "profiles": 500, "estimates": 50}.items():
        found = np.array(inks(tmp_path / f"{name}.png")) > least
        assert found[-count:].all()
        assert not found[[i for i in range(12 - count) if i not in (4, 10)]].any()  # the greys are the text's too
    table = {(a, b): (0.6, 0.4, 0.8) for a in ARMS[: count + 1] for b in ARMS[: count + 1] if a != b}
    plots.probabilities(tmp_path / "probabilities.png", table, title="t", caption="c")
    assert matplotlib.image.imread(tmp_path / "probabilities.png").shape[1] > 1000


def test_arms_differ_in_grey_too():
    """No two share colour, or dashes and marker; a thirteenth has no style."""
    assert len({color for color, _, _ in plots._ARMS}) == len({marker for _, _, marker in plots._ARMS}) == 12
    with pytest.raises(ValueError, match="at most 12 arms, not 13"):
        plots._styles([*ARMS, "one more"])


def test_an_arm_keeps_its_style_in_every_panel(tmp_path):
    arm = (np.arange(5), np.random.default_rng(0).normal(size=(5, 3)))
    panels = {"one": {"a": arm, "b": arm}, "two": {"b": arm}}
    plots.comparison(tmp_path / "x.png", panels, xlabel="x", ylabel="y", caption="c")
    image = matplotlib.image.imread(tmp_path / "x.png")[:, :, :3]
    right = image[:, image.shape[1] * 55 // 100 :]
    first, second = ([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color, _, _ in plots._ARMS[:2])
    count = [np.sum(np.all(np.abs(right - ink) < 0.02, axis=-1)) for ink in (first, second)]
    assert count[0] == 0 and count[1] > 200
