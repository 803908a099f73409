"""Images in 8 bits, and grids: each image is found again, pixel for pixel, in the decoded file."""

import io
import uuid

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hamgan import pictures


def _random_images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [count, size, size, 3], dtype=np.uint8)


def _decode(path):
    with tf.io.gfile.GFile(str(path), "rb") as file:
        return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def _find(canvas, image):
    """The one place (y, x) where `image` lies in `canvas`."""
    height, width = image.shape[:2]
    candidates = np.argwhere((canvas == image[0, 0]).all(-1))
    places = [
        (y, x)
        for y, x in candidates.tolist()
        if np.array_equal(canvas[y : y + height, x : x + width], image)
    ]
    assert len(places) == 1
    return places[0]


def _places(canvas, images, *, columns, scale):
    enlarged = images.repeat(scale, axis=1).repeat(scale, axis=2)
    places = np.array([_find(canvas, image) for image in enlarged])
    return places.reshape([-1, columns, 2])


def _check_regular(places, side):
    """Rows share their y, columns their x, both grow evenly, and no image covers another."""
    y, x = places[..., 0], places[..., 1]
    assert (y == y[:, :1]).all() and (x == x[:1]).all()
    for line in (y[:, 0], x[0]):
        gaps = np.diff(line)
        assert (gaps >= side).all() and len(set(gaps.tolist())) <= 1


def test_to_uint8_rounds_to_the_nearest_of_256_levels():
    levels = np.arange(256)
    exact = levels / 127.5 - 1.0
    step = 2.0 / 255.0
    for shift in (-0.49, 0.0, 0.49):
        assert np.array_equal(pictures.to_uint8(exact + shift * step), levels)


def test_to_uint8_clips():
    images = np.array([-1e30, -1.001, -1.0, 1.0, 1.001, 1e30])
    assert pictures.to_uint8(images).tolist() == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_to_uint8_takes_tensors_of_any_precision(dtype):
    images = tf.constant([[-1.0, -0.5, 0.0, 0.5, 1.0]], dtype)
    result = pictures.to_uint8(images)
    assert result.dtype == np.uint8
    # 0.5 * 127.5 = 63.75, 127.5 lies between two levels, 1.5 * 127.5 = 191.25.
    assert result.tolist() in ([[0, 64, 127, 191, 255]], [[0, 64, 128, 191, 255]])


def test_to_uint8_leaves_bytes_as_they_are():
    images = _random_images(2, 4)
    assert np.array_equal(pictures.to_uint8(images), images)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.array([0.0, np.nan, np.inf]), "images must be finite, got 2 values"),
        (np.array([0, 1]), "images must be floating point in .* or uint8, got int64"),
    ],
)
def test_to_uint8_refuses(images, message):
    with pytest.raises(ValueError, match=message):
        pictures.to_uint8(images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_labels": ["a", "tench, Tinca tinca", "?"]},
        {"title": "step 1,000"},
        {"row_labels": ["x" * 300, "", "<b>"], "title": "y" * 300},
    ],
)
def test_each_image_lies_in_its_cell(tmp_path, options):
    images = _random_images(12, 8)
    path = tmp_path / "grid.png"
    pictures.save_grid(path, images, columns=4, scale=2, **options)
    places = _places(_decode(path), images, columns=4, scale=2)
    assert places.shape == (3, 4, 2)
    _check_regular(places, side=16)


def test_floating_point_images_appear_as_their_bytes(tmp_path):
    images = _random_images(6, 8)
    path = tmp_path / "grid.png"
    pictures.save_grid(path, images.astype(np.float32) / 127.5 - 1.0, columns=3, scale=1)
    _check_regular(_places(_decode(path), images, columns=3, scale=1), side=8)


@pytest.mark.parametrize("size, scale", [(8, 8), (32, 2), (48, 2), (64, 1), (100, 1)])
def test_small_images_are_enlarged_by_whole_pixels(tmp_path, size, scale):
    images = _random_images(2, size)
    path = tmp_path / "grid.png"
    pictures.save_grid(path, images, columns=2)
    _check_regular(_places(_decode(path), images, columns=2, scale=scale), side=size * scale)


def test_labels_stand_left_of_their_rows(tmp_path):
    images = _random_images(3, 32)
    path = tmp_path / "grid.png"
    pictures.save_grid(path, images, columns=1, row_labels=["one", "", "three"])
    canvas = _decode(path)
    places = _places(canvas, images, columns=1, scale=2)[:, 0]
    # Letters are darker than the paper they stand on.
    ink = [(canvas[y : y + 64, :x] < 128).all(-1).sum() for y, x in places]
    assert ink[0] > 20 and ink[1] == 0 and ink[2] > ink[0]


def test_long_names_are_shortened_to_a_bounded_width(tmp_path):
    images = _random_images(2, 32)
    widths = []
    for label in ["short", "w" * 60, "w" * 600, "line\nbreak " * 40]:
        path = tmp_path / "grid.png"
        pictures.save_grid(path, images, columns=2, row_labels=[label])
        canvas = _decode(path)
        places = _places(canvas, images, columns=2, scale=2)
        widths.append(canvas.shape[1])
        # Nothing of the name reaches the images, nor the edge.
        x = places[0, 0, 1]
        assert (canvas[:, x - 4 : x] == 255).all() and (canvas[:, :4] == 255).all()
    assert widths[0] < widths[1]
    assert max(widths[1:]) - min(widths[1:]) < 20
    assert max(widths) < 64 * 2 + 200


def test_a_title_stands_above_the_images(tmp_path):
    images = _random_images(4, 32)
    path = tmp_path / "grid.png"
    pictures.save_grid(path, images, columns=4, title="step 5,000")
    canvas = _decode(path)
    top = _places(canvas, images, columns=4, scale=2)[0, 0, 0]
    assert (canvas[:top] < 128).all(-1).sum() > 50


def test_a_grid_replaces_the_old_one_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "samples" / "grid.png"
    for seed in (0, 1):
        images = _random_images(2, 16, seed)
        pictures.save_grid(path, images, columns=2, scale=1)
    _check_regular(_places(_decode(path), images, columns=2, scale=1), side=16)
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_a_grid_goes_to_a_remote_folder():
    path = f"ram://{uuid.uuid4()}/samples/grid.png"
    images = _random_images(2, 16)
    pictures.save_grid(path, images, columns=1, scale=1)
    _check_regular(_places(_decode(path), images, columns=1, scale=1), side=16)


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ([5, 8, 8, 3], {"columns": 2}, r"number of images \(5\) must be a multiple of columns \(2"),
        ([4, 8, 8, 3], {"columns": 0}, r"must be a multiple of columns \(0\)"),
        ([4, 8, 8, 1], {"columns": 2}, r"shape \[N, height, width, 3\], got \[4, 8, 8, 1\]"),
        ([8, 8, 3], {"columns": 2}, r"got \[8, 8, 3\]"),
        ([0, 8, 8, 3], {"columns": 2}, r"got \[0, 8, 8, 3\]"),
        ([4, 8, 8, 3], {"columns": 2, "row_labels": ["a"]}, r"one name per row \(2\), got 1"),
        ([4, 8, 8, 3], {"columns": 2, "scale": 0}, "scale must be an integer of at least 1, got 0"),
        ([4, 8, 8, 3], {"columns": 2, "scale": 1.5}, "scale must be .* got 1.5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, shape, options, message):
    path = tmp_path / "grid.png"
    with pytest.raises(ValueError, match=message):
        pictures.save_grid(path, np.zeros(shape, np.float32), **options)
    assert not path.exists()
