"""What defines a run, as one object: gin files fill it, every script starts from it."""

import dataclasses
import functools
from collections.abc import Callable

from hamgan import arguments
from hamgan.data import ImageDataset
from hamgan.evaluation.protocol import Protocol
from hamgan.loop import Schedule
from hamgan.networks import Discriminator, Generator
from hamgan.trainer import Trainer


@arguments.take(
    dataset=arguments.constructor("@data.ImageDataset"),
    generator=arguments.constructor("@networks.Generator"),
    discriminator=arguments.constructor("@networks.Discriminator"),
    trainer=arguments.constructor("@trainer.Trainer"),
    schedule=arguments.made("@loop.Schedule()", of=Schedule),
    protocol=arguments.made("@protocol.Protocol()", of=Protocol),
    precision=arguments.one_of(None, *arguments.PRECISIONS),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run. Constructors, not objects: networks must be created in the scope of a
    strategy.

    Attributes:
      dataset: constructor of the data set, called with data_dir.
      generator: constructor of the generator.
      discriminator: constructor of the discriminator.
      trainer: constructor of the trainer, called with strategy, generator and discriminator.
      schedule: how long and how often.
      protocol: how the run is evaluated.
      precision: of both networks, a Keras dtype policy: 'mixed_bfloat16' computes in bfloat16, with
        variables and what needs it in float32. None: what each network's own `dtype` says, float32
          by default.
    """

    dataset: Callable = ImageDataset
    generator: Callable = Generator
    discriminator: Callable = Discriminator
    trainer: Callable = Trainer
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    precision: str | None = None

    def __post_init__(self):
        arguments.check_fields(self)
        if self.precision is None:
            return
        for name in ("generator", "discriminator"):
            object.__setattr__(
                self, name, functools.partial(getattr(self, name), dtype=self.precision)
            )
