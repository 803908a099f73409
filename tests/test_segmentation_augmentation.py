"""hamgan.segmentation.augmentation: what each pipeline does, and where its numbers come from."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from hamgan import stateless
from hamgan.segmentation import augmentation, resizing

HAMNET = augmentation.HamNetAugmentation(crop_size=33)
MMSEGMENTATION = augmentation.MMSegmentationAugmentation(crop_size=32, base_size=(128, 40))


def scene(height=40, width=56):
    """An image whose colours tell its label: 255 at its middle."""
    y, x = np.mgrid[:height, :width]
    label = ((y // 8 * 3 + x // 8) % 5).astype(np.uint8)
    label[height // 2 - 4 : height // 2 + 4] = 255
    shown = np.where(label == 255, 250, label * 40)
    return np.stack([shown, 255 - shown, shown // 2], axis=-1).astype(np.uint8), label


def key(number):
    return stateless.key(5, number)


@pytest.mark.parametrize("augment", [HAMNET, MMSEGMENTATION])
def test_a_function_of_the_key(augment):
    image, label = scene()
    run = tf.function(augment)
    first, second = run(image, label, key(0)), run(image, label, key(0))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[0].shape == (augment.crop_size, augment.crop_size, 3)
    assert first[0].dtype == tf.float32 and first[1].dtype == tf.int32
    others = [run(image, label, key(number))[1].numpy() for number in range(1, 4)]
    assert all((other != first[1].numpy()).any() for other in others)


@pytest.mark.parametrize("augment", [HAMNET, MMSEGMENTATION])
def test_labels_stay_with_their_pixels(augment):
    image, label = scene(64, 80)
    changes = {} if augment is HAMNET else {"distort": False}
    augment = type(augment)(**{**vars(augment), **changes})
    scale = 255 if isinstance(augment, augmentation.HamNetAugmentation) else 1
    mean, std = (
        (augmentation.MEAN, augmentation.STD)
        if scale == 255
        else (augmentation.MEAN_255, augmentation.STD_255)
    )
    run = tf.function(augment)
    agreement = []
    for number in range(20):
        x, y = (part.numpy() for part in run(image, label, key(number)))
        red = (x * std + mean)[..., 0] * scale
        padded = (x == 0).all(axis=-1)
        assert (y[padded] == 255).all()
        shown = np.where(red > 220, 255, np.rint(red / 40))
        agreement.append((shown == y)[~padded].mean())
    # Pixels between two classes are mixed; most aren't.
    assert np.mean(agreement) > 0.7


def test_hamnet_draws_all_scales_places_and_flips():
    """Of a picture that is a ramp, the crop shows what was drawn."""
    label = np.tile(np.arange(40, dtype=np.uint8), (40, 1))
    image = np.repeat(label[..., None], 3, axis=-1)
    augment = tf.function(augmentation.HamNetAugmentation(crop_size=17, scales=(1.0, 2.0)))
    seen = set()
    for number in range(200):
        crop = augment(image, label, key(number))[1].numpy()[0]
        flipped = crop[0] > crop[-1]
        width = abs(int(crop[0]) - int(crop[-1])) + 1
        seen.add((width > 12, bool(flipped), int(crop.min())))
    assert {(wide, flipped) for wide, flipped, _ in seen} == {
        (wide, flipped) for wide in (True, False) for flipped in (True, False)
    }
    assert {start for wide, _, start in seen if wide} >= {0, 23}  # both ends, of 24 places


def test_small_images_are_padded_right_and_below():
    image, label = np.full([9, 7, 3], 200, np.uint8), np.zeros([9, 7], np.uint8)
    x, y = augmentation.HamNetAugmentation(crop_size=33, scales=(1.0,), flip=False)(
        image, label, key(0)
    )
    assert (y.numpy()[:9, :7] == 0).all() and (y.numpy() == 255).sum() == 33 * 33 - 63
    expected = (200 / 255 - np.array(augmentation.MEAN)) / augmentation.STD
    np.testing.assert_allclose(x[:9, :7], np.broadcast_to(expected, [9, 7, 3]), atol=1e-5)
    assert not x.numpy()[9:].any() and not x.numpy()[:, 7:].any()


def test_sizes_of_mmsegmentation():
    """Ratios are uniform between their ends: a label of columns shows the enlargement."""
    label = np.tile(np.arange(64, dtype=np.uint8), (32, 1))
    image = np.repeat(label[..., None], 3, axis=-1)
    augment = augmentation.MMSegmentationAugmentation(
        crop_size=16, base_size=(64, 32), ratios=(1.0, 2.0), flip=False, distort=False, max_share=1
    )
    run = tf.function(augment)
    steps = []
    for number in range(60):
        row = run(image, label, key(number))[1].numpy()[0]
        steps.append((row[-1] - row[0]) / 15)
    assert 0.45 < min(steps) < 0.62 and 0.85 < max(steps) <= 1.07
    assert 0.6 < np.mean(steps) < 0.8


@pytest.mark.parametrize(
    "counts, varied",
    [({1: 60, 2: 40}, True), ({1: 75, 2: 25}, False), ({1: 100}, False), ({255: 100}, False),
     ({255: 90, 1: 5, 2: 5}, True), ({255: 90, 1: 8, 2: 2}, False)],
)  # fmt: skip
def test_variety(counts, varied):
    label = np.concatenate([np.full(n, c, np.uint8) for c, n in counts.items()]).reshape(10, 10)
    assert bool(augmentation.has_variety(label, 0.75)) == varied


def test_crops_without_variety_are_drawn_again():
    """Of eleven crops of two classes side by side, the first that sees enough of both."""
    label = np.zeros([64, 64], np.uint8)
    label[:, 40:] = 1
    image = np.repeat(label[..., None], 3, axis=-1)
    options = dict(crop_size=16, base_size=(64, 64), ratios=(1.0, 1.0), flip=False, distort=False)
    shares = {}
    for num_retries in (0, 10):
        run = tf.function(
            augmentation.MMSegmentationAugmentation(**options, num_retries=num_retries)
        )
        crops = [run(image, label, key(number))[1].numpy() for number in range(60)]
        shares[num_retries] = np.mean([0.25 < crop.mean() < 0.75 for crop in crops])
    # One of 49 places has a chance of 7 / 49; eleven of them together 1 - (6 / 7)^11 = 0.82.
    assert shares[0] < 0.35 and shares[10] > 0.65


def reference_hsv(rgb):
    h, s, v = colorsys.rgb_to_hsv(*(rgb / 255))
    return np.array([h * 180, s * 255, v * 255])


def test_hsv():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (300, 3), dtype=np.uint8)
    image[:20] = image[:20, :1]
    hsv = augmentation.rgb_to_hsv(image).numpy().astype(float)
    expected = np.stack([reference_hsv(pixel) for pixel in image])
    distance = abs(hsv - expected)
    distance[:, 0] = np.minimum(distance[:, 0], 180 - distance[:, 0])
    assert distance.max() <= 0.51
    # All 8-bit HSV triples of a grid, against the float formula.
    hsv = np.stack(np.meshgrid(np.arange(180), *[np.arange(0, 256, 51)] * 2), -1).reshape(-1, 3)
    rgb = augmentation.hsv_to_rgb(hsv.astype(np.uint8)).numpy()
    expected = [np.array(colorsys.hsv_to_rgb(h / 180, s / 255, v / 255)) * 255 for h, s, v in hsv]
    assert abs(rgb - np.stack(expected)).max() <= 0.501


def test_hsv_known_values():
    """Values that OpenCV's cvtColor gives (COLOR_RGB2HSV, 8 bits)."""
    rgb = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30], [200, 199, 198], [1, 0, 2]]
    hsv = [
        [0, 255, 255],
        [60, 255, 255],
        [120, 255, 255],
        [105, 170, 30],
        [15, 3, 200],
        [135, 255, 2],
    ]
    np.testing.assert_array_equal(augmentation.rgb_to_hsv(np.array(rgb, np.uint8)), hsv)


def test_distortion():
    image = np.random.default_rng(4).integers(60, 180, (8, 8, 3), dtype=np.uint8)
    run = tf.function(augmentation.distort_colours)
    distorted = np.stack([run(image, key(number)).numpy() for number in range(120)]).astype(int)
    same = (distorted == image).all(axis=(1, 2, 3)).mean()
    assert 1 / 16 - 0.06 < same < 1 / 16 + 0.08  # each of four changes is off half of the time
    change = distorted.mean(axis=(1, 2, 3)) - image.mean()
    assert change.min() < -40 and change.max() > 40 and abs(change.mean()) < 12
    assert distorted.min() >= 0 and distorted.max() <= 255


def test_flip():
    image, label = scene()
    flipped, flipped_label = augmentation.flip(tf.constant(image), tf.constant(label), True)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(flipped_label, label[:, ::-1])
    np.testing.assert_array_equal(augmentation.flip(image, label, False)[0], image)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("HamNet", {"crop_size": 0}, "crop_size must be at least 1, got 0"),
        ("HamNet", {"scales": (0.5, 0.0)}, "scales must be positive"),
        ("MMSegmentation", {"crop_size": -1}, "crop_size must be at least 1"),
        ("MMSegmentation", {"base_size": (0, 5)}, "base_size must be two positive"),
        ("MMSegmentation", {"ratios": (2.0, 0.5)}, "ratios must be"),
        ("MMSegmentation", {"max_share": 0}, "max_share must be in"),
        ("MMSegmentation", {"num_retries": -1}, "num_retries must be at least 0"),
    ],
)
def test_errors(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(augmentation, f"{kind}Augmentation")(**options)


def test_normalisations_agree():
    image, _ = scene()
    one = resizing.normalize(
        tf.cast(image, tf.float32) / 255, mean=augmentation.MEAN, std=augmentation.STD
    )
    other = resizing.normalize(image, mean=augmentation.MEAN_255, std=augmentation.STD_255)
    np.testing.assert_allclose(one, other, atol=1e-4)
