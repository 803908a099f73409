"""What a sweep looks like: heat map, curve with band, parallel coordinates, Pareto front."""

import statistics

import matplotlib
import numpy as np
from matplotlib import colors, ticker

from hamgan.evaluation import charts
from hamgan.evaluation.scores import ALL_SCORES
from hamgan.sweeps import results

_COLOURS = matplotlib.colormaps["viridis"]


def _score_name(sweep):
    return next((score.title for score in ALL_SCORES if score.name == sweep.score), sweep.score)


def _scored(rows):
    return [row for row in rows if row.mean is not None]


def heat_map(axes, sweep, rows):
    """Means of two axes' values, the deviation over seeds below each; better is brighter."""
    across, down = sweep.axes[1], sweep.axes[0]
    columns, lines = _options(across, rows), _options(down, rows)
    grid = np.full([len(lines), len(columns)], np.nan)
    for row in _scored(rows):
        place = lines.index(row.values[down.name]), columns.index(row.values[across.name])
        grid[place] = row.mean
    colours = _COLOURS.reversed() if sweep.better == "lower" else _COLOURS
    axes.imshow(grid, cmap=colours, aspect="auto")
    limits = colors.Normalize(np.nanmin(grid), np.nanmax(grid))
    for row in _scored(rows):
        y, x = lines.index(row.values[down.name]), columns.index(row.values[across.name])
        text = f"{row.mean:.4g}" + (f"\n± {row.std:.2g}" if row.std is not None else "")
        is_bright = np.dot(colours(limits(row.mean))[:3], (0.3, 0.6, 0.1)) > 0.5
        axes.text(x, y, text, ha="center", va="center", color="black" if is_bright else "white")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(lines)), [str(value) for value in lines])
    axes.set(xlabel=across.name, ylabel=down.name)


def _options(axis, rows):
    found = {row.values[axis.name] for row in rows}
    options = axis.options() or sorted(found)
    return [value for value in options if value in found]


def curve(axes, sweep, rows):
    """The score over one axis: the mean, a band from the smallest to the largest seed, a dot each
    seed.
    """
    (axis,) = sweep.axes
    known = {row.values[axis.name]: row for row in _scored(rows)}
    options = [value for value in _options(axis, rows) if value in known]
    places = options if axis.is_numeric() else list(range(len(options)))
    ordered = [list(known[value].scores().values()) for value in options]
    means = [statistics.fmean(scores) for scores in ordered]
    colour = charts.LINE_COLOURS[0]
    if axis.is_numeric():
        axes.fill_between(
            places, list(map(min, ordered)), list(map(max, ordered)), color=colour, alpha=0.18
        )
        axes.plot(places, means, color=colour, marker="o")
    else:
        axes.plot(places, means, color=colour, marker="D", linestyle="none")
        many = {"rotation": 60, "fontsize": 7} if len(options) > 6 else {"rotation": 20}
        axes.set_xticks(places, [str(value) for value in options], **many)
    for place, scores in zip(places, ordered, strict=True):
        axes.plot([place] * len(scores), scores, ".", color=colour, alpha=0.5)
    axes.grid(axis="y")
    axes.set(xlabel=axis.name, ylabel=_score_name(sweep))


def parallel(axes, sweep, rows):
    """A line a point through its values, to its score; better is brighter."""
    known = _scored(rows)
    scores = [row.mean for row in known]
    low, high = min(scores), max(scores)
    limits = colors.Normalize(low, high)
    colours = _COLOURS.reversed() if sweep.better == "lower" else _COLOURS
    for x, axis in enumerate(sweep.axes):
        options = _options(axis, rows)
        axes.axvline(x, linewidth=0.8, color="gray")
        for value in options if len(options) <= 12 else (options[0], options[-1]):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.annotate(text, (x, _height(options, value)), xytext=(4, 2), **_OFFSET)
    end = len(sweep.axes)
    axes.axvline(end, linewidth=0.8, color="gray")
    for score in (low, high):
        axes.annotate(f"{score:.4g}", (end, limits(score)), xytext=(4, 2), **_OFFSET)
    # The best lies on top.
    for row in reversed(known):
        heights = [_height(_options(axis, rows), row.values[axis.name]) for axis in sweep.axes] + [
            float(limits(row.mean))
        ]
        axes.plot(range(end + 1), heights, color=colours(limits(row.mean)), linewidth=1.8)
    axes.set_xticks(range(end + 1), [*(axis.name for axis in sweep.axes), _score_name(sweep)])
    axes.set_yticks([])
    axes.set_xlim(-0.1, end + 0.35)


_OFFSET = {"textcoords": "offset points", "fontsize": 9}


def _height(options, value):
    return options.index(value) / max(1, len(options) - 1)


def pareto(axes, sweep, rows, cost, title):
    """Score over a cost: a dot a point, a line through those that nothing beats in both."""
    known = [row for row in _scored(rows) if row.costs().get(cost) is not None]
    muted, colour = charts.LINE_COLOURS[1], charts.LINE_COLOURS[0]
    axes.plot([r.costs()[cost] for r in known], [r.mean for r in known], "o", color=muted)
    front = results.pareto(rows, cost, better=sweep.better)
    axes.plot(
        [row.costs()[cost] for row in front],
        [row.mean for row in front],
        color=colour,
        marker="o",
        drawstyle="steps-post",
    )
    for row in front[:6]:
        axes.annotate(
            row.name, (row.costs()[cost], row.mean), xytext=(4, 4), **{**_OFFSET, "fontsize": 7}
        )
    axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.margins(x=0.2)
    axes.grid(axis="y")
    axes.set(xlabel=title, ylabel=_score_name(sweep))


def importance(axes, found):
    """Bars of {parameter: importance}."""
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names], color=charts.LINE_COLOURS[0])
    axes.set(xlabel="share of the variance")


def over_steps(axes, sweep, rows, most=6):
    """The score over steps of the best points: means over seeds."""
    for row, colour in zip(_scored(rows)[:most], charts.LINE_COLOURS, strict=False):
        curves = [run.curve for run in row.runs if run.state == "complete"]
        steps = sorted(set.intersection(*map(set, curves)))
        values = [statistics.fmean(of[step] for of in curves) for step in steps]
        axes.plot(steps, values, color=colour, marker=".", label=row.name)
    # A score that is better lower falls by orders of magnitude.
    if sweep.better == "lower":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y")
    axes.set(xlabel="step", ylabel=_score_name(sweep))
