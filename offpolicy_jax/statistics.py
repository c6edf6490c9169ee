"""Statistics over seeds: interquartile mean and stratified bootstrap (Agarwal et al. 2021, arXiv 2108.13264)."""

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
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    table = scores.reshape(len(scores), -1)
    seeds, tasks = table.shape
    if seeds == 1:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(seeds, size=(resamples, seeds, tasks))
    values = statistic(table[drawn, np.arange(tasks)], axis=(1, 2))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


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
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means[0] - means[1], [tail, 1.0 - tail])
    return float(low), float(high)


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
