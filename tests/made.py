"""Small made things that several tests share."""

import functools
import zlib

import keras
import numpy as np
import tensorflow as tf

from hamgan import context, networks, normalization, trainer

IMAGE_SIZE = 32
NUM_CLASSES = 3
rank_2 = functools.partial(context.Hamburger, rank=2)


class MadeDataset:
    """The interface of `hamgan.data.ImageDataset` over random images in memory."""

    name = "made"
    version = "1.0.0"
    crop = "none"
    train_split = reference_split = "train"

    def __init__(self, *, image_size=IMAGE_SIZE, num_classes=NUM_CLASSES, count=64, data_dir=None):
        rng = np.random.default_rng(0)
        self.image_size = image_size
        self.num_classes = num_classes
        self.class_names = [f"class {c}" for c in range(num_classes)]
        self.images = rng.uniform(-1, 1, [count, image_size, image_size, 3]).astype(np.float32)
        self.labels = rng.integers(0, num_classes, count).astype(np.int32)

    def content(self, split):
        return f"records:{zlib.crc32(self.images.tobytes()):x}"

    def last_change(self, split):
        return 0.0

    def identity(self):
        return {"name": self.name, "version": self.version, "content": self.content("train")}

    def num_examples(self, split):
        return len(self.images)

    def train_batches(self, *, batch_size, seed, start_batch=0, shard_index=0, num_shards=1):
        whole = tf.data.Dataset.from_tensor_slices(
            {"image": self.images, "label": self.labels}
        ).repeat()
        return (
            whole.batch(batch_size, drop_remainder=True)
            .shard(num_shards, shard_index)
            .skip(start_batch)
        )

    def label_batches(self, *, batch_size, split):
        return tf.data.Dataset.from_tensor_slices(self.labels).batch(batch_size)

    def reference_batches(self, *, batch_size, split=None):
        return tf.data.Dataset.from_tensor_slices(
            {"image": self.images, "label": self.labels}
        ).batch(batch_size)


def small_generator(**kwargs):
    defaults = dict(
        image_size=IMAGE_SIZE, num_classes=NUM_CLASSES, width=1, latent_dim=8, context=rank_2
    )
    return networks.Generator(**{**defaults, **kwargs})


def small_discriminator(**kwargs):
    defaults = dict(image_size=IMAGE_SIZE, num_classes=NUM_CLASSES, width=1, context=rank_2)
    return networks.Discriminator(**{**defaults, **kwargs})


class Tiny(keras.Model):
    """The interface of a generator with little to compile: one batch norm, and images of 4x4
    patches.
    """

    latent_dim, num_classes = 8, NUM_CLASSES

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.dense = keras.layers.Dense(16 * width, name="dense")
        self.dense.build((None, 8))
        self.norm = normalization.BatchNorm(num_classes=NUM_CLASSES, name="norm")
        self.norm.build((None, 4, 4, width))
        self.to_rgb = keras.layers.Dense(3, name="to_rgb")
        self.to_rgb.build((None, 4, 4, width))
        self.built = True

    def call(self, z, labels, training=False, keys=None):
        x = self.norm(tf.reshape(self.dense(z), [-1, 4, 4, self.width]), labels, training=training)
        return tf.repeat(tf.repeat(tf.tanh(self.to_rgb(x)), 8, axis=1), 8, axis=2)


def small_trainer(strategy=None, **kwargs):
    defaults = dict(
        generator=small_generator, discriminator=small_discriminator, batch_size=8, seed=3
    )
    return trainer.Trainer(strategy=strategy or one_device(), **{**defaults, **kwargs})


def one_device():
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def open_gates(trainer):
    """Sets the gates away from 0, so that the ham takes part."""
    trainer.generator.context.gate.assign(0.7)
    trainer.discriminator.context.gate.assign(-0.4)


def values(trainer):
    """{name: array} of every variable of a trainer."""
    return {name: variable.numpy() for name, variable in trainer.variables().items()}
