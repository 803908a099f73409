"""Trains a GAN from a gin file.

    python scripts/train.py --gin_file=configs/digits.gin --model_dir=runs/digits --data_dir=data
    python scripts/train.py --gin_file=photos --data=photos_128 --model_dir=runs/photos \\
        --data_dir=data

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

import contextlib
import os
import sys

from absl import flags

from hamgan.cli import common, lazily, paths

with lazily.imports():
    from hamgan import distribution, loop, starting, training
    from hamgan.cli import configuration
    from hamgan.evaluation import jobs, own_features, report
    from hamgan.run import checkpoints, identity, lock, log, sinks

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
    flag = common.configuration_flags()
    of_data = common.settings_of_data(FLAGS.data, data_dir=FLAGS.data_dir, **flag)
    experiment = configuration.load_experiment(**flag, of_data=of_data)
    profile = parse_profile(FLAGS.profile)
    elsewhere = sinks.parse(FLAGS.sink)
    model_dir = checkpoints.whole_path(FLAGS.model_dir)
    common.report_hosts()
    if FLAGS.mode.startswith("evaluate"):
        score(
            experiment,
            model_dir,
            data_dir=FLAGS.data_dir,
            watching=FLAGS.mode == "evaluate_continuously",
            accelerator=FLAGS.accelerator,
            tpu=FLAGS.tpu,
            elsewhere=elsewhere,
        )
        return
    if FLAGS.init_from:
        starting.find(FLAGS.init_from)  # what isn't there is told before networks are built
    # The host that writes says at once that it can't; a dry run writes nothing.
    task = distribution.task_of_cluster()
    alone = contextlib.nullcontext()
    if not FLAGS.dry_run and not (task and task[0]):
        alone = lock.writing(model_dir, take_over=FLAGS.take_over)
    with alone:
        evaluates = FLAGS.mode == "train_and_evaluate"
        features = True
        if of_data and evaluates and not task:
            features = prepare_features(of_data, data_dir=FLAGS.data_dir, dry_run=FLAGS.dry_run)
        strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu)
        parts = build(
            experiment,
            model_dir,
            strategy=strategy,
            data_dir=FLAGS.data_dir,
            evaluates=evaluates,
            features=features,
        )
        if FLAGS.dry_run:
            show(model_dir, init_from=FLAGS.init_from, **parts)
            return
        writes = distribution.is_chief(strategy)
        of_run = begin(model_dir, init_from=FLAGS.init_from, writes=writes, **parts)
        ended = loop.train(
            **parts, model_dir=model_dir, profile=profile, identity=of_run, sinks=elsewhere
        )
        finish(ended, parts["evaluator"], model_dir, writes=writes)


def prepare_features(of_data, *, data_dir, dry_run):
    """Trains the feature network of the data set's own, where it is what scores and isn't there;
    says only that it would be, of a dry run. Returns whether what scores is there now.
    """
    name = of_data["data.ImageDataset.name"]
    handle = own_features.folder_of("{data_dir}", name)
    folder = own_features.folder_of(data_dir, name)
    if configuration.value_of("features.FeatureNetwork.handle") != handle:
        return True
    if os.path.exists(folder) or "://" in folder:
        return True
    print(
        f"There is no TF-GAN Inception in data_dir, so a network {'would be' if dry_run else 'is'} "
        "trained on these images to score by (see docs/data.md).",
        flush=True,
    )
    if dry_run:
        images, _ = own_features.images_for(name, data_dir)
        count = images.num_examples(images.train_split)
        print(f"{folder}: of {count:,} images of {name}", flush=True)
        return False
    built = own_features.ensure(name, data_dir)
    print(f"{built.folder}: {own_features.in_words(built.about)}", flush=True)
    return True


def build(experiment, model_dir, *, strategy, data_dir, evaluates, features=True):
    """The parts of a training, arguments of `loop.train`; where the network of features isn't
    there yet, without an evaluator.
    """
    trainer, dataset = training.build(
        experiment, strategy=strategy, data_dir=data_dir, evaluates=evaluates
    )
    evaluator, grid = None, None
    if evaluates and not features:
        training.evaluated_generator(trainer, experiment.protocol)  # which may be refused
    elif evaluates:
        evaluator, grid = training.evaluation_parts(
            trainer, dataset, experiment.protocol, model_dir=model_dir, data_dir=data_dir
        )
    return dict(
        trainer=trainer,
        dataset=dataset,
        schedule=experiment.schedule,
        evaluator=evaluator,
        grid=grid,
    )


def show(model_dir, *, trainer, dataset, schedule, init_from, **_):
    """What would be trained, of --dry_run."""
    text = configuration.resolved_configuration(model_dir)
    if taken := take(init_from, model_dir, trainer, dataset):
        print(f"It would begin with {taken.words()}.")
    training.dry_run(
        trainer=trainer, dataset=dataset, schedule=schedule, configuration=text, model_dir=model_dir
    )


def score(experiment, model_dir, *, data_dir, watching, accelerator, tpu, elsewhere):
    """Scores the newest checkpoint, or each one as it appears."""
    paths = jobs.paths_of(model_dir, watching=watching)
    strategy = distribution.create_strategy(accelerator, tpu, across_hosts=False)
    jobs.evaluate(
        experiment,
        model_dir=model_dir,
        data_dir=data_dir,
        strategy=strategy,
        paths=paths,
        watching=watching,
        changed=configuration.changed_settings(model_dir),
        sinks=elsewhere,
    )


def identity_of(dataset):
    """What the checkpoints of this run keep of it, when all of its parts are built."""
    return identity.Identity(
        settings=configuration.settings_of_run(),
        data=dataset.identity(),
        differs=configuration.setting_differs,
    )


def compare(model_dir, of_run):
    """Refuses another run than the one in model_dir. Every host compares.

    Its checkpoints are asked too: where its configuration is gone, another one must not stand
    beside them.
    """
    checkpoints.check_run(model_dir, of_run)
    configuration.resolved_configuration(model_dir)


def begin(model_dir, *, trainer, dataset, init_from, writes, **_):
    """The run's identity, compared with what is there; a new one takes the weights of another."""
    of_run = identity_of(dataset)
    compare(model_dir, of_run)
    # Before the configuration is kept: what fails now may be asked for again with other settings.
    taken = take(init_from, model_dir, trainer, dataset)
    if writes:
        configuration.settle_configuration(model_dir)
    if taken and writes:
        print(f"Begun with {taken.words()}.", flush=True)
        event = {"kind": "event", "step": 0, "event": "begun with another run's weights"}
        facts = {"checkpoint": taken.checkpoint, "taken": taken.words()}
        log.Log(model_dir).write({**event, **facts})
    return of_run


def take(init_from, model_dir, trainer, dataset):
    """`starting.Taken` of a new run that begins with another one's weights; None: it doesn't, or
    goes on with its own.
    """
    if not init_from or checkpoints.available(model_dir):
        return None
    return starting.take(trainer, init_from, dataset.class_names)


def finish(ended, evaluator, model_dir, *, writes):
    """What follows a training: words, the comparison with the training images, the report."""
    print(f"Checkpoint: {ended.checkpoint}")
    if ended.stopped:
        print("Stopped before its end. The same command goes on from there.")
        return
    if evaluator:
        evaluator.compare_with_training(model_dir, step=checkpoints.step_of(ended.checkpoint))
    if writes:
        print(f"Report: {report.write_report(model_dir)}")


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    common.define_data_flag()
    flags.DEFINE_enum("mode", "train_and_evaluate", MODES, "What to do.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Print configuration, parameters and memory, draw a first batch, and train nothing.",
    )
    flags.DEFINE_bool(
        "take_over",
        False,
        "Train in model_dir even if another process holds it, as one on a host that vanished may "
        "seem to; that one stops at its next checkpoint.",
    )
    paths.define_path(
        "init_from",
        None,
        "Begin a new run with the weights of this one, a run's folder or a checkpoint's path: rows "
        "of classes by name, the rest as it is, optimizers anew. A run that is there goes on.",
    )
    common.define_sink()
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
