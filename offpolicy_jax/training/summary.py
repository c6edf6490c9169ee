"""What a run says of itself at the end: statistics over seeds, memory, its config as JSON."""

import dataclasses
import math
import resource
import sys
from typing import Any

import jax
import numpy as np

from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval


def final_statistics(table: dict[str, np.ndarray], num_seeds: int) -> dict[str, Any]:
    """Per-seed returns at the last evaluation, their mean, IQM and 95 % bootstrap interval over seeds.

    A diverged seed counts: where one has no return, or none that is finite, the averages are None.
    """
    if not len(table["step"]):
        return {"final_return": {}}
    last = table["step"] == table["step"].max()
    returns = table["return"][last]
    seeds = table["seed"][last]
    finite = len(returns) == num_seeds and bool(np.all(np.isfinite(returns)))
    low, high = stratified_bootstrap_interval(returns) if finite else (math.nan, math.nan)
    number = lambda x: round(float(x), 4) if math.isfinite(x) else None  # noqa: E731
    mixture: dict[str, Any] = {}
    if "mixture_return" in table:
        of_mixture = table["mixture_return"][last]
        mixture["mixture_return"] = {str(seed): number(x) for seed, x in zip(seeds, of_mixture, strict=True)}
        whole = finite and bool(np.all(np.isfinite(of_mixture)))
        mixture["mixture_iqm"] = number(interquartile_mean(of_mixture)) if whole else None
    return {
        "step": int(table["step"].max()),
        "final_return": {str(seed): number(x) for seed, x in zip(seeds, returns, strict=True)},
        "episodes_per_seed": int(table["episodes"][last].min()),
        "mean": number(np.mean(returns)) if finite else None,
        "iqm": number(interquartile_mean(returns)) if finite else None,
        "iqm_interval_95": [number(low), number(high)],
        **mixture,
    }


def as_json(config: Any) -> dict[str, Any]:
    """A config as JSON types."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            return as_json(value)
        if isinstance(value, tuple):
            return list(value)
        return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def peak_memory_mb() -> float:
    """Peak memory of the accelerator if there is one, else of the process, in MB."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
