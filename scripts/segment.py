"""Segmentation: HamNet and Light-Ham.

    python scripts/segment.py import --weights=final.pth --model_dir=runs/hamnet

Commands:
    import      published weights as a run's folder; see scripts/segment_import.py

`python scripts/segment.py COMMAND --help` shows a command's flags.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import cli
import segment_import
from absl import flags


class Command(NamedTuple):
    """A command of this script.

    Attributes:
      define_flags: defines its flags, beside those of a run.
      main: runs it.
    """

    define_flags: Callable
    main: Callable


COMMANDS = {"import": Command(segment_import.define_flags, segment_import.main)}


def main():
    """Takes the command's name from the command line, and runs it with the flags that follow."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(__doc__.strip())
        return
    if name not in COMMANDS:
        sys.exit(f"\nERROR: The command must be one of {', '.join(COMMANDS)}, got {name!r}.")
    command = COMMANDS[name]
    del sys.argv[1]
    # What --help shows.
    sys.modules["__main__"].__doc__ = sys.modules[command.main.__module__].__doc__
    cli.define_flags()
    command.define_flags()
    flags.adopt_module_key_flags(cli)
    flags.adopt_module_key_flags(sys.modules[command.main.__module__])
    cli.run(command.main)


if __name__ == "__main__":
    main()
