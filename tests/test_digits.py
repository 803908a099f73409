"""The digits as a TFDS dataset: what is stored, how it is split, and the command that makes it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from data_prep import digits

SCRIPT = Path(digits.__file__)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder, written = digits.prepare(str(tmp_path_factory.mktemp("tfds")))
    assert written
    return builder


def read(builder, split):
    examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def test_splits_hold_every_image_once(prepared):
    source = datasets.load_digits()
    # Grey levels 0..16 to 0..255; 8 * 255 / 16 = 127.5 goes up.
    levels = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255])
    expected = sorted(
        (int(label), levels[image.astype(int)].astype(np.uint8).tobytes())
        for image, label in zip(source.images, source.target, strict=True)
    )
    stored = []
    for split, size in (("train", 1497), ("test", 300)):
        images, labels = read(prepared, split)
        assert images.shape == (size, 8, 8, 1) and images.dtype == np.uint8
        stored += [
            (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
        ]
    assert sorted(stored) == expected


def test_features(prepared):
    assert prepared.info.full_name == "digits/1.0.0"
    assert prepared.info.features["label"].names == [str(digit) for digit in range(10)]
    raw = prepared.as_dataset(split="test", decoders={"image": tfds.decode.SkipDecoding()})
    assert next(iter(raw))["image"].numpy().startswith(b"\x89PNG")


def test_split_is_stratified(prepared):
    labels = datasets.load_digits().target
    _, test_labels = read(prepared, "test")
    share = np.bincount(labels) * 300 / len(labels)
    assert np.all(np.abs(np.bincount(test_labels) - share) < 1)


def test_choice_by_hand():
    # 6 of class 0 and 4 of class 1, 5 for the test: 3 and 2. Floors of (j + 0.5) * 2 are 1, 3, 5
    # for class 0, at places 2, 5, 8; and 1, 3 for class 1, at places 4, 9.
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0, 1])
    assert digits.choose_test(labels, 5).tolist() == [2, 4, 5, 8, 9]
    # 3 : 3 : 4, 5 for the test: 1.5, 1.5 and 2; the odd one comes from the smaller label.
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    assert np.bincount(labels[digits.choose_test(labels, 5)]).tolist() == [2, 1, 2]


def test_same_files_every_time(prepared, tmp_path):
    again, _ = digits.prepare(str(tmp_path))
    for split in ("train", "test"):
        first, second = (
            [path.read_bytes() for path in builder.info.splits[split].filepaths]
            for builder in (prepared, again)
        )
        assert first == second


def test_prepares_without_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("the digits need no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("tensorflow_datasets.core.utils.gcs_utils.exists", refuse)
    _, written = digits.prepare(str(tmp_path))
    assert written


def test_half_made_folder_is_made_anew(tmp_path):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "digits-train.tfrecord-00000-of-00001").write_bytes(b"half a reco")
    builder, written = digits.prepare(str(tmp_path))
    assert written
    assert len(read(builder, "train")[1]) == 1497


def test_command_writes_once(tmp_path):
    def run(*args):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )

    first = run("--data_dir=data")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "data" / "digits" / "1.0.0"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert f"Wrote digits/1.0.0 (train 1497, test 300): {Path('data/digits/1.0.0')}" in first.stdout

    second = run("--data_dir=data")
    assert second.returncode == 0, second.stderr
    assert "Found digits/1.0.0 (train 1497, test 300)" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written

    wrong = run("data")
    assert wrong.returncode != 0
    assert "without a flag name: ['data']. Write --name=value." in wrong.stdout + wrong.stderr
