"""Predictions for whole images: single-scale, and multi-scale with flip, as published.

Both systems add up passes over the image at several sizes and its mirror image, but not the same
numbers: HamNet raw logits, MMSegmentation probabilities. A network here is a function images
float32 [1, H, W, 3], normalised -> logits [1, h, w, C] of any size, called once per pass, in the
published order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hamgan.segmentation import augmentation, metrics, resizing

HAMNET_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
MMSEGMENTATION_RATIOS = HAMNET_SCALES

Network = Callable[[tf.Tensor], tf.Tensor]


def _check_image(image, factors, name):
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}.")
    if not len(factors) or min(factors) <= 0:
        raise ValueError(f"{name} must be positive numbers, at least one, got {tuple(factors)}.")


def _mirrored(x):
    return tf.reverse(x, axis=[2])


def hamnet_inputs(
    image: np.ndarray, *, scales: Sequence[float] = (1.0,), flip: bool = False, stride: int = 8
) -> Iterator[tuple[tf.Tensor, tuple[int, int], bool]]:
    """What HamNet's network sees of an image: all scales, then all scales of its mirror image.

    The normalised image is resized, corners aligned, to int(scale * h) x int(scale * w), and padded
    with 0, right and below, to stride * k + 1.

    Args:
      image: uint8 [h, w, 3], RGB.
      scales: published `HAMNET_SCALES`, or 1 alone.
      flip: pass over the mirror image too.
      stride: the network's output stride.

    Yields:
      (float32 [1, H, W, 3], (height, width) without padding, whether it is mirrored).

    Raises:
      ValueError: an image of another form, or scales that aren't positive.
    """
    image = np.asarray(image)
    _check_image(image, scales, "scales")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}.")
    height, width = image.shape[:2]
    x = tf.constant(image, tf.float32)[None] / 255
    x = resizing.normalize(x, mean=augmentation.MEAN, std=augmentation.STD)
    for mirrored in (False, True) if flip else (False,):
        whole = _mirrored(x) if mirrored else x
        for scale in scales:
            size = max(int(scale * height), 1), max(int(scale * width), 1)
            resized = whole
            if size != (height, width):
                resized = resizing.bilinear_on_host(whole, size, align_corners=True)
            missing = [resizing.padded_size(side, stride) - side for side in size]
            yield (
                tf.pad(resized, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]]),
                size,
                mirrored,
            )


def hamnet_logits(
    network: Network,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    stride: int = 8,
) -> np.ndarray:
    """The sum of HamNet's logits over all passes, float32 [h, w, C]; its argmax is the prediction.

    Logits are enlarged to the network's input, corners aligned, cut to the size without padding,
    and resized to the image's. Arguments and errors as `hamnet_inputs`, with whose other defaults
    this is the single-scale test.
    """
    total = 0.0
    for x, (height, width), mirrored in hamnet_inputs(
        image, scales=scales, flip=flip, stride=stride
    ):
        logits = _resized(network(x), x.shape[1:3], align_corners=True)[:, :height, :width]
        logits = _resized(logits, image.shape[:2], align_corners=True)
        total += (_mirrored(logits) if mirrored else logits)[0].numpy()
    return total


def _resized(logits, size, *, align_corners):
    if tuple(logits.shape[1:3]) == tuple(size):
        return logits
    return resizing.bilinear_on_host(logits, size, align_corners=align_corners)


def mmsegmentation_images(
    image: np.ndarray,
    *,
    base_size: tuple[int, int] = (2048, 512),
    ratios: Sequence[float] = (1.0,),
    divisor: int | None = None,
) -> Iterator[np.ndarray]:
    """An image in the sizes that MMSegmentation tests it at, uint8 [H, W, 3] each.

    It is resized to fit into int(base_size * ratio) with its proportions kept, and then, with a
    divisor, its sides up to multiples of it; both times by OpenCV's bilinear in 8 bits.

    Args:
      image: uint8 [h, w, 3].
      base_size: (2048, 512) for ADE20K.
      ratios: published `MMSEGMENTATION_RATIOS`, or 1 alone.
      divisor: 32 for Light-Ham; None: no second resizing.

    Raises:
      ValueError: an image of another form, ratios that aren't positive, divisor below 1.
    """
    image = np.asarray(image)
    _check_image(image, ratios, "ratios")
    if divisor is not None and divisor < 1:
        raise ValueError(f"divisor must be None or at least 1, got {divisor}.")
    for ratio in ratios:
        box = [int(side * ratio) for side in base_size]
        size = np.maximum(resizing.size_within(image.shape[:2], max(box), min(box)), 1)
        resized = resizing.opencv_bilinear(image, size)
        if divisor is not None:
            resized = resizing.opencv_bilinear(resized, resizing.multiple_size(size, divisor))
        yield resized.numpy()


def mmsegmentation_probabilities(
    network: Network,
    image: np.ndarray,
    *,
    base_size: tuple[int, int] = (2048, 512),
    ratios: Sequence[float] = (1.0,),
    flip: bool = False,
    divisor: int | None = None,
) -> np.ndarray:
    """The mean of MMSegmentation's probabilities over all passes, float32 [h, w, C].

    Each size is passed plain and mirrored. Logits are enlarged to the network's input, then resized
    to the image's size, both with corners not aligned; softmax; mirrored back. Arguments and errors
    as `mmsegmentation_images`; image in RGB.
    """
    total, passes = 0.0, 0
    for resized in mmsegmentation_images(
        image, base_size=base_size, ratios=ratios, divisor=divisor
    ):
        x = resizing.normalize(
            tf.constant(resized)[None], mean=augmentation.MEAN_255, std=augmentation.STD_255
        )
        for mirrored in (False, True) if flip else (False,):
            logits = network(_mirrored(x) if mirrored else x)
            logits = _resized(logits, x.shape[1:3], align_corners=False)
            logits = _resized(logits, image.shape[:2], align_corners=False)
            probabilities = tf.nn.softmax(logits)
            total += (_mirrored(probabilities) if mirrored else probabilities)[0].numpy()
            passes += 1
    return total / passes


def count(
    predict: Callable[[np.ndarray], np.ndarray],
    examples: Iterable[Mapping[str, np.ndarray]],
    *,
    num_classes: int,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> np.ndarray:
    """The table of true and predicted classes over a split, for `metrics.scores`.

    Args:
      predict: image uint8 [h, w, 3] -> scores [h, w, C], whose argmax is the prediction:
        `hamnet_logits` or `mmsegmentation_probabilities` of a network.
      examples: {'image', 'label' uint8 [h, w]} each, as
        `data.SegmentationDataset.test_examples` gives them; of several hosts, the tables are added.
      num_classes: C.
      progress: draws a bar around the loop.

    Returns:
      int64 [C, C].
    """
    table = np.zeros([num_classes, num_classes], np.int64)
    for example in progress(examples) if progress else examples:
        predicted = np.argmax(predict(np.asarray(example["image"])), axis=-1)
        table += metrics.confusion(np.asarray(example["label"]), predicted, num_classes)
    return table
