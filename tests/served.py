"""A small run to be served: of the digits' configuration, with weights that matter."""

import io
import os

import gin
import helpers
import made
from PIL import Image

from hamgan.cli import configuration
from hamgan.run import checkpoints, class_names
from hamgan.run.folder import Folder

NAMES = ["cat", "dog", "<b>cow</b>"]
PARAMS = [
    "IMAGE_SIZE = 32",
    "NUM_CLASSES = 3",
    "WIDTH = 2",
    "G/context.Hamburger.rank = 3",
    "D/context.Hamburger.rank = 3",
    "networks.Generator.latent_dim = 8",
    "trainer.Trainer.batch_size = 4",
    # Moments of 4,096 images would be most of what is waited for.
    "sampling.StandingStatistics.batches = 2",
    "sampling.StandingStatistics.batch_size = 16",
]


def make_run(model_dir):
    """Lays a run into a folder, as a training would leave it; returns its `Experiment`, for as
    long as gin's configuration is this one.
    """
    gin.clear_config()
    experiment = configuration.load_experiment(
        gin_files=["digits"], gin_params=PARAMS, model_dir=model_dir
    )
    configuration.settle_configuration(model_dir)
    trainer = experiment.trainer(
        strategy=made.one_device(),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    for seed, network in enumerate((trainer.generator, trainer.discriminator, trainer.ema)):
        helpers.randomize(network, seed)
    class_names.write(model_dir, NAMES)
    checkpoints.Checkpoints(Folder(model_dir).checkpoints, trainer.variables()).save()
    return experiment


def size_of(data):
    """(width, height) of a PNG file's bytes."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return image.size


def environment():
    """For a command of this checkout."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
