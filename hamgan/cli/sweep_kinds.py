"""What sweeps train: GANs and segmentation networks, each with its command and its costs."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hamgan.cli import configuration, segment_common
from hamgan.segmentation.experiment import SegmentationExperiment
from hamgan.sweeps import costs, segmentation_costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What trains a sweep's points.

    Attributes:
      words: the command, after this folder: a file, and what follows.
      seed: the setting that is a training's seed.
      build, count: as of `costs`.
      check_fields: function (experiment, fields of records, *, data_dir) that refuses fields which
        no record will have.
      configuration: how its gin files are read: further arguments of `configuration.load_point`.
    """

    words: tuple[str, ...]
    seed: str
    build: Callable
    count: Callable
    check_fields: Callable = lambda experiment, fields, *, data_dir: None
    configuration: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def command(self, trainer=None):
        """The command that trains; by a script of one's own, the path `trainer`."""
        if trainer:
            return [sys.executable, trainer]
        here = os.path.dirname(os.path.abspath(__file__))
        return [sys.executable, os.path.join(here, self.words[0]), *self.words[1:]]

    def load(self, gin_files, gin_params):
        """(experiment, {binding: value as text}) of a point: `configuration.load_point`."""
        return configuration.load_point(
            gin_files=gin_files, gin_params=gin_params, **self.configuration
        )


KINDS = {
    "gan": Kind(
        words=("train.py",),
        seed="trainer.Trainer.seed",
        build=costs.build,
        count=costs.count,
    ),
    "segmentation": Kind(
        words=("segment.py", "train"),
        seed="training.SegmentationTrainer.seed",
        build=segmentation_costs.build,
        count=segmentation_costs.count,
        check_fields=segmentation_costs.check_fields,
        configuration=dict(root=SegmentationExperiment, header=segment_common.HEADER),
    ),
}


def name_of(sweep):
    """The name in KINDS of what a `sweeps.Sweep` trains."""
    return "segmentation" if sweep.of_segmentation else "gan"
