"""Trains several heads with several seeds, one after the other, and compares them in one table and
one figure.

    python scripts/segment.py heads --data_dir=data --output_dir=runs/segment_heads

Each run is one of `segment.py train` in a folder of its own, OUTPUT_DIR/NAME-seedS; what is
finished isn't run again, and what was interrupted goes on where it was. Ends with
OUTPUT_DIR/comparison.md, .json and .png: mIoU, and the mean IoU of the classes of --classes.
"""

import functools
import os

import numpy as np
from absl import flags

from hamgan.cli import lazily, paths, segment_common
from hamgan.evaluation.scores import MEAN_IOU

with lazily.imports():
    from hamgan.cli import compare
    from hamgan.cli.configuration import sources

FLAGS = flags.FLAGS
HEADS = (
    *("none", "attention", "v1_nmf", "v1_cd", "v1_vq", "v2_nmf", "v2_cd", "v2_vq"),
    *("v2_plus_nmf", "v2_plus_cd", "v2_plus_vq", "v2_nmf_bptt", "v2_cd_bptt", "v2_vq_bptt"),
)


def check_classes(names, known):
    """ValueError unless all names are among the known ones."""
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"--classes must be of {', '.join(known)}, got {', '.join(strange)}.")


def check(heads, classes, *, data_dir, params):
    """Asks for what would end the comparison after hours of training.

    Args:
      heads: gin files.
      classes: names of classes.
      data_dir: of the data sets.
      params: more gin bindings.

    Raises:
      ValueError: no head, one that isn't there, two of one name, whose runs would share a folder;
        no such data set or class.
    """
    names = [os.path.splitext(os.path.basename(head))[0] for head in heads]
    if not heads or len(set(names)) < len(names):
        raise ValueError(f"--heads must be of different names, at least one, got {heads}.")
    for head in heads:
        sources.find(head)
    dataset = segment_common.load_files(heads[:1], params).dataset(data_dir=data_dir)
    dataset.check_files()
    check_classes(classes, dataset.class_names)


def iou_of(names, record):
    """The mean IoU of some classes in an evaluation's record.

    Raises:
      ValueError: it has no such class.
    """
    known = record["class_iou"]
    check_classes(names, known)
    return float(np.mean([known[name] for name in names if known[name] is not None] or [np.nan]))


def main():
    heads = [
        h if h.endswith(".gin") else f"configs/segmentation/heads/{h}.gin" for h in FLAGS.heads
    ]
    check(heads, FLAGS.classes, data_dir=FLAGS.data_dir, params=FLAGS.gin_param)
    details = {}
    if FLAGS.classes:
        details[f"IoU of {', '.join(FLAGS.classes)}"] = functools.partial(iou_of, FLAGS.classes)
    compare.compare(
        heads,
        seeds=FLAGS.seeds,
        output_dir=FLAGS.output_dir,
        data_dir=FLAGS.data_dir,
        params=FLAGS.gin_param,
        score=MEAN_IOU,
        details=details,
        command=("segment.py", "train"),
        of="training.SegmentationTrainer",
    )


def define_flags():
    """Defines the flags of the command, all of them."""
    flags.DEFINE_list(
        "heads", list(HEADS), "Gin files, or names of files in configs/segmentation/heads."
    )
    flags.DEFINE_integer("seeds", 3, "Runs of each head, with the seeds 0, 1, ...", lower_bound=1)
    paths.define_path("output_dir", "runs/segment_heads", "Folder of the runs and comparison.")
    paths.define_path("data_dir", "data", "Folder of the prepared TFDS data sets.")
    flags.DEFINE_list(
        "classes", ["1", "1 with a 0"], "Classes whose mean IoU has a column of its own."
    )
    flags.DEFINE_multi_string(
        "gin_param", [], "One more gin binding for all runs. May be repeated."
    )
