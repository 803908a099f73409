"""Segmentation: HamNet and Light-Ham.

    python scripts/segment.py train --gin_file=configs/segmentation/digits.gin \\
        --model_dir=runs/segment_digits --data_dir=data

Commands:
    train       trains from a gin file, and scores by mIoU
    evaluate    scores a checkpoint: single-scale, or multi-scale and flip
    predict     segments photographs: index images with a palette, and overlays
    heads       trains several heads with several seeds, and compares them
    import      published weights (HamNet, Light-Ham, ImageNet backbones) as a run's folder

`python scripts/segment.py COMMAND --help` shows a command's flags.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

from hamgan.cli import (
    common,
    segment_evaluate,
    segment_heads,
    segment_import,
    segment_predict,
    segment_train,
)


class Command(NamedTuple):
    """A command of this script.

    Attributes:
      define_flags: defines its flags, beside those of a run.
      main: runs it.
      of_run: whether it has the flags of a run.
    """

    define_flags: Callable
    main: Callable
    of_run: bool = True


COMMANDS = {
    "train": Command(segment_train.define_flags, segment_train.main),
    "evaluate": Command(segment_evaluate.define_flags, segment_evaluate.main),
    "predict": Command(segment_predict.define_flags, segment_predict.main),
    "heads": Command(segment_heads.define_flags, segment_heads.main, of_run=False),
    "import": Command(segment_import.define_flags, segment_import.main),
}


def run():
    """Takes the command's name from the command line, and runs it with the flags that follow."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(__doc__.strip())
        return
    if name not in COMMANDS:
        sys.exit(f"\nERROR: The command must be one of {', '.join(COMMANDS)}, got {name!r}.")
    command = COMMANDS[name]
    del sys.argv[1]
    if command.of_run:
        common.define_flags()
    command.define_flags()
    common.show_in_help(sys.modules[command.main.__module__], common)
    common.run(command.main)


if __name__ == "__main__":  # as the comparison of heads starts it
    run()
