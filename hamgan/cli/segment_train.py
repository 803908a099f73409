"""Trains a segmentation network from a gin file, and scores it by mIoU.

    python scripts/segment.py train --gin_file=configs/segmentation/digits.gin \\
        --model_dir=runs/segment_digits --data_dir=data
    python scripts/segment.py train --gin_file=configs/segmentation/hamnet_voc.gin \\
        --model_dir=runs/hamnet --data_dir=data --weights=runs/resnet101
    python scripts/segment.py train --gin_file=configs/segmentation/hamnet_voc_stage2.gin \\
        --model_dir=runs/hamnet2 --data_dir=data --weights=runs/hamnet

A run goes on from the newest checkpoint in model_dir, to the same bits. Without --gin_file the
configuration is the one kept there. SIGTERM or Ctrl-C ends it early: it saves, and the same command
goes on.

--weights names another run (its newest checkpoint) or a checkpoint, whose network's weights a new
run starts from: an imported ImageNet backbone, or the first of two stages. Step, optimizer and the
best score begin anew. A run that goes on has weights of its own, and leaves --weights aside.
"""

import contextlib

from absl import flags

from hamgan.cli import common, lazily, paths, segment_common
from hamgan.cli import train as gans
from hamgan.run.folder import Folder

with lazily.imports():
    from hamgan import distribution
    from hamgan.cli import configuration
    from hamgan.evaluation import report
    from hamgan.run import checkpoints, contents, lock, records
    from hamgan.segmentation import experiment as experiments
    from hamgan.segmentation import training

FLAGS = flags.FLAGS


def main():
    experiment = segment_common.load()
    profile = gans.parse_profile(FLAGS.profile)
    model_dir = checkpoints.whole_path(FLAGS.model_dir)
    common.report_hosts()
    # The host that writes says at once that it can't.
    task = distribution.task_of_cluster()
    alone = contextlib.nullcontext()
    if not (task and task[0]):
        alone = lock.writing(model_dir, take_over=FLAGS.take_over)
    with alone:
        strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu)
        weights = found_weights(FLAGS.weights, model_dir)
        trainer, dataset = experiments.build(experiment, strategy=strategy, data_dir=FLAGS.data_dir)
        of_run = gans.identity_of(dataset)
        writes = distribution.is_chief(strategy)
        begin(trainer, weights, model_dir, of_run, writes=writes)
        ended = experiments.train(
            trainer,
            dataset,
            experiment,
            model_dir=model_dir,
            evaluate=FLAGS.evaluate,
            profile=profile,
            identity=of_run,
        )
        print(f"Checkpoint: {ended.checkpoint}")
        if ended.stopped:
            print("Stopped before its end. The same command goes on from there.")
        elif writes:
            print(f"Report: {report.write_report(model_dir)}")


def found_weights(weights, model_dir):
    """The path of the checkpoint that a new run starts from; None: from none, or the run goes on.

    Raises:
      ValueError: there is none.
    """
    if not weights:
        return None
    if checkpoints.available(model_dir):
        print(f"{model_dir} goes on with its own weights: --weights is left aside.")
        return None
    import tensorflow as tf

    if tf.io.gfile.isdir(weights):
        return checkpoints.find(weights)
    return checkpoints.find(model_dir, weights)


def begin(trainer, weights, model_dir, of_run, *, writes):
    """Compares the run with what is in model_dir; gives a new one's network the weights of a
    checkpoint (None: its own), and notes it in the run's records.

    Raises:
      ValueError: it is another run, or the weights don't fit the network.
    """
    gans.compare(model_dir, of_run)
    # Before the configuration is kept: what fails now may be asked for again with other settings.
    started = training.start_from(trainer.network, weights) if weights else None
    if writes:
        configuration.settle_configuration(model_dir)
    if not started:
        return
    count, others = started
    message = f"{count} variables from {weights}"
    message += f"; initial values: {', '.join(others)}" if others else ""
    print(message)
    if writes:
        records.append(
            Folder(model_dir).metrics,
            {
                "kind": "event",
                "step": 0,
                "event": "started from weights",
                "message": message,
                "weights": weights,
                "weights_digest": contents.digest(weights),
            },
        )


def define_flags():
    """Defines the flags of a training, beside those of a run."""
    paths.define_path(
        "weights", None, "A run's folder or a checkpoint whose weights a new run starts from."
    )
    flags.DEFINE_bool("evaluate", True, "Score the network every Schedule.evaluate_every steps.")
    flags.DEFINE_bool(
        "take_over", False, "Train in model_dir even if another process holds it, as one that died."
    )
    flags.DEFINE_string(
        "profile", None, "START:STOP, steps of which a TensorFlow profile is written to model_dir."
    )
