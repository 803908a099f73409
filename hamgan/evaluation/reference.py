"""Features of real images, computed once per data folder and kept there under a fingerprint of what
they are of.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan.evaluation import metrics, scores, shards
from hamgan.evaluation.features import FeatureNetwork
from hamgan.evaluation.protocol import Protocol, in_words
from hamgan.run import records
from hamgan.run.log import SCREEN

# What the comparison of single features takes of a larger reference: 400 MB of Inception's.
MAX_FEATURES = 50_000

_INDEX = "reference.npz"


class Reference:
    """Real images as an evaluation sees them.

    Attributes:
      fingerprint: what they are features of.
      moments: `metrics.Moments` of all of them.
      folder: where they are kept; None: in memory only.
    """

    def __init__(self, fingerprint: dict[str, Any], moments: metrics.Moments, parts: shards.Shards):
        self.fingerprint = fingerprint
        self.moments = moments
        self.folder = parts.folder
        self._parts = parts

    @functools.cached_property
    def factor(self) -> metrics.ReferenceFactor:
        """`metrics.frechet_factor` of the moments, half of the cost of an FID."""
        return metrics.frechet_factor(self.moments)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """The features, float32 [N, D], in a fixed random order; of more than MAX_FEATURES, so many
        at random.

        Random, because KID's blocks are only valid on shuffled features, and data sets are sorted.
        """
        count, repeated = self.fingerprint["count"], self.fingerprint["repeated"]
        rows = np.random.default_rng(0).permutation(count + repeated)[:MAX_FEATURES]
        rows[rows >= count] -= count
        result = np.empty([len(rows), self.moments.width], np.float32)
        start = 0
        total, squares = np.zeros((2, self.moments.width))
        for part in self._parts.read("pool_3"):
            again = part[: max(0, repeated - start)]
            for of in (part, again):
                away = of - self.moments.mean
                total += away.sum(axis=0)
                squares += np.square(away).sum(axis=0)
            here = (rows >= start) & (rows < start + len(part))
            result[here] = part[rows[here] - start]
            start += len(part)
        self._check(total, squares)
        return result

    def _check(self, total, squares):
        """Refuses features whose sums around the mean aren't those of the moments."""
        expected = np.diag(self.moments.scatter)
        # In units of the features' spread, and of their size where they hardly differ.
        spread = np.sqrt(expected.max() / self.moments.count) + 1e-6 * (
            1e-30 + np.abs(self.moments.mean).max()
        )
        off = np.abs(total).max() / (self.moments.count * spread)
        off_squares = np.abs(squares - expected).max() / (self.moments.count * spread**2)
        if not max(off, off_squares) < 1e-3:
            raise ValueError(
                f"{self.folder or 'The reference'} doesn't hold together: mean and scatter in "
                f"{_INDEX} aren't those of the features beside it. Delete the folder."
            )

    def in_stored_order(self) -> np.ndarray:
        """The features of all images, float32 [N, D]: row i is of the split's image i."""
        return np.concatenate(list(self._parts.read("pool_3")))


def check_counts(dataset, protocol: Protocol) -> tuple[str, int]:
    """Asks whether there are as many images as a protocol wants, and its scores need.

    Returns:
      (split, how many of its images are compared with).

    Raises:
      ValueError: there are fewer, or fewer samples; the split and the data set are named.
    """
    split = protocol.reference_split or dataset.reference_split
    available = dataset.num_examples(split)
    count = protocol.reference_count or available
    if count > available:
        raise ValueError(
            f"reference_count is {count}, but split {split!r} of {dataset.name} has {available} "
            "images."
        )
    if protocol.reference_repeated > count:
        raise ValueError(
            f"reference_repeated is {protocol.reference_repeated}, but there are only {count} "
            "images."
        )
    real, samples = scores.least(protocol.scores)
    if count < real:
        raise ValueError(
            f"An evaluation needs at least {real} real images, and split {split!r} of "
            f"{dataset.name} has {count}. Take another split, data.ImageDataset.reference_split = "
            "'train' say, prepare more images, or train without evaluating: --mode=train."
        )
    if protocol.num_samples < samples:
        raise ValueError(
            f"protocol.Protocol.num_samples must be at least {samples} for these scores, got "
            f"{protocol.num_samples}."
        )
    return split, count


def fingerprint(dataset, *, network: FeatureNetwork, protocol: Protocol) -> dict[str, Any]:
    """What decides the reference features of a protocol, as JSON holds it.

    Raises:
      ValueError: as `check_counts`.
    """
    split, count = check_counts(dataset, protocol)
    return {
        "dataset": dataset.name,
        "version": dataset.version,
        "content": dataset.content(split),
        "split": split,
        "count": count,
        "repeated": protocol.reference_repeated,
        "image_size": dataset.image_size,
        "crop": dataset.crop,
        "quantize": protocol.quantize,
        "resize": in_words(protocol.resize),
        "network": network.digest,
        "network_size": network.size,
        "output": "pool_3",
    }


def folder_of(data_dir: str, wanted: dict[str, Any]) -> str:
    """Where the reference with the fingerprint `wanted` is kept."""
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(
        r"[^\w.-]+", "_", f"{wanted['dataset']}-{wanted['split']}-{wanted['count']}-{key}"
    )
    return os.path.join(data_dir, "reference_features", name)


def is_built(folder: str) -> bool:
    """Whether a folder holds a whole reference."""
    return tf.io.gfile.exists(os.path.join(folder, _INDEX))


def load(folder: str, wanted: dict[str, Any] | None = None) -> Reference:
    """The reference that a folder holds.

    Args:
      folder: what `folder_of` told, or wherever it was moved to.
      wanted: the fingerprint that it must have; None: any.

    Raises:
      ValueError: there is none, a file is damaged or carries pickled objects, or it was made of
        other pixels or with another network: both sides of each difference are named.
    """
    path = os.path.join(folder, _INDEX)
    stored = shards.read_npz(path)
    missing = {"fingerprint", "count", "mean", "scatter", "ranges"} - stored.keys()
    if missing:
        raise ValueError(f"{path} must be a reference; it lacks {sorted(missing)}.")
    found = json.loads(str(stored["fingerprint"]))
    if wanted is not None and "content" not in found:
        wanted = without_content(wanted)  # of a version that didn't keep it
    if wanted is not None and found != wanted:
        differing = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        raise ValueError(
            f"{folder} was made for other settings: "
            + "; ".join(f"{k} is {found.get(k)!r} there, {wanted.get(k)!r} here" for k in differing)
            + ". Build one for these settings with scripts/evaluate.py --build_reference."
        )
    moments = metrics.Moments.from_arrays(
        count=int(stored["count"]), mean=stored["mean"], scatter=stored["scatter"]
    )
    if "sha256" in stored and str(stored["sha256"]) != shards.sha256_of(stored):
        raise ValueError(f"{path} was changed since it was written. Delete the folder.")
    ranges = [(int(first), int(end)) for first, end in stored["ranges"]]
    rows = sum(end - first for first, end in ranges)
    if (rows, moments.count) != (found["count"], found["count"] + found["repeated"]):
        raise ValueError(
            f"{path} doesn't hold together: it is of {found['count']} images and "
            f"{found['repeated']} of them again, its files hold {rows} and its moments are of "
            f"{moments.count}. Delete the folder."
        )
    parts = shards.Shards(folder, count=found["count"], ranges=ranges, about=found)
    return Reference(found, moments, parts)


def without_content(wanted: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint as versions had it that didn't look into the files."""
    return {name: value for name, value in wanted.items() if name != "content"}


def _of_earlier_version(dataset, cache_dir, wanted):
    """The folder of a reference without a digest of the data; None: there is none, or the data is
    newer.
    """
    folder = folder_of(cache_dir, without_content(wanted))
    if not is_built(folder):
        return None
    built = tf.io.gfile.stat(os.path.join(folder, _INDEX)).mtime_nsec / 1e9
    return folder if built > dataset.last_change(wanted["split"]) else None


def load_or_build(
    dataset,
    *,
    network: FeatureNetwork,
    embed: Callable,
    protocol: Protocol,
    batch_size: int,
    cache_dir: str | None = None,
    spare_dir: str | None = None,
    share: shards.Share | None = None,
    progress: Callable | None = None,
) -> Reference | None:
    """The reference of a protocol: read where it is kept, built and kept where it isn't.

    An interrupted build goes on where it was. Several hosts build it together; host 0 puts it
    together.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      network: the `FeatureNetwork`.
      embed: function images [B, S, S, 3] -> {'pool_3', 'logits'} NumPy arrays, the same that embeds
        generated images.
      protocol: a `Protocol`.
      batch_size: images per call of `embed`.
      cache_dir: data folder that keeps it; None: nothing is kept.
      spare_dir: keeps it where cache_dir can only be read; None: it is held in memory then.
      share: a `shards.Share`; None: all.
      progress: function (iterable, description, total) -> iterable.

    Returns:
      A `Reference`; None on hosts other than 0 that have had to build.

    Raises:
      ValueError: as `fingerprint` and `load`; a feature that isn't finite; the split ends early;
        other hosts don't finish their part.
    """
    wanted = fingerprint(dataset, network=network, protocol=protocol)
    if protocol.reference_folder:
        return load(protocol.reference_folder, wanted)
    places = [place for place in (cache_dir, spare_dir) if place]
    for place in places if cache_dir else ():
        if is_built(built := folder_of(place, wanted)):
            return load(built, wanted)
    if cache_dir and (earlier := _of_earlier_version(dataset, cache_dir, wanted)):
        return load(earlier, wanted)
    share = share or shards.Share()
    folder = _place_to_write(places, wanted) if cache_dir else None
    parts = shards.Shards(folder, count=wanted["count"], batch_size=batch_size, about=wanted)
    missing = parts.missing(share)
    if missing:
        batches = dataset.reference_batches(split=wanted["split"], batch_size=batch_size)
        _compute(batches.as_numpy_iterator(), parts, missing, batch_size, embed, wanted, progress)
    if share.index:
        return None
    parts.wait(share)
    moments = _moments(parts, wanted)
    if folder:
        arrays = dict(
            fingerprint=np.array(json.dumps(wanted, sort_keys=True)),
            count=np.array(moments.count),
            mean=moments.mean,
            scatter=moments.scatter,
            ranges=np.array(parts.ranges),
        )
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, sha256=shards.sha256_of(arrays))
        # Last: a folder with an index is whole.
        records.write_whole(os.path.join(folder, _INDEX), buffer.getvalue())
    return Reference(wanted, moments, parts)


def _place_to_write(places, wanted):
    """The first folder that can be written to; None: none can."""
    folders = {place: folder_of(place, wanted) for place in places}
    found = next((place for place in places if records.can_write(folders[place])), None)
    if found != places[0]:
        where = folders[found] if found else "memory, and the next evaluation computes them again"
        tqdm.write(
            f"{places[0]} can't be written to: the features of its real images are kept in "
            f"{where}.",
            file=SCREEN,
        )
    return folders[found] if found else None


def _compute(batches, parts, missing, batch_size, embed, wanted, progress):
    """Embeds the images of the missing ranges; those of others are read and passed over."""
    total = -(-missing[-1][1] // batch_size)
    batches = enumerate(batch["image"] for batch in itertools.islice(batches, total))
    ends = {end for _, end in missing}
    features, seen = [], 0
    for index, images in progress(batches, "reference", total) if progress else batches:
        start = index * batch_size
        images = images[: wanted["count"] - start]
        seen = start + len(images)
        part = next((p for p in missing if p[0] <= start < p[1]), None)
        if part:
            features.append(embed(images)["pool_3"])
        if seen in ends:
            parts.write(part, {"pool_3": np.concatenate(features)})
            features = []
    if seen < missing[-1][1]:
        raise ValueError(
            f"Split {wanted['split']!r} of {wanted['dataset']} ended after {seen} images, but says "
            "it has at least "
            f"{missing[-1][1]}: prepare it again."
        )


def _moments(parts, wanted):
    moments, repeated = None, wanted["repeated"]
    for features in parts.read("pool_3"):
        moments = moments or metrics.Moments(features.shape[1])
        moments.update(features)
        again = features[:repeated]
        moments.update(again)
        repeated -= len(again)
    return moments


def describe(reference: Reference) -> str:
    """A reference in lines of text."""
    lines = [f"{reference.folder or 'in memory'}", f"  {reference.moments.width} features"]
    return "\n".join(
        lines + [f"  {name}: {value}" for name, value in reference.fingerprint.items()]
    )
