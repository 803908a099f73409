"""Packs a data set into squares of one size: training then decodes nothing and reads a fraction of
the bytes.

    python data_prep/pack.py --dataset=imagenet2012 --data_dir=data --size=128

writes data/imagenet2012_128 from data/imagenet2012: of each image the central square, bilinear, to
S x S as training
does it, rounded to uint8: `image` uint8 [S, S, 3] and `label`. All splits, and the names of the
labels, are kept. ImageNet at 128 takes about 66 GB. Any prepared TFDS data set with an image and a
label will do, and so will a tree:

    python data_prep/pack.py --image_dir=imagenet --data_dir=data

with imagenet/train/<class>/<image> and imagenet/val/<class>/<image>. Pixels are those of the image
files as TensorFlow decodes them, without EXIF rotation; for photographs of your own take
data_prep/folder.py.

A killed job goes on where it was when it is run again, and does nothing when all is done.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

from absl import flags

from data_prep import packing, sources


def main():
    flag = flags.FLAGS
    if (flag.dataset is None) == (flag.image_dir is None):
        raise ValueError(
            f"One of dataset ({flag.dataset}) and image_dir ({flag.image_dir}) must be given."
        )
    if flag.dataset is not None:
        source = sources.Prepared(flag.dataset, flag.data_dir, flag.splits)
    else:
        source = sources.Tree(flag.image_dir)
    packing.pack_by_flags(
        source, data_dir=flag.output_dir or flag.data_dir, decode=sources.decode_as_stored
    )


if __name__ == "__main__":
    packing.run(main)
