"""Memorisation: are samples nearer to the training images than real images are that the generator
never saw?

Distances are Euclidean, between the features (pool_3) of the evaluation. A picture shows samples
beside their nearest training images, so that a person can see what the numbers say.
"""

import json
from typing import Any

import numpy as np

from hamgan import pictures
from hamgan.run import records
from hamgan.run.folder import Folder

_CHUNK = 1024  # rows of one block of distances


def nearest(
    queries: np.ndarray, keys: np.ndarray, *, k: int = 1, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest keys of each query.

    Args:
      queries: [Q, D].
      keys: [N, D].
      k: how many.
      exclude_self: query i is the same as key i, and isn't its own neighbour.

    Returns:
      (distances [Q, k] float64, indices [Q, k] int64), the nearest first.

    Raises:
      ValueError: widths that differ, or fewer keys than neighbours asked for.
    """
    queries, keys = np.asarray(queries), np.asarray(keys)
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries and keys must be [Q, D] and [N, D], got {list(queries.shape)} and "
            f"{list(keys.shape)}."
        )
    candidates = len(keys) - exclude_self
    if not 1 <= k <= candidates:
        raise ValueError(f"k must be between 1 and the number of keys ({candidates}), got {k}.")
    found = []
    for first in range(0, len(queries), _CHUNK):
        block = queries[first : first + _CHUNK].astype(np.float64)
        best = np.full([len(block), k], np.inf), np.zeros([len(block), k], np.int64)
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK].astype(np.float64)
            squares = (block**2).sum(1)[:, None] + (part**2).sum(1) - 2 * block @ part.T
            if exclude_self:
                rows = np.arange(first, first + len(block))
                inside = (rows >= start) & (rows < start + len(part))
                squares[inside, rows[inside] - start] = np.inf
            indices = np.broadcast_to(np.arange(start, start + len(part)), squares.shape)
            best = _smallest(np.hstack([best[0], squares]), np.hstack([best[1], indices]), k)
        found.append(best[1])
    indices = np.concatenate(found)
    # From the differences: a copy of a training image has the distance 0, where squares leave
    # rounding.
    distances = np.stack(
        [np.linalg.norm(queries - keys[column].astype(np.float64), axis=1) for column in indices.T],
        1,
    )
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)


def _smallest(squares, indices, k):
    chosen = np.argpartition(squares, k - 1, axis=1)[:, :k]
    return np.take_along_axis(squares, chosen, 1), np.take_along_axis(indices, chosen, 1)


def memorisation(
    generated: np.ndarray, training: np.ndarray, held_out: np.ndarray | None = None
) -> dict[str, Any]:
    """Distances of samples to their nearest training image, against those of real images.

    Args:
      generated: [M, D] features of samples.
      training: [N, D] features of the images the generator was trained with.
      held_out: [H, D] features of real images it wasn't trained with; None where there are none:
        each training image is then compared with the nearest other one.

    Returns:
      A dictionary: 'generated_distance' and 'real_distance', the medians; 'distance_ratio', their
        quotient, near 1 or
      above where nothing was memorised; 'closer_than_real', the share of samples nearer to a
      training image than 99 % of the real ones are, 0.01 where samples lie as real images do;
      'num_generated', 'num_training', 'num_real'.

    Raises:
      ValueError: fewer than two training images, or widths that differ.
    """
    of_generated = nearest(generated, training)[0][:, 0]
    # As many real ones are enough for a median, and the search is quadratic.
    real = (training if held_out is None else held_out)[: max(len(generated), 1000)]
    of_real = nearest(real, training, exclude_self=held_out is None)[0][:, 0]
    middle = float(np.median(of_real))
    return {
        "generated_distance": float(np.median(of_generated)),
        "real_distance": middle,
        "distance_ratio": float(np.median(of_generated)) / middle if middle else float("nan"),
        "closer_than_real": float((of_generated < np.quantile(of_real, 0.01)).mean()),
        "num_generated": len(generated),
        "num_training": len(training),
        "num_real": len(real),
    }


def write(
    model_dir: str,
    *,
    step: int,
    images: np.ndarray,
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None = None,
    dataset,
    split: str,
    rows: int = 8,
    columns: int = 3,
) -> dict[str, Any]:
    """Keeps the check and its picture in `model_dir/neighbours/`, as step-00000400.json and .png.

    Args:
      model_dir: the run's folder.
      step: training step of the generator.
      images: [M, S, S, 3] samples in [-1, 1], at least `rows`, whose first ones are shown.
      generated: [N, D] features of samples, beginning with those of `images`.
      training: [N, D] features of the first images of `split`, in stored order.
      held_out: features of real images outside the training split, or None.
      dataset: the `hamgan.data.ImageDataset`.
      split: the split of `training`.
      rows: samples that are shown.
      columns: nearest training images beside each.

    Returns:
      The dictionary of `memorisation`.

    Raises:
      ValueError: as `nearest`.
    """
    rows = min(rows, len(images))
    result = memorisation(generated, training, held_out)
    distances, indices = nearest(generated[:rows], training, k=min(columns, len(training)))
    found = _images_at(dataset, split, indices.ravel())
    table = [
        image for i, row in enumerate(indices) for image in (images[i], *(found[j] for j in row))
    ]
    path = Folder(model_dir).neighbours_at(step)
    pictures.save_grid(f"{path}.png", np.stack(table), columns=1 + indices.shape[1])
    record = {
        "step": step,
        "dataset": dataset.name,
        "split": split,
        "real": "the nearest other training image" if held_out is None else "held-out images",
        **result,
        "shown": {"indices": indices.tolist(), "distances": distances.tolist()},
    }
    # After the picture: a report takes what has both.
    records.write_whole(f"{path}.json", json.dumps(record).encode())
    return result


def _images_at(dataset, split, indices):
    """{index: image [S, S, 3]} of the split's images in stored order."""
    wanted = {int(index) for index in indices}
    found, first = {}, 0
    batches = dataset.reference_batches(split=split, batch_size=256)
    for batch in batches.take(max(wanted) // 256 + 1).as_numpy_iterator():
        here = [index for index in wanted if first <= index < first + len(batch["image"])]
        found |= {index: batch["image"][index - first] for index in here}
        first += len(batch["image"])
    return found
