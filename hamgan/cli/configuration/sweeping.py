"""Sweeps and their points from gin files."""

import dataclasses
import os

import gin

from hamgan import sweeps
from hamgan.cli.configuration import checks, loading, lookup, roots, sources, syntax

_HEADER = ("from __gin__ import dynamic_registration", "from hamgan import sweeps")


def load_sweep(file, *, gin_params=()):
    """The `sweeps.Sweep` that a gin file describes, instead of all that was read before; it is
    called as the file unless it has a name.

    Args:
      file: its path, or the name of a shipped one.
      gin_params: more bindings, which win over the file.

    Raises:
      ValueError: there is no such file, or it can't be read or describes no sweep, or a value isn't
        what an argument takes.
    """
    lookup.read_files_by(sources.open_file, root=sources.ROOT)
    gin.clear_config()
    file = sources.find(file, flag="sweep", folder=os.path.join("configs", "sweeps"))
    with sources.readable([file], gin_params):
        gin.parse_config_files_and_bindings([file], None, finalize_config=False)
        roots.check_kind([file], sweeps.Sweep)
        gin.parse_config_files_and_bindings([], [*_HEADER, *gin_params])
    roots.check_there([file], sweeps.Sweep)
    checks.check_names(gin_params)
    checks.check_values()
    sweep = gin.get_configurable(sweeps.Sweep)()
    name = sweep.name or os.path.basename(file).removesuffix(".gin")
    return dataclasses.replace(sweep, name=name)


def load_point(*, gin_files, gin_params, **kind):
    """(experiment, {binding: value as text}) of one point of a sweep, instead of all that was read
    before.

    Args:
      gin_files, gin_params: the point's.
      **kind: root and header as of `load_experiment`, of what isn't a GAN.

    Raises:
      ValueError: as of `load_experiment`.
    """
    gin.clear_config()
    made = loading.load_experiment(gin_files=gin_files, gin_params=gin_params, **kind)
    found = syntax.bindings(gin.config_str(max_line_length=10_000))
    return made, {name: repr(value) for name, value in found.items()}
