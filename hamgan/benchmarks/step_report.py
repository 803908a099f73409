"""The benchmark of steps as text and as a picture."""

import io

import matplotlib
from matplotlib import figure as mpl_figure

from hamgan.benchmarks import context_report
from hamgan.run import records


def step_table(rows):
    """Steps of `step.measure_steps` as text, each time also as a ratio to the first row's."""
    header = ["", "median", "of the first", "images/s", "GMACs", "of the machine's rate", "memory"]
    first = next((row["seconds"] for row in rows if "seconds" in row), None)
    lines = []
    for row in rows:
        seconds = row.get("seconds")
        lines.append(
            [
                row["title"],
                f"{seconds:.3f} s" if seconds else "-",
                f"{seconds / first:.2f}x" if seconds else "-",
                f"{row['images_per_second']:.1f}" if seconds else "-",
                f"{row['macs'] / 1e9:.1f}" if "macs" in row else "-",
                f"{row['share']:.0%}" if "share" in row else "-",
                f"{row['memory'] / 1e9:.2f} GB" if row.get("memory") else "-",
            ]
        )
    errors = [
        f"{row['title']}, {what}: {text}" for row in rows for what, text in row["errors"].items()
    ]
    return "\n".join([context_report.aligned(header, lines), *errors])


def trace_table(operations, *, count=20):
    """The longest operations of `step.trace_job` as text."""
    total = sum(row["seconds"] for row in operations) or 1.0
    return context_report.aligned(
        ["operation", "self time a step", "share", "calls a step"],
        [
            [
                row["operation"],
                f"{row['seconds']:.4f} s",
                f"{row['seconds'] / total:.1%}",
                f"{row['calls']:.0f}",
            ]
            for row in operations[:count]
        ],
    )


def draw(rows, path):
    """Writes time and memory of steps as bars, a PNG."""
    shown = [row for row in rows if "seconds" in row]
    with matplotlib.rc_context({"font.size": 9}):
        figure = mpl_figure.Figure(figsize=(9, 1.2 + 0.45 * len(shown)), layout="constrained")
        time, memory = figure.subplots(1, 2, sharey=True)
        places = range(len(shown))
        time.barh(places, [row["seconds"] for row in shown])
        time.set(xlabel="seconds a step, median", yticks=places)
        time.set_yticklabels([row["title"] for row in shown])
        time.invert_yaxis()
        memory.barh(places, [(row.get("memory") or 0) / 1e9 for row in shown])
        memory.set_xlabel("GB at the peak")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
    records.write_whole(path, buffer.getvalue())
