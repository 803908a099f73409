"""Every gin file of segmentation: it parses, is of the published size, and makes a trainer."""

import functools
import math
import pathlib
import re

import gin
import keras
import made
import pytest

from hamgan import decomposition
from hamgan.cli import configuration, segment_common
from hamgan.segmentation import (
    augmentation,
    convnet,
    evaluation,
    experiment,
    heads,
    layers,
    optimizers,
    schedules,
    segmenter,
)

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "configs" / "segmentation"
INCLUDED = {"base", "hamnet", "ade20k", "van", "light_ham"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.gin")} - INCLUDED)

# Millions of trainable variables, from the published tables and what follows from them.
MILLIONS = {
    "ablation_nmf": 34.781397,
    "hamnet_voc": 54.035669,
    "hamnet_voc_stage2": 54.035669,
    "hamnet_plus_voc": 54.035671,
    "light_ham_tiny_d256": 4.209,
    "light_ham_tiny": 4.866,
    "light_ham_small_d256": 13.832,
    "light_ham_small": 14.707,
    "light_ham_base": 27.424,
    "light_ham_large": 45.611,
    "light_ham_huge": 61.129,
    "hamnet_van_tiny": 11.9,
    "hamnet_van_small": 24.2,
    "hamnet_van_base": 36.9,
    "hamnet_van_large": 55.1,
    "hamnet_ade20k": 57.32,
    "hamnet_plus_ade20k": 69.12,
}


def load(name, *params, model_dir=None):
    gin.clear_config()
    return configuration.load_experiment(
        gin_files=[f"configs/segmentation/{name}.gin"] if name else (),
        gin_params=params,
        model_dir=model_dir,
        root=experiment.SegmentationExperiment,
        header=segment_common.HEADER,
    )


@pytest.fixture(autouse=True)
def _clear():
    yield
    gin.clear_config()


def built(constructor):
    """(network without values, how many variables it trains)."""
    with keras.StatelessScope(initialize_variables=False):
        network = constructor()
        count = sum(math.prod(variable.shape) for variable in network.trainable_variables)
    keras.utils.clear_session(free_memory=False)
    return network, count


def small_network(**kwargs):
    return segmenter.Segmenter(
        num_classes=3,
        backbone=functools.partial(convnet.ConvNet, widths=(4, 4, 4, 4)),
        head=functools.partial(heads.HamNetHead, channels=8, align_channels=4, hamburger=None),
        **kwargs,
    )


@pytest.mark.parametrize(
    "name",
    # The largest takes as long as ten others.
    [pytest.param(n, marks=[pytest.mark.slow] * n.endswith("huge")) for n in NAMES],
)
def test_every_configuration_parses_builds_and_makes_a_trainer(name):
    found = load(name)
    network, count = built(found.network)
    assert network.num_classes == gin.query_parameter("%NUM_CLASSES")
    trainer = found.trainer(strategy=made.one_device(), network=small_network)
    assert trainer.step_of_replica.rate(0) > 0
    assert found.schedule.num_steps == gin.query_parameter("%NUM_STEPS")
    if name in MILLIONS:
        digits = len(str(MILLIONS[name]).partition(".")[2])
        assert round(count / 1e6, digits) == MILLIONS[name]


def test_headers_say_row_hardware_result_and_command():
    for name in NAMES:
        text = (FOLDER / f"{name}.gin").read_text()
        header = re.match(r"(?:#.*\n)+", text)[0]
        assert "Hardware" in header, name
        assert f"configs/segmentation/{name}.gin --model_dir" in header, name
        if name != "digits" and not name.startswith("digits_"):
            assert "mIoU" in header and "published" in header.lower(), name


def test_published_settings_of_hamnet():
    found = load("hamnet_voc")
    network, _ = built(found.network)
    assert network.backbone.layers_of_blocks[3][2].conv_2.dilation == 16
    assert network.backbone.stem.parts[0].norm.momentum == 0.9997
    burger = network.head.hamburger
    assert (burger.rank, burger.num_steps, burger.eval_steps) == (64, 6, 6)
    assert burger.norm.momentum == network.head.squeeze.norm.momentum == 0.9997
    assert burger.solve is decomposition.one_step
    assert found.test == evaluation.HamNetTest()
    trainer = found.trainer(strategy=made.one_device(), network=small_network)
    assert trainer.batch_size == 16 and isinstance(trainer.optimizer, optimizers.SGD)
    assert trainer.learning_rate == schedules.Poly(initial=9e-3, steps=60_000, every=10)


def test_second_stage_differs_in_data_steps_and_rate():
    first, second = load("hamnet_voc"), load("hamnet_voc_stage2")
    assert (first.schedule.num_steps, second.schedule.num_steps) == (60_000, 20_000)
    trainer = second.trainer(strategy=made.one_device(), network=small_network)
    assert trainer.learning_rate == schedules.Poly(initial=9e-4, steps=20_000, every=10)
    assert gin.query_parameter("data.SegmentationDataset.train_split") == "train+validation"


def test_published_settings_of_light_ham():
    found = load("light_ham_base")
    network, _ = built(found.network)
    assert found.test == evaluation.MMSegmentationTest(divisor=32)
    assert network.head.hamburger.solve.__name__ == "unrolled"
    assert network.align_corners is False
    trainer = found.trainer(strategy=made.one_device(), network=small_network)
    # 6e-5 times the ratio of the warm-up, 1e-6.
    assert float(trainer.step_of_replica.rate(0)) == pytest.approx(6e-11, rel=1e-5)
    assert float(trainer.step_of_replica.rate(80_000)) == pytest.approx(3e-5, rel=1e-5)
    groups = {v.path: trainer.optimizer.group(v) for v in trainer.network.trainable_variables}
    assert groups["backbone/layer_1_part_1/norm/gamma"].weight_decay == 0
    assert groups["head/squeeze/norm/gamma"].weight_decay == 0.01
    pipeline = gin.query_parameter("data.SegmentationDataset.augmentation")
    assert pipeline.scoped_configurable_fn() == augmentation.MMSegmentationAugmentation()


def test_published_settings_of_the_ablation():
    network, _ = built(load("ablation_cd_bptt").network)
    burger = network.head.hamburger
    assert type(burger).__mro__[0].__name__ == "Hamburger"
    assert burger.solve.__name__ == "unrolled" and burger.decomposition.__name__ == "cd"
    assert built(load("ablation_baseline").network)[0].head.hamburger is None
    assert (
        built(load("ablation_nmf_bptt").network)[0].head.hamburger.decomposition.__name__ == "nmf"
    )


def test_parameters_of_the_command_line_reach_inherited_arguments():
    network, _ = built(load("hamnet_voc", "hamburger.HamburgerV2.rank = 5").network)
    assert network.head.hamburger.rank == 5
    with pytest.raises(ValueError, match="no parameter 'rnk'; did you mean 'rank'"):
        load("hamnet_voc", "hamburger.HamburgerV2.rnk = 5")


def test_precision_is_the_networks():
    found = load("light_ham_tiny", "experiment.SegmentationExperiment.precision = 'mixed_bfloat16'")
    network, _ = built(found.network)
    assert network.compute_dtype == "bfloat16" and network.head.squeeze.conv.kernel.dtype == (
        "float32"
    )


def test_kept_configuration_loads_again(tmp_path):
    built(load("light_ham_tiny").network)
    configuration.settle_configuration(str(tmp_path))
    network, count = built(load(None, model_dir=str(tmp_path)).network)
    assert round(count / 1e6, 3) == 4.866
    assert isinstance(network.head.squeeze.norm, layers.GroupNorm)
