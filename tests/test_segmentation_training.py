"""Schedules, optimizers and losses of segmentation against PyTorch's formulas in float64."""

import keras
import numpy as np
import pytest
import segmentation_golden
import tensorflow as tf

from hamgan.segmentation import losses, optimizers, schedules


def rates(schedule, count):
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in range(count)])


# Schedules.


def test_published_poly_of_hamnet():
    expected = segmentation_golden.load("pipeline")["poly_lr"]
    steps = len(expected)
    every = 1 + int(np.argmax(expected[:, 0] != expected[0, 0]))
    schedule = schedules.Poly(initial=float(expected[0, 0]), steps=steps, every=every)
    np.testing.assert_allclose(rates(schedule, steps), expected[:, 0], rtol=2e-6, atol=1e-12)
    groups = optimizers.HamNetGroups(role=lambda role: role)
    factors = [groups(role).rate for role in ("weight", "scale", "bias")]
    np.testing.assert_allclose(np.outer(expected[:, 0], factors), expected, rtol=1e-7)


def test_published_rates_of_sgd():
    recording = segmentation_golden.load("hamnet_os8_v2_nmf")
    initial, _, _, power, every, steps = (float(value) for value in recording["sgd/meta"])
    schedule = schedules.Poly(initial=initial, steps=int(steps), power=power, every=int(every))
    expected = recording["sgd/lr"][:, 0]
    np.testing.assert_allclose(rates(schedule, len(expected)), expected, rtol=2e-6)


def test_published_rates_of_adamw():
    recording = segmentation_golden.load("light_ham")
    initial, *_, steps, warm_up, ratio = recording["adamw/meta"].tolist()
    schedule = schedules.WarmUp(
        schedule=schedules.Poly(initial=initial, steps=int(steps), power=1.0),
        steps=int(warm_up),
        ratio=ratio,
    )
    expected = recording["adamw/lr"]
    np.testing.assert_allclose(rates(schedule, len(expected)), expected, rtol=2e-6)


def test_poly_to_a_final_rate():
    schedule = schedules.Poly(initial=0.01, steps=40, final=1e-4)
    i = np.minimum(np.arange(45), 40)
    expected = (0.01 - 1e-4) * (1 - i / 40) ** 0.9 + 1e-4
    np.testing.assert_allclose(rates(schedule, 45), expected, rtol=2e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.Poly(initial=-1.0, steps=5), "initial must be at least 0, got -1.0"),
        (lambda: schedules.Poly(initial=1.0, steps=0), "steps must be a whole number"),
        (lambda: schedules.Poly(initial=1.0, steps=5, every=1.5), "every must be None or a whole"),
        (lambda: schedules.WarmUp(schedule=abs, steps=0), "steps must be a whole number"),
        (lambda: schedules.WarmUp(schedule=abs, ratio=2), "ratio must be in"),
    ],
)
def test_schedule_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Optimizers.

SHAPES = {"a/kernel": (3, 4), "a/bias": (4,), "norm1/gamma": (4,), "norm1/beta": (4,)}
STEPS = 6
RATE = np.array([0.1, 0.1, 0.05, 0.03, 0.01, 0.0])


def numbers(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def make_variables(dtype):
    return [
        keras.Variable(value, dtype=dtype, name=name.split("/")[1])
        for name, value in numbers(0).items()
    ]


def run(optimizer, variables, gradients):
    """Variables after each of some steps."""
    optimizer.build(variables)
    after = []
    for of_step in gradients:
        values = [tf.constant(of_step[name], variables[0].dtype) for name in SHAPES]
        optimizer.apply(values, variables)
        after.append({n: v.numpy() for n, v in zip(SHAPES, variables, strict=True)})
    return after


GRADIENTS = [numbers(1 + step) for step in range(STEPS)]


def scheduled(optimizer_of, variables):
    optimizer = optimizer_of(lambda: tf.gather(tf.constant(RATE), optimizer.iterations.value))
    return optimizer, run(optimizer, variables, GRADIENTS)


def sgd_in_numpy(groups, momentum):
    """As torch.optim.SGD documents it: b = momentum b + g + decay p; p -= rate b."""
    p = numbers(0)
    b = {name: 0.0 for name in p}
    for step, gradients in enumerate(GRADIENTS):
        for name in p:
            factor, decay = groups[name]
            b[name] = momentum * b[name] + gradients[name] + decay * p[name]
            p[name] = p[name] - RATE[step] * factor * b[name]
        yield dict(p)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
def test_sgd(dtype, tolerance):
    variables = make_variables(dtype)
    _, after = scheduled(
        lambda rate: optimizers.SGD(
            rate, momentum=0.8, groups=optimizers.HamNetGroups(weight_decay=0.1)
        ),
        variables,
    )
    groups = {"a/kernel": (1, 0.1), "a/bias": (2, 0), "norm1/gamma": (1, 0), "norm1/beta": (2, 0)}
    for step, expected in enumerate(sgd_in_numpy(groups, 0.8)):
        for name in SHAPES:
            np.testing.assert_allclose(after[step][name], expected[name], atol=tolerance)


def adamw_in_numpy(groups, beta_1, beta_2, epsilon):
    """As torch.optim.AdamW documents it."""
    p = numbers(0)
    m, v = ({name: 0.0 for name in p} for _ in range(2))
    for step, gradients in enumerate(GRADIENTS):
        for name, g in gradients.items():
            factor, decay = groups[name]
            rate = RATE[step] * factor
            p[name] = p[name] * (1 - rate * decay)
            m[name] = beta_1 * m[name] + (1 - beta_1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g**2
            root = np.sqrt(v[name]) / np.sqrt(1 - beta_2 ** (step + 1)) + epsilon
            p[name] = p[name] - rate / (1 - beta_1 ** (step + 1)) * m[name] / root
        yield dict(p)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("epsilon", [1e-8, 0.3])
def test_adamw(dtype, tolerance, epsilon):
    variables = make_variables(dtype)
    name_of = {id(variable): name for variable, name in zip(variables, SHAPES, strict=True)}
    groups = optimizers.MMSegmentationGroups(
        weight_decay=0.1,
        multipliers={"norm": (1.0, 0.0), "bias": (10.0, 1.0)},
        name=lambda variable: name_of[id(variable)],
    )
    _, after = scheduled(
        lambda rate: optimizers.AdamW(rate, epsilon=epsilon, groups=groups), variables
    )
    expected_groups = {
        "a/kernel": (1, 0.1),
        "a/bias": (10, 0.1),
        "norm1/gamma": (1, 0),
        "norm1/beta": (1, 0),
    }
    for step, expected in enumerate(adamw_in_numpy(expected_groups, 0.9, 0.999, epsilon)):
        for name in SHAPES:
            np.testing.assert_allclose(after[step][name], expected[name], atol=tolerance)


def optimizer_in_graph(make):
    """Two replicas that get the same gradients, in a function: the variables and slots after it."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variables = make_variables("float32")
        optimizer = make()
        optimizer.build(variables)

    @tf.function
    def step(gradients):
        strategy.run(lambda: optimizer.apply(gradients, variables))

    for of_step in GRADIENTS[:3]:
        step([tf.constant(of_step[name], tf.float32) for name in SHAPES])
    return {n: v.numpy() for n, v in zip(SHAPES, variables, strict=True)}, optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.1),
        lambda: optimizers.AdamW(0.1, groups=optimizers.MMSegmentationGroups(weight_decay=0.1)),
    ],
)
def test_replicas_agree_with_one_device(make):
    replicated, optimizer = optimizer_in_graph(make)
    alone = run(make(), make_variables("float32"), GRADIENTS[:3])[-1]
    for name in SHAPES:
        np.testing.assert_allclose(replicated[name], alone[name], rtol=1e-5, atol=1e-6)
    assert optimizer.iterations.value.numpy() == 3


def test_state_goes_through_a_checkpoint(tmp_path):
    def make():
        variables = make_variables("float32")
        optimizer = optimizers.AdamW(0.1)
        optimizer.build(variables)
        return variables, optimizer, tf.train.Checkpoint(o=optimizer.variables, v=variables)

    variables, optimizer, checkpoint = make()
    run(optimizer, variables, GRADIENTS[:2])
    path = checkpoint.write(str(tmp_path / "state"))
    whole = run(optimizer, variables, GRADIENTS[2:])[-1]
    variables, optimizer, checkpoint = make()
    checkpoint.read(path).assert_consumed()
    resumed = run(optimizer, variables, GRADIENTS[2:])[-1]
    for name in SHAPES:
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_names_without_decay_are_the_published_ones():
    recording = segmentation_golden.load("light_ham")
    rule = optimizers.MMSegmentationGroups(weight_decay=0.1, name=lambda name: name)
    names = [key[2:] for key in recording if key.startswith("w/")]
    names = [n for n in names if not n.endswith(("running_mean", "running_var", "tracked"))]
    without = {name for name in names if rule(name).weight_decay == 0}
    assert without == set(recording["adamw/no_decay_names"].tolist())
    assert {rule(name) for name in names} == {(1.0, 0.0), (1.0, 0.1)}


def test_roles_by_name():
    roles = [optimizers.role_by_name(variable) for variable in make_variables("float32")]
    assert roles == ["weight", "bias", "scale", "bias"]
    strange = keras.Variable(0.0, name="u")
    with pytest.raises(ValueError, match="give a role of your own"):
        optimizers.role_by_name(strange)
    with pytest.raises(ValueError, match="role must give weight, scale, bias, got 'x'"):
        optimizers.HamNetGroups(role=lambda _: "x")(strange)


def test_longest_word_counts():
    rule = optimizers.MMSegmentationGroups(
        weight_decay=1.0,
        multipliers={"norm": (1.0, 0.0), "head": (10.0, 1.0), "pos_block": (3.0, 0.5)},
        name=lambda name: name,
    )
    assert rule("backbone.norm1.weight") == (1.0, 0.0)
    assert rule("decode_head.conv.weight") == (10.0, 1.0)
    assert rule("decode_head.norm") == (10.0, 1.0)  # both of four letters: by the alphabet
    assert rule("pos_block.norm") == (3.0, 0.5)
    assert rule("backbone.conv") == (1.0, 1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.SGD(momentum=1.0), "momentum must be in"),
        (lambda: optimizers.AdamW(beta_1=1.0), "beta_1 must be in"),
        (lambda: optimizers.AdamW(beta_2=-0.1), "beta_2 must be in"),
        (lambda: optimizers.AdamW(epsilon=0.0), "epsilon must be above 0"),
        (lambda: losses.SegmentationLoss(auxiliary_weight=-1), "auxiliary_weight must be"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Losses.


def loss_in_numpy(logits, labels):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    entropy = np.zeros(labels.shape)
    for place in np.argwhere(labels != 255):
        entropy[tuple(place)] = -log_p[(*place, labels[tuple(place)])]
    return entropy.mean(axis=(1, 2))


def made_logits(dtype="float64", ignored=0.3):
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 5, (2, 6, 7))
    labels[rng.random(labels.shape) < ignored] = 255
    return rng.normal(0, 3, (2, 6, 7, 5)).astype(dtype), labels


def test_cross_entropy_counts_ignored_pixels_as_zero():
    logits, labels = made_logits()
    loss = losses.cross_entropy(tf.constant(logits), labels.astype(np.uint8))
    np.testing.assert_allclose(loss, loss_in_numpy(logits, labels), rtol=1e-12)
    assert not losses.cross_entropy(tf.constant(logits), np.full_like(labels, 255)).numpy().any()


def test_no_gradient_from_ignored_pixels():
    logits, labels = made_logits()
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_mean(losses.cross_entropy(logits, labels))
    gradient = tape.gradient(loss, logits).numpy()
    p = tf.nn.softmax(logits).numpy() - np.eye(5)[np.where(labels == 255, 0, labels)]
    expected = np.where((labels == 255)[..., None], 0, p / labels.size)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_low_precision_logits_are_computed_in_float32():
    logits, labels = made_logits("float32")
    rounded = tf.cast(logits, tf.bfloat16)
    expected = loss_in_numpy(tf.cast(rounded, tf.float64).numpy(), labels)
    loss = losses.SegmentationLoss()(rounded, labels)["loss/decode"]
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_loss_enlarges_logits(align_corners):
    rng = np.random.default_rng(8)
    logits, auxiliary = (rng.normal(size=(2, 3, 4, 5)) for _ in range(2))
    _, labels = made_logits()
    loss = losses.SegmentationLoss(align_corners=align_corners, auxiliary_weight=0.25)
    from test_segmentation_resizing import resampled

    values = loss(tf.constant(logits), labels, tf.constant(auxiliary))
    for name, x, weight in (("decode", logits, 1), ("auxiliary", auxiliary, 0.25)):
        expected = weight * loss_in_numpy(resampled(x, (6, 7), align_corners), labels)
        np.testing.assert_allclose(values[f"loss/{name}"], expected, rtol=1e-10)
    assert list(loss(tf.constant(logits), labels)) == ["loss/decode"]


def test_pixel_accuracy():
    logits, labels = made_logits()
    labelled = labels != 255
    expected = (logits.argmax(-1) == labels)[labelled].mean()
    np.testing.assert_allclose(losses.pixel_accuracy(logits, labels), expected, rtol=1e-6)
    assert losses.pixel_accuracy(logits, np.full_like(labels, 255)) == 0
