"""Runs that began before the code was rearranged go on: their configuration is read, builds the
variables of their checkpoints, and compares equal.

`golden/old_runs/NAME.gin` is the config.gin of such a run, NAME.json its checkpoint's variables.
"""

import json
import pathlib
import shutil

import gin
import made
import pytest
from absl import flags

from hamgan.cli import common, configuration

FOLDER = pathlib.Path(__file__).parent / "golden" / "old_runs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.gin"))


@pytest.fixture
def experiment_of(tmp_path):
    """A function that loads the configuration of a run's folder, as a script does."""

    def load(name):
        shutil.copy(FOLDER / f"{name}.gin", tmp_path / "config.gin")
        if "gin_file" not in flags.FLAGS:
            common.define_flags()
        flags.FLAGS.unparse_flags()
        for flag in ("gin_file", "gin_param"):
            flags.FLAGS[flag].unparse()
        flags.FLAGS(["script", f"--model_dir={tmp_path}"])
        gin.clear_config()
        return configuration.load_experiment(**common.configuration_flags())

    yield load
    gin.clear_config()


@pytest.mark.parametrize("name", NAMES)
def test_old_run_goes_on(experiment_of, name):
    experiment = experiment_of(name)
    trainer = experiment.trainer(
        strategy=made.one_device(),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    # An error if it weren't the run's own; the text is what the run would write again.
    assert (
        configuration.resolved_configuration(flags.FLAGS.model_dir)
        == (FOLDER / f"{name}.gin").read_text()
    )
    shapes = {name: v.shape.as_list() for name, v in trainer.variables().items()}
    assert shapes == json.loads((FOLDER / f"{name}.json").read_text())
    assert NAMES == ["attention", "hamburgers"]
