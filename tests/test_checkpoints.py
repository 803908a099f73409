import numpy as np
import pytest
import tensorflow as tf

from hamgan import checkpoints


def variables(step=0, **extra):
    named = {
        "step": tf.Variable(step, dtype=tf.int64),
        "generator/block.1/kernel": tf.Variable(np.arange(6.0).reshape(2, 3)),
    }
    return {**named, **extra}


def test_restores_what_was_saved(tmp_path):
    saved = variables(step=7)
    path = checkpoints.Checkpoints(str(tmp_path), saved).save()
    assert path.endswith("ckpt-7")
    fresh = variables()
    fresh["generator/block.1/kernel"].assign(tf.zeros([2, 3], tf.float64))
    assert checkpoints.Checkpoints(str(tmp_path), fresh).restore_latest() == path
    assert int(fresh["step"].numpy()) == 7
    np.testing.assert_array_equal(fresh["generator/block.1/kernel"].numpy(), np.arange(6.0).reshape(2, 3))


def test_no_checkpoint_restores_nothing(tmp_path):
    assert checkpoints.Checkpoints(str(tmp_path), variables()).restore_latest() is None


def test_keeps_the_last_n(tmp_path):
    named = variables()
    saved = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), named, max_to_keep=2)
    for step in (1, 2, 10):
        named["step"].assign(step)
        saved.save()
    assert checkpoints.available(str(tmp_path)) == ["ckpt-2", "ckpt-10"]


def test_partial_restore_takes_a_part(tmp_path):
    path = checkpoints.Checkpoints(str(tmp_path), variables(step=7)).save()
    part = {"step": tf.Variable(0, dtype=tf.int64)}
    checkpoints.restore(path, part, partial=True)
    assert int(part["step"].numpy()) == 7


def test_differences_are_listed_and_nothing_is_changed(tmp_path):
    path = checkpoints.Checkpoints(str(tmp_path), variables(step=7, only_there=tf.Variable(1.0))).save()
    here = variables(only_here=tf.Variable(1.0))
    here["generator/block.1/kernel"] = tf.Variable(np.zeros([3, 3]))
    with pytest.raises(ValueError) as error:
        checkpoints.restore(path, here)
    message = str(error.value)
    assert "only_here: not in the checkpoint" in message
    assert "only_there []: only in the checkpoint" in message
    assert "generator/block.1/kernel: [2, 3] in the checkpoint, [3, 3] in this configuration" in message
    assert int(here["step"].numpy()) == 0


def test_truncated_checkpoint_is_an_error(tmp_path):
    path = checkpoints.Checkpoints(str(tmp_path), variables()).save()
    index = tmp_path / "ckpt-0.index"
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        checkpoints.restore(path, variables())


def test_find_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="No checkpoint in .*checkpoints. Train first"):
        checkpoints.find(str(tmp_path))
    path = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), variables(step=5)).save()
    assert checkpoints.find(str(tmp_path)) == path
    assert checkpoints.find(str(tmp_path), "ckpt-5") == path
    assert checkpoints.find(str(tmp_path), path) == path
    with pytest.raises(ValueError, match="No checkpoint ckpt-6; .* holds: ckpt-5"):
        checkpoints.find(str(tmp_path), "ckpt-6")
