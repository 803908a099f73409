"""The parts that a training takes, from an experiment; and what it would be, without training."""

import os
import tempfile

from hamgan import data, distribution, grids, preview
from hamgan.evaluation import reference, runner
from hamgan.run.folder import Folder


def build(experiment, *, strategy, data_dir, evaluates=False):
    """(trainer, data set) of an experiment; networks are made in the strategy's scope.

    Raises:
      ValueError: before any network is made: a file of the data set is missing, its classes are
        splits, or (`evaluates`) there are too few images for the protocol.
      distribution.HostLost: another host of the cluster is gone.
    """
    dataset = experiment.dataset(data_dir=data_dir)
    if wrong := data.wrong_folder_level(dataset.class_names):
        raise ValueError(f"{dataset.name}: {wrong}")
    if evaluates:
        reference.check_counts(dataset, experiment.protocol)
    if hasattr(dataset, "check_files"):  # a data set of one's own may have no files
        dataset.check_files()
    # Hosts exchange initial values.
    with distribution.naming_lost_hosts(strategy):
        trainer = experiment.trainer(
            strategy=strategy,
            generator=experiment.generator,
            discriminator=experiment.discriminator,
        )
    return trainer, dataset


def evaluation_parts(trainer, dataset, protocol, *, model_dir, data_dir):
    """(evaluator, grid) of what a protocol scores, for `loop.train`.

    Raises:
      ValueError: the protocol asks for averaged weights, and the trainer keeps none.
    """
    generator = evaluated_generator(trainer, protocol)
    grid = grids.SampleGrid(
        generator,
        strategy=trainer.strategy,
        class_names=dataset.class_names,
        batch_norm=protocol.batch_norm,
    )
    # Of hosts that sample together, none can go on with what it finds, or delete what others look
    # for.
    alone = distribution.num_hosts(trainer.strategy) == 1
    evaluator = runner.Evaluator(
        generator=generator,
        strategy=trainer.strategy,
        dataset=dataset,
        protocol=protocol,
        data_dir=data_dir,
        work_dir=Folder(model_dir).evaluation if alone else None,
    )
    return evaluator, grid


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


def dry_run(trainer, dataset, schedule, *, configuration, model_dir):
    """Prints what would be trained; writes nothing but the picture of a batch, outside of
    model_dir.

    Args:
      trainer, data set, schedule: as of `loop.train`.
      configuration: the resolved configuration, as text.
      model_dir: the run's folder.
    """
    strategy = trainer.strategy
    print(configuration)
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
    print(f"Nothing was trained, {model_dir} is as it was.")
