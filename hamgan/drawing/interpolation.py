"""Images on the way from one to the next: between seeds, and between classes."""

import numpy as np
import tensorflow as tf

WAYS = ("seeds", "classes")


def check_ends(way, count):
    """ValueError unless there are seeds, or classes, to go between."""
    if count < 2:
        raise ValueError(f"Two {way} at least are needed to go from one to the next, got {count}.")


def between(sampler, *, way, classes, seeds, steps):
    """Images on paths, one path for each class (`way` 'seeds') or each seed ('classes').

    Noise goes along the great circle (Shoemake 1985), so that it stays as long as noise is;
    conditional batch norm and initial bases go along straight lines. Each path passes through the
    images of the seeds and classes themselves.

    Args:
      sampler: a `hamgan.sampling.Sampler`.
      way: 'seeds' or 'classes'.
      classes: labels.
      seeds: numbers of samples.
      steps: images from one to before the next, at least 1.

    Returns:
      Images [paths, (n - 1) * steps + 1, S, S, 3] float32, n the number of seeds or of classes.

    Raises:
      ValueError: fewer than two seeds or classes to go between, or fewer than one step.
    """
    ends = {"seeds": seeds, "classes": classes}[way]
    check_ends(way, len(ends))
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    place = np.arange((len(ends) - 1) * steps + 1) / steps
    start = np.minimum(place.astype(int), len(ends) - 2)
    share = (place - start).astype(np.float32)
    rows = classes if way == "seeds" else seeds
    inputs = [
        _path_of_seeds(sampler, row, np.array(seeds), start, share)
        if way == "seeds"
        else _path_of_classes(sampler, row, np.array(classes), start, share)
        for row in rows
    ]
    z, shares, keys, others, blend = (np.concatenate(part) for part in zip(*inputs, strict=True))
    images = np.concatenate(list(sampler.of_inputs(z, shares, keys, blend=(others, blend))))
    return images.reshape(len(rows), len(place), *images.shape[1:])


def _path_of_seeds(sampler, label, seeds, start, share):
    z, _, keys = (part.numpy() for part in sampler.inputs(tf.constant(seeds, tf.int32)))
    shares = _one_hot(sampler, np.full(len(start), label))
    return (
        slerp(z[start], z[start + 1], share),
        shares,
        keys[start],
        keys[start + 1],
        share,
    )


def _path_of_classes(sampler, seed, classes, start, share):
    z, _, keys = (part.numpy() for part in sampler.inputs(tf.constant([seed], tf.int32)))
    one, other = (_one_hot(sampler, classes[at]) for at in (start, start + 1))
    shares = (1 - share[:, None]) * one + share[:, None] * other
    count = len(start)
    keys = np.repeat(keys, count, axis=0)
    return np.repeat(z, count, axis=0), shares, keys, keys, np.zeros(count, np.float32)


def _one_hot(sampler, labels):
    """Labels [N] as shares [N, num_classes]; of one class as labels, which have no shares."""
    count = sampler.generator.num_classes
    if count == 1:
        return np.zeros([len(labels), 1], np.float32)
    return np.eye(count, dtype=np.float32)[labels]


def slerp(one, other, share):
    """Points on great circles: vectors one, other [N, D], share [N] from 0 to 1 -> [N, D].

    Lengths go along a straight line. Vectors that point the same way, or opposite ones, have no
    great circle of their own: there it is the straight line.
    """
    share = np.asarray(share, np.float32)[:, None]
    lengths = [np.linalg.norm(v, axis=1, keepdims=True) for v in (one, other)]
    units = [
        v / np.where(length == 0, 1, length)
        for v, length in zip((one, other), lengths, strict=True)
    ]
    angle = np.arccos(np.clip((units[0] * units[1]).sum(1, keepdims=True), -1, 1))
    sine = np.sin(angle)
    flat = np.abs(sine) < 1e-4
    sine = np.where(flat, 1, sine)
    weights = [
        np.where(flat, straight, np.sin(part * angle) / sine)
        for straight, part in ((1 - share, 1 - share), (share, share))
    ]
    length = (1 - share) * lengths[0] + share * lengths[1]
    curved = length * (weights[0] * units[0] + weights[1] * units[1])
    # At the ends the vectors themselves, without rounding.
    curved = np.where(flat, (1 - share) * one + share * other, curved)
    curved = np.where(share == 0, one, np.where(share == 1, other, curved))
    return curved.astype(np.float32)
