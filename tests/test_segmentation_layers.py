"""Layers, heads and backbones of segmentation beyond what recordings show."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    array,
    assert_close,
    assert_config_round_trips,
    assert_modes_agree,
    joined,
    per_replica,
    two_replicas,
)

from hamgan import context
from hamgan.segmentation import hamburger, heads, layers, resnet, segmenter, van

KEYS = tf.constant([[1, 2], [3, 4], [5, 6], [7, 8]])

# Networks that are built in a moment.
tiny_resnet = functools.partial(resnet.ResNet, width=2, stem=(2, 2, 4))
tiny_van = functools.partial(van.VAN, widths=(4, 4, 8, 8), depths=(1, 2, 1, 1))
tiny_burger = functools.partial(hamburger.HamburgerV2, dim=8, rank=2, num_steps=2)
tiny_group_norm = functools.partial(layers.GroupNorm, groups=2)
tiny_light_burger = functools.partial(
    hamburger.Hamburger, norm=tiny_group_norm, dim=8, rank=2, num_steps=2
)
NETWORKS = {
    "HamNet": functools.partial(
        segmenter.Segmenter,
        num_classes=3,
        backbone=tiny_resnet,
        head=functools.partial(
            heads.HamNetHead, channels=8, align_channels=4, hamburger=tiny_burger
        ),
    ),
    "Light-Ham": functools.partial(
        segmenter.Segmenter,
        num_classes=3,
        backbone=tiny_van,
        head=functools.partial(
            heads.LightHamHead,
            channels=8,
            align_channels=4,
            norm=tiny_group_norm,
            hamburger=tiny_light_burger,
        ),
        auxiliary=functools.partial(heads.FCNHead, channels=4, norm=tiny_group_norm),
        align_corners=False,
    ),
    "no ham": functools.partial(
        segmenter.Segmenter,
        num_classes=3,
        backbone=tiny_resnet,
        head=functools.partial(heads.HamNetHead, channels=8, align_channels=4, hamburger=None),
    ),
}


def made(name, **settings):
    keras.utils.set_random_seed(0)
    return NETWORKS[name](**settings)


# Convolutions and pools


def numpy_conv(x, kernel, strides, dilation):
    """Cross-correlation of x padded alike on both sides, tap by tap."""
    size = kernel.shape[0]
    margin = dilation * (size - 1) // 2
    padded = np.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
    height, width = (-(-n // strides) for n in x.shape[1:3])
    y = 0
    for i in range(size):
        for j in range(size):
            rows = padded[:, i * dilation :: strides][:, :height]
            taps = rows[:, :, j * dilation :: strides][:, :, :width]
            y = y + np.einsum("bhwc,cd->bhwd", taps, kernel[i, j])
    return y


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize(
    ("kernel_size", "strides", "dilation"), [(1, 2, 1), (3, 1, 4), (3, 2, 1), (7, 4, 1)]
)
def test_conv_pads_both_sides_alike(kernel_size, strides, dilation, size):
    layer = layers.Conv2D(5, kernel_size, strides=strides, dilation=dilation)
    x = array(2, *size, 3)
    y = layer(tf.constant(x))
    assert_close(y, numpy_conv(x, layer.kernel.numpy(), strides, dilation), 1e-5)


def test_depthwise_conv_with_dilation():
    layer = layers.Conv2D(None, 7, dilation=3, use_bias=True)
    x = array(2, 9, 8, 3)
    layer.build(x.shape)
    layer.bias.assign([1.0, 2.0, 3.0])
    kernel = np.einsum("ijco,cd->ijcd", layer.kernel.numpy(), np.eye(3))
    assert_close(layer(tf.constant(x)), numpy_conv(x, kernel, 1, 3) + [1, 2, 3], 1e-5)


@pytest.mark.parametrize("size", [16, 17])
def test_stem_halves_twice_and_pools_with_a_margin(size):
    stem = resnet.Stem((2, 3, 4))
    x = tf.constant(array(1, size, size, 3))
    y = stem(x)
    before = x
    for part in stem.parts:
        before = part(before)
    before = np.pad(before, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    quarter = math.ceil(math.ceil(size / 2) / 2)
    expected = [
        [before[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(0, 1)) for j in range(quarter)]
        for i in range(quarter)
    ]
    np.testing.assert_array_equal(y[0], expected)


def test_initial_kernels():
    keras.utils.set_random_seed(0)
    conv = layers.Conv2D(64, 3, use_bias=True, bias_initializer=layers.fan_in_uniform)
    conv.build((None, 5, 5, 32))
    assert np.std(conv.kernel) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    limit = 1 / math.sqrt(9 * 32)
    assert 0.9 * limit < np.abs(conv.bias).max() <= limit
    uniform = layers.Conv2D(64, 3, kernel_initializer=layers.fan_in_uniform)
    uniform.build((None, 5, 5, 32))
    assert 0.99 * limit < np.abs(uniform.kernel).max() <= limit
    depthwise = layers.Conv2D(None, 7)
    depthwise.build((None, 5, 5, 256))
    assert np.std(depthwise.kernel) == pytest.approx(math.sqrt(2 / 49), rel=0.03)
    classifier = layers.Conv2D(64, 1, kernel_initializer=layers.small_normal)
    classifier.build((None, 5, 5, 64))
    assert np.std(classifier.kernel) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("depth", "stride", "grid", "expected"),
    [
        (50, 8, (1, 2, 4), [(1, 2, 2, 2, 2, 2), (2, 8, 16)]),
        (50, 16, (1, 2, 4), [(1,) * 6, (1, 4, 8)]),
        (50, 8, (1, 1, 1), [(1, 2, 2, 2, 2, 2), (2, 4, 4)]),
        (101, 8, (1, 2, 4), [(1,) + (2,) * 22, (2, 8, 16)]),
        (50, 32, (1, 2, 4), [(1,) * 6, (1, 1, 1)]),
    ],
)
def test_published_dilations(depth, stride, grid, expected):
    backbone = resnet.ResNet(depth=depth, output_stride=stride, multi_grid=grid, width=1)
    found = [
        tuple(block.conv_2.dilation for block in blocks) for blocks in backbone.layers_of_blocks
    ]
    assert found[2:] == expected
    assert {dilation for layer in found[:2] for dilation in layer} == {1}


# Batch norm over replicas


def test_batch_norm_on_two_replicas_equals_one_device():
    x = array(4, 3, 2, 5) + 3
    alone = layers.BatchNorm(momentum=0.25)
    expected = alone(tf.constant(x), training=True)
    flat = np.float64(x).reshape(-1, 5)
    assert_close(alone.moving_mean, 0.75 * flat.mean(axis=0), 1e-5)
    assert_close(alone.moving_variance, 0.25 + 0.75 * flat.var(axis=0, ddof=1), 1e-5)
    strategy = two_replicas()
    with strategy.scope():
        shared = layers.BatchNorm(momentum=0.25)
        shared.build(x.shape)
    y = strategy.run(lambda x: shared(x, training=True), args=per_replica(strategy, x))
    assert_close(joined(strategy, y), expected, 1e-5)
    assert_close(shared.moving_mean, alone.moving_mean, 1e-5)
    assert_close(shared.moving_variance, alone.moving_variance, 1e-5)


# Random numbers


def test_channels_are_dropped_whole_and_per_example():
    x = tf.ones([4, 3, 2, 400])
    y = layers.drop_channels(x, KEYS, 0.25).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert np.all(y == y[:, :1, :1])
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 0.05
    assert len(np.unique(y[:, 0, 0], axis=0)) == 4
    np.testing.assert_array_equal(layers.drop_channels(x[2:], KEYS[2:], 0.25), y[2:])


def test_drop_path_grows_from_block_to_block():
    backbone = van.VAN(widths=(4,) * 4, depths=(1, 2, 1, 1), drop_path=0.4)
    keys = tf.stack([tf.range(500), tf.zeros([500], tf.int32)], axis=1)
    kept = backbone._kept(500, keys).numpy()
    assert kept.shape == (500, 5, 2)
    for block, rate in enumerate((0, 0.1, 0.2, 0.3, 0.4)):
        assert set(np.unique(kept[:, block])) <= {0.0, np.float32(1 / (1 - rate))}
        assert abs((kept[:, block] == 0).mean() - rate) < 0.05
    assert np.any(kept[:, 4, 0] != kept[:, 4, 1])


def test_dropped_branches_leave_the_shortcut():
    block = van.Block()
    x = tf.constant(array(2, 5, 4, 3))
    y = block(x, kept=tf.constant([[0.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(y[0], x[0])
    assert_close(y[1], block(x)[1], 1e-6)


@pytest.mark.parametrize("name", ["HamNet", "Light-Ham"])
def test_an_example_is_a_function_of_its_key(name):
    built = made(name)
    x = tf.constant(array(4, 33, 33, 3))
    whole = built(x, keys=KEYS).logits
    assert_close(built(x[1:3], keys=KEYS[1:3]).logits, whole[1:3], 1e-4)
    # In training batch norm sees the whole batch, so keys are all that may change.
    first, again, other = (
        made(name)(x, training=True, keys=keys).logits for keys in (KEYS, KEYS, KEYS + 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


# Whole networks


@pytest.mark.parametrize("name", ["HamNet", "Light-Ham"])
def test_modes_agree(name):
    built = made(name)
    x = tf.constant(array(2, 33, 49, 3))

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = built(x, keys=KEYS[:2])
            total = tf.reduce_sum(found.logits * tf.range(3.0))
        return found.logits, tape.gradient(total, x)

    assert_modes_agree(step, x, tolerance=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_gives(name):
    built = made(name)
    x = tf.constant(array(2, 64, 96, 3))
    found = built(x, training=True, keys=KEYS[:2])
    assert found.logits.shape == (2, 8, 12, 3)
    assert built.enlarged(found.logits, (64, 96)).shape == (2, 64, 96, 3)
    has_auxiliary = name == "Light-Ham"
    assert (found.auxiliary is not None) == has_auxiliary
    if has_auxiliary:
        assert found.auxiliary.shape == (2, 4, 6, 3)
    assert built(x).auxiliary is None
    assert list(found.hams) == ([] if name == "no ham" else ["space"])
    names = ["layer1", "layer2", "layer3", "layer4", "squeeze", "hamburger", "align"]
    assert [n for n in found.features] == [n for n in names if found.hams or n != "hamburger"]


def test_decomposition_stays_in_float32():
    built = made("Light-Ham", dtype="mixed_bfloat16")
    found = built(tf.constant(array(2, 64, 64, 3)), training=True, keys=KEYS[:2])
    assert found.logits.dtype == tf.bfloat16
    assert found.hams["space"].coef.dtype == tf.float32
    assert {variable.dtype for variable in built.variables} == {"float32"}
    assert np.all(np.isfinite(tf.cast(found.logits, tf.float32)))


def test_hams_over_channels_take_any_size():
    layer = hamburger.HamburgerV2Plus(
        hams=hamburger.HAMS, dim=4, sections=2, rank=3, cheese_factor=4, zero_ham=False
    )
    layer.build((None, None, None, 6))
    for size in (4, 5), (7, 3):
        x = tf.constant(array(2, *size, 6))
        y, hams = layer(x, keys=KEYS[:2], return_hams=True)
        assert y.shape == x.shape
        assert hams["channels"].bases.shape == (4, size[0] * size[1], 3)
        assert hams["space"].bases.shape == (4, 4, 3)
        lengths = np.linalg.norm(layer.initial(KEYS[:2], size[0] * size[1])["channels"], axis=2)
        assert_close(lengths, np.ones_like(lengths), 1e-5)


def test_published_start_of_v2_plus_is_the_shortcut():
    layer = hamburger.HamburgerV2Plus(rank=2)
    x = tf.constant(array(2, 4, 5, 6))
    np.testing.assert_array_equal(layer(x, keys=KEYS[:2]), tf.nn.relu(x))
    other = hamburger.HamburgerV2Plus(rank=2, zero_ham=False)
    assert np.abs(other(x, keys=KEYS[:2]) - tf.nn.relu(x)).max() > 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, strides=2, use_bias=True),
        layers.BatchNorm(momentum=0.5),
        hamburger.Hamburger(dim=4, rank=2, hams=hamburger.HAMS),
        hamburger.HamburgerV2(dim=4, rank=2, cheese_factor=2),
        hamburger.HamburgerV2Plus(dim=4, rank=2, zero_ham=False),
    ],
    ids=lambda layer: layer.name,
)
def test_configurations_round_trip(layer):
    layer.build((None, 4, 5, 6))
    assert_config_round_trips(layer, None, 4, 5, 6)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2D(3, 2), "kernel_size must be odd, got 2"),
        (lambda: layers.Conv2D(3, 3, strides=2, dilation=2), "strides or dilation must be 1"),
        (lambda: resnet.ResNet(depth=34), "depth must be one of .50, 101, 152., got 34"),
        (lambda: resnet.ResNet(output_stride=4), "output_stride must be one of .*, got 4"),
        (lambda: resnet.ResNet(multi_grid=(1, 2)), "multi_grid must be 3 positive factors"),
        (lambda: resnet.ResNet(stem=(1, 2)), "stem must be three positive numbers"),
        (lambda: van.VAN(widths=(1, 2, 3)), "widths must be four positive numbers"),
        (lambda: van.VAN(drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
        (lambda: heads.HamHead(dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
        (lambda: heads.LightHamHead(channels=0), "channels must be at least 1, got 0"),
        (lambda: heads.FCNHead(dropout=2.0), r"dropout must be in \[0, 1\), got 2.0"),
        (lambda: segmenter.Segmenter(num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: hamburger.Hamburger(hams=()), "hams must be of .*, got"),
        (lambda: hamburger.Hamburger(hams=("channels", "space")), "in this order"),
        (
            lambda: hamburger.HamburgerV2(dim=4, cheese_factor=3).build((None, 2, 2, 4)),
            "cheese_factor must divide the hams' 4 channels, got 3",
        ),
        (
            lambda: hamburger.Hamburger(hams=("channels",), bases=context.FixedBases).build(
                (None, None, None, 4)
            ),
            "height and width, which must be known",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
