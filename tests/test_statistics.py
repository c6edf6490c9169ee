"""Statistics over seeds: hand tables, coverage, agreement with SciPy, and with rliable to the last digits."""

import math

import numpy as np
import pytest
import scipy.stats
from rliable import library, metrics

from offpolicy_jax.statistics import (
    aggregate_median,
    difference_interval,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    performance_profile_interval,
    probability_of_improvement,
    probability_of_improvement_interval,
    stratified_bootstrap_interval,
)

TABLE = [  # scores, their interquartile mean
    ([7.0], 7.0),
    ([1.0, 3.0], 2.0),
    ([0.0, 3.0, 9.0], 4.0),  # fewer than four: the mean
    ([100.0, 1.0, 2.0, -50.0], 1.5),
    ([5.0, 4.0, 3.0, 2.0, 90.0], 4.0),  # floor(5 / 4) = 1 from each end
    ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.5),
    ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 99.0, -9.0], 2.0),
]


@pytest.mark.parametrize(("scores", "expected"), TABLE)
def test_interquartile_mean_of_hand_tables(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_interquartile_mean_axes():
    scores = np.random.default_rng(0).normal(size=(5, 6, 7))
    expected = [interquartile_mean(row) for row in scores]
    np.testing.assert_allclose(interquartile_mean(scores, axis=(1, 2)), expected)
    np.testing.assert_allclose(interquartile_mean(scores.T, axis=(0, 1)), expected)
    columns = [[interquartile_mean(scores[i, :, j]) for j in range(7)] for i in range(5)]
    np.testing.assert_allclose(interquartile_mean(scores, axis=1), columns)
    np.testing.assert_allclose(interquartile_mean(scores, axis=-2), columns)


def test_interval_of_two_seeds_is_exact():
    """The mean of two draws is low, middle or high with odds 1:2:1: 95 % reaches from end to end, 40 % does not."""
    assert stratified_bootstrap_interval([0.0, 10.0], np.mean) == (0.0, 10.0)
    assert stratified_bootstrap_interval([0.0, 10.0], np.mean, confidence=0.4) == (5.0, 5.0)


def test_interval_is_reproducible_ordered_and_scales():
    scores = np.random.default_rng(1).normal(size=8)
    low, high = stratified_bootstrap_interval(scores)
    assert (low, high) == stratified_bootstrap_interval(scores)
    assert (low, high) != stratified_bootstrap_interval(scores, seed=1)
    assert scores.min() <= low < interquartile_mean(scores) < high <= scores.max()
    narrow = stratified_bootstrap_interval(scores, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
    np.testing.assert_allclose(stratified_bootstrap_interval(3 * scores + 1), (3 * low + 1, 3 * high + 1))


def test_tasks_are_strata():
    """A task's level, the same for all seeds, adds no width; spread between seeds does."""
    levels = np.tile([0.0, 1000.0, -1000.0], (6, 1))
    assert stratified_bootstrap_interval(levels, np.mean) == (0.0, 0.0)
    noisy = levels + np.random.default_rng(2).normal(size=levels.shape)
    low, high = stratified_bootstrap_interval(noisy, np.mean)
    assert high - low < 3.0


def test_coverage_is_near_nominal():
    """Of 95 % intervals for the mean of 20 normal scores, about 93 % hold the truth: the percentile bootstrap's own."""
    samples = np.random.default_rng(3).normal(size=(300, 20))
    intervals = [stratified_bootstrap_interval(s, np.mean, resamples=500) for s in samples]
    covered = np.mean([low <= 0.0 <= high for low, high in intervals])
    assert 0.88 < covered < 0.98


@pytest.mark.parametrize("scores", [[3.0], [[3.0, 4.0]]])
def test_one_seed_has_no_interval(scores):
    assert all(math.isnan(x) for x in stratified_bootstrap_interval(scores))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [interquartile_mean, stratified_bootstrap_interval])
def test_diverged_seeds_are_the_callers_decision(function, bad):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite: give diverged seeds a score"):
        function([1.0, bad, 2.0])


def test_bad_arguments():
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean([])
    with pytest.raises(ValueError, match="shape"):
        stratified_bootstrap_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="confidence"):
        stratified_bootstrap_interval([1.0, 2.0], confidence=95)


def test_interval_agrees_with_scipy():
    scores = np.random.default_rng(4).gamma(2.0, 100.0, 9)
    options = {"n_resamples": 4000, "method": "percentile", "rng": np.random.default_rng(0)}
    theirs = scipy.stats.bootstrap((scores,), interquartile_mean, **options).confidence_interval
    low, high = stratified_bootstrap_interval(scores, resamples=4000)
    np.testing.assert_allclose((low, high), theirs, atol=0.05 * (high - low))


def test_difference_interval_of_two_pairs_is_exact():
    """Means of two draws are 0, 5, 10 and 0, 1, 2 with odds 1:2:1: the extremes have 1/16 each."""
    assert difference_interval([0.0, 10.0], [0.0, 2.0]) == (-2.0, 10.0)
    assert difference_interval([0.0, 2.0], [0.0, 10.0]) == (-10.0, 2.0)


def test_difference_interval_agrees_with_scipy():
    random = np.random.default_rng(0)
    a, b = random.normal(1.0, size=30), random.normal(0.0, 2.0, size=20)
    peer = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(difference_interval(a, b), peer, atol=0.05)


def test_difference_interval_needs_two_seeds_and_finite_scores():
    assert np.all(np.isnan(difference_interval([1.0], [1.0, 2.0])))
    with pytest.raises(ValueError):
        difference_interval([1.0, np.nan], [1.0, 2.0])


def test_pairs_share_what_varies_between_them():
    """Scores that differ by a constant: nothing is left to resample."""
    base = np.random.default_rng(0).normal(size=8)
    low, high = difference_interval(base + 2.0, base, paired=True)
    np.testing.assert_allclose([low, high], 2.0)
    apart = difference_interval(base + 2.0, base)
    assert apart[0] < 1.5 and apart[1] > 2.5
    other = base + np.random.default_rng(1).normal(size=8)
    interval = difference_interval(base, other, paired=True)
    assert interval == difference_interval(base - other, np.zeros(8))
    with pytest.raises(ValueError, match="8 and 7 scores are not pairs"):
        difference_interval(base, base[1:], paired=True)


SCORES = np.array([[0.0, 1.0, 10.0], [2.0, 3.0, 50.0]])  # two seeds of three tasks


def test_aggregates_of_a_hand_table():
    assert aggregate_median(SCORES) == 2.0  # of the means over seeds, 1, 2 and 30
    assert optimality_gap(SCORES / 4.0) == pytest.approx(1.0 - (0.0 + 0.25 + 1.0 + 0.5 + 0.75 + 1.0) / 6)
    assert optimality_gap(SCORES, threshold=2.0) == pytest.approx(2.0 - (0 + 1 + 2 + 2 + 2 + 2) / 6)
    batch = np.stack([SCORES, 2.0 * SCORES])
    np.testing.assert_allclose(aggregate_median(batch, axis=(1, 2)), [2.0, 4.0])
    np.testing.assert_allclose(optimality_gap(batch, axis=[1, 2]), [optimality_gap(SCORES), optimality_gap(2 * SCORES)])


def test_performance_profile_of_a_hand_table():
    np.testing.assert_allclose(performance_profile(SCORES, [-1.0, 0.0, 2.5, 50.0]), [1.0, 5 / 6, 0.5, 0.0])
    low, high = performance_profile_interval([0.0, 10.0], [-1.0, 5.0, 10.0])
    assert low.tolist() == [1.0, 0.0, 0.0] and high.tolist() == [1.0, 1.0, 0.0]  # two draws of two seeds
    assert np.isnan(performance_profile_interval([[0.0, 10.0]], [5.0])).all()


def test_probability_of_improvement_of_a_hand_table():
    assert probability_of_improvement([1.0, 3.0], [2.0]) == 0.5
    assert probability_of_improvement([2.0, 3.0], [2.0, 2.0]) == 0.75  # a tie counts as half
    assert probability_of_improvement([[1.0, 5.0], [3.0, 6.0]], [[2.0, 0.0]]) == 0.75  # mean of 1/2 and 1
    assert probability_of_improvement_interval([1.0, 3.0], [2.0, 2.0]) == (0.0, 1.0)
    assert np.isnan(probability_of_improvement_interval([1.0, 3.0], [2.0])).all()
    with pytest.raises(ValueError, match="2 and of 1 tasks"):
        probability_of_improvement([[1.0, 5.0]], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        probability_of_improvement([1.0, np.nan], [1.0])


def test_tasks_are_strata_of_the_other_intervals():
    """Seeds that all agree leave nothing to resample, however much tasks differ."""
    levels = np.tile([0.0, 1.0, 5.0], (4, 1))
    assert stratified_bootstrap_interval(levels, aggregate_median) == (1.0, 1.0)
    assert stratified_bootstrap_interval(levels, optimality_gap) == pytest.approx((1 / 3, 1 / 3))
    assert probability_of_improvement_interval(levels, levels[:3]) == (0.5, 0.5)
    low, high = performance_profile_interval(levels, [0.5, 2.0])
    np.testing.assert_allclose([low, high], [[2 / 3, 1 / 3]] * 2)


# rliable draws by np.random.choice; here both draw the same numbers, so that they must agree exactly.
RESAMPLES = 100
X, Y = np.random.default_rng(5).normal(size=(7, 4)), np.random.default_rng(6).normal(0.5, size=(5, 4))
TIED_X, TIED_Y = np.round(X), np.round(Y)


@pytest.fixture
def rliable_draws(monkeypatch):
    """Let rliable draw what the default generator of this package draws for scores of these shapes."""

    def prepare(*scores):
        random = np.random.default_rng(0)
        drawn = [random.integers(len(s), size=(RESAMPLES, *s.shape)) for s in scores]
        following = (draw for resample in zip(*drawn, strict=True) for draw in resample)
        monkeypatch.setattr(np.random, "choice", lambda *args, **options: next(following))

    return prepare


STATISTICS = [
    (np.mean, metrics.aggregate_mean),
    (aggregate_median, metrics.aggregate_median),
    (interquartile_mean, metrics.aggregate_iqm),
    (optimality_gap, metrics.aggregate_optimality_gap),
]


@pytest.mark.parametrize(("ours", "theirs"), STATISTICS)
@pytest.mark.parametrize("scores", [X, Y, X[:3], X[:, :1], TIED_X])
def test_aggregates_and_intervals_are_those_of_rliable(rliable_draws, ours, theirs, scores):
    rliable_draws(scores)
    point, interval = library.get_interval_estimates({"x": scores}, lambda s: np.array([theirs(s)]), reps=RESAMPLES)
    np.testing.assert_allclose(ours(scores), point["x"][0], rtol=1e-12)
    mine = stratified_bootstrap_interval(scores, ours, resamples=RESAMPLES)
    np.testing.assert_allclose(mine, interval["x"][:, 0], rtol=1e-12)


def test_profiles_are_those_of_rliable(rliable_draws):
    thresholds = np.linspace(-2.0, 2.0, 9)
    rliable_draws(X)
    point, interval = library.create_performance_profile({"x": X}, thresholds, reps=RESAMPLES)
    np.testing.assert_allclose(performance_profile(X, thresholds), point["x"], rtol=1e-12)
    mine = performance_profile_interval(X, thresholds, resamples=RESAMPLES)
    np.testing.assert_allclose(mine, interval["x"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("x", "y"), [(X, Y), (Y, X), (TIED_X, TIED_Y), (X, X)])
def test_probabilities_of_improvement_are_those_of_rliable(rliable_draws, x, y):
    rliable_draws(x, y)
    point, interval = library.get_interval_estimates(
        {"x,y": [x, y]}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=RESAMPLES
    )
    np.testing.assert_allclose(probability_of_improvement(x, y), point["x,y"][0], rtol=1e-12)
    mine = probability_of_improvement_interval(x, y, resamples=RESAMPLES)
    np.testing.assert_allclose(mine, interval["x,y"][:, 0], rtol=1e-12)
