"""Pictures of runs, drawn with matplotlib's object interface: no window, no global state."""

import contextlib
import dataclasses
import itertools
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from offpolicy_jax.statistics import interquartile_mean, stratified_bootstrap_interval

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
    steps, returns = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    if steps.ndim != 1 or returns.ndim != 2 or len(steps) != len(returns) or not returns.size:
        raise ValueError(f"steps must be (K,) and returns (K, S), not {steps.shape} and {returns.shape}")
    returns = np.where(np.isfinite(returns), returns, np.nan)
    seeds = returns.shape[1]

    text = " ".join(part for part in (caption.strip(), _explain(returns)) if part)
    with _picture(path, (5.6, 3.9), text) as figure:
        axes = figure.add_subplot()
        if random is not None:
            axes.axhline(random, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), label="random policy")
        if seeds == 1:
            _line(axes, steps, returns[:, 0], color=_INK, linewidth=1.8, label="the seed")
        else:
            mean, low, high = _aggregate(returns)
            _line(axes, steps, mean, color=_INK, linewidth=2.2, zorder=4, label="interquartile mean")
            thin: dict[str, Any] = {"color": _SEED, "linewidth": 0.8, "zorder": 3, "alpha": min(1.0, 60.0 / seeds)}
            for i, values in enumerate(returns.T):
                style = _DASHES[i % len(_DASHES)] if seeds <= 2 * len(_DASHES) else "-"
                _line(axes, steps, values, linestyle=style, label="one seed" if i == 0 else None, **thin)
            axes.fill_between(steps, low, high, color=_BAND, linewidth=0, zorder=1.5, label="95 % interval")
            alone = _alone(mean)
            axes.vlines(steps[alone], low[alone], high[alone], color=_BAND, linewidth=5, zorder=1.5)
        if seeds > 1 or random is not None:
            handles, labels = axes.get_legend_handles_labels()
            order = sorted(range(len(labels)), key=lambda i: labels[i] == "random policy")
            legend = axes.legend(
                [handles[i] for i in order], [labels[i] for i in order], frameon=False, handlelength=2.2
            )
            for handle in legend.legend_handles:
                handle.set_alpha(1.0)  # also of lines that are faint because there are many
        _returns_over_steps(axes, title, ylabel, steps)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One arm: the middle (K,) of its seeds at x (K,), with both ends of an interval, and the seeds themselves.

    `seeds` holds an (x, values) for each thin line. Where a seed diverged, and where one stands that is under way, a
    point (x, value) marks the end of its line.
    """

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    diverged: Sequence[tuple[float, float]] = ()
    unfinished: Sequence[tuple[float, float]] = ()


_ARMS = (  # told apart by dashes and markers too: they are read in grey
    ("#12355b", "-", "o"),
    ("#b5562b", "--", "s"),
    ("#4f8f63", "-.", "^"),
    ("#8a6bb0", ":", "D"),
    ("#7d7d7d", "-", "v"),
    ("#c79a1e", "--", "P"),
    ("#2f9aa8", "-.", "X"),
    ("#a3304f", ":", "<"),
    ("#6d4c33", "-", ">"),
    ("#d987ae", "--", "p"),
    ("#3a3a3a", "-.", "*"),
    ("#8fae3a", ":", "h"),
)
MOST_ARMS = len(_ARMS)
_MOST_WITH_SEEDS = 4  # arms whose seeds' own lines are still read

Estimate = tuple[float, float, float]
"""A value and both ends of its interval, which are NaN if there is none."""


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
    dashes and marker, the same in every panel; seeds are thin, their interquartile mean is thick, its 95 % bootstrap
    interval over seeds is shaded. `log` names the logarithmic axes. Raises ValueError for more arms than there are
    styles.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    styles = _styles(name for arms in panels.values() for name in arms)
    counts = {np.shape(values)[1] for arms in panels.values() for _, values in arms.values()}
    seeds = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
    text = f"{caption} {seeds} seeds (thin); thick: their interquartile mean; band: its 95\xa0% bootstrap interval."
    outside = len(styles) > _MOST_WITH_SEEDS  # a legend of many arms would hide curves
    with _picture(path, (1.0 + 4.6 * len(panels), 4.1 + 0.3 * outside), text) as figure:
        for i, (title, arms) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for label, (x, values) in arms.items():
                x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
                values = np.where(np.isfinite(values), values, np.nan)
                curve = Curve(x, *_aggregate(values), seeds=[(x, column) for column in values.T])
                _arm(axes, curve, label, *styles[label])
            _frame(axes, title, xlabel, ylabel if i == 0 else "")
            for name in log:
                _logarithmic(axes, name)
            if "x" not in log:
                axes.xaxis.set_major_locator(MaxNLocator(6))
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if i == 0 and outside:
                handles = axes.get_legend_handles_labels()
                figure.legend(
                    *handles, frameon=False, handlelength=3.0, loc="outside upper left", ncols=3 * len(panels)
                )
            elif i == 0:
                axes.legend(frameon=False, handlelength=3.0)


def learning_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, Curve],
    *,
    title: str,
    caption: str,
    arms: Sequence[str],
    ylabel: str = "Greedy evaluation return",
) -> None:
    """Draw the learning curves of several arms on one task, and save the picture at `path`.

    `arms` fix each one's style by their places, whichever of them this task has. The seeds' own lines
    are drawn for up to four arms; the ends of diverged and of unfinished seeds always are. Raises ValueError for more
    arms than there are styles.
    """
    styles = _styles(arms)
    seeds = len(curves) <= _MOST_WITH_SEEDS
    with _legend_picture(path, list(curves), title, caption + " Thin: each seed." * seeds) as axes:
        for label, curve in curves.items():
            _arm(axes, curve if seeds else dataclasses.replace(curve, seeds=()), label, *styles[label])
        size = {"markersize": 9, "markeredgewidth": 2, "zorder": 5}
        for field, marker, meaning in (
            ("diverged", "x", "a seed diverged"),
            ("unfinished", "|", "a seed is under way"),
        ):
            ends = [(x, y, styles[name][0]) for name, curve in curves.items() for x, y in getattr(curve, field)]
            for x, y, color in ends:
                axes.plot(x, y, marker, color=color, **size)
            if ends:
                axes.plot([], [], marker, color="0.3", label=meaning, **size)
        drawn = [x for curve in curves.values() for x in (curve.x, *(steps for steps, _ in curve.seeds))]
        _returns_over_steps(axes, "", ylabel, np.concatenate(drawn))


def profiles(
    path: str | os.PathLike[str],
    thresholds: ArrayLike,
    arms: Mapping[str, np.ndarray],
    *,
    title: str,
    caption: str,
    order: Sequence[str],
) -> None:
    """Draw performance profiles, (3, T) of fractions and both ends of their intervals at T normalised scores.

    `order` fixes the arms' styles, as `arms` of `learning_curves`.
    """
    styles, thresholds = _styles(order), np.asarray(thresholds, np.float64)
    with _legend_picture(path, list(arms), title, caption) as axes:
        for label, (fraction, low, high) in arms.items():
            _arm(axes, Curve(thresholds, fraction, low, high), label, *styles[label])
        _frame(axes, "", r"Normalised score $\tau$", r"Fraction of runs with score $> \tau$")
        axes.set_xlim(float(thresholds[0]), float(thresholds[-1]))
        axes.set_ylim(-0.02, 1.02)


def estimates(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    title: str,
    caption: str,
    order: Sequence[str],
    xlabel: str = "Normalised score",
) -> None:
    """Draw numbers with their intervals, a panel per statistic, a row per arm, and save the picture at `path`.

    `order` fixes the arms' styles, as `arms` of `learning_curves`.
    """
    from matplotlib.ticker import MaxNLocator

    styles, rows = _styles(order), list(next(iter(panels.values())))
    texts, width, height = _rows(rows)
    with _picture(path, (width + 1.75 * len(panels), 1.5 + height), caption) as figure:
        figure.suptitle(title, x=0.015, ha="left", fontsize=_STYLE["axes.titlesize"])
        shared = None
        for i, (name, arms) in enumerate(panels.items()):
            shared = axes = figure.add_subplot(1, len(panels), i + 1, sharey=shared)
            for row, label in enumerate(rows):
                (value, low, high), (color, _, marker) = arms[label], styles[label]
                axes.plot([low, high], [row, row], color=color, linewidth=6, alpha=0.3, solid_capstyle="butt")
                axes.plot(value, row, marker, color=color, markersize=5.5)
            _frame(axes, name, xlabel, "")
            axes.grid(axis="x", color="0.9", linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_yticks(range(len(rows)), texts)
            axes.tick_params(axis="y", length=0, labelleft=i == 0)
            axes.set_ylim(len(rows) - 0.5, -0.5)


def probabilities(
    path: str | os.PathLike[str], table: Mapping[tuple[str, str], Estimate], *, title: str, caption: str
) -> None:
    """Draw the probability that a run of one arm scores above one of another, as a matrix, and save it at `path`.

    `table` maps (row, column) to the probability and its interval, which is written out for up to six arms. Bold: the
    interval does not hold one half. Dark: likely.
    """
    from matplotlib.colors import LinearSegmentedColormap

    names = list(dict.fromkeys(name for pair in table for name in pair))
    size, small = len(names), len(names) <= 6
    texts, width, height = _rows([f"{name}  ({i + 1})" for i, name in enumerate(names)])
    with _picture(path, (max(4.6, width + (0.95 if small else 0.52) * size), 1.7 + 1.3 * height), caption) as figure:
        axes = figure.add_subplot()
        values = np.full((size, size), np.nan)
        for (a, b), estimate in table.items():
            values[names.index(a), names.index(b)] = estimate[0]
        paper = LinearSegmentedColormap.from_list("paper", ["#ffffff", _SEED])
        axes.set_facecolor("0.93")  # the diagonal
        axes.imshow(values, cmap=paper, vmin=0.0, vmax=1.0, aspect="auto")
        for (a, b), (value, low, high) in table.items():
            bold = "bold" if low > 0.5 or high < 0.5 else "normal"
            x, y = names.index(b), names.index(a)
            axes.text(x, y - 0.14 * small, f"{value:.2f}", ha="center", va="center", weight=bold, fontsize=9.5)
            if small and np.isfinite(low):
                axes.text(x, y + 0.22, f"[{low:.2f}, {high:.2f}]", ha="center", va="center", fontsize=7.5)
        axes.set_yticks(range(size), texts)
        axes.set_xticks(range(size), [f"({i + 1})" for i in range(size)])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.suptitle(title, x=0.015, ha="left", fontsize=_STYLE["axes.titlesize"])


Point = tuple[str, str, Mapping[str, Any], tuple[float | None, float | None, float | None]]
"""Of a sweep: environment, agent, hyper-parameters by name, and the final return with both ends of its interval."""


def hyper_parameters(path: str | os.PathLike[str], points: Sequence[Point], *, ylabel: str = "Final return") -> None:
    """Draw final returns against every hyper-parameter that varies, a row per environment, and save the picture.

    Points whose return is None (a seed diverged) are crosses at the bottom. Up to six different
    values stand side by side, in order; more numbers have an axis, logarithmic if they span a factor of 8 or more.
    """
    points = [(env, agent, {**values, "agent": agent}, result) for env, agent, values, result in points]
    envs, names = list(dict.fromkeys(p[0] for p in points)), list(dict.fromkeys(n for p in points for n in p[2]))
    choices = {name: list(dict.fromkeys(p[2][name] for p in points if name in p[2])) for name in names}
    varied = [name for name in names if len(choices[name]) > 1 and name != "agent"] or ["agent"]
    arms = _styles(choices["agent"])
    text = "A marker per point: the interquartile mean over its seeds, with its 95\xa0% bootstrap interval."
    text += " Crosses: points with a diverged seed." * any(p[3][0] is None for p in points)

    with _picture(path, (1.4 + 3.6 * len(varied), 0.8 + 3.0 * len(envs)), text) as figure:
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
            _frame(axes, "" if column else env, name, "" if column else ylabel)
            axes.yaxis.set_major_formatter("{x:,.5g}")
        if len(arms) > 1:
            grid[0, 0].legend(frameon=False)


@contextlib.contextmanager
def _picture(path: str | os.PathLike[str], size: tuple[float, float], caption: str) -> Iterator[Any]:
    """A figure of so many inches, with a line below that says what is seen; saved at the end."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        FigureCanvasAgg(figure)
        yield figure
        figure.supxlabel(textwrap.fill(caption, int(19 * size[0])), x=0.015, ha="left", fontsize=8.5, color="0.25")
        figure.savefig(os.fspath(path), dpi=200)


def _styles(names: Iterable[str]) -> dict[str, tuple[str, Any, str]]:
    """Colour, dashes and marker of each arm, by its place. Raises ValueError for more arms than there are styles."""
    names = list(dict.fromkeys(names))
    if len(names) > len(_ARMS):
        raise ValueError(f"a picture shows at most {len(_ARMS)} arms, not {len(names)}")
    return dict(zip(names, _ARMS, strict=False))


def _arm(axes: Any, curve: Curve, label: str, color: str, dashes: Any, marker: str) -> None:
    """An arm's seeds, the middle of them, and its interval."""
    for x, values in curve.seeds:
        axes.plot(x, values, color=color, linewidth=0.5, alpha=0.45, linestyle=dashes, zorder=2)
    axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0, zorder=1)
    alone = _alone(curve.middle)
    axes.vlines(curve.x[alone], curve.low[alone], curve.high[alone], color=color, alpha=0.15, linewidth=5, zorder=1)
    style = {"linestyle": dashes, "marker": marker, "markersize": 4, "markevery": max(1, len(curve.x) // 8)}
    axes.plot(curve.x, curve.middle, color=color, linewidth=2.0, label=label, zorder=4, **style)


def _frame(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", pad=8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _returns_over_steps(axes: Any, title: str, ylabel: str, steps: np.ndarray) -> None:
    """Title, labels and ticks of a learning curve, whose lines are drawn."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    _frame(axes, title, "Environment steps per seed", ylabel)
    axes.margins(y=0.06)
    end = max(float(np.max(steps)), 1.0)
    axes.set_xlim(-0.02 * end, 1.02 * end)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:,.5g}")


@contextlib.contextmanager
def _legend_picture(path: str | os.PathLike[str], arms: Sequence[str], title: str, caption: str) -> Iterator[Any]:
    """The axes of a picture whose legend stands between title and curves, which many arms would hide."""
    width = 6.4
    columns = max(1, min(4, len(arms), int(width / (0.7 + 0.055 * max(map(len, arms))))))
    with _picture(path, (width, 4.1 + 0.2 * math.ceil(len(arms) / columns)), caption) as figure:
        axes = figure.add_subplot()
        yield axes
        figure.suptitle(title, x=0.015, ha="left", fontsize=_STYLE["axes.titlesize"])
        place = {"loc": "lower left", "bbox_to_anchor": (-0.12, 1.0), "borderaxespad": 0.6}
        axes.legend(ncols=columns, handlelength=2.8, columnspacing=1.2, frameon=False, **place)


def _rows(labels: Sequence[str]) -> tuple[list[str], float, float]:
    """Labels of rows, broken between settings and never within one, and the width and height that they take."""
    whole = [label.replace(" = ", "\xa0=\xa0") for label in labels]
    texts = [textwrap.fill(label, 48, break_long_words=False) for label in whole]
    lines = [line for text in texts for line in text.split("\n")]
    return texts, 0.4 + 0.062 * max(map(len, lines)), len(labels) * (0.32 if len(lines) == len(labels) else 0.46)


def _logarithmic(axes: Any, name: str) -> None:
    """A logarithmic axis with few enough ticks to read: 1, 2 and 5 of each decade if there are at most two."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low <= 100.0 else (1.0,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _aggregate(values: np.ndarray) -> np.ndarray:
    """Interquartile mean and both ends of its interval at each of K times, (3, K); NaN where a seed has none."""
    rows: list[Sequence[float]] = []
    for row in values:
        finite = bool(np.all(np.isfinite(row)))
        interval = stratified_bootstrap_interval(row) if finite else (np.nan, np.nan)
        rows.append([float(interquartile_mean(row)) if finite else np.nan, *interval])
    return np.array(rows).T


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, *, color: str, zorder: float = 3, **style: Any) -> None:
    """A line with gaps at NaN; values without neighbours, which no line would show, are dots."""
    axes.plot(steps, values, color=color, zorder=zorder, **style)
    alone = _alone(values)
    dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4, "alpha": style.get("alpha")}
    axes.plot(steps[alone], values[alone], color=color, zorder=zorder, **dots)


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
