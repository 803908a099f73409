"""TF-GAN's Inception, the network of published FIDs: fetched, checked, put into the data folder.

    python data_prep/inception.py --data_dir=data
    python data_prep/inception.py --data_dir=data --path=FOLDER

The first fetches it from TF-Hub, or takes it from the hub's cache (TFHUB_CACHE_DIR); the second
takes a copy that was fetched elsewhere: the folder with saved_model.pb. Checked are the names and
shapes of images and outputs, by loading it and taking features of a batch: 299x299 pixels in, 2,048
features and 1,008 logits out, finite, and other ones for other images. It prints the digest that
records will name the network by. Then it lies in data/tfgan_inception, where `--gin_file=photos
--data=NAME` finds it. Any other configuration takes it by

    --gin_param="features.FeatureNetwork.handle = '{data_dir}/tfgan_inception'"
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import os

import numpy as np
import tensorflow as tf
from absl import flags

from data_prep import packing
from hamgan import fitting
from hamgan.evaluation import features
from hamgan.run import records

_WIDTHS = {"pool_3": 2048, "logits": 1008}


def check(handle: str) -> str:
    """The digest of a feature network that has TF-GAN's Inception's form.

    Args:
      handle: folder of a SavedModel, or a TF-Hub handle.

    Raises:
      ValueError: it can't be had or read, or is another network.
    """
    network = features.FeatureNetwork(handle=handle, size=fitting.INCEPTION_SIZE)
    side = fitting.INCEPTION_SIZE
    images = np.random.default_rng(0).uniform(-1, 1, [3, side, side, 3]).astype(np.float32)
    images[0] = 0
    outputs = {name: value.numpy() for name, value in network(images).items()}
    widths = {name: value.shape[1] for name, value in outputs.items()}
    if widths != _WIDTHS:
        raise ValueError(
            f"{handle} isn't TF-GAN's Inception: it must have outputs {_WIDTHS}, got {widths}."
        )
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{handle} gives values in {name} that aren't finite: it is damaged.")
        if np.allclose(value[0], value[1]):
            raise ValueError(f"{handle} gives the same {name} for any image: it is damaged.")
    return network.digest


def put(source: str, data_dir: str) -> tuple[str, str]:
    """Checks a network and copies it into the data folder.

    Args:
      source: folder of a SavedModel, or a TF-Hub handle.
      data_dir: the folder that takes it.

    Returns:
      (its folder, its digest).

    Raises:
      ValueError: as `check`; another one lies there.
    """
    digest = check(source)
    folder = os.path.join(data_dir, fitting.INCEPTION)
    if tf.io.gfile.exists(folder):
        there = check(folder)
        if there != digest:
            raise ValueError(f"{folder} holds another network ({there}, not {digest}): move it.")
        return folder, digest
    source = features.resolve(source)
    with records.writing_folder(folder) as unfinished:
        for where, _, names in tf.io.gfile.walk(source):
            target = os.path.join(unfinished, os.path.relpath(where, source))
            tf.io.gfile.makedirs(target)
            for name in names:
                tf.io.gfile.copy(os.path.join(where, name), os.path.join(target, name))
    return folder, digest


def main():
    flag = flags.FLAGS
    data_dir = os.path.expanduser(flag.data_dir)
    folder = os.path.join(data_dir, fitting.INCEPTION)
    if flag.path is None and tf.io.gfile.exists(folder):
        print(f"Found {folder}: it is whole, digest {check(folder)}.")
        return
    folder, digest = put(flag.path or features.INCEPTION_HANDLE, data_dir)
    print(f"{folder}: TF-GAN's Inception by its form, digest {digest}.")


if __name__ == "__main__":
    packing.run(main)
