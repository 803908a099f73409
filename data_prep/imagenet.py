"""ImageNet (ILSVRC 2012) as TFDS's `imagenet2012`, from the original archives or from extracted
folders.

    python data_prep/imagenet.py --manual_dir=archives --data_dir=data
    python data_prep/imagenet.py --image_dir=ILSVRC/Data/CLS-LOC --data_dir=data

The first reads archives/ILSVRC2012_img_train.tar and archives/ILSVRC2012_img_val.tar where they
lie: nothing is extracted. The second reads train/n01440764/n01440764_18.JPEG ... and
val/ILSVRC2012_val_00000001.JPEG ..., the latter in one folder or in a folder per class. Both write
the same records, in the same order and files, that `tfds build imagenet2012` writes (its builder
gives features, labels and the repair of the 23 odd files), but over all cores, with images only
passing through memory, without its temporary copy of the data set. About 150 GB.

A killed job goes on where it was when it is run again, and does nothing when all is done.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import contextlib
import functools
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm
from absl import flags
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as published

from data_prep import packing, sources

NUM_IMAGES = {"train": 1_281_167, "validation": 50_000}

_TRAIN_TAR, _VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_SETTINGS = {"source": "ILSVRC 2012"}
_RECORD_BYTES = 100  # of a record beside the image


def prepare(
    *,
    data_dir: str,
    manual_dir: str | None = None,
    image_dir: str | None = None,
    num_workers: int | None = None,
    num_images: Mapping[str, int] = NUM_IMAGES,
    shard_config: shard_utils.ShardConfig | None = None,
) -> tuple[str, bool]:
    """Writes the data set.

    Args:
      data_dir: folder of TFDS data sets to put it into, local or gs://.
      manual_dir: folder of the two original archives.
      image_dir: instead of it, folder of the extracted folders `train` and `val`.
      num_workers: processes; None: one per core.
      num_images: how many images each split must have.
      shard_config: how TFDS chooses the number of files.

    Returns:
      The data set's folder, and whether this call wrote it.

    Raises:
      ValueError: not just one source; a source that isn't ImageNet, complete and under its original
        names; not enough space.
    """
    builder = tfds.builder("imagenet2012", data_dir=os.path.expanduser(data_dir))
    folder = os.fspath(builder.data_dir)
    if tf.io.gfile.exists(os.path.join(folder, "dataset_info.json")):  # whoever prepared it
        return folder, False
    if (manual_dir is None) == (image_dir is None):
        raise ValueError(
            f"One of manual_dir ({manual_dir}) and image_dir ({image_dir}) must be given: the "
            "folder of the two "
            "archives, or that of the extracted folders train and val."
        )
    synsets = builder.info.features["label"].names
    if manual_dir is not None:
        splits = _index_archives(os.path.expanduser(manual_dir), synsets)
    else:
        splits = _index_folders(os.path.expanduser(image_dir), synsets)
    _check_complete(splits, num_images, synsets)

    parts = []
    for split, images in splits.items():
        images = sources.shuffled(images, salt=split)
        # Sizes of files in folders aren't looked up, which would be slow on a bucket: the mean of
        # the original ones.
        sizes = [image.size if image.size >= 0 else 110_000 for image in images]
        config = shard_config or shard_utils.ShardConfig()
        num_parts = config.get_number_shards(sum(sizes) + _RECORD_BYTES * len(sizes), len(sizes))
        for start, stop in packing.cut(len(images), num_parts):
            num_bytes = sum(sizes[start:stop]) + _RECORD_BYTES * (stop - start)
            parts.append(packing.Part(split, images[start:stop], stop - start, num_bytes))
    packing.write(
        parts,
        folder=folder,
        info=builder.info,
        encode=functools.partial(_encode, builder),
        settings=_SETTINGS,
        num_workers=num_workers or os.cpu_count(),
    )
    return folder, True


def _encode(builder: tfds.core.DatasetBuilder, image: sources.Stored) -> bytes:
    data = image.read()
    # As TFDS's own builder writes them: the original archives have some that aren't RGB JPEGs.
    if image.name in published.CMYK_IMAGES:
        data = tfds.core.utils.jpeg_cmyk_to_rgb(data)
    elif image.name in published.PNG_IMAGES:
        data = tfds.core.utils.png_to_jpeg(data)
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("not a JPEG, or an empty file")
    if not data.endswith(b"\xff\xd9"):  # cut off, or something lies behind its end
        tf.io.decode_jpeg(data)
    return builder.info.features.serialize_example(
        {"file_name": image.name, "image": io.BytesIO(data), "label": image.label}
    )


def _index_archives(manual_dir: str, synsets: list[str]) -> dict[str, list[sources.Stored]]:
    train = os.path.join(manual_dir, _TRAIN_TAR)
    validation = os.path.join(manual_dir, _VALIDATION_TAR)
    missing = [path for path in (train, validation) if not tf.io.gfile.exists(path)]
    if missing:
        raise ValueError(
            f"manual_dir must hold {_TRAIN_TAR} and {_VALIDATION_TAR}, from "
            "https://image-net.org/download-images "
            f"after registration. Not there: {', '.join(missing)}."
        )
    label_of = {synset: label for label, synset in enumerate(synsets)}
    images = {"train": [], "validation": []}
    with _members(train) as members:
        for member, file in tqdm.tqdm(
            members, desc="Reading the index", total=len(synsets), unit=" classes"
        ):
            synset = member.name.removesuffix(".tar")
            if synset not in label_of or synset == member.name:
                raise ValueError(
                    f"{train} must hold archives like n01440764.tar; it holds {member.name!r}."
                )
            with _members(f"{train}: {member.name}", file) as inner:
                for image, _ in inner:
                    _check_train_name(image.name, synset, train)
                    offset = member.offset_data + image.offset_data
                    images["train"].append(
                        sources.Stored(train, image.name, label_of[synset], offset, image.size)
                    )
    labels = _validation_labels(label_of)
    with _members(validation) as members:
        for image, _ in members:
            label = labels[_validation_number(image.name, validation)]
            images["validation"].append(
                sources.Stored(validation, image.name, label, image.offset_data, image.size)
            )
    return images


@contextlib.contextmanager
def _members(path: str, file=None) -> Iterator[Iterable[tuple[tarfile.TarInfo, io.IOBase]]]:
    """The members of an archive, of which each must be an ordinary file: no link is followed, and
    nothing extracted.

    Raises:
      ValueError: another kind of member, or an archive that is cut off or none.
    """
    with contextlib.ExitStack() as stack:
        if file is None:
            file = stack.enter_context(tf.io.gfile.GFile(path, "rb"))
        try:
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))

            def ordinary():
                for member in archive:
                    if not member.isreg() or "/" in member.name or member.name.startswith("."):
                        raise ValueError(
                            f"{path} must hold ordinary files without folders; {member.name!r} is "
                            "something else"
                            + (f", a link to {member.linkname!r}" if member.linkname else "")
                            + ". This isn't the original archive."
                        )
                    yield member, archive.extractfile(member)

            yield ordinary()
        except tarfile.TarError as error:
            raise ValueError(f"{path} is damaged or cut off ({error}): get it again.") from error


def _index_folders(image_dir: str, synsets: list[str]) -> dict[str, list[sources.Stored]]:
    names = (
        {name.rstrip("/") for name in tf.io.gfile.listdir(image_dir)}
        if tf.io.gfile.isdir(image_dir)
        else set()
    )
    if not {"train", "val"} <= names:
        raise ValueError(
            f"image_dir ({image_dir}) must be a folder that holds train and val; it has "
            f"{sorted(names)}."
        )
    label_of = {synset: label for label, synset in enumerate(synsets)}
    images = {"train": [], "validation": []}
    train = os.path.join(image_dir, "train")
    for synset in tqdm.tqdm(_list(train), desc="Listing", unit=" classes"):
        if synset not in label_of:
            raise ValueError(f"{train} must hold folders like n01440764; it holds {synset!r}.")
        for name in _list(os.path.join(train, synset)):
            _check_train_name(name, synset, train)
            images["train"].append(
                sources.Stored(os.path.join(train, synset, name), name, label_of[synset])
            )
    validation = os.path.join(image_dir, "val")
    labels = _validation_labels(label_of)
    for name in _list(validation):
        by_class = name in label_of
        for file in _list(os.path.join(validation, name)) if by_class else [name]:
            label = labels[_validation_number(file, validation)]
            if by_class and label != label_of[name]:
                raise ValueError(
                    f"{validation}/{name} must hold images of that class; {file} is "
                    f"{synsets[label]}."
                )
            path = (
                os.path.join(validation, name, file) if by_class else os.path.join(validation, file)
            )
            images["validation"].append(sources.Stored(path, file, label))
    return images


def _list(folder: str) -> list[str]:
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
    return sorted(name for name in names if not name.startswith("."))


def _check_train_name(name: str, synset: str, where: str):
    if not re.fullmatch(rf"{synset}_\d+\.JPEG", name):
        raise ValueError(
            f"{where}: class {synset} must hold images named like {synset}_18.JPEG; it has "
            f"{name!r}."
        )


def _validation_number(name: str, where: str) -> int:
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
    if not match or not 1 <= int(match[1]) <= NUM_IMAGES["validation"]:
        raise ValueError(
            f"{where} must hold images named like ILSVRC2012_val_00000001.JPEG; it has {name!r}."
        )
    return int(match[1])


def _validation_labels(label_of: Mapping[str, int]) -> dict[int, int]:
    """{number in the name of a validation image: label}, from the list that TFDS brings along."""
    lines = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    return {number: label_of[synset] for number, synset in enumerate(lines, start=1)}


def _check_complete(
    splits: Mapping[str, list[sources.Stored]], num_images: Mapping[str, int], synsets: list[str]
):
    for split, images in splits.items():
        if len(images) != num_images[split]:
            have = {image.label for image in images}
            without = [synset for label, synset in enumerate(synsets) if label not in have]
            raise ValueError(
                f"ImageNet's {split} split must have {num_images[split]:,} images; here are "
                f"{len(images):,}, and "
                + (
                    f"none of {len(without)} classes: {', '.join(without[:5])} ..."
                    if without
                    else "some of each class"
                )
                + (
                    ". Is the download or the extraction complete? (For a part "
                    "of ImageNet, take data_prep/pack.py.)"
                )
            )


def main():
    flag = flags.FLAGS
    folder, written = prepare(
        data_dir=flag.data_dir,
        manual_dir=flag.manual_dir,
        image_dir=flag.image_dir,
        num_workers=flag.num_workers,
    )
    print(packing.describe(folder, written))


if __name__ == "__main__":
    packing.run(main)
