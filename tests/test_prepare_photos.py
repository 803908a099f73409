"""Images from the world: what `sources` shows of kinds of files, and what is refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep import sources


def file(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_png(bits, row, transparent):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"tRNS", struct.pack(">H", transparent))
        + chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "bits, row, value",
    [
        (1, b"\x0f", 0),  # the transparent half is black, the other white
        (2, b"\x55\0", 1),
        (4, b"\x66\x66\0\0", 6),
        (8, b"\x66" * 4 + bytes(4), 0x66),
        (16, b"\x66\x66" * 4 + bytes(8), 0x6666),
    ],
)
def test_transparent_grey_is_put_on_white_at_every_depth(bits, row, value):
    shown = sources.photo_pixels(grey_png(bits, row, value))[0, :, 0].tolist()
    assert shown == [255] * 4 + [255 if bits == 1 else 0] * 4


def tiff(pixels, photometric):
    data, bits = pixels.tobytes(), pixels.itemsize * 8
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, 8), (279, 4, len(data))]
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries
    )
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("kind, top", [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("white_is_zero", [True, False])
def test_white_is_white_whatever_its_number(kind, top, white_is_zero):
    white = np.full((8, 8), 0 if white_is_zero else top, kind)
    shown = sources.photo_pixels(tiff(white, 0 if white_is_zero else 1))
    assert shown.min() == 255
    assert sources.photo_pixels(tiff(kind(top) - white, 0 if white_is_zero else 1)).max() == 0


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(7)])
def test_samples_without_a_fixed_white_are_refused(values):
    image = Image.fromarray(np.full((8, 8), values))
    with pytest.raises(ValueError, match="32-bit .* samples: convert it to 8 or 16 bits"):
        sources.photo_pixels(file(image, "TIFF"))


def exif(*entries):
    entries = sorted([(0x112, 3, 1, struct.pack("<HH", 6, 0)), *entries])
    table = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
        + struct.pack("<II", 640, 1)
    )


@pytest.mark.parametrize(
    "entry",
    [
        None,
        (0x128, 2, 2, b"2\0\0\0"),  # the unit of the resolution as text
        (0x11A, 2, 3, b"72\0\0"),  # the resolution as text
        (0x100, 5, 1, struct.pack("<I", 38)),  # the width as a fraction
    ],
)
def test_only_the_orientation_of_exif_matters(entry):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 255
    encoded = file(Image.fromarray(pixels), "JPEG", exif=exif(*([entry] if entry else [])))
    shown = sources.photo_pixels(encoded)
    assert shown.shape == (60, 40, 3)  # turned by 90 degrees: what was on top is on the right
    assert shown[:, 25:].min() > 240 and shown[:, :15].max() < 15


def test_colours_are_those_of_the_profile():
    lab = ImageCms.createProfile("LAB")
    assert lab  # Pillow was built with LittleCMS
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = sources.photo_pixels(file(image, "PNG"))
    np.testing.assert_array_equal(plain, pixels)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(
        sources.photo_pixels(file(image, "PNG", icc_profile=srgb)), pixels
    )
    broken = sources.photo_pixels(file(image, "PNG", icc_profile=b"no profile"))
    np.testing.assert_array_equal(broken, pixels)


def test_content_decides_not_the_name():
    with pytest.raises(ValueError, match="it is none of JPEG, .*, by its content"):
        sources.photo_pixels(file(Image.new("RGB", (8, 8)), "EPS"))


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    encoded = file(Image.new("1", (400, 300)), "PNG")
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(ValueError, match="400 x 300 pixels, more than 100,000"):
        sources.photo_pixels(encoded, max_pixels=100_000)


def tree(tmp_path, *paths):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / path, "PNG")
    return sources.Tree(str(tmp_path))


def test_a_folder_that_is_called_like_an_image_is_a_class(tmp_path):
    found = tree(tmp_path, "logo.png/0.png", "plain/0.png")
    assert found.class_names == ["logo.png", "plain"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    found = tree(tmp_path, "cat/0.png")
    os.mkfifo(tmp_path / "cat" / "1.png")
    examples = {example.name: example for example in found.examples("train", 0, 2)}
    assert examples["cat/0.png"].read()
    with pytest.raises(ValueError, match="it is no file but a pipe"):
        examples["cat/1.png"].read()


def test_a_class_of_unknown_suffixes_is_told_what_was_passed_over(tmp_path):
    found = tree(tmp_path, "cat/0.png", "dog/0.heic")
    with pytest.raises(ValueError, match=r"none in dog. Passed over .*dog/0.heic; known are .jpg"):
        _ = found.class_names
    assert tree(tmp_path, "dog/1.JFIF").num_examples == {"train": 2}


@pytest.mark.parametrize("folders", [("Train", "Test"), ("training", "testing"), ("TRAIN", "dev")])
def test_folders_called_as_splits_are_splits_whatever_the_case(tmp_path, folders):
    found = tree(tmp_path, *(f"{name}/cat/0.png" for name in folders))
    assert found.class_names == ["cat"] and len(found.num_examples) == 2


@pytest.mark.parametrize("folders", [("train", "val", "extra"), ("test", "dog"), ("val", "test")])
def test_splits_beside_something_else_are_refused(tmp_path, folders):
    with pytest.raises(ValueError, match="are called as splits are"):
        _ = tree(tmp_path, *(f"{name}/0.png" for name in folders)).class_names
