"""From a generator to a record through a network of Inception's shape: 299x299 in, 2048 features,
1008 logits.
"""

import functools

import keras
import made
import made_inception
import numpy as np
import pytest
from test_features import tf1_bilinear

from hamgan import networks, sampling
from hamgan.evaluation import metrics, protocol, runner
from hamgan.evaluation.features import FeatureNetwork

SAVE = {"tf2": made_inception.save_tf2, "tf1_hub": made_inception.save_tf1_hub}


def evaluator(folder, kind, *, num_samples, data_dir=None, **kwargs):
    strategy = made.one_device()
    keras.utils.set_random_seed(0)
    generator = networks.Generator(
        image_size=32, num_classes=3, width=1, latent_dim=8, context=None
    )
    return runner.Evaluator(
        generator=generator,
        strategy=strategy,
        dataset=made.MadeDataset(count=300),
        protocol=protocol.Protocol(
            num_samples=num_samples,
            batch_size=250,
            features=functools.partial(FeatureNetwork, handle=SAVE[kind](folder)),
            **kwargs,
        ),
        data_dir=data_dir,
        progress=False,
    ), sampling.Sampler(generator, strategy=strategy, batch_size=100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tf2", "tf1_hub"])
def test_scores_are_those_of_features_computed_by_hand(tmp_path, kind):
    scorer, sampler = evaluator(tmp_path / "network", kind, num_samples=300, quantize=False)
    record = scorer.evaluate(checkpoint="", step=0)
    images, _ = sampler.sample(300)
    fake = made_inception.by_hand(tf1_bilinear(images, 299))
    real = made_inception.by_hand(tf1_bilinear(made.MadeDataset(count=300).images, 299))
    expected = metrics.frechet_distance_from_features(real["pool_3"], fake["pool_3"])
    assert record["fid"] == pytest.approx(expected, rel=1e-4)
    assert record["inception_score"] == pytest.approx(
        metrics.inception_score(fake["logits"]), rel=1e-5
    )


@pytest.mark.slow
def test_fifty_thousand_samples_end_to_end(tmp_path):
    scorer, _ = evaluator(
        tmp_path / "network", "tf1_hub", num_samples=50_000, data_dir=str(tmp_path)
    )
    record = scorer.evaluate(checkpoint="somewhere/ckpt-0", step=0)
    assert record["num_samples"] == 50_000
    assert record["features"]["size"] == 299
    assert all(np.isfinite(record[name]) for name in ("fid", "inception_score", "kid"))
    # Fewer samples of the same generator, in another format of the same network, score about the
    # same.
    fewer, _ = evaluator(
        tmp_path / "network_again", "tf2", num_samples=1_000, data_dir=str(tmp_path)
    )
    few = fewer.evaluate(checkpoint="somewhere/ckpt-0", step=0)
    assert few["fid"] == pytest.approx(record["fid"], rel=0.02)
    assert few["inception_score"] == pytest.approx(record["inception_score"], rel=0.05)
