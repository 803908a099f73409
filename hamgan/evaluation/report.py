"""A run's folder as one HTML page that opens anywhere: no file beside it, no network.

The page is drawn from what the folder holds, and nothing is measured anew: the records of
metrics.jsonl, the grids of images, what the evaluation kept of nearest neighbours, and config.gin.
"""

import os

import tensorflow as tf

import hamgan
from hamgan.evaluation import markup, page, sections, segmentation_sections
from hamgan.run import history, records
from hamgan.run.folder import Folder


def write_report(model_dir: str | os.PathLike, *, title: str | None = None) -> str:
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
    folder = Folder(model_dir)
    if not tf.io.gfile.exists(folder.metrics):
        raise ValueError(
            "model_dir must be the folder that scripts/train.py wrote a run to, with its "
            "metrics.jsonl, config.gin, checkpoints/ and samples/; there is no metrics.jsonl in "
            f"{model_dir!r}"
        )
    everything = records.read(folder.metrics)
    survivors = history.surviving(everything)
    train = history.of_kind(survivors, "train")
    evaluations = history.latest(history.of_kind(survivors, "evaluation"))
    aggregates = history.latest(history.of_kind(survivors, "aggregate"))
    events = history.of_kind(survivors, "event")
    if title is None:
        title = f"HamGAN: {folder.name}"

    parts = _parts(model_dir, train, evaluations, aggregates, events)
    body = "\n".join(
        f"<section>\n{f'<h2>{heading}</h2>' if heading else ''}\n{content}\n</section>"
        for heading, content in parts
    )
    text = page.PAGE.format(
        title=markup.escape(title),
        subtitle=sections.subtitle(model_dir, everything),
        body=body,
        version=markup.escape(hamgan.__version__),
        style=page.STYLE,
        script=page.SCRIPT,
    )
    records.write_whole(folder.report, text.encode())
    return folder.report


def _parts(model_dir, train, evaluations, aggregates, events):
    """[(heading, content as HTML)]."""
    shared = [
        ("Evaluations", sections.evaluation_tables(evaluations)),
        ("Repeats", sections.repeats(aggregates)),
        ("Training", sections.training(train)),
        ("Events", sections.events(events)),
        ("Configuration", sections.configuration(model_dir)),
    ]
    first = ("", sections.headline(train, evaluations, aggregates))
    quality = ("Quality", sections.quality(evaluations))
    if segmentation_sections.is_of_segmentation([*train, *evaluations]):
        return [
            first,
            ("Predictions", segmentation_sections.pictures(model_dir)),
            ("Predictions over time", sections.film(model_dir)),
            quality,
            ("Classes", segmentation_sections.classes(evaluations)),
            ("Confusion", segmentation_sections.confusion(model_dir, evaluations)),
            *(part for part in shared if part[0] != "Repeats"),
            ("How to reproduce this", segmentation_sections.commands(model_dir)),
        ]
    return [
        first,
        ("Samples", sections.samples(model_dir)),
        ("Samples over time", sections.film(model_dir)),
        quality,
        ("Nearest training images", sections.nearest_images(model_dir)),
        *shared,
        ("How to reproduce this", sections.commands(model_dir)),
    ]
