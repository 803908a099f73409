"""Heads: features of a backbone -> logits, with a Hamburger between.

HamNet's (Geng et al. 2021), HamHead and LightHamHead of MMSegmentation, and the auxiliary head of a
fully convolutional network (FCN; Long et al. 2015).

A head is called with the backbone's list of features, and returns a `HeadPass`.
"""

import functools
from typing import NamedTuple

import keras
import tensorflow as tf

from hamgan import decomposition, stateless
from hamgan.segmentation import layers
from hamgan.segmentation.hamburger import Hamburger, HamburgerV2
from hamgan.segmentation.layers import BatchNorm, Conv2D, ConvNorm, GroupNorm
from hamgan.segmentation.resizing import bilinear


class HeadPass(NamedTuple):
    """What a head gives.

    Attributes:
      logits: [B, h, w, num_classes].
      features: {name: [B, h, w, C]} of its parts, in order: 'squeeze', 'hamburger', 'align', ...
      hams: {name: `decomposition.Factors`}, see `context.Hamburger.call`.
    """

    logits: tf.Tensor
    features: dict
    hams: dict


# The Hamburger of MMSegmentation's heads.
group_hamburger = functools.partial(Hamburger, norm=GroupNorm, solve=decomposition.unrolled)


class Head(keras.layers.Layer):
    """Squeeze (convolution, norm, ReLU), Hamburger, align (convolution, norm, ReLU), channel
    dropout, 1x1 classifier. The defaults are those of MMSegmentation's HamHead.

    Args:
      num_classes: channels of the logits.
      stages: features that are taken, counted from 1; all are brought to the first one's height
        and width (bilinear) and concatenated.
      channels: of the squeeze, and so of the Hamburger.
      align_channels: of what the classifier sees.
      kernel_size: of squeeze and align.
      concat_input: whether a last 3x3 convolution, norm and ReLU sees the features beside what
        align gives.
      hamburger: constructor of the Hamburger; None: the head without.
      norm: constructor of the norm.
      dropout: rate of channel dropout.
      kernel_initializer: function of `layers`, of squeeze and align.
      classifier_initializer, classifier_bias_initializer: the same of the classifier.

    Raises:
      ValueError: a size isn't positive, or the rate isn't in [0, 1).
    """

    def __init__(
        self,
        *,
        num_classes=150,
        stages=(4,),
        channels=512,
        align_channels=512,
        kernel_size=3,
        concat_input=True,
        hamburger=group_hamburger,
        norm=GroupNorm,
        dropout=0.1,
        kernel_initializer=layers.fan_out_normal,
        classifier_initializer=layers.small_normal,
        classifier_bias_initializer=layers.zeros,
        **kwargs,
    ):
        super().__init__(**kwargs)
        kind = type(self).__name__
        sizes = dict(num_classes=num_classes, channels=channels, align_channels=align_channels)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{kind}: {name} must be at least 1, got {value}.")
        layers.check_rate(kind, dropout=dropout)
        self.stages = tuple(stages)
        self.dropout = dropout
        policy = dict(dtype=self.dtype_policy)
        conv = functools.partial(
            ConvNorm, norm=norm, kernel_initializer=kernel_initializer, **policy
        )
        self.squeeze = conv(channels, kernel_size, name="squeeze")
        self.hamburger = hamburger(name="hamburger", **policy) if hamburger else None
        self.align = conv(align_channels, kernel_size, name="align")
        self.concat = conv(align_channels, 3, name="concat") if concat_input else None
        self.classifier = Conv2D(
            num_classes,
            1,
            use_bias=True,
            kernel_initializer=classifier_initializer,
            bias_initializer=classifier_bias_initializer,
            name="classifier",
            **policy,
        )

    def build(self, input_shape):
        taken = [input_shape[stage - 1] for stage in self.stages]
        shape = (*taken[0][:-1], sum(each[-1] for each in taken))
        squeezed = (*shape[:-1], self.squeeze.conv.filters)
        aligned = (*shape[:-1], self.align.conv.filters)
        self.squeeze.build(shape)
        if self.hamburger is not None:
            self.hamburger.build(squeezed)
        self.align.build(squeezed)
        if self.concat is not None:
            self.concat.build((*shape[:-1], shape[-1] + aligned[-1]))
        self.classifier.build(aligned)

    def call(self, features, training=False, keys=None, *, initial=None):
        """Args:
        features: list of [B, h, w, C].
        training: whether norms, bases and dropout are those of training.
        keys: int32 [B, 2] of bases and dropout; None: fresh ones.
        initial: as in `context.Hamburger.call`.
        """
        x = self._taken(features)
        if keys is None:
            keys = stateless.fresh_keys(tf.shape(x)[0])
        found, hams = {"squeeze": self.squeeze(x, training=training)}, {}
        y = found["squeeze"]
        if self.hamburger is not None:
            y, hams = self.hamburger(
                y, training=training, keys=keys, initial=initial, return_hams=True
            )
            found["hamburger"] = y
        y = found["align"] = self.align(y, training=training)
        if self.concat is not None:
            y = found["concat"] = self.concat(tf.concat([x, y], axis=-1), training=training)
        if training and self.dropout:
            y = layers.drop_channels(y, stateless.fold_each(keys, layers.DROPOUT), self.dropout)
        return HeadPass(self.classifier(y), found, hams)

    def _taken(self, features):
        first, *others = (features[stage - 1] for stage in self.stages)
        size = tf.shape(first)[1:3] if None in first.shape[1:3] else first.shape[1:3]
        resized = [bilinear(other, size, align_corners=False) for other in others]
        for each in resized:
            each.set_shape([None, *first.shape[1:3], None])
        return tf.concat([first, *resized], axis=-1) if resized else first


class HamHead(Head):
    """MMSegmentation's HamHead: as HamNet's with V1, group norm throughout, all updates
    differentiated, and the features once more beside the result.

    Arguments and defaults as of `Head`.
    """


class LightHamHead(HamHead):
    """Light-Ham's: the features of stages 2 to 4 at stage 2's size, 1x1 convolutions.

    Arguments as of `Head`.
    """

    def __init__(
        self,
        *,
        stages=(2, 3, 4),
        channels=256,
        align_channels=256,
        kernel_size=1,
        concat_input=False,
        **kwargs,
    ):
        super().__init__(
            stages=stages,
            channels=channels,
            align_channels=align_channels,
            kernel_size=kernel_size,
            concat_input=concat_input,
            **kwargs,
        )


class HamNetHead(Head):
    """HamNet's: 3x3 squeeze of the last features, Hamburger, 3x3 align, batch norm throughout.

    Arguments as of `Head`. V2 is the version of the published VOC results.
    """

    def __init__(
        self,
        *,
        num_classes=21,
        align_channels=256,
        concat_input=False,
        hamburger=HamburgerV2,
        norm=BatchNorm,
        kernel_initializer=layers.fan_in_uniform,
        classifier_initializer=layers.fan_in_uniform,
        classifier_bias_initializer=layers.fan_in_uniform,
        **kwargs,
    ):
        super().__init__(
            num_classes=num_classes,
            align_channels=align_channels,
            concat_input=concat_input,
            hamburger=hamburger,
            norm=norm,
            kernel_initializer=kernel_initializer,
            classifier_initializer=classifier_initializer,
            classifier_bias_initializer=classifier_bias_initializer,
            **kwargs,
        )


class FCNHead(keras.layers.Layer):
    """Auxiliary head: 3x3 convolution, norm, ReLU, channel dropout, 1x1 classifier of one stage's
    features -> logits [B, h, w, num_classes].

    Args:
      num_classes: channels of the logits.
      stage: whose features are taken, counted from 1.
      channels: of the 3x3 convolution.
      norm: constructor of its norm.
      dropout: rate of channel dropout.
    """

    def __init__(
        self,
        *,
        num_classes=150,
        stage=3,
        channels=256,
        norm=GroupNorm,
        dropout=0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        layers.check_rate("FCNHead", dropout=dropout)
        self.stage = stage
        self.dropout = dropout
        self.conv = ConvNorm(channels, 3, norm=norm, name="conv", dtype=self.dtype_policy)
        self.classifier = Conv2D(
            num_classes,
            1,
            use_bias=True,
            kernel_initializer=layers.small_normal,
            name="classifier",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        shape = input_shape[self.stage - 1]
        self.conv.build(shape)
        self.classifier.build((*shape[:-1], self.conv.conv.filters))

    def call(self, features, training=False, keys=None):
        """Args: features list of [B, h, w, C]; keys int32 [B, 2] of dropout (None: fresh ones)."""
        x = self.conv(features[self.stage - 1], training=training)
        if training and self.dropout:
            if keys is None:
                keys = stateless.fresh_keys(tf.shape(x)[0])
            keys = stateless.fold_each(keys, layers.AUXILIARY_DROPOUT)
            x = layers.drop_channels(x, keys, self.dropout)
        return self.classifier(x)
