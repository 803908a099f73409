"""What evaluations say together: first, last and best, means of repeats, points of a curve."""

import collections
import statistics as stats
from collections.abc import Iterable, Sequence
from typing import Any

from hamgan.evaluation import charts, markup
from hamgan.evaluation.scores import headline_of
from hamgan.run.history import Record, is_number, means_by_step, measured_under


def differing(protocols: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """The names of the parts that tell protocols apart, in order: their names alone if those do."""
    different = set(protocols)
    shared = set.intersection(*map(set, protocols))
    if len(different) > 1 and len({dict(p).get("protocol name") for p in different}) == len(
        different
    ):
        return ["protocol name"]
    return list(dict.fromkeys(pair[0] for p in protocols for pair in p if pair not in shared))


def last_and_best(
    evaluations: list[Record],
) -> tuple[Record | None, Record, tuple[float, list[Record]] | None]:
    """The evaluations for the headline: first step, last step and best FID
    (mIoU), under one protocol.

    It is the protocol that was used last. The best is a step's mean over its repeats, with their
    records. First and best are None where no FID is finite.
    """
    protocol = measured_under(evaluations[-1])
    comparable = [record for record in evaluations if measured_under(record) == protocol]
    last = max(reversed(comparable), key=lambda record: record["step"])
    headline = headline_of(last)
    with_score = [record for record in comparable if is_number(record.get(headline.name))]
    means = means_by_step(with_score, headline.name)
    best = headline.best(means.values(), key=lambda of: of[0], default=None)
    first = min(with_score, key=lambda record: record["step"], default=None)
    return first, last, best


def interval(record: Record, key: str) -> tuple[float, float] | None:
    """What a number is uncertain by, as (low, high): its interval, else its standard error; None
    without either.
    """
    interval = record.get(f"{key}_interval")
    if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
        return tuple(interval)
    error = record.get(f"{key}_stderr")
    if is_number(record.get(key)) and is_number(error):
        return record[key] - error, record[key] + error
    return None


def statistics(aggregate: Record) -> dict[str, dict[str, Any]]:
    """{metric: its mean, std, min and values} of a record over repeats."""
    scores = aggregate.get("scores")
    every = scores.items() if isinstance(scores, dict) else ()
    return {key: of for key, of in every if isinstance(of, dict) and is_number(of.get("mean"))}


def aggregate_of(record: Record, aggregates: list[Record]) -> Record | None:
    """The last record over repeats of an evaluation's step and protocol; None where there is
    none.
    """
    pairs = set(measured_under(record))
    same = [
        a for a in aggregates if a["step"] == record["step"] and set(measured_under(a)) <= pairs
    ]
    return same[-1] if same else None


def of_own_features(record: Record) -> str | None:
    """What to know of an evaluation by a network that was trained on the images themselves, as a
    sentence; None: it is by another one, or doesn't say.
    """
    features = record.get("features")
    if not isinstance(features, dict) or not features.get("task"):
        return None
    return (
        f"Scored by features of a network trained on {features.get('trained_on', 'unknown')} "
        f"itself (digest {features.get('digest', 'unknown')}): comparable with no FID by "
        "Inception, nor by another network."
    )


def in_words(record: Record) -> str:
    """The protocol of an evaluation as sentences: its own words where the record has them, else
    from its fields.
    """
    protocol = record.get("protocol")
    if isinstance(protocol, dict) and protocol.get("words"):
        words = protocol["words"]
        return words if isinstance(words, str) else " ".join(map(str, words))
    reference, features = (
        value if isinstance(value, dict) else {}
        for value in (record.get("reference"), record.get("features"))
    )
    parts = []
    if "num_samples" in record:
        sample = [markup.number(record["num_samples"]), "generated images"]
        details = [f"labels {record['labels']}"] if "labels" in record else []
        details += [f"{record['weights']} weights"] if "weights" in record else []
        details += [f"batch norm: {record['batch_norm']}"] if "batch_norm" in record else []
        details += [f"seed {record['seed']}"] if "seed" in record else []
        parts.append(" ".join(sample) + (f" ({', '.join(details)})" if details else ""))
    if {"dataset", "split", "count"} <= set(reference):
        parts.append(
            f"compared with {markup.number(reference['count'])} real ones: {reference['dataset']}, "
            "split "
            f"{reference['split']}"
        )
    if "quantize" in record:
        parts.append("all rounded to 8 bits" if record["quantize"] else "not rounded to 8 bits")
    if "handle" in features:
        size = f", resized to {features['size']} pixels as TF1 does" if "size" in features else ""
        parts.append(
            f"features of {features['handle']} (digest {features.get('digest', 'unknown')}){size}"
        )
    return "; ".join(parts) + "." if parts else ""


def points(source: Iterable[Record], key: str) -> list[charts.Point]:
    """A number over steps: the mean of a step's records, and their range, or the one record's
    interval.
    """
    by_step = collections.defaultdict(list)
    for record in source:
        if key in record:
            by_step[record["step"]].append(record)
    points: list[charts.Point] = []
    for step, group in sorted(by_step.items()):
        finite = [record for record in group if is_number(record[key])]
        if not finite:
            points.append((step, None, None, None))
            continue
        values = [record[key] for record in finite]
        low, high = min(values), max(values)
        if len(finite) == 1:
            low, high = interval(finite[0], key) or (low, high)
        points.append((step, stats.fmean(values), low, high))
    return points


def spread(every: Iterable[list[charts.Point]]) -> list[charts.Point]:
    """Many curves as one: at each step their mean, the smallest and the largest."""
    by_step = collections.defaultdict(list)
    for points in every:
        for step, value, _, _ in points:
            if value is not None:
                by_step[step].append(value)
    return [
        (step, stats.fmean(values), min(values), max(values))
        for step, values in sorted(by_step.items())
    ]
