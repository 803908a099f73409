"""Segmentation: HamNet and Light-Ham.

    python scripts/segment.py train --gin_file=configs/segmentation/digits.gin \\
        --model_dir=runs/segment_digits --data_dir=data

Commands:
    train       trains from a gin file, and scores by mIoU
    evaluate    scores a checkpoint: single-scale, or multi-scale and flip
    predict     segments photographs: index images with a palette, and overlays
    import      published weights (HamNet, Light-Ham, ImageNet backbones) as a run's folder

`python scripts/segment.py COMMAND --help` shows a command's flags.
"""

import importlib
import sys

from hamgan.cli import common

# Each is a module `segment_NAME` with `define_flags` and `main`, imported when it is called.
COMMANDS = ("train", "evaluate", "predict", "import")


def run():
    """Takes the command's name from the command line, and runs it with the flags that follow."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(common.as_called(__doc__.strip(), sys.argv[0]))
        return
    if name not in COMMANDS:
        sys.exit(f"\nERROR: The command must be one of {', '.join(COMMANDS)}, got {name!r}.")
    command = importlib.import_module(f"hamgan.cli.segment_{name}")
    del sys.argv[1]
    common.define_flags()
    command.define_flags()
    common.show_in_help(command, common)
    common.run(command.main)


if __name__ == "__main__":  # as sweeps start it
    run()
