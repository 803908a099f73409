"""What feeding costs, as tables and a picture, and how many images a TPU slice is said to take."""

import dataclasses
import io

import matplotlib
from matplotlib import figure as mpl_figure

from hamgan.benchmarks.context_report import aligned
from hamgan.benchmarks.input import ARRANGEMENTS
from hamgan.run import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice by its published specifications.

    Attributes:
      chips: chips.
      teraflops: bfloat16, of a chip at its peak.
      gigabytes: a second, of a chip's memory at its peak.
      cores: virtual CPUs of the hosts.
    """

    chips: int
    teraflops: float
    gigabytes: float
    cores: int


# https://docs.cloud.google.com/tpu/docs/v3, v4, v5e
SLICES = {
    "v3-8": Slice(chips=4, teraflops=123, gigabytes=900, cores=96),
    "v4-8": Slice(chips=4, teraflops=275, gigabytes=1228, cores=240),
    "v5e-8": Slice(chips=8, teraflops=197, gigabytes=819, cores=224),
}
# One step of D and one of G at width 64 and 128x128, compiled for one v5e core at batch 16 with
# bfloat16 compute, as the compiler counts it: 2253 GFLOP and 28.3 GB.
GIGAFLOP_PER_IMAGE = 2253 / 16
GIGABYTES_PER_IMAGE = 28.3 / 16
BATCH_SIZES = (256, 1024)


def demand(tpu):
    """Estimated images per second that a slice takes: {'memory': as its memory allows,
    'arithmetic': its arithmetic}.

    By arithmetic is more than it can ever take; real steps do other things too, and reach neither
    peak.
    """
    return {
        "memory": tpu.chips * tpu.gigabytes / GIGABYTES_PER_IMAGE,
        "arithmetic": tpu.chips * tpu.teraflops * 1e3 / GIGAFLOP_PER_IMAGE,
    }


# Report


def _goal(ratio, goal, reached):
    if goal is None or ratio is None:
        return ""
    return f" (goal {goal:g}x: {'reached' if reached(ratio, goal) else 'missed'})"


def feed_table(rows):
    """The measured rows as text."""
    header = [
        "",
        "images/s",
        "of plain",
        "lowest-highest",
        "a core-second",
        "of plain",
        "memory",
        "of plain",
    ]
    header += ["first batch"]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["title"], "not measured: " + row["error"], *[""] * (len(header) - 2)])
            continue
        arrangement = ARRANGEMENTS[row["name"]]
        rate_ratio, memory_ratio = row.get("rate_ratio"), row.get("memory_ratio")
        rate_goal = _goal(rate_ratio, arrangement.rate_goal, lambda ratio, goal: ratio >= goal)
        memory_goal = _goal(
            memory_ratio, arrangement.memory_goal, lambda ratio, goal: ratio <= goal
        )
        lines.append(
            [
                row["title"],
                f"{row['rate']:,.0f}",
                "-" if rate_ratio is None else f"{rate_ratio:.2f}x{rate_goal}",
                f"{min(row['rates']):,.0f}-{max(row['rates']):,.0f}",
                f"{row['core_rate']:,.0f}",
                f"{row['core_rate_ratio']:.2f}x" if "core_rate_ratio" in row else "-",
                "-" if row["memory"] is None else f"{row['memory'] / 1e6:,.0f} MB",
                "-" if memory_ratio is None else f"{memory_ratio:.3f}x{memory_goal}",
                f"{row['first']:.1f} s",
            ]
        )
    return "\n".join(
        [
            aligned(header, lines),
            "a core-second: images per second of processor time, whatever else runs",
        ]
    )


def demand_table(rows):
    """What slices take and how many cores that keeps busy, as text; an estimate, with its formula.

    Args:
      rows: of `measure_arrangements`; those of full-size JPEGs and of packed squares count.
    """
    rates = {
        row["name"]: row["core_rate"]
        for row in rows
        if row["name"] in ("jpeg", "packed") and "rate" in row
    }
    header = ["", "images/s", *(f"steps/s at {size}" for size in BATCH_SIZES), "at most images/s"]
    header += [f"cores, {ARRANGEMENTS[name].title}" for name in rates] + ["cores it has"]
    lines = []
    for name, tpu in SLICES.items():
        images = demand(tpu)
        line = [
            name,
            f"{images['memory']:,.0f}",
            *(f"{images['memory'] / size:.1f}" for size in BATCH_SIZES),
        ]
        line += [f"{images['arithmetic']:,.0f}"]
        line += [
            f"{images['memory'] / rate:.1f}-{images['arithmetic'] / rate:.1f}"
            for rate in rates.values()
        ]
        lines.append([*line, str(tpu.cores)])
    return "\n".join(
        [
            aligned(header, lines),
            "An estimate, nothing was run: images/s = chips x GB/s of a chip / "
            f"{GIGABYTES_PER_IMAGE:.2f} GB an image; at most = chips x GFLOP/s of a chip / "
            f"{GIGAFLOP_PER_IMAGE:.0f} "
            "GFLOP an image;",
            "both at the published peaks (bfloat16) and at one D step a G step, the same at every "
            "batch size. Cores: "
            "images/s / images a core-second here.",
        ]
    )


def draw(result, path):
    """Draws measured rows into a PNG file, local or remote."""
    rows = [row for row in result["rows"] if "rate" in row][::-1]
    if not rows:
        raise ValueError("draw: result has no measured rows.")
    with matplotlib.rc_context(
        {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    ):
        figure = mpl_figure.Figure(
            figsize=(12, 0.32 * len(rows) + 1.4), layout="constrained", dpi=110
        )
        for axes, what, unit, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("rate", "memory"),
            (1, 1e6),
            ("images per second", "resident memory beyond TensorFlow's own, in MB"),
            strict=True,
        ):
            for y, row in enumerate(rows):
                value = max(row[what] or 0, 0) / unit
                axes.barh(y, value, color="#b2182b" if row["name"] == "plain" else "#08519c")
                axes.annotate(
                    f"{value:,.0f}",
                    (value, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
            axes.set_xscale("symlog", linthresh=1)
            axes.margins(x=0.12)
            axes.set_title(label, loc="left", fontsize=9)
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    records.write_whole(path, buffer.getvalue())
