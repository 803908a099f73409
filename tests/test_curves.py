"""TensorBoard's file of scalars: what TensorBoard reads of it, and after a write that failed."""

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator

from hamgan.run import curves


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_shows_what_was_added(tmp_path):
    made = curves.Curves(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing to say yet
    made.add(1, {"loss/a": 0.5, "b": 3})
    made.add(2, {"loss/a": 0.25})
    made.flush()
    assert shown(tmp_path / "run") == {"loss/a": [(1, 0.5), (2, 0.25)], "b": [(1, 3.0)]}


def test_what_was_given_up_is_forgotten(tmp_path):
    made = curves.Curves(str(tmp_path))
    for step in (1, 2, 3):
        made.add(step, {"a": step})
    made.leave(1)
    made.add(2, {"a": 20})
    made.flush()
    assert shown(tmp_path) == {"a": [(1, 1.0), (2, 20.0)]}


def test_files_of_one_second_are_two(tmp_path):
    for value in (1, 2):
        made = curves.Curves(str(tmp_path))
        made.add(value, {"a": value})
        made.flush()
    assert len(list(tmp_path.iterdir())) == 2
    assert shown(tmp_path) == {"a": [(1, 1.0), (2, 2.0)]}


def test_behind_a_torn_record_another_file_begins(tmp_path, monkeypatch):
    made = curves.Curves(str(tmp_path))
    made.add(1, {"a": 1})
    made.flush()
    (first,) = tmp_path.iterdir()

    class Full:
        def write(self, record):
            with open(first, "ab") as file:
                file.write(record[:5])
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(made, "_file", Full())
    with pytest.raises(tf.errors.ResourceExhaustedError):
        made.add(2, {"a": 2})
    made.add(3, {"a": 3})
    made.flush()
    assert len(list(tmp_path.iterdir())) == 2
    whole = max(tmp_path.iterdir())
    steps = [
        event.step
        for event in tf.compat.v1.train.summary_iterator(str(whole))
        if event.summary.value
    ]
    assert steps == [3]
