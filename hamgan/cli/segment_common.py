"""What the commands of segmentation share: their configuration."""

from absl import flags

from hamgan.cli import common, lazily

with lazily.imports():
    from hamgan.cli import configuration
    from hamgan.segmentation import experiment

FLAGS = flags.FLAGS

# What a --gin_param may name.
HEADER = (
    "from __gin__ import dynamic_registration",
    *(f"from hamgan import {module}" for module in ("context", "decomposition", "loop")),
    *(
        f"from hamgan.segmentation import {module}"
        for module in (
            "attention augmentation convnet data evaluation experiment hamburger heads layers "
            "losses optimizers resnet schedules segmenter training van"
        ).split()
    ),
)


def load():
    """The `experiment.SegmentationExperiment` of the flags."""
    return configuration.load_experiment(
        **common.configuration_flags(), root=experiment.SegmentationExperiment, header=HEADER
    )


def load_files(gin_files):
    """The `experiment.SegmentationExperiment` of gin files alone."""
    return configuration.load_experiment(
        gin_files=gin_files,
        root=experiment.SegmentationExperiment,
        header=HEADER,
    )
