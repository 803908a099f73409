import functools
import json
import pathlib
import sys

import forked
import keras
import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import array, assert_close
from PIL import Image

from data_prep import digits
from hamgan import context, decomposition, inspection, networks
from hamgan.run import checkpoints, contents

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 4
LABELS = np.array([2, 0, 2, 1], np.int32)
KEYS = np.arange(2 * BATCH, dtype=np.int32).reshape(BATCH, 2)


def generator(module=context.Hamburger, **kwargs):
    """A small generator whose context module, of 4 channels at 32x32, takes part."""
    keras.utils.set_random_seed(0)
    network = networks.Generator(
        image_size=32,
        num_classes=3,
        width=1,
        latent_dim=8,
        context=functools.partial(module, **kwargs),
    )
    network.context.gate.assign(0.7)
    return network


def inspect(network, **kwargs):
    output, found = inspection.inspect(network, array(BATCH, 8), LABELS, keys=KEYS, **kwargs)
    return output.numpy(), found


def rows(maps):
    return maps.reshape(BATCH, -1, maps.shape[-1])


# Spectra


def test_ratio_of_known_singular_values():
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(7, 3)))
    right, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = left * [3.0, 2.0, 1.0] @ right
    for one in (matrix, matrix.T):
        np.testing.assert_allclose(
            inspection.accumulative_ratio(one[None]), [[9 / 14, 13 / 14, 1]], rtol=1e-12
        )


def test_ratio_equals_numpys_svd_rises_and_ends_at_1():
    matrices = array(3, 20, 6)
    ratios = inspection.accumulative_ratio(matrices)
    assert ratios.shape == (3, 6)
    for matrix, ratio in zip(matrices, ratios, strict=True):
        values = np.linalg.svd(np.float64(matrix))[1]
        for i in range(6):
            assert ratio[i] == pytest.approx(sum(values[: i + 1] ** 2) / sum(values**2), rel=1e-12)
    assert np.all(np.diff(ratios) >= 0)
    np.testing.assert_allclose(ratios[:, -1], 1, rtol=1e-12)


def test_ratio_of_zeros_is_1():
    np.testing.assert_array_equal(
        inspection.accumulative_ratio(np.zeros([2, 5, 3])), np.ones([2, 3])
    )


def test_reconstruction_error():
    x = array(2, 4, 3)
    np.testing.assert_allclose(
        inspection.reconstruction_error(x, 0.75 * x), [0.25, 0.25], rtol=1e-6
    )
    np.testing.assert_array_equal(inspection.reconstruction_error(0 * x, 0 * x), [0, 0])


# What is seen


def test_inspection_changes_nothing():
    network = generator(rank=2)
    before = network(array(BATCH, 8), LABELS, training=False, keys=KEYS)
    weights = [v.numpy() for v in network.variables]
    output, _ = inspect(network)
    np.testing.assert_array_equal(output, before)
    np.testing.assert_array_equal(
        network(array(BATCH, 8), LABELS, training=False, keys=KEYS), before
    )
    assert network.context.decomposition is decomposition.nmf and "call" not in vars(
        network.context
    )
    for one, other in zip(weights, network.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_failed_inspection_leaves_the_layer_as_it_was():
    network = generator(rank=2)
    with pytest.raises(Exception, match="shape|dim"):
        inspection.inspect(network, array(BATCH, 7), LABELS, keys=KEYS)
    assert network.context.decomposition is decomposition.nmf and "call" not in vars(
        network.context
    )


def test_before_and_after_are_input_and_output_of_the_layer():
    network = generator(rank=2)
    _, found = inspect(network)
    assert found.before.shape == (BATCH, 32, 32, 4) and found.gate == pytest.approx(0.7)
    assert_close(network.context(found.before, LABELS, keys=KEYS), found.after, 1e-5)
    assert np.abs(found.after - found.before).max() > 0.01


def test_ham_sees_what_the_lower_bread_gives():
    network = generator(rank=2, dim=3, sections=2)
    _, found = inspect(network)
    lower = np.maximum(network.context.lower_bread(found.before), 0)
    assert found.hams["space"].x.shape == (2 * BATCH, 1024, 3) and found.hams["space"].rank == 2
    assert_close(found.maps()["input of the ham"], lower, 1e-6)
    # Section 1 of example 2.
    assert_close(found.hams["space"].x[5], rows(lower)[2, :, 3:], 1e-6)


def test_errors_of_nmf_equal_numpys_and_do_not_rise():
    network = generator(rank=2, num_steps=4)
    _, found = inspect(network)
    ham = found.hams["space"]
    assert ham.errors.shape == (5, BATCH) and ham.errors.dtype == np.float64
    x = np.float64(ham.x)
    for steps, errors in enumerate(ham.errors):
        y = reference.nmf(np.swapaxes(x, 1, 2), ham.bases, steps).swapaxes(1, 2)
        expected = np.sqrt(np.sum((x - y) ** 2, axis=(1, 2)) / np.sum(x**2, axis=(1, 2)))
        np.testing.assert_allclose(errors, expected, rtol=1e-4)
    assert np.all(np.diff(ham.errors, axis=0) <= 1e-7)
    assert np.all(ham.errors[-1] < ham.errors[0])
    assert_close(ham.y, y, 1e-4)


def test_more_updates_may_be_looked_at_than_are_run():
    network = generator(rank=2, num_steps=6, eval_steps=2)
    _, found = inspect(network)
    assert len(found.hams["space"].errors) == 3
    _, more = inspect(network, num_steps=5)
    assert len(more.hams["space"].errors) == 6
    np.testing.assert_array_equal(more.hams["space"].errors[:3], found.hams["space"].errors)
    np.testing.assert_array_equal(more.hams["space"].y, found.hams["space"].y)


def test_only_what_a_decomposition_ignores_is_left_out():
    _, nmf = inspect(generator(rank=2))
    _, cd = inspect(generator(rank=2, decomposition=functools.partial(decomposition.cd, beta=0.1)))
    assert nmf.hams["space"].x.min() == 0
    assert cd.hams["space"].x.min() < 0
    np.testing.assert_array_equal(nmf.hams["space"].x, np.maximum(cd.hams["space"].x, 0))
    # At most rank 2, of 4 channels.
    ratio = inspection.accumulative_ratio(cd.hams["space"].y)
    assert np.all(ratio[:, 1] > 1 - 1e-6) and np.all(
        inspection.accumulative_ratio(cd.hams["space"].x)[:, 1] < 1 - 1e-4
    )


def test_decomposition_of_ones_own():
    def half(x, bases, *, num_steps, solve):
        return 0.5 * x

    _, found = inspect(generator(rank=2, decomposition=half, num_steps=1))
    np.testing.assert_allclose(found.hams["space"].errors, np.full([2, BATCH], 0.5), rtol=1e-6)


def test_dual_hamburger_has_two_hams():
    _, found = inspect(generator(context.HamburgerV2Plus, rank=2))
    assert found.hams["space"].x.shape == (BATCH, 1024, 2) and found.hams["channels"].x.shape == (
        BATCH,
        2,
        1024,
    )
    assert set(found.matrices()) == {
        "input of the Hamburger",
        "input of the ham over space",
        "output of the ham over space",
        "input of the ham over channels",
        "output of the ham over channels",
        "output of the Hamburger",
    }
    assert set(inspection.summary(found)["reconstruction_error"]) == {"space", "channels"}


def test_discriminator():
    keras.utils.set_random_seed(0)
    hamburger = functools.partial(
        context.HamburgerV2, rank=2, decomposition=decomposition.vq, dtype="mixed_bfloat16"
    )
    network = networks.Discriminator(image_size=32, num_classes=3, width=1, context=hamburger)
    logits, found = inspection.inspect(network, array(BATCH, 32, 32, 3), LABELS, keys=KEYS)
    assert logits.shape == (BATCH, 1) and found.before.shape == (BATCH, 16, 16, 4)
    assert found.before.dtype == found.after.dtype == np.float32


# Numbers and pictures


def test_summary_has_a_form_in_json_and_the_curves_it_says():
    _, found = inspect(generator(rank=2))
    numbers = json.loads(json.dumps(inspection.summary(found)))
    assert list(numbers["accumulative_ratio"]) == list(found.matrices())
    for name, curve in numbers["accumulative_ratio"].items():
        ratio = inspection.accumulative_ratio(found.matrices()[name]).mean(axis=0)
        np.testing.assert_allclose(curve["mean"], ratio, rtol=1e-12)
        assert curve["mean"][-1] == pytest.approx(1) and np.all(np.diff(curve["mean"]) >= 0)
        assert np.all(np.less_equal(curve["low"], curve["high"]))
        for percent in (90, 99):
            count = curve[f"values_for_{percent}"]
            assert ratio[count - 1] >= percent / 100 and (
                count == 1 or ratio[count - 2] < percent / 100
            )
    np.testing.assert_allclose(
        numbers["reconstruction_error"]["space"]["mean"],
        found.hams["space"].errors.mean(axis=1),
        rtol=1e-12,
    )
    assert numbers["rank"] == {"space": 2} and numbers["gate"] == pytest.approx(0.7)


@pytest.mark.parametrize("module", [context.Hamburger, context.HamburgerV2Plus])
def test_pictures(module, tmp_path):
    output, found = inspect(generator(module, rank=2))
    inspection.draw_curves(inspection.summary(found), tmp_path / "curves.png", title="A title")
    sizes = []
    for examples in (1, 2):
        inspection.draw_maps(found, output, tmp_path / "maps.png", examples=examples)
        sizes.append(Image.open(tmp_path / "maps.png").size)
    assert Image.open(tmp_path / "curves.png").size[0] > 1000
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 1.7 * sizes[0][1]
    # The picture isn't blank where the maps are.
    assert (
        len(
            np.unique(
                np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).reshape(-1, 3), axis=0
            )
        )
        > 100
    )


# Errors


@pytest.mark.parametrize(
    "module, message", [(None, "no context module"), (context.SelfAttention, "a SelfAttention")]
)
def test_network_without_a_hamburger_is_refused(module, message):
    module = module and functools.partial(module, dim=1, value_dim=2)
    network = networks.Generator(
        image_size=32, num_classes=3, width=1, latent_dim=8, context=module
    )
    with pytest.raises(ValueError, match=f"This generator has no Hamburger, but {message}"):
        inspect(network)


def test_num_steps_must_not_be_negative():
    with pytest.raises(ValueError, match="num_steps must not be negative, got -1"):
        inspect(generator(rank=2), num_steps=-1)


# The script


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with a checkpoint of untrained networks, and a folder of data."""
    folder = tmp_path_factory.mktemp("run")
    digits.prepare(str(folder / "data"))
    (folder / "model").mkdir()
    (folder / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        'include "configs/digits.gin"\n'
        "from hamgan import networks\n"
        "WIDTH = 1\nnetworks.Generator.latent_dim = 8\n"
    )
    keras.utils.set_random_seed(1)
    hamburger = functools.partial(context.Hamburger, rank=8)
    small = dict(image_size=32, num_classes=10, width=1, context=hamburger)
    variables = {
        **contents.network_variables("generator", networks.Generator(latent_dim=8, **small)),
        **contents.network_variables("discriminator", networks.Discriminator(**small)),
        "step": tf.Variable(30, dtype=tf.int64),
    }
    checkpoints.Checkpoints(str(folder / "model" / "checkpoints"), variables).save()
    return folder


def run(model_dir, data_dir, *arguments, fails=False):
    command = [sys.executable, str(ROOT / "scripts" / "inspect_ham.py"), f"--model_dir={model_dir}"]
    command += [f"--data_dir={data_dir}", "--accelerator=cpu", *arguments]
    result = forked.run(command)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_script_writes_numbers_and_pictures(run_folder, tmp_path, network):
    images = [] if network == "generator" else ["--images=real"]
    output = run(
        run_folder / "model",
        run_folder / "data",
        f"--gin_file={run_folder}/mine.gin",
        f"--network={network}",
        "--batch_size=3",
        "--num_steps=2",
        f"--output={tmp_path}",
        *images,
    )
    assert (
        f"Hamburger with NMF in the {network}, ckpt-30, 3 {'real' if images else 'generated'} "
        "images" in output
    )
    numbers = json.loads((tmp_path / "inspection.json").read_text())
    assert (
        numbers["step"] == 30
        and numbers["module"] == "Hamburger"
        and numbers["decomposition"] == "nmf"
    )
    assert numbers["images"] == ("real" if images else "generated") and len(numbers["labels"]) == 3
    assert len(numbers["reconstruction_error"]["space"]["mean"]) == 3
    for name in ("curves.png", "feature_maps.png"):
        assert Image.open(tmp_path / name).size[0] > 500


@pytest.mark.slow
def test_script_says_what_is_wrong_with_a_folder(run_folder, tmp_path):
    output = run(tmp_path, run_folder / "data", fails=True)
    assert "No configuration" in output and "Traceback" not in output
    own = f"--gin_file={run_folder}/mine.gin"
    output = run(tmp_path, run_folder / "data", own, fails=True)
    assert "No checkpoint in" in output and "Traceback" not in output
