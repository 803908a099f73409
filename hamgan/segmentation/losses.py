"""Cross entropy as the published systems average it, and their auxiliary loss."""

import dataclasses

import tensorflow as tf

from hamgan.segmentation import resizing
from hamgan.segmentation.augmentation import IGNORED


def cross_entropy(logits, labels, *, ignored=IGNORED):
    """Mean cross entropy over **all** pixels of an image, in which ignored ones count as 0.

    So HamNet and MMSegmentation 0.21 average: not over the labelled pixels.

    Args:
      logits: floating point [B, H, W, C]; computed in float32 at least.
      labels: integers [B, H, W] in [0, C), or `ignored`.

    Returns:
      [B], whose mean is the published loss.
    """
    if logits.dtype in (tf.float16, tf.bfloat16):
        logits = tf.cast(logits, tf.float32)
    labels = tf.cast(labels, tf.int32)
    counts = labels != ignored
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counts, labels, 0), logits)
    return tf.reduce_mean(tf.where(counts, entropy, 0), axis=[1, 2])


def pixel_accuracy(logits, labels, *, ignored=IGNORED):
    """Share of the labelled pixels that are classified right, [] in 0..1; 0 without any.

    Args:
      logits: [B, H, W, C].
      labels: integers [B, H, W].
    """
    labels = tf.cast(labels, tf.int32)
    counts = labels != ignored
    right = counts & (tf.argmax(logits, axis=-1, output_type=tf.int32) == labels)
    return tf.math.divide_no_nan(
        tf.cast(tf.math.count_nonzero(right), tf.float32),
        tf.cast(tf.math.count_nonzero(counts), tf.float32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationLoss:
    """(logits, labels, auxiliary logits or None) -> {name: [B]}; what is minimised is their sum.

    Logits [B, h, w, C] of any size are enlarged to the labels' [B, H, W] first.

    Attributes:
      align_corners: of the enlargement: True in HamNet, False in MMSegmentation.
      auxiliary_weight: of the auxiliary head's loss.

    Raises:
      ValueError: auxiliary_weight is negative.
    """

    align_corners: bool = True
    auxiliary_weight: float = 0.4

    def __post_init__(self):
        if self.auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight must be at least 0, got {self.auxiliary_weight}.")

    def __call__(self, logits, labels, auxiliary_logits=None):
        losses = {"loss/decode": self._of(logits, labels)}
        if auxiliary_logits is not None:
            losses["loss/auxiliary"] = self.auxiliary_weight * self._of(auxiliary_logits, labels)
        return losses

    def _of(self, logits, labels):
        labels = tf.convert_to_tensor(labels)
        size = labels.shape[1:] if labels.shape[1:].is_fully_defined() else tf.shape(labels)[1:]
        if logits.dtype in (tf.float16, tf.bfloat16):
            logits = tf.cast(logits, tf.float32)
        return cross_entropy(
            resizing.bilinear(logits, size, align_corners=self.align_corners), labels
        )
