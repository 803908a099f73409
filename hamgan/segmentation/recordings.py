"""Recorded forward and backward passes of published segmentation networks: what they tell of a
network that its weights don't, and how far a network is from them.

A recording is {name: array}, channels first:
    meta    HamNet: [B, 3, H, W, stride, C, D, R, K, K in evaluation, classes, depth];
            MMSegmentation: [B, H, W, four widths, ham channels, channels, R, groups of group norm,
            classes, K, K in evaluation]
    x       [B, 3, H, W], images
    eval/bases  [B*S, D, R], initial bases as used; of a dual ham `bases_1` and `bases_2`
    eval/pred, dy   HamNet: [B, classes, H, W], enlarged logits and the gradient that comes in there
    eval/logits, dlogits    MMSegmentation: the same at the head's resolution
    eval/dx     [B, 3, H, W], gradient of sum(logits * gradient) with respect to x
    eval/feat/<part>, eval/feat<i>, eval/aux_logits     where there are any: features
"""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from hamgan.published import largest_error
from hamgan.segmentation import published

_LENGTHS = {published.HAMNET: 12, published.MMSEGMENTATION: 14}
_TEMPERATURES = (1.0, 10.0, 100.0)


def channels_last(x):
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.moveaxis(x, 1, -1)


def is_of_hamnet(arrays):
    """Whether a recording is of HamNet; else it is of MMSegmentation's heads.

    Raises:
      ValueError: it is neither.
    """
    kinds = {
        published.HAMNET: ("eval/pred", "dy"),
        published.MMSEGMENTATION: ("eval/logits", "dlogits"),
    }
    found = [kind for kind, needed in kinds.items() if all(name in arrays for name in needed)]
    missing = [name for name in ("x", "meta", "eval/dx") if name not in arrays]
    if missing or not found or len(arrays["meta"]) != _LENGTHS[found[0]]:
        raise ValueError(
            "A recording must have x, meta, eval/dx, and eval/pred and dy (HamNet, meta of "
            f"{_LENGTHS[published.HAMNET]} numbers) or eval/logits and dlogits (MMSegmentation, "
            f"{_LENGTHS[published.MMSEGMENTATION]} numbers), got "
            f"{published.excerpt(name for name in arrays if not name.startswith('w/'))}."
        )
    return found[0] == published.HAMNET


def options_of(weights, arrays, options):
    """What a recording tells of the network of weights, as `published.Options`: all that fit.

    Several where nothing tells CD from VQ and their temperature. What `options` say of these is
    kept.

    Raises:
      ValueError: the recording is of another kind than the weights, or has no bases.
    """
    described = published.describe(weights)
    family = published.HAMNET if is_of_hamnet(arrays) else published.MMSEGMENTATION
    if described.family != family:
        raise ValueError(f"The recording is of {family}, the weights are of {described.family}.")
    if not _bases(arrays, "eval"):
        raise ValueError("A recording must have eval/bases, or eval/bases_1 and eval/bases_2.")
    meta = [int(value) for value in arrays["meta"]]
    if family == published.MMSEGMENTATION:
        rank, groups, _, steps, eval_steps = meta[-5:]
        told = dict(rank=rank, groups=groups, steps=steps, eval_steps=eval_steps)
        told["output_stride"] = _output_stride(arrays)
        return [_completed(options, told)]
    told = dict(output_stride=meta[4], rank=meta[7], steps=meta[8], eval_steps=meta[9])
    options = _completed(options, told | _hams_of(weights, described, arrays))
    if described.is_nmf:
        return [options]
    hams = [options.ham] if options.ham else ["cd", "vq"]
    given = options.inverse_temperature
    return [
        dataclasses.replace(options, ham=ham, inverse_temperature=t)
        for ham, t in itertools.product(hams, [given] if given else _TEMPERATURES)
    ]


def _completed(options, told):
    for name, value in told.items():
        given = getattr(options, name)
        if given is not None and value is not None and given != value:
            raise ValueError(f"{name} must be {value}, as in the recording, got {given}.")
    return dataclasses.replace(
        options, **{name: value for name, value in told.items() if value is not None}
    )


def _output_stride(arrays):
    """Of a backbone whose last features are recorded, else None."""
    if "eval/feat4" not in arrays:
        return None
    height, found = arrays["x"].shape[2], arrays["eval/feat4"].shape[2]
    return next((stride for stride in (8, 16, 32) if -(-height // stride) == found), None)


def _hams_of(weights, described, arrays):
    bases = _bases(arrays, "eval")
    rows, dim, _ = bases[0].shape
    sections = rows // arrays["x"].shape[0]
    if len(bases) == 2:
        return dict(hams=("space", "channels"), sections=sections)
    lower = "hamburger.lower_bread" + (".0" if described.is_nmf else "")
    is_space = sections * dim == weights.shape(f"{lower}.weight")[0]
    return dict(hams=("space",) if is_space else ("channels",), sections=sections)


def _bases(arrays, mode):
    names = ("bases",) if f"{mode}/bases" in arrays else ("bases_1", "bases_2")
    return [arrays[f"{mode}/{name}"] for name in names if f"{mode}/{name}" in arrays]


def initial(arrays, hams, mode="eval", dtype=tf.float32):
    """What has a network's Hamburger start from recorded bases: function keys -> {ham: bases [B,
    S, D, R]}.

    Args:
      arrays: the recording.
      hams: of the Hamburger, in order.
      mode: 'eval' or 'train'.
      dtype: of the bases.
    """
    batch = len(arrays["x"])
    found = [each.reshape(batch, -1, *each.shape[1:]) for each in _bases(arrays, mode)]
    given = {ham: tf.constant(each, dtype) for ham, each in zip(hams, found, strict=True)}
    return lambda keys: given


def replay(network, arrays):
    """{name: error} of a network against a recording, out of training.

    Each error is the largest absolute difference over the largest absolute recorded value.

    Args:
      network: a `segmenter.Segmenter`; its compute dtype is that of the replay.
      arrays: the recording.

    Returns:
      'logits', 'image_gradient', and what else is recorded: 'auxiliary', features by their names.
    """
    of_hamnet = is_of_hamnet(arrays)
    dtype = tf.as_dtype(network.compute_dtype)
    x = tf.constant(channels_last(arrays["x"]), dtype)
    given = initial(arrays, network.head.hamburger.hams, dtype=dtype)
    expected, gradient = ("eval/pred", "dy") if of_hamnet else ("eval/logits", "dlogits")
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = network(x, initial=given)
        logits = network.enlarged(found.logits, x.shape[1:3]) if of_hamnet else found.logits
        total = tf.reduce_sum(logits * tf.constant(channels_last(arrays[gradient]), dtype))
    errors = {
        "logits": largest_error(logits, channels_last(arrays[expected])),
        "image_gradient": largest_error(tape.gradient(total, x), channels_last(arrays["eval/dx"])),
    }
    if "eval/aux_logits" in arrays and network.auxiliary is not None:
        features = [found.features[f"layer{index}"] for index in range(1, 5)]
        auxiliary = network.auxiliary(features)
        errors["auxiliary"] = largest_error(auxiliary, channels_last(arrays["eval/aux_logits"]))
    for name, value in {**found.features, "fc": found.logits}.items():
        for key in (f"eval/feat/{name}", f"eval/feat{name.removeprefix('layer')}"):
            if key in arrays:
                errors[name] = largest_error(value, channels_last(arrays[key]))
    return errors


def fit(weights, arrays, options):
    """The options with which the network of weights is nearest to a recording.

    Returns:
      (`published.Options`, {text: error of the logits} of what was tried).

    Raises:
      ValueError: as `options_of`, or the weights don't fit their network.
    """
    tried = options_of(weights, arrays, options)
    if len(tried) == 1:
        return tried[0], {}
    network = published.network_part(weights, tried[0]).constructor()()
    variables = published.named_variables(network)
    published.assign(weights, published.plan(weights, variables), variables)
    errors = {}
    for each in tried:
        part = published.decomposition_part(False, each.filled())
        network.head.hamburger.decomposition = part.constructor()
        errors[f"{each.ham}, t = {each.inverse_temperature:g}"] = replay(network, arrays)["logits"]
    best = min(range(len(tried)), key=lambda index: list(errors.values())[index])
    return tried[best], errors
