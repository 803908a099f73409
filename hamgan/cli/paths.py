"""Flags that are paths: one meaning everywhere, told when flags are read.

A `~` at the beginning is the home folder (the shell leaves it as it is behind `--name=`), and an
empty path is a mistake, not the working folder, which is `.`.
"""

import os

from absl import flags

flags.disclaim_key_flags()  # they are those of the module that calls


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


def define_path(name, default, help, *, required=False, flag_values=flags.FLAGS):
    """A flag that is a path, local or gs://."""
    flags.DEFINE(
        _PathParser(name),
        name,
        default,
        help,
        flag_values,
        flags.ArgumentSerializer(),
        required=required,
    )


def define_paths(name, help, *, flag_values=flags.FLAGS):
    """A flag that is a path and may be repeated; default: an empty list."""
    flags.DEFINE_multi(
        _PathParser(name),
        flags.ArgumentSerializer(),
        name,
        [],
        help,
        flag_values,
    )
