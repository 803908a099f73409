"""Curves over steps as SVG, for pages that show light and dark themes and load nothing from
outside.
"""

import dataclasses
import html
import io
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib import rc_context, ticker

_POINTS = 200  # in a curve; the band around it holds the rest

# Matplotlib draws in these colours. They are then replaced, so that curves follow the page's theme.
_COLOURS = {f"#f0000{i}": f"var(--c{i})" for i in range(6)}
_INK, _RULE = "#f0000a", "#f0000b"
_COLOURS |= {_INK: "var(--muted)", _RULE: "var(--rule)"}
LINE_COLOURS = list(_COLOURS)[:6]
_DRAWING: dict[Any, Any] = {
    # Letters stay text: they take the page's font, and can be searched. A dollar is a dollar.
    "svg.fonttype": "none",
    "text.parse_math": False,
    # Without it the names inside a drawing are random, and the page differs each time.
    "svg.hashsalt": "hamgan",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.labelcolor": _INK,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
}


# Step, value, low, high.
Point = tuple[float, float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A named line; its points are (step, value, low, high), the last three None in a gap."""

    label: str
    points: list[Point]
    colour: str
    markers: bool = False


def condense(points: list[Point]) -> list[Point]:
    """Means over consecutive points: a long run makes neither a tangle nor a large file."""
    size = -(-len(points) // _POINTS)
    if size <= 1:
        return points
    binned: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [point for point in part if point[1] is not None]
        step = statistics.fmean(point[0] for point in part)
        if finite:
            _, values, lows, highs = zip(*finite, strict=True)
            binned.append((step, statistics.fmean(values), min(lows), max(highs)))
        else:
            binned.append((step, None, None, None))
    return binned


def themed() -> Any:
    """A context in which matplotlib draws as pages want it; see `as_figure`."""
    return rc_context(_DRAWING)


def as_figure(figure: mpl_figure.Figure, title: str) -> str:
    """What was drawn in `themed`, as a figure of HTML in the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    drawing = _inline(buffer.getvalue(), title)
    return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>{drawing}</figure>'


def gallery(charts: Iterable[str]) -> str:
    charts = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _draw(axes, curve, label, *, floor):
    """A curve with its band, of which nothing lies below the floor."""
    steps, middle, low, high = (
        [math.nan if value is None else value for value in column]
        for column in zip(*curve.points, strict=True)
    )
    low = [max(value, floor) for value in low]
    if low != high and len(steps) == 1:
        # A band needs two points.
        axes.vlines(steps, low, high, color=curve.colour, alpha=0.5)
    elif low != high:
        axes.fill_between(steps, low, high, color=curve.colour, alpha=0.18, linewidth=0)
    marker = "o" if curve.markers or len(steps) == 1 else None
    style = dict(color=curve.colour, linewidth=1.6, marker=marker, markersize=3.5)
    axes.plot(steps, middle, label=label, **style)


def chart(title: str, curves: Sequence[Curve], *, may_be_log: bool = False) -> str:
    """Curves as SVG in a figure of HTML; an empty string where there is no finite point."""
    values = [value for curve in curves for _, value, _, _ in curve.points if value is not None]
    if not values:
        return ""
    log = may_be_log and min(values) > 0 and max(values) > 8 * min(values)
    with rc_context(_DRAWING):
        # Figure itself, without pyplot, which would choose a display and keep every figure.
        labels = [textwrap.fill(curve.label, 48) for curve in curves]
        columns = max(1, 44 // (max(map(len, labels)) + 8))
        legend_lines = sum(label.count("\n") + 1 for label in labels) / columns
        figure = mpl_figure.Figure(figsize=(4.8, 2.6 + 0.2 * legend_lines), layout="constrained")
        axes = figure.add_subplot()
        for curve, label in zip(curves, labels, strict=True):
            _draw(axes, curve, label, floor=min(values) / 2 if log else -math.inf)
        if log:
            axes.set_yscale("log")
            wide = max(values) > 1000 * min(values)
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1,) if wide else (1, 2, 5)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.margins(x=0.02)
        axes.grid(axis="y")
        axes.set_xlabel("step")
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    scale = ", logarithmic" if log else ""
    drawing = _inline(buffer.getvalue(), title)
    return (
        "<figure "
        f'class="chart"><figcaption>{html.escape(title)}{scale}</figcaption>{drawing}</figure>'
    )


def _short(step):
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{letter}"
    return f"{step:g}"


def _inline(svg, title):
    """A drawing by matplotlib as an element of the page, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(xmlns(:xlink)?|version|width|height)="[^"]*"', "", head)
    svg = head + ">" + re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    # Names must be the page's own: every drawing has a figure_1.
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
