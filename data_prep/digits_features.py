"""A feature network for the digits: a small classifier, trained on the real training split in
seconds.

    python data_prep/digits_features.py --data_dir=data

writes data/digits_features, a SavedModel with the outputs that every feature network has here:
`pool_3` [N, 64], the layer before the last, and `logits` [N, 10]. It does nothing when that is
already there.
"""

# isort: off
import data_prep  # noqa: F401 - first of all: it quiets TensorFlow's log
# isort: on

import json
import os

import keras
import tensorflow as tf
from absl import app, flags, logging

from hamgan import data
from hamgan.cli import paths
from hamgan.evaluation import features

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
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input([_SIZE, _SIZE, 3]),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="pool_3"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # the TPU wheel has no XLA for CPUs
    )
    batch_size = 64
    model.fit(
        digits.train_batches(batch_size=batch_size, seed=0).map(lambda b: (b["image"], b["label"])),
        epochs=_EPOCHS,
        steps_per_epoch=digits.num_examples("train") // batch_size,
        verbose=0,
    )
    test = digits.reference_batches(batch_size=300).map(lambda b: (b["image"], b["label"]))
    _, accuracy = model.evaluate(test, verbose=0)

    folder = folder_of(data_dir)
    _save(model, folder, trained_on={"dataset": digits.name, "version": digits.version})
    return folder, accuracy


def _save(model, folder, *, trained_on):
    """Saves a classifier as a feature network."""
    network = keras.Model(
        model.inputs, {name: model.get_layer(name).output for name in ("pool_3", "logits")}
    )

    class Module(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([None, _SIZE, _SIZE, 3], tf.float32, name="images")]
        )
        def __call__(self, images):
            return network(images, training=False)

    module = Module()
    module.network = network
    # Written aside and renamed: half of a network never has the final name.
    unfinished = folder + ".unfinished"
    if tf.io.gfile.exists(unfinished):
        tf.io.gfile.rmtree(unfinished)
    tf.get_logger().setLevel("ERROR")  # its notes on assets
    tf.saved_model.save(module, unfinished, signatures={"serving_default": module.__call__})
    with tf.io.gfile.GFile(os.path.join(unfinished, features.TRAINED_ON), "w") as file:
        file.write(json.dumps(trained_on))
    tf.io.gfile.rename(unfinished, folder)


def folder_of(data_dir: str) -> str:
    """Where the network of a data folder is."""
    return os.path.join(data_dir, "digits_features")


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    data_dir = os.path.expanduser(flags.FLAGS.data_dir)
    folder = folder_of(data_dir)
    if tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        print(f"Already there: {folder}")
        return
    folder, accuracy = build(data_dir)
    print(f"{folder}: trained on the training split, accuracy on the test split {accuracy:.3f}")


if __name__ == "__main__":
    paths.define_path(
        "data_dir", "data", "Folder of the prepared digits; the network is put there too."
    )
    app.run(main)
