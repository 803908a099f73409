"""The jobs of an evaluation: scoring checkpoints, testing the set-up, building a reference."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hamgan.evaluation import embedding, reference, report, runner, selftest, terminal, watch
from hamgan.run import checkpoints, contents, history, records
from hamgan.run.folder import Folder
from hamgan.run.log import Log
from hamgan.run.sinks import Sink


def paths_of(
    model_dir: str, names: Sequence[str | None] = (), *, watching: bool = False
) -> list[str]:
    """The checkpoints of these names (none: the newest); with `watching`, which finds its own,
    none.

    Raises:
      ValueError: a checkpoint isn't there, or isn't of this run.
    """
    if watching:
        return []
    paths = [checkpoints.find(model_dir, name) for name in names or [None]]
    for path in paths:
        if not checkpoints.is_of_run(model_dir, path):
            raise ValueError(
                f"{path} isn't a checkpoint of {model_dir}, and its numbers would stand among "
                "those of that run. Give the --model_dir of its own run."
            )
    return paths


def evaluate(
    experiment: Any,
    *,
    model_dir: str,
    data_dir: str,
    strategy: tf.distribute.Strategy,
    paths: Sequence[str] = (),
    watching: bool = False,
    repeats: int | None = None,
    timeout: float = 3600,
    share: Any = None,
    keep_features: bool = False,
    changed: str | None = None,
    sinks: Sequence[Callable[[str], Sink]] = (),
) -> None:
    """Scores checkpoints, or with `watching` every one as it appears; writes records and report.

    Args:
      experiment: an `Experiment`.
      model_dir, data_dir: the run's folder, and that of the data sets.
      strategy: the strategy to compute on.
      paths: of the checkpoints.
      watching, repeats, timeout: as in `watch.evaluate_new_checkpoints`.
      share, keep_features, changed: as in `runner.Evaluator`.
      sinks: as in `run.log.Log`.
    """
    writes = records.can_write(model_dir)
    if not writes:
        _check_read_only(model_dir, watching=watching, share=share)
    evaluator = _evaluator(
        experiment,
        strategy=strategy,
        data_dir=data_dir,
        work_dir=Folder(model_dir).evaluation if writes else None,
        share=share,
        keep_features=keep_features,
        changed=changed,
    )
    if changed:
        print(f"Other settings than the run's: {changed}.", flush=True)
    print("Protocol {name}: {words}.".format(**evaluator.description), flush=True)
    log = Log(model_dir, writes=writes, sinks=sinks)
    metrics = Folder(model_dir).metrics

    def publish(record):
        log.write(record)
        print(terminal.line_of(record), flush=True)

    if watching:
        watch.evaluate_new_checkpoints(
            evaluator,
            model_dir=model_dir,
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
    if not writes:
        return
    if paths:
        # The generator has the weights of the last one.
        evaluator.compare_with_training(model_dir, step=contents.step_in(paths[-1]))
    print(
        terminal.table(
            history.surviving(records.read(metrics) if tf.io.gfile.exists(metrics) else [])
        )
    )
    print(f"Report: {report.write_report(model_dir)}")


def _evaluator(experiment, *, strategy, data_dir, **settings):
    """The `runner.Evaluator` of an experiment; what it lacks is told before networks are made."""
    dataset = experiment.dataset(data_dir=data_dir)
    if hasattr(dataset, "check_files"):
        dataset.check_files()
    reference.check_counts(dataset, experiment.protocol)
    with strategy.scope():
        generator = experiment.generator()
    return runner.Evaluator(
        generator=generator,
        strategy=strategy,
        dataset=dataset,
        protocol=experiment.protocol,
        data_dir=data_dir,
        **settings,
    )


def _check_read_only(model_dir, *, watching, share):
    """Says what an evaluation of a folder that can only be read leaves out.

    Raises:
      ValueError: it can do without that, but not watching, or several hosts.
    """
    if watching or (share and share.of > 1):
        raise ValueError(
            f"--model_dir={model_dir} can't be written to, and there watching and several hosts "
            "keep what they have done. Score single checkpoints on one host."
        )
    print(
        f"{model_dir} can't be written to: the numbers are printed here, and kept nowhere.",
        flush=True,
    )


def test_set_up(experiment: Any, *, data_dir: str, strategy: tf.distribute.Strategy) -> bool:
    """Runs the self-test; returns whether nothing failed."""
    dataset = experiment.dataset(data_dir=data_dir)

    def embedder(strategy, batch_size):
        protocol = dataclasses.replace(experiment.protocol, batch_size=batch_size)
        return embedding.Embedder(
            strategy=strategy, protocol=protocol, data_dir=data_dir, progress=False
        )

    passed = True
    for check in selftest.checks(
        embedder=embedder,
        strategy=strategy,
        dataset=dataset,
        split=experiment.protocol.reference_split,
        batch_size=experiment.protocol.batch_size,
    ):
        print(check, flush=True)
        passed = passed and check.passed is not False
    return passed


def build_reference(
    experiment: Any, *, data_dir: str, strategy: tf.distribute.Strategy, share: Any
) -> None:
    """Computes the reference of the protocol and keeps it in data_dir."""
    if not records.can_write(data_dir):
        raise ValueError(f"--data_dir={data_dir} can't be written to: a reference is kept there.")
    embedder = embedding.Embedder(
        strategy=strategy,
        protocol=dataclasses.replace(experiment.protocol, reference_folder=None),
        data_dir=data_dir,
    )
    built = embedder.reference(
        experiment.dataset(data_dir=data_dir), data_dir=data_dir, share=share
    )
    print(
        reference.describe(built)
        if built
        else f"The part of host {share.index} is done; host 0 puts it together."
    )


def show_reference(experiment: Any, *, data_dir: str) -> None:
    """Prints the reference that an evaluation would take."""
    folder = experiment.protocol.reference_folder
    if not folder:
        network = experiment.protocol.features(data_dir=data_dir)
        dataset = experiment.dataset(data_dir=data_dir)
        wanted = reference.fingerprint(dataset, network=network, protocol=experiment.protocol)
        folder = reference.folder_of(data_dir, wanted)
        if not reference.is_built(folder):
            raise ValueError(
                f"There is no reference in {folder} yet. Build it with --build_reference."
            )
    print(reference.describe(reference.load(folder)))
