"""The parts of a report that runs of segmentation have in place of those of GANs."""

import shlex

from hamgan.evaluation import markup
from hamgan.evaluation.scores import MEAN_IOU
from hamgan.run.folder import Folder
from hamgan.run.history import Record, is_number


def is_of_segmentation(all_records: list[Record]) -> bool:
    """Whether a run's records are of segmentation."""
    return any("loss/network" in record or MEAN_IOU.name in record for record in all_records)


def pictures(model_dir: str) -> str:
    """The newest predictions, and training crops."""
    folder = Folder(model_dir)
    found = []
    for path, caption in (
        (folder.samples, "Image, truth, prediction: held-out images, whole"),
        (folder.real_images, "Crops of the first training batch, and their classes"),
    ):
        source = markup.embed(path, max_bytes=3_000_000, max_width=1600)
        if source is not None:
            found.append(
                f"<figure>{markup.img(source, caption)}<figcaption>{caption}</figcaption></figure>"
            )
    if not found:
        return markup.missing("No predictions have been drawn yet.")
    return f'<div class="pair">{"".join(found)}</div>'


def classes(evaluations: list[Record]) -> str:
    """IoU and accuracy of each class in the newest evaluation, and its picture of the confusion."""
    if not evaluations or "class_iou" not in evaluations[-1]:
        return markup.missing("No evaluation has been recorded yet.")
    last = evaluations[-1]

    def percent(value):
        return f"{100 * value:.2f}" if is_number(value) else "–"

    rows = [
        [name, percent(iou), percent(last["class_accuracy"].get(name))]
        for name, iou in last["class_iou"].items()
    ]
    note = f'<p class="note">Step {markup.number(last["step"])}, in percent.</p>'
    return note + markup.table(["Class", "IoU", "Accuracy"], rows, numeric=[1, 2])


def confusion(model_dir: str, evaluations: list[Record]) -> str:
    """The picture of which classes the newest evaluation takes for which."""
    source = None
    if evaluations:
        path = Folder(model_dir).confusion(evaluations[-1]["step"])
        source = markup.embed(path, max_bytes=3_000_000, max_width=1600)
    if source is None:
        return markup.missing("No picture of the confusion in this folder.")
    alt = "Shares of a true class's pixels that are predicted as each class"
    return f"<figure>{markup.img(source, alt)}</figure>"


def commands(model_dir: str) -> str:
    """How to repeat and use the run."""
    here = shlex.quote(model_dir)
    config = shlex.quote(Folder(model_dir).config)
    again = shlex.quote(model_dir.rstrip("/") + "-again")
    lines = [
        "# train again with the same configuration, in a new folder",
        f"python scripts/segment.py train --gin_file={config} \\",
        f"    --model_dir={again}",
        "# measure the last checkpoint of this run",
        f"python scripts/segment.py evaluate --model_dir={here}",
        "# segment photographs with it",
        f"python scripts/segment.py predict --model_dir={here} --images=FOLDER",
    ]
    return f"<pre>{markup.escape(chr(10).join(lines))}</pre>"
