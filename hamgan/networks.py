"""The generator and the projection discriminator of SAGAN with spectral normalisation in both, and
a context module.

Zhang et al. 2019 (SAGAN); Miyato and Koyama 2018 (projection); Geng et al. 2021 (the Hamburger at
32x32).

The published nets are those of image size 128. Other sizes keep its width at each resolution: a
generator block that ends at resolution r has 16 w * 8 / r channels, a discriminator block 16 w * 4
/ r, and never fewer than w.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from hamgan import arguments, convolutions, parts
from hamgan import context as contexts
from hamgan.normalization import BatchNorm
from hamgan.parts import registered
from hamgan.spectral import (
    SpectralConv2D,
    SpectralDense,
    SpectralDownConv2D,
    SpectralEmbedding,
    SpectralUpConv2D,
)

IMAGE_SIZES = (32, 64, 128, 256)


def _check_image_size(image_size):
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size must be one of {IMAGE_SIZES}, got {image_size}.")


class ContextPass(NamedTuple):
    """A forward pass through a network's context module.

    Attributes:
      before, after: [B, H, W, C], its input and output.
      hams: {name: `decomposition.Factors`}, see `context.Hamburger.call`; empty for other modules.
    """

    before: tf.Tensor
    after: tf.Tensor
    hams: dict


def _mix(module, x, labels, training, keys, initial):
    """x [B, H, W, C] through a context module, a `ContextPass`."""
    if not hasattr(module, "hams"):
        return ContextPass(x, module(x, labels, training=training, keys=keys), {})
    y, hams = module(x, labels, training=training, keys=keys, initial=initial, return_hams=True)
    return ContextPass(x, y, hams)


def _constructor(context, kind):
    return None if context is None else parts.resolve(context, f"{kind}: context")


def _name_of_context(network):
    if network.context is None:
        return None
    kind = type(network).__name__
    return parts.name_of(
        network.context_constructor, f"{kind}: context", network.context, given=("num_classes",)
    )


def _of_network(network):
    """What every Keras model has in its configuration."""
    return {
        "name": network.name,
        "trainable": network.trainable,
        "dtype": keras.saving.serialize_keras_object(network.dtype_policy),
    }


@registered
class UpBlock(keras.layers.Layer):
    """Residual block of the generator, [B, H, W, C] -> [B, 2H, 2W, filters]."""

    def __init__(self, filters, *, num_classes, norm=BatchNorm, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_classes = num_classes
        self.norm = norm = parts.resolve(norm, "UpBlock: norm")
        policy = dict(dtype=self.dtype_policy)
        self.norm_1 = norm(num_classes=num_classes, name="norm_1", **policy)
        self.conv_1 = SpectralUpConv2D(filters, name="conv_1", **policy)
        self.norm_2 = norm(num_classes=num_classes, name="norm_2", **policy)
        self.conv_2 = SpectralConv2D(filters, 3, name="conv_2", **policy)
        self.shortcut = SpectralConv2D(filters, 1, name="shortcut", **policy)

    def build(self, input_shape):
        size = 2 * input_shape[1]
        inner = (None, size, size, self.filters)
        self.norm_1.build(input_shape)
        self.conv_1.build(input_shape)
        self.norm_2.build(inner)
        self.conv_2.build(inner)
        self.shortcut.build(input_shape)

    def call(self, x, labels, training=False):
        y = tf.nn.relu(self.norm_1(x, labels, training=training))
        y = self.conv_1(y, training=training)
        y = tf.nn.relu(self.norm_2(y, labels, training=training))
        y = self.conv_2(y, training=training)
        # A 1x1 convolution commutes with nearest upsampling: the same values for a quarter of the
        # work.
        shortcut = self.shortcut(x, training=training)
        return y + convolutions.upsample(shortcut)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "num_classes": self.num_classes,
            "norm": parts.name_of(self.norm, "UpBlock: norm", self.norm_1, given=("num_classes",)),
        }


@registered
class DownBlock(keras.layers.Layer):
    """Residual block of the discriminator, [B, H, W, C] -> [B, H/2, W/2, filters] (or [B, H, W, C]
    without `down`).

    Args:
      filters: output channels.
      down: halve the resolution; without it the shortcut is the identity and `filters` must equal
        C.
      first: the block sees the image itself: no ReLU before its first convolution.
    """

    def __init__(self, filters, *, down=True, first=False, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.down = down
        self.first = first
        policy = dict(dtype=self.dtype_policy)
        self.conv_1 = SpectralConv2D(filters, 3, name="conv_1", **policy)
        if down:
            self.conv_2 = SpectralDownConv2D(filters, name="conv_2", **policy)
            self.shortcut = SpectralConv2D(filters, 1, name="shortcut", **policy)
        else:
            self.conv_2 = SpectralConv2D(filters, 3, name="conv_2", **policy)

    def build(self, input_shape):
        if not self.down and input_shape[-1] != self.filters:
            raise ValueError(
                f"{self.name}: an identity shortcut needs filters = input channels, "
                f"got {self.filters} and {input_shape[-1]}."
            )
        self.conv_1.build(input_shape)
        self.conv_2.build((*input_shape[:-1], self.filters))
        if self.down:
            self.shortcut.build(input_shape)

    def call(self, x, training=False):
        y = x if self.first else tf.nn.relu(x)
        y = tf.nn.relu(self.conv_1(y, training=training))
        y = self.conv_2(y, training=training)
        if not self.down:
            return x + y
        # Pooling and a 1x1 convolution commute: the same values for a quarter of the work.
        return y + self.shortcut(tf.nn.avg_pool2d(x, 2, 2, "VALID"), training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "down": self.down,
            "first": self.first,
        }


_SIZES = dict(
    image_size=arguments.one_of(*IMAGE_SIZES),
    num_classes=arguments.whole(1),
    width=arguments.whole(1),
    context=arguments.optional(arguments.constructor("@context.Hamburger", of=keras.layers.Layer)),
    context_resolution=arguments.optional(arguments.one_of(256, 128, 64, 32, 16, 8, 4)),
)


@arguments.take(
    **_SIZES,
    latent_dim=arguments.whole(1),
    norm=arguments.constructor("@normalization.BatchNorm", of=keras.layers.Layer),
)
@registered
class Generator(keras.Model):
    """z [B, latent_dim], labels int [B] -> images [B, image_size, image_size, 3] in [-1, 1].

    Args:
      image_size: 32, 64, 128 or 256.
      num_classes: number of classes.
      width: w, the base number of channels (64 in the paper).
      latent_dim: length of z.
      norm: constructor of the batch norm.
      context: constructor of a context module (`hamgan.context`), None for none.
      context_resolution: the module follows the block that ends at this resolution.
    """

    def __init__(
        self,
        *,
        image_size=128,
        num_classes=1000,
        width=64,
        latent_dim=128,
        norm=BatchNorm,
        context=contexts.Hamburger,
        context_resolution=32,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_image_size(image_size)
        num_classes, width, latent_dim = arguments.check(
            "Generator",
            self.ARGUMENTS,
            num_classes=num_classes,
            width=width,
            latent_dim=latent_dim,
        ).values()
        self.image_size = image_size
        self.num_classes = num_classes
        self.width = width
        self.latent_dim = latent_dim
        norm = self.norm_constructor = parts.resolve(norm, "Generator: norm")
        context = self.context_constructor = _constructor(context, "Generator")
        self.context_resolution = context_resolution
        policy = dict(dtype=self.dtype_policy)

        self.dense = SpectralDense(4 * 4 * 16 * width, name="dense", **policy)
        self.dense.build((None, latent_dim))
        shape = (None, 4, 4, 16 * width)
        self.blocks = []
        self.context = None
        self._context_index = None
        resolutions = [size for size in (8, 16, 32, 64, 128, 256) if size <= image_size]
        if context is not None and context_resolution not in resolutions:
            raise ValueError(
                f"Generator: context_resolution must be one of {resolutions}, where a block of a "
                f"{image_size}x{image_size} generator ends; got {context_resolution}."
            )
        for index, size in enumerate(resolutions):
            filters = max(16 * width * 8 // size, width)
            block = UpBlock(
                filters, num_classes=num_classes, norm=norm, name=f"block_{index + 1}", **policy
            )
            block.build(shape)
            self.blocks.append(block)
            shape = (None, size, size, block.filters)
            if context is not None and size == context_resolution:
                self._context_index = index
                self.context = context(num_classes=num_classes, name="context", **policy)
                self.context.build(shape)
        self.norm = norm(name="norm", **policy)
        self.norm.build(shape)
        # The last layer is float32 in any precision: nothing after it averages out what is rounded
        # there.
        self.to_rgb = SpectralConv2D(3, 3, name="to_rgb", dtype="float32")
        self.to_rgb.build(shape)
        self.built = True

    def call(self, z, labels, training=False, keys=None, *, initial=None, return_context=False):
        """The images, with `return_context` (images, `ContextPass` or None without a module).

        Args: z [B, latent_dim]; labels int [B]; keys int32 [B, 2] for the context module's initial
        bases; initial: in place of the module's own, see `context.Hamburger.call`.
        """
        seen = None
        x = self.dense(z, training=training)
        x = tf.reshape(x, [-1, 4, 4, 16 * self.width])
        for index, block in enumerate(self.blocks):
            x = block(x, labels, training=training)
            if index == self._context_index:
                seen = _mix(self.context, x, labels, training, keys, initial)
                x = seen.after
        x = tf.nn.relu(self.norm(x, training=training))
        images = tf.tanh(self.to_rgb(x, training=training))
        return (images, seen) if return_context else images

    def get_config(self):
        return {
            **_of_network(self),
            "image_size": self.image_size,
            "num_classes": self.num_classes,
            "width": self.width,
            "latent_dim": self.latent_dim,
            "norm": parts.name_of(
                self.norm_constructor, "Generator: norm", self.norm, given=("num_classes",)
            ),
            "context": _name_of_context(self),
            "context_resolution": self.context_resolution,
        }


@arguments.take(**_SIZES)
@registered
class Discriminator(keras.Model):
    """images [B, image_size, image_size, 3] in [-1, 1], labels int [B] -> logits [B, 1].

    The logit is a linear function of the features h (summed over the image) plus <h,
    embedding(label)>.

    Args:
      image_size: 32, 64, 128 or 256.
      num_classes: number of classes.
      width: w, the base number of channels (64 in the paper).
      context: constructor of a context module (`hamgan.context`), None for none.
      context_resolution: the module follows the block that ends at this resolution; None: 32, or 16
        for images of 32, where the first block ends at 16 already.
    """

    def __init__(
        self,
        *,
        image_size=128,
        num_classes=1000,
        width=64,
        context=contexts.Hamburger,
        context_resolution=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_image_size(image_size)
        num_classes, width = arguments.check(
            "Discriminator", self.ARGUMENTS, num_classes=num_classes, width=width
        ).values()
        self.image_size = image_size
        self.num_classes = num_classes
        self.width = width
        context = self.context_constructor = _constructor(context, "Discriminator")
        if context_resolution is None:
            context_resolution = min(32, image_size // 2)
        self.context_resolution = context_resolution
        policy = dict(dtype=self.dtype_policy)

        shape = (None, image_size, image_size, 3)
        self.blocks = []
        self.context = None
        self._context_index = None
        resolutions = [size for size in (128, 64, 32, 16, 8, 4) if size < image_size]
        if context is not None and context_resolution not in resolutions:
            raise ValueError(
                f"Discriminator: context_resolution must be one of {resolutions}, where a block of "
                "a "
                f"{image_size}x{image_size} discriminator ends; got {context_resolution}."
            )
        for index, size in enumerate(resolutions):
            block = DownBlock(
                max(16 * width * 4 // size, width),
                first=index == 0,
                name=f"block_{index + 1}",
                **policy,
            )
            block.build(shape)
            self.blocks.append(block)
            shape = (None, size, size, block.filters)
            if context is not None and size == context_resolution:
                self._context_index = index
                self.context = context(name="context", **policy)
                self.context.build(shape)
        last = DownBlock(16 * width, down=False, name=f"block_{len(resolutions) + 1}", **policy)
        last.build(shape)
        self.blocks.append(last)
        # The last layers are float32 in any precision: sums of 16 w terms of similar size, and
        # nothing averages after.
        self.dense = SpectralDense(1, name="dense", dtype="float32")
        self.dense.build((None, 16 * width))
        self.embedding = SpectralEmbedding(
            num_classes, 16 * width, name="embedding", dtype="float32"
        )
        self.embedding.build()
        self.built = True

    def call(
        self, images, labels, training=False, keys=None, *, initial=None, return_context=False
    ):
        """The logits, with `return_context` (logits, `ContextPass` or None without a module).

        Args: images [B, S, S, 3]; labels int [B]; keys and initial as in `Generator.call`.
        """
        x, seen = images, None
        for index, block in enumerate(self.blocks):
            x = block(x, training=training)
            if index == self._context_index:
                seen = _mix(self.context, x, None, training, keys, initial)
                x = seen.after
        h = tf.reduce_sum(tf.cast(tf.nn.relu(x), tf.float32), axis=[1, 2])  # [B, 16w]
        projection = tf.reduce_sum(
            h * self.embedding(labels, training=training), axis=1, keepdims=True
        )
        logits = self.dense(h, training=training) + projection
        return (logits, seen) if return_context else logits

    def get_config(self):
        return {
            **_of_network(self),
            "image_size": self.image_size,
            "num_classes": self.num_classes,
            "width": self.width,
            "context": _name_of_context(self),
            "context_resolution": self.context_resolution,
        }
