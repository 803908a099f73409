"""Flags that are paths: `~` is the home folder, empty is a mistake, everywhere."""

import pathlib
import re

import pytest
from absl import flags

from hamgan.cli import paths

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = [*ROOT.glob("hamgan/cli/*.py"), *ROOT.glob("data_prep/*.py")]


@pytest.fixture
def values():
    """Flags of their own: a path, and one that may be repeated."""
    values = flags.FlagValues()
    paths.define_path("model_dir", None, "A folder.", flag_values=values)
    paths.define_paths("gin_file", "Files.", flag_values=values)
    return values


def test_home_is_one_place(values, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    values(["script", "--model_dir=~/run", "--gin_file=~/a.gin", "--gin_file=b~.gin"])
    assert values.model_dir == "/home/someone/run"
    assert values.gin_file == ["/home/someone/a.gin", "b~.gin"]
    values(["script", "--model_dir=gs://bucket/~x"])
    assert values.model_dir == "gs://bucket/~x"


def test_without_flags_nothing_is_given(values):
    values(["script"])
    assert (values.model_dir, values.gin_file) == (None, [])


@pytest.mark.parametrize("flag", ["model_dir", "gin_file"])
@pytest.mark.parametrize("value", ["", " "])
def test_empty_paths_are_refused(values, flag, value):
    message = f"--{flag} is empty; is a variable of your shell not set?"
    with pytest.raises(flags.IllegalFlagValueError, match=re.escape(message)):
        values(["script", f"--{flag}={value}"])


def test_every_flag_that_is_a_path_is_defined_as_one():
    names = "|".join(
        [
            r"\w+_dir",
            r"\w+_file",
            "output",
            "checkpoint",
            "reference",
            "verify",
            "weights",
            "dataset",
        ]
    )
    defined = re.compile(rf'(DEFINE_(?!enum)\w+|define_paths?)\(\s*"({names})"')
    found = {(path.name, *pair) for path in SOURCES for pair in defined.findall(path.read_text())}
    assert sum(how.startswith("define_path") for _, how, _ in found) > 25
    assert not [which for which in found if which[1].startswith("DEFINE")]
