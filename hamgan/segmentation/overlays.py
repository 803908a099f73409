"""Pictures that a segmentation run draws: images, what is true of them, what was predicted."""

import functools

import numpy as np
from PIL import Image

from hamgan import pictures
from hamgan.segmentation import augmentation, palette

_WHITE = 255


def framed(image, side):
    """An image uint8 [h, w, 3] within a white square [side, side, 3], as large as fits."""
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    square = Image.new("RGB", (side, side), (_WHITE,) * 3)
    square.paste(picture.resize(size, resampling))
    return np.asarray(square)


def pixels_of(image):
    """The pixels uint8 of a normalised image [..., h, w, 3]."""
    pixels = np.asarray(image) * augmentation.STD + augmentation.MEAN
    return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)


class Overlays:
    """What `hamgan.loop` draws of a segmentation: some images of a split, each with its labels and
    the network's prediction.

    Args:
      predict: function (image uint8 [h, w, 3], number) -> uint8 [h, w]: `evaluation.Predictor`.
      dataset: a `data.SegmentationDataset`.
      count: how many images.
      side: of each picture, in pixels.
      opacity: of the classes' colours.
      batch: of training crops, {'image', 'label'}, function () -> that.
    """

    COLUMNS = 3

    def __init__(self, predict, dataset, *, batch, count=8, side=192, opacity=0.6):
        self._predict = predict
        self._dataset = dataset
        self._batch = batch
        self._count = count
        self._side = side
        self._opacity = opacity

    def images(self):
        """[N * 3, side, side, 3] uint8: image, truth, prediction of each example."""
        found = []
        for number, example in self._examples:
            image = example["image"]
            found.append(image)
            for indices in (example["label"], self._predict(image, number)):
                found.append(palette.overlay(image, indices, opacity=self._opacity))
        return np.stack([framed(image, self._side) for image in found])

    @functools.cached_property
    def _examples(self):
        """[(number, example)], kept: to find them the split is gone through, minutes of a large
        one.
        """
        # Evenly through the split: neighbours may be alike.
        total = self._dataset.num_examples(self._dataset.test_split)
        wanted = set(np.linspace(0, total - 1, min(self._count, total)).round().astype(int))
        found = []
        for number, example in self._dataset.test_examples().enumerate().as_numpy_iterator():
            if number in wanted:
                found.append((number, example))
            if number >= max(wanted):
                break
        return found

    def save(self, path, images, *, title=None):
        """Writes the pictures into a PNG file."""
        pictures.save_grid(path, images, columns=self.COLUMNS, title=title, scale=1)

    def draw_real(self, path, dataset):
        """Writes crops of the first training batch, as the network gets them, and their labels."""
        del dataset
        batch = self._batch()
        found = []
        for image, label in zip(batch["image"], batch["label"], strict=True):
            pixels = pixels_of(image)
            label = np.asarray(label).astype(np.uint8)
            found += [pixels, palette.overlay(pixels, label, opacity=self._opacity)]
        found = found[: 2 * self._count]
        tiles = np.stack([framed(image, self._side) for image in found])
        pictures.save_grid(path, tiles, columns=2, title="first training crops", scale=1)
