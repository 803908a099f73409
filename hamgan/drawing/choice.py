"""Which classes, seeds and moments: what a person writes, as the code takes it."""

import difflib
import re

from hamgan import sampling

ALL = "all"


def classes(texts, names):
    """The labels of classes as a person writes them.

    A class is written by its name, or as `#3` by its number; `all` are all of them. What is a name
    is never taken for a number: of classes that are called 1, 2 and 10, `2` is the one of that
    name. Where no name is a number, `3` is `#3`.

    Args:
      texts: list of strings.
      names: the names of all classes, by label.

    Returns:
      List of labels, in the order asked for, each once.

    Raises:
      ValueError: nothing has this name, several classes have it, or the number is no class's.
    """
    found = []
    for text in texts:
        found += _labels_of(text.strip(), names)
    if not found:
        raise ValueError("No class is asked for: name one, or write all.")
    return list(dict.fromkeys(found))


def _labels_of(text, names):
    labels = [label for label, name in enumerate(names) if name.strip() == text]
    if len(labels) > 1:
        numbers = ", ".join(f"#{label}" for label in labels)
        raise ValueError(f"{len(labels)} classes are named {text!r}: write one of {numbers}.")
    if labels:
        return labels
    if text == ALL:
        return list(range(len(names)))
    if re.fullmatch(r"#\d+", text):
        return [_numbered(int(text[1:]), len(names))]
    if re.fullmatch(r"-?\d+", text):
        label = _numbered(int(text), len(names), otherwise=f"No class is named {text!r}. ")
        if not any(name.strip().isdigit() for name in names):
            return [label]
        raise ValueError(
            f"No class is named {text!r}, and others have numbers for names: the class of this "
            f"number, {names[label]!r}, is written #{label}."
        )
    near = difflib.get_close_matches(text, names, 3)
    raise ValueError(
        f"No class is named {text!r}"
        + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ".")
        + f" There are {len(names)}: {_some(names)}. Numbers are written #0 to #{len(names) - 1}."
    )


def _numbered(label, count, otherwise=""):
    if not 0 <= label < count:
        raise ValueError(
            f"{otherwise}Label {label} is outside the classes of this generator, 0 to {count - 1}."
        )
    return label


def _some(names):
    shown = ", ".join(map(repr, names[:10]))
    return shown if len(names) <= 10 else f"{shown}, ..."


def seeds(texts):
    """The seeds of `['0-35', '100']`, in this order, each once.

    Raises:
      ValueError: a text is neither a number from 0 to 2^31 - 1 nor a range of them.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < 2**31:
            raise ValueError(
                "Seeds are numbers from 0 to 2147483647, or ranges like 0-35, the smaller one "
                f"first; got {text!r}."
            )
        if last - first >= 10**7:
            raise ValueError(f"At most ten million seeds are taken at a time, got {text!r}.")
        found += range(first, last + 1)
    if not found:
        raise ValueError("No seed is asked for: write numbers or ranges, like 0-35,100.")
    return list(dict.fromkeys(found))


def file_name(label, name, seed):
    """The name of an image's file without its ending: class and seed, sorted by class."""
    plain = re.sub(r"[^\w.]+", "-", name).strip("-.")[:40]
    return f"{label:04d}-{plain}-seed{seed:07d}" if plain else f"{label:04d}-seed{seed:07d}"


def batch_norm_named(name, sampler, *, progress=True):
    """Where a sampler's batch norm has its moments from, by one of `choices.BATCH_NORMS`.

    Standing statistics are of batches that any number of replicas can share.
    """
    if name == "standing_statistics":
        replicas = sampler.strategy.num_replicas_in_sync
        found = sampling.StandingStatistics(sampler, batch_size=-(-256 // replicas) * replicas)
        found.progress = progress
        return found
    others = {"moving_averages": sampling.MovingAverages, "batch": sampling.BatchStatistics}
    return others[name](sampler)
