"""Trains a GAN from a gin file.

    python scripts/train.py --gin_file=configs/digits.gin --model_dir=runs/digits --data_dir=data

--mode=train                  trains
--mode=train_and_evaluate     trains, and scores the generator every Schedule.evaluate_every steps
--mode=evaluate_continuously  scores every checkpoint that another process writes, until its
training is over --mode=evaluate               scores the newest checkpoint

A run goes on from the newest checkpoint in model_dir. Without --gin_file the configuration is the
one kept there. SIGTERM or Ctrl-C ends it early: it saves, and the same command goes on. With
several hosts, run the same command on each, with the environment variable TF_CONFIG and a model_dir
that all share.
"""

import os
import tempfile

import cli
import evaluate
from absl import flags

from hamgan import distribution, grids, loop, preview
from hamgan.evaluation import report, runner
from hamgan.run import checkpoints
from hamgan.run.folder import Folder

FLAGS = flags.FLAGS
MODES = ("train", "train_and_evaluate", "evaluate_continuously", "evaluate")


def main():
    experiment = cli.load_experiment()
    profile = parse_profile(FLAGS.profile)
    if FLAGS.mode.startswith("evaluate"):
        evaluate.evaluate(experiment, watching=FLAGS.mode == "evaluate_continuously")
        return
    train(experiment, profile)


def parse_profile(text):
    """(start, stop) of 'START:STOP', None of None."""
    if text is None:
        return None
    try:
        start, stop = map(int, text.split(":"))
        if not 0 <= start < stop:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--profile must be START:STOP, two steps with 0 <= START < STOP, got {text!r}."
        ) from None
    return start, stop


def train(experiment, profile):
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu)
    dataset = experiment.dataset(data_dir=FLAGS.data_dir)
    trainer = experiment.trainer(
        strategy=strategy, generator=experiment.generator, discriminator=experiment.discriminator
    )
    evaluator, grid = None, None
    if FLAGS.mode == "train_and_evaluate":
        generator = evaluated_generator(trainer, experiment.protocol)
        grid = grids.SampleGrid(
            generator,
            strategy=strategy,
            class_names=dataset.class_names,
            batch_norm=experiment.protocol.batch_norm,
        )
        evaluator = runner.Evaluator(
            generator=generator,
            strategy=strategy,
            dataset=dataset,
            protocol=experiment.protocol,
            data_dir=FLAGS.data_dir,
            # Of hosts that sample together, none can go on with what it finds, or delete what
            # others look for.
            work_dir=Folder(FLAGS.model_dir).evaluation
            if distribution.num_hosts(strategy) == 1
            else None,
        )
    if FLAGS.dry_run:
        dry_run(trainer, dataset, experiment.schedule)
        return
    if distribution.is_chief(strategy):
        cli.settle_configuration()
    else:
        cli.resolved_configuration()  # the same errors on every host
    checkpoint, stopped = loop.train(
        trainer=trainer,
        dataset=dataset,
        schedule=experiment.schedule,
        model_dir=FLAGS.model_dir,
        evaluator=evaluator,
        grid=grid,
        profile=profile,
    )
    print(f"Checkpoint: {checkpoint}")
    if stopped:
        print("Stopped before its end. The same command goes on from there.")
        return
    if evaluator:
        evaluator.compare_with_training(FLAGS.model_dir, step=checkpoints.step_of(checkpoint))
    if distribution.is_chief(strategy):
        print(f"Report: {report.write_report(FLAGS.model_dir)}")


def dry_run(trainer, dataset, schedule):
    """Prints what would be trained; writes nothing but the picture of a batch, outside of
    model_dir.
    """
    strategy = trainer.strategy
    print(cli.resolved_configuration())
    print(preview.parameter_table(trainer))
    print(
        f"{schedule.num_steps:,} steps of {trainer.batch_size} images on "
        f"{strategy.num_replicas_in_sync} "
        f"{type(strategy).__name__} replicas, "
        f"{trainer.batch_size // strategy.num_replicas_in_sync} each; "
        f"{dataset.num_examples(dataset.train_split):,} images of {dataset.name} "
        f"{dataset.train_split}"
    )
    for name, gib in preview.memory_estimate(trainer).items():
        print(f"Memory of a replica, {name}: {gib:.3g} GiB")
    path = os.path.join(tempfile.mkdtemp(prefix="hamgan_dry_run_"), "first_batch.png")
    batches = dataset.train_batches(batch_size=trainer.batch_size, seed=trainer.seed)
    preview.draw_batch(path, next(iter(batches)), dataset.class_names)
    print(f"First batch: {path}")
    print(f"Nothing was trained, {FLAGS.model_dir} is as it was.")


def evaluated_generator(trainer, protocol):
    """The trainer's generator with the weights that a protocol asks for."""
    if protocol.weights == "raw":
        return trainer.generator
    if trainer.ema is None:
        raise ValueError(
            f"protocol.Protocol.weights is {protocol.weights!r}, but this run keeps no moving "
            "average of the weights. "
            "Switch it on in trainer.Trainer, or set protocol.Protocol.weights = 'raw'."
        )
    return trainer.ema


if __name__ == "__main__":
    cli.define_flags()
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_enum("mode", "train_and_evaluate", MODES, "What to do.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print configuration, parameters and memory, draw a first batch, and train nothing.",
    )
    flags.DEFINE_string(
        "profile", None, "START:STOP, steps of which a TensorFlow profile is written to model_dir."
    )
    cli.run(main)
