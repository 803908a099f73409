import numpy as np
import pytest
import tensorflow as tf

from hamgan.cli import check_resume
from hamgan.run.checkpoints import Checkpoints


def save(directory, **changed):
    values = {
        "step": np.int64(4),
        "generator/kernel": np.array([1.0, -2.0, 0.0]),
        "generator/u": np.ones(2),
        **changed,
    }
    return Checkpoints(
        str(directory), {name: tf.Variable(value) for name, value in values.items()}
    ).save()


def test_equal_checkpoints_have_no_difference(tmp_path):
    found = check_resume.differences(save(tmp_path / "a"), save(tmp_path / "b"))
    assert found == {"step": 0, "generator/kernel": 0, "generator/u": 0}


@pytest.mark.parametrize(
    "kernel, expected",
    [([1.0, -2.0 - 2**-50, 0.0], 2.0**-51), ([1.0, -2.5, 0.0], 0.25), ([1.0, -2.0, -0.0], 0.0)],
)
def test_one_different_bit_is_a_difference(tmp_path, kernel, expected):
    changed = {"generator/kernel": np.array(kernel)}
    found = check_resume.differences(save(tmp_path / "a"), save(tmp_path / "b", **changed))
    assert found["generator/kernel"] > 0
    assert found["generator/kernel"] == pytest.approx(expected)
    assert found["step"] == found["generator/u"] == 0


def test_missing_variable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Only one of the checkpoints has .*generator/b"):
        check_resume.differences(
            save(tmp_path / "a"), save(tmp_path / "b", **{"generator/b": np.zeros(1)})
        )
