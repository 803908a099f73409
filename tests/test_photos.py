"""One decoder: folders, packed data sets and training show the same pixels of the same file."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image, ImageCms
from test_data import encode, make, picture
from test_prepare import read, write_tree
from test_prepare_photos import exif

from data_prep import packing, sources
from hamgan import data
from hamgan.data import photos

SIZE = 16


def file(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(mode="RGB"):
    return Image.fromarray(picture(40, 31)).convert(mode)


def with_alpha(mode):
    image = photo("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 31).astype(np.uint8), (40, 1))))
    return image.convert(mode)


def turned(orientation):
    entry = Image.Exif()
    entry[0x112] = orientation
    return entry


def other_profile():
    """A profile that isn't sRGB: one whose red and green are exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    return named.replace(b"rXYZ", b"temp").replace(b"gXYZ", b"rXYZ").replace(b"temp", b"gXYZ")


def sixteen_bits(channels):
    levels = np.linspace(0, 65535, 40 * 31).astype(np.uint16).reshape(40, 31, 1)
    return tf.io.encode_png(np.repeat(levels, channels, axis=2)).numpy()


KINDS = {
    "jpeg": lambda: file(photo(), "JPEG"),
    "progressive jpeg": lambda: file(photo(), "JPEG", progressive=True, quality=97),
    "grey jpeg": lambda: file(photo("L"), "JPEG"),
    "cmyk jpeg": lambda: file(photo("CMYK"), "JPEG"),
    **{
        f"{form} with orientation {o}": functools.partial(file, photo(), form, exif=turned(o))
        for form in ("JPEG", "PNG", "WEBP")
        for o in range(1, 9)
    },
    "jpeg with an ill-typed entry": lambda: file(
        photo(), "JPEG", exif=exif((0x128, 2, 2, b"2\0\0\0"))
    ),
    "jpeg with a profile": lambda: file(photo(), "JPEG", icc_profile=other_profile()),
    "png": lambda: file(photo(), "PNG"),
    "grey png": lambda: file(photo("L"), "PNG"),
    "bilevel png": lambda: file(photo("1"), "PNG"),
    "palette png": lambda: file(photo("P"), "PNG"),
    "palette png with transparency": lambda: file(photo("P"), "PNG", transparency=3),
    "grey png with transparency": lambda: file(photo("L"), "PNG", transparency=128),
    "grey and alpha png": lambda: file(with_alpha("LA"), "PNG"),
    "rgba png": lambda: file(with_alpha("RGBA"), "PNG"),
    "16 bits grey png": lambda: sixteen_bits(1),
    "16 bits png": lambda: sixteen_bits(3),
    "16 bits rgba png": lambda: sixteen_bits(4),
    "png with a profile": lambda: file(photo(), "PNG", icc_profile=other_profile()),
    "gif": lambda: file(photo("P"), "GIF"),
    "gif with transparency": lambda: file(photo("P"), "GIF", transparency=3),
    "animated gif": lambda: file(
        photo("P"), "GIF", save_all=True, append_images=[photo("P").rotate(90)]
    ),
    "webp": lambda: file(photo(), "WEBP"),
    "webp with alpha": lambda: file(with_alpha("RGBA"), "WEBP", lossless=True),
    "bmp": lambda: file(photo(), "BMP"),
    "grey bmp": lambda: file(photo("L"), "BMP"),
    "bilevel bmp": lambda: file(photo("1"), "BMP"),
    "tiff": lambda: file(photo(), "TIFF"),
    "grey tiff of 16 bits": lambda: file(
        Image.fromarray(np.full((20, 20), 25700, np.uint16)), "TIFF"
    ),
}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """{kind: what folder.py, pack.py and training make of it, float [S, S, 3] of 0 to 255}."""
    files = {name: kind() for name, kind in KINDS.items()}
    root = tmp_path_factory.mktemp("photos")
    suffixes = {name: f"{number:03}.png" for number, name in enumerate(files)}
    tree = write_tree(
        root / "tree", {f"{suffixes[n]}/0.png": content for n, content in files.items()}
    )
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=list(files)),
    }
    rows = [{"image": content, "label": name} for name, content in files.items()]
    stored = make(root / "stored", features, train=rows)
    options = dict(data_dir=str(root), size=SIZE, num_workers=1)
    of_folder, _ = packing.pack(
        sources.Tree(tree), name="of_folder", decode=sources.decode_photo, **options
    )
    of_pack, _ = packing.pack(
        sources.Prepared("made", stored), name="of_pack", decode=sources.decode_as_stored, **options
    )
    dataset = data.ImageDataset(
        name="made",
        image_size=SIZE,
        num_classes=len(files),
        reference_split="train",
        data_dir=stored,
    )
    (batch,) = dataset.reference_batches(batch_size=len(files))
    found = {}
    for where, (images, labels) in {
        "folder": read(of_folder)[:2],
        "pack": read(of_pack)[:2],
        "training": ((batch["image"].numpy() + 1) * 127.5, batch["label"].numpy()),
    }.items():
        for image, label in zip(images, labels, strict=True):
            found.setdefault(list(files)[label], {})[where] = np.float64(image)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_folder_pack_and_training_show_the_same_pixels(squares, name):
    found = squares[name]
    assert found["folder"].max() - found["folder"].min() > 0 or "16 bits" in name
    np.testing.assert_array_equal(found["folder"], found["pack"])
    # Training doesn't round.
    np.testing.assert_allclose(found["training"], found["folder"], rtol=0, atol=0.5001)


@pytest.mark.parametrize("name", KINDS)
def test_they_are_those_of_a_careful_viewer(squares, name):
    viewed = photos.shown(KINDS[name]())
    expected = (data.preprocess(tf.constant(viewed), SIZE).numpy() + 1) * 127.5
    off = np.abs(squares[name]["training"] - expected)
    # TensorFlow's fast inverse DCT is off by some grey levels; all else is exact.
    assert off.mean() < (4 if "jpeg" in name.lower() else 0.001)


def test_colours_are_those_of_the_profile(squares):
    found, without = (np.float64(squares[n]["pack"]) for n in ("png with a profile", "png"))
    assert np.abs(found - without).mean() > 10
    # Red and green are exchanged, up to the profile's curves and what lies outside of sRGB.
    assert np.abs(found - without[..., [1, 0, 2]]).mean() < 2


def test_most_files_are_given_back_as_they_are():
    for name in ("jpeg", "cmyk jpeg", "grey jpeg", "JPEG with orientation 1", "png", "grey png"):
        encoded = KINDS[name]()
        assert photos.plain(encoded) is encoded, name
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    encoded = file(photo(), "JPEG", icc_profile=srgb)
    assert photos.plain(encoded) is encoded


def test_the_limit_of_pixels_is_the_one_that_is_given(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own isn't asked
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        encoded = file(photo("P" if kind == "GIF" else "RGB"), kind)
        with pytest.raises(ValueError, match="31 x 40 pixels, more than 1,239"):
            photos.plain(encoded, max_pixels=1239)
        assert photos.plain(encoded, max_pixels=1240)
        assert photos.shown(encoded, max_pixels=1240).shape[:2] == (40, 31)
        assert photos.side_of(encoded) == 31
    assert Image.MAX_IMAGE_PIXELS == 100


def test_training_names_what_it_refuses(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
    floating = file(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF")
    rows = [{"image": encoded, "label": 0} for encoded in (encode(picture(9, 9), "PNG"), floating)]
    stored = make(tmp_path, features, train=rows)

    def first_batch(**options):
        dataset = data.ImageDataset(
            name="made",
            image_size=8,
            num_classes=1,
            reference_split="train",
            data_dir=stored,
            **options,
        )
        return next(iter(dataset.reference_batches(batch_size=2)))

    with pytest.raises(Exception, match=r"record \d .* of .*32-bit floating-point samples"):
        first_batch()
    with pytest.raises(Exception, match=r"record \d .* of .*9 x 9 pixels, more than 80"):
        first_batch(max_pixels=80)
