"""Runs that earlier code has left go on: their configurations load and compare equal, and what is
built from them has the variables of their checkpoints.

tests/golden/saved_run/NAME.gin is the `config.gin` of a run, NAME.txt the names and shapes in its
checkpoint. Both were written by the code before rooms were moved; they are never written anew.
"""

import ast
import pathlib

import gin
import made
import pytest
from absl import flags

from data_prep import digits
from hamgan.cli import common, configuration

SAVED = pathlib.Path(__file__).parent / "golden" / "saved_run"
RUNS = sorted(path.stem for path in SAVED.glob("*.gin"))

if "model_dir" not in flags.FLAGS:
    common.define_flags()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    digits.prepare(folder)
    return folder


@pytest.fixture
def model_dir(tmp_path, data_dir):
    """A function that lays a saved configuration into a run's folder, which the flags then name."""

    def start(text, *params):
        (tmp_path / "config.gin").write_text(text)
        flags.FLAGS.unparse_flags()
        for name in ("gin_file", "gin_param"):
            flags.FLAGS[name].unparse()
        run = [f"--model_dir={tmp_path}", f"--data_dir={data_dir}"]
        flags.FLAGS(["script", *run, *(f"--gin_param={p}" for p in params)])
        gin.clear_config()
        return tmp_path

    yield start
    gin.clear_config()


def build():
    """The experiment of the flags, and the trainer that a training script builds from it."""
    experiment = configuration.load_experiment(**common.configuration_flags())
    experiment.dataset(data_dir=flags.FLAGS.data_dir)
    trainer = experiment.trainer(
        strategy=made.one_device(),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    return experiment, trainer


def settings(text):
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    assert len(lines) > 50
    return dict(line.split(" = ", 1) for line in lines)


@pytest.mark.parametrize("name", RUNS)
def test_saved_configuration_compares_equal(model_dir, name):
    saved = (SAVED / f"{name}.gin").read_text()
    folder = model_dir(saved)
    build()
    configuration.settle_configuration(flags.FLAGS.model_dir)  # an error where a setting differs
    before, after = settings(saved), settings((folder / "config.gin").read_text())
    assert {key: after.get(key) for key in before} == before


@pytest.mark.parametrize("name", RUNS)
def test_saved_configuration_builds_the_variables_of_its_checkpoint(model_dir, name):
    model_dir((SAVED / f"{name}.gin").read_text())
    _, trainer = build()
    lines = (SAVED / f"{name}.txt").read_text().splitlines()
    saved = {key: ast.literal_eval(shape) for key, shape in (line.split(" ", 1) for line in lines)}
    assert saved.pop("seed") == []  # which `Checkpoints` adds
    built = {key: variable.shape.as_list() for key, variable in trainer.variables().items()}
    assert built == saved


def test_another_setting_is_noticed(model_dir):
    model_dir((SAVED / "digits.gin").read_text(), "trainer.Trainer.beta_1 = 0.25")
    build()
    with pytest.raises(ValueError, match=r"trainer.Trainer.beta_1 = 0.0 there, 0.25 asked"):
        configuration.settle_configuration(flags.FLAGS.model_dir)


def test_parts_of_a_saved_configuration_arrive(model_dir):
    model_dir((SAVED / "parts.gin").read_text())
    experiment, trainer = build()
    ham = trainer.generator.context
    assert (type(ham).__name__, ham.rank, ham.num_steps) == ("HamburgerV2Plus", 2, 3)
    assert trainer.ema is not None
    protocol = experiment.protocol
    assert protocol.batch_norm.__name__ == "StandingStatistics"
    assert (protocol.name, protocol.truncation, protocol.weights) == ("of-the-test", 1.5, "ema")
    assert protocol.features.__name__ == "FrozenGraph"
