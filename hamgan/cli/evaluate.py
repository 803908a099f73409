"""Scores checkpoints of a run: FID, Inception Score and KID, written to metrics.jsonl, TensorBoard
and the report.

    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data \\
        --checkpoint=ckpt-400 --checkpoint=ckpt-800
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
import json
import os

import cli
import tensorflow as tf
from absl import flags

from hamgan import distribution
from hamgan.evaluation import reference, report, runner, selftest, shards, terminal, watch
from hamgan.run import checkpoints, history, records
from hamgan.run.folder import Folder
from hamgan.run.log import Log

FLAGS = flags.FLAGS


def evaluate(
    experiment,
    *,
    names=(),
    watching=False,
    repeats=None,
    timeout=3600,
    share=None,
    keep_features=False,
):
    """Scores the checkpoints of these names (none: the newest), or with `watching` every one as it
    appears.
    """
    paths = (
        [] if watching else [checkpoints.find(FLAGS.model_dir, name) for name in names or [None]]
    )
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    dataset = experiment.dataset(data_dir=FLAGS.data_dir)
    with strategy.scope():
        generator = experiment.generator()
    evaluator = runner.Evaluator(
        generator=generator,
        strategy=strategy,
        dataset=dataset,
        protocol=experiment.protocol,
        data_dir=FLAGS.data_dir,
        work_dir=Folder(FLAGS.model_dir).evaluation,
        share=share,
        keep_features=keep_features,
    )
    print(
        f"Protocol {evaluator.description['name']}: {evaluator.description['words']}.", flush=True
    )
    log = Log(FLAGS.model_dir)
    metrics = Folder(FLAGS.model_dir).metrics
    written = (
        {history.key_of(record) for record in records.read(metrics)}
        if tf.io.gfile.exists(metrics)
        else set()
    )

    def publish(record):
        key = history.key_of(record)
        if key is None or key not in written:
            log.write(record)
            written.add(key)
        print(terminal.line_of(record), flush=True)

    if watching:
        watch.evaluate_new_checkpoints(
            evaluator,
            model_dir=FLAGS.model_dir,
            publish=publish,
            final_step=experiment.schedule.num_steps,
            repeats=repeats,
            timeout=timeout,
        )
    for path in paths:
        for record in evaluator.evaluate_checkpoint(path, repeats=repeats):
            publish(record)
    if share and share.index:
        print(f"The part of host {share.index} is done; host 0 writes the records.")
        return
    if paths:
        # The generator has the weights of the last one.
        evaluator.compare_with_training(FLAGS.model_dir, step=checkpoints.step_of(paths[-1]))
    print(terminal.table(records.read(metrics)))
    print(f"Report: {report.write_report(FLAGS.model_dir)}")


def test_set_up(experiment):
    """Runs the self-test; returns whether nothing failed."""
    dataset = experiment.dataset(data_dir=FLAGS.data_dir)

    def embedder(strategy, batch_size):
        protocol = dataclasses.replace(experiment.protocol, batch_size=batch_size)
        return runner.Embedder(
            strategy=strategy, protocol=protocol, data_dir=FLAGS.data_dir, progress=False
        )

    passed = True
    for check in selftest.checks(
        embedder=embedder,
        strategy=distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False),
        dataset=dataset,
        split=experiment.protocol.reference_split,
        batch_size=experiment.protocol.batch_size,
    ):
        print(check, flush=True)
        passed = passed and check.passed is not False
    return passed


def build_reference(experiment, share):
    """Computes the reference of the protocol and keeps it in data_dir."""
    embedder = runner.Embedder(
        strategy=distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False),
        protocol=dataclasses.replace(experiment.protocol, reference_folder=None),
        data_dir=FLAGS.data_dir,
    )
    built = embedder.reference(
        experiment.dataset(data_dir=FLAGS.data_dir), data_dir=FLAGS.data_dir, share=share
    )
    print(
        reference.describe(built)
        if built
        else f"The part of host {share.index} is done; host 0 puts it together."
    )


def show_reference(experiment):
    """Prints the reference that an evaluation would take."""
    folder = experiment.protocol.reference_folder
    if not folder:
        network = experiment.protocol.features(data_dir=FLAGS.data_dir)
        dataset = experiment.dataset(data_dir=FLAGS.data_dir)
        wanted = reference.fingerprint(dataset, network=network, protocol=experiment.protocol)
        folder = reference.folder_of(FLAGS.data_dir, wanted)
        if not reference.is_built(folder):
            raise ValueError(
                f"There is no reference in {folder} yet. Build it with --build_reference."
            )
    print(reference.describe(reference.load(folder)))


def share_of_flags():
    """The `Share` of --shard_index and --num_shards, or else of the task that TF_CONFIG names."""
    index, of = FLAGS.shard_index, FLAGS.num_shards
    if index is None and of is None and "TF_CONFIG" in os.environ:
        config = json.loads(os.environ["TF_CONFIG"])
        hosts = [
            (kind, i)
            for kind in ("chief", "worker")
            for i in range(len(config["cluster"].get(kind, [])))
        ]
        task = config["task"]["type"], int(config["task"]["index"])
        if task not in hosts:
            raise ValueError(
                f"TF_CONFIG names the task {task}; only chief and workers evaluate: {hosts}."
            )
        index, of = hosts.index(task), len(hosts)
    if (index is None) != (of is None):
        raise ValueError("--shard_index and --num_shards belong together: give both or neither.")
    return shards.Share(index or 0, of or 1, timeout=FLAGS.timeout)


def main():
    experiment = cli.load_experiment(protocol=FLAGS.protocol)
    if FLAGS.reference:
        protocol = dataclasses.replace(experiment.protocol, reference_folder=FLAGS.reference)
        experiment = dataclasses.replace(experiment, protocol=protocol)
    if FLAGS.selftest:
        if not test_set_up(experiment):
            raise ValueError("The self-test failed: scores of this set-up can't be trusted.")
    elif FLAGS.show:
        show_reference(experiment)
    elif FLAGS.build_reference:
        build_reference(experiment, share_of_flags())
    elif not FLAGS.model_dir:
        raise ValueError(
            "--model_dir is needed: the folder of the run whose checkpoints are to be scored."
        )
    else:
        evaluate(
            experiment,
            names=FLAGS.checkpoint,
            watching=FLAGS.watch,
            repeats=FLAGS.repeats,
            timeout=FLAGS.timeout,
            share=share_of_flags(),
            keep_features=FLAGS.keep_features,
        )


if __name__ == "__main__":
    cli.define_flags(model_dir_required=False)
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_multi_string(
        "checkpoint",
        [],
        "Path or name (ckpt-1000) of a checkpoint; may be repeated; default: the newest.",
    )
    flags.DEFINE_string(
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
    flags.DEFINE_string(
        "reference", None, "Folder of a built reference to compare with; default: that in data_dir."
    )
    flags.DEFINE_integer("shard_index", None, "Number of this host, from 0.", lower_bound=0)
    flags.DEFINE_integer("num_shards", None, "Number of hosts that share the work.", lower_bound=1)
    flags.DEFINE_bool(
        "keep_features", False, "Leave the samples' features in model_dir/evaluation."
    )
    cli.run(main)
