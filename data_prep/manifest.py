"""What a packed data set was made of, kept beside it: which files, and how many were enlarged.

images.json          classes; per split: images, those that were enlarged, those left out
source_files.json.gz {split: {name: [bytes, CRC-32]}} of a folder's files
"""

import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from hamgan.data import prepared
from hamgan.run import records

_FILES = "source_files.json.gz"
_NUM_NAMED = 5


def write(
    folder: str,
    notes: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    classes: Sequence[str],
    content: Mapping[str, str] | None,
) -> None:
    """Writes both files.

    Args:
      folder: the data set's.
      notes: {split: notes of its parts, in order}.
      classes: their names.
      content: {split: digest} of a prepared data set that was packed; None: a folder of files was.
    """
    splits = {}
    for split, of_split in notes.items():
        enlarged = [found for note in of_split for found in note.get("enlarged", ())]
        splits[split] = {
            "images": sum(note["num_examples"] for note in of_split),
            "enlarged": len(enlarged),
            "smallest": min(enlarged, key=lambda found: found[1], default=None),
            "left_out": sum(len(note.get("left_out", ())) for note in of_split),
        }
    about = {"splits": splits, "classes": list(classes), "content": content}
    text = json.dumps(about, indent=1)
    records.write_whole(os.path.join(folder, prepared.IMAGES), text.encode())
    if content is None:
        files = {
            split: dict(pair for note in of_split for pair in note.get("files", ()))
            for split, of_split in notes.items()
        }
        packed = gzip.compress(json.dumps(files).encode(), mtime=0)
        records.write_whole(os.path.join(folder, _FILES), packed)


def describe_enlarged(folder: str, size: int) -> str | None:
    """What is to be said of small images in a data set; None: nothing."""
    found = prepared.enlarged(folder)
    if not found or not found.number:
        return None
    return (
        f"{found.number:,} of {found.images:,} images are smaller than {size} x {size} and were "
        f"enlarged; the smallest is {found.smallest} (shorter side: {found.side}). Leave such "
        f"images out with --min_side={size} and another --name, or take a smaller --size."
    )


def check_same(source, folder: str, name: str) -> None:
    """Asks whether a finished data set is of what its source holds now.

    A source that is gone is not asked.

    Raises:
      ValueError: images were added, removed or changed since; they are named.
    """
    if hasattr(source, "content"):
        differences = _of_prepared(source, folder)
    elif tf.io.gfile.isdir(source.identity):
        differences = _of_files(source, folder)
    else:
        return
    if differences:
        raise ValueError(
            f"{source.identity} isn't any more what {folder} was prepared from: "
            f"{'; '.join(differences)}. A data set stays as it is: prepare what is there now under "
            f"another name, --name={name}_2 say, or remove {folder} first."
        )


def _of_prepared(source, folder):
    kept = prepared.images_of(folder).get("content") or {}
    return [
        f"split {split} has other images"
        for split in source.num_examples
        if split in kept and kept[split] != source.content(split)
    ]


def _of_files(source, folder):
    path = os.path.join(folder, _FILES)
    if not tf.io.gfile.exists(path):
        return _of_counts(source, folder)
    classes = set(prepared.images_of(folder).get("classes", source.class_names))
    differences = _listed("class", "es", set(source.class_names), classes)
    with tf.io.gfile.GFile(path, "rb") as file:
        kept = json.loads(gzip.decompress(file.read()))
    since = tf.io.gfile.stat(path).mtime_nsec / 1e9
    now = {split: {} for split in source.num_examples}
    for split, count in source.num_examples.items():
        now[split] = {image.name: image for image in source.examples(split, 0, count)}
    names_now = {name for images in now.values() for name in images}
    names_kept = {name for images in kept.values() for name in images}
    differences += _listed("image", "s", names_now, names_kept)
    changed = sorted(
        name
        for split, images in now.items()
        for name, image in images.items()
        if name in kept.get(split, {}) and _is_changed(image, kept[split][name], since)
    )
    return differences + _counted("image", "s", "changed", changed)


def _is_changed(image, kept, since):
    """Whether a file has another content. Remote ones aren't asked, it would take minutes."""
    if "://" in image.path or kept[0] is None:
        return False
    try:
        status = os.stat(image.path)
        if status.st_size != kept[0]:
            return True
        return status.st_mtime > since and zlib.crc32(image.read()) != kept[1]
    except (OSError, ValueError):
        return True


def _of_counts(source, folder):
    """Of a data set from before names were kept: all that is known is how many there were."""
    info = tfds.builder_from_directory(folder).info
    differences = _listed("class", "es", set(source.class_names), set(info.features["label"].names))
    bad = os.path.join(folder, "bad_files.txt")
    left_out = 0
    if tf.io.gfile.exists(bad):
        with tf.io.gfile.GFile(bad) as file:
            left_out = len(file.read().splitlines())
    before = sum(split.num_examples for split in info.splits.values()) + left_out
    now = sum(source.num_examples.values())
    if now != before:
        differences.append(f"it has {now:,} images, and {before:,} were there")
    return differences


def _listed(one, plural, now, before):
    return [
        *_counted(one, plural, "added", sorted(now - before)),
        *_counted(one, plural, "removed", sorted(before - now)),
    ]


def _counted(one, plural, word, names):
    what = one if len(names) == 1 else one + plural
    return [f"{len(names):,} {what} {word} ({_some(names)})"] if names else []


def _some(names):
    shown = ", ".join(names[:_NUM_NAMED])
    return shown if len(names) <= _NUM_NAMED else f"{shown}, ..."
