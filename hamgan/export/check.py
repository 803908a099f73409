"""Whether an export gives the images of the network that it was made of."""

import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from hamgan.export import saved_model

# What a loaded file may differ by: other compilers round otherwise. A grey level is 0.0078.
TOLERANCE = 1e-3

# Runs where hamgan can't be imported.
_LOAD = """
import sys
sys.modules["hamgan"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
found = model.signatures["seed"](
    seed=tf.constant(given["seeds"]), label=tf.constant(given["labels"]),
    psi=tf.constant(1.0), truncation=tf.constant(float("inf")))
np.savez(sys.argv[3], **{name: value.numpy() for name, value in found.items()})
"""


def check_saved_model(path, sampler, count=4):
    """The largest difference between pixels of the SavedModel, loaded by a process that can't
    import hamgan, and of the sampler's generator.

    Raises:
      ValueError: it can't be loaded, or its images are others.
    """
    seeds = np.arange(count, dtype=np.int64)
    labels = seeds % sampler.generator.num_classes
    expected = np.concatenate([images for images, _ in sampler.numbered(seeds, labels)])
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, name) for name in ("given.npz", "found.npz"))
        np.savez(given, seeds=seeds, labels=labels)
        result = subprocess.run(
            # The child works elsewhere: it must not find hamgan in the working folder.
            [sys.executable, "-c", _LOAD, _whole(path), given, found],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        if result.returncode:
            raise ValueError(
                f"{path} can't be used without hamgan: {result.stderr.strip().splitlines()[-1]}"
            )
        return _compared(path, np.load(found)["pixels"], expected)


def _whole(path):
    return path if "://" in path else os.path.abspath(path)


def check_keras(path, network, inputs, labels, keys):
    """The largest difference between outputs of a Keras file, loaded again, and of its network.

    Args:
      path: the file.
      network: a `Generator` or `Discriminator`.
      inputs: [N, ...], noise or images.
      labels: [N].
      keys: [N, 2] of the initial bases.

    Raises:
      ValueError: it can't be loaded, or its outputs are others.
    """
    loaded = keras.models.load_model(path)
    expected, found = (
        np.asarray(of(inputs, labels, training=False, keys=keys)) for of in (network, loaded)
    )
    return _compared(path, found, expected)


def check_onnx(path, generator, *, seed=0, count=4):
    """As `check_saved_model`, of an ONNX graph by onnxruntime on the CPU; None where onnxruntime
    isn't installed.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    z = np.random.default_rng(0).normal(size=(count, generator.latent_dim)).astype(np.float32)
    labels = np.arange(count) % generator.num_classes
    keys = saved_model.keys_of_noise(seed, count)
    expected = generator(tf.constant(z), tf.constant(labels), training=False, keys=keys).numpy()
    with tf.io.gfile.GFile(path, "rb") as file:
        session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["pixels"], {"z": z, "label": labels})
    return _compared(path, found, expected)


def _compared(path, found, expected):
    difference = float(np.abs(found - expected).max())
    # Images are of a size of 1; logits of any.
    if not difference < TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ValueError(
            f"{path} gives other images than the network it was made of: pixels differ by up to "
            f"{difference:.3g}, {TOLERANCE:g} is allowed."
        )
    return difference
