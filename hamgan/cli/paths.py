"""Flags that are paths: one meaning everywhere, told when flags are read.

A `~` at the beginning is the home folder (the shell leaves it as it is behind `--name=`), and an
empty path is a mistake, not the working folder, which is `.`.
"""

import os

from absl import flags


class _PathParser(flags.ArgumentParser):
    """Turns a flag's text into a path."""

    syntactic_help = "a path"

    def __init__(self, name):
        super().__init__()
        self._name = name

    def parse(self, argument):
        if not argument.strip():
            raise ValueError(f"--{self._name} is empty; is a variable of your shell not set?")
        return os.path.expanduser(argument)

    def flag_type(self):
        return "string"


def define_path(name, default, help, *, required=False):
    """A flag that is a path, local or gs://."""
    parser, serializer = _PathParser(name), flags.ArgumentSerializer()
    flags.DEFINE(parser, name, default, help, serializer=serializer, required=required)


def define_paths(name, help):
    """A flag that is a path and may be repeated; default: an empty list."""
    flags.DEFINE_multi(_PathParser(name), flags.ArgumentSerializer(), name, [], help)
