"""What is stored in a record: an encoded file or a packed square, and its label."""

import numpy as np
import tensorflow as tf
from google.protobuf import message

from hamgan.data import photos, pixels
from hamgan.data.places import Damaged, RecordFinder, SquareReader

# The last two bytes of a whole JPEG and of a whole PNG.
_ENDINGS = (b"\xff\xd9", b"`\x82")


def _damaged(name: str) -> ValueError:
    return ValueError(f"{name} is damaged. Copy the file again, or prepare the data set again.")


class StoredExamples:
    """Reads images and labels as they are stored, and checks them.

    Args:
      image_key, label_key: names of the features.
      side: of packed squares; None: images are encoded files.
      num_classes: labels must be below it.
      max_pixels: the most that an encoded image may have.
    """

    def __init__(
        self,
        *,
        image_key: str,
        label_key: str,
        side: int | None,
        num_classes: int,
        max_pixels: int = photos.MAX_PIXELS,
    ):
        self._image_key = image_key
        self._label_key = label_key
        self._side = side
        self._num_classes = num_classes
        self._max_pixels = max_pixels
        self._squares = SquareReader(max_kinds=4 * num_classes)

    def read(
        self,
        finder: RecordFinder,
        numbers: np.ndarray,
        records: np.ndarray | None = None,
        flips: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is stored in records [B], which are read if they aren't given: images [B], labels
        int32 [B]. Files are given as `photos.plain` has them.

        Squares are mirrored where `flips`; files can't be yet.
        """
        side = self._side
        images = (
            np.empty([len(numbers), side, side, 3], np.uint8)
            if side
            else np.empty([len(numbers)], object)
        )
        labels = np.empty([len(numbers)], np.int32)
        # One after the other, so that a record is in the processor's cache when it is copied:
        # faster than TensorFlow's operations on whole batches.
        for row, source in enumerate(finder.find(numbers) if records is None else records):
            try:
                label = (
                    self._squares.read(source, images[row]) if side and records is None else None
                )
                if label is None:
                    record = source.read() if records is None else source
            except Damaged:
                raise _damaged(finder.name(numbers[row])) from None
            if label is None:
                image, label = self._parse(record, finder, numbers[row])
                if side:
                    images[row] = np.frombuffer(image, np.uint8).reshape(side, side, 3)
                    if records is None:
                        self._squares.learn(record, image, label)
                else:
                    images[row] = self._plain(image, finder, numbers[row])
            labels[row] = label
            if side and flips is not None and flips[row]:
                pixels.mirror(images[row])
        return images, labels

    def _plain(self, image: bytes, finder: RecordFinder, number: int) -> bytes:
        try:
            plain = photos.plain(image, max_pixels=self._max_pixels)
        except (ValueError, OSError, SyntaxError) as error:  # what Pillow says of damaged files
            raise ValueError(
                f"The image in {finder.name(number)} can't be decoded ({len(image)} bytes): "
                f"{error}. Prepare the data set again from whole images."
            ) from None
        # Looked at only when it doesn't end as it should: some images have something behind their
        # end.
        if not plain.endswith(_ENDINGS):
            pixels.check_decodable(plain, finder.name(number))
        return plain

    def _parse(self, record: bytes, finder: RecordFinder, number: int) -> tuple[bytes, int]:
        """The image as it is stored, and the label, of a record; both are checked."""
        try:
            features = tf.train.Example.FromString(record).features.feature
            (image,) = features[self._image_key].bytes_list.value
            (label,) = features[self._label_key].int64_list.value
        except (message.DecodeError, ValueError):
            raise _damaged(finder.name(number)) from None
        if not 0 <= label < self._num_classes:
            raise ValueError(
                f"Label {label} of {finder.name(number)} must be in [0, num_classes), and "
                "num_classes is "
                f"{self._num_classes}."
            )
        if self._side:
            num_bytes = 3 * self._side**2
            if len(image) != num_bytes:
                raise ValueError(
                    f"The image in {finder.name(number)} must have {num_bytes} bytes, got "
                    f"{len(image)}."
                )
        return image, label
