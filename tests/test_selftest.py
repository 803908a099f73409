"""The self-test passes on a set-up that is right, and each of its checks fails on the fault it is
there for.
"""

import dataclasses
import functools

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf

from hamgan import distribution
from hamgan.evaluation import metrics, selftest

WEIGHT = np.random.default_rng(0).normal(size=[12, 10]).astype(np.float32)


def outputs(images):
    """Features that follow from pooled pixels."""
    pool = tf.reshape(tf.nn.avg_pool2d(images, 16, 16, "VALID"), [-1, 12])
    return {"pool_3": pool, "logits": 20 * pool @ WEIGHT}


def embedder(strategy, batch_size, *, of_images=outputs):
    """An embedder without a file: each replica takes its part of the batch."""

    @tf.function
    def embed(images):
        def of_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            share = -(-batch_size // strategy.num_replicas_in_sync)
            return of_images(images[replica * share : (replica + 1) * share])

        return {
            name: distribution.gather(strategy, v) for name, v in strategy.run(of_replica).items()
        }

    return lambda images: {
        name: value.numpy() for name, value in embed(tf.constant(images)).items()
    }


def run(of_images=outputs, strategy=None, **kwargs):
    dataset = made.MadeDataset(count=100)
    found = list(
        selftest.checks(
            embedder=functools.partial(embedder, of_images=of_images),
            strategy=strategy or made.one_device(),
            dataset=dataset,
            batch_size=33,
            progress=False,
            **kwargs,
        )
    )
    assert len(found) == 3
    return found


def known(low, high, **other):
    facts = dict(
        num_logits=10, dataset="made", split="train", count=100, image_size=32, low=low, high=high
    )
    return [selftest.KnownScore(**{**facts, **other})]


def real_score():
    return metrics.inception_score(outputs(made.MadeDataset(count=100).images)["logits"].numpy())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_set_up_that_is_right_passes(replicas):
    strategy = made.one_device() if replicas == 1 else helpers.two_replicas()
    score = real_score()
    found = run(strategy=strategy, known=known(score - 1e-3, score + 1e-3))
    assert [check.passed for check in found] == [True] * 3
    assert str(found[2]).startswith("Inception Score of 100 real images of made, split train: ok (")
    assert all("\n" not in str(check) for check in found)


def test_features_that_depend_on_the_batch_fail():
    def dependent(images):
        return {
            name: value - 0.01 * tf.reduce_mean(value, axis=0)
            for name, value in outputs(images).items()
        }

    found = run(dependent)
    assert found[0].passed is False and "FAILED" in str(found[0])


def test_a_device_that_computes_something_else_fails():
    def rounded(images):
        error = 0.02 if tf.distribute.get_strategy().num_replicas_in_sync > 1 else 0.0
        return {name: value * (1 + error) for name, value in outputs(images).items()}

    found = run(rounded, helpers.two_replicas())
    assert [check.passed for check in found[:2]] == [True, False]


def test_a_score_outside_its_known_range_fails():
    score = real_score()
    assert run(known=known(score + 0.01, score + 1))[2].passed is False
    assert run(known=known(score - 1, score - 0.01))[2].passed is False


@pytest.mark.parametrize(
    "other", [{"count": 99}, {"split": "test"}, {"num_logits": 1008}, {"image_size": 64}]
)
def test_a_score_known_for_something_else_is_not_judged(other):
    check = run(known=known(0, 1, **other))[2]
    assert check.passed is None and "not judged" in str(check)


def test_inceptions_range_is_the_published_one():
    (inception,) = [score for score in selftest.KNOWN_SCORES if score.num_logits == 1008]
    assert dataclasses.astuple(inception) == (
        1008,
        "imagenet2012",
        "validation",
        50_000,
        128,
        159.0,
        166.0,
    )


def test_pixels_of_another_range_fall_out_of_the_known_score():
    score = real_score()
    found = run(lambda images: outputs(images / 2), known=known(0.999 * score, 1.001 * score))
    assert found[2].passed is False
