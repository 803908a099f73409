"""metrics.jsonl is valid JSON whatever is logged, and readable whatever was killed; whole files."""

import json
import resource
import threading
import uuid

import numpy as np
import pytest
import tensorflow as tf

from hamgan.run import records


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """A folder on the disk, and one on a file system that only tf.io.gfile knows."""
    return str(tmp_path) if request.param == "local" else f"ram://{uuid.uuid4()}"


def _content(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _write(path, data):
    # On ram:// the mode "wb" adds to a file that is there.
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(data)


def _strict(line):
    """JSON as the standard has it, which knows no NaN."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


def test_a_record_is_one_line_with_its_time(folder):
    path = f"{folder}/run/metrics.jsonl"
    records.append(path, {"step": 3, "kind": "train", "note": "two\nlines, ü"})
    records.append(path, {"kind": "event", "step": 4, "time": 12.5})

    lines = _content(path).decode().split("\n")
    assert len(lines) == 3 and lines[2] == ""
    first, second = map(_strict, lines[:2])
    assert first.pop("time") > 1.6e9
    assert first == {"kind": "train", "step": 3, "note": "two\nlines, ü"}
    assert second == {"kind": "event", "step": 4, "time": 12.5}


def test_read_keeps_the_order_and_selects_a_kind(folder):
    path = f"{folder}/metrics.jsonl"
    for step, kind in enumerate(["train", "evaluation", "train", "event"]):
        records.append(path, {"kind": kind, "step": step})
    assert [record["step"] for record in records.read(path)] == [0, 1, 2, 3]
    assert [record["step"] for record in records.read(path, kind="train")] == [0, 2]
    assert records.read(path, kind="other") == []


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {
        "python": float("nan"),
        "numpy": np.float32("inf"),
        "tensor": tf.constant(float("-inf")),
        "list": [1.0, float("nan")],
        "array": np.array([np.nan, 2.0]),
        "deep": {"below": float("nan"), "finite": 0.25},
    }
    records.append(path, {"kind": "train", "step": 0, **values})
    record = _strict(path.read_text())
    assert record["python"] is record["numpy"] is record["tensor"] is None
    assert record["list"] == [1.0, None]
    assert record["array"] == [None, 2.0]
    assert record["deep"] == {"below": None, "finite": 0.25}


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (tf.constant(5, tf.int64), 5),
        (tf.constant(2.5, tf.bfloat16), 2.5),
        (tf.Variable([0.5, 1.0]), [0.5, 1.0]),
        ((1, "a", None), [1, "a", None]),
        (2**70, 2**70),
    ],
)
def test_numpy_and_tensorflow_values_become_plain_json(tmp_path, value, expected):
    path = tmp_path / "metrics.jsonl"
    records.append(path, {"kind": "train", "step": tf.constant(1), "value": value})
    record = _strict(path.read_text())
    assert record["value"] == expected and type(record["value"]) is type(expected)
    assert record["step"] == 1


@pytest.mark.parametrize("length", [1, 10, 30])
def test_a_cut_last_line_is_passed_over_and_the_next_record_kept(folder, length):
    path = f"{folder}/metrics.jsonl"
    for step in range(3):
        records.append(path, {"kind": "train", "step": step})
    whole = _content(path)
    last = whole.rindex(b"\n", 0, -1) + 1
    _write(path, whole[: last + length])

    assert [record["step"] for record in records.read(path)] == [0, 1]
    records.append(path, {"kind": "train", "step": 9})
    assert [record["step"] for record in records.read(path)] == [0, 1, 9]


def test_a_record_that_lacks_only_its_line_break_counts(folder):
    path = f"{folder}/metrics.jsonl"
    records.append(path, {"kind": "train", "step": 0})
    _write(path, _content(path)[:-1])
    records.append(path, {"kind": "train", "step": 1})
    assert [record["step"] for record in records.read(path)] == [0, 1]


def test_several_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(kind):
        for step in range(50):
            records.append(path, {"kind": kind, "step": step, "filling": kind * 500})

    threads = [threading.Thread(target=write, args=[kind]) for kind in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes().count(b"\n\n") == 0
    for kind in "abcd":
        assert [record["step"] for record in records.read(path, kind)] == list(range(50))


@pytest.mark.parametrize(
    "record, message",
    [
        ({"step": 1}, r'record\["kind"\] must be a string .* got None'),
        ({"kind": "", "step": 1}, r'record\["kind"\] must be a string'),
        ({"kind": "train"}, r'record\["step"\] must be an integer, got None'),
        ({"kind": "train", "step": 1.5}, r'record\["step"\] must be an integer, got 1.5'),
        ({"kind": "train", "step": True}, r'record\["step"\] must be an integer, got True'),
        ({"kind": "train", "step": 1, "x": {"y": 1j}}, r"record\['x.y'\] must be a number.*1j"),
        ({"kind": "train", "step": 1, "x": [b"1"]}, r"record\['x'\] must be a number"),
        ({"kind": "train", "step": 1, "x": object()}, r"record\['x'\] must be a number"),
    ],
)
def test_a_record_without_form_is_refused_and_not_written(tmp_path, record, message):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match=message):
        records.append(path, record)
    assert not path.exists()


def test_a_record_that_is_written_in_part_is_an_error(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, {"kind": "train", "step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="Only a part of a record"):
            records.append(path, {"kind": "evaluation", "step": 2, "words": 100 * "words "})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    records.append(path, {"kind": "evaluation", "step": 2})
    assert [record["step"] for record in records.read(path)] == [1, 2]


def test_reading_names_the_missing_file(folder):
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        records.read(f"{folder}/nothing.jsonl")


def test_reading_names_the_line_that_is_no_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n\nstep,loss\n')
    with pytest.raises(ValueError, match="line 3 is 'step,loss'"):
        records.read(path)


def test_write_whole_makes_folders_and_replaces(folder):
    path = f"{folder}/a/b/file"
    records.write_whole(path, b"first")
    records.write_whole(path, b"second")
    assert _content(path) == b"second"
    assert tf.io.gfile.listdir(f"{folder}/a/b") == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(folder):
    path = f"{folder}/file"
    records.write_whole(path, b"old")
    with pytest.raises(TypeError):
        records.write_whole(path, object())
    assert _content(path) == b"old"
    assert tf.io.gfile.listdir(folder) == ["file"]


def test_scalars_of_one_step_have_no_tag_in_common():
    def evaluation(**others):
        return {
            "kind": "evaluation",
            "step": 5,
            "time": 1.5,
            "fid": 3.0,
            "num_samples": 7,
            **others,
        }

    protocols = [{"protocol": {"name": name}} for name in ("paper", "val-50k")]
    every = [
        {"kind": "train", "step": 5, "time": 1.5, "loss/generator": 0.5, "fid": None},
        evaluation(),
        *(evaluation(seed=seed, **protocol) for protocol in protocols for seed in (0, 1)),
        {
            **evaluation(**protocols[0]),
            "kind": "aggregate",
            "scores": {"fid": {"mean": 3.0, "std": 0.25, "values": [1]}},
        },
    ]
    tags = [records.scalars(record) for record in every]
    assert tags == [
        {"loss/generator": 0.5},
        {"evaluation/fid": 3.0},
        {"evaluation/paper/fid": 3.0},
        {"evaluation/paper/seed 1/fid": 3.0},
        {"evaluation/val-50k/fid": 3.0},
        {"evaluation/val-50k/seed 1/fid": 3.0},
        {"aggregate/paper/fid": 3.0, "aggregate/paper/fid_std": 0.25},
    ]
