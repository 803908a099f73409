"""What defines a segmentation run, as one object, and the parts that a training takes from it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from hamgan import arguments, distribution, loop
from hamgan.collapse import SignsOfDeath
from hamgan.evaluation.scores import MEAN_IOU
from hamgan.segmentation import evaluation, overlays
from hamgan.segmentation.data import SegmentationDataset
from hamgan.segmentation.segmenter import Segmenter
from hamgan.segmentation.training import SegmentationTrainer


@arguments.take(
    dataset=arguments.constructor("@data.SegmentationDataset"),
    network=arguments.constructor("@segmenter.Segmenter"),
    trainer=arguments.constructor("@training.SegmentationTrainer"),
    schedule=arguments.made("@loop.Schedule()", of=loop.Schedule),
    test=arguments.made("@evaluation.HamNetTest()"),
    precision=arguments.one_of(None, *arguments.PRECISIONS),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationExperiment:
    """The parts of a run; constructors where a strategy's scope is needed, as in
    `hamgan.experiment`.

    Attributes:
      dataset: constructor of the data set, called with data_dir.
      network: constructor of the network.
      trainer: constructor of the trainer, called with strategy and network.
      schedule: how long and how often.
      test: how the network is tested, single-scale or multi-scale.
      precision: of the network, a Keras dtype policy; None: what its own `dtype` says.
    """

    dataset: Callable = SegmentationDataset
    network: Callable = Segmenter
    trainer: Callable = SegmentationTrainer
    schedule: loop.Schedule = dataclasses.field(default_factory=loop.Schedule)
    test: Any = dataclasses.field(default_factory=evaluation.HamNetTest)
    precision: str | None = None

    def __post_init__(self):
        arguments.check_fields(self)
        if self.precision is not None:
            network = functools.partial(self.network, dtype=self.precision)
            object.__setattr__(self, "network", network)


def build(experiment, *, strategy, data_dir):
    """(trainer, data set) of an experiment; the network is made in the strategy's scope.

    Raises:
      ValueError: the network has other classes than the data set.
      distribution.HostLost: another host of the cluster is gone.
    """
    dataset = experiment.dataset(data_dir=data_dir)
    dataset.check_files()
    # Hosts exchange initial values.
    with distribution.naming_lost_hosts(strategy):
        trainer = experiment.trainer(strategy=strategy, network=experiment.network)
    check_classes(trainer.network, dataset)
    return trainer, dataset


def check_classes(network, dataset):
    """ValueError unless a network has a data set's number of classes."""
    if network.num_classes != dataset.num_classes:
        raise ValueError(
            f"segmenter.Segmenter.num_classes must be {dataset.num_classes}, the number of classes "
            f"of {dataset.name}, got {network.num_classes}."
        )


def status(metrics):
    """{name: text} of a host call's metrics for the progress bar."""
    return {
        "loss": f"{metrics['loss/network']:.3f}",
        "accuracy": f"{metrics['accuracy/pixel']:.1%}",
    }


def train(trainer, dataset, experiment, *, model_dir, evaluate=True, **more):
    """`loop.train` of a segmentation: its score is mIoU, its pictures are overlays.

    Args:
      trainer, dataset: what `build` gave.
      experiment: a `SegmentationExperiment`.
      model_dir: the run's folder.
      evaluate: score the network every Schedule.evaluate_every steps.
      **more: as of `loop.train`.
    """
    parts = dict(network=trainer.network, test=experiment.test)
    progress = dict(progress=more["progress"]) if "progress" in more else {}
    evaluator = None
    if evaluate:
        evaluator = evaluation.Evaluator(**parts, dataset=dataset, model_dir=model_dir, **progress)
    crops = dataset.train_batches(batch_size=min(8, trainer.batch_size), seed=trainer.seed)
    grid = overlays.Overlays(
        evaluation.Predictor(**parts), dataset, batch=lambda: next(iter(crops))
    )
    return loop.train(
        trainer=trainer,
        dataset=dataset,
        schedule=experiment.schedule,
        model_dir=model_dir,
        evaluator=evaluator,
        grid=grid,
        headline=MEAN_IOU,
        signs=SignsOfDeath,
        status=status,
        **more,
    )
