"""hamgan.segmentation.resizing against recordings of PyTorch and OpenCV, and a NumPy reference."""

import re

import numpy as np
import pytest
import segmentation_golden
import tensorflow as tf

from hamgan.segmentation import augmentation, resizing


def resampled(x, size, align_corners):
    """[B, h, w, C] at `size`, float64, by the definition: each output is a mean of four pixels."""
    for axis, after in ((1, size[0]), (2, size[1])):
        before = x.shape[axis]
        if align_corners:
            place = np.arange(after) * ((before - 1) / max(after - 1, 1))
        else:
            place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, None)
        weights = np.maximum(0, 1 - abs(np.minimum(place, before - 1)[:, None] - np.arange(before)))
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(13, 5), (7, 9), (1, 1), (20, 31)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_bilinear(size, align_corners, dtype):
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 3))
    y = resizing.bilinear(tf.constant(x, dtype), size, align_corners=align_corners)
    assert y.dtype == dtype
    expected = resampled(x, size, align_corners)
    tolerance = {"bfloat16": 0.02, "float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(tf.cast(y, tf.float64), expected, atol=tolerance)
    y = resizing.bilinear_on_host(tf.constant(x, dtype), size, align_corners=align_corners)
    assert y.dtype == tf.float32
    np.testing.assert_allclose(y, expected, atol=max(tolerance, 1e-5))


@pytest.mark.parametrize("align_corners", [True, False])
def test_bilinear_of_sizes_that_are_known_late(align_corners):
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 3))

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.float64)]
        + [tf.TensorSpec([2], tf.int32)]
    )
    def resize(x, size):
        return resizing.bilinear(x, size, align_corners=align_corners)

    np.testing.assert_allclose(resize(x, (20, 4)), resampled(x, (20, 4), align_corners), atol=1e-12)


def scales(recording):
    return [key[6:-6] for key in recording if re.fullmatch(r"scale_[^/]+/image", key)]


def test_published_scaling():
    recording = segmentation_golden.load("pipeline")
    image = segmentation_golden.channels_last(recording["image"])
    label = recording["label"][0, 0].astype(np.int32)
    assert scales(recording)
    for factor in scales(recording):
        expected = segmentation_golden.channels_last(recording[f"scale_{factor}/image"])
        scaled, scaled_label = augmentation.scale(tf.constant(image[0]), label, float(factor))
        np.testing.assert_allclose(scaled, expected[0], atol=1e-5)
        np.testing.assert_array_equal(
            scaled_label, recording[f"scale_{factor}/label_torch14"][0, 0]
        )
        exact = resizing.bilinear(
            tf.constant(image, tf.float64), expected.shape[1:3], align_corners=True
        )
        np.testing.assert_allclose(exact, expected, atol=1e-6)
        today = resizing.nearest(label, expected.shape[1:3], scale=float(factor))
        np.testing.assert_array_equal(today, recording[f"scale_{factor}/label"][0, 0])


def test_published_padding():
    recording = segmentation_golden.load("pipeline")
    image = segmentation_golden.channels_last(recording["image"])[0]
    label = recording["label"][0, 0].astype(np.int32)
    found = [re.fullmatch(r"pad(_inf)?(\d+)/image", key) for key in recording]
    for match in filter(None, found):
        number = int(match[2])
        size = (number, number)
        if match[1]:
            size = resizing.padded_size(np.array(label.shape), number)
        padded, padded_label = resizing.pad(image, label, size)
        expected = segmentation_golden.channels_last(recording[match[0]])[0]
        np.testing.assert_array_equal(padded, expected)
        np.testing.assert_array_equal(
            padded_label, recording[match[0].replace("image", "label")][0, 0]
        )
    assert any(found)


@pytest.mark.parametrize(
    "size, stride, padded", [(1, 8, 1), (2, 8, 9), (9, 8, 9), (513, 8, 513), (514, 16, 529)]
)
def test_padded_size(size, stride, padded):
    assert resizing.padded_size(size, stride) == padded


def test_multiple_size():
    np.testing.assert_array_equal(resizing.multiple_size(np.array([1, 32, 33]), 32), [32, 32, 64])


def opencv(image, size):
    """cv2.resize with INTER_LINEAR, pixel by pixel in integers, as its source says."""

    def taps(before, after, clamp):
        for i in range(after):
            place = np.float32((i + 0.5) * (1 / (after / before)) - 0.5)
            low = int(np.floor(place))
            share = place - np.float32(low)
            if clamp and not 0 <= low < before - 1:
                share = np.float32(0)
            a, b = (int(np.rint(w * np.float32(2048))) for w in (np.float32(1) - share, share))
            yield min(max(low, 0), before - 1), min(max(low + 1, 0), before - 1), a, b

    x = image.astype(int)
    x = np.stack(
        [x[:, i] * a + x[:, j] * b for i, j, a, b in taps(image.shape[1], size[1], True)], axis=1
    )
    rows = taps(image.shape[0], size[0], False)
    x = [((x[i] // 16 * a) // 65536 + (x[j] // 16 * b) // 65536 + 2) // 4 for i, j, a, b in rows]
    return np.stack(x)


@pytest.mark.parametrize("size", [(3, 4), (40, 90), (45, 70), (128, 192), (17, 200), (1, 1)])
def test_opencv_bilinear(size):
    image = np.random.default_rng(1).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    y = resizing.opencv_bilinear(image, size)
    assert y.dtype == tf.uint8
    np.testing.assert_array_equal(y, opencv(image, size))
    exact = resampled(image[None].astype(float), size, align_corners=False)[0]
    assert abs(y.numpy() - exact).max() <= 1


def test_opencv_bilinear_of_a_window():
    image = np.random.default_rng(1).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    whole = opencv(image, (60, 100))
    for y, x in ((0, 0), (31, 17), (50, 80)):
        window = resizing.opencv_bilinear(image, (60, 100), window=(tf.constant([y, x]), 20))
        np.testing.assert_array_equal(window, whole[y : y + 20, x : x + 20])


def test_opencv_nearest():
    # Places in float64, not exact division: of the last pair some samples differ.
    for before, after in ((15, 10), (10, 15), (7, 3), (500, 375), (49, 1), (3, 147)):
        label = np.arange(before)[:, None]
        step = 1 / (after / before)
        expected = [min(int(np.floor(i * step)), before - 1) for i in range(after)]
        np.testing.assert_array_equal(resizing.opencv_nearest(label, (after, 1))[:, 0], expected)


@pytest.mark.parametrize(
    "size, box, expected",
    [
        ((45, 70), (128, 32), (32, 50)),
        ((70, 45), (128, 32), (50, 32)),
        ((10, 100), (50, 20), (5, 50)),
    ],
)
def test_size_within(size, box, expected):
    np.testing.assert_array_equal(resizing.size_within(size, *box), expected)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(13, 25), (33, 20), (49, 65)])
def test_compiled_and_differentiated(align_corners, size):
    """Eager and by XLA, values and gradients in float32 agree with those in float64."""
    rng = np.random.default_rng(2)
    x, upstream = rng.normal(size=(2, 7, 9, 3)), rng.normal(size=(2, *size, 3))

    def gradient(dtype, **options):
        @tf.function(**options)
        def compute(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = resizing.bilinear(x, size, align_corners=align_corners)
                loss = tf.reduce_sum(y * tf.constant(upstream, dtype))
            return y, tape.gradient(loss, x)

        return compute(tf.constant(x, dtype))

    expected = gradient("float64")
    for options in ({}, {"jit_compile": True}):
        for got, exact in zip(gradient("float32", **options), expected, strict=True):
            np.testing.assert_allclose(got, exact, atol=2e-5)
