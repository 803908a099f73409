"""Scores a segmentation checkpoint: IoU of each class, their mean, a picture of the confusion.

    python scripts/segment.py evaluate --model_dir=runs/segment_digits --data_dir=data
    python scripts/segment.py evaluate --model_dir=runs/segment_digits --data_dir=data \\
        --checkpoint=best --multi_scale

The record goes into metrics.jsonl of the run, the picture into confusion/. --multi_scale adds up
the passes over all scales and mirror images that the published results were made with.
"""

import json

from absl import flags

from hamgan.cli import common, lazily, paths, segment_common
from hamgan.run.folder import Folder

with lazily.imports():
    from hamgan import distribution
    from hamgan.evaluation import report, scores
    from hamgan.run import checkpoints, contents, log, records
    from hamgan.segmentation import evaluation, experiment

FLAGS = flags.FLAGS


def restored(experiment, strategy, *, model_dir, checkpoint):
    """(network with a checkpoint's weights, the checkpoint's path)."""
    path = checkpoints.find(
        model_dir, checkpoint, score=scores.MEAN_IOU.name, better=scores.MEAN_IOU.better
    )
    with strategy.scope():
        network = experiment.network()
    contents.restore(path, contents.network_variables("network", network), partial=True)
    return network, path


def main():
    parts = segment_common.load()
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    dataset = parts.dataset(data_dir=FLAGS.data_dir)
    split = FLAGS.split or dataset.test_split
    dataset.check_files(split)
    network, path = restored(
        parts, strategy, model_dir=FLAGS.model_dir, checkpoint=FLAGS.checkpoint
    )
    experiment.check_classes(network, dataset)
    model_dir = FLAGS.model_dir if checkpoints.is_of_run(FLAGS.model_dir, path) else None
    evaluator = evaluation.Evaluator(
        network=network,
        dataset=dataset,
        test=parts.test,
        model_dir=model_dir,
        multi_scale=FLAGS.multi_scale,
        split=split,
    )
    record = evaluator.evaluate(checkpoint=path, step=contents.step_in(path))
    print(evaluation.in_words(record))
    if model_dir is not None:
        log.Log(model_dir).write(record)
        print(f"Record: {Folder(model_dir).metrics}")
        print(f"Picture: {Folder(model_dir).confusion(record['step'])}")
        print(f"Report: {report.write_report(model_dir)}")
    # Last: a path that can't be written costs no record.
    if FLAGS.json:
        records.write_whole(FLAGS.json, json.dumps(records.plain_record(record), indent=1).encode())


def define_checkpoint():
    """Defines the flags that choose weights and test."""
    common.define_checkpoint()
    flags.DEFINE_bool("multi_scale", False, "All scales and mirror images, as published.")


def define_flags():
    """Defines the flags of an evaluation, beside those of a run."""
    define_checkpoint()
    flags.DEFINE_string("split", None, "Split to score by; default: data.SegmentationDataset's.")
    paths.define_path("json", None, "A file for the record alone.")
