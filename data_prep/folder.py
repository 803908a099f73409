"""Your own images as a TFDS data set of squares, ready for training.

    python data_prep/folder.py --image_dir=photos --data_dir=data --size=128

reads photos/<class>/<image>, or photos/<image> as one class, or either of them below photos/train,
photos/val and photos/test, and writes data/photos_128: central square of each image, bilinear,
`image` uint8 [S, S, 3] and `label`. Classes are the folders' names in alphabetical order, as many
as there are. What to do next is printed (see docs/data.md):

    python data_prep/features.py --data=photos_128 --data_dir=data
    python scripts/train.py --gin_file=photos --data=photos_128 --model_dir=runs/photos_128 \\
        --data_dir=data

Whatever Pillow reads is an image, if its suffix says so: JPEG (CMYK too), PNG, WebP, BMP, GIF,
TIFF; grey, colour or 16 bits. EXIF rotation is applied, transparent pixels are put on white.

A killed job goes on where it was when it is run again, and does nothing when all is done. After
changing the images, choose another --name.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import os
import shlex
import sys

from absl import flags

from data_prep import packing, sources


def main():
    flag = flags.FLAGS
    folder = packing.pack_by_flags(
        sources.Tree(flag.image_dir), data_dir=flag.data_dir, decode=sources.decode_photo
    )
    print(next_commands(folder))


def next_commands(folder: str) -> str:
    """What to do with the data set in DATA_DIR/NAME/VERSION, in lines of text."""
    data_dir, name = os.path.split(os.path.dirname(folder))
    if "data_prep.commands" in sys.modules:  # called as hamgan-prepare
        inception, features, train = (
            "hamgan-prepare inception",
            "hamgan-prepare features",
            "hamgan-train",
        )
    else:
        scripts = ("data_prep/inception.py", "data_prep/features.py", "scripts/train.py")
        inception, features, train = (f"python {script}" for script in scripts)
    where = f"--data={name} --data_dir={shlex.quote(data_dir or '.')}"
    return (
        "Next, a network to score by (where TF-GAN's Inception can be fetched, better "
        f"'{inception} --data_dir={shlex.quote(data_dir or '.')}'), and the training:\n"
        f"    {features} {where}\n"
        f"    {train} --gin_file=photos --model_dir=runs/{name} {where}"
    )


if __name__ == "__main__":
    packing.run(main)
