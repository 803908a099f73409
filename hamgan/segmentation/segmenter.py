"""Whole segmentation networks: a backbone, a head, and an auxiliary head for training."""

from typing import NamedTuple

import keras
import tensorflow as tf

from hamgan import stateless
from hamgan.segmentation import heads, resizing, resnet


class Segmentation(NamedTuple):
    """What a segmentation network gives.

    Attributes:
      logits: [B, h, w, num_classes] at the head's resolution; `Segmenter.enlarged` brings them to
        the image's.
      auxiliary: the same of the auxiliary head in training, else None.
      features: {name: [B, h, w, C]}: 'layer1' to 'layer4' of the backbone, then the head's parts;
        'squeeze' and 'hamburger' are before and after the Hamburger.
      hams: {name: `decomposition.Factors`}, see `context.Hamburger.call`.
    """

    logits: tf.Tensor
    auxiliary: tf.Tensor | None
    features: dict
    hams: dict


class Segmenter(keras.Model):
    """Images [B, H, W, 3], normalised -> `Segmentation`. Any H and W, also from call to call.

    Args:
      num_classes: classes, without the ignored one.
      backbone: constructor, of `resnet` or `van`.
      head: constructor of a `heads.Head`, called with num_classes.
      auxiliary: constructor of the auxiliary head, called with num_classes; None: none.
      align_corners: how logits are enlarged: True in HamNet, False in MMSegmentation.

    Raises:
      ValueError: num_classes isn't positive.
    """

    def __init__(
        self,
        *,
        num_classes=21,
        backbone=resnet.ResNet,
        head=heads.HamNetHead,
        auxiliary=None,
        align_corners=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"Segmenter: num_classes must be at least 1, got {num_classes}.")
        self.num_classes = num_classes
        self.align_corners = align_corners
        policy = dict(dtype=self.dtype_policy)
        self.backbone = backbone(name="backbone", **policy)
        self.backbone.build((None, None, None, 3))
        shapes = [(None, None, None, channels) for channels in self.backbone.channels]
        self.head = head(num_classes=num_classes, name="head", **policy)
        self.head.build(shapes)
        self.auxiliary = None
        if auxiliary is not None:
            self.auxiliary = auxiliary(num_classes=num_classes, name="auxiliary", **policy)
            self.auxiliary.build(shapes)
        self.built = True

    def call(self, images, training=False, keys=None, *, initial=None):
        """Args:
        images: [B, H, W, 3].
        training: whether norms, bases, dropout and drop path are those of training.
        keys: int32 [B, 2], from which all random numbers of an example follow; None: fresh ones.
        initial: as in `context.Hamburger.call`: initial bases in place of drawn ones.
        """
        if keys is None:
            keys = stateless.fresh_keys(tf.shape(images)[0])
        features = self.backbone(images, training=training, keys=keys)
        logits, parts, hams = self.head(features, training=training, keys=keys, initial=initial)
        auxiliary = None
        if self.auxiliary is not None and training:
            auxiliary = self.auxiliary(features, training=training, keys=keys)
        named = {f"layer{index + 1}": x for index, x in enumerate(features)}
        return Segmentation(logits, auxiliary, {**named, **parts}, hams)

    def enlarged(self, logits, size):
        """Logits [B, h, w, C] at (height, width) `size`, as the published system enlarges them."""
        return resizing.bilinear(logits, size, align_corners=self.align_corners)
