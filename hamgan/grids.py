"""The grids of images that a run draws while it trains."""

import numpy as np
import tensorflow as tf

from hamgan import pictures, sampling

GRID_ROWS = 10
GRID_COLUMNS = 10


def grid_classes(num_classes):
    """The labels of a grid's rows: all classes, or ten that are evenly spread."""
    return np.linspace(0, num_classes - 1, min(GRID_ROWS, num_classes)).round().astype(np.int32)


class SampleGrid:
    """The same noise and classes at every step: rows of classes, drawn on all replicas.

    Args:
      generator: the generator.
      strategy: its strategy.
      class_names: names of the classes, by label.
      seed: of the noise.
      batch_norm: constructor of where batch norm has its moments from, as in a protocol.
    """

    def __init__(
        self, generator, *, strategy, class_names, seed=0, batch_norm=sampling.MovingAverages
    ):
        classes = grid_classes(generator.num_classes)
        self.labels = np.repeat(classes, GRID_COLUMNS)
        self.row_labels = [class_names[c] for c in classes]
        replicas = strategy.num_replicas_in_sync
        batch_size = -(-min(100, len(self.labels)) // replicas) * replicas
        self._sampler = sampling.Sampler(
            generator, strategy=strategy, batch_size=batch_size, seed=seed
        )
        self._batch_norm, self._seed = batch_norm(self._sampler), tf.constant(seed)

    def images(self):
        """The grid's images [N, S, S, 3]. With several hosts, all must ask."""
        with self._batch_norm.applied(self._seed):
            return self._sampler.sample(len(self.labels), self.labels)[0]

    def save(self, path, images, *, title=None):
        """Writes the grid's images into a PNG file."""
        pictures.save_grid(
            path, images, columns=GRID_COLUMNS, row_labels=self.row_labels, title=title
        )

    def draw_real(self, path, dataset):
        """Writes real images of the grid's classes into a PNG file."""
        draw_real_images(path, dataset, self)


def draw_real_images(path, dataset, grid):
    """Draws real images of the grid's classes, as many of each as its rows hold and the first
    batches have.
    """
    wanted = {int(c): [] for c in grid.labels[::GRID_COLUMNS]}
    for batch in (
        dataset.reference_batches(split=dataset.train_split, batch_size=100)
        .take(200)
        .as_numpy_iterator()
    ):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            if len(wanted.get(int(label), range(GRID_COLUMNS))) < GRID_COLUMNS:
                wanted[int(label)].append(image)
        if all(len(images) == GRID_COLUMNS for images in wanted.values()):
            break
    blank = np.ones([dataset.image_size, dataset.image_size, 3], np.float32)
    images = [
        image for row in wanted.values() for image in row + [blank] * (GRID_COLUMNS - len(row))
    ]
    pictures.save_grid(path, np.stack(images), columns=GRID_COLUMNS, row_labels=grid.row_labels)
