"""Images and labels from prepared TFDS data sets."""

from hamgan.data.dataset import ImageDataset
from hamgan.data.pixels import preprocess
from hamgan.data.prepared import wrong_folder_level

__all__ = ["ImageDataset", "preprocess", "wrong_folder_level"]
