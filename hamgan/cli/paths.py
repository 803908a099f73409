"""Flags that are paths, or names of data sets: one meaning everywhere, told when flags are read.

A `~` at the beginning of a path is the home folder (the shell leaves it as it is behind `--name=`).
An empty one is a mistake; the working folder is `.`.
"""

import os

from absl import flags

flags.disclaim_key_flags()  # they are those of the module that calls


class _NameParser(flags.ArgumentParser):
    """Takes a flag's text, unless it is empty."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def parse(self, argument):
        if not argument.strip():
            raise ValueError(f"--{self._name} is empty; is a variable of your shell not set?")
        return argument

    def flag_type(self):
        return "string"


class _PathParser(_NameParser):
    """Turns a flag's text into a path."""

    syntactic_help = "a path"

    def parse(self, argument):
        return os.path.expanduser(super().parse(argument))


def define_name(name, default, help, *, required=False, flag_values=flags.FLAGS):
    """A flag that is a data set's name."""
    parser, serializer = _NameParser(name), flags.ArgumentSerializer()
    flags.DEFINE(parser, name, default, help, flag_values, serializer, required=required)


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
