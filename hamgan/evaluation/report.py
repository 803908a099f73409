"""A run's folder as one HTML page that opens anywhere: no file beside it, no network.

The page is drawn from what the folder holds, and nothing is measured anew: the records of
metrics.jsonl, the grids of images, and config.gin.
"""

import base64
import collections
import dataclasses
import datetime
import html
import io
import itertools
import json
import math
import os
import re
import shlex
import statistics
import textwrap

import matplotlib
import tensorflow as tf
from matplotlib import figure as mpl_figure
from matplotlib import ticker
from PIL import Image

import hamgan
from hamgan import records

# What two evaluations must share for their numbers to stand in one curve.
_PROTOCOL = (
    "protocol",
    "num_samples",
    "reference",
    "features",
    "quantize",
    "labels",
    "weights",
    "batch_norm",
)
_EVERY_RECORD = ("kind", "step", "time")
_METRICS = ("fid", "inception_score", "kid", "kid_stderr")
_NAMES = {
    "fid": "FID",
    "inception_score": "Inception score",
    "kid": "KID",
    "kid_stderr": "KID, standard error",
    "num_samples": "Generated samples",
    "seed": "Seed",
    "checkpoint": "Checkpoint",
    "features": "Features",
    "reference": "Reference",
    "images_per_second": "Images per second",
}

_FILM_FRAMES = 20
_STILL_FRAMES = 5  # shown where there is no JavaScript
_POINTS = 200  # in a curve; the band around it holds the rest
_RATE_RECORDS = 20

# Matplotlib draws in these colours. They are then replaced, so that curves follow the page's theme.
_COLOURS = {f"#f0000{i}": f"var(--c{i})" for i in range(6)}
_INK, _RULE = "#f0000a", "#f0000b"
_COLOURS |= {_INK: "var(--muted)", _RULE: "var(--rule)"}
_LINE_COLOURS = list(_COLOURS)[:6]
_DRAWING = {
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


def write_report(model_dir, *, title=None):
    """Writes `model_dir/report.html`.

    Parts that the folder doesn't hold are left out, and the page says so. Where a run was resumed
    and went over some steps again, the later records count.

    Args:
      model_dir: a run's folder, local or remote, with metrics.jsonl and, where they exist,
        samples/step-*.png, samples.png, real.png and config.gin.
      title: the page's heading; the folder's name where none is given.

    Returns:
      The path of the page.

    Raises:
      ValueError: the folder has no metrics.jsonl.
    """
    model_dir = os.fspath(model_dir)
    metrics_path = os.path.join(model_dir, "metrics.jsonl")
    if not tf.io.gfile.exists(metrics_path):
        raise ValueError(
            "model_dir must be the folder that scripts/train.py wrote a run to, with its "
            "metrics.jsonl, config.gin, checkpoints/ and samples/; there is no metrics.jsonl in "
            f"{model_dir!r}"
        )
    by_kind = collections.defaultdict(list)
    for record in records.read(metrics_path):
        if _is_number(record.get("step")):
            by_kind[record.get("kind")].append(record)
    train = _surviving(by_kind["train"])
    evaluations = _latest(by_kind["evaluation"])
    if title is None:
        title = f"HamGAN: {os.path.basename(model_dir.rstrip('/')) or model_dir}"

    sections = [
        ("", _headline(train, evaluations)),
        ("Samples", _samples(model_dir)),
        ("Samples over time", _film(model_dir)),
        ("Quality", _quality(evaluations)),
        ("Training", _training(train)),
        ("Evaluations", _evaluation_tables(evaluations)),
        ("Events", _events(by_kind["event"])),
        ("Configuration", _configuration(model_dir)),
        ("How to reproduce this", _commands(model_dir)),
    ]
    body = "\n".join(
        f"<section>\n{f'<h2>{heading}</h2>' if heading else ''}\n{content}\n</section>" for heading, content in sections
    )
    page = _PAGE.format(
        title=_escape(title),
        subtitle=_subtitle(model_dir, [r for part in by_kind.values() for r in part]),
        body=body,
        version=_escape(hamgan.__version__),
        style=_STYLE,
        script=_SCRIPT,
    )
    path = os.path.join(model_dir, "report.html")
    records.write_whole(path, page.encode())
    return path


# Records


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _surviving(train):
    """Training records without those of steps that a resumed run went back behind."""
    kept = []
    for record in train:
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _latest(evaluations):
    """One record, the later one, per protocol, step and seed; in the order of writing."""
    latest = {}
    for record in evaluations:
        key = (_protocol(record), record["step"], _text(record.get("seed")))
        latest.pop(key, None)
        latest[key] = record
    return list(latest.values())


def _protocol(record):
    """What `record` was measured under, as pairs (name, text); parts of a fingerprint singly."""
    pairs = []
    for field in _PROTOCOL:
        value = record.get(field)
        if isinstance(value, dict):
            pairs += [(f"{field} {part}", _text(value[part])) for part in sorted(value)]
        elif value is not None:
            pairs.append((field, _text(value)))
    return tuple(pairs)


def _differing(protocols):
    """The names of the parts in which protocols differ, in order."""
    shared = set.intersection(*map(set, protocols))
    return list(dict.fromkeys(pair[0] for p in protocols for pair in p if pair not in shared))


def _last_and_best(evaluations):
    """The evaluations for the headline: first step, last step and lowest FID, under one protocol.

    It is the protocol that was used last. First and best are None where no FID is finite.
    """
    protocol = _protocol(evaluations[-1])
    comparable = [record for record in evaluations if _protocol(record) == protocol]
    last = max(reversed(comparable), key=lambda record: record["step"])
    with_fid = [record for record in comparable if _is_number(record.get("fid"))]
    best = min(with_fid, key=lambda record: record["fid"], default=None)
    first = min(with_fid, key=lambda record: record["step"], default=None)
    return first, last, best


# Text


def _escape(value):
    return html.escape(str(value), quote=True)


def _text(value):
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def _number(value):
    """A number from a record for reading; what isn't one was not finite when it was written."""
    if not _is_number(value):
        return "not finite"
    if isinstance(value, int) or abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _cell(record, key):
    if key not in record:
        return "–"
    value = record[key]
    # Numbers that weren't finite are written as null.
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not finite"
    return _number(value) if isinstance(value, float) else _text(value)


def _name(key):
    return _NAMES.get(key) or key[:1].upper() + key[1:].replace("_", " ")


def _when(seconds):
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _missing(sentence):
    return f'<p class="missing">{_escape(sentence)}</p>'


def _table(header, rows, *, numeric=()):
    """An HTML table of plain strings; the columns `numeric` are set flush right."""

    def line(tag, cells):
        return "".join(
            f"<{tag}{' class=n' if i in numeric else ''}>{_escape(cell)}</{tag}>" for i, cell in enumerate(cells)
        )

    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


# Sections


def _subtitle(model_dir, all_records):
    parts = [f"Run folder <code>{_escape(model_dir)}</code>"]
    times = [record["time"] for record in all_records if _is_number(record.get("time"))]
    if times:
        parts.append(f"last record {_when(max(times))}")
    return " · ".join(parts)


def _headline(train, evaluations):
    cards = []

    def card(name, value, note):
        cards.append(
            f'<div class="card"><div class="name">{_escape(name)}</div>'
            f'<div class="value">{_escape(value)}</div>'
            f'<div class="note">{_escape(note)}</div></div>'
        )

    below = ""
    if evaluations:
        first, last, best = _last_and_best(evaluations)
        at_last = f"step {_number(last['step'])}"
        if "fid" in last:
            note = at_last
            if first is not None and first["step"] < last["step"]:
                note += f", from {_number(first['fid'])} at step {_number(first['step'])}"
            card("FID, last", _number(last["fid"]), note)
        if best is not None:
            card("FID, best", _number(best["fid"]), f"step {_number(best['step'])}")
        if "inception_score" in last:
            card("Inception score", _number(last["inception_score"]), at_last)
        if "kid" in last:
            error = last.get("kid_stderr")
            error = f"± {_number(error)}, " if _is_number(error) else ""
            card("KID", _number(last["kid"]), f"{error}{at_last}")
        below = _measured_with(last, best)
    rates = [r["images_per_second"] for r in train[-_RATE_RECORDS:] if _is_number(r.get("images_per_second"))]
    if train:
        card("Steps", _number(train[-1]["step"]), "trained")
    if rates:
        # The median, because the first loop after a start holds the compilation.
        card(
            "Images per second",
            _number(statistics.median(rates)),
            f"median of the last {len(rates)} records",
        )
    if not evaluations:
        below = _missing("No evaluation has been recorded yet, so there is no FID.")
    return f'<div class="cards">{"".join(cards)}</div>\n{below}'


def _measured_with(last, best):
    """A table of what the last evaluation was made with, and where that of the best FID differs."""
    keys = [key for key in _NAMES if key in last]
    keys += [key for key in last if key not in keys]
    rows = []
    for key in keys:
        value = last[key]
        if key in _EVERY_RECORD + _METRICS or value is None or isinstance(value, float):
            continue
        rows.append([_name(key), _cell(last, key)])
        if best is not None and _cell(best, key) != _cell(last, key):
            rows.append([f"{_name(key)}, best FID", _cell(best, key)])
    return _table(["Measured with", ""], rows) if rows else ""


def _samples(model_dir):
    pictures = []
    for name, caption in (("samples.png", "Generated"), ("real.png", "Real")):
        source = _embed(os.path.join(model_dir, name), max_bytes=3_000_000, max_width=1600)
        if source is not None:
            alt = f"{caption} images in a grid"
            pictures.append(f"<figure>{_img(source, alt)}<figcaption>{caption}</figcaption></figure>")
        else:
            pictures.append(_missing(f"No readable {name} in this folder."))
    return f'<div class="pair">{"".join(pictures)}</div>'


def _film(model_dir):
    folder = os.path.join(model_dir, "samples")
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    steps = sorted((int(m[1]), m[0]) for m in (re.fullmatch(r"step-(\d+)\.png", name) for name in names) if m)
    frames = []
    for step, name in _evenly(steps, _FILM_FRAMES):
        source = _embed(os.path.join(folder, name), max_bytes=250_000, max_width=1000)
        if source is not None:
            frames.append((step, source))
    if not frames:
        return _missing("No readable samples/step-*.png in this folder.")
    stills = {step for step, _ in _evenly(frames, _STILL_FRAMES)}
    figures = "\n".join(
        f"<figure{' class=still' if step in stills else ''}>"
        f"{_img(source, f'Samples at step {step}')}"
        f"<figcaption>Step {_number(step)}</figcaption></figure>"
        for step, source in frames
    )
    end = len(frames) - 1
    controls = (
        '<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{end}" value="{end}" aria-label="Picture"></div>'
    )
    note = ""
    if len(steps) > len(frames):
        note = f'<p class="note">{len(frames)} of the {len(steps)} pictures in samples/.</p>'
    frames = f'<div class="frames">\n{figures}\n</div>'
    return f'<div class="film">{controls if end else ""}{frames}</div>{note}'


def _quality(evaluations):
    if not evaluations:
        return _missing("No evaluation has been recorded yet, so there are no curves.")
    groups = collections.defaultdict(list)
    for record in evaluations:
        groups[_protocol(record)].append(record)
    differing = _differing(list(groups))
    labels = {
        protocol: ", ".join(f"{_name(key)} {value}" for key, value in protocol if key in differing)
        for protocol in groups
    }
    charts = []
    for key, remark in (
        ("fid", "lower is better"),
        ("kid", "lower is better"),
        ("inception_score", "higher is better"),
    ):
        curves = []
        for colour, (protocol, group) in zip(itertools.cycle(_LINE_COLOURS), groups.items(), strict=False):
            if points := _points(group, key):
                curves.append(_Curve(labels[protocol], points, colour, markers=True))
        charts.append(_chart(f"{_name(key)} ({remark})", curves, may_be_log=key != "inception_score"))
    return _charts(charts) or _missing("The evaluations hold no FID, KID or Inception score.")


def _training(train):
    if not train:
        return _missing("No training step has been recorded yet.")
    keys = list(dict.fromkeys(key for record in train for key in record if key not in _EVERY_RECORD))
    losses = sorted(key for key in keys if key.startswith("loss"))
    outputs = [key for key in keys if key not in losses and {"real", "fake"} & set(re.split(r"[^a-z]+", key))]
    rest = [key for key in keys if key not in losses and key not in outputs]

    def curves(chosen):
        prefix = os.path.commonprefix(chosen) if len(chosen) > 1 else ""
        prefix = prefix[: prefix.rfind("/") + 1]
        return [
            _Curve(key.removeprefix(prefix).replace("_", " "), _condense(_points(train, key)), colour)
            for key, colour in zip(chosen, itertools.cycle(_LINE_COLOURS), strict=False)
        ]

    charts = [_chart("Losses", curves(losses)), _chart("Discriminator outputs", curves(outputs))]
    constants = []
    for key in rest:
        points = _points(train, key)
        values = {value for _, value, _, _ in points if value is not None}
        if len(values) == 1:
            constants.append(f"{_name(key)} {_number(values.pop())}")
        else:
            charts.append(_chart(_name(key), [_Curve("", _condense(points), _LINE_COLOURS[0])]))
    note = f'<p class="note">Constant: {_escape(", ".join(constants))}.</p>' if constants else ""
    charts = _charts(charts)
    return charts + note or _missing("The training records hold no finite number.")


def _evaluation_tables(evaluations):
    if not evaluations:
        return _missing("No evaluation has been recorded yet.")
    floats = dict.fromkeys(key for record in evaluations for key, value in record.items() if isinstance(value, float))
    others = [key for key in floats if key not in _EVERY_RECORD + _METRICS]
    present = [key for key in _METRICS if any(key in record for record in evaluations)]
    # What all evaluations share stands beside the headline numbers already.
    seeds = ["seed"] if len({_text(record.get("seed")) for record in evaluations}) > 1 else []
    fields = _differing([_protocol(record) for record in evaluations])
    ordered = sorted(evaluations, key=lambda record: record["step"])
    columns = present + others
    header = ["Step", *map(_name, columns + seeds + fields)]
    rows = []
    for record in ordered:
        protocol = dict(_protocol(record))
        cells = [_cell(record, key) for key in columns + seeds]
        cells += [protocol.get(key, "–") for key in fields]
        rows.append([_number(record["step"]), *cells])
    return _table(header, rows, numeric=range(1 + len(columns)))


def _events(events):
    if not events:
        return _missing("No event has been recorded.")
    rows = []
    for event in events:
        leading = [_text(event[key]) for key in ("event", "name", "message") if key in event]
        details = [
            f"{key} = {_cell(event, key)}" for key in event if key not in (*_EVERY_RECORD, "event", "name", "message")
        ]
        when = _when(event["time"]) if _is_number(event.get("time")) else "–"
        rows.append([_number(event["step"]), when, ": ".join(leading), ", ".join(details)])
    return _table(["Step", "Time", "Event", "Details"], rows, numeric=[0])


def _configuration(model_dir):
    path = os.path.join(model_dir, "config.gin")
    if not tf.io.gfile.exists(path):
        return _missing("No config.gin in this folder.")
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    return f"<pre>{_escape(text.strip())}</pre>"


def _commands(model_dir):
    here = shlex.quote(model_dir)
    config = shlex.quote(os.path.join(model_dir, "config.gin"))
    again = shlex.quote(model_dir.rstrip("/") + "-again")
    lines = [
        "# train again with the same configuration, in a new folder",
        f"python scripts/train.py --gin_file={config} \\",
        f"    --model_dir={again}",
        "# measure the last checkpoint of this run",
        f"python scripts/evaluate.py --model_dir={here}",
        "# draw from it",
        f"python scripts/sample.py --model_dir={here}",
    ]
    return f"<pre>{_escape(chr(10).join(lines))}</pre>"


# Pictures


def _evenly(items, count):
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _embed(path, *, max_bytes, max_width):
    """A picture as (data URL, width, height), as JPEG if it is large.

    None if it isn't there or can't be read.
    """
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read()
    kind = "png"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    if len(data) > max_bytes:
        picture.thumbnail((max_width, 4 * max_width))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=88)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *picture.size


def _img(source, alt):
    url, width, height = source
    return f'<img src="{url}" width="{width}" height="{height}" alt="{_escape(alt)}">'


# Curves


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A named line; its points are (step, value, low, high), the last three None in a gap."""

    label: str
    points: list
    colour: str
    markers: bool = False


def _points(source, key):
    """A number over steps: the mean of a step's records, and their range or standard error."""
    by_step = collections.defaultdict(list)
    for record in source:
        if key in record:
            by_step[record["step"]].append(record)
    points = []
    for step, group in sorted(by_step.items()):
        finite = [record for record in group if _is_number(record[key])]
        if not finite:
            points.append((step, None, None, None))
            continue
        values = [record[key] for record in finite]
        low, high = min(values), max(values)
        error = finite[0].get(f"{key}_stderr")
        if len(finite) == 1 and _is_number(error):
            low, high = low - error, high + error
        points.append((step, statistics.fmean(values), low, high))
    return points


def _condense(points):
    """Means over consecutive points: a long run makes neither a tangle nor a large file."""
    size = -(-len(points) // _POINTS)
    if size <= 1:
        return points
    binned = []
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


def _charts(charts):
    charts = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _chart(title, curves, *, may_be_log=False):
    """Curves as SVG in a figure of HTML; an empty string where there is no finite point."""
    values = [value for curve in curves for _, value, _, _ in curve.points if value is not None]
    if not values:
        return ""
    log = may_be_log and min(values) > 0 and max(values) > 8 * min(values)
    with matplotlib.rc_context(_DRAWING):
        # Figure itself, without pyplot, which would choose a display and keep every figure.
        labels = [textwrap.fill(curve.label, 48) for curve in curves]
        columns = max(1, 44 // (max(map(len, labels)) + 8))
        legend_lines = sum(label.count("\n") + 1 for label in labels) / columns
        figure = mpl_figure.Figure(figsize=(4.8, 2.6 + 0.2 * legend_lines), layout="constrained")
        axes = figure.add_subplot()
        for curve, label in zip(curves, labels, strict=True):
            steps, middle, low, high = (
                [math.nan if value is None else value for value in column] for column in zip(*curve.points, strict=True)
            )
            if log:
                low = [max(value, min(values) / 2) for value in low]
            if low != high:
                axes.fill_between(steps, low, high, color=curve.colour, alpha=0.18, linewidth=0)
            marker = "o" if curve.markers or len(steps) == 1 else None
            axes.plot(
                steps,
                middle,
                color=curve.colour,
                linewidth=1.6,
                marker=marker,
                markersize=3.5,
                label=label,
            )
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
    return f'<figure class="chart"><figcaption>{_escape(title)}{scale}</figcaption>{drawing}</figure>'


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
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escape(title)}"', 1)


# The page

_STYLE = """
:root { color-scheme: light dark;
  --back: #fff; --text: #1b1b20; --muted: #5d5d68; --rule: #dcdce3; --panel: #f5f5f8;
  --c0: #2563eb; --c1: #d9480f; --c2: #0d8a5f; --c3: #9333c9; --c4: #a16207; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root {
  --back: #131417; --text: #e9e9ee; --muted: #a3a3b0; --rule: #34353d; --panel: #1d1e23;
  --c0: #74a7ff; --c1: #ff9561; --c2: #4fd1a1; --c3: #d09bff; --c4: #e5b94e; --c5: #5cc8de; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem;
  background: var(--back); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  font-size: 1.2rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
pre { margin: 0; max-height: 30rem; overflow: auto; padding: .8rem 1rem; border-radius: .5rem;
  background: var(--panel); overflow-wrap: normal; }
header p, .note, .missing, figcaption, footer { color: var(--muted); font-size: .9rem; }
header p { margin: .3rem 0 1.2rem; }
.missing { margin: 0; font-style: italic; }
figure { margin: 0; }
figcaption { margin-top: .3rem; }
img, svg { display: block; max-width: 100%; height: auto; }
img { border-radius: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .75rem;
  margin-bottom: 1rem; }
.card { padding: .7rem .9rem; border-radius: .5rem; background: var(--panel); }
.card .name { color: var(--muted); font-size: .85rem; }
.card .value { font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card .note { font-size: .8rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr));
  gap: 1.5rem 1.25rem; }
.chart figcaption { margin: 0 0 .3rem; color: var(--text); }
.chart svg { width: 100%; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; max-height: 30rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--rule);
  text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
.frames { display: flex; gap: .75rem; overflow-x: auto; }
.frames figure { display: none; flex: none; width: 16rem; }
.frames .still { display: block; }
.playing .frames figure { display: none; width: auto; max-width: 100%; }
.playing .frames .shown { display: block; }
.controls { display: flex; gap: .75rem; align-items: center; max-width: 40rem;
  margin-bottom: .75rem; }
.controls[hidden] { display: none; }
.controls input { flex: 1; min-width: 0; accent-color: var(--c0); }
button { min-width: 4.5rem; padding: .35rem .8rem; border: 1px solid var(--rule);
  border-radius: .4rem; background: var(--panel); color: inherit; font: inherit; cursor: pointer; }
footer { margin-top: 2.5rem; }
"""

_SCRIPT = """
for (const film of document.querySelectorAll(".film")) {
  const frames = film.querySelectorAll("figure"), controls = film.querySelector(".controls");
  if (!controls) continue;
  const slider = controls.querySelector("input"), button = controls.querySelector("button");
  let timer = null;
  const show = () => frames.forEach(
    (frame, i) => frame.classList.toggle("shown", i === Number(slider.value)));
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Stop";
    show();
    timer = setInterval(() => {
      slider.value++;
      show();
      if (slider.value === slider.max) stop();
    }, 500);
  });
  film.classList.add("playing");
  controls.hidden = false;
  show();
}
"""

# The policy has the browser itself refuse whatever would come from outside.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
  style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
</header>
{body}
<footer>Written by HamGAN {version}.</footer>
<script>{script}</script>
</body>
</html>
"""
