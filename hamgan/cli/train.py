"""Trains a GAN from a gin file.

    python scripts/train.py --gin_file=configs/digits.gin --model_dir=runs/digits --data_dir=data

--mode=train                  trains
--mode=train_and_evaluate     trains, and scores the generator every Schedule.evaluate_every steps
--mode=evaluate_continuously  scores every checkpoint that another process writes, until its
                              training is over
--mode=evaluate               scores the newest checkpoint

A run goes on from the newest checkpoint in model_dir. Without --gin_file the configuration is the
one kept there. SIGTERM or Ctrl-C ends it early: it saves, and the same command goes on. With
several hosts, run the same command on each, with the environment variable TF_CONFIG and a model_dir
that all share.
"""

import sys

from absl import flags

from hamgan import distribution, loop, training
from hamgan.cli import common, configuration
from hamgan.evaluation import jobs, report
from hamgan.run import checkpoints

FLAGS = flags.FLAGS
MODES = ("train", "train_and_evaluate", "evaluate_continuously", "evaluate")


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


def main():
    experiment = configuration.load_experiment(**common.configuration_flags())
    profile = parse_profile(FLAGS.profile)
    common.report_hosts()
    if FLAGS.mode.startswith("evaluate"):
        score(experiment)
        return
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu)
    trainer, dataset = training.build(experiment, strategy=strategy, data_dir=FLAGS.data_dir)
    evaluator, grid = None, None
    if FLAGS.mode == "train_and_evaluate":
        evaluator, grid = training.evaluation_parts(
            trainer,
            dataset,
            experiment.protocol,
            model_dir=FLAGS.model_dir,
            data_dir=FLAGS.data_dir,
        )
    if FLAGS.dry_run:
        training.dry_run(
            trainer,
            dataset,
            experiment.schedule,
            configuration=configuration.resolved_configuration(FLAGS.model_dir),
            model_dir=FLAGS.model_dir,
        )
        return
    train(
        trainer=trainer,
        dataset=dataset,
        schedule=experiment.schedule,
        evaluator=evaluator,
        grid=grid,
        profile=profile,
    )


def score(experiment):
    """Scores the newest checkpoint, or each one as it appears."""
    watching = FLAGS.mode == "evaluate_continuously"
    paths = jobs.paths_of(FLAGS.model_dir, watching=watching)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu, across_hosts=False)
    jobs.evaluate(
        experiment,
        model_dir=FLAGS.model_dir,
        data_dir=FLAGS.data_dir,
        strategy=strategy,
        paths=paths,
        watching=watching,
    )


def train(*, trainer, evaluator, **parts):
    """Trains in model_dir, after comparing its configuration, and reports."""
    # Every host compares, one of them writes.
    writes = distribution.is_chief(trainer.strategy)
    (configuration.settle_configuration if writes else configuration.resolved_configuration)(
        FLAGS.model_dir
    )
    checkpoint, stopped = loop.train(
        trainer=trainer, evaluator=evaluator, model_dir=FLAGS.model_dir, **parts
    )
    print(f"Checkpoint: {checkpoint}")
    if stopped:
        print("Stopped before its end. The same command goes on from there.")
        return
    if evaluator:
        evaluator.compare_with_training(FLAGS.model_dir, step=checkpoints.step_of(checkpoint))
    if writes:
        print(f"Report: {report.write_report(FLAGS.model_dir)}")


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    flags.DEFINE_enum("mode", "train_and_evaluate", MODES, "What to do.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print configuration, parameters and memory, draw a first batch, and train nothing.",
    )
    flags.DEFINE_string(
        "profile", None, "START:STOP, steps of which a TensorFlow profile is written to model_dir."
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)


if __name__ == "__main__":  # as the commands that train in processes of their own start it
    run()
