"""The command `hamgan-prepare`: the jobs of this folder by their names.

    hamgan-prepare folder --image_dir=photos --data_dir=data --size=128

Jobs:
    digits           scikit-learn's handwritten digits, for the demo
    digits_features  a network of the digits' features
    features         a network of your own images' features, to score by
    folder           your own images
    imagenet         ImageNet from its archives
    inception        TF-GAN's Inception, fetched and checked, to score by
    pack             a TFDS data set as squares of one size
    segmentation     images with maps of classes
    segment_digits   scenes of digits with maps, for the demo of segmentation

`hamgan-prepare JOB --help` shows a job's flags.
"""

import runpy
import sys

from hamgan.cli import streams

JOBS = (
    *("digits", "digits_features", "features", "folder", "imagenet", "inception", "pack"),
    *("segmentation", "segment_digits"),
)


def run():
    """Takes the job's name from the command line, and runs it with the flags that follow."""
    streams.keep_open()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(__doc__.strip())
        return
    if name not in JOBS:
        sys.exit(f"\nERROR: The job must be one of {', '.join(JOBS)}, got {name!r}.")
    sys.argv = [f"hamgan-prepare {name}", *sys.argv[2:]]
    runpy.run_module(f"data_prep.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
