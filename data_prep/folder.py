"""Your own images as a TFDS data set of squares, ready for training.

    python data_prep/folder.py --image_dir=photos --data_dir=data --size=128

reads photos/<class>/<image>, or photos/<image> as one class, or either of them below photos/train,
photos/val and photos/test, and writes data/photos_128: central square of each image, bilinear,
`image` uint8 [S, S, 3] and `label`. Classes are the folders' names in alphabetical order, as many
as there are. Train with

    --gin_param="data.ImageDataset.name = 'photos_128'" --gin_param="NUM_CLASSES = ..."
    --gin_param="IMAGE_SIZE = 128"

and, where there is no photos/val, --gin_param="data.ImageDataset.reference_split = 'train'".

Whatever Pillow reads is an image, if its suffix says so: JPEG (CMYK too), PNG, WebP, BMP, GIF,
TIFF; grey, colour or 16 bits. EXIF rotation is applied, transparent pixels are put on white.

A killed job goes on where it was when it is run again, and does nothing when all is done. After
changing the images, choose another --name.
"""

# isort: off
import data_prep  # noqa: F401 - first of all: it quiets TensorFlow's log
# isort: on

from absl import flags

from data_prep import packing, sources


def main():
    flag = flags.FLAGS
    packing.pack_by_flags(
        sources.Tree(flag.image_dir), data_dir=flag.data_dir, decode=sources.decode_photo
    )


if __name__ == "__main__":
    flags.DEFINE_string("image_dir", None, "Folder of the images, local or gs://.", required=True)
    flags.DEFINE_string(
        "data_dir", "data", "Folder of TFDS data sets to write into, local or gs://."
    )
    packing.define_flags()
    flags.adopt_module_key_flags(packing)
    packing.run(main)
