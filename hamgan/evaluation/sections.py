"""The parts of a report: what a run's records and pictures say, as HTML."""

import collections
import itertools
import json
import os
import re
import shlex
import statistics as stats

import tensorflow as tf

from hamgan.evaluation import charts, markup, summary
from hamgan.evaluation.scores import ALL_SCORES, headline_of
from hamgan.run.folder import Folder
from hamgan.run.history import Record, is_number, measured_under, text

_EVERY_RECORD = ("kind", "step", "time")
# The scores and their errors, as columns.
_SCORES = tuple(name for score in ALL_SCORES for name in (score.name, score.error))

_FILM_FRAMES = 20
_STILL_FRAMES = 5  # shown where there is no JavaScript
_RATE_RECORDS = 20


def subtitle(model_dir: str, all_records: list[Record]) -> str:
    parts = [f"Run folder <code>{markup.escape(model_dir)}</code>"]
    times = [record["time"] for record in all_records if is_number(record.get("time"))]
    if times:
        parts.append(f"last record {markup.when(max(times))}")
    return " · ".join(parts)


def _card_of_repeats(score, of, at_last):
    # The mean of repeats is the result, the best of them is luck.
    parts = (("std", "± {} (std)"), ("min", "min {}"))
    details = [words.format(markup.number(of[part])) for part, words in parts if part in of]
    title = f"{score.title}, mean of {len(of.get('values', []))}"
    return title, markup.number(of["mean"]), ", ".join([*details, at_last])


def _card_of_last(score, last, first, at_last):
    details = [at_last]
    if is_number(last.get(score.error)):
        details.insert(0, f"± {markup.number(last[score.error])} (standard error)")
    elif interval_of := summary.interval(last, score.name):
        details.insert(0, markup.interval_text(interval_of))
    title = score.title
    if score is headline_of(last):
        title = f"{title}, last"
        if first is not None and first["step"] < last["step"]:
            details.append(
                f"from {markup.number(first[score.name])} at step {markup.number(first['step'])}"
            )
    return title, markup.number(last[score.name]), ", ".join(details)


def headline(train: list[Record], evaluations: list[Record], aggregates: list[Record]) -> str:
    cards = []

    def card(name, value, note):
        cards.append(
            f'<div class="card"><div class="name">{markup.escape(name)}</div>'
            f'<div class="value">{markup.escape(value)}</div>'
            f'<div class="note">{markup.escape(note)}</div></div>'
        )

    below = ""
    if evaluations:
        first, last, best = summary.last_and_best(evaluations)
        at_last = f"step {markup.number(last['step'])}"
        aggregate = summary.aggregate_of(last, aggregates)
        means = summary.statistics(aggregate) if aggregate else {}
        warned = ". Too few images, see below" if last.get("caution") else ""
        for score in (score for score in ALL_SCORES if score.leading):
            if score.name in means:
                name, value, note = _card_of_repeats(score, means[score.name], at_last)
                card(name, value, note + warned)
            elif score.name in last:
                name, value, note = _card_of_last(score, last, first, at_last)
                card(name, value, note + warned)
            if score is headline_of(last) and best is not None:
                mean, of = best
                title = f"{score.title}, best" + (f" mean of {len(of)}" if len(of) > 1 else "")
                card(title, markup.number(mean), f"step {markup.number(of[-1]['step'])}")
        below = markup.missing(last["caution"]) if last.get("caution") else ""
        if note := summary.of_own_features(last):
            below += markup.missing(note)
        below += _measured_with(last, best[1][-1] if best else None)
    rates = [
        r["images_per_second"]
        for r in train[-_RATE_RECORDS:]
        if is_number(r.get("images_per_second"))
    ]
    if train:
        card("Steps", markup.number(train[-1]["step"]), "trained")
    if rates:
        # The median, because the first loop after a start holds the compilation.
        card(
            "Images per second",
            markup.number(stats.median(rates)),
            f"median of the last {len(rates)} records",
        )
    if not evaluations:
        below = markup.missing("No evaluation has been recorded yet, so there is no score.")
    return f'<div class="cards">{"".join(cards)}</div>\n{below}'


def _measured_with(last, best):
    """A table of what the last evaluation was made with, and where that of the best score
    differs.
    """
    keys = [key for key in markup.NAMES if key in last]
    keys += [key for key in last if key not in keys]
    rows = []
    for key in keys:
        value = last[key]
        # Intervals stand beside their numbers.
        if key in _EVERY_RECORD + _SCORES or value is None or isinstance(value, float | list):
            continue
        rows.append([markup.name(key), _setting(value)])
        if best is not None and best.get(key) != value:
            best_of = f"best {headline_of(last).title}"
            rows.append([f"{markup.name(key)}, {best_of}", _setting(best.get(key))])
    words = summary.in_words(last)
    words = f'<p class="protocol">{markup.escape(words)}</p>' if words else ""
    return words + (markup.table(["Measured with", ""], rows) if rows else "")


def _setting(value):
    # The words of a protocol stand above the table.
    return text(
        {k: v for k, v in value.items() if k != "words"} if isinstance(value, dict) else value
    )


def samples(model_dir: str) -> str:
    pictures = []
    folder = Folder(model_dir)
    for path, caption in ((folder.samples, "Generated"), (folder.real_images, "Real")):
        source = markup.embed(path, max_bytes=3_000_000, max_width=1600)
        if source is not None:
            alt = f"{caption} images in a grid"
            pictures.append(
                f"<figure>{markup.img(source, alt)}<figcaption>{caption}, one class a "
                "row</figcaption></figure>"
            )
        else:
            pictures.append(markup.missing(f"No readable {os.path.basename(path)} in this folder."))
    return f'<div class="pair">{"".join(pictures)}</div>'


def film(model_dir: str) -> str:
    folder = Folder(model_dir).grids
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    found = ((Folder.step_of_grid(name), name) for name in names)
    steps = sorted((step, name) for step, name in found if step is not None)
    frames = []
    for step, name in markup.evenly(steps, _FILM_FRAMES):
        source = markup.embed(os.path.join(folder, name), max_bytes=250_000, max_width=1000)
        if source is not None:
            frames.append((step, source))
    if not frames:
        return markup.missing("No readable samples/step-*.png in this folder.")
    stills = {step for step, _ in markup.evenly(frames, _STILL_FRAMES)}
    figures = "\n".join(
        f"<figure{' class=still' if step in stills else ''}>"
        f"{markup.img(source, f'Samples at step {step}')}"
        f"<figcaption>Step {markup.number(step)}</figcaption></figure>"
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
    content = f'{controls if end else ""}<div class="frames">\n{figures}\n</div>'
    return f'<div class="film">{content}</div>{note}'


def quality(evaluations: list[Record]) -> str:
    if not evaluations:
        return markup.missing("No evaluation has been recorded yet, so there are no curves.")
    groups = collections.defaultdict(list)
    for record in evaluations:
        groups[measured_under(record)].append(record)
    differing = summary.differing(list(groups))
    labels = {
        protocol: ", ".join(
            f"{markup.name(key)} {value}" for key, value in protocol if key in differing
        )
        or "protocol without a name"
        for protocol in groups
    }
    drawings = []
    for score in ALL_SCORES:
        key = score.name
        curves = []
        for colour, (protocol, group) in zip(
            itertools.cycle(charts.LINE_COLOURS), groups.items(), strict=False
        ):
            if points := summary.points(group, key):
                curves.append(charts.Curve(labels[protocol], points, colour, markers=True))
        drawings.append(
            charts.chart(
                f"{score.title} ({score.better} is better)",
                curves,
                may_be_log=score.better == "lower",
            )
        )
    return charts.gallery(drawings) or markup.missing("The evaluations hold no score.")


def _curves(train, keys):
    prefix = os.path.commonprefix(keys) if len(keys) > 1 else ""
    prefix = prefix[: prefix.rfind("/") + 1]
    return [
        charts.Curve(
            key.removeprefix(prefix).replace("_", " "),
            charts.condense(summary.points(train, key)),
            colour,
        )
        for key, colour in zip(keys, itertools.cycle(charts.LINE_COLOURS), strict=False)
    ]


def _group_chart(train, group, keys):
    if len(keys) <= len(charts.LINE_COLOURS):
        title = group if len(keys) > 1 else keys[0]
        return charts.chart(markup.name(title), _curves(train, keys))
    # Of every layer, say: what lies between the smallest and the largest.
    points = summary.spread([summary.points(train, key) for key in keys])
    curve = charts.Curve("", charts.condense(points), charts.LINE_COLOURS[0])
    title = f"{markup.name(group)}: mean of {len(keys)}, smallest to largest"
    return charts.chart(title, [curve])


def training(train: list[Record]) -> str:
    if not train:
        return markup.missing("No training step has been recorded yet.")
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

    drawings = [
        charts.chart("Losses", _curves(train, losses)),
        charts.chart("Discriminator outputs", _curves(train, outputs)),
    ]
    constants = []
    groups = collections.defaultdict(list)
    for key in rest:
        points = summary.points(train, key)
        values = {value for _, value, _, _ in points if value is not None}
        if len(values) == 1:
            constants.append(f"{markup.name(key)} {markup.number(values.pop())}")
        else:
            groups[key.rpartition("/")[0] or key].append(key)
    drawings += [_group_chart(train, group, keys) for group, keys in groups.items()]
    note = (
        f'<p class="note">Constant: {markup.escape(", ".join(constants))}.</p>' if constants else ""
    )
    return charts.gallery(drawings) + note or markup.missing(
        "The training records hold no finite number."
    )


def evaluation_tables(evaluations: list[Record]) -> str:
    if not evaluations:
        return markup.missing("No evaluation has been recorded yet.")
    floats = dict.fromkeys(
        key for record in evaluations for key, value in record.items() if isinstance(value, float)
    )
    others = [key for key in floats if key not in _EVERY_RECORD + _SCORES]
    present = [key for key in _SCORES if any(key in record for record in evaluations)]
    # What all evaluations share stands beside the headline numbers already.
    seeds = ["seed"] if len({text(record.get("seed")) for record in evaluations}) > 1 else []
    fields = summary.differing([measured_under(record) for record in evaluations])
    ordered = sorted(evaluations, key=lambda record: record["step"])
    columns = present + others
    header = ["Step", *map(markup.name, columns + seeds + fields)]
    rows = []
    for record in ordered:
        protocol = dict(measured_under(record))
        cells = [markup.cell(record, key) for key in columns + seeds]
        cells += [protocol.get(key, "–") for key in fields]
        rows.append([markup.number(record["step"]), *cells])
    return markup.table(header, rows, numeric=range(1 + len(columns)))


def repeats(aggregates: list[Record]) -> str:
    rows = []
    for aggregate in sorted(aggregates, key=lambda record: record["step"]):
        protocol = aggregate.get("protocol")
        name = protocol.get("name", "–") if isinstance(protocol, dict) else text(protocol)
        for key, of in summary.statistics(aggregate).items():
            numbers = [
                markup.number(of[part]) if part in of else "–" for part in ("mean", "std", "min")
            ]
            values = ", ".join(map(markup.number, of.get("values", [])))
            rows.append(
                [markup.number(aggregate["step"]), name, markup.name(key), *numbers, values]
            )
    if not rows:
        return markup.missing("No checkpoint has been evaluated with repeats.")
    return markup.table(
        ["Step", "Protocol", "", "Mean", "Std", "Min", "Values"], rows, numeric=[0, 3, 4, 5]
    )


def nearest_images(model_dir: str) -> str:
    """The memorisation check of the last evaluated step with its picture, and a table of all."""
    folder = Folder(model_dir).neighbours
    names = sorted(tf.io.gfile.listdir(folder)) if tf.io.gfile.isdir(folder) else []
    checks = []
    for name in names:
        if re.fullmatch(r"step-\d+\.json", name):
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                checks.append((name.removesuffix(".json"), json.loads(file.read())))
    if not checks:
        return markup.missing(
            "No evaluation has looked for the nearest training images of samples yet."
        )
    stem, last = checks[-1]
    source = markup.embed(os.path.join(folder, f"{stem}.png"), max_bytes=1_500_000, max_width=1000)
    caption = (
        f"Step {markup.number(last['step'])}. Each row: a sample, then the nearest of "
        f"{markup.number(last['num_training'])} images "
        f"of {last['dataset']}, split {last['split']}, by features."
    )
    picture = ""
    if source is not None:
        picture = f"<figure>{markup.img(source, 'Samples and their nearest training images')}"
        picture += f"<figcaption>{markup.escape(caption)}</figcaption></figure>"
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
    rows = [
        [markup.number(check["step"]), *(markup.number(check[key]) for key in keys)]
        for _, check in checks
    ]
    return (
        f"{picture}<p "
        f'class="note">{markup.escape(note)}</p>{markup.table(header, rows, numeric=range(5))}'
    )


def events(events: list[Record]) -> str:
    if not events:
        return markup.missing("No event has been recorded.")
    rows = []
    for event in events:
        leading = [text(event[key]) for key in ("event", "name", "message") if key in event]
        details = [
            f"{key} = {markup.cell(event, key)}"
            for key in event
            if key not in (*_EVERY_RECORD, "event", "name", "message")
        ]
        when = markup.when(event["time"]) if is_number(event.get("time")) else "–"
        rows.append([markup.number(event["step"]), when, ": ".join(leading), ", ".join(details)])
    return markup.table(["Step", "Time", "Event", "Details"], rows, numeric=[0])


def configuration(model_dir: str) -> str:
    path = Folder(model_dir).config
    if not tf.io.gfile.exists(path):
        return markup.missing("No config.gin in this folder.")
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    return f"<pre>{markup.escape(text.strip())}</pre>"


def commands(model_dir: str) -> str:
    here = shlex.quote(model_dir)
    config = shlex.quote(Folder(model_dir).config)
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
    return f"<pre>{markup.escape(chr(10).join(lines))}</pre>"
