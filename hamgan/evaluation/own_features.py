"""Feature networks of one's own: small networks, trained on the images that are scored.

Where TF-GAN's Inception can't be had they tell good checkpoints of one run, and of runs on the same
images, from bad ones. Their FID is on a scale of its own: each network is known by its digest, and
records say on what it was trained.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan.data import ImageDataset, summary
from hamgan.evaluation import features
from hamgan.run import records

# What a network is trained to tell: the classes, or, where there is one class only, by which of
# four quarters of a turn an image was turned (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728).
CLASSES, TURNS = "classes", "quarter turns"

_MAX_SIZE = 128  # side of the input: larger images are resized to it
_SMALLEST = 16
_HELD_OUT = 15  # percent of the training split, where the data set has no other split
_LEAST_IMAGES = 40
_BATCH_SIZE = 32


class Built(NamedTuple):
    """A network that was found or made.

    Attributes:
      folder: of its SavedModel.
      about: what is kept beside it: 'dataset', 'version', 'content' of the images it was trained
        on, 'task', 'size' of its input, numbers of 'images' and 'held_out' ones, 'accuracy' on
        these, and 'chance', what guessing would reach.
      written: whether this call made it.
    """

    folder: str
    about: dict[str, Any]
    written: bool


def folder_of(data_dir: str, name: str) -> str:
    """Where the network of a data set is kept."""
    return os.path.join(data_dir, f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}_features")


def size_for(found: summary.Summary) -> int:
    """The side of the input of a data set's network."""
    return max(_SMALLEST, min(found.side or _MAX_SIZE, _MAX_SIZE))


def fit(
    make: Callable[[], keras.Model],
    batches: tf.data.Dataset,
    *,
    epochs: int,
    steps_per_epoch: int,
    progress: bool = False,
) -> keras.Model:
    """A classifier, trained with Adam at 1e-3 from seed 0.

    Args:
      make: function () -> model, images -> logits.
      batches: endless, of (images, labels).
      epochs: how often the progress bar moves on.
      steps_per_epoch: batches in each.
      progress: draw a progress bar.
    """
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # the TPU wheel has no XLA for CPUs
    )
    interval = 0.1 if sys.stderr.isatty() else 15
    with tqdm(
        total=epochs, desc="features", unit="epoch", disable=not progress, mininterval=interval
    ) as bar:
        move = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: bar.update())
        model.fit(
            batches,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[move],
        )
    return model


def save(model: keras.Model, folder: str, *, size: int, trained_on: dict[str, Any]) -> None:
    """Saves a classifier with layers `pool_3` and `logits` as a feature network.

    Args:
      model: images [N, size, size, 3] in [-1, 1] -> logits.
      folder: of the SavedModel, which isn't there yet.
      size: side of its input.
      trained_on: what is kept beside it; 'dataset' at least.
    """
    network = keras.Model(
        model.inputs, {name: model.get_layer(name).output for name in ("pool_3", "logits")}
    )

    class Module(tf.Module):
        @tf.function(
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, name="images")]
        )
        def __call__(self, images):
            return network(images, training=False)

    module = Module()
    module.network = network
    tf.get_logger().setLevel("ERROR")  # its notes on assets
    with records.writing_folder(folder) as unfinished:
        tf.saved_model.save(module, unfinished, signatures={"serving_default": module.__call__})
        with tf.io.gfile.GFile(os.path.join(unfinished, features.TRAINED_ON), "w") as file:
            file.write(json.dumps(trained_on))


def classifier(size: int, num_logits: int) -> keras.Model:
    """Images [N, size, size, 3] -> logits [N, num_logits]: convolutions that halve the side down to
    4 pixels or a little more, and the mean over these, `pool_3` [N, 128].
    """
    x = inputs = keras.Input([size, size, 3])
    blocks = max(2, int(math.log2(size / 4)))
    for block in range(blocks):
        filters = 128 if block == blocks - 1 else min(16 * 2**block, 128)
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool_3")(x)
    return keras.Model(inputs, keras.layers.Dense(num_logits, name="logits")(x))


def splits_of(found: summary.Summary) -> tuple[str, str]:
    """(for training, held out) of a data set, as TFDS writes splits."""
    for split in ("validation", "test"):
        if found.splits.get(split):
            return "train", split
    border = 100 - _HELD_OUT
    return f"train[:{border}%]", f"train[{border}%:]"


def ensure(
    name: str,
    data_dir: str,
    *,
    steps: int | None = None,
    progress: bool = True,
) -> Built:
    """The network of a data set: the one that is there, else one that is trained now.

    Args:
      name: of the data set.
      data_dir: folder of the prepared data sets; the network is put there too.
      steps: batches of 32; None: 40 times through the images, 600 to 6,000.
      progress: draw a progress bar.

    Raises:
      ValueError: there is no such data set, or too few images in it; the network that is there was
        trained on other images, or is none of these.
    """
    images, size = images_for(name, data_dir)
    folder = folder_of(data_dir, name)
    if tf.io.gfile.exists(folder):
        return _found(folder, images)
    return _build(folder, images, size=size, steps=steps, progress=progress)


def images_for(name: str, data_dir: str) -> tuple[ImageDataset, int]:
    """(the images that a data set's network is trained on, the side of its input).

    Raises:
      ValueError: there is no such data set, or too few images in it.
    """
    found = summary.summarise(name, data_dir)
    if "train" not in found.splits or found.splits["train"] < _LEAST_IMAGES:
        raise ValueError(
            f"A feature network needs at least {_LEAST_IMAGES} images to train on, and split "
            f"'train' of {name} has {found.splits.get('train', 0)}: add images, or take TF-GAN's "
            "Inception (python data_prep/inception.py)."
        )
    size = size_for(found)
    train_split, held_out = splits_of(found)
    images = ImageDataset(
        name=name,
        data_dir=data_dir,
        image_size=min(size, found.side or size),
        num_classes=found.num_classes,
        train_split=train_split,
        reference_split=held_out,
        flip=True,
    )
    return images, size


def _found(folder, images):
    about = features.about_of(folder)
    if "task" not in about:
        raise ValueError(
            f"{folder} isn't a network of this kind (its {features.TRAINED_ON} doesn't say what it "
            "was trained to tell): move it away."
        )
    content = images.content(images.train_split)
    if (about["dataset"], about["content"]) != (images.name, content):
        raise ValueError(
            f"{folder} was trained on other images than those that {images.name} holds now. Its "
            "numbers belong to those: move it away to have one trained on these."
        )
    return Built(folder, about, False)


def _build(folder, images, *, size, steps, progress):
    turns = images.num_classes == 1
    count = images.num_examples(images.train_split)
    batch_size = min(_BATCH_SIZE, count)
    per_step = max(1, batch_size // 4) if turns else batch_size

    def examples(batch):
        pictures, labels = batch["image"], batch["label"]
        if images.image_size != size:
            pictures = tf.image.resize(pictures, [size, size])
        return _turned(pictures) if turns else (pictures, labels)

    steps = steps or min(max(600, 40 * count // per_step), 6000)
    model = fit(
        lambda: classifier(size, 4 if turns else images.num_classes),
        images.train_batches(batch_size=per_step, seed=0).map(examples),
        epochs=min(20, steps),
        steps_per_epoch=-(-steps // min(20, steps)),
        progress=progress,
    )
    _, accuracy = model.evaluate(
        images.reference_batches(batch_size=per_step).map(examples), verbose=0
    )
    held_out = images.reference_split
    about = {
        "dataset": images.name,
        "version": images.version,
        "content": images.content(images.train_split),
        "task": TURNS if turns else CLASSES,
        "size": size,
        "images": count,
        "held_out": images.num_examples(held_out),
        "accuracy": float(accuracy),
        "chance": 0.25 if turns else _commonest(images, held_out),
    }
    save(model, folder, size=size, trained_on=about)
    return Built(folder, about, True)


def _turned(images):
    """Images [N, S, S, 3] by 0 to 3 quarters of a turn, [4N, S, S, 3], and by how many, [4N]."""
    turned = [tf.image.rot90(images, k) for k in range(4)]
    return tf.concat(turned, axis=0), tf.repeat(tf.range(4), tf.shape(images)[0])


def _commonest(images, split):
    """The share of the class that a split has most of."""
    labels = list(images.label_batches(split=split, batch_size=10_000).as_numpy_iterator())
    return float(np.bincount(np.concatenate(labels)).max() / images.num_examples(split))


def in_words(about: dict[str, Any]) -> str:
    """What is known of a network, in sentences; a warning among them where it tells little."""
    task = f"{about['task']} told" if about["task"] == CLASSES else "quarter turns of images told"
    text = (
        f"a network trained on {about['images']:,} images of {about['dataset']}: {task} right for "
        f"{about['accuracy']:.1%} of {about['held_out']:,} held-out images (guessing: "
        f"{about['chance']:.1%}). Its FID is comparable with no other network's."
    )
    if about["task"] == TURNS:
        text += (
            "\nNOTE: With one class there is nothing to tell but turns, so Inception Scores by it "
            "mean nothing; if you can sort the images into two classes or more, do."
        )
    if is_poor(about):
        text += (
            "\nWARNING: That is poor, so its features see little of these images, and FIDs by it "
            "mean little: look at the samples, add images, or take TF-GAN's Inception (python "
            "data_prep/inception.py)."
        )
    return text


def is_poor(about: dict[str, Any]) -> bool:
    """Whether a network is less than half way from guessing to knowing."""
    return about["accuracy"] < (1 + about["chance"]) / 2
