"""Images from the world: what `sources` shows of kinds of files, and what is refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep import packing, sources
from hamgan.data import photos


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


def tiff(samples, photometric, *, bits=None, sample_format=1):
    """A grey TIFF of 8x8 pixels in one strip; samples of other than whole bytes as packed bytes."""
    data = samples.tobytes()
    bits = bits or 8 * samples.itemsize
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, 8), (279, 4, len(data)), (339, 3, sample_format)]
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


@pytest.mark.parametrize("level, expected", [(4095, 255), (0, 0), (2048, 128)])
def test_samples_of_twelve_bits_are_scaled(level, expected):
    pair = bytes([level >> 4, (level & 15) << 4 | level >> 8, level & 255])
    pixels = photos.shown(tiff(np.frombuffer(pair * 32, np.uint8), 1, bits=12))
    np.testing.assert_array_equal(pixels, np.full([8, 8, 1], expected))


@pytest.mark.parametrize(
    "array, sample_format, message",
    [
        (np.full([8, 8], -1, np.int8), 2, "8-bit signed integer samples"),
        (np.full([8, 8], -1, np.int16), 2, "16-bit signed integer samples"),
        (
            np.full([8, 8], 1, np.float64),
            3,
            "a TIFF, damaged or with samples that Pillow can't read",
        ),
    ],
)
def test_other_samples_are_refused_as_what_they_are(array, sample_format, message):
    encoded = tiff(array, 1, sample_format=sample_format)
    with pytest.raises(ValueError, match=message):
        photos.shown(encoded)


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"


def test_images_of_an_unknown_suffix_are_named_by_folder_and_kind(tmp_path, capsys):
    made = tree(tmp_path / "photos", "cat/0.png", "cat/1.jpg_large", "cat/2.jpg_large", "dog/0.png")
    for number in range(3):
        (tmp_path / "photos" / "dog" / f"{number}.HEIC").write_bytes(HEIC)
    for name in ("notes.txt", "sizes.dat"):
        (tmp_path / "photos" / "dog" / name).write_bytes(b"BMX is fun" if "txt" in name else b"1 2")
    packing.pack(
        made,
        data_dir=str(tmp_path / "data"),
        size=8,
        num_workers=1,
        decode=sources.decode_photo,
    )
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(told) == 2
    assert "photos/cat has 2 PNG images" in told[0] and "1.jpg_large, 2.jpg_large" in told[0]
    assert "Call them by a suffix that is known (.jpg" in told[0]
    assert "photos/dog has 3 HEIC images" in told[1] and "convert them, to JPEG" in told[1]


def test_a_pipe_of_an_unknown_suffix_is_not_waited_for(tmp_path):
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "pipe.raw")
    (tmp_path / "cat" / "gone.raw").symlink_to(tmp_path / "nothing")
    (tmp_path / "cat" / "photo").write_bytes(file(Image.new("RGB", (8, 8)), "JPEG"))
    paths = [str(path) for path in (tmp_path / "cat").iterdir()]
    (line,) = sources.hidden_images(paths)
    assert "1 JPEG images that are left out" in line and "suffix: photo." in line


def test_of_very_many_files_some_are_looked_at(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(sources, "_kind_of", lambda path: looked.append(path) or "PNG")
    paths = [f"{tmp_path}/cat/{number}.jpg_large" for number in range(1000)]
    (line,) = sources.hidden_images([*paths, f"{tmp_path}/cat/notes.txt"])
    assert len(looked) < 100 and "PNG images or more" in line


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_kinds_are_known_by_their_first_bytes(kind):
    encoded = file(Image.new("RGB", (8, 8)), kind)
    assert photos.kind_of(encoded[: photos.HEAD_BYTES]) == kind


def test_what_is_no_image_is_called_so():
    assert photos.kind_of(HEIC[: photos.HEAD_BYTES]) == "HEIC"
    assert photos.kind_of(b"%!PS-Adobe-3.0 E") is None and photos.kind_of(b"") is None
    with pytest.raises(ValueError, match=r"by its content \(it is HEIC, which"):
        photos.shown(HEIC)
