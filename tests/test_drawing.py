"""What is drawn of a checkpoint: choices, paths between images, files."""

import json
import os
import zipfile

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf
import test_sampling
from PIL import Image

from hamgan import data, pictures
from hamgan.cli import sampled
from hamgan.drawing import choice, films, interpolation, neighbourhood, outputs

NAMES = ["1", "10", "11", "2"]
ANIMALS = ["cat", "dog", "goldfish, carp"]


@pytest.mark.parametrize(
    "texts, names, expected",
    [
        (["2"], NAMES, [3]),
        (["10", "1"], NAMES, [1, 0]),
        (["#2", "11"], NAMES, [2]),
        (["all"], NAMES, [0, 1, 2, 3]),
        (["dog", "goldfish, carp"], ANIMALS, [1, 2]),
        (["2", "#0"], ANIMALS, [2, 0]),  # no name is a number: nothing to mix up
        (["all"], ["none", "all"], [1]),
        (["cat "], [" cat", "dog"], [0]),  # flags lose spaces at the ends
    ],
)
def test_names_are_never_taken_for_numbers(texts, names, expected):
    assert choice.classes(texts, names) == expected


@pytest.mark.parametrize(
    "text, names, message",
    [
        ("3", NAMES, "others have numbers for names.* '2', is written #3"),
        ("4", NAMES, "No class is named '4'. Label 4 is outside the classes of this generator"),
        ("#4", NAMES, "Label 4 is outside the classes of this generator, 0 to 3"),
        ("gog", ANIMALS, "No class is named 'gog'; did you mean 'dog'"),
        ("x", ["x", "y", "x"], "2 classes are named 'x': write one of #0, #2"),
    ],
)
def test_classes_that_are_not_there_are_refused(text, names, message):
    with pytest.raises(ValueError, match=message):
        choice.classes([text], names)


def test_seeds_are_numbers_and_ranges():
    assert choice.seeds(["0-3", "100", "2-4"]) == [0, 1, 2, 3, 100, 4]
    for text in ("3-1", "-1", "a", "1.5", "", str(2**31)):
        with pytest.raises(ValueError, match="Seeds are numbers from 0"):
            choice.seeds([text])
    with pytest.raises(ValueError, match="No seed is asked for"):
        choice.seeds([])


def test_file_names_are_of_class_and_seed():
    assert choice.file_name(7, "a/b: c", 12) == "0007-a-b-c-seed0000012"
    assert choice.file_name(7, "...", 12) == "0007-seed0000012"


# Images


def make_sampler(batch_size):
    sampler = test_sampling.make_sampler(made.one_device(), batch_size)
    helpers.randomize(sampler.generator)  # at first all classes are alike
    return sampler


def test_an_image_is_the_same_in_any_company():
    sampler = make_sampler(4)
    seeds, labels = np.array([9, 0, 3, 100, 7, 2]), np.array([1, 0, 2, 1, 1, 0])
    images, drawn = (
        np.concatenate(part) for part in zip(*sampler.numbered(seeds, labels), strict=True)
    )
    np.testing.assert_array_equal(drawn, labels)
    for order in (np.array([3]), np.array([5, 3, 1, 0, 2])):
        others = np.concatenate([i for i, _ in sampler.numbered(seeds[order], labels[order])])
        np.testing.assert_array_equal(others, images[order])
    # Sample 3 of the seed, whoever asks.
    expected = sampler.sample(4, [0, 0, 0, 2])[0][3]
    np.testing.assert_allclose(images[2], expected, atol=1e-5)


@pytest.mark.parametrize("way", ["seeds", "classes"])
def test_ways_lead_through_the_images_themselves(way):
    sampler = make_sampler(8)
    classes, seeds = [2, 0, 1], [4, 11]
    images = interpolation.between(sampler, way=way, classes=classes, seeds=seeds, steps=3)
    assert images.shape == ((3, 4, 32, 32, 3) if way == "seeds" else (2, 7, 32, 32, 3))
    for i, label in enumerate(classes):
        for j, seed in enumerate(seeds):
            ((expected, _),) = sampler.numbered([seed], [label])
            found = images[i, 3 * j] if way == "seeds" else images[j, 3 * i]
            np.testing.assert_allclose(found, expected[0], atol=1e-5)
    # And in between there is something else, near to both sides.
    steps = np.abs(np.diff(images, axis=1)).mean(axis=(2, 3, 4))
    assert (steps > 1e-4).all()
    with pytest.raises(ValueError, match=f"Two {way} at least are needed"):
        interpolation.between(sampler, way=way, classes=[1], seeds=[1], steps=3)


def test_great_circles():
    one, other = np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]])
    np.testing.assert_allclose(
        interpolation.slerp(one, other, [0.5]), [[2**0.5, 2**0.5]], rtol=1e-6
    )
    # 30 degrees of 90, and a third of the way from length 3 to 1.
    third = interpolation.slerp(one, other, [1 / 3])
    np.testing.assert_allclose(third, [[7 / 3 * 3**0.5 / 2, 7 / 6]], rtol=1e-6)
    np.testing.assert_allclose(interpolation.slerp(one, 2 * one, [0.5]), 1.5 * one)
    np.testing.assert_allclose(interpolation.slerp(one, -one, [0.25]), 0.5 * one, atol=1e-6)


def test_psi_draws_noise_towards_its_mean():
    def noise(psi):
        sampler = test_sampling.sampling.Sampler(
            test_sampling.Noise(), strategy=made.one_device(), psi=psi
        )
        return sampler.sample(50)[0][:, :-1]

    np.testing.assert_allclose(noise(0.25), 0.25 * noise(1.0), rtol=1e-6)
    with pytest.raises(ValueError, match="psi must be a number of at least 0, got -1"):
        noise(-1)


# Files


def wanted(count=10, labels=True, **about):
    return outputs.Wanted(
        np.arange(count),
        np.arange(count) % 3 if labels else None,
        names=ANIMALS,
        about={"checkpoint": "a", **about},
    )


def expected_images(sampler, asked):
    parts = list(sampler.numbered(asked.seeds, asked.labels))
    return pictures.to_uint8(np.concatenate([images for images, _ in parts]))


@pytest.mark.parametrize("labels", [True, False])
def test_a_folder_goes_on_where_it_was(tmp_path, labels):
    sampler, asked = make_sampler(4), wanted(labels=labels)
    outputs.write_folder(str(tmp_path), sampler, asked)
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 10
    by_seed = {int(file.stem.rpartition("-seed")[2]): file for file in files}
    for seed, image in enumerate(expected_images(sampler, asked)):
        np.testing.assert_array_equal(np.asarray(Image.open(by_seed[seed])), image)
    assert not labels or by_seed[5].name == "0002-goldfish-carp-seed0000005.png"
    before = {file: file.stat().st_mtime_ns for file in files}
    by_seed[3].unlink()
    outputs.write_folder(str(tmp_path), sampler, asked)
    changed = [f for f in files if f.stat().st_mtime_ns != before[f]]
    assert changed == [by_seed[3]]
    with pytest.raises(ValueError, match="holds other samples: checkpoint = a there, b asked for"):
        outputs.write_folder(str(tmp_path), sampler, wanted(checkpoint="b"))


def test_a_folder_takes_no_images_for_others(tmp_path, capsys):
    sampler = make_sampler(4)
    folder = tmp_path / "drawn"
    outputs.write_folder(str(folder), sampler, wanted(6))
    with pytest.raises(ValueError, match="classes = asked for there, drawn by seed asked for"):
        outputs.write_folder(str(folder), sampler, wanted(6, labels=False))
    first = folder / "0000-cat-seed0000000.png"
    before = first.read_bytes()
    capsys.readouterr()
    outputs.write_folder(str(folder), sampler, wanted(4))
    assert "holds 2 more images" in capsys.readouterr().out
    (tmp_path / "photo.png").write_bytes(before)
    with pytest.raises(ValueError, match="holds 1 PNG files that aren't samples"):
        outputs.write_folder(str(tmp_path), sampler, wanted(6))
    assert not (tmp_path / "samples.json").exists()


@pytest.mark.parametrize("labels", [True, False])
def test_a_file_that_is_not_whole_is_drawn_again(tmp_path, capsys, labels):
    sampler = make_sampler(4)
    outputs.write_folder(str(tmp_path), sampler, wanted(6, labels=labels))
    files = sorted(tmp_path.glob("*.png"))
    before = {file: file.read_bytes() for file in files}
    for file, size in zip(files, (0, 40, len(before[files[2]]) - 1), strict=False):
        os.truncate(file, size)
    times = {file: file.stat().st_mtime_ns for file in files[3:]}
    capsys.readouterr()
    outputs.write_folder(str(tmp_path), sampler, wanted(6, labels=labels))
    said = capsys.readouterr().out
    assert f"3 PNG files of {tmp_path} aren't whole, the first {files[0].name}: those" in said
    assert "3 of 6 images are there already" in said
    assert {file: file.read_bytes() for file in files} == before
    assert {file: file.stat().st_mtime_ns for file in files[3:]} == times
    assert sorted(tmp_path.iterdir()) == [*files, tmp_path / "samples.json"]


@pytest.mark.parametrize("text, reason", [('{"seed": "a', "Unterminated"), ("[]", "holds list")])
def test_a_folder_whose_record_is_damaged_is_named(tmp_path, text, reason):
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(
        ValueError, match=f"samples.json must be a JSON object .* {len(text)} bytes .*{reason}"
    ):
        outputs.write_folder(str(tmp_path), make_sampler(4), wanted(4))


def test_a_data_set_of_classes_with_one_name_is_refused_before_it_is_drawn(tmp_path, monkeypatch):
    sampler, asked = make_sampler(4), wanted()
    asked.names = ["cat", "cat", "dog"]
    monkeypatch.setattr(sampler, "numbered", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ValueError, match="(?i)duplicate|unique"):
        outputs.write_tfds(str(tmp_path / "drawn"), sampler, asked)


def test_arrays_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_PART", 4)
    sampler, asked = make_sampler(4), wanted()
    path = str(tmp_path / "samples.npz")
    calls, numbered = [], sampler.numbered

    def interrupted(indices, labels=None):
        calls.append(len(indices))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return numbered(indices, labels)

    monkeypatch.setattr(sampler, "numbered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outputs.write_npz(path, sampler, asked)
    outputs.write_npz(path, sampler, asked)
    assert calls == [4, 4, 4, 2]  # the first four weren't drawn again
    found = np.load(path)
    np.testing.assert_array_equal(found["images"], expected_images(sampler, asked))
    np.testing.assert_array_equal(found["labels"], asked.labels)
    np.testing.assert_array_equal(found["seeds"], np.arange(10))
    assert json.loads(str(found["about"])) == {"checkpoint": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
    assert zipfile.ZipFile(path).testzip() is None


def damage_a_half_done_output(write, path, sampler, asked, monkeypatch):
    """Draws 10 images in parts of 4 into an output that can't be written, as where the process is
    killed then; cuts the first part, and changes a byte of the second one.
    """

    def killed(self, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs.shards.Shards, "read", killed)
        with pytest.raises((KeyboardInterrupt, tf.errors.UnknownError)):  # of tf.data
            write(str(path), sampler, asked)
    (folder,) = path.parent.glob("*.parts-*")
    first, second, _ = sorted(folder.iterdir())
    os.truncate(first, 1000)
    content = bytearray(second.read_bytes())
    content[2000] ^= 1
    second.write_bytes(content)
    return folder


@pytest.mark.parametrize("write", [outputs.write_npz, outputs.write_tfds])
def test_parts_that_are_not_whole_are_drawn_again(tmp_path, monkeypatch, capsys, write):
    monkeypatch.setattr(outputs, "_PART", 4)
    sampler, asked = make_sampler(4), wanted()
    expected = expected_images(sampler, asked)
    path = tmp_path / ("big.npz" if write is outputs.write_npz else "big")
    folder = damage_a_half_done_output(write, path, sampler, asked, monkeypatch)
    capsys.readouterr()
    drawn, numbered = [], sampler.numbered
    monkeypatch.setattr(
        sampler,
        "numbered",
        lambda seeds, labels=None: drawn.extend(seeds) or numbered(seeds, labels),
    )
    write(str(path), sampler, asked)
    assert drawn == list(range(8))
    said = capsys.readouterr().out
    for images in ("0 to 3", "4 to 7"):
        assert f"{folder}: images {images} are damaged, and drawn again" in said
    assert "2 of 10 images are there already" in said
    if write is outputs.write_npz:
        found = np.load(path)["images"]
    else:
        dataset = data.ImageDataset(
            name="big",
            data_dir=str(tmp_path),
            image_size=32,
            num_classes=3,
            reference_split="train",
        )
        (batch,) = dataset.reference_batches(batch_size=10)
        found = pictures.to_uint8(batch["image"])
    np.testing.assert_array_equal(found, expected)
    assert not folder.exists()


def test_a_data_set_is_one_to_train_on(tmp_path):
    sampler, asked = make_sampler(4), wanted()
    outputs.write_tfds(str(tmp_path / "drawn"), sampler, asked)
    dataset = data.ImageDataset(
        name="drawn", data_dir=str(tmp_path), image_size=32, num_classes=3, reference_split="train"
    )
    assert dataset.class_names == ANIMALS
    (batch,) = dataset.reference_batches(batch_size=10)
    np.testing.assert_array_equal(batch["label"], asked.labels)
    np.testing.assert_array_equal(
        pictures.to_uint8(batch["image"]), expected_images(sampler, asked)
    )
    with pytest.raises(ValueError, match="There is a data set at"):
        outputs.write_tfds(str(tmp_path / "drawn"), sampler, asked)


def test_one_picture_has_a_limit():
    outputs.check_picture(10_000, 32)
    with pytest.raises(ValueError, match="at most 16,384 images of this size, 200,000 are asked"):
        outputs.check_picture(200_000, 32)
    with pytest.raises(ValueError, match="at most 4,096"):
        outputs.check_picture(5000, 128)


def test_films_have_every_image_there_and_back(tmp_path):
    images = np.zeros([3, 4, 32, 32, 3], np.uint8)
    images[1] = np.arange(4).reshape(4, 1, 1, 1) * 60
    films.write(str(tmp_path / "a.gif"), images)
    film = Image.open(tmp_path / "a.gif")
    assert film.n_frames == 6 and film.size == (256, 256)
    seen = []
    for frame in range(6):
        film.seek(frame)
        pixels = np.asarray(film.convert("RGB"))
        seen.append(int(pixels[64, 192, 0]))  # the second of two columns
        assert pixels[64, 64, 0] == 0 and pixels[192, 192, 0] == 255  # a path; none
    np.testing.assert_allclose(seen, [0, 60, 120, 180, 120, 60], atol=3)


def test_mp4_is_written_where_the_extra_is(tmp_path):
    imageio = pytest.importorskip("imageio.v3", reason="the extra video isn't installed")
    pytest.importorskip("av", reason="the extra video isn't installed")
    images = np.linspace(-1, 1, 5, dtype=np.float32).reshape(1, 5, 1, 1, 1)
    films.write(str(tmp_path / "a.mp4"), np.broadcast_to(images, [1, 5, 32, 32, 3]))
    frames = imageio.imread(tmp_path / "a.mp4", plugin="pyav")
    assert frames.shape == (8, 128, 128, 3)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3))[:5], [0, 64, 128, 191, 255], atol=6)


def test_nearest_images_are_the_nearest():
    dataset = made.MadeDataset(count=50)

    class Embedder:
        batch_size = 16

        def __call__(self, images):
            return {"pool_3": np.asarray(images).reshape(len(images), -1)}

    images = dataset.images[[7, 33]] + 1e-3
    distances, found = neighbourhood.nearest_training_images(
        images, embed=Embedder(), dataset=dataset, k=2
    )
    np.testing.assert_array_equal(found[:, 0], dataset.images[[7, 33]])
    for image, row in zip(images, distances, strict=True):
        away = np.sort(np.linalg.norm((dataset.images - image).reshape(50, -1), axis=1))
        np.testing.assert_allclose(row, away[:2], rtol=1e-5)
    with pytest.raises(ValueError, match="--nearest must be at least 1 and at most 50, got 51"):
        neighbourhood.nearest_training_images(images, embed=Embedder(), dataset=dataset, k=51)


# Flags


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(output="x.gif"), "--output must end in .png"),
        (dict(truncation=["0"]), "truncation must be positive"),
        (dict(truncation=["a"]), "--truncation must be numbers, got 'a'"),
        (dict(psi=["-1"]), "psi must be a number of at least 0, got -1"),
        (dict(psi=["1", "2"], truncation=["1", "2"]), "Only one of --truncation and --psi"),
        (dict(psi=["1", "2"], output="x.npz"), "the --output must end in .png"),
        (dict(seeds=["1"], per_class=3), "Give one of --per_class and --seeds"),
        (dict(count=3, classes=["1"]), "--count draws each image's class by its seed"),
        (dict(nearest=3, interpolate="seeds"), "can't go together"),
        (dict(interpolate="seeds", output="x.npz"), "the --output must end in .png .or .gif"),
        (dict(seeds=["x"]), "Seeds are numbers"),
        (dict(seeds=[]), "No seed is asked for"),
        (dict(psi=[]), "--psi must be numbers, got none"),
        (dict(format="npz", output="folder/"), "--format=npz is one file"),
    ],
)
def test_wrong_requests_are_refused_at_once(flags, message):
    with pytest.raises(ValueError, match=message):
        sampled.Request(model_dir="run", **flags).check()


@pytest.mark.parametrize("output", ["grid.png", "samples.npz", "files/"])
def test_what_cannot_be_written_is_said_before_it_is_drawn(tmp_path, output):
    sampled.check_place(sampled.Request(model_dir="run", output=f"{tmp_path}/new/{output}"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file.* can't be written to: choose another --output"):
        sampled.check_place(sampled.Request(model_dir="run", output=f"{tmp_path}/file/{output}"))
