"""What tests run in processes of their own: a run that is small enough to be started thirty
times.
"""

import json
import os
import pathlib
import socket

import forked
import keras
import made
import tensorflow as tf

from hamgan import distribution, loop, normalization, spectral, trainer

ROOT = pathlib.Path(__file__).parent.parent
IMAGE_SIZE = 8


class Generator(keras.Model):
    """One layer, with what a run must carry on: spectral-norm vectors and batch-norm moments."""

    latent_dim, num_classes, context = 4, made.NUM_CLASSES, None

    def __init__(self):
        super().__init__()
        self.norm = normalization.BatchNorm(num_classes=self.num_classes, name="norm")
        self.norm.build((None, IMAGE_SIZE, IMAGE_SIZE, 3))
        self.dense = spectral.SpectralDense(IMAGE_SIZE**2 * 3, name="dense")
        self.dense.build((None, self.latent_dim))
        self.built = True

    def call(self, z, labels, training=False, keys=None):
        x = tf.reshape(self.dense(z, training=training), [-1, IMAGE_SIZE, IMAGE_SIZE, 3])
        return tf.tanh(self.norm(x, labels, training=training))


class Discriminator(keras.Model):
    num_classes, context = made.NUM_CLASSES, None

    def __init__(self):
        super().__init__()
        self.dense = spectral.SpectralDense(1, name="dense")
        self.dense.build((None, IMAGE_SIZE**2 * 3))
        self.built = True

    def call(self, images, labels, training=False, keys=None):
        return self.dense(tf.reshape(images, [-1, IMAGE_SIZE**2 * 3]), training=training)


def train(model_dir, num_steps, *, lost=None, **settings):
    """Trains until `num_steps`; writes into the file `lost` which of the other hosts was lost."""
    try:
        _train(model_dir, num_steps, **settings)
    except distribution.HostLost as error:
        if lost:
            pathlib.Path(lost).write_text(str(error))
        raise


def _train(model_dir, num_steps, *, devices=1, tf_config=None, save_every=1, epsilon=1e-8):
    """Trains on `devices` logical CPUs, or on the hosts of `tf_config`."""
    os.environ.pop("TF_CONFIG", None)
    if tf_config:
        os.environ["TF_CONFIG"] = json.dumps(tf_config)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    loop.train(
        trainer=trainer.Trainer(
            strategy=distribution.create_strategy("cpu"),
            generator=Generator,
            discriminator=Discriminator,
            batch_size=8,
            epsilon=epsilon,
            generator_learning_rate=0.01,
            discriminator_learning_rate=0.01,
        ),
        dataset=made.MadeDataset(image_size=IMAGE_SIZE),
        schedule=loop.Schedule(
            num_steps=num_steps,
            steps_per_loop=save_every,
            save_every=save_every,
            sample_every=10**9,
            max_to_keep=3,
        ),
        model_dir=str(model_dir),
        progress=False,
    )


def cluster():
    """TF_CONFIG of two workers on this machine."""
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.bind(("localhost", 0))
        workers = [f"localhost:{sock.getsockname()[1]}" for sock in (first, second)]
    return [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(2)
    ]


def nursery():
    """Context of start(*args, **kwargs) of a process that runs `train`: TensorFlow is imported once
    for all of them.
    """
    return forked.nursery(train)
