"""Published training steps and whole-image tests, around reference networks, in float64."""

import keras
import numpy as np
import pytest
import segmentation_golden
import segmentation_reference
import tensorflow as tf
from test_segmentation_testing import DIVISOR, boxes

from hamgan.segmentation import losses, optimizers, resizing, schedules, testing


def closeness(actual, expected):
    """Largest difference over the largest value."""
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def enlarged(x, size):
    return resizing.bilinear(x, size, align_corners=False)


def network_of(recording):
    """(weights, (x, bases) -> logits)"""
    w = segmentation_reference.weights(recording)
    meta = recording["meta"].tolist()
    if "adamw/meta" in recording:
        groups, train_steps, steps = meta[10], *meta[12:14]
    else:
        train_steps, steps = meta[8:10]

    def network(x, bases):
        count = train_steps if w.training else steps
        if "adamw/meta" in recording:
            return segmentation_reference.light_ham(w, x, bases, count, groups, enlarged)
        return segmentation_reference.hamnet_os8(w, x, bases, count)

    return w, network


def inputs(recording):
    return tf.constant(segmentation_golden.channels_last(recording["x"]), tf.float64)


@pytest.mark.parametrize(
    "name, key", [("light_ham", "eval/logits"), ("hamnet_os8_v2_nmf", "eval/feat/fc")]
)
def test_reference_network(name, key):
    recording = segmentation_golden.load(name)
    _, network = network_of(recording)
    logits = network(inputs(recording), recording["eval/bases"])
    expected = segmentation_golden.channels_last(recording[key])
    assert closeness(logits, expected) < 1e-6


def trained(recording, optimizer, bases, loss_of):
    """Takes steps on the recorded batch; the losses, and the variables after them."""
    w, network = network_of(recording)
    w.training = True
    names = list(w.variables)
    variables = [keras.Variable(w.variables[n], dtype="float64", name=n) for n in names]
    optimizer.build(variables)
    w.variables = {n: v.value for n, v in zip(names, variables, strict=True)}
    x, label = inputs(recording), recording["label"]

    @tf.function
    def gradients(bases):
        with tf.GradientTape() as tape:
            loss = loss_of(network(x, bases), label)
        return loss, tape.gradient(loss, [v.value for v in variables])

    values = []
    for of_step in bases:
        loss, of_variables = gradients(tf.constant(of_step, tf.float64))
        optimizer.apply(of_variables, variables)
        values.append(float(loss))
    return np.array(values), {n: v.numpy() for n, v in zip(names, variables, strict=True)}


def role(variable):
    """Of a published HamNet's variable: batch norms' scales are vectors called weight."""
    if variable.name.endswith("bias"):
        return optimizers.BIAS
    return optimizers.WEIGHT if len(variable.shape) == 4 else optimizers.SCALE


def check_after(recording, prefix, variables):
    checked = [key for key in recording if key.startswith(prefix)]
    assert checked
    for key in checked:
        assert closeness(variables[key[len(prefix) :]], recording[key]) < 2e-6, key


def test_published_steps_of_sgd():
    recording = segmentation_golden.load("hamnet_os8_v2_nmf")
    initial, momentum, decay, power, every, steps = recording["sgd/meta"].tolist()
    schedule = schedules.Poly(initial=initial, steps=round(steps), power=power, every=round(every))
    optimizer = optimizers.SGD(
        lambda: schedule(optimizer.iterations.value),
        momentum=momentum,
        groups=optimizers.HamNetGroups(weight_decay=decay, role=role),
    )
    loss = losses.SegmentationLoss(align_corners=True)
    values, variables = trained(
        recording,
        optimizer,
        recording["sgd/bases"],
        lambda logits, label: tf.reduce_mean(loss(logits, label)["loss/decode"]),
    )
    np.testing.assert_allclose(values, recording["sgd/loss"], rtol=1e-6)
    check_after(recording, "sgd/after/", variables)


def test_published_steps_of_adamw():
    recording = segmentation_golden.load("light_ham")
    rate, beta_1, beta_2, epsilon, decay, steps, warm_up, ratio = recording["adamw/meta"].tolist()
    schedule = schedules.WarmUp(
        schedule=schedules.Poly(initial=rate, steps=round(steps), power=1.0),
        steps=round(warm_up),
        ratio=ratio,
    )
    optimizer = optimizers.AdamW(
        lambda: schedule(optimizer.iterations.value),
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        groups=optimizers.MMSegmentationGroups(weight_decay=decay, name=lambda v: v.name),
    )
    loss = losses.SegmentationLoss(align_corners=False)
    values, variables = trained(
        recording,
        optimizer,
        recording["adamw/bases"],
        lambda logits, label: tf.reduce_mean(loss(logits, label)["loss/decode"]),
    )
    np.testing.assert_allclose(values, recording["adamw/loss"], rtol=1e-6)
    check_after(recording, "adamw/after/", variables)


@pytest.mark.parametrize("name", ["light_ham", "hamnet_os8_v2_nmf"])
def test_published_losses(name):
    recording = segmentation_golden.load(name)
    w, network = network_of(recording)
    w.training = True
    logits = network(inputs(recording), recording["train/bases"])
    loss = losses.SegmentationLoss(align_corners=name != "light_ham")
    values = loss(logits, recording["label"])["loss/decode"]
    if name == "light_ham":
        np.testing.assert_allclose(np.mean(values), recording["train/decode.loss_ce"], rtol=1e-6)
        enlarged_logits = enlarged(logits, recording["label"].shape[1:])
        accuracy = 100 * losses.pixel_accuracy(enlarged_logits, recording["label"])
        np.testing.assert_allclose(accuracy, recording["train/decode.acc_seg"][0], rtol=1e-5)
    else:
        np.testing.assert_allclose(values, recording["train/loss_per_image"], rtol=1e-6)


def in_order(network, all_bases):
    """A network that takes the next bases at each call."""
    bases = iter(all_bases)
    return lambda x: tf.cast(network(tf.cast(x, tf.float64), next(bases)), tf.float32)


def test_published_multi_scale_test_of_hamnet():
    recording = segmentation_golden.load("msflip")
    _, network = network_of(segmentation_golden.load("hamnet_os8_v2_nmf"))
    outputs = []

    def recorded(x):
        outputs.append(logits := in_order_network(x))
        return logits

    in_order_network = in_order(network, recording["bases"])
    total = testing.hamnet_logits(
        recorded,
        recording["image"],
        scales=recording["scales"].tolist(),
        flip=True,
        stride=int(recording["meta"][2]),
    )
    first = enlarged_to(outputs[0], recording["first_output"].shape[2:])
    assert closeness(first, segmentation_golden.channels_last(recording["first_output"])) < 1e-5
    expected = segmentation_golden.channels_last(recording["sum_logits"])[0]
    assert closeness(total, expected) < 1e-5
    np.testing.assert_array_equal(total.argmax(axis=-1), recording["png"])


def enlarged_to(logits, size):
    return resizing.bilinear(logits, size, align_corners=True)


def test_published_multi_scale_test_of_light_ham():
    recording = segmentation_golden.load("light_ham_aug")
    _, network = network_of(segmentation_golden.load("light_ham"))
    found = boxes(recording)
    network = in_order(network, [recording[f"bases{i}"] for i in range(2 * len(found))])
    passes = [
        testing.mmsegmentation_probabilities(
            network, recording["image_rgb"], base_size=box, flip=True, divisor=DIVISOR
        )
        for box in found
    ]
    probabilities = np.mean(passes, axis=0)
    expected = segmentation_golden.channels_last(recording["prob"])[0]
    assert closeness(probabilities, expected) < 1e-5
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), recording["pred"])
