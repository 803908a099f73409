"""Where gin files are found, and how they are read."""

import contextlib
import glob
import io
import os
import pathlib

import tensorflow as tf
from gin import config_parser

from hamgan.cli.configuration import syntax

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]
# The folder that holds configs/: the package where it is installed (see setup.py), else the
# checkout.
ROOT = str(_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent)


@contextlib.contextmanager
def readable(files, gin_params):
    """Whatever goes wrong with reading is one kind of error, with the sources' names."""
    try:
        yield
    except syntax.ERRORS as error:
        raise ValueError(
            f"The configuration can't be read: {error}\n(files: {files}, parameters: "
            f"{list(gin_params)})"
        ) from error


def read_text(path):
    with tf.io.gfile.GFile(path, "r") as file:
        return file.read()


def says_nothing(path):
    """Whether a file has no setting: nothing at all, blanks, comments, or what a power loss leaves
    of it.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = file.read().replace(b"\0", b" ").splitlines()
    return all(not line.strip() or line.strip().startswith(b"#") for line in lines)


def check_not_empty(path):
    """ValueError for a run's configuration that says nothing: every setting would be a default."""
    if says_nothing(path):
        raise ValueError(
            f"{path} is empty (no setting is in it), so this run's settings "
            "aren't known. Restore the file from a copy, or give the settings that the run was "
            "begun with: --gin_file and --gin_param. The checkpoints know them too, and others are "
            "refused."
        )


def open_file(path):
    """A gin file as gin reads it: its includes are whole paths."""
    text = read_text(path)
    lines = text.split("\n")
    try:
        statements = syntax.statements(text)
    except SyntaxError:  # gin will find it again, and say where it is
        statements = []
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            found = _find_include(statement.filename, path)
            lines[statement.location.line_num - 1] = f"include {found!r}"
    file = io.StringIO("\n".join(lines))
    file.name = path  # gin's errors name it
    return file


def _find_include(name, path):
    """The path of a file that the file `path` includes: beside it, or as it stands."""
    name = os.path.expanduser(name)
    folder = os.path.dirname(path)
    own = [ROOT, ""] if is_shipped(path) else ["", ROOT]
    places = [os.path.join(place, name) for place in (folder, *own)]
    for place in places:
        if tf.io.gfile.exists(place):
            return place
    raise ValueError(f"{path} includes {name!r}, which isn't there: looked for {places}.")


def is_shipped(path):
    return os.path.abspath(path).startswith(os.path.join(ROOT, "configs") + os.sep)


def find(file, *, flag="gin_file", folder="configs"):
    """The path of a flag's gin file: as it stands, or among those shipped in a folder, by path or
    name.
    """
    by_name = os.path.join(ROOT, folder, f"{file}.gin")
    for path in (file, os.path.join(ROOT, file), by_name):
        if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
            return path
    raise ValueError(f"There is no --{flag}={file}. Shipped: {shipped(folder)}.")


def shipped(folder="configs"):
    return ", ".join(
        sorted(
            os.path.relpath(path, ROOT)
            for path in glob.glob(os.path.join(glob.escape(ROOT), folder, "*.gin"))
        )
    )


def protocol_file(protocol):
    shipped = sorted(tf.io.gfile.glob(os.path.join(ROOT, "configs", "protocols", "*.gin")))
    names = {os.path.basename(path).removesuffix(".gin"): path for path in shipped}
    path = names.get(protocol, protocol)
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"--protocol must be one of {', '.join(names)}, or a gin file; there is no {protocol}."
        )
    return path
