"""Segmentation networks against recordings of the published code, and its parameter counts.

The copies in tests/golden/segmentation leave out large intermediate arrays; what a recording has is
compared.
"""

import functools
import math

import keras
import numpy as np
import pytest
import segmentation_golden
import tensorflow as tf
from helpers import assert_close
from segmentation_golden import channels_last

from hamgan import context, decomposition
from hamgan.segmentation import (
    hamburger,
    heads,
    layers,
    losses,
    optimizers,
    published,
    recordings,
    resnet,
    segmenter,
    testing,
    van,
)
from hamgan.segmentation.schedules import Poly, WarmUp

# Of the largest value. What the recordings' README gives: float32 1e-5, weight gradients 1e-4.
TOLERANCE = {"float32": 1e-4, "float64": 2e-7}


def recorded(*keys):
    """Names of the recordings in the folder that have all of some arrays, for parametrization."""
    found = []
    for path in sorted(segmentation_golden.FOLDER.glob("*.npz")):
        with np.load(path) as file:
            if set(keys) <= set(file.files):
                found.append(path.stem)
    return found


HAMNET, MMSEGMENTATION = recorded("meta", "dy", "eval/pred"), recorded("meta", "dlogits")
WHOLE = HAMNET + MMSEGMENTATION
BOTH = pytest.mark.parametrize("dtype", TOLERANCE)


def under(prefix, arrays):
    """What a recording holds below a prefix, without it."""
    found = {name: value for name, value in arrays.items() if name.startswith(prefix)}
    return {name[len(prefix) :]: value for name, value in found.items()}


def tensor(x, dtype):
    """[B, C, H, W] as a tensor [B, H, W, C]."""
    return tf.constant(channels_last(x), dtype)


def put(layer, weights, name_of):
    """Gives each variable of a layer its recorded value; returns {published name: variable}.

    Args:
      layer: a built layer.
      weights: {published name: array}.
      name_of: function (path of a layer within this one, variable's name) -> published name.
    """
    named = {}
    for variable in layer.variables:
        inner, _, weight = variable.path.removeprefix(f"{layer.name}/").rpartition("/")
        name = name_of(inner, weight)
        if weight in published.naming._WEIGHTS:
            name = f"{name}.{published.naming._WEIGHTS[weight]}"
        named[name] = variable
        variable.assign(published.ours(name, weights[name], tuple(variable.shape)))
    assert named.keys() == weights.keys()
    return named


def assert_gradients(tape, target, variables, expected, tolerance, upstream=None):
    """Gradients with respect to {published name: variable} are the expected ones."""
    assert expected
    named = {name: variables[name] for name in expected}
    gradients = tape.gradient(target, [v.value for v in named.values()], upstream)
    for name, gradient in zip(named, gradients, strict=True):
        # V2+'s factors are single numbers, sums of terms a thousand times as large.
        scale = 5 if expected[name].size == 1 else 1
        assert_close(published.theirs(name, gradient), expected[name], scale * tolerance)


def assert_values(variables, expected, tolerance):
    """{published name: variable} have the expected values."""
    assert expected
    for name, value in expected.items():
        assert_close(published.theirs(name, variables[name].value), value, tolerance)


# Hamburgers alone


CASES = (
    sorted(
        {name.split("/")[0] for name in segmentation_golden.load("hamburger")}
        - {"online_CD", "online_NMF"}
    )
    if (segmentation_golden.FOLDER / "hamburger.npz").exists()
    else []
)


def hamburger_case(case, dtype):
    """(layer with its weights, {published name: variable}, hams, arrays)"""
    arrays = under(f"{case}/", segmentation_golden.load("hamburger"))
    _, channels, sections, _, rank, height, width, steps, eval_steps = map(int, arrays["meta"])
    t, beta = map(float, arrays["inv_t_beta"])
    weights = under("w/", arrays)
    kind = next(kind for kind in ("NMF", "CD", "VQ") if kind in case.split("_"))
    lower = weights["lower_bread.0.weight" if kind == "NMF" else "lower_bread.weight"].shape[0]
    hams = ("space", "channels") if "eval/bases_1" in arrays else ("space",)
    if len(hams) == 1 and arrays["eval/bases"].shape[1] * sections != lower:
        hams = ("channels",)
    options = {}
    version = "V2+" if "coef_ham" in weights else "V2" if "cheese.conv.weight" in weights else "V1"
    if version != "V1":
        options["cheese_factor"] = lower // weights["cheese.conv.weight"].shape[0]
    function = {
        "NMF": functools.partial(decomposition.nmf, temperature=1 / t),
        "CD": functools.partial(decomposition.cd, temperature=1 / t, beta=beta, normalize=False),
        "VQ": functools.partial(decomposition.vq, temperature=1 / t),
    }[kind]
    constructor = {
        "V1": hamburger.Hamburger,
        "V2": hamburger.HamburgerV2,
        "V2+": hamburger.HamburgerV2Plus,
    }[version]
    layer = constructor(
        hams=hams,
        sections=sections,
        dim=lower // (sections * len(hams)),
        rank=rank,
        num_steps=steps,
        eval_steps=eval_steps,
        decomposition=function,
        dtype=dtype,
        **options,
    )
    layer.build((None, height, width, channels))
    name_of = functools.partial(published.hamburger_name, version=version, is_nmf=kind == "NMF")
    return layer, put(layer, weights, name_of), hams, arrays


@BOTH
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_hamburger(case, mode, dtype):
    layer, variables, hams, arrays = hamburger_case(case, dtype)
    x, dy = tensor(arrays["x"], dtype), tensor(arrays["dy"], dtype)
    given = recordings.initial(arrays, hams, mode, dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = layer(x, training=mode == "train", initial=given)
    tolerance = TOLERANCE[dtype]
    assert_close(y, channels_last(arrays[f"{mode}/y"]), tolerance)
    assert_close(tape.gradient(y, x, dy), channels_last(arrays[f"{mode}/dx"]), tolerance)
    if mode == "train":
        assert_gradients(tape, y, variables, under("train/g/", arrays), tolerance, dy)
        assert_values(variables, under("train/after/", arrays), tolerance)


@pytest.mark.parametrize("kind", ["CD", "NMF"])
def test_running_bases(kind):
    # Published, they follow the evaluation, with its number of steps; here the training.
    arrays = under(f"online_{kind}/", segmentation_golden.load("hamburger"))
    sections, dim, rank = arrays["bases0"].shape
    function = {
        "CD": functools.partial(decomposition.cd, temperature=1 / 100, beta=0.1, normalize=False),
        "NMF": decomposition.nmf,
    }[kind]
    layer = hamburger.Hamburger(
        sections=sections,
        rank=rank,
        num_steps=7,
        decomposition=function,
        bases=functools.partial(context.WarmStartBases, rate=0.9),
        dtype="float64",
    )
    layer.build((None, None, None, sections * dim))
    layer.lower_bread.kernel.assign(np.eye(sections * dim)[None, None])
    layer.lower_bread.bias.assign(np.zeros(sections * dim))
    layer.bases.bases.assign(arrays["bases0"])
    for index in range(2):
        x = tensor(arrays[f"x{index}"], "float64")
        before = layer.initial(tf.zeros([len(x), 2], tf.int32))
        hams = layer.decompose(x, before, training=True)
        y = tf.reshape(hams["space"].product(), x.shape)
        assert_close(y, channels_last(arrays[f"y{index}"]), 1e-5)
        assert_close(layer.bases.bases, arrays[f"bases{index + 1}"], 1e-5)


# A block of VAN


@BOTH
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_van_block(mode, dtype):
    arrays = segmentation_golden.load("van_block")
    _, channels, _, _, ratio = map(int, arrays["meta"])
    block = van.Block(mlp_ratio=ratio, dtype=dtype)
    block.build((None, None, None, channels))
    variables = put(block, under("w/", arrays), lambda inner, _: published.van_block_name(inner))
    x, dy = tensor(arrays["x"], dtype), tensor(arrays["dy"], dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = block(x, training=mode == "train")
    tolerance = TOLERANCE[dtype]
    assert_close(y, channels_last(arrays[f"{mode}/y"]), tolerance)
    assert_close(tape.gradient(y, x, dy), channels_last(arrays[f"{mode}/dx"]), tolerance)
    if mode == "eval":
        parts = {"lka": block.attention.gate, "attn": block.attention, "mlp": block.mlp}
        for name, part in parts.items():
            assert_close(part(x), channels_last(arrays[f"eval/{name}"]), tolerance)
    else:
        assert_gradients(tape, y, variables, under("train/g/", arrays), tolerance, dy)
        assert_values(variables, under("train/after/", arrays), tolerance)


# Whole networks


@functools.cache
def network(name, dtype):
    """(network without dropout and with the recorded weights, {published name: variable})"""
    weights = published.load_weights(str(segmentation_golden.FOLDER / f"{name}.npz"))
    arrays = segmentation_golden.load(name)
    options = published.Options(dropout=0.0, drop_path=0.0)
    options, _ = recordings.fit(weights, arrays, options)
    built = published.network_part(weights, options).constructor()(dtype=dtype)
    variables = published.named_variables(built)
    published.assign(weights, published.plan(weights, variables), variables)
    names = published.names(weights, variables)
    by_path = {variable.path: variable for variable in built.variables}
    return built, {names[path]: by_path[path] for path in names}, weights


@BOTH
@pytest.mark.parametrize("name", WHOLE)
def test_network_in_evaluation(name, dtype):
    built, variables, _ = network(name, dtype)
    arrays = segmentation_golden.load(name)
    errors = recordings.replay(built, arrays)
    assert errors.keys() >= {"logits", "image_gradient"}
    assert max(errors.values()) <= TOLERANCE[dtype], errors
    if under("eval/g/", arrays):
        check_behind_the_backbone(built, variables, arrays, dtype)


def check_behind_the_backbone(built, variables, arrays, dtype):
    features = [tensor(arrays[f"eval/feat{index}"], dtype) for index in range(1, 5)]
    dy = tensor(arrays["dlogits"], dtype)
    given = recordings.initial(arrays, built.head.hamburger.hams, dtype=dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        logits = built.head(features, initial=given).logits
    assert_gradients(tape, logits, variables, under("eval/g/", arrays), TOLERANCE[dtype], dy)


@BOTH
@pytest.mark.parametrize("name", MMSEGMENTATION)
def test_gradient_at_features(name, dtype):
    built, _, _ = network(name, dtype)
    arrays = segmentation_golden.load(name)
    x, dy = tensor(arrays["x"], dtype), tensor(arrays["dlogits"], dtype)
    given = recordings.initial(arrays, built.head.hamburger.hams, dtype=dtype)
    gradient, later = None, None
    # Each stage sees the one before: what comes in at stage i is the head's and stage i + 1's.
    features = built.backbone(x)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = built.head(features, initial=given).logits
    at_head = tape.gradient(logits, features, dy)
    for index in reversed(range(4)):
        gradient = at_head[index]
        if later is not None:
            with tf.GradientTape() as tape:
                tape.watch(features[index])
                following = built.backbone.stages[index + 1](features[index])
            through = tape.gradient(following, features[index], later)
            gradient = through if gradient is None else gradient + through
        later = gradient
        if f"eval/dfeat{index + 1}" in arrays:
            expected = channels_last(arrays[f"eval/dfeat{index + 1}"])
            assert_close(gradient, expected, TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("name", WHOLE)
def test_network_in_training(name, dtype):
    built, variables, weights = network(name, dtype)
    arrays = segmentation_golden.load(name)
    x = tensor(arrays["x"], dtype)
    loss = losses.SegmentationLoss(align_corners=built.align_corners)
    given = recordings.initial(arrays, built.head.hamburger.hams, "train", dtype)
    with tf.GradientTape(persistent=True) as tape:
        found = built(x, training=True, initial=given)
        values = loss(found.logits, arrays["label"], found.auxiliary)
        total = tf.reduce_mean(tf.add_n(list(values.values())))
    tolerance = TOLERANCE[dtype]
    try:
        assert_close(total, arrays["train/loss" if "train/loss" in arrays else "train/total"], 1e-5)
        if "train/aux.loss_ce" in arrays:
            assert len(values) == 2
            for value, key in zip(values.values(), ("decode", "aux"), strict=True):
                assert_close(tf.reduce_mean(value), arrays[f"train/{key}.loss_ce"], 1e-5)
        assert_gradients(tape, total, variables, under("train/g/", arrays), tolerance)
        assert_values(variables, under("train/after/", arrays), tolerance)
    finally:
        # The network is shared, and its running moments have changed.
        restore(built, weights)


@pytest.mark.parametrize("name", MMSEGMENTATION)
def test_one_step_gradient_is_another(name):
    weights = published.load_weights(str(segmentation_golden.FOLDER / f"{name}.npz"))
    arrays = segmentation_golden.load(name)
    (options,) = recordings.options_of(weights, arrays, published.Options())
    part = published.network_part(weights, options)
    part.settings["head"].settings["hamburger"].settings["solve"] = decomposition.one_step
    built = part.constructor()()
    variables = published.named_variables(built)
    published.assign(weights, published.plan(weights, variables), variables)
    errors = recordings.replay(built, arrays)
    assert errors["logits"] < 1e-4 < 1e-3 < errors["image_gradient"]


@pytest.mark.parametrize("name", WHOLE)
def test_size_may_change_from_call_to_call(name):
    built, _, _ = network(name, "float32")
    x = tensor(segmentation_golden.load(name)["x"], "float32")
    keys = tf.constant([[1, 2], [3, 4]])
    signature = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, 2], tf.int32)]
    dynamic = tf.function(lambda x, keys: built(x, keys=keys).logits, input_signature=signature)
    for images in (x, x[:1, :-16], tf.pad(x, [[0, 0], [0, 32], [0, 0], [0, 0]])):
        expected = built(images, keys=keys[: len(images)]).logits
        assert_close(dynamic(images, keys[: len(images)]), expected, 1e-4)


# Steps and whole images


def restore(built, weights):
    """Gives a shared network its recorded weights back."""
    inner = {variable.path: variable.value for variable in built.variables}
    published.assign(weights, published.plan(weights, inner), inner)


def take_steps(name, kind, optimizer, check):
    """Trains on the recorded batch as `kind`/* was; checks losses by the way, then weights."""
    built, variables, weights = network(name, "float64")
    arrays = segmentation_golden.load(name)
    loss = losses.SegmentationLoss(align_corners=built.align_corners)
    x, trained = tensor(arrays["x"], "float64"), built.trainable_variables
    optimizer.build(trained)
    try:
        for bases, expected in zip(arrays[f"{kind}/bases"], arrays[f"{kind}/loss"], strict=True):
            step = {"x": arrays["x"], "train/bases": bases}
            given = recordings.initial(step, built.head.hamburger.hams, "train", "float64")
            with tf.GradientTape() as tape:
                found = built(x, training=True, initial=given)
                (value,) = loss(found.logits, arrays["label"], found.auxiliary).values()
                total = tf.reduce_mean(value)
            assert_close(total, expected, 1e-6)
            gradients = tape.gradient(total, [variable.value for variable in trained])
            optimizer.apply(gradients, trained)
        check(variables, under(f"{kind}/after/", arrays))
    finally:
        restore(built, weights)


@pytest.mark.parametrize("name", recorded("sgd/meta"))
def test_steps_of_sgd(name):
    arrays = segmentation_golden.load(name)
    rate, momentum, decay, power, every, steps = (float(value) for value in arrays["sgd/meta"])
    optimizer = optimizers.SGD(
        schedules_of(Poly(initial=rate, steps=int(steps), power=power, every=int(every))),
        momentum=momentum,
        groups=optimizers.HamNetGroups(weight_decay=decay),
    )
    take_steps(name, "sgd", optimizer, lambda *both: assert_values(*both, 1e-6))


@pytest.mark.parametrize("name", recorded("adamw/meta"))
def test_steps_of_adamw(name):
    arrays = segmentation_golden.load(name)
    rate, beta_1, beta_2, epsilon, decay, steps, warm, ratio = arrays["adamw/meta"].tolist()
    weights = published.load_weights(str(segmentation_golden.FOLDER / f"{name}.npz"))
    described = published.describe(weights)
    poly = Poly(initial=rate, steps=int(steps), power=1.0)
    optimizer = optimizers.AdamW(
        schedules_of(WarmUp(schedule=poly, steps=int(warm), ratio=ratio)),
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        groups=optimizers.MMSegmentationGroups(
            weight_decay=decay,
            name=lambda variable: published.published_name(variable.path, described),
        ),
    )
    # Where a gradient is nearly 0, Adam makes a step of its rounding.
    take_steps(name, "adamw", optimizer, lambda *both: assert_values(*both, 1e-5))


def schedules_of(schedule):
    """A schedule of ours as Keras takes it."""

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return schedule(tf.cast(step, tf.int64))

    return Schedule()


def passes(built, bases):
    """The network as the tests of whole images call it, from bases [pass, B, D, R] in order."""
    bases = iter(bases)

    def call(x):
        given = {"space": tf.constant(next(bases))[None]}
        return built(x, initial=lambda keys: given).logits

    return call


def test_multi_scale_and_flip_of_hamnet():
    recording = segmentation_golden.load("msflip")
    built, _, _ = network("hamnet_os8_v2_nmf", "float32")
    found = testing.hamnet_logits(
        passes(built, recording["bases"]),
        recording["image"],
        scales=recording["scales"].tolist(),
        flip=True,
        stride=int(recording["meta"][2]),
    )
    assert_close(found, channels_last(recording["sum_logits"])[0], 1e-4)
    np.testing.assert_array_equal(found.argmax(axis=-1), recording["png"])


def test_multi_scale_and_flip_of_light_ham():
    recording = segmentation_golden.load("light_ham_aug")
    built, _, _ = network("light_ham", "float32")
    bases = [recording[f"bases{index}"] for index in range(len(recording["flips"]))]
    found = testing.mmsegmentation_probabilities(
        passes(built, bases),
        recording["image_rgb"],
        base_size=(256, 64),
        ratios=(0.5, 1.0, 1.75),
        flip=True,
        divisor=32,
    )
    assert_close(found, channels_last(recording["prob"])[0], 1e-4)
    np.testing.assert_array_equal(found.argmax(axis=-1), np.squeeze(recording["pred"]))


# Names


@pytest.mark.parametrize("name", WHOLE)
def test_every_name_has_its_place(name):
    _, variables, weights = network(name, "float32")
    assert variables.keys() == weights.arrays.keys()
    for published_name, variable in variables.items():
        value = weights.arrays[published_name]
        there = published.ours(published_name, value, tuple(variable.shape))
        assert there.shape == tuple(variable.shape)
        np.testing.assert_array_equal(published.theirs(published_name, there), value)


# Parameters


def count(part):
    """Parameters of a network or a backbone, which isn't built."""
    with keras.StatelessScope(initialize_variables=False):
        built = part()
        if not isinstance(built, segmenter.Segmenter):
            built.build((None, None, None, 3))
        sizes = [math.prod(variable.shape) for variable in built.trainable_variables]
    keras.utils.clear_session(free_memory=False)
    return sum(sizes)


def hamnet(depth, constructor, **settings):
    return functools.partial(
        segmenter.Segmenter,
        backbone=functools.partial(resnet.ResNet, depth=depth),
        head=functools.partial(
            heads.HamNetHead,
            hamburger=functools.partial(constructor, dim=512, rank=64, **settings),
        ),
    )


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        (hamnet(50, hamburger.Hamburger), 34_781_397),
        (hamnet(50, hamburger.HamburgerV2), 35_043_541),
        (hamnet(101, hamburger.Hamburger), 53_773_525),
        (hamnet(101, hamburger.HamburgerV2), 54_035_669),
        (hamnet(50, hamburger.HamburgerV2Plus), 35_043_543),
        (hamnet(101, hamburger.HamburgerV2Plus), 54_035_671),
    ],
)
def test_parameters_of_hamnet(part, parameters):
    assert count(part) == parameters


def van_of(size, **settings):
    return functools.partial(van.VAN, **van.SIZES[size], **settings)


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 3.849), ("small", 13.349), ("base", 26.065), ("large", 44.253), ("huge", 59.770)],
)
def test_parameters_of_van(size, millions):
    assert round(count(van_of(size)) / 1e6, 3) == millions


def light_ham(size, ham_channels=512, channels=512, rank=64):
    burger = functools.partial(
        hamburger.Hamburger,
        norm=layers.GroupNorm,
        solve=decomposition.unrolled,
        dim=ham_channels,
        rank=rank,
    )
    return functools.partial(
        segmenter.Segmenter,
        num_classes=150,
        backbone=van_of(size),
        head=functools.partial(
            heads.LightHamHead,
            channels=ham_channels,
            align_channels=channels,
            hamburger=burger,
        ),
        align_corners=False,
    )


@pytest.mark.parametrize(
    ("size", "channels", "millions"),
    [
        ("tiny", (256, 256, 16), 4.209),
        ("tiny", (480, 512), 4.866),
        ("small", (256, 256, 16), 13.832),
        ("small", (), 14.707),
        ("base", (), 27.424),
        ("large", (), 45.611),
        ("huge", (), 61.129),
    ],
)
def test_parameters_of_light_ham(size, channels, millions):
    assert round(count(light_ham(size, *channels)) / 1e6, 3) == millions


def ade20k(backbone, **settings):
    return functools.partial(
        segmenter.Segmenter,
        num_classes=150,
        backbone=backbone,
        head=functools.partial(heads.HamHead, **settings),
        auxiliary=heads.FCNHead,
        align_corners=False,
    )


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 11.9), ("small", 24.2), ("base", 36.9), ("large", 55.1)]
)
def test_parameters_of_hamnet_van(size, millions):
    # Counted as published, which is without saying how: see the module's facts.
    assert round(count(ade20k(van_of(size, strides=(4, 2, 1, 1)))) / 1e6, 1) == millions


@pytest.mark.parametrize(("concat", "millions"), [(False, 57.32), (True, 69.12)])
def test_parameters_of_hamnet_101_on_ade20k(concat, millions):
    backbone = functools.partial(resnet.ResNet, depth=101, multi_grid=(1, 1, 1), stem=(32, 32, 64))
    assert round(count(ade20k(backbone, concat_input=concat)) / 1e6, 2) == millions
