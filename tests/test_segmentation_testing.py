"""Scores, whole-image tests and palettes of segmentation against recordings and NumPy."""

import io
import os
import tarfile

import numpy as np
import pytest
import segmentation_golden
import tensorflow as tf
from PIL import Image
from test_segmentation_resizing import opencv, resampled

from hamgan.segmentation import augmentation, metrics, palette, resizing, testing

# Scores.


def test_published_scores_of_hamnet():
    recording = segmentation_golden.load("pipeline")
    expected = recording["metric/hist"]
    true, predicted = recording["metric/true"], recording["metric/pred"]
    table = metrics.confusion(true, predicted, len(expected))
    np.testing.assert_array_equal(table, expected)
    parts = [metrics.confusion(*pair, len(expected)) for pair in zip(true, predicted, strict=True)]
    np.testing.assert_array_equal(sum(parts), expected)
    scores = metrics.scores(table)
    np.testing.assert_allclose(scores.iou, recording["metric/iou"], rtol=1e-12)
    np.testing.assert_allclose(
        [scores.pixel_accuracy, scores.mean_accuracy, scores.weighted_iou, scores.mean_iou],
        recording["metric/scores_pAcc_mAcc_fIoU_mIoU"],
        rtol=1e-12,
    )


def test_published_scores_of_mmsegmentation():
    recording = segmentation_golden.load("light_ham_aug")
    expected = recording["metric/iou"]
    label = metrics.without_first_class(recording["metric/label_raw"])
    table = metrics.confusion(label, recording["metric/pred"], len(expected))
    scores = metrics.scores(table)
    np.testing.assert_allclose(scores.iou, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.accuracy, recording["metric/acc"], rtol=1e-6)
    np.testing.assert_allclose(scores.pixel_accuracy, recording["metric/aAcc"], rtol=1e-6)


def test_absent_classes_are_skipped():
    # Class 2 is nowhere; class 3 is predicted only.
    scores = metrics.scores(metrics.confusion([0, 0, 1, 1, 255], [0, 1, 1, 3, 2], 4))
    np.testing.assert_array_equal(scores.iou, [1 / 2, 1 / 3, np.nan, 0])
    np.testing.assert_array_equal(scores.accuracy, [1 / 2, 1 / 2, np.nan, np.nan])
    assert scores.mean_iou == pytest.approx(5 / 18)
    assert scores.weighted_iou == pytest.approx(5 / 12)
    assert (scores.pixel_accuracy, scores.mean_accuracy) == (0.5, 0.5)


def test_first_class_becomes_none():
    np.testing.assert_array_equal(
        metrics.without_first_class(np.array([0, 1, 2, 150, 255], np.uint8)), [255, 0, 1, 149, 255]
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.confusion(np.zeros(3), np.zeros(4), 2), "must have the same shape"),
        (
            lambda: metrics.confusion([0, 1], [0, 2], 2),
            r"predicted must be in \[0, 2\), got 0 to 2",
        ),
        (lambda: metrics.scores(np.zeros([2, 3])), "table must have the shape"),
        (lambda: metrics.scores(np.zeros([2, 2])), "at least one pixel, got 0"),
    ],
)
def test_errors_of_scores(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# HamNet's test.


def flip_inputs(recording):
    stride = int(recording["meta"][2])
    scales = recording["scales"].tolist()
    return list(testing.hamnet_inputs(recording["image"], scales=scales, flip=True, stride=stride))


def test_published_inputs_of_hamnet():
    recording = segmentation_golden.load("msflip")
    passes = flip_inputs(recording)
    sizes = [tuple(x.shape[1:3]) for x, _, _ in passes]
    assert sizes == [tuple(size) for size in recording["net_input_sizes"].tolist()]
    half = len(passes) // 2
    assert [mirrored for _, _, mirrored in passes] == [False] * half + [True] * half
    first = segmentation_golden.channels_last(recording["first_input"])
    np.testing.assert_allclose(passes[0][0], first, atol=1e-5)
    height, width = passes[0][1]
    np.testing.assert_allclose(
        passes[half][0][:, :height, :width], first[:, :height, :width][:, :, ::-1], atol=1e-5
    )


def test_published_sum_gives_the_published_file():
    recording = segmentation_golden.load("msflip")
    indices = recording["sum_logits"][0].argmax(axis=0).astype(np.uint8)
    np.testing.assert_array_equal(indices, recording["png"])
    encoded = palette.encode_png(indices, palette.voc_palette())
    np.testing.assert_array_equal(palette.read_indices(encoded), recording["png"])
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == "P"
        written = np.array(image.getpalette())
    np.testing.assert_array_equal(written, recording["png_palette"])


WEIGHTS = np.random.default_rng(0).normal(size=(3, 4))


def coarse_network(images):
    """Every second pixel's colours, mixed: logits of about half the input's size."""
    return tf.linalg.matmul(images[:, ::2, ::2], tf.constant(WEIGHTS, images.dtype))


def shift_network(images):
    """Something that knows right from left, at the input's size."""
    return tf.linalg.matmul(tf.roll(images, 1, axis=2), tf.constant(WEIGHTS, images.dtype))


@pytest.mark.parametrize("network", [coarse_network, shift_network])
@pytest.mark.parametrize("scales, flip", [((1.0,), False), ((0.5, 1.0, 1.75), True)])
def test_hamnet_logits(network, scales, flip):
    image = np.random.default_rng(1).integers(0, 256, (18, 22, 3), dtype=np.uint8)
    x = ((image / 255 - augmentation.MEAN) / augmentation.STD)[None]
    total = 0
    for mirrored in (False, True)[: 1 + flip]:
        for scale in scales:
            size = int(18 * scale), int(22 * scale)
            resized = resampled(x[:, :, ::-1] if mirrored else x, size, True)
            padded = np.zeros([1, *[-(-(n - 1) // 8) * 8 + 1 for n in size], 3])
            padded[:, : size[0], : size[1]] = resized
            logits = network(tf.constant(padded)).numpy()
            logits = resampled(logits, padded.shape[1:3], True)[:, : size[0], : size[1]]
            logits = resampled(logits, (18, 22), True)
            total = total + (logits[:, :, ::-1] if mirrored else logits)
    logits = testing.hamnet_logits(network, image, scales=scales, flip=flip, stride=8)
    np.testing.assert_allclose(logits, total[0], atol=1e-4)


# MMSegmentation's test.

BASE_SIZE, RATIOS, DIVISOR = (256, 64), (0.5, 1.0, 1.75), 32  # of the recording


def boxes(recording):
    """For each recorded size, a base size that gives the recorded image: there must be one."""
    found = []
    for index in range(sum(key.startswith("resized") for key in recording)):
        expected = recording[f"resized{index}_rgb"]
        sides = [range(max(1, side - DIVISOR + 1), side + 1) for side in expected.shape[:2]]
        candidates = {(10**6, side) for of_side in sides for side in of_side}
        candidates |= {(side, 10**6) for of_side in sides for side in of_side}
        found.append(
            next(
                box
                for box in sorted(candidates)
                for image in testing.mmsegmentation_images(
                    recording["image_rgb"], base_size=box, divisor=DIVISOR
                )
                if np.array_equal(image, expected)
            )
        )
    return found


def test_published_images_of_mmsegmentation():
    recording = segmentation_golden.load("light_ham_aug")
    found = boxes(recording)
    assert found
    sizes = [list(recording[f"resized{index}_rgb"].shape[:2]) for index in range(len(found))]
    assert recording["sizes"].tolist() == [size for size in sizes for _ in range(2)]
    assert recording["flips"].tolist() == [False, True] * len(found)


@pytest.mark.skipif("SEGMENTATION_GOLDEN" in os.environ, reason="recordings don't say their ratios")
def test_published_sizes_of_mmsegmentation():
    recording = segmentation_golden.load("light_ham_aug")
    images = testing.mmsegmentation_images(
        recording["image_rgb"], base_size=BASE_SIZE, ratios=RATIOS, divisor=DIVISOR
    )
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image, recording[f"resized{index}_rgb"])
    assert index == 2


@pytest.mark.parametrize("network", [coarse_network, shift_network])
@pytest.mark.parametrize("ratios, flip", [((1.0,), False), ((0.5, 1.75), True)])
@pytest.mark.parametrize("divisor", [None, 16])
def test_mmsegmentation_probabilities(network, ratios, flip, divisor):
    image = np.random.default_rng(1).integers(0, 256, (18, 22, 3), dtype=np.uint8)
    total = []
    for ratio in ratios:
        factor = min(int(100 * ratio) / 22, int(30 * ratio) / 18)
        size = [int(side * factor + 0.5) for side in (18, 22)]
        resized = opencv(image, size)
        if divisor:
            resized = opencv(resized.astype(np.uint8), [-(-n // divisor) * divisor for n in size])
        x = ((resized - augmentation.MEAN_255) / augmentation.STD_255)[None]
        for mirrored in (False, True)[: 1 + flip]:
            logits = network(tf.constant(x[:, :, ::-1] if mirrored else x)).numpy()
            logits = resampled(resampled(logits, x.shape[1:3], False), (18, 22), False)
            p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            total.append(p[:, :, ::-1] if mirrored else p)
    probabilities = testing.mmsegmentation_probabilities(
        network, image, base_size=(100, 30), ratios=ratios, flip=flip, divisor=divisor
    )
    np.testing.assert_allclose(probabilities, np.mean(total, axis=0)[0], atol=2e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: list(testing.hamnet_inputs(x[..., :2])), r"image must be uint8 \[h, w, 3\]"),
        (lambda x: list(testing.hamnet_inputs(x / 2)), "image must be uint8"),
        (lambda x: list(testing.hamnet_inputs(x, scales=())), "scales must be positive"),
        (lambda x: list(testing.hamnet_inputs(x, stride=0)), "stride must be at least 1"),
        (lambda x: list(testing.mmsegmentation_images(x, ratios=(0.0,))), "ratios must be"),
        (lambda x: list(testing.mmsegmentation_images(x, divisor=0)), "divisor must be None or"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros([4, 5, 3], np.uint8))


def test_counts_over_a_split():
    rng = np.random.default_rng(2)
    labels = [rng.integers(0, 4, (5, 6 + i), dtype=np.uint8) for i in range(3)]
    labels[1][0] = 255
    wrong = [np.where(rng.random(x.shape) < 0.3, 0, x) * (x != 255) for x in labels]
    examples = [
        {"image": np.repeat(w[..., None], 3, axis=-1), "label": tf.constant(label)}
        for w, label in zip(wrong, labels, strict=True)
    ]
    seen = []

    def progress(iterable):
        seen.append(True)
        return iterable

    table = testing.count(
        lambda image: np.eye(4)[image[..., 0]], examples, num_classes=4, progress=progress
    )
    expected = sum(metrics.confusion(*pair, 4) for pair in zip(labels, wrong, strict=True))
    np.testing.assert_array_equal(table, expected)
    assert table.sum() == sum((label != 255).sum() for label in labels) and seen


# Palettes.


def test_voc_palette():
    recording = segmentation_golden.load("msflip")
    np.testing.assert_array_equal(palette.voc_palette().ravel(), recording["palette"])
    # Known colours of the development kit: aeroplane, person, the border.
    np.testing.assert_array_equal(
        palette.voc_palette()[[1, 15, 255]], [[128, 0, 0], [192, 128, 128], [224, 224, 192]]
    )


def test_submission(tmp_path):
    path = str(tmp_path / "results.tar")
    predictions = {f"2008_{i:06}": np.full([3, 4 + i], i, np.uint8) for i in range(3)}
    assert palette.write_voc_submission(path, predictions.items()) == 3
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    assert list(members) == [
        f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in predictions
    ]
    for content, indices in zip(members.values(), predictions.values(), strict=True):
        np.testing.assert_array_equal(palette.read_indices(content), indices)
    with pytest.raises(ValueError, match="got a twice"):
        palette.write_voc_submission(path, [("a", np.zeros([1, 1], np.uint8))] * 2)


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_indices_of_all_kinds_of_files(tmp_path):
    indices = np.array([[0, 1, 255], [20, 7, 2]], np.uint8)
    np.testing.assert_array_equal(palette.read_indices(palette.encode_png(indices)), indices)
    few = np.array([[0, 1, 1], [3, 2, 0]], np.uint8)
    image = Image.fromarray(few)
    image.putpalette(palette.voc_palette()[:4].tobytes())
    np.testing.assert_array_equal(palette.read_indices(encoded(image, bits=2)), few)
    np.testing.assert_array_equal(palette.read_indices(encoded(Image.fromarray(few > 0))), few > 0)
    np.testing.assert_array_equal(
        palette.read_indices(encoded(Image.fromarray(indices.astype(np.uint16)))), indices
    )
    path = tmp_path / "a.png"
    palette.write_png(str(path), indices, palette.voc_palette())
    np.testing.assert_array_equal(palette.read_indices(path.read_bytes()), indices)


@pytest.mark.parametrize(
    "content, message",
    [
        (encoded(Image.new("RGB", (2, 2))), "an image of mode RGB: colours aren't classes"),
        (encoded(Image.fromarray(np.full([2, 2], 300, np.uint16))), "must be in 0..255, got 300"),
        (b"no image", "no such image format"),
        (palette.encode_png(np.zeros([64, 64], np.uint8))[:60], "damaged|no such image"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        palette.read_indices(content)


def test_errors_of_palettes():
    with pytest.raises(ValueError, match=r"indices must be uint8 \[h, w\], got int64"):
        palette.encode_png(np.zeros([2, 2], np.int64))
    with pytest.raises(ValueError, match=r"palette must have the shape \[256, 3\], got \[4, 3\]"):
        palette.encode_png(np.zeros([2, 2], np.uint8), np.zeros([4, 3]))
    with pytest.raises(ValueError, match="must have one size"):
        palette.overlay(np.zeros([2, 2, 3], np.uint8), np.zeros([2, 3], np.uint8))
    with pytest.raises(ValueError, match="opacity must be in"):
        palette.overlay(np.zeros([2, 2, 3], np.uint8), np.zeros([2, 2], np.uint8), opacity=2)


def test_overlay():
    image = np.full([1, 3, 3], 100, np.uint8)
    shown = palette.overlay(image, np.array([[0, 1, 255]], np.uint8), opacity=0.25)
    np.testing.assert_array_equal(shown[0], [[75, 75, 75], [107, 75, 75], [100, 100, 100]])


def test_normalisation_is_float32():
    assert (
        resizing.normalize(np.zeros([1, 1, 3]), mean=(1, 2, 3), std=(1, 2, 4)).dtype == tf.float32
    )
