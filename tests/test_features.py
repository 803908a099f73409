import numpy as np
import pytest
import tensorflow as tf

from hamgan.evaluation.features import FeatureNetwork

SIZE = 6


class Network(tf.Module):
    """Linear features of images of any size, so that they can be computed by hand."""

    def __init__(self, outputs=("pool_3", "logits")):
        super().__init__()
        rng = np.random.default_rng(0)
        self.weight = tf.Variable(rng.normal(size=[SIZE * SIZE * 3, 4]), dtype=tf.float32)
        self.outputs = outputs

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)])
    def __call__(self, images):
        pool = tf.reshape(images, [-1, SIZE * SIZE * 3]) @ self.weight
        every = {"pool_3": pool[:, None, None, :], "logits": 2 * pool, "other": pool}
        return {name: every[name] for name in self.outputs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("network"))
    module = Network()
    tf.saved_model.save(module, path, signatures={"serving_default": module.__call__})
    return path


def images(size):
    return np.random.default_rng(1).uniform(-1, 1, [3, size, size, 3]).astype(np.float32)


def by_hand(x):
    return x.reshape(len(x), -1) @ Network().weight.numpy()


@pytest.mark.parametrize("with_signature", [True, False])
def test_outputs_are_the_networks_own(tmp_path, with_signature):
    module = Network()
    signatures = {"serving_default": module.__call__} if with_signature else None
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    outputs = FeatureNetwork(handle=str(tmp_path), size=SIZE)(images(SIZE))
    np.testing.assert_allclose(outputs["pool_3"], by_hand(images(SIZE)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], 2 * by_hand(images(SIZE)), rtol=1e-4, atol=1e-5)


def tf1_bilinear(x, size):
    """TF1's kernel by hand: output pixel o samples at o * (in / out), without half-pixel shift or antialias."""
    position = np.arange(size) * (x.shape[1] / size)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, x.shape[1] - 1)
    part = (position - low)[:, None]
    rows = x[:, low] * (1 - part[..., None]) + x[:, high] * part[..., None]
    return rows[:, :, low] * (1 - part) + rows[:, :, high] * part


@pytest.mark.parametrize("size", [4, 15])
def test_other_sizes_are_resized_with_the_kernel_of_tf1(folder, size):
    outputs = FeatureNetwork(handle=folder, size=SIZE)(images(size))
    np.testing.assert_allclose(outputs["pool_3"], by_hand(tf1_bilinear(images(size), SIZE)), rtol=1e-3, atol=1e-4)


def test_data_dir_stands_in_the_handle(folder):
    parent, name = folder.rsplit("/", 1)
    network = FeatureNetwork(handle="{data_dir}/" + name, size=SIZE, data_dir=parent)
    assert network.identity() == {"handle": folder, "digest": network.digest, "size": SIZE}


def test_digest_changes_with_the_weights(folder, tmp_path):
    module = Network()
    module.weight.assign_add(tf.ones_like(module.weight))
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.__call__})
    assert FeatureNetwork(handle=str(tmp_path), size=SIZE).digest != FeatureNetwork(handle=folder, size=SIZE).digest


@pytest.mark.parametrize("with_signature", [True, False])
def test_missing_output_is_an_error_that_names_what_there_is(tmp_path, with_signature):
    module = Network(outputs=("logits", "other"))
    signatures = {"serving_default": module.__call__} if with_signature else None
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    with pytest.raises(ValueError, match=r"must have the outputs \('logits', 'pool_3'\).*'other'"):
        FeatureNetwork(handle=str(tmp_path), size=SIZE)(images(SIZE))


def test_missing_folder_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="No SavedModel at .*digits_features.py"):
        FeatureNetwork(handle=str(tmp_path / "nothing"), size=SIZE)


def test_unreachable_hub_names_three_ways(monkeypatch):
    def unreachable(handle):
        raise OSError("no route to host")

    monkeypatch.setattr("hamgan.evaluation.features.hub.resolve", unreachable)
    with pytest.raises(
        ValueError, match="(?s)can't be fetched: no route to host.*TFHUB_CACHE_DIR.*FeatureNetwork.handle"
    ):
        FeatureNetwork()
