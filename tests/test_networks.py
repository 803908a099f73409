"""The generator, the discriminator and their blocks."""

import functools

import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import (
    array,
    assert_close,
    assert_config_round_trips,
    assert_modes_agree,
    build,
    randomize,
    weights,
)

from hamgan.context import Hamburger
from hamgan.networks import Discriminator, DownBlock, Generator, UpBlock
from hamgan.normalization import BatchNorm

LABELS = np.array([2, 0, 2], np.int32)
KEYS = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
# Channels of each block in units of the width.
GENERATOR_CHANNELS = {
    32: [16, 8, 4],
    64: [16, 8, 4, 2],
    128: [16, 8, 4, 2, 1],
    256: [16, 8, 4, 2, 1, 1],
}
DISCRIMINATOR_CHANNELS = {
    32: [4, 8, 16, 16],
    64: [2, 4, 8, 16, 16],
    128: [1, 2, 4, 8, 16, 16],
    256: [1, 1, 2, 4, 8, 16, 16],
}

# The rule r = d / 8 would make a rank of 1 here, whose factorisation hardly depends on the initial
# bases.
rank_3 = functools.partial(Hamburger, rank=3)
small_generator = functools.partial(
    Generator, image_size=32, num_classes=3, width=2, latent_dim=5, context=rank_3
)
small_discriminator = functools.partial(
    Discriminator, image_size=32, num_classes=3, width=2, context=rank_3
)
with_networks = pytest.mark.parametrize(
    "make, inputs_of",
    [
        pytest.param(small_generator, lambda network: z_of(network), id="generator"),
        pytest.param(small_discriminator, lambda network: images_of(network), id="discriminator"),
    ],
)


def z_of(network, batch=3):
    return tf.constant(array(batch, network.latent_dim))


def images_of(network, batch=3):
    return tf.constant(np.tanh(array(batch, network.image_size, network.image_size, 3)))


# Blocks


@pytest.mark.parametrize("training", [False, True])
def test_up_block_equals_numpy(training):
    block, x = build(UpBlock(4, num_classes=3), None, 4, 3, 6), array(3, 4, 3, 6)
    expected = reference.up_block(weights(block), x, LABELS, training=training)
    assert expected.shape == (3, 8, 6, 4)
    assert_close(block(tf.constant(x), LABELS, training=training), expected, 1e-5)


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        (dict(first=True), reference.first_down_block),
        (dict(), reference.down_block),
        (dict(down=False), reference.last_block),
    ],
)
def test_down_block_equals_numpy(kwargs, expected):
    block, x = build(DownBlock(6, **kwargs), None, 4, 8, 6), array(3, 4, 8, 6)
    assert_close(block(tf.constant(x)), expected(weights(block), x), 1e-5)


def test_block_configs_round_trip():
    shape = (None, 4, 4, 6)
    assert_config_round_trips(build(UpBlock(4, num_classes=3, name="block"), *shape), *shape)
    norm = functools.partial(BatchNorm, momentum=0.5)
    block = UpBlock(4, num_classes=3, norm=norm, dtype="mixed_bfloat16", name="block")
    assert_config_round_trips(build(block, *shape), *shape)
    for kwargs in (dict(), dict(first=True), dict(down=False, dtype="mixed_bfloat16")):
        assert_config_round_trips(build(DownBlock(6, name="block", **kwargs), *shape), *shape)


# Networks against NumPy

CONTEXTS = {
    "hamburger": dict(),
    "sections": dict(context=functools.partial(Hamburger, dim=3, rank=2, sections=2, num_steps=3)),
    "at 16": dict(context_resolution=16),
    "none": dict(context=None),
}


def bases_and_sizes(network):
    if network.context is None:
        return dict()
    return dict(
        bases=network.context.initial_bases(KEYS).numpy(),
        num_steps=network.context.num_steps,
        context_resolution=network.context_resolution,
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_generator_equals_numpy(context, training):
    network = randomize(small_generator(**CONTEXTS[context]))
    z = z_of(network)
    expected = reference.generator(
        weights(network), z, LABELS, training=training, **bases_and_sizes(network)
    )
    assert np.mean(np.abs(expected) < 0.99) > 0.4  # tanh lets differences through
    assert_close(network(z, LABELS, training=training, keys=KEYS), expected, 1e-4)


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("context", CONTEXTS)
def test_discriminator_equals_numpy(context, image_size):
    network = randomize(small_discriminator(image_size=image_size, **CONTEXTS[context]))
    images = images_of(network)
    expected = reference.discriminator(weights(network), images, LABELS, **bases_and_sizes(network))
    assert_close(network(images, LABELS, keys=KEYS), expected, 1e-4)


# Sizes


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
def test_every_image_size(image_size):
    generator = Generator(image_size=image_size, num_classes=3, width=2, latent_dim=5)
    assert [block.filters for block in generator.blocks] == [
        2 * c for c in GENERATOR_CHANNELS[image_size]
    ]
    assert generator.context.gate.shape == () and generator.context_resolution == 32
    assert generator.context.lower_bread.kernel.shape == (1, 1, 8, 8)  # 4w channels at 32x32
    images = generator(z_of(generator), LABELS, training=True)
    assert images.shape == (3, image_size, image_size, 3) and images.dtype == tf.float32
    assert np.all(np.abs(images) <= 1)

    discriminator = Discriminator(image_size=image_size, num_classes=3, width=2)
    assert [block.filters for block in discriminator.blocks] == [
        2 * c for c in DISCRIMINATOR_CHANNELS[image_size]
    ]
    assert discriminator.context_resolution == min(32, image_size // 2)
    channels = 8 if image_size == 32 else 4  # 4w at 16x16, 2w at 32x32
    assert discriminator.context.lower_bread.kernel.shape == (1, 1, channels, channels)
    logits = discriminator(images, LABELS, training=True)
    assert logits.shape == (3, 1) and logits.dtype == tf.float32


def up_block_parameters(i, o):
    # Two conditional norms (gamma, beta: 1000 rows), two 3x3 convolutions, a 1x1 shortcut; each
    # convolution has a bias.
    return 2 * 1000 * i + (9 * i * o + o) + 2 * 1000 * o + (9 * o * o + o) + (i * o + o)


def up_block_state(i, o):
    # Vectors u of the three convolutions, moving mean and variance of the two norms.
    return (9 * i + 9 * o + i) + (2 * i + 2 * o)


def down_block_parameters(i, o):
    return (9 * i * o + o) + (9 * o * o + o) + (i * o + o)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def test_published_generator_s_parameters():
    # dense           128 * 16,384 + 16,384
    # 2,113,536 block 1         1024 -> 1024: 2,048,000 + 9,438,208 + 2,048,000 + 9,438,208 +
    # 1,049,600            24,022,016 block 2         1024 ->  512: 2,048,000 + 4,719,104 +
    # 1,024,000 + 2,359,808 +   524,800            10,675,712 block 3          512 ->  256:
    # 1,024,000 + 1,179,904 +   512,000 +   590,080 +   131,328             3,437,312 Hamburger
    # 256: breads 2 * 256 * 256, norm 2 * 1000 * 256, gate 1                               643,073
    # block 4          256 ->  128:   512,000 +   295,040 +   256,000 +   147,584 +    32,896
    # 1,243,520 block 5          128 ->   64:   256,000 +    73,792 +   128,000 +    36,928 +
    # 8,256               502,976 norm              64: 2 * 64
    # 128 to RGB            64 ->    3: 9 * 64 * 3 + 3
    # 1,731
    #
    # 42,640,004
    blocks = [(1024, 1024), (1024, 512), (512, 256), (256, 128), (128, 64)]
    derived = (
        (128 * 16384 + 16384)
        + sum(up_block_parameters(i, o) for i, o in blocks)
        + (2 * 256 * 256 + 2 * 1000 * 256 + 1)
        + 2 * 64
        + (9 * 64 * 3 + 3)
    )
    assert derived == 42_640_004
    # Vectors u and moving averages: dense 128, blocks, breads 2 * 256 and their norm 2 * 256, norm
    # 2 * 64, RGB 9 * 64.
    state = 128 + sum(up_block_state(i, o) for i, o in blocks) + 2 * 256 + 2 * 256 + 2 * 64 + 9 * 64
    network = Generator(image_size=128, num_classes=1000, width=64)
    assert count(network.trainable_variables) == derived
    assert count(network.non_trainable_variables) == state
    assert (network.context.initial_bases(KEYS).shape, network.context.num_steps) == (
        (3, 1, 256, 32),
        6,
    )


def test_published_discriminator_s_parameters():
    # block 1            3 ->   64:     1,792 +    36,928 +     256
    # 38,976 block 2           64 ->  128:    73,856 +   147,584 +   8,320
    # 229,760 Hamburger        128: breads 2 * 128 * 128, gate 1
    # 32,769 block 3          128 ->  256:   295,168 +   590,080 +  33,024
    # 918,272 block 4          256 ->  512: 1,180,160 + 2,359,808 + 131,584
    # 3,671,552 block 5          512 -> 1024: 4,719,616 + 9,438,208 + 525,312
    # 14,683,136 block 6         1024 -> 1024: 9,438,208 + 9,438,208, identity shortcut
    # 18,876,416 dense           1024 + 1
    # 1,025 embedding       1000 * 1024
    # 1,024,000
    #
    # 39,475,906
    blocks = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    derived = (
        sum(down_block_parameters(i, o) for i, o in blocks)
        + (2 * 128 * 128 + 1)
        + 2 * (9 * 1024 * 1024 + 1024)
        + (1024 + 1)
        + 1000 * 1024
    )
    assert derived == 39_475_906
    # Vectors u: three convolutions of each block, breads, the last block's two, dense, embedding.
    state = sum(9 * i + 9 * o + i for i, o in blocks) + 2 * 128 + 2 * 9 * 1024 + 1024 + 1024
    network = Discriminator(image_size=128, num_classes=1000, width=64)
    assert count(network.trainable_variables) == derived
    assert count(network.non_trainable_variables) == state
    assert (network.context.initial_bases(KEYS).shape, network.context.num_steps) == (
        (3, 1, 128, 16),
        6,
    )


# How they run


@with_networks
def test_same_keys_same_output(make, inputs_of):
    network = randomize(make())
    inputs = inputs_of(network)
    outputs = network(inputs, LABELS, keys=KEYS).numpy()
    np.testing.assert_array_equal(network(inputs, LABELS, keys=KEYS), outputs)
    for others in (network(inputs, LABELS, keys=KEYS + 1), network(inputs, LABELS)):
        assert all(np.any(one != other) for one, other in zip(others.numpy(), outputs, strict=True))
    assert np.any(network(inputs, LABELS).numpy() != network(inputs, LABELS).numpy())


@with_networks
def test_row_does_not_depend_on_the_others(make, inputs_of):
    network = randomize(make())
    inputs = inputs_of(network)
    whole = network(inputs, LABELS, keys=KEYS)
    for rows in ([1], [2, 0]):
        part = network(tf.gather(inputs, rows), LABELS[rows], keys=KEYS[rows])
        assert_close(part, tf.gather(whole, rows), 1e-5)


def test_labels_matter():
    generator, discriminator = randomize(small_generator()), randomize(small_discriminator())
    for network, inputs in (
        (generator, z_of(generator)),
        (discriminator, images_of(discriminator)),
    ):
        rows = tf.repeat(inputs[:1], 3, axis=0)
        outputs = network(rows, tf.range(3), keys=np.repeat(KEYS[:1], 3, axis=0)).numpy()
        assert len({output.tobytes() for output in outputs}) == 3


@with_networks
def test_dynamic_batch(make, inputs_of):
    network = randomize(make())
    inputs = inputs_of(network)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *inputs.shape[1:]]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
        ]
    )
    def dynamic(inputs, labels, keys):
        return network(inputs, labels, keys=keys)

    for batch in (1, 3):
        args = inputs[:batch], LABELS[:batch], KEYS[:batch]
        assert_close(dynamic(*args), network(args[0], args[1], keys=args[2]), 1e-5)


@pytest.mark.slow
@with_networks
def test_modes_agree_in_training(make, inputs_of):
    network = randomize(make())
    state = [tf.constant(v.numpy()) for v in network.non_trainable_variables]

    def step(inputs):
        for variable, value in zip(network.non_trainable_variables, state, strict=True):
            variable.assign(value)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = network(inputs, LABELS, training=True, keys=KEYS)
            loss = tf.reduce_sum(tf.square(outputs))
        return (
            outputs,
            tape.gradient(loss, inputs),
            [tf.identity(v.value) for v in network.non_trainable_variables],
        )

    assert_modes_agree(step, inputs_of(network), tolerance=1e-4)


@with_networks
def test_every_weight_is_reached(make, inputs_of):
    network = randomize(make())
    before = weights(network)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(network(inputs_of(network), LABELS, training=True)))
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient is not None and np.any(tf.convert_to_tensor(gradient).numpy() != 0), (
            variable.path
        )
    after = weights(network)
    for variable in network.non_trainable_variables:
        assert np.any(after[variable.path] != before[variable.path]), variable.path
    # Inference changes nothing.
    network(inputs_of(network), LABELS)
    for name, value in weights(network).items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


@with_networks
def test_outputs_are_float32_below_bfloat16(make, inputs_of):
    half, full = randomize(make(dtype="mixed_bfloat16")), randomize(make())
    assert {v.dtype for v in half.variables} == {"float32"}
    outputs = half(inputs_of(half), LABELS, keys=KEYS)
    assert outputs.dtype == tf.float32
    assert_close(outputs, full(inputs_of(full), LABELS, keys=KEYS), 0.1)
    assert half.blocks[0].conv_1.compute_dtype == half.context.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "make, inputs_of, names",
    [(small_generator, z_of, ["to_rgb"]), (small_discriminator, images_of, ["dense", "embedding"])],
)
def test_last_layers_are_float32_below_bfloat16(make, inputs_of, names):
    network, seen = make(dtype="mixed_bfloat16"), {}

    def spy(name, call):
        def observed(x, **kwargs):
            y = call(x, **kwargs)
            seen[name] = tf.as_dtype(x.dtype), y.dtype
            return y

        return observed

    for name in names:
        layer = getattr(network, name)
        layer.call = spy(name, layer.call)
    network(inputs_of(network), LABELS, keys=KEYS)
    # Not rounded on its way in either, as Keras does to what it is to compute in bfloat16.
    assert {name: kinds for name, kinds in seen.items() if name != "embedding"} == {
        name: (tf.float32, tf.float32) for name in names if name != "embedding"
    }
    assert "embedding" not in names or seen["embedding"][1] == tf.float32


def test_parts_are_passed_in():
    norm = functools.partial(BatchNorm, momentum=0.5)
    network = small_generator(norm=norm, context=functools.partial(Hamburger, norm=norm, rank=3))
    norms = [
        network.norm,
        network.context.norm,
        *(n for block in network.blocks for n in (block.norm_1, block.norm_2)),
    ]
    assert {layer.momentum for layer in norms} == {0.5} and network.context.rank == 3
    # The generator's final norm knows no classes, the others do; the discriminator has none.
    assert [layer.num_classes for layer in norms] == [None] + [3] * 7
    assert small_discriminator().context.norm is None
    assert (
        small_generator(context=None).context is None
        and small_discriminator(context=None).context is None
    )


# Errors


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_image_size_must_be_known(network):
    with pytest.raises(ValueError, match=r"image_size must be one of \(32, 64, 128, 256\), got 96"):
        network(image_size=96)


@pytest.mark.parametrize(
    "network, name",
    [(Generator, name) for name in ("num_classes", "width", "latent_dim")]
    + [(Discriminator, name) for name in ("num_classes", "width")],
)
def test_sizes_must_be_positive(network, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        network(**{name: 0})


def test_generator_s_context_follows_a_block():
    with pytest.raises(
        ValueError,
        match=r"Generator: context_resolution must be one of \[8, 16, 32, 64\], .* got 128",
    ):
        Generator(image_size=64, width=2, num_classes=3, context_resolution=128)
    Generator(image_size=32, width=2, num_classes=3, context=None, context_resolution=128)


def test_discriminator_s_context_follows_a_block():
    with pytest.raises(
        ValueError,
        match=r"Discriminator: context_resolution must be one of \[16, 8, 4\], .* got 32",
    ):
        Discriminator(image_size=32, width=2, num_classes=3, context_resolution=32)
    Discriminator(image_size=32, width=2, num_classes=3, context=None, context_resolution=32)


def test_identity_shortcut_needs_equal_channels():
    block = DownBlock(6, down=False, name="block_6")
    with pytest.raises(
        ValueError,
        match="block_6: an identity shortcut needs filters = input channels, got 6 and 4",
    ):
        block.build((None, 4, 4, 4))


def test_conditional_block_needs_labels():
    network = small_generator()
    with pytest.raises(ValueError, match="labels are needed, got None"):
        network(z_of(network), None)
