"""A feature network of your own images, to score a run by where TF-GAN's Inception can't be had.

    python data_prep/features.py --data=photos_128 --data_dir=data

trains a small network to tell the classes of a prepared data set apart (of one class: by how many
quarter turns an image was turned), prints how many images it tells right that were held out (the
split validation or test, else 15 % of train), and writes data/photos_128_features. Runs of
`--gin_file=photos --data=photos_128` score by it when there is no data/tfgan_inception.

An FID by it compares checkpoints and runs on the same images by this same network, and with
nothing else: records name network and digest. When the network is there already it is only
described.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import os

from absl import flags

from data_prep import packing
from hamgan.evaluation import own_features


def main():
    flag = flags.FLAGS
    built = own_features.ensure(flag.data, os.path.expanduser(flag.data_dir), steps=flag.steps)
    print(
        f"{'Wrote' if built.written else 'Found'} {built.folder}: "
        f"{own_features.in_words(built.about)}"
    )


if __name__ == "__main__":
    packing.run(main)
