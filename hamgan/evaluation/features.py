"""Feature networks: any SavedModel or TF-Hub module with outputs `logits` and `pool_3`."""

import hashlib
import os

import tensorflow as tf
import tensorflow_hub as hub

from hamgan import tfgan

_OUTPUTS = ("logits", "pool_3")


class FeatureNetwork:
    """Images [B, S, S, 3] in [-1, 1] -> {'pool_3': [B, D], 'logits': [B, C]}, float32.

    Args:
      handle: folder of a SavedModel (local or gs://; '{data_dir}' stands for the run's data folder) or a TF-Hub handle.
        The default is TF-GAN's Inception network for photographs.
      size: side of the network's input in pixels; images are resized to it.
      data_dir: what '{data_dir}' in `handle` stands for.

    Raises:
      ValueError: the network can't be had, or lacks one of the two outputs.
    """

    def __init__(self, *, handle=tfgan.INCEPTION_TFHUB, size=299, data_dir=None):
        if "{data_dir}" in handle:
            handle = handle.replace("{data_dir}", os.path.expanduser(data_dir or ""))
        self.handle = handle
        self.size = size
        folder = _resolve(handle)
        self.digest = _digest(folder)
        self._module = tf.saved_model.load(folder)
        self._network = _network(self._module, handle)

    def __call__(self, images):
        return self.outputs(images)

    def outputs(self, images):
        """Features of images as they are; to be called in a `tf.function`, on any device."""
        if images.shape[1] != self.size or images.shape[2] != self.size:
            # The kernel of TF1 and of the published numbers. tf.image.resize samples at pixel centres instead.
            images = tf.compat.v1.image.resize_bilinear(
                images, [self.size, self.size], align_corners=False, half_pixel_centers=False
            )
        outputs = self._network(images)
        return {name: tf.cast(tf.reshape(outputs[name], [tf.shape(images)[0], -1]), tf.float32) for name in _OUTPUTS}

    def identity(self):
        """What a record says of the network."""
        return {"handle": self.handle, "digest": self.digest, "size": self.size}


def _resolve(handle):
    """The local folder of a SavedModel or a hub handle."""
    if handle.startswith(("https://", "http://")):
        try:
            return hub.resolve(handle)
        except Exception as error:  # the hub raises whatever its transport raises
            raise ValueError(
                f"The feature network {handle} can't be fetched: {error}\nThree ways to have it: run where the hub can "
                "be reached; point TFHUB_CACHE_DIR at a cache that holds it; or download the module elsewhere and name "
                "its folder with --gin_param=\"features.FeatureNetwork.handle = 'FOLDER'\"."
            ) from error
    if tf.io.gfile.exists(os.path.join(handle, "saved_model.pb")):
        return handle
    raise ValueError(
        f"No SavedModel at {handle!r} (there is no {os.path.join(handle, 'saved_model.pb')}). For the digits it is "
        "made by: python data_prep/digits_features.py --data_dir=DATA_DIR"
    )


def _digest(folder):
    """SHA-256 over a SavedModel's graph and weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    paths = [os.path.join(folder, "saved_model.pb"), *sorted(tf.io.gfile.glob(os.path.join(folder, "variables", "*")))]
    for path in paths:
        digest.update(os.path.basename(path).encode())
        with tf.io.gfile.GFile(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _network(module, handle):
    """A function images -> {output name: tensor}."""
    for signature in getattr(module, "signatures", {}).values():
        if set(_OUTPUTS) <= set(signature.structured_outputs):
            (argument,) = signature.structured_input_signature[1]
            return lambda images: signature(**{argument: images})
    if callable(module):
        return _checked(module, handle)
    found = {name: sorted(s.structured_outputs) for name, s in module.signatures.items()}
    raise ValueError(f"{handle} must have the outputs {_OUTPUTS}; its signatures have {found}.")


def _checked(module, handle):
    def network(images):
        outputs = module(images)
        if not isinstance(outputs, dict) or not set(_OUTPUTS) <= set(outputs):
            found = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
            raise ValueError(f"{handle} must have the outputs {_OUTPUTS}, got {found}.")
        return outputs

    return network
