"""Samples beside the training images that are nearest to them."""

import numpy as np
import tqdm

from hamgan.evaluation import neighbours


def check_count(k, dataset):
    """ValueError unless a data set has k training images."""
    total = dataset.num_examples(dataset.train_split)
    if not 1 <= k <= total:
        raise ValueError(f"--nearest must be at least 1 and at most {total}, got {k}.")


def nearest_training_images(images, *, embed, dataset, k):
    """The training images nearest to samples, in features.

    Args:
      images: [N, S, S, 3] floating point in [-1, 1].
      embed: `hamgan.evaluation.embedding.Embedder`.
      dataset: a `hamgan.data.ImageDataset`.
      k: how many for each.

    Returns:
      (distances [N, k], images [N, k, S, S, 3] in [-1, 1]), the nearest first.

    Raises:
      ValueError: fewer training images than k.
    """
    check_count(k, dataset)
    split = dataset.train_split
    size = embed.batch_size
    wanted = np.concatenate(
        [embed(images[first : first + size])["pool_3"] for first in range(0, len(images), size)]
    )
    # [N, k] of the best so far; a batch of training images and these are all that is held.
    best = np.full([len(images), 0], np.inf)
    found = np.zeros([len(images), 0, *images.shape[1:]], np.float32)
    batches = dataset.reference_batches(split=split, batch_size=size)
    for batch in tqdm.tqdm(
        batches.as_numpy_iterator(),
        desc="training images",
        total=-(-dataset.num_examples(split) // size),
        delay=1,
        leave=False,
    ):
        keys = embed(batch["image"])["pool_3"]
        near = min(k, len(keys))
        distances, indices = neighbours.nearest(wanted, keys, k=near)
        best = np.concatenate([best, distances], axis=1)
        found = np.concatenate([found, batch["image"][indices]], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(best, order, 1)
        found = np.take_along_axis(found, order[:, :, None, None, None], 1)
    return best, found
