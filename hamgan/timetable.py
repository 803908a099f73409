"""When a run does what: the schedule that its host loop keeps."""

import dataclasses
from collections.abc import Callable

from hamgan import arguments
from hamgan.collapse import report


@arguments.take(
    **dict.fromkeys(
        ("num_steps", "steps_per_loop", "save_every", "sample_every", "evaluate_every"),
        arguments.whole(1),
    ),
    max_to_keep=arguments.optional(arguments.whole(1)),
    keep_best=arguments.whole(0),
    max_rollbacks=arguments.whole(0),
    collapse_calls=arguments.whole(1),
    collapse_loss=arguments.number(0),
    collapse_factor=arguments.optional(arguments.number(1)),
    on_collapse=arguments.function("@loop.stop"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a run is and how often what happens, in steps. May be changed when a run goes on.

    Attributes:
      num_steps: where training ends.
      steps_per_loop: steps on the device per host call; also how often scalars are written.
      save_every: between checkpoints.
      max_to_keep: newest checkpoints that stay; None: all.
      keep_best: checkpoints with the best FID (mIoU), under each protocol, that stay too.
      sample_every: between sample grids.
      evaluate_every: between evaluations in train_and_evaluate.
      max_rollbacks: how often a run goes back to its last good checkpoint, with other random
        numbers, when something isn't finite; after that it stops.
      collapse_calls: host calls in a row that make a saturated discriminator a collapse.
      collapse_loss: the discriminator is saturated when its loss is this close to 0, or when it
        takes fakes for more real than real images.
      collapse_factor: an FID above this many times the best one (an mIoU below the best one over
        this) is a collapse; None: scores aren't looked at.
      on_collapse: `report`, `stop`, `rollback` (counts for max_rollbacks) or a function (message)
        -> whether to roll back.
    """

    num_steps: int = 1_000_000
    steps_per_loop: int = 100
    save_every: int = 2_000
    max_to_keep: int | None = 5
    sample_every: int = 5_000
    evaluate_every: int = 20_000
    keep_best: int = 1
    max_rollbacks: int = 3
    collapse_calls: int = 20
    collapse_loss: float = 0.01
    collapse_factor: float | None = 3.0
    on_collapse: Callable = report

    def __post_init__(self):
        arguments.check_fields(self)

    def steps_until_due(self, step, ends=()):
        """Steps of the next host call: it ends where something is due, or at a step of `ends`."""
        periods = (self.steps_per_loop, self.save_every, self.sample_every, self.evaluate_every)
        nexts = [*(step - step % period + period for period in periods), *ends, self.num_steps]
        return min(end for end in nexts if end > step) - step
