"""The import of published weights as a run's folder: written, verified, reported."""

import os

import tensorflow as tf

from hamgan import arrays as named_arrays
from hamgan.run import checkpoints, contents, records
from hamgan.run.folder import Folder
from hamgan.segmentation import (
    evaluation,
    experiment,
    heads,
    published,
    recordings,
    segmenter,
)


def configuration(part):
    """The gin file of an experiment with a network or, of a backbone alone, with the backbone in a
    network: what `segment.py evaluate` and `predict` begin with.

    Args:
      part: `published.Part`.
    """
    if part.target is not segmenter.Segmenter:
        part = published.Part(segmenter.Segmenter, dict(backbone=part))
    imports, bindings = set(), {}
    _write(part, imports, bindings)
    _write_experiment(part, imports, bindings)
    return "\n".join(
        [
            "from __gin__ import dynamic_registration",
            *sorted(imports),
            *(f"{name} = {value}" for name, value in bindings.items()),
            "",
        ]
    )


def _write_experiment(part, imports, bindings):
    """The network as an experiment's, with the test that its family is published with."""
    root = _gin_name(experiment.SegmentationExperiment, imports)
    bindings[f"{root}.network"] = f"@{_gin_name(part.target, imports)}"
    if part.settings.get("align_corners", True):
        test = _gin_name(evaluation.HamNetTest, imports)
        backbone = part.settings["backbone"].settings
        bindings[f"{test}.stride"] = repr(backbone.get("output_stride", 8))
    else:
        test = _gin_name(evaluation.MMSegmentationTest, imports)
        is_light = part.settings["head"].target is heads.LightHamHead
        bindings[f"{test}.divisor"] = "32" if is_light else "None"
    bindings[f"{root}.test"] = f"@{test}()"


def _write(part, imports, bindings):
    for name, value in part.settings.items():
        key = f"{_gin_name(part.target, imports)}.{name}"
        if isinstance(value, published.Part):
            text = f"@{_gin_name(value.target, imports)}"
            _write(value, imports, bindings)
        elif callable(value):
            text = f"@{_gin_name(value, imports)}"
        else:
            text = repr(value)
        if bindings.setdefault(key, text) != text:
            raise ValueError(f"{key} must be one value, got {bindings[key]} and {text}.")


def _gin_name(target, imports):
    package, _, module = target.__module__.rpartition(".")
    imports.add(f"from {package} import {module}")
    return f"{module}.{target.__name__}"


def build(network, weights, dtype="float32"):
    """A new network, and {name in checkpoints: tf.Variable} of it, of an ImageNet backbone of this
    alone.
    """
    built = network(dtype=dtype)
    prefix = "network/"
    if published.describe(weights).family == published.IMAGENET:
        prefix = "network/backbone/"
    variables = published.named_variables(built)
    return built, {
        name: variable
        for name, variable in ((f"network/{name}", value) for name, value in variables.items())
        if name.startswith(prefix)
    }


def write(variables, *, model_dir, settle):
    """Writes configuration and checkpoint; returns the checkpoint's path and the files that are
    new.
    """
    before = _files(model_dir)
    settle(model_dir)
    step = tf.Variable(0, dtype=tf.int64)
    folder = Folder(model_dir).checkpoints
    path = checkpoints.Checkpoints(folder, {"step": step, **variables}).save()
    return path, _files(model_dir) - before


def _files(folder):
    if not tf.io.gfile.exists(folder):
        return set()
    return {os.path.join(at, name) for at, _, names in tf.io.gfile.walk(folder) for name in names}


def verify(network, path, weights, arrays, *, recording, tolerance, gradient_tolerance):
    """Replays a recording through the network of a checkpoint.

    Raises:
      ValueError: an error is above its tolerance; all are listed.
    """

    def limit(name):
        return gradient_tolerance if name.endswith("_gradient") else tolerance

    for dtype in ("float32", "float64"):
        built, variables = build(network, weights, dtype)
        held = contents.load(path)
        for name, variable in variables.items():
            variable.assign(tf.cast(held[name], variable.dtype))
        errors = recordings.replay(built, arrays)
        # An error that isn't a number isn't below anything.
        bad = [name for name, error in errors.items() if not error <= limit(name)]
        print(f"Replayed {recording} in {dtype}; largest difference over the largest value:")
        for name, error in errors.items():
            verdict = "ABOVE" if name in bad else "within"
            print(f"  {name:<14} {error:.2e}  {verdict} {limit(name):g}", flush=True)
        if not bad:
            return
    raise ValueError(
        f"The network doesn't reproduce {recording}: "
        + ", ".join(f"{name} {errors[name]:.2e} (tolerance {limit(name):g})" for name in bad)
        + ". Nothing was left of the import. Are --ham, --inverse_temperature and "
        "--beta those of the recording?"
    )


def report(weights, assignments, part, variables, *, model_dir):
    """Prints where each array went and what the weights are of."""
    for assignment in assignments:
        print(assignment)
    used = sum(assignment.ours is not None for assignment in assignments)
    print(
        f"{len(assignments)} arrays of {weights.path} accounted for, {used} of them used; "
        f"{len(variables)} variables of {model_dir} set"
    )
    described = published.describe(weights)
    text = f"{described.family}, {described.backbone}"
    if described.version:
        text += f", head {described.version}, {described.classes} classes"
    print(text)
    print(configuration(part), end="")


def run(
    path,
    *,
    options,
    model_dir,
    load_network,
    settle,
    create_strategy,
    recording=None,
    tolerance=1e-4,
    gradient_tolerance=1e-4,
):
    """Imports weights, and verifies the import where a recording is given.

    Args:
      path: of the weights.
      options: the `published.Options`.
      model_dir: the run's folder, which is made.
      load_network: function (text of a gin file) -> constructor of the network.
      settle: function (model_dir) that keeps the configuration there.
      create_strategy: function () -> strategy, called when the weights have been read.
      recording: path of a recorded pass, or None.
      tolerance, gradient_tolerance: largest errors of a recording's arrays.

    Raises:
      ValueError: model_dir has checkpoints; the weights can't be read; the recording isn't
        reproduced: nothing is left then.
    """
    if there := checkpoints.available(model_dir):
        raise ValueError(
            f"{model_dir} has checkpoints already ({', '.join(there)}). Choose another --model_dir."
        )
    weights = published.load_weights(path)
    options, arrays = _told_by(weights, options, recording)
    part = published.network_part(weights, options)
    network = load_network(configuration(part))
    with create_strategy().scope():
        built, variables = build(network, weights)
    inner = {name.removeprefix("network/"): value for name, value in variables.items()}
    assignments = published.plan(weights, inner)
    published.assign(weights, assignments, inner)
    report(weights, assignments, part, variables, model_dir=model_dir)

    path, files = write(variables, model_dir=model_dir, settle=settle)
    if arrays is not None:
        limits = dict(tolerance=tolerance, gradient_tolerance=gradient_tolerance)
        try:
            verify(network, path, weights, arrays, recording=recording, **limits)
        except ValueError:
            for file in files:
                tf.io.gfile.remove(file)
            raise
    record = {"kind": "event", "step": 0, "event": "imported", "weights": weights.path}
    records.append(Folder(model_dir).metrics, record)
    print(f"Checkpoint: {path}")


def _told_by(weights, options, recording):
    """(options, arrays of the recording or None): what the recording tells is filled in."""
    described = published.describe(weights)
    if recording:
        if described.family == published.IMAGENET:
            raise ValueError("--verify replays whole networks, got weights of a backbone alone.")
        arrays = named_arrays.load(recording)
        options, tried = recordings.fit(weights, arrays, options)
        for text, error in tried.items():
            print(f"tried {text}: error {error:.1e}")
        return options, arrays
    if not described.is_nmf and None in (options.ham, options.inverse_temperature):
        print(
            "ASSUMED: CD with t = 100 where --ham and --inverse_temperature don't say otherwise; "
            "the weights don't tell. --verify finds out."
        )
    return options, None
