"""A run's folder as one HTML page that opens anywhere: no file beside it, no network.

The page is drawn from what the folder holds, and nothing is measured anew: the records of
metrics.jsonl, the grids of images, what the evaluation kept of nearest neighbours, and config.gin.
"""

import base64
import collections
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

import tensorflow as tf
from PIL import Image

import hamgan
from hamgan.evaluation import charts, neighbours, page
from hamgan.run import records

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
    "protocol": "Protocol",
    "protocol name": "Protocol",
    "features": "Features",
    "reference": "Reference",
    "images_per_second": "Images per second",
}

_FILM_FRAMES = 20
_STILL_FRAMES = 5  # shown where there is no JavaScript
_RATE_RECORDS = 20


def write_report(model_dir, *, title=None):
    """Writes `model_dir/report.html`.

    Parts that the folder doesn't hold are left out, and the page says so. Where a run was resumed
    and went over some steps again, the later records count.

    Args:
      model_dir: a run's folder, local or remote, with metrics.jsonl and, where they exist,
        samples/step-*.png, samples.png, real.png, neighbours/step-*.json and .png, and config.gin.
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
        if record.get("event") == "rolled back" and _is_number(record.get("to")):
            for kind in ("evaluation", "aggregate"):
                by_kind[kind] = [of for of in by_kind[kind] if of["step"] <= record["to"]]
    train = _surviving(by_kind["train"])
    evaluations = _latest(by_kind["evaluation"])
    aggregates = _latest(by_kind["aggregate"])
    if title is None:
        title = f"HamGAN: {os.path.basename(model_dir.rstrip('/')) or model_dir}"

    sections = [
        ("", _headline(train, evaluations, aggregates)),
        ("Samples", _samples(model_dir)),
        ("Samples over time", _film(model_dir)),
        ("Quality", _quality(evaluations)),
        ("Nearest training images", _neighbours(model_dir)),
        ("Training", _training(train)),
        ("Evaluations", _evaluation_tables(evaluations)),
        ("Repeats", _repeats(aggregates)),
        ("Events", _events(by_kind["event"])),
        ("Configuration", _configuration(model_dir)),
        ("How to reproduce this", _commands(model_dir)),
    ]
    body = "\n".join(
        f"<section>\n{f'<h2>{heading}</h2>' if heading else ''}\n{content}\n</section>"
        for heading, content in sections
    )
    text = page.PAGE.format(
        title=_escape(title),
        subtitle=_subtitle(model_dir, [r for part in by_kind.values() for r in part]),
        body=body,
        version=_escape(hamgan.__version__),
        style=page.STYLE,
        script=page.SCRIPT,
    )
    path = os.path.join(model_dir, "report.html")
    records.write_whole(path, text.encode())
    return path


def terminal_table(all_records):
    """The evaluations among records, and the means over repeats, as a table of text, by step.

    Args:
      all_records: dictionaries as `hamgan.run.records.read` gives them; other kinds are passed over.

    Returns:
      Lines of text without a line break at the end; an empty string where there is no evaluation.
    """

    def scores(record):
        for key in ("fid", "inception_score", "kid"):
            cell = _number(record[key]) if key in record else "–"
            if key == "kid" and _is_number(record.get("kid_stderr")):
                cell += f" ± {_number(record['kid_stderr'])}"
            elif interval := _interval(record, key):
                cell += f" {_range(interval)}"
            yield cell

    def mean(of):
        return _number(of["mean"]) + (
            f" ± {_number(of['std'])}" if _is_number(of.get("std")) else ""
        )

    rows = []
    for record in all_records:
        protocol = record.get("protocol")
        name = protocol.get("name", "–") if isinstance(protocol, dict) else "–"
        if record.get("kind") == "evaluation":
            count = record["num_samples"] if "num_samples" in record else None
            rows.append(
                (
                    record["step"],
                    0,
                    name,
                    *scores(record),
                    _number(count) if count else "–",
                    _cell(record, "seed"),
                )
            )
        elif record.get("kind") == "aggregate" and (every := _statistics(record)):
            cells = [
                mean(every[key]) if key in every else "–"
                for key in ("fid", "inception_score", "kid")
            ]
            repeats = max(len(of.get("values", [])) for of in every.values())
            rows.append((record["step"], 1, name, *cells, f"mean of {repeats}", ""))
    if not rows:
        return ""
    rows.sort(key=lambda row: row[:2])
    lines = [("Step", "Protocol", "FID", "IS", "KID", "Samples", "Seed")]
    lines += [(_number(step), *cells) for step, _, *cells in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


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
            pairs += [
                (f"{field} {part}", _text(value[part])) for part in sorted(value) if part != "words"
            ]
        elif value is not None:
            pairs.append((field, _text(value)))
    return tuple(pairs)


def _differing(protocols):
    """The names of the parts that tell protocols apart, in order: their names alone if those do."""
    different = set(protocols)
    shared = set.intersection(*map(set, protocols))
    if len(different) > 1 and len({dict(p).get("protocol name") for p in different}) == len(
        different
    ):
        return ["protocol name"]
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


def _interval(record, key):
    """What a number is uncertain by, as (low, high): its interval, else its standard error; None
    without either.
    """
    interval = record.get(f"{key}_interval")
    if isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)):
        return tuple(interval)
    error = record.get(f"{key}_stderr")
    if _is_number(record.get(key)) and _is_number(error):
        return record[key] - error, record[key] + error
    return None


def _statistics(aggregate):
    """{metric: its mean, std, min and values} of a record over repeats."""
    scores = aggregate.get("scores")
    every = scores.items() if isinstance(scores, dict) else ()
    return {key: of for key, of in every if isinstance(of, dict) and _is_number(of.get("mean"))}


def _aggregate_of(record, aggregates):
    """The last record over repeats of an evaluation's step and protocol; None where there is
    none.
    """
    pairs = set(_protocol(record))
    same = [a for a in aggregates if a["step"] == record["step"] and set(_protocol(a)) <= pairs]
    return same[-1] if same else None


def in_words(record):
    """The protocol of an evaluation as sentences: its own words where the record has them, else
    from its fields.
    """
    protocol = record.get("protocol")
    if isinstance(protocol, dict) and protocol.get("words"):
        words = protocol["words"]
        return words if isinstance(words, str) else " ".join(map(str, words))
    reference, features = (
        value if isinstance(value, dict) else {}
        for value in (record.get("reference"), record.get("features"))
    )
    parts = []
    if "num_samples" in record:
        sample = [_number(record["num_samples"]), "generated images"]
        details = [f"labels {record['labels']}"] if "labels" in record else []
        details += [f"{record['weights']} weights"] if "weights" in record else []
        details += [f"batch norm: {record['batch_norm']}"] if "batch_norm" in record else []
        details += [f"seed {record['seed']}"] if "seed" in record else []
        parts.append(" ".join(sample) + (f" ({', '.join(details)})" if details else ""))
    if {"dataset", "split", "count"} <= set(reference):
        parts.append(
            f"compared with {_number(reference['count'])} real ones: {reference['dataset']}, split "
            f"{reference['split']}"
        )
    if "quantize" in record:
        parts.append("all rounded to 8 bits" if record["quantize"] else "not rounded to 8 bits")
    if "handle" in features:
        size = f", resized to {features['size']} pixels as TF1 does" if "size" in features else ""
        parts.append(
            f"features of {features['handle']} (digest {features.get('digest', 'unknown')}){size}"
        )
    return "; ".join(parts) + "." if parts else ""


# Text


def _escape(value):
    return html.escape(str(value), quote=True)


def _text(value):
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def _range(interval):
    return f"[{_number(interval[0])}, {_number(interval[1])}]"


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
            f"<{tag}{' class=n' if i in numeric else ''}>{_escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
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


def _headline(train, evaluations, aggregates):
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
        aggregate = _aggregate_of(last, aggregates)
        means = _statistics(aggregate) if aggregate else {}
        for key in ("fid", "inception_score", "kid"):
            if key in means:
                # The mean of repeats is the result, the best of them is luck.
                of = means[key]
                parts = (("std", "±"), ("min", "min"))
                details = [f"{name} {_number(of[part])}" for part, name in parts if part in of]
                card(
                    f"{_name(key)}, mean of {len(of.get('values', []))}",
                    _number(of["mean"]),
                    ", ".join([*details, at_last]),
                )
            elif key in last:
                details = [at_last]
                if key == "kid" and _is_number(last.get("kid_stderr")):
                    details.insert(0, f"± {_number(last['kid_stderr'])}")
                elif interval := _interval(last, key):
                    details.insert(0, _range(interval))
                if key == "fid" and first is not None and first["step"] < last["step"]:
                    details.append(f"from {_number(first['fid'])} at step {_number(first['step'])}")
                card(
                    "FID, last" if key == "fid" else _name(key),
                    _number(last[key]),
                    ", ".join(details),
                )
            if key == "fid" and best is not None:
                card("FID, best", _number(best["fid"]), f"step {_number(best['step'])}")
        below = _measured_with(last, best)
    rates = [
        r["images_per_second"]
        for r in train[-_RATE_RECORDS:]
        if _is_number(r.get("images_per_second"))
    ]
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
        # Intervals stand beside their numbers.
        if key in _EVERY_RECORD + _METRICS or value is None or isinstance(value, float | list):
            continue
        rows.append([_name(key), _setting(value)])
        if best is not None and best.get(key) != value:
            rows.append([f"{_name(key)}, best FID", _setting(best.get(key))])
    words = in_words(last)
    words = f'<p class="protocol">{_escape(words)}</p>' if words else ""
    return words + (_table(["Measured with", ""], rows) if rows else "")


def _setting(value):
    # The words of a protocol stand above the table.
    return _text(
        {k: v for k, v in value.items() if k != "words"} if isinstance(value, dict) else value
    )


def _samples(model_dir):
    pictures = []
    for name, caption in (("samples.png", "Generated"), ("real.png", "Real")):
        source = _embed(os.path.join(model_dir, name), max_bytes=3_000_000, max_width=1600)
        if source is not None:
            alt = f"{caption} images in a grid"
            pictures.append(
                f"<figure>{_img(source, alt)}<figcaption>{caption}, one class a "
                "row</figcaption></figure>"
            )
        else:
            pictures.append(_missing(f"No readable {name} in this folder."))
    return f'<div class="pair">{"".join(pictures)}</div>'


def _film(model_dir):
    folder = os.path.join(model_dir, "samples")
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    steps = sorted(
        (int(m[1]), m[0]) for m in (re.fullmatch(r"step-(\d+)\.png", name) for name in names) if m
    )
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
        or "protocol without a name"
        for protocol in groups
    }
    drawings = []
    for key, remark in (
        ("fid", "lower is better"),
        ("kid", "lower is better"),
        ("inception_score", "higher is better"),
    ):
        curves = []
        for colour, (protocol, group) in zip(
            itertools.cycle(charts.LINE_COLOURS), groups.items(), strict=False
        ):
            if points := _points(group, key):
                curves.append(charts.Curve(labels[protocol], points, colour, markers=True))
        drawings.append(
            charts.chart(f"{_name(key)} ({remark})", curves, may_be_log=key != "inception_score")
        )
    return charts.gallery(drawings) or _missing(
        "The evaluations hold no FID, KID or Inception score."
    )


def _training(train):
    if not train:
        return _missing("No training step has been recorded yet.")
    keys = list(
        dict.fromkeys(key for record in train for key in record if key not in _EVERY_RECORD)
    )
    losses = sorted(key for key in keys if key.startswith("loss"))
    outputs = [
        key
        for key in keys
        if key not in losses and {"real", "fake"} & set(re.split(r"[^a-z]+", key))
    ]
    rest = [key for key in keys if key not in losses and key not in outputs]

    def curves(chosen):
        prefix = os.path.commonprefix(chosen) if len(chosen) > 1 else ""
        prefix = prefix[: prefix.rfind("/") + 1]
        return [
            charts.Curve(
                key.removeprefix(prefix).replace("_", " "),
                charts.condense(_points(train, key)),
                colour,
            )
            for key, colour in zip(chosen, itertools.cycle(charts.LINE_COLOURS), strict=False)
        ]

    drawings = [
        charts.chart("Losses", curves(losses)),
        charts.chart("Discriminator outputs", curves(outputs)),
    ]
    constants = []
    groups = collections.defaultdict(list)
    for key in rest:
        points = _points(train, key)
        values = {value for _, value, _, _ in points if value is not None}
        if len(values) == 1:
            constants.append(f"{_name(key)} {_number(values.pop())}")
        else:
            groups[key.rpartition("/")[0] or key].append(key)
    for group, keys in groups.items():
        if len(keys) > len(charts.LINE_COLOURS):
            # Of every layer, say: what lies between the smallest and the largest.
            curve = charts.Curve(
                "",
                charts.condense(_spread([_points(train, key) for key in keys])),
                charts.LINE_COLOURS[0],
            )
            drawings.append(
                charts.chart(f"{_name(group)}: mean of {len(keys)}, smallest to largest", [curve])
            )
        else:
            title = group if len(keys) > 1 else keys[0]
            drawings.append(charts.chart(_name(title), curves(keys)))
    note = f'<p class="note">Constant: {_escape(", ".join(constants))}.</p>' if constants else ""
    drawings = charts.gallery(drawings)
    return drawings + note or _missing("The training records hold no finite number.")


def _evaluation_tables(evaluations):
    if not evaluations:
        return _missing("No evaluation has been recorded yet.")
    floats = dict.fromkeys(
        key for record in evaluations for key, value in record.items() if isinstance(value, float)
    )
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


def _repeats(aggregates):
    rows = []
    for aggregate in sorted(aggregates, key=lambda record: record["step"]):
        protocol = aggregate.get("protocol")
        name = protocol.get("name", "–") if isinstance(protocol, dict) else _text(protocol)
        for key, of in _statistics(aggregate).items():
            numbers = [_number(of[part]) if part in of else "–" for part in ("mean", "std", "min")]
            values = ", ".join(map(_number, of.get("values", [])))
            rows.append([_number(aggregate["step"]), name, _name(key), *numbers, values])
    if not rows:
        return _missing("No checkpoint has been evaluated with repeats.")
    return _table(
        ["Step", "Protocol", "", "Mean", "Std", "Min", "Values"], rows, numeric=[0, 3, 4, 5]
    )


def _neighbours(model_dir):
    """The memorisation check of the last evaluated step with its picture, and a table of all."""
    folder = os.path.join(model_dir, neighbours.FOLDER)
    names = sorted(tf.io.gfile.listdir(folder)) if tf.io.gfile.isdir(folder) else []
    checks = []
    for name in names:
        if re.fullmatch(r"step-\d+\.json", name):
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                checks.append((name.removesuffix(".json"), json.loads(file.read())))
    if not checks:
        return _missing("No evaluation has looked for the nearest training images of samples yet.")
    stem, last = checks[-1]
    source = _embed(os.path.join(folder, f"{stem}.png"), max_bytes=1_500_000, max_width=1000)
    caption = (
        f"Step {_number(last['step'])}. Each row: a sample, then the nearest of "
        f"{_number(last['num_training'])} images "
        f"of {last['dataset']}, split {last['split']}, by features."
    )
    picture = ""
    if source is not None:
        picture = f"<figure>{_img(source, 'Samples and their nearest training images')}"
        picture += f"<figcaption>{_escape(caption)}</figcaption></figure>"
    note = (
        "A sample's distance to its nearest training image, against that of real images "
        f"({last['real']}). Memorised "
        "images show as a ratio well below 1, and as more than 0.01 of the samples closer than 99 "
        "% of real images are."
    )
    header = [
        "Step",
        "Samples, median distance",
        "Real images",
        "Ratio",
        "Closer than 99 % of real",
    ]
    keys = ("generated_distance", "real_distance", "distance_ratio", "closer_than_real")
    rows = [[_number(check["step"]), *(_number(check[key]) for key in keys)] for _, check in checks]
    return f'{picture}<p class="note">{_escape(note)}</p>{_table(header, rows, numeric=range(5))}'


def _events(events):
    if not events:
        return _missing("No event has been recorded.")
    rows = []
    for event in events:
        leading = [_text(event[key]) for key in ("event", "name", "message") if key in event]
        details = [
            f"{key} = {_cell(event, key)}"
            for key in event
            if key not in (*_EVERY_RECORD, "event", "name", "message")
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


def _points(source, key):
    """A number over steps: the mean of a step's records, and their range, or the one record's
    interval.
    """
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
        if len(finite) == 1:
            low, high = _interval(finite[0], key) or (low, high)
        points.append((step, statistics.fmean(values), low, high))
    return points


def _spread(every):
    """Many curves as one: at each step their mean, the smallest and the largest."""
    by_step = collections.defaultdict(list)
    for points in every:
        for step, value, _, _ in points:
            if value is not None:
                by_step[step].append(value)
    return [
        (step, statistics.fmean(values), min(values), max(values))
        for step, values in sorted(by_step.items())
    ]
