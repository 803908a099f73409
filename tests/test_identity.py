"""What makes a run another run: its settings and its images."""

import os

import numpy as np
import pytest
import tensorflow as tf

from hamgan.data import content
from hamgan.run.identity import Identity


def write_records(path, images):
    with tf.io.TFRecordWriter(str(path)) as file:
        for image in images:
            file.write(image.tobytes())


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, [40, 1000], np.uint8)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    if request.param == "large":
        monkeypatch.setattr(content, "_SMALL", 100)


def test_digest_is_of_the_content_and_not_of_the_place(tmp_path, images, size):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_records(tmp_path / folder / "images-0", images)
    before = content.digest([tmp_path / "a" / "images-0"])
    assert content.digest([tmp_path / "b" / "images-0"]) == before
    # One byte of one image in the middle, in a file of the same size, with the same time.
    status = os.stat(tmp_path / "a" / "images-0")
    images[20, 500] ^= 1
    write_records(tmp_path / "a" / "images-0", images)
    os.utime(tmp_path / "a" / "images-0", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(tmp_path / "a" / "images-0").st_size == status.st_size
    assert content.digest([tmp_path / "a" / "images-0"]) != before


def test_digest_of_a_large_file_is_kept_as_long_as_the_file_stays(tmp_path, images, monkeypatch):
    monkeypatch.setattr(content, "_SMALL", 100)
    path = tmp_path / "images-0"
    write_records(path, images)
    before = content.digest([path])
    monkeypatch.setattr(content, "_of_records", lambda *_: "read again")
    assert content.digest([path]) == before
    write_records(path, images)
    assert content.digest([path]) != before


def test_digest_needs_no_more_than_reading(tmp_path, images, monkeypatch):
    monkeypatch.setattr(content, "_SMALL", 100)

    def refuse(*args):
        raise PermissionError("read only")

    monkeypatch.setattr(content.records, "write_whole", refuse)
    write_records(tmp_path / "images-0", images)
    assert content.digest([tmp_path / "images-0"]).startswith("records:")


def test_remote_files_have_a_digest_of_another_kind(images):
    path = "ram://hamgan-content/images-0"
    write_records(path, images)
    before = content.digest([path])
    images[0, 0] ^= 1
    write_records(path, images)
    assert before.startswith("blocks:") and content.digest([path]) != before


def identity(**data):
    return Identity(
        settings={"rate": "1", "width": "4"},
        data={"name": "made", "splits": {"train": {"images": 5, "content": "records:a", **data}}},
    )


def test_differences_of_runs_are_listed():
    now = identity(content="records:b", images=6)
    now = Identity(settings={"rate": "2", "width": "4"}, data=now.data)
    assert now.differences(Identity.from_text(identity().to_text())) == [
        "rate = 1 there, 2 asked for",
        "splits: train: data: content records:a there, records:b here",
        "splits: train: data: images 5 there, 6 here",
    ]


@pytest.mark.parametrize(
    "before", [identity(), Identity(), identity(content="blocks:c"), Identity(settings={})]
)
def test_what_cannot_be_compared_is_no_difference(before):
    assert identity().differences(before) == []


def test_default_of_a_setting_is_for_the_configuration_to_know():
    now = Identity(settings={"rate": "2"}, differs=lambda name, before, now: name == "rate")
    assert now.differences(identity()) == ["rate = 1 there, 2 asked for"]
    assert Identity(settings={"rate": "2"}).differences(identity()) == [
        "rate = 1 there, 2 asked for",
        "width = 4 there, (not set) asked for",
    ]
