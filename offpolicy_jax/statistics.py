"""Statistics over seeds and tasks, with stratified bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

Scores are (seeds,) or (seeds, tasks), a column per task; over several tasks they want to be normalised first. The
tests hold all of this against rliable, the paper's code.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[..., np.ndarray]
"""A function of an array and the keyword `axis` (an int or a tuple), as np.mean and np.median are."""


def interquartile_mean(scores: ArrayLike, axis: int | Sequence[int] | None = None) -> np.ndarray:
    """Mean of the middle half: floor(n / 4) scores are cut from each end of the n along `axis` (all of them if None).

    Up to three scores it is the mean. Raises ValueError for no scores, and for NaN or infinite ones: see `_finite`.
    """
    scores = _finite(scores)
    axes = range(scores.ndim) if axis is None else np.atleast_1d(axis)
    axes = [int(a) % scores.ndim for a in axes]
    kept = [scores.shape[a] for a in range(scores.ndim) if a not in axes]
    flat = np.moveaxis(scores, axes, range(-len(axes), 0)).reshape(*kept, -1)
    cut = flat.shape[-1] // 4
    middle = np.sort(flat, axis=-1)[..., cut : flat.shape[-1] - cut]
    return np.mean(middle, axis=-1)


def aggregate_median(scores: ArrayLike, axis: Sequence[int] = (-2, -1)) -> np.ndarray:
    """Median over tasks of the mean over seeds, for `axis` = (seeds, tasks). Raises ValueError as `_finite`."""
    scores = _finite(scores)
    seeds, tasks = (a % scores.ndim for a in axis)
    return np.median(np.mean(scores, axis=seeds, keepdims=True), axis=(seeds, tasks))


def optimality_gap(scores: ArrayLike, axis: int | Sequence[int] | None = None, threshold: float = 1.0) -> np.ndarray:
    """How far scores fall short of a threshold on average; what lies above it counts as the threshold."""
    axis = axis if axis is None or isinstance(axis, int) else tuple(axis)
    return threshold - np.mean(np.minimum(_finite(scores), threshold), axis=axis)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Run-score distribution: the fraction of all runs, over seeds and tasks, that score above each threshold, (T,)."""
    return np.mean(_finite(scores).reshape(-1, 1) > np.asarray(thresholds), axis=0)


def performance_profile_interval(
    scores: ArrayLike, thresholds: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise stratified bootstrap interval of `performance_profile`, as (low (T,), high (T,))."""
    scores, thresholds = _finite(scores), np.asarray(thresholds)
    if len(scores) == 1:
        return np.full(len(thresholds), np.nan), np.full(len(thresholds), np.nan)
    drawn = _resample(scores, resamples, np.random.default_rng(seed))
    low, high = np.transpose([_percentiles(np.mean(drawn > t, axis=(1, 2)), confidence) for t in thresholds])
    return low, high


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Probability that a run of X scores above a run of Y on a task, averaged over tasks; a tie counts as half.

    Scores x (n,) or (n, tasks) and y (m,) or (m, tasks), with leading batch axes if both have tasks. Raises ValueError
    for tasks that differ in number, and for NaN or infinite scores.
    """
    x, y = _tasks(x, y)
    x, y = x[..., :, None, :], y[..., None, :, :]
    return np.mean((x > y) + 0.5 * (x == y), axis=(-3, -2, -1))


def probability_of_improvement_interval(
    x: ArrayLike, y: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `probability_of_improvement`; seeds of X and of Y are resampled apart, by task.

    With one seed in either it is (nan, nan). Raises ValueError as that function does.
    """
    x, y = _tasks(x, y)
    if min(len(x), len(y)) < 2:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    x, y = (_resample(z, resamples, random) for z in (x, y))
    batches = range(0, resamples, 100)  # all pairs of seeds of all resamples at once would take much memory
    return _percentiles(
        np.concatenate([probability_of_improvement(x[i : i + 100], y[i : i + 100]) for i in batches]), confidence
    )


def stratified_bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of scores (seeds,) or (seeds, tasks), as (low, high).

    Seeds are what is replicated: each resample draws as many seeds, with replacement, for every task on its own (tasks
    are the strata). Average the episodes of a seed first; they are not replications. One seed says nothing about the
    spread over seeds: its interval is (nan, nan). The same arguments give the same interval. `statistic` is called on
    (resamples, seeds, tasks) with axis=(1, 2). Raises ValueError for no scores, and for NaN or infinite ones.
    """
    scores = _finite(scores)
    if scores.ndim not in (1, 2):
        raise ValueError(f"scores must have shape (seeds,) or (seeds, tasks), not {scores.shape}")
    if len(scores) == 1:
        return float("nan"), float("nan")
    drawn = _resample(scores, resamples, np.random.default_rng(seed))
    return _percentiles(statistic(drawn, axis=(1, 2)), confidence)


def difference_interval(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0, paired: bool = False
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a) - mean(b) for scores of two groups of seeds, as (low, high).

    a (n,) and b (m,) are resampled apart: they share no randomness after their first step, whatever their seeds.
    `paired` resamples pairs: for scores i under one condition that varies by seed, as of one policy measured in two
    ways. With one seed in either, the interval is (nan, nan). Raises ValueError for NaN or infinite scores, and for
    pairs of unequal number.
    """
    a, b = _finite(a), _finite(b)
    if paired:
        if a.size != b.size:
            raise ValueError(f"{a.size} and {b.size} scores are not pairs")
        a, b = a - b, np.zeros_like(b)
    if min(a.size, b.size) < 2:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    means = [np.mean(x[random.integers(x.size, size=(resamples, x.size))], axis=1) for x in (a, b)]
    return _percentiles(means[0] - means[1], confidence)


def _resample(scores: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """As many seeds as there are, drawn with replacement for every task on its own: (resamples, seeds, tasks)."""
    table = scores.reshape(len(scores), -1)
    return table[random.integers(len(table), size=(resamples, *table.shape)), np.arange(table.shape[1])]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of resampled values, as (low, high)."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _tasks(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Finite scores of two groups as (..., seeds, tasks). Raises ValueError if their tasks differ in number."""
    x, y = (z.reshape(-1, 1) if z.ndim == 1 else z for z in (_finite(x), _finite(y)))
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"scores of {x.shape[-1]} and of {y.shape[-1]} tasks cannot be compared")
    return x, y


def _finite(scores: ArrayLike) -> np.ndarray:
    """Scores as float64. A seed that diverged is a result: only the caller knows which score it deserves."""
    scores = np.atleast_1d(np.asarray(scores, np.float64))
    if not scores.size:
        raise ValueError("there are no scores")
    if bad := int(np.sum(~np.isfinite(scores))):
        raise ValueError(
            f"{bad} of {scores.size} scores are not finite: give diverged seeds a score (the worst possible return, "
            "say) or leave them out and say so"
        )
    return scores
