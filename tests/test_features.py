import hashlib
import shutil

import helpers
import made_inception
import numpy as np
import pytest
import tensorflow as tf

from hamgan.evaluation.features import FeatureNetwork, FrozenGraph

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
    """TF1's kernel by hand: output pixel o samples at o * (in / out), without half-pixel shift or
    antialias.
    """
    position = np.arange(size) * (x.shape[1] / size)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, x.shape[1] - 1)
    part = (position - low)[:, None]
    rows = x[:, low] * (1 - part[..., None]) + x[:, high] * part[..., None]
    return rows[:, :, low] * (1 - part) + rows[:, :, high] * part


@pytest.mark.parametrize("size", [4, 15])
def test_other_sizes_are_resized_with_the_kernel_of_tf1(folder, size):
    outputs = FeatureNetwork(handle=folder, size=SIZE)(images(size))
    np.testing.assert_allclose(
        outputs["pool_3"], by_hand(tf1_bilinear(images(size), SIZE)), rtol=1e-3, atol=1e-4
    )


def test_data_dir_stands_in_the_handle(folder):
    parent, name = folder.rsplit("/", 1)
    network = FeatureNetwork(handle="{data_dir}/" + name, size=SIZE, data_dir=parent)
    assert network.identity() == {"handle": folder, "digest": network.digest, "size": SIZE}


def test_digest_changes_with_the_weights(folder, tmp_path):
    module = Network()
    module.weight.assign_add(tf.ones_like(module.weight))
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.__call__})
    assert (
        FeatureNetwork(handle=str(tmp_path), size=SIZE).digest
        != FeatureNetwork(handle=folder, size=SIZE).digest
    )


@pytest.mark.parametrize("with_signature", [True, False])
def test_missing_output_is_an_error_that_names_what_there_is(tmp_path, with_signature):
    module = Network(outputs=("logits", "other"))
    signatures = {"serving_default": module.__call__} if with_signature else None
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    with pytest.raises(ValueError, match=r"must have the outputs \('logits', 'pool_3'\).*'other'"):
        FeatureNetwork(handle=str(tmp_path), size=SIZE)


def test_missing_folder_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(
        ValueError, match="(?s)No SavedModel at .*digits_features.py.*three ways.*TFHUB_CACHE_DIR"
    ):
        FeatureNetwork(handle=str(tmp_path / "nothing"), size=SIZE)


def test_unreachable_hub_names_three_ways(monkeypatch):
    def unreachable(handle):
        raise OSError("no route to host")

    monkeypatch.setattr("tensorflow_hub.resolve", unreachable)
    with pytest.raises(
        ValueError,
        match="(?s)can't be fetched: no route to host.*three ways.*TF-Hub.*TFHUB_CACHE_DIR.*gs://.*FeatureNetwork.handle",
    ):
        FeatureNetwork()


@pytest.fixture(scope="module")
def inceptions(tmp_path_factory):
    """The same network of Inception's shape in TF2's and in TF1-hub's format."""
    folder = tmp_path_factory.mktemp("inception")
    return {
        "tf2": made_inception.save_tf2(folder / "tf2"),
        "tf1_hub": made_inception.save_tf1_hub(folder / "tf1_hub"),
    }


@pytest.mark.parametrize("kind", ["tf2", "tf1_hub"])
def test_both_formats_of_the_hub_give_inceptions_outputs(inceptions, kind):
    network = FeatureNetwork(handle=inceptions[kind])
    x = images(299)
    outputs = tf.function(network.outputs)(tf.constant(x))
    for name, value in made_inception.by_hand(x).items():
        assert outputs[name].dtype == tf.float32
        helpers.assert_close(outputs[name], value, 1e-5)
    assert outputs["pool_3"].shape == (3, 2048) and outputs["logits"].shape == (3, 1008)


@pytest.mark.parametrize("kind", ["tf2", "tf1_hub"])
def test_both_formats_run_on_replicas(inceptions, kind):
    strategy = helpers.two_replicas()
    with strategy.scope():
        network = FeatureNetwork(handle=inceptions[kind])
    x = np.concatenate([images(299), images(299)[:1]])
    run = tf.function(lambda batch: strategy.run(network.outputs, args=(batch,)))
    outputs = run(*helpers.per_replica(strategy, x))
    for name, value in made_inception.by_hand(x).items():
        helpers.assert_close(helpers.joined(strategy, outputs[name]), value, 1e-5)


def test_a_network_of_tf1_is_refused_for_its_outputs_or_its_size(inceptions, tmp_path):
    folder = str(tmp_path / "without")
    made_inception.save_tf1_hub(folder, outputs=("pool_3",))
    with pytest.raises(
        ValueError, match=r"must have the outputs \('logits', 'pool_3'\); .* \[\['pool_3'\]"
    ):
        FeatureNetwork(handle=folder)
    with pytest.raises(
        ValueError, match=r"must take images \(None, 32, 32, 3\).*299.*FeatureNetwork.size"
    ):
        FeatureNetwork(handle=inceptions["tf1_hub"], size=32)


def test_hubs_cache_stands_in_for_the_network(inceptions, tmp_path, monkeypatch):
    handle = "https://tfhub.dev/tensorflow/tfgan/eval/inception/1"
    # The hub's own rule: a module lies in its cache under the SHA-1 of its address.
    shutil.copytree(inceptions["tf1_hub"], tmp_path / hashlib.sha1(handle.encode()).hexdigest())
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    network = FeatureNetwork()
    assert network.handle == handle
    helpers.assert_close(
        network(images(299))["logits"], made_inception.by_hand(images(299))["logits"], 1e-5
    )


def test_a_remote_folder_does_as_well(folder):
    # ram:// is a file system that only tf.io.gfile knows, as gs:// is.
    remote = "ram://hamgan-features/network"
    for path, _, names in tf.io.gfile.walk(folder):
        target = path.replace(folder, remote)
        tf.io.gfile.makedirs(target)
        for name in names:
            tf.io.gfile.copy(f"{path}/{name}", f"{target}/{name}", overwrite=True)
    network = FeatureNetwork(handle=remote, size=SIZE)
    helpers.assert_close(network(images(SIZE))["pool_3"], by_hand(images(SIZE)), 1e-5)
    assert network.digest == FeatureNetwork(handle=folder, size=SIZE).digest


@pytest.mark.parametrize("with_signature", [True, False])
def test_another_size_is_refused_at_once(tmp_path, with_signature):
    module = Network()
    signatures = {"serving_default": module.__call__} if with_signature else None
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    with pytest.raises(ValueError, match=r"(?s)\(None, 7, 7, 3\).*FeatureNetwork.size"):
        FeatureNetwork(handle=str(tmp_path), size=7)


@pytest.mark.parametrize("scale", [False, True])
def test_frozen_graph_of_2015_gives_its_features_for_any_number_of_images(tmp_path, scale):
    network = FrozenGraph(path=made_inception.save_frozen_2015(tmp_path / "graph.pb", scale=scale))
    for count in (1, 3):
        x = images(299)[:count]
        outputs = tf.function(network.outputs)(tf.constant(x))
        for name, value in made_inception.frozen_2015_by_hand(x, scale=scale).items():
            helpers.assert_close(outputs[name], value, 1e-4)


def test_frozen_graph_resizes_and_takes_other_tensors_and_pixels(tmp_path):
    path = made_inception.save_frozen_2015(tmp_path / "graph.pb")
    default = FrozenGraph(path="{data_dir}/graph.pb", data_dir=str(tmp_path))
    # What comes out of the graph's own scaling goes in: TF-GAN 1's graph begins there.
    after = FrozenGraph(
        path=path, input_name="Mul:0", low=-1.0, high=127 / 128, logits_name="softmax/logits:0"
    )
    x = images(32)
    helpers.assert_close(after(x)["pool_3"], default(x)["pool_3"], 1e-4)
    helpers.assert_close(after(x)["logits"], default(x)["logits"] + 1, 1e-4)  # the bias is 1
    helpers.assert_close(
        default(x)["pool_3"],
        made_inception.frozen_2015_by_hand(tf1_bilinear(x, 299))["pool_3"],
        1e-4,
    )
    assert default.digest != after.digest
    assert default.identity() == {"handle": path, "digest": default.digest, "size": 299}


def test_frozen_graph_that_is_not_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no frozen graph .*inception-2015-12-05.tgz"):
        FrozenGraph(path=str(tmp_path / "nothing.pb"))
    (tmp_path / "text.pb").write_text("no graph")
    with pytest.raises(ValueError, match="text.pb must hold a binary GraphDef"):
        FrozenGraph(path=str(tmp_path / "text.pb"))
    path = made_inception.save_frozen_2015(tmp_path / "graph.pb")
    with pytest.raises(
        ValueError, match=r"must hold the tensors \{'logits_name': 'logits:0'\}.*'softmax'"
    ):
        FrozenGraph(path=path, logits_name="logits:0")
