"""Pictures of a run, drawn with matplotlib's object interface: no window, no global state."""

import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from offpolicy_jax.statistics import Statistic, interquartile_mean, stratified_bootstrap_interval

_INK, _SEED, _BAND = "#12355b", "#6f9fcf", "#cfdeee"  # dark, middle, light: they differ in grey too
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_STYLE = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


def learning_curve(
    path: str | os.PathLike[str],
    steps: ArrayLike,
    returns: ArrayLike,
    *,
    title: str,
    caption: str,
    ylabel: str = "Greedy evaluation return",
    random: float | None = None,
) -> None:
    """Draw returns (K, S) of S seeds at environment steps (K,), and save the picture at `path` (.png, .pdf, .svg).

    Every seed is a thin line; with two or more, the interquartile mean is the thick one and the band is its 95 %
    stratified bootstrap interval over seeds. The line under the figure is `caption` and a sentence that says this.
    Values that are not finite are gaps; mean and band have a gap where any seed has one, since an average over the
    surviving seeds would flatter. `random` marks the return of a uniformly random policy. Raises ValueError for shapes
    that do not agree.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps, returns = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    if steps.ndim != 1 or returns.ndim != 2 or len(steps) != len(returns) or not returns.size:
        raise ValueError(f"steps must be (K,) and returns (K, S), not {steps.shape} and {returns.shape}")
    returns = np.where(np.isfinite(returns), returns, np.nan)
    seeds = returns.shape[1]

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(5.6, 3.9), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if random is not None:
            axes.axhline(random, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), label="random policy")
        if seeds == 1:
            _line(axes, steps, returns[:, 0], color=_INK, linewidth=1.8, label="the seed")
        else:
            mean, low, high = _aggregate(returns)
            _line(axes, steps, mean, color=_INK, linewidth=2.2, zorder=4, label="interquartile mean")
            for i, values in enumerate(returns.T):
                style = _DASHES[i % len(_DASHES)] if seeds <= 2 * len(_DASHES) else "-"
                label = "one seed" if i == 0 else None
                _line(axes, steps, values, color=_SEED, linewidth=0.8, linestyle=style, zorder=3, label=label)
            axes.fill_between(steps, low, high, color=_BAND, linewidth=0, zorder=1.5, label="95 % interval")
            alone = _alone(mean)
            axes.vlines(steps[alone], low[alone], high[alone], color=_BAND, linewidth=5, zorder=1.5)
        if seeds > 1 or random is not None:
            handles, labels = axes.get_legend_handles_labels()
            order = sorted(range(len(labels)), key=lambda i: labels[i] == "random policy")
            axes.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, handlelength=2.2)
        axes.set_title(title, loc="left", pad=8)
        axes.set_xlabel("Environment steps per seed")
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(y=0.06)
        end = max(float(np.max(steps)), 1.0)
        axes.set_xlim(-0.02 * end, 1.02 * end)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter("{x:,.5g}")
        text = " ".join(part for part in (caption.strip(), _explain(returns)) if part)
        figure.supxlabel(textwrap.fill(text, 112), x=0.015, ha="left", fontsize=8.5, color="0.25")
        figure.savefig(os.fspath(path), dpi=200)


_ARMS = (
    ("#12355b", "-", "o"),
    ("#b5562b", "--", "s"),
    ("#4f8f63", "-.", "^"),
    ("#8a6bb0", ":", "D"),
    ("#7d7d7d", "-", "v"),
)


def comparison(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    xlabel: str,
    ylabel: str,
    caption: str,
    log: Literal["", "x", "xy"] = "",
) -> None:
    """Draw several arms side by side, a panel per task, and save the picture at `path`.

    `panels` maps a title to arms, and an arm's name to (x (K,), values (K, S)) of its S seeds. Arms differ in colour,
    dashes and marker; seeds are thin, their mean is thick, its 95 % bootstrap interval over seeds is shaded. `log`
    names the logarithmic axes. Raises ValueError for more arms than there are styles.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(1.0 + 4.6 * len(panels), 4.1), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        FigureCanvasAgg(figure)
        counts = set()
        for i, (title, arms) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), i + 1)
            if len(arms) > len(_ARMS):
                raise ValueError(f"a panel shows at most {len(_ARMS)} arms, not {len(arms)}")
            for (color, dashes, marker), (label, (x, values)) in zip(_ARMS, arms.items(), strict=False):
                x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
                values = np.where(np.isfinite(values), values, np.nan)
                counts.add(values.shape[1])
                every = max(1, len(x) // 8)
                axes.plot(x, values, color=color, linewidth=0.5, alpha=0.45, linestyle=dashes, zorder=2)
                mean, low, high = _aggregate(values, np.mean)
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, zorder=1)
                style = {"linestyle": dashes, "marker": marker, "markersize": 4, "markevery": every, "zorder": 4}
                axes.plot(x, mean, color=color, linewidth=2.0, label=label, **style)
            axes.set_title(title, loc="left", pad=8)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel if i == 0 else "")
            axes.grid(axis="y", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            for name in log:
                _logarithmic(axes, name)
            if "x" not in log:
                axes.xaxis.set_major_locator(MaxNLocator(6))
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if i == 0:
                axes.legend(frameon=False, handlelength=3.0)
        seeds = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
        text = f"{caption} {seeds} seeds (thin); thick: their mean; band: its 95\xa0% bootstrap interval."
        figure.supxlabel(textwrap.fill(text, 92 * len(panels) + 10), x=0.015, ha="left", fontsize=8.5, color="0.25")
        figure.savefig(os.fspath(path), dpi=200)


Point = tuple[str, str, Mapping[str, Any], tuple[float | None, float | None, float | None]]
"""Of a sweep: environment, agent, hyper-parameters by name, and the final return with both ends of its interval."""


def hyper_parameters(path: str | os.PathLike[str], points: Sequence[Point], *, ylabel: str = "Final return") -> None:
    """Draw final returns against every hyper-parameter that varies, a row per environment, and save the picture.

    Points whose return is None (a seed diverged) are crosses at the bottom. Up to six different
    values stand side by side, in order; more numbers have an axis, logarithmic if they span a factor of 8 or more.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    points = [(env, agent, {**values, "agent": agent}, result) for env, agent, values, result in points]
    envs, names = list(dict.fromkeys(p[0] for p in points)), list(dict.fromkeys(n for p in points for n in p[2]))
    choices = {name: list(dict.fromkeys(p[2][name] for p in points if name in p[2])) for name in names}
    varied = [name for name in names if len(choices[name]) > 1 and name != "agent"] or ["agent"]
    arms = {agent: _ARMS[i % len(_ARMS)] for i, agent in enumerate(choices["agent"])}

    with matplotlib.style.context(["default", _STYLE]):
        size = (1.4 + 3.6 * len(varied), 0.8 + 3.0 * len(envs))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(envs), len(varied), squeeze=False)
        for (row, env), (column, name) in itertools.product(enumerate(envs), enumerate(varied)):
            axes, values = grid[row, column], choices[name]
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            values = sorted(values) if numbers else values
            scale = numbers and len(values) > 6
            for i, (agent, (color, dashes, marker)) in enumerate(arms.items()):
                shift = 0.12 * (i - (len(arms) - 1) / 2)
                mine = [p for p in points if (p[0], p[1]) == (env, agent) and name in p[2]]
                x = np.array([p[2][name] if scale else values.index(p[2][name]) + shift for p in mine], np.float64)
                y, low, high = np.array([p[3] for p in mine], np.float64).reshape(-1, 3).T
                order = np.argsort(x, kind="stable")
                line = dashes if len(varied) == 1 and numbers else "none"
                style = {"color": color, "marker": marker, "markersize": 5, "linestyle": line, "linewidth": 1.0}
                axes.plot(x[order], y[order], label=agent, zorder=3, **style)
                axes.vlines(x, low, high, color=color, linewidth=1.6, alpha=0.6, zorder=2)
                if (lost := x[np.isnan(y)]).size:
                    axes.plot(lost, np.full(len(lost), 0.03), "x", color=color, transform=axes.get_xaxis_transform())
            axes.margins(x=0.12)
            if not scale:
                axes.set_xticks(range(len(values)), [f"{value:g}" if numbers else str(value) for value in values])
                axes.set_xlim(-0.5, len(values) - 0.5)
            elif min(values) > 0 and max(values) >= 8 * min(values):
                _logarithmic(axes, "x")
            axes.set_xlabel(name)
            axes.grid(axis="y", color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.yaxis.set_major_formatter("{x:,.5g}")
            if column == 0:
                axes.set_title(env, loc="left", pad=8)
                axes.set_ylabel(ylabel)
        if len(arms) > 1:
            grid[0, 0].legend(frameon=False)
        text = "A marker per point: the interquartile mean over its seeds, with its 95\xa0% bootstrap interval."
        text += " Crosses: points with a diverged seed." * any(p[3][0] is None for p in points)
        figure.supxlabel(textwrap.fill(text, int(18 * size[0])), x=0.015, ha="left", fontsize=8.5, color="0.25")
        figure.savefig(os.fspath(path), dpi=200)


def _logarithmic(axes: Any, name: str) -> None:
    """A logarithmic axis with few enough ticks to read: 1, 2 and 5 of each decade if there are at most two."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low <= 100.0 else (1.0,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _aggregate(values: np.ndarray, statistic: Statistic = interquartile_mean) -> np.ndarray:
    """A statistic over seeds and both ends of its interval at each of K times, (3, K); NaN where a seed has none."""
    rows: list[Sequence[float]] = []
    for row in values:
        finite = bool(np.all(np.isfinite(row)))
        interval = stratified_bootstrap_interval(row, statistic) if finite else (np.nan, np.nan)
        rows.append([float(statistic(row)) if finite else np.nan, *interval])
    return np.array(rows).T


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, *, color: str, zorder: float = 3, **style: Any) -> None:
    """A line with gaps at NaN; values without neighbours, which no line would show, are dots."""
    axes.plot(steps, values, color=color, zorder=zorder, **style)
    alone = _alone(values)
    axes.plot(steps[alone], values[alone], color=color, zorder=zorder, linestyle="none", marker="o", markersize=4)


def _alone(values: np.ndarray) -> np.ndarray:
    """Indices of the values between two gaps."""
    gap = np.isnan(np.concatenate([[np.nan], values, [np.nan]]))
    return np.flatnonzero(~gap[1:-1] & gap[:-2] & gap[2:])


def _explain(returns: np.ndarray) -> str:
    seeds = returns.shape[1]
    if seeds == 1:
        return "1 seed: no interval."
    text = f"{seeds} seeds (thin); thick: their interquartile mean; band: its 95\xa0% stratified bootstrap interval."
    if gaps := int(np.sum(np.any(np.isnan(returns), axis=0))):
        text += f" No mean where a seed has no value ({gaps} of {seeds} seeds)."
    return text
