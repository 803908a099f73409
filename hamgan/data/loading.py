"""From places in the order to batches of images and labels: read, decoded, brought to size."""

import functools

import tensorflow as tf

from hamgan.data import pixels
from hamgan.data.places import READS, RecordFinder
from hamgan.data.stored import StoredExamples


class Loader:
    """Loads the examples that an order names.

    Args:
      stored: reads records.
      side: of packed squares; None: images are encoded files.
      image_size: S of the images that come out.
      inexact_decode: see `dataset.ImageDataset`.
    """

    def __init__(
        self, stored: StoredExamples, *, side: int | None, image_size: int, inexact_decode: bool
    ):
        self._stored = stored
        self._side = side
        self._image_size = image_size
        self._inexact_decode = inexact_decode

    def load(
        self,
        finder: RecordFinder,
        batches: tf.data.Dataset,
        batch_size: int,
        *,
        drop_remainder: bool,
    ) -> tf.data.Dataset:
        """Batches of {'number', perhaps 'record' and 'flip'} -> batches of {'image', 'label'}.

        Args:
          finder: of the records that numbers name.
          batches: of elements of the order.
          batch_size: their size.
          drop_remainder: a last batch of fewer is left out.
        """
        read = functools.partial(self._read, finder)
        examples = batches.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        if self._side:
            return examples.map(self._finish, num_parallel_calls=tf.data.AUTOTUNE)
        examples = examples.unbatch().map(self._finish, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size, drop_remainder=drop_remainder)

    def _read(self, finder: RecordFinder, elements: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Elements [B] -> {'image': squares uint8 [B, side, side, 3], flipped, or files [B] with
        'flip'; 'label'}.
        """
        side = self._side
        arguments = {"numbers": "number", "records": "record", "flips": "flip"}
        given = {
            argument: elements[name] for argument, name in arguments.items() if name in elements
        }

        def read(*values):
            with READS:
                return self._stored.read(finder, **dict(zip(given, values, strict=True)))

        image, label = tf.numpy_function(
            read, [*given.values()], (tf.uint8 if side else tf.string, tf.int32)
        )
        shape = elements["number"].shape
        image = tf.ensure_shape(image, [*shape, side, side, 3] if side else shape)
        flip = {"flip": elements["flip"]} if "flip" in elements and not side else {}
        return {"image": image, "label": tf.ensure_shape(label, shape), **flip}

    def _finish(self, examples: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A batch of stored squares, or one file, -> {'image': float32 [..., S, S, 3], 'label'}."""
        image, label = examples["image"], examples["label"]
        if not self._side:
            image = pixels.decode(image, self._image_size, inexact=self._inexact_decode)
        if "flip" in examples:
            image = pixels.flipped(image, examples["flip"])
        if self._side == self._image_size:
            # x * 2 / 255 - 1 in one pass: most of the time goes into writing these numbers.
            image = tf.quantization.dequantize(
                tf.bitcast(image, tf.quint8), -1, 1, mode="MIN_COMBINED"
            )
        elif self._side:
            image = pixels.resize(image, self._image_size)
        return {"image": image, "label": label}
