"""A feature network for the digits: a small classifier, trained on the real training split in
seconds.

    python data_prep/digits_features.py --data_dir=data

writes data/digits_features, a SavedModel with the outputs that every feature network has here:
`pool_3` [N, 64], the layer before the last, and `logits` [N, 10]. It does nothing when that is
already there. `data_prep/features.py` makes such networks of other data sets.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import os

import keras
import tensorflow as tf
from absl import flags

from data_prep import packing
from hamgan import data
from hamgan.evaluation import own_features

_SIZE = 32
_EPOCHS = 12


def build(data_dir: str) -> tuple[str, float]:
    """Trains and saves the network.

    Args:
      data_dir: folder that holds the prepared digits.

    Returns:
      (folder of the SavedModel, accuracy on the test split).

    Raises:
      ValueError: the digits aren't there.
    """
    digits = data.ImageDataset(
        name="digits", image_size=_SIZE, num_classes=10, reference_split="test", data_dir=data_dir
    )
    batch_size = 64
    model = own_features.fit(
        _classifier,
        digits.train_batches(batch_size=batch_size, seed=0).map(lambda b: (b["image"], b["label"])),
        epochs=_EPOCHS,
        steps_per_epoch=digits.num_examples("train") // batch_size,
    )
    test = digits.reference_batches(batch_size=300).map(lambda b: (b["image"], b["label"]))
    _, accuracy = model.evaluate(test, verbose=0)

    folder = folder_of(data_dir)
    trained_on = {"dataset": digits.name, "version": digits.version}
    own_features.save(model, folder, size=_SIZE, trained_on=trained_on)
    return folder, accuracy


def _classifier():
    return keras.Sequential(
        [
            keras.Input([_SIZE, _SIZE, 3]),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="pool_3"),
            keras.layers.Dense(10, name="logits"),
        ]
    )


def folder_of(data_dir: str) -> str:
    """Where the network of a data folder is."""
    return own_features.folder_of(data_dir, "digits")


def main():
    data_dir = os.path.expanduser(flags.FLAGS.data_dir)
    folder = folder_of(data_dir)
    if tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        print(f"Already there: {folder}")
        return
    folder, accuracy = build(data_dir)
    print(f"{folder}: trained on the training split, accuracy on the test split {accuracy:.3f}")


if __name__ == "__main__":
    packing.run(main)
