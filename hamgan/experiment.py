"""What defines a run, as one object: gin files fill it, every script starts from it."""

import dataclasses
from collections.abc import Callable

from hamgan.data import ImageDataset
from hamgan.evaluation.protocol import Protocol
from hamgan.loop import Schedule
from hamgan.networks import Discriminator, Generator
from hamgan.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run. Constructors, not objects: networks must be created in the scope of a strategy.

    Attributes:
      dataset: constructor of the data set, called with data_dir.
      generator: constructor of the generator.
      discriminator: constructor of the discriminator.
      trainer: constructor of the trainer, called with strategy, generator and discriminator.
      schedule: how long and how often.
      protocol: how the run is evaluated.
    """

    dataset: Callable = ImageDataset
    generator: Callable = Generator
    discriminator: Callable = Discriminator
    trainer: Callable = Trainer
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
