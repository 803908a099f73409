"""What a packed data set was made of: small images; files added, removed or changed since."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_data import encode, make, picture
from test_prepare import DATA_PREP, contents, pack_tree, read, small_tree, write_tree

from data_prep import manifest, packing, sources
from hamgan.data import prepared


def tree_of_sizes(root, sizes):
    return write_tree(root, {name: encode(picture(*size), "PNG") for name, size in sizes.items()})


SIZES = {"cat/a.png": (8, 8), "cat/b.png": (7, 40), "dog/c.png": (1, 1), "dog/d.png": (200, 9)}


def test_small_images_are_counted_and_the_smallest_named(tmp_path):
    folder, _ = pack_tree(tree_of_sizes(tmp_path / "tree", SIZES), tmp_path / "data")
    assert prepared.enlarged(folder) == (2, 4, "dog/c.png", 1)
    words = manifest.describe_enlarged(folder, 8)
    assert "2 of 4 images are smaller than 8 x 8" in words and "dog/c.png" in words
    assert "--min_side=8" in words


def test_nothing_is_said_where_none_is_small(tmp_path):
    folder, _ = pack_tree(small_tree(tmp_path / "tree"), tmp_path / "data")
    assert prepared.enlarged(folder).number == 0
    assert manifest.describe_enlarged(folder, 8) is None


def test_small_images_are_left_out_when_asked(tmp_path):
    tree = tree_of_sizes(tmp_path / "tree", SIZES)
    folder, _ = pack_tree(tree, tmp_path / "data", min_side=8)
    assert len(read(folder)[1]) == 2
    assert json.loads(contents(folder)["images.json"])["splits"]["train"]["left_out"] == 2
    assert pack_tree(tree, tmp_path / "data", min_side=8) == (folder, False)
    with pytest.raises(ValueError, match="'min_side': 8.* isn't"):
        pack_tree(tree, tmp_path / "data")


def change(tree, what):
    path = tree / "cat" / "0.png"
    if what == "an image is added":
        (tree / "cat" / "new.png").write_bytes(path.read_bytes())
    elif what == "a class is added":
        write_tree(tree, {"yak/0.png": path.read_bytes()})
    elif what == "an image is removed":
        path.unlink()
    elif what == "a class is removed":
        for image in (tree / "owl").iterdir():
            image.unlink()
        (tree / "owl").rmdir()
    elif what == "a class is renamed":
        (tree / "owl").rename(tree / "yak")
    elif what == "an image is replaced":
        path.write_bytes(encode(picture(33, 33), "PNG"))
    elif what == "a byte is changed":  # of the same length, later
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        os.utime(path, (2e9, 2e9))


CHANGES = {
    "an image is added": r"1 image added \(cat/new.png\)",
    "a class is added": r"1 class added \(yak\); 1 image added \(yak/0.png\)",
    "an image is removed": r"1 image removed \(cat/0.png\)",
    "a class is removed": r"1 class removed \(owl\); 5 images removed \(owl/0.png",
    "a class is renamed": r"1 class added \(yak\); 1 class removed \(owl\)",
    "an image is replaced": r"1 image changed \(cat/0.png\)",
    "a byte is changed": r"1 image changed \(cat/0.png\)",
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_changed_is_not_found_done(tmp_path, what):
    small_tree(tmp_path / "tree")
    folder, _ = pack_tree(tmp_path / "tree", tmp_path / "data")
    before = contents(folder)
    assert pack_tree(tmp_path / "tree", tmp_path / "data") == (folder, False)
    change(tmp_path / "tree", what)
    with pytest.raises(ValueError, match=f"{CHANGES[what]}.*--name=made_8_2"):
        pack_tree(tmp_path / "tree", tmp_path / "data")
    assert contents(folder) == before


def test_a_file_that_was_only_touched_is_the_same(tmp_path):
    tree = small_tree(tmp_path / "tree")
    folder, _ = pack_tree(tree, tmp_path / "data")
    os.utime(f"{tree}/cat/0.png", (2e9, 2e9))
    assert pack_tree(tree, tmp_path / "data") == (folder, False)


def test_files_left_out_are_no_difference(tmp_path):
    tree = tree_of_sizes(tmp_path / "tree", SIZES)
    write_tree(tmp_path / "tree", {"cat/bad.png": b"no image"})
    options = dict(skip_bad=True, min_side=8)
    folder, _ = pack_tree(tree, tmp_path / "data", **options)
    assert pack_tree(tree, tmp_path / "data", **options) == (folder, False)


def of_earlier_version(folder, **settings):
    """Leaves of a data set what a version without manifests wrote."""
    for name in ("images.json", "source_files.json.gz"):
        os.remove(f"{folder}/{name}")
    there = json.loads(contents(folder)["prepared_from.json"])
    del there["decoder"]
    with open(f"{folder}/prepared_from.json", "w") as file:
        json.dump({**there, **settings}, file)


@pytest.mark.parametrize("what", ["an image is added", "a class is renamed"])
def test_data_sets_of_earlier_versions_are_asked_for_their_counts(tmp_path, what):
    small_tree(tmp_path / "tree")
    folder, _ = pack_tree(tmp_path / "tree", tmp_path / "data")
    of_earlier_version(folder, decoding="decode_as_stored")
    assert pack_tree(tmp_path / "tree", tmp_path / "data") == (folder, False)
    change(tmp_path / "tree", what)
    with pytest.raises(ValueError, match="--name=made_8_2"):
        pack_tree(tmp_path / "tree", tmp_path / "data")


def test_parts_of_another_decoder_are_not_gone_on_with(tmp_path):
    tree = small_tree(tmp_path / "tree")
    folder, _ = pack_tree(tree, tmp_path / "data")
    os.remove(f"{folder}/dataset_info.json")
    of_earlier_version(folder)
    with pytest.raises(ValueError, match="choose another --name, or remove that folder"):
        pack_tree(tree, tmp_path / "data")


def test_a_data_set_that_was_prepared_anew_is_packed_anew(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat"]),
    }
    stored = str(tmp_path / "stored")

    def packed(height):
        rows = [{"image": encode(picture(height, 20), "PNG"), "label": 0}]
        make(stored, features, train=rows)
        source = sources.Prepared("made", stored)
        options = dict(name="made_8", data_dir=str(tmp_path), size=8, num_workers=1)
        return packing.pack(source, decode=sources.decode_as_stored, **options)

    folder, written = packed(20)
    assert written and packed(20) == (folder, False)
    (tmp_path / "stored").rename(tmp_path / "old")
    with pytest.raises(ValueError, match="split train has other images.*--name=made_8_2"):
        packed(21)


def test_the_command_says_both(tmp_path):
    def folder_py():
        command = [sys.executable, str(DATA_PREP / "folder.py"), "--num_workers=1", "--size=32"]
        return subprocess.run(
            [*command, f"--image_dir={tmp_path}/tree", f"--data_dir={tmp_path}/data"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(DATA_PREP.parent)},
        )

    sizes = {"a/small.png": (1, 1), "a/wide.png": (10, 300), "b/0.png": (40, 40)}
    for name, size in sizes.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    first = folder_py()
    assert first.returncode == 0, first.stderr
    assert "WARNING: 2 of 3 images are smaller than 32 x 32" in first.stdout
    assert "a/small.png (shorter side: 1)" in first.stdout and "--min_side=32" in first.stdout
    Image.new("RGB", (40, 40)).save(tmp_path / "tree" / "b" / "new.png")
    again = folder_py()
    assert again.returncode != 0
    assert "1 image added (b/new.png)" in again.stderr and "--name=tree_32_2" in again.stderr
