import numpy as np
import pytest
import tensorflow as tf

from hamgan.schedules import LinearDecay


def test_rate_is_constant_then_falls_along_a_line():
    schedule = LinearDecay(initial=4e-4, start=100, end=300, final=1e-4)
    rates = [
        float(schedule(tf.constant(step, tf.int64)))
        for step in (0, 100, 150, 200, 299, 300, 10_000)
    ]
    np.testing.assert_allclose(
        rates, [4e-4, 4e-4, 3.25e-4, 2.5e-4, 1.015e-4, 1e-4, 1e-4], rtol=1e-5
    )


def test_single_steps_count_beyond_what_float32_holds():
    schedule = LinearDecay(initial=1.0, start=2**25, end=2**25 + 4)
    assert [float(schedule(tf.constant(2**25 + step, tf.int64))) for step in range(5)] == [
        1,
        0.75,
        0.5,
        0.25,
        0,
    ]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(initial=1.0, end=0), r"start must be in \[0, end\), got start 0 and end 0"),
        (dict(initial=1.0, start=5, end=5), r"got start 5 and end 5"),
        (dict(initial=1.0, end=1e6), r"end must be a whole number like 1_000_000, got 1000000.0"),
        (dict(initial=-1.0, end=5), "initial must not be negative, got -1.0"),
        (dict(initial=1.0, end=5, final=-0.1), "final must not be negative, got -0.1"),
    ],
)
def test_schedule_that_makes_no_sense_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LinearDecay(**kwargs)
