"""The benchmark of the context modules as text and as a picture."""

import io
import itertools
import math

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from hamgan.benchmarks.context_modules import MODES, MODULES, PUBLISHED
from hamgan.run import records

# An exponent is fitted to the largest sizes: at small ones the linear layers count for more.
FITTED = 3

# Cost over size


def exponent(sizes, values):
    """p of the power law values = c sizes^p through the FITTED largest sizes, by least squares in
    logarithms.

    Args:
      sizes: numbers.
      values: numbers, or None for those that couldn't be measured.

    Returns:
      A number; None with fewer than two values above 0 among the largest sizes.
    """
    pairs = sorted(zip(sizes, values, strict=True))[-FITTED:]
    pairs = [(size, value) for size, value in pairs if value]
    if len(pairs) < 2:
        return None
    return float(np.polyfit(*np.log(np.float64(pairs)).T, 1)[0])


def series(rows, value, *, key):
    """{module: (sizes, values)} of the rows of a sweep.

    Args:
      rows: of `measure_cases`.
      value: function of a row; None where it has none.
      key: function of a row, its size.
    """
    grouped = {}
    for row in rows:
        grouped.setdefault(row["module"], []).append((key(row), value(row)))
    return {module: tuple(zip(*sorted(pairs), strict=True)) for module, pairs in grouped.items()}


def pixels(row):
    """n of a row."""
    return row["shape"]["height"] * row["shape"]["width"]


SCALING_VALUES = {
    "macs": ("multiply-adds", lambda row: row.get("macs")),
    "memory": ("memory, training", lambda row: row["memory"].get("training")),
    "seconds": ("time, training", lambda row: row["seconds"].get("training")),
}


def exponents(rows):
    """{module: {'macs', 'memory', 'seconds': exponent of n}} of a scaling sweep."""
    found = {}
    for name, (_, value) in SCALING_VALUES.items():
        for module, (sizes, values) in series(rows, value, key=pixels).items():
            found.setdefault(module, {})[name] = exponent(sizes, values)
    return found


# Text


def with_unit(value, units, *, digits=3):
    """A number in the largest unit that leaves it at least 1: 17581473792, ('', 'k', 'M', 'G') ->
    '17.6G'.

    Args:
      value: a number that isn't negative, or None.
      units: suffixes, each 1000 times the one before.
      digits: significant ones.
    """
    if value is None:
        return "-"
    unit, *larger = units
    # Rounded first: what is rounded up to 1000 belongs to the next unit.
    value = float(f"{value:.{digits}g}")
    while larger and value >= 1000:
        value /= 1000
        unit, *larger = larger
    places = max(0, digits - 1 - math.floor(math.log10(value))) if value else 0
    return f"{value:.{places}f}{unit}"


def _counted(value):
    return with_unit(value, ("", "k", "M", "G", "T"))


def _bytes(value):
    return (
        "-"
        if value is None
        else f"{value / 1e6:,.1f} MB"
        if value < 1e8
        else f"{value / 1e6:,.0f} MB"
    )


def _seconds(value):
    return "-" if value is None else with_unit(value * 1e6, (" us", " ms", " s"))


def aligned(header, lines, *, left=1):
    """Lines of a text table; the first `left` columns are flush left, the others flush right."""
    table = [header, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def times_less(row, reference):
    """How many times less memory and time than `reference` a row takes: {'memory': {mode: ratio},
    'seconds': {...}}.
    """
    return {
        what: {
            mode: reference[what][mode] / row[what][mode]
            for mode in MODES
            if reference[what].get(mode) and row[what].get(mode)
        }
        for what in ("memory", "seconds")
    }


def cost_table(rows, *, published=False):
    """The table of one shape, as text.

    Args:
      rows: of `measure_cases`.
      published: put the paper's numbers below those of its modules.
    """
    header = [
        "",
        "parameters",
        "multiply-adds",
        "by formula",
        "memory forward",
        "training",
        "time forward",
        "training",
    ]
    reference = next((row for row in rows if row["module"] == "self_attention"), None)
    if reference:
        header += ["memory less", "time less"]
    lines = []
    notes = []
    for row in rows:
        line = [
            row["title"],
            *(_counted(row.get(name)) for name in ("parameters", "macs", "formula")),
        ]
        line += [_bytes(row["memory"].get(mode)) for mode in MODES] + [
            _seconds(row["seconds"].get(mode)) for mode in MODES
        ]
        if reference:
            ratios = times_less(row, reference)
            line += [
                " / ".join(f"{ratio:.1f}x" for ratio in ratios[what].values()) or "-"
                for what in ratios
            ]
        lines.append(line)
        notes += [f"  {row['title']}, {what}: {error}" for what, error in row["errors"].items()]
        if published and row["module"] in PUBLISHED:
            parameters, macs, *memory_and_time = PUBLISHED[row["module"]]
            line = ["  published, on a GPU", _counted(parameters), _counted(macs), ""]
            line += [f"({_bytes(value)})" for value in memory_and_time[:2]]
            line += [f"({_seconds(value)})" for value in memory_and_time[2:]]
            lines.append(line + [""] * (len(header) - len(line)))
    text = [aligned(header, lines)]
    if reference:
        text.append("less: how many times less than self-attention n x n, forward / training")
    return "\n".join([*text, *(["Not measured:", *notes] if notes else [])])


def scaling_table(rows):
    """The table of a scaling sweep: fitted exponents of n, and training time at each n."""
    sizes = sorted({pixels(row) for row in rows})
    header = [
        "",
        *(f"n^p: {title}" for title, _ in SCALING_VALUES.values()),
        *(f"n = {n:,}" for n in sizes),
    ]
    lines = []
    for module, fitted in exponents(rows).items():
        times = {
            pixels(row): row["seconds"].get("training") for row in rows if row["module"] == module
        }
        line = [MODULES[module].title]
        line += ["-" if fitted[name] is None else f"{fitted[name]:.2f}" for name in SCALING_VALUES]
        lines.append(line + [_seconds(times.get(n)) for n in sizes])
    return _with_errors(aligned(header, lines), rows)


def steps_table(rows):
    """The table of a sweep over K."""
    header = ["", "K", "forward", "backward", "memory, training"]
    lines = [
        [
            row["solve"],
            str(row["num_steps"]),
            *(_seconds(row["seconds"].get(mode)) for mode in ("forward", "backward")),
            _bytes(row["memory"].get("training")),
        ]
        for row in rows
    ]
    return _with_errors(aligned(header, lines), rows)


def _with_errors(text, rows):
    notes = [
        f"  {row['title']} {row['shape']['name']}, K={row['num_steps']}, {row['solve']}, {what}: "
        f"{error}"
        for row in rows
        for what, error in row["errors"].items()
    ]
    return "\n".join([text, *(["Not measured:", *notes] if notes else [])])


# The picture

# Attention in warm colours, hams in cold ones: a hue for each decomposition, paler from version to
# version.
_COLOURS = {
    "self_attention": "#b2182b",
    "sagan": "#e08214",
    "ylg": "#c9a227",
    "double_attention": "#8c6d31",
    "v1_nmf": "#08519c",
    "v1_cd": "#1b7837",
    "v1_vq": "#54278f",
    "v2_nmf": "#4292c6",
    "v2_cd": "#5aae61",
    "v2_vq": "#807dba",
    "v2plus_nmf": "#85bcdb",
    "v2plus_cd": "#8fce8f",
    "v2plus_vq": "#a9a6d1",
}
_SOLVE_COLOURS = {"one_step": "#08519c", "implicit": "#2ca25f", "unrolled": "#b2182b"}
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9,
}


def draw(result, path):
    """Draws a benchmark into a PNG file.

    Args:
      result: {'shapes': [{'title', 'rows'}], 'scaling': rows, 'steps': rows}, each part as
        `measure_cases` gave it; empty ones are left out.
      path: the file, local or remote.
    """
    panels = []
    for shape in result["shapes"]:
        panels.append(
            [
                lambda axes, shape=shape: _bars(axes, shape, "memory", 1e6, "peak memory in MB"),
                lambda axes, shape=shape: _bars(axes, shape, "seconds", 1e-3, "time in ms"),
            ]
        )
    if result["scaling"]:
        panels.append(
            [
                lambda axes: _growth(axes, result["scaling"], "memory", 1e6, "peak memory in MB"),
                lambda axes: _growth(axes, result["scaling"], "seconds", 1e-3, "time in ms"),
            ]
        )
    if result["steps"]:
        panels.append(
            [
                lambda axes: _over_steps(
                    axes,
                    result["steps"],
                    lambda row: row["memory"].get("training"),
                    1e6,
                    "peak memory in MB, training",
                ),
                lambda axes: _over_steps(
                    axes,
                    result["steps"],
                    lambda row: row["seconds"].get("backward"),
                    1e-3,
                    "time of the backward pass in ms",
                ),
            ]
        )
    if not panels:
        raise ValueError("draw: result has no rows; measure at least one shape or sweep.")
    with matplotlib.rc_context(_STYLE):
        heights = [0.32 * len(shape["rows"]) + 1.4 for shape in result["shapes"]]
        heights += [4.0] * (len(panels) - len(heights))
        figure = mpl_figure.Figure(figsize=(12, sum(heights)), layout="constrained", dpi=110)
        grid = figure.subplots(len(panels), 2, squeeze=False, height_ratios=heights)
        for draw_panel, axes in zip(itertools.chain(*panels), grid.flat, strict=True):
            draw_panel(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    records.write_whole(path, buffer.getvalue())


def _bars(axes, shape, what, unit, label):
    rows = shape["rows"][::-1]
    for offset, mode, alpha in ((0.2, "forward", 0.45), (-0.2, "training", 1.0)):
        for y, row in enumerate(rows):
            value = row[what].get(mode)
            if value is None:
                continue
            axes.barh(y + offset, value / unit, 0.38, color=_COLOURS[row["module"]], alpha=alpha)
            text = f"{value / unit:,.0f}" if value / unit >= 10 else f"{value / unit:.1f}"
            axes.annotate(
                text,
                (value / unit, y + offset),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        f"{shape['title']}\n{label}: forward (pale), forward and backward (full)",
        loc="left",
        fontsize=9,
    )


def _growth(axes, rows, what, unit, label):
    fitted = exponents(rows)
    for module, (sizes, values) in series(rows, SCALING_VALUES[what][1], key=pixels).items():
        points = [(size, value / unit) for size, value in zip(sizes, values, strict=True) if value]
        if not points:
            continue
        power = fitted[module][what]
        name = MODULES[module].title + (f": n^{power:.2f}" if power is not None else "")
        axes.plot(
            *zip(*points, strict=True), "o-", color=_COLOURS[module], label=name, markersize=4
        )
    axes.set(xscale="log", yscale="log", xlabel="n = H W")
    sizes = sorted({pixels(row) for row in rows})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    shape = rows[0]["shape"]
    axes.set_title(
        f"{label}, forward and backward; {shape['channels']} channels, r = {shape['rank']}",
        loc="left",
        fontsize=9,
    )


def _over_steps(axes, rows, value, unit, label):
    for solve in dict.fromkeys(row["solve"] for row in rows):
        points = [(row["num_steps"], value(row)) for row in rows if row["solve"] == solve]
        points = [(k, one / unit) for k, one in points if one]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                color=_SOLVE_COLOURS[solve],
                label=solve.replace("_", " "),
                markersize=4,
            )
    axes.set(xlabel="K", ylim=(0, None))
    axes.set_xticks(sorted({row["num_steps"] for row in rows}))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    shape = rows[0]["shape"]
    size = (
        f"{shape['batch']}x{shape['height']}x{shape['width']}x{shape['channels']}, "
        f"r = {shape['rank']}"
    )
    axes.set_title(f"{label}; {rows[0]['title']}, {size}", loc="left", fontsize=9)
