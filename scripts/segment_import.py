"""Imports published weights of HamNet, Light-Ham or one of their ImageNet backbones as a run's
folder.

    python scripts/segment.py import --weights=final.pth --model_dir=runs/hamnet
    python scripts/segment.py import --weights=ham_base_160k_ade20k.pth --model_dir=runs/light_ham
    python scripts/segment.py import --weights=recording.npz --model_dir=runs/made \\
        --verify=recording.npz

A PyTorch checkpoint needs PyTorch (`pip install hamgan[torch]`); an .npz file with keys w/<name>
does not. Names and shapes tell backbone, widths, version and classes. What they don't tell is a
flag, or what is published. Of an ImageNet backbone the checkpoint holds network/backbone/... alone.

--verify replays a recorded pass through the network of the checkpoint that was written, and takes
it away again if logits, features or the image's gradient differ by more than the tolerances, in
float32 and in float64 (where no ReLU falls to the other side by rounding). What
the recording tells of the network needs no flag; where nothing tells CD from VQ or their
temperature, it is what reproduces the recording.
"""

import functools
import os
import tempfile

import cli
import gin
import tensorflow as tf
from absl import flags

from hamgan import checkpoints, distribution, records
from hamgan.segmentation import published, recordings, segmenter

FLAGS = flags.FLAGS
_OPTIONS = ("output_stride", "ham", "inverse_temperature", "beta", "rank", "sections", "hams")
_OPTIONS += ("steps", "eval_steps", "groups")


def options():
    """The `published.Options` of the flags."""
    given = {name: FLAGS[name].value for name in _OPTIONS}
    hams = given.pop("hams")
    return published.Options(**given, hams=tuple(hams) if hams else None)


def configuration(part):
    """The gin file of a network or, of a backbone alone, of the backbone in a network.

    Args:
      part: `published.Part`.
    """
    if part.target is not segmenter.Segmenter:
        part = published.Part(segmenter.Segmenter, dict(backbone=part))
    imports, bindings = set(), {}
    _write(part, imports, bindings)
    return "\n".join(
        [
            "from __gin__ import dynamic_registration",
            *sorted(imports),
            *(f"{name} = {value}" for name, value in bindings.items()),
            "",
        ]
    )


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


def load_network(text):
    """The constructor of the network of a gin file's text and of --gin_param.

    Raises:
      ValueError: it can't be read.
    """
    gin.clear_config()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "import.gin")
        with open(path, "w") as file:
            file.write(text)
        try:
            gin.parse_config_files_and_bindings([path], FLAGS.gin_param, finalize_config=True)
        except (ValueError, SyntaxError, ImportError, AttributeError, NameError) as error:
            raise ValueError(f"The configuration can't be read: {error}") from error
    return gin.get_configurable(segmenter.Segmenter)


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


def write(variables):
    """Writes configuration and checkpoint; returns the checkpoint's path and the files that are
    new.
    """
    before = _files(FLAGS.model_dir)
    cli.settle_configuration()
    step = tf.Variable(0, dtype=tf.int64)
    folder = os.path.join(FLAGS.model_dir, "checkpoints")
    path = checkpoints.Checkpoints(folder, {"step": step, **variables}).save()
    return path, _files(FLAGS.model_dir) - before


def _files(folder):
    if not tf.io.gfile.exists(folder):
        return set()
    return {os.path.join(at, name) for at, _, names in tf.io.gfile.walk(folder) for name in names}


def verify(network, path, weights, arrays):
    """Replays a recording through the network of a checkpoint.

    Raises:
      ValueError: an error is above its tolerance; all are listed.
    """
    for dtype in ("float32", "float64"):
        built, variables = build(network, weights, dtype)
        held = checkpoints.load(path)
        for name, variable in variables.items():
            variable.assign(tf.cast(held[name], variable.dtype))
        errors = recordings.replay(built, arrays)
        # An error that isn't a number isn't below anything.
        bad = [name for name, error in errors.items() if not error <= _limit(name)]
        print(f"Replayed {FLAGS.verify} in {dtype}; largest difference over the largest value:")
        for name, error in errors.items():
            verdict = "ABOVE" if name in bad else "within"
            print(f"  {name:<14} {error:.2e}  {verdict} {_limit(name):g}", flush=True)
        if not bad:
            return
    raise ValueError(
        f"The network doesn't reproduce {FLAGS.verify}: "
        + ", ".join(f"{name} {errors[name]:.2e} (tolerance {_limit(name):g})" for name in bad)
        + f". Nothing was left in {FLAGS.model_dir}. Are --ham, --inverse_temperature and "
        "--beta those of the recording?"
    )


def _limit(name):
    return FLAGS.gradient_tolerance if name.endswith("_gradient") else FLAGS.tolerance


def report(weights, assignments, part, variables):
    """Prints where each array went and what the weights are of."""
    for assignment in assignments:
        print(assignment)
    used = sum(assignment.ours is not None for assignment in assignments)
    print(
        f"{len(assignments)} arrays of {weights.path} accounted for, {used} of them used; "
        f"{len(variables)} variables of {FLAGS.model_dir} set"
    )
    described = published.describe(weights)
    text = f"{described.family}, {described.backbone}"
    if described.version:
        text += f", head {described.version}, {described.classes} classes"
    print(text)
    print(configuration(part), end="")


def main():
    there = checkpoints.available(FLAGS.model_dir)
    if there:
        raise ValueError(
            f"{FLAGS.model_dir} has checkpoints already ({', '.join(there)}). Choose another "
            "--model_dir."
        )
    weights = published.load_weights(FLAGS.weights)
    described = published.describe(weights)
    chosen, arrays = options(), None
    if FLAGS.verify:
        if described.family == published.IMAGENET:
            raise ValueError("--verify replays whole networks, got weights of a backbone alone.")
        arrays = published.load_arrays(FLAGS.verify)
        chosen, tried = recordings.fit(weights, arrays, chosen)
        for text, error in tried.items():
            print(f"tried {text}: error {error:.1e}")
    elif not described.is_nmf and None in (chosen.ham, chosen.inverse_temperature):
        print(
            "ASSUMED: CD with t = 100 where --ham and --inverse_temperature don't say otherwise; "
            "the weights don't tell. --verify finds out."
        )
    part = published.network_part(weights, chosen)
    network = load_network(configuration(part))
    with distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu).scope():
        built, variables = build(network, weights)
    inner = {name.removeprefix("network/"): value for name, value in variables.items()}
    assignments = published.plan(weights, inner)
    published.assign(weights, assignments, inner)
    report(weights, assignments, part, variables)

    path, files = write(variables)
    if arrays is not None:
        try:
            verify(network, path, weights, arrays)
        except ValueError:
            for file in files:
                tf.io.gfile.remove(file)
            raise
    record = {"kind": "event", "step": 0, "event": "imported", "weights": weights.path}
    records.append(os.path.join(FLAGS.model_dir, "metrics.jsonl"), record)
    print(f"Checkpoint: {path}")


def define_flags():
    """Defines the flags of an import, beside those of a run."""
    flags.DEFINE_string(
        "weights", None, "PyTorch checkpoint, or .npz file with keys w/<name>.", required=True
    )
    flags.DEFINE_string("verify", None, "An .npz file with a recorded pass of the network.")
    flags.DEFINE_float(
        "tolerance", 1e-4, "With --verify: largest error of logits and features.", lower_bound=0
    )
    flags.DEFINE_float(
        "gradient_tolerance", 1e-4, "With --verify: largest error of gradients.", lower_bound=0
    )
    whole = functools.partial(flags.DEFINE_integer, default=None, lower_bound=1)
    whole("output_stride", help="Of the backbone; default: 8, of Light-Ham 32.")
    flags.DEFINE_enum(
        "ham", None, ("nmf", "cd", "vq"), "Decomposition, where the names don't say that it is NMF."
    )
    flags.DEFINE_float("inverse_temperature", None, "t of CD and VQ; default: 100.", lower_bound=0)
    flags.DEFINE_float("beta", None, "Ridge of CD; default: 0.1.", lower_bound=0)
    whole("rank", help="R; default: 64, of V2+ 512, of a light head of 256 channels 16.")
    whole("sections", help="S of HamNet's Hamburger; default: 1.")
    flags.DEFINE_list("hams", None, "Of HamNet's Hamburger: space, channels or both.")
    flags.DEFINE_integer("steps", None, "K in training; default: 6.", lower_bound=0)
    flags.DEFINE_integer("eval_steps", None, "K outside of training; default: 7.", lower_bound=0)
    whole("groups", help="Of MMSegmentation's group norm; default: 32.")
