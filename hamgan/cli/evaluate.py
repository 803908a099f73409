"""Scores checkpoints of a run: FID, Inception Score and KID, written to metrics.jsonl, TensorBoard
and the report.

    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data \\
        --checkpoint=ckpt-300 --checkpoint=ckpt-600
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data --repeats=3
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data --watch

The configuration is the one kept in model_dir. --protocol takes one of configs/protocols or a gin
file of your own; one setting is changed by, e.g.,
--gin_param="protocol.Protocol.num_samples=10000". What has been scored is kept in
model_dir/evaluation and isn't computed again; what was interrupted goes on where it was.

    python scripts/evaluate.py --build_reference --gin_file=configs/hamgan_baby.gin \\
        --data_dir=DIR --protocol=paper
    python scripts/evaluate.py --show --gin_file=configs/hamgan_baby.gin --data_dir=DIR \\
        --protocol=paper

computes the features of the real images, and prints what is kept of them. Otherwise the first
evaluation does it.

    python scripts/evaluate.py --selftest --gin_file=configs/hamgan_baby.gin --data_dir=DIR

tests the feature network, the device and the data before any model is scored: real images must get
the score they are known to get.

Several hosts share the work when each is started with --num_shards=N and its own --shard_index=0 to
N-1 (or TF_CONFIG), on folders that all of them see. Host 0 puts the parts together and writes the
records.
"""

import dataclasses
import sys

from absl import flags

from hamgan.cli import common, lazily
from hamgan.cli import paths as path_flags

with lazily.imports():
    from hamgan import distribution
    from hamgan.cli import configuration
    from hamgan.evaluation import jobs, shards
    from hamgan.run import checkpoints, sinks

FLAGS = flags.FLAGS


def share_of(*, shard_index, num_shards, timeout):
    """The `Share` of two flags, or else of the task that TF_CONFIG names."""
    index, of = shard_index, num_shards
    if index is None and of is None and (task := distribution.task_of_cluster()):
        index, of = task
        common.report_hosts()
    if (index is None) != (of is None):
        raise ValueError("--shard_index and --num_shards belong together: give both or neither.")
    return shards.Share(index or 0, of or 1, timeout=timeout)


def main():
    flag = common.configuration_flags()
    of_data = common.settings_of_data(FLAGS.data, data_dir=FLAGS.data_dir, **flag)
    experiment = configuration.load_experiment(**flag, protocol=FLAGS.protocol, of_data=of_data)
    if FLAGS.reference:
        protocol = dataclasses.replace(experiment.protocol, reference_folder=FLAGS.reference)
        experiment = dataclasses.replace(experiment, protocol=protocol)
    if FLAGS.show:
        jobs.show_reference(experiment, data_dir=FLAGS.data_dir)
        return
    needs_run = not (FLAGS.selftest or FLAGS.build_reference)
    if needs_run and not FLAGS.model_dir:
        raise ValueError(
            "--model_dir is needed: the folder of the run whose checkpoints are to be scored."
        )
    elsewhere = sinks.parse(FLAGS.sink)
    share = share_of(
        shard_index=FLAGS.shard_index, num_shards=FLAGS.num_shards, timeout=FLAGS.timeout
    )
    if needs_run:
        # A checkpoint that isn't there is told before the devices are set up.
        paths = jobs.paths_of(FLAGS.model_dir, FLAGS.checkpoint, watching=FLAGS.watch)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    common_arguments = dict(data_dir=FLAGS.data_dir, strategy=strategy)
    if FLAGS.selftest:
        if not jobs.test_set_up(experiment, **common_arguments):
            raise ValueError("The self-test failed: scores of this set-up can't be trusted.")
    elif FLAGS.build_reference:
        jobs.build_reference(experiment, **common_arguments, share=share)
    else:
        jobs.evaluate(
            experiment,
            **common_arguments,
            model_dir=checkpoints.whole_path(FLAGS.model_dir),
            changed=configuration.changed_settings(FLAGS.model_dir),
            paths=paths,
            watching=FLAGS.watch,
            repeats=FLAGS.repeats,
            timeout=FLAGS.timeout,
            share=share,
            keep_features=FLAGS.keep_features,
            sinks=elsewhere,
        )


def define_flags():
    """Defines the flags of the command."""
    common.define_flags(model_dir_required=False)
    common.define_sink()
    common.define_data_flag()
    path_flags.define_paths(
        "checkpoint",
        "A checkpoint of the run: ckpt-1000, best, latest, or a path; may be repeated; default: "
        "the newest.",
    )
    path_flags.define_path(
        "protocol", None, "paper, val-50k, train-full, or a gin file; default: the run's own."
    )
    flags.DEFINE_integer(
        "repeats", None, "Evaluations of each checkpoint, each with the next seed.", lower_bound=1
    )
    flags.DEFINE_bool(
        "watch", False, "Score every checkpoint as it appears, until training is over."
    )
    flags.DEFINE_float(
        "timeout",
        3600,
        "Seconds to wait for a new checkpoint, or for the other hosts.",
        lower_bound=0,
    )
    flags.DEFINE_bool("build_reference", False, "Only compute the features of the real images.")
    flags.DEFINE_bool(
        "selftest",
        False,
        "Only test the set-up: real images through the feature network, on this device.",
    )
    flags.DEFINE_bool("show", False, "Only print the reference: the run's, or that of --reference.")
    path_flags.define_path(
        "reference", None, "Folder of a built reference to compare with; default: that in data_dir."
    )
    flags.DEFINE_integer("shard_index", None, "Number of this host, from 0.", lower_bound=0)
    flags.DEFINE_integer("num_shards", None, "Number of hosts that share the work.", lower_bound=1)
    flags.DEFINE_bool(
        "keep_features", False, "Leave the samples' features in model_dir/evaluation."
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
