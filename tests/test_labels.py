import numpy as np
import pytest
import tensorflow as tf

from hamgan import labels, stateless

KEYS = stateless.example_keys(stateless.key(3), tf.range(4000))


def test_labels_of_data_are_those_of_the_real_images():
    real = tf.constant([2, 0, 2, 1])
    np.testing.assert_array_equal(labels.of_data(KEYS[:4], real), real)


def draw(weights):
    """Labels of all keys: in a graph, because eagerly each key is drawn by a call of its own."""
    return tf.function(labels.Weighted(weights=weights))(KEYS, None)


def test_weighted_labels_follow_the_histogram():
    weights = (500, 0, 1500, 2000)
    drawn = draw(weights)
    assert drawn.dtype == tf.int32
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    # Six standard deviations of a binomial count.
    expected = np.array(weights)
    np.testing.assert_array_less(
        np.abs(counts - expected), 6 * np.sqrt(expected * (1 - expected / 4000)) + 1
    )
    np.testing.assert_array_equal(labels.Weighted(weights=weights)(KEYS[7:9], None), drawn[7:9])


@pytest.mark.parametrize("weights, label", [((0, 0, 3), 2), ((3, 0, 0), 0), ((1,), 0)])
def test_class_of_all_the_weight_is_always_drawn(weights, label):
    assert set(draw(weights).numpy()) == {label}


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (), (1, np.nan)])
def test_weights_that_are_no_histogram_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be a list of numbers >= 0, not all 0"):
        labels.Weighted(weights=weights)
