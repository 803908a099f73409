"""Features of real images, computed once per data folder and protocol, and kept there under a fingerprint."""

import dataclasses
import hashlib
import io
import json
import os

import numpy as np
import tensorflow as tf

from hamgan import records
from hamgan.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images as an evaluation sees them: features [N, D] float32, factor for FID, and what they were made of."""

    features: np.ndarray
    factor: metrics.ReferenceFactor
    fingerprint: dict


def load_or_build(dataset, *, network, embed, protocol, cache_dir=None, progress=None):
    """The reference features for a protocol.

    Args:
      dataset: a `hamgan.data.ImageDataset`.
      network: the `FeatureNetwork`.
      embed: function images [B, S, S, 3] -> {'pool_3', 'logits'} NumPy arrays, the same that embeds generated images.
      protocol: a `Protocol`.
      cache_dir: folder that keeps them; None: nothing is kept.
      progress: function (iterable, description, total) -> iterable.

    Raises:
      ValueError: fewer images than `protocol.reference_count`.
    """
    split = protocol.reference_split or dataset.reference_split
    available = dataset.num_examples(split)
    count = protocol.reference_count or available
    if count > available:
        raise ValueError(f"reference_count is {count}, but split {split!r} of {dataset.name} has {available} images.")
    fingerprint = {
        "dataset": dataset.name,
        "version": dataset.version,
        "split": split,
        "count": count,
        "image_size": dataset.image_size,
        "quantize": protocol.quantize,
        "network": network.digest,
        "network_size": network.size,
    }
    path = None
    if cache_dir:
        key = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
        path = os.path.join(cache_dir, "reference_features", f"{dataset.name}-{split}-{key}.npz")
    features = _read(path, fingerprint)
    if features is None:
        features = _build(dataset, split, count, embed, protocol.batch_size, progress)
        if path:
            buffer = io.BytesIO()
            np.savez(buffer, features=features, fingerprint=json.dumps(fingerprint, sort_keys=True))
            tf.io.gfile.makedirs(os.path.dirname(path))
            records.write_whole(path, buffer.getvalue())
    return Reference(features, metrics.frechet_factor(metrics.Moments.from_features(features)), fingerprint)


def _read(path, fingerprint):
    if not path or not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        stored = np.load(io.BytesIO(file.read()), allow_pickle=False)
    found = json.loads(str(stored["fingerprint"]))
    if found != fingerprint:
        differing = sorted(k for k in found.keys() | fingerprint.keys() if found.get(k) != fingerprint.get(k))
        raise ValueError(
            f"{path} was made for other settings: "
            + "; ".join(f"{k} is {found.get(k)!r} there, {fingerprint.get(k)!r} here" for k in differing)
            + ". Delete the file to build it again."
        )
    return stored["features"]


def _build(dataset, split, count, embed, batch_size, progress):
    parts, seen = [], 0
    batches = dataset.reference_batches(split=split, batch_size=batch_size)
    total = -(-count // batch_size)
    batches = batches.take(total).as_numpy_iterator()
    for batch in progress(batches, "reference", total) if progress else batches:
        images = batch["image"][: count - seen]
        seen += len(images)
        parts.append(embed(images)["pool_3"])
    return np.concatenate(parts)
