"""Where images go: one picture, arrays, a folder of files, a data set. What takes long can be
interrupted: the same command goes on where it was, and what isn't whole is drawn again.
"""

import collections
import concurrent.futures
import hashlib
import io
import json
import os
import shutil
import zipfile

import numpy as np
import tensorflow as tf
import tqdm
from PIL import Image

from hamgan import pictures
from hamgan.drawing import choice
from hamgan.evaluation import shards
from hamgan.run import records

FORMATS = ("png", "npz", "folder", "tfds")
ABOUT = "samples.json"
# Numbers in one picture; beyond it viewers give up, and nobody sees anything.
_PICTURE_PIXELS = 64 * 2**20
# Images in one file of what is half-done: a minute's work or so.
_PART = 1024
_WRITERS = 4
# The last chunk of a PNG file, with its length and checksum.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def format_of(path):
    """What is written under a name: by its ending, a folder where there is none.

    Raises:
      ValueError: another ending.
    """
    ending = os.path.splitext(path.rstrip("/"))[1]
    if path.endswith("/") or not ending or tf.io.gfile.isdir(path):
        return "folder"
    if ending not in (".png", ".npz"):
        raise ValueError(
            "--output must end in .png (a grid), .npz (arrays) or / (a folder of PNG files), got "
            f"{path!r}."
        )
    return ending[1:]


def check_picture(count, image_size):
    """ValueError where one picture can't hold as many images, before any is made."""
    scale = -(-64 // image_size)
    most = _PICTURE_PIXELS // (image_size * scale) ** 2
    if count > most:
        raise ValueError(
            f"One picture holds at most {most:,} images of this size, {count:,} are asked for. "
            "Write them into a folder (--output=FOLDER/) or an array (--output=FILE.npz)."
        )


class Wanted:
    """The images that are asked for, in order.

    Args:
      seeds: [N] numbers of samples.
      labels: [N]; None: each seed's own, drawn by the sampler.
      names: the names of all classes, by label.
      about: what decides the images beside these, as JSON holds it; kept with them.
    """

    def __init__(self, seeds, labels, *, names, about):
        self.seeds = np.asarray(seeds, np.int64)
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        self.names = names
        self.about = about

    def __len__(self):
        return len(self.seeds)

    def digest(self):
        """Of all that decides the images, 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode())
        digest.update(self.seeds.tobytes())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()[:16]

    def draw(self, sampler, rows, bar):
        """Yields (images uint8, labels, seeds) of these rows, batch by batch."""
        labels = None if self.labels is None else self.labels[rows]
        seeds, first = self.seeds[rows], 0
        for images, drawn in sampler.numbered(seeds, labels):
            yield pictures.to_uint8(images), drawn, seeds[first : first + len(images)]
            first += len(images)
            bar.update(len(images))


def _bar(wanted, done=0):
    # Nothing is shown of what takes less than a second.
    return tqdm.tqdm(
        total=len(wanted), initial=done, desc="samples", unit="image", delay=1, leave=False
    )


def draw_all(sampler, wanted):
    """(images [N, S, S, 3] uint8, labels [N]) of all that is wanted, in memory."""
    with _bar(wanted) as bar:
        parts = list(wanted.draw(sampler, slice(None), bar))
    return tuple(np.concatenate([part[i] for part in parts]) for i in range(2))


# A folder of PNG files


def write_folder(path, sampler, wanted):
    """Writes each image into a file named by its class and seed; those that are there, and whole,
    stay.

    Raises:
      ValueError: the folder holds other images than these would be.
    """
    tf.io.gfile.makedirs(path)
    there = _images_in(path)
    _settle(os.path.join(path, ABOUT), wanted, there)
    damaged = [name for name in sorted(there) if not _is_whole_png(os.path.join(path, name))]
    if damaged:
        print(
            f"{len(damaged):,} PNG files of {path} aren't whole, the first {damaged[0]}: those "
            "asked for are drawn again."
        )
        there -= set(damaged)
    if wanted.labels is None:  # which class is only known when it is drawn
        seeds = {name.rpartition("-seed")[2] for name in there}
        missing = [i for i, seed in enumerate(wanted.seeds) if f"{seed:07d}.png" not in seeds]
    else:
        missing = [i for i in range(len(wanted)) if _file(wanted, i) not in there]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing):,} of {len(wanted):,} images are there already.")
    more = len(there) - (len(wanted) - len(missing))
    if more > 0:
        print(f"{path} holds {more:,} more images, of other seeds or classes: they stay.")
    pending = collections.deque()
    with (
        _bar(wanted, len(wanted) - len(missing)) as bar,
        concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool,
    ):
        for images, labels, seeds in wanted.draw(sampler, missing, bar):
            for image, label, seed in zip(images, labels, seeds, strict=True):
                name = f"{choice.file_name(label, wanted.names[label], seed)}.png"
                pending.append(pool.submit(_write_png, os.path.join(path, name), image))
            # While files are written the device goes on, but not without end.
            while len(pending) > 8 * len(images):
                pending.popleft().result()
        for future in pending:
            future.result()


def _images_in(path):
    """The names of the PNG files of a folder."""
    return {name for name in tf.io.gfile.listdir(path) if name.endswith(".png")}


def _is_whole_png(path):
    """Whether a file has a PNG's end; a power loss, or a full disk, may leave the beginning."""
    if "://" in path:  # buckets show whole files only, and each look takes its time
        return True
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_PNG_END)))
        return file.read() == _PNG_END


def _file(wanted, index):
    label = wanted.labels[index]
    return f"{choice.file_name(label, wanted.names[label], wanted.seeds[index])}.png"


def _write_png(path, image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    # Not `write_whole`, which waits for the disk: what a power loss takes is drawn again.
    temporary = f"{path}.tmp"
    with tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(buffer.getvalue())
    tf.io.gfile.rename(temporary, path, overwrite=True)


def _settle(path, wanted, there):
    """Keeps what the images are of; ValueError where others are there."""
    # Seed 3 of a class that was asked for isn't the image of seed 3 with a class of its own.
    about = wanted.about | {"classes": "drawn by seed" if wanted.labels is None else "asked for"}
    text = json.dumps(about, indent=1, sort_keys=True)
    if tf.io.gfile.exists(path):
        before = _read_about(path)
        differing = [
            f"{key} = {before.get(key)} there, {about.get(key)} asked for"
            for key in sorted(before.keys() | about.keys())
            if before.get(key) != about.get(key)
        ]
        if differing:
            raise ValueError(
                f"{os.path.dirname(path)} holds other samples: {'; '.join(differing)}. Choose "
                "another --output."
            )
        return
    if there:
        raise ValueError(
            f"{os.path.dirname(path)} holds {len(there):,} PNG files that aren't samples of this "
            "program. Choose another --output."
        )
    records.write_whole(path, text.encode())


def _read_about(path):
    """What the images of a folder are of."""
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read()
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{path} must be a JSON object that says what the images beside it are of; it has "
            f"{len(text):,} bytes and can't be read: {error}. Delete the folder, or choose another "
            "--output."
        ) from error
    return found


# Arrays and data sets, over files of what is half-done


def _parts(path, sampler, wanted):
    """`shards.Shards` of 'images', 'labels' and 'seeds', all there; and their folder or None."""
    count = len(wanted)
    rows = max(1, _PART // sampler.batch_size) * sampler.batch_size
    ranges = [(first, min(first + rows, count)) for first in range(0, count, rows)]
    folder = f"{path.rstrip('/')}.parts-{wanted.digest()}" if len(ranges) > 1 else None
    found = shards.Shards(folder, count=count, ranges=ranges, about=wanted.about)
    missing = found.missing()
    for part in sorted(set(ranges) - set(missing)):
        if not _is_whole_part(folder, part, wanted):
            print(f"{folder}: images {part[0]:,} to {part[1] - 1:,} are damaged, and drawn again.")
            missing.append(part)
    done = count - sum(end - start for start, end in missing)
    if done:
        print(f"{done:,} of {count:,} images are there already.")
    with _bar(wanted, done) as bar:
        for part in missing:
            batches = list(wanted.draw(sampler, slice(*part), bar))
            arrays = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
            found.write(part, dict(zip(("images", "labels", "seeds"), arrays, strict=True)))
    return found, folder


def _is_whole_part(folder, part, wanted):
    """Whether a file of what is half-done can be read, and has its checksum."""
    alone = shards.Shards(folder, count=len(wanted), ranges=[part], about=wanted.about)
    try:
        next(alone.read("images"))
    except ValueError:
        return False
    return True


def write_npz(path, sampler, wanted):
    """Writes `images` [N, S, S, 3] uint8, `labels` [N], `seeds` [N] and `about`, JSON as text."""
    found, folder = _parts(path, sampler, wanted)
    temporary = f"{path}.tmp"
    if os.path.dirname(path):
        tf.io.gfile.makedirs(os.path.dirname(path))
    with (
        tf.io.gfile.GFile(temporary, "wb") as file,
        zipfile.ZipFile(_Onward(file), "w") as archive,
    ):
        for name in ("images", "labels", "seeds"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, found.read(name), len(wanted))
        with archive.open("about.npy", "w") as member:
            np.save(member, np.array(json.dumps(wanted.about, sort_keys=True)))
    records.rename_whole(temporary, path)
    _forget(folder)


class _Onward:
    """A file that is written from beginning to end, as buckets want it: zipfile asks for no more
    where there is no more.
    """

    def __init__(self, file):
        self._file, self.flush = file, file.flush

    def write(self, data):
        self._file.write(data)
        return len(data)


def _write_array(member, parts, count):
    """One .npy file of the parts, which needn't be in memory at a time."""
    for index, part in enumerate(parts):
        if index == 0:
            np.lib.format.write_array_header_2_0(
                member,
                {
                    "descr": np.lib.format.dtype_to_descr(part.dtype),
                    "fortran_order": False,
                    "shape": (count, *part.shape[1:]),
                },
            )
        member.write(np.ascontiguousarray(part).tobytes())


def write_tfds(path, sampler, wanted):
    """Writes a TFDS data set of TFRecord files, which `ImageDataset` and `tfds.load` read.

    Args:
      path: data_dir/NAME.
    """
    import tensorflow_datasets as tfds

    data_dir, name = os.path.split(path.rstrip("/"))
    if not name.isidentifier() or name != name.lower():
        raise ValueError(
            f"--output must end in the name of a data set, lower case letters, digits and _: got "
            f"{path!r}."
        )
    if tf.io.gfile.exists(os.path.join(path, "1.0.0", "dataset_info.json")):
        raise ValueError(f"There is a data set at {path} already. Choose another --output.")
    size = sampler.generator.image_size
    # Before anything is drawn: names that a data set can't have, as one of two classes, end here.
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(size, size, 3)),
            "label": tfds.features.ClassLabel(names=wanted.names),
        }
    )
    found, folder = _parts(path, sampler, wanted)

    def examples():
        for images, labels in zip(found.read("images"), found.read("labels"), strict=True):
            for image, label in zip(images, labels, strict=True):
                yield {"image": image, "label": int(label)}

    dataset = tf.data.Dataset.from_generator(
        examples,
        output_signature={
            "image": tf.TensorSpec([size, size, 3], tf.uint8),
            "label": tf.TensorSpec([], tf.int64),
        },
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(wanted)))
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=data_dir or ".",
        split_datasets={"train": dataset},
        features=features,
        description=f"Samples of a generator: {json.dumps(wanted.about, sort_keys=True)}",
        disable_shuffling=True,
    )
    _forget(folder)


def _forget(folder):
    if folder and "://" in folder:
        tf.io.gfile.rmtree(folder)
    elif folder:
        shutil.rmtree(folder)
