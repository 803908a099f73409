"""The segmentation trainer, its loop, tests and pictures, on small scenes of real digits."""

import functools

import helpers
import made
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import segment_digits
from hamgan import inspection, loop
from hamgan.cli import segment_train
from hamgan.run import checkpoints, contents, records
from hamgan.run.folder import Folder
from hamgan.run.history import History
from hamgan.segmentation import (
    attention,
    augmentation,
    convnet,
    data,
    evaluation,
    experiment,
    hamburger,
    heads,
    metrics,
    optimizers,
    overlays,
    palette,
    schedules,
    segmenter,
    training,
)

CLASSES = len(segment_digits.CLASSES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("scenes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_digits, "NUM_SCENES", {"train": 12, "validation": 3})
        segment_digits.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(data_dir):
    return scenes(data_dir)


def scenes(data_dir, **kwargs):
    defaults = dict(
        # With scales and mirror images: the position of a crop must be resumed too.
        augmentation=augmentation.HamNetAugmentation(crop_size=33, scales=(0.5, 1.0)),
        num_classes=CLASSES,
        data_dir=data_dir,
    )
    return data.SegmentationDataset(name="segment_digits", **{**defaults, **kwargs})


rank_3 = functools.partial(hamburger.HamburgerV2, rank=3)


def network(burger=rank_3, auxiliary=False, **kwargs):
    head = functools.partial(heads.HamNetHead, channels=8, align_channels=8, hamburger=burger)
    fcn = functools.partial(heads.FCNHead, channels=32) if auxiliary else None
    return segmenter.Segmenter(
        num_classes=CLASSES,
        backbone=functools.partial(convnet.ConvNet, widths=(4, 4, 8, 8)),
        head=head,
        auxiliary=fcn,
        **kwargs,
    )


def trainer(strategy=None, network=network, **kwargs):
    defaults = dict(
        batch_size=4,
        learning_rate=schedules.Poly(initial=0.05, steps=8),
        optimizer=functools.partial(optimizers.SGD, groups=optimizers.HamNetGroups()),
        seed=3,
    )
    return training.SegmentationTrainer(
        strategy=strategy or made.one_device(), network=network, **{**defaults, **kwargs}
    )


def steps(of, dataset, count):
    return of.train_steps(of.batches(dataset), count)


def test_training_changes_every_trainable_weight_and_lowers_the_loss(dataset):
    of = trainer(network=functools.partial(network, auxiliary=True))
    before = made.values(of)
    batches = of.batches(dataset)
    first, last = of.train_steps(batches, 1), of.train_steps(batches, 6)
    after = made.values(of)
    for variable in of.network.trainable_variables:
        name = f"network/{variable.path}"
        # A bias in front of a batch norm has no gradient but rounding's.
        assert not np.array_equal(before[name], after[name]), name
    assert last["loss/decode"] < first["loss/decode"]
    parts = first["loss/decode"] + first["loss/auxiliary"]
    assert first["loss/network"] == pytest.approx(parts, rel=1e-5)
    assert first["rate/learning"] == pytest.approx(0.05)
    assert 0 <= last["accuracy/pixel"] <= 1 and last["first_bad_step"] == -1
    assert 0 < last["residual/network/space"] < 1
    assert int(of.step.numpy()) == 7


@pytest.mark.slow
def test_two_and_two_steps_through_a_checkpoint_equal_four(dataset, tmp_path):
    whole = trainer()
    steps(whole, dataset, 4)
    first = trainer()
    steps(first, dataset, 2)
    checkpoints.Checkpoints(str(tmp_path), first.variables()).save()
    second = trainer(seed=3)
    steps(second, dataset, 1)
    checkpoints.Checkpoints(str(tmp_path), second.variables()).restore_latest()
    steps(second, dataset, 2)
    expected, got = made.values(whole), made.values(second)
    assert expected.keys() == got.keys()
    assert any("velocity" in name for name in expected)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_two_replicas_equal_one_device_on_the_joined_batch(dataset):
    results = {}
    for name, strategy in (("one", made.one_device()), ("two", helpers.two_replicas())):
        of = trainer(strategy)
        results[name] = steps(of, dataset, 2), made.values(of)
    (metrics_1, values_1), (metrics_2, values_2) = results["one"], results["two"]
    for name, value in metrics_1.items():
        # The accuracy is a mean of the replicas' own, whose labelled pixels may differ in number.
        if name != "accuracy/pixel":
            np.testing.assert_allclose(metrics_2[name], value, rtol=2e-4, err_msg=name)
    for name, value in values_1.items():
        atol = 1e-4 * max(1, np.abs(value).max())
        np.testing.assert_allclose(values_2[name], value, rtol=2e-3, atol=atol, err_msg=name)


def test_mixed_precision_keeps_float32_where_it_matters(dataset):
    of = trainer(network=functools.partial(network, dtype="mixed_bfloat16"))
    assert {v.dtype for v in of.network.trainable_variables} == {"float32"}
    found = steps(of, dataset, 2)
    assert found["first_bad_step"] == -1
    full = steps(trainer(), dataset, 2)
    assert found["loss/network"] == pytest.approx(full["loss/network"], rel=0.05)
    assert found["loss/network"] != full["loss/network"]


def test_what_is_not_finite_is_named(dataset):
    of = trainer()
    kernel = of.network.head.align.conv.kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    found = steps(of, dataset, 2)
    assert found["first_bad"] == f"network/{kernel.path}" and found["first_bad_step"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(learning_rate=-1.0), "learning_rate must not be negative"),
        (dict(seed=-1), "seed must be in"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        trainer(**change)


def test_second_stage_starts_from_the_firsts_weights_with_a_new_optimizer(dataset, tmp_path):
    first = trainer()
    steps(first, dataset, 2)
    path = checkpoints.Checkpoints(str(tmp_path), first.variables()).save()
    second = trainer(seed=8)
    count, others = training.start_from(second.network, path)
    before, after = made.values(first), made.values(second)
    names = [name for name in before if name.startswith("network/")]
    assert count == len(names) and others == []
    for name in names:
        np.testing.assert_array_equal(after[name], before[name])
    assert int(second.step.numpy()) == 0
    velocities = [value for name, value in after.items() if "velocity" in name]
    assert velocities and not any(np.any(value) for value in velocities)


def test_backbone_alone_starts_a_network(tmp_path):
    first = trainer()
    held = {k: v for k, v in first.variables().items() if k.startswith("network/backbone/")}
    step = {"step": tf.Variable(0, dtype=tf.int64)}
    path = checkpoints.Checkpoints(str(tmp_path), {**step, **held}).save()
    second = trainer(seed=8)
    count, others = training.start_from(second.network, path)
    assert (count, others) == (len(held), ["head"])
    np.testing.assert_array_equal(made.values(second)[next(iter(held))], next(iter(held.values())))

    missing = dict(list(held.items())[1:])
    path = checkpoints.Checkpoints(str(tmp_path / "part"), {**step, **missing}).save()
    with pytest.raises(ValueError, match="not in the checkpoint"):
        training.start_from(second.network, path)
    path = checkpoints.Checkpoints(str(tmp_path / "none"), step).save()
    with pytest.raises(ValueError, match="of no segmentation run"):
        training.start_from(second.network, path)


def test_weights_that_do_not_fit_leave_no_configuration(dataset, tmp_path):
    first = trainer()
    path = checkpoints.Checkpoints(str(tmp_path / "first"), first.variables()).save()
    part = {k: v for k, v in first.variables().items() if not k.endswith("kernel")}
    torn = checkpoints.Checkpoints(str(tmp_path / "torn"), part).save()
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="not in the checkpoint"):
        segment_train.begin(first, torn, str(folder), None, writes=True)
    assert not folder.exists()
    segment_train.begin(first, path, str(folder), None, writes=True)
    assert {kept.name for kept in folder.iterdir()} == {"config.gin", "metrics.jsonl"}


# The loop


def parts(num_steps, **schedule):
    made_schedule = loop.Schedule(
        **{
            **dict(num_steps=num_steps, steps_per_loop=2, save_every=2, sample_every=4),
            **dict(evaluate_every=4, max_to_keep=None),
            **schedule,
        }
    )
    return experiment.SegmentationExperiment(
        schedule=made_schedule, test=evaluation.HamNetTest(stride=4)
    )


def train(of, dataset, model_dir, num_steps, **schedule):
    return experiment.train(
        of, dataset, parts(num_steps, **schedule), model_dir=str(model_dir), progress=False
    )


def test_run_ends_and_goes_on_to_the_same_bits(dataset, tmp_path):
    train(trainer(), dataset, tmp_path / "whole", 4)
    train(trainer(), dataset, tmp_path / "halves", 2)
    ended = train(trainer(), dataset, tmp_path / "halves", 4)
    expected = contents.load(str(tmp_path / "whole" / "checkpoints" / "ckpt-4"))
    got = contents.load(ended.checkpoint)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)

    folder = Folder(str(tmp_path / "halves"))
    history = History(folder.metrics)
    record = history.of_kind("evaluation")[-1]
    assert record["step"] == 4 and set(record["class_iou"]) == set(segment_digits.CLASSES)
    assert 0 <= record["mean_iou"] <= 1
    for path in (folder.confusion(4), folder.grid(4), folder.samples, folder.real_images):
        assert Image.open(path).size[0] > 100
    assert history.best_steps("mean_iou", 1, better="higher")


@pytest.mark.slow
def test_run_goes_back_when_something_is_not_finite(dataset, tmp_path):
    of = trainer()
    train(of, dataset, tmp_path, 2)
    count = iter(range(3))
    plain = of.train_steps

    def spoiled(batches, num_steps):
        if next(count, 3) == 0:
            kernel = of.network.head.align.conv.kernel
            kernel.assign(np.full(kernel.shape, np.inf))
        return plain(batches, num_steps)

    of.train_steps = spoiled
    train(of, dataset, tmp_path, 4)
    events = [r["event"] for r in records.read(Folder(str(tmp_path)).metrics, "event")]
    assert "rolled back" in events
    assert not contents.first_not_finite(of.variables())
    assert int(of.rollbacks.numpy()) == 1


def test_best_checkpoint_is_that_of_the_largest_miou(dataset, tmp_path):
    of = trainer()
    scores = {0: 0.1, 2: 0.4, 4: 0.3, 6: 0.2}

    class Known:
        def evaluate(self, *, checkpoint, step):
            return {"kind": "evaluation", "step": step, "mean_iou": scores[step]}

    loop.train(
        trainer=of,
        dataset=dataset,
        schedule=parts(6, evaluate_every=2, max_to_keep=1).schedule,
        model_dir=str(tmp_path),
        evaluator=Known(),
        grid=overlays.Overlays(
            lambda image, number: image[..., 0] // 64,
            dataset,
            batch=lambda: next(iter(dataset.train_batches(batch_size=2, seed=0))),
        ),
        headline=experiment.MEAN_IOU,
        signs=experiment.SignsOfDeath,
        status=experiment.status,
        progress=False,
    )
    assert checkpoints.available(str(tmp_path)) == ["ckpt-2", "ckpt-6"]
    path = checkpoints.find(str(tmp_path), "best", score="mean_iou", better="higher")
    assert path.endswith("ckpt-2")


def test_classes_must_be_the_data_sets(data_dir):
    found = experiment.SegmentationExperiment(
        dataset=functools.partial(scenes),
        network=functools.partial(network),
        trainer=training.SegmentationTrainer,
    )
    _, built = experiment.build(found, strategy=made.one_device(), data_dir=data_dir)
    assert built.num_classes == CLASSES
    wrong = segmenter.Segmenter(
        num_classes=3, backbone=convnet.ConvNet, head=functools.partial(heads.HamNetHead)
    )
    with pytest.raises(ValueError, match="num_classes must be 12, .* got 3"):
        experiment.check_classes(wrong, built)


# Tests and pictures


def test_record_is_of_the_table_of_all_images(dataset, tmp_path):
    of = trainer()
    path = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), of.variables()).save()
    test = evaluation.HamNetTest(stride=4)
    options = dict(network=of.network, dataset=dataset, test=test, progress=False)
    evaluator = evaluation.Evaluator(**options, model_dir=str(tmp_path))
    record = evaluator.evaluate(checkpoint=path, step=0)
    predict = evaluation.Predictor(of.network, test)
    table = np.zeros([CLASSES, CLASSES], np.int64)
    for number, example in enumerate(dataset.test_examples().as_numpy_iterator()):
        predicted = predict(example["image"], number)
        for true, found in zip(example["label"].ravel(), predicted.ravel(), strict=True):
            table[true, found] += 1
    np.testing.assert_array_equal(evaluator.table(), table)
    expected = metrics.scores(table)
    assert record["mean_iou"] == expected.mean_iou
    assert record["class_iou"]["ground"] == expected.iou[0]
    assert f"{100 * expected.iou[0]:.2f}" in evaluation.in_words(record)
    several = evaluation.Evaluator(**options, multi_scale=True)
    assert several.description["fingerprint"] != evaluator.description["fingerprint"]
    assert "multi-scale" in several.description["words"]
    assert several.table().sum() == table.sum()


def test_predictions_repeat_whatever_came_before(dataset):
    predict = evaluation.Predictor(trainer().network, evaluation.MMSegmentationTest(divisor=8))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [2, 40, 56, 3], dtype=np.uint8)
    first = predict(images[0], 5)
    predict(images[1], 6)
    np.testing.assert_array_equal(predict(images[0], 5), first)
    assert first.shape == (40, 56) and first.dtype == np.uint8


def test_overlays_show_truth_and_prediction(dataset):
    def predict(image, number):
        return np.full(image.shape[:2], 3, np.uint8)

    drawn = overlays.Overlays(predict, dataset, batch=None, count=2, side=72, opacity=1.0).images()
    examples = list(dataset.test_examples().as_numpy_iterator())
    assert drawn.shape == (6, 72, 72, 3)
    for row, number in enumerate((0, 2)):
        image, truth, predicted = drawn[3 * row : 3 * row + 3]
        np.testing.assert_array_equal(image, examples[number]["image"])
        np.testing.assert_array_equal(truth, palette.voc_palette()[examples[number]["label"]])
        assert (predicted == palette.voc_palette()[3]).all()


def test_framed_keeps_proportions():
    framed = overlays.framed(np.zeros([10, 20, 3], np.uint8), 40)
    assert (framed[:20] == 0).all() and (framed[20:] == 255).all()


# What the demo's head is compared with


def test_backbone_and_head_without_context_see_no_further_than_the_zero():
    keras_network = network(burger=None)
    image = tf.random.stateless_normal([1, 97, 97, 3], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(image)
        found = keras_network(image)
        logits = keras_network.enlarged(found.logits, (97, 97))
        one = tf.reduce_sum(logits[0, 48, 48])
    seen = np.argwhere(np.abs(tape.gradient(one, image)[0]).sum(axis=-1) > 0)
    # The ones and the zero of a scene are at least 30 pixels from each other.
    assert np.abs(seen - 48).max() < 30
    assert np.abs(seen - 48).max() > 20


def test_self_attention():
    layer = helpers.build(attention.SelfAttention(dim=2, value_dim=3), 2, 3, 5, 8)
    layer.gate.assign(0.7)
    x = helpers.array(2, 3, 5, 8)
    y, hams = layer(x, keys=None, return_hams=True)
    assert hams == {}
    weights = helpers.weights(layer)
    rows = np.float64(x).reshape(2, 15, 8)
    theta, phi, g, attn = (
        weights[f"{name}/kernel"][0, 0] for name in ("theta", "phi", "g", "attn")
    )
    scores = np.exp(np.einsum("bnc,bmc->bnm", rows @ theta, rows @ phi))
    scores /= scores.sum(axis=-1, keepdims=True)
    expected = rows + 0.7 * (scores @ (rows @ g) @ attn)
    helpers.assert_close(y, expected.reshape(2, 3, 5, 8), 1e-5)
    helpers.assert_config_round_trips(layer, 2, 3, 5, 8)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        attention.SelfAttention(dim=0)


def test_scenes_need_context():
    by_digit = segment_digits.digits_of("train")
    found = {segment_digits.ONE: 0, segment_digits.WITH_ZERO: 0}
    for number in range(60):
        rng = np.random.default_rng([7, number])
        image, label = segment_digits.make_scene(rng, by_digit)
        assert image.shape == (72, 72, 3) and label.max() < CLASSES
        ones = [c for c in found if (label == c).any()]
        assert len(ones) == 1  # every scene has one kind
        found[ones[0]] += 1
        zeros = np.argwhere(label == 1)
        assert bool(len(zeros)) == (ones[0] == segment_digits.WITH_ZERO)
        if len(zeros):
            pixels = np.argwhere(label == segment_digits.WITH_ZERO)
            nearest = np.abs(pixels[:, None] - zeros).max(axis=-1).min()
            assert nearest >= 30
    assert min(found.values()) > 15


def test_scenes_of_the_splits_share_no_digit():
    train_digits, test_digits = (segment_digits.digits_of(s) for s in ("train", "validation"))
    for of_train, of_test in zip(train_digits, test_digits, strict=True):
        assert len(of_train) > 4 * len(of_test) * 0.9
    assert sum(map(len, train_digits)) + sum(map(len, test_digits)) == 1797


@pytest.mark.parametrize("burger", [rank_3, hamburger.HamburgerV2Plus])
def test_inspection_sees_the_ham_of_a_forward_pass(burger):
    of = network(burger=functools.partial(burger, rank=3))
    images, keys = helpers.array(2, 33, 33, 3), tf.constant([[1, 2], [3, 4]])
    found = of(images, keys=keys)
    maps = found.features["squeeze"], found.features["hamburger"]
    layer = of.head.hamburger
    seen = inspection.look(layer, maps, found.hams, layer.initial(keys, size=81), num_steps=7)
    ham = seen.hams["space"]
    x, y = np.float64(ham.x), np.float64(ham.y)
    expected = np.linalg.norm(x - y, axis=(1, 2)) / np.linalg.norm(x, axis=(1, 2))
    # The layer's own pass took as many updates.
    np.testing.assert_allclose(ham.errors[-1], expected, rtol=1e-5)
    assert ham.errors.shape == (8, 2) and (ham.errors[-1] < ham.errors[0]).all()
    np.testing.assert_array_equal(seen.before, maps[0])
    assert seen.gate == (0.0 if burger is hamburger.HamburgerV2Plus else 1.0)
    assert np.linalg.matrix_rank(y[0], rtol=1e-5) == 3  # of float32 numbers
