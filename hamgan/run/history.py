"""What a run's records mean together: what survives a rollback, what is the latest, what may be
compared, which is the best, and the aggregate of repeats.

Records are dictionaries as `hamgan.run.records` writes and reads them.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hamgan.run import records

Record = dict[str, Any]

# What two evaluations must share for their numbers to be compared.
MEASURED_UNDER = (
    "protocol",
    "num_samples",
    "reference",
    "features",
    "quantize",
    "labels",
    "weights",
    "batch_norm",
    "generator",
)


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def text(value: Any) -> str:
    """A value of a record for reading."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(part)}" for key, part in value.items())
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def surviving(all_records: Iterable[Record]) -> list[Record]:
    """The records without those of steps that the run went back behind, in the order of writing.

    A rollback takes away what was trained and evaluated after the step that it went back to, and so
    does an end between two checkpoints, which the event "abandoned" of the next start tells. Where
    an earlier version has told nothing, of steps that were trained twice the later records count.
    Events stay.
    """
    kept: list[Record] = []
    trained = -math.inf  # the step of the newest training record that is kept
    for record in all_records:
        to = _left_from(record)
        if to is not None:
            kept = [of for of in kept if of.get("kind") == "event" or _step(of, to) <= to]
            trained = min(trained, to)
        elif record.get("kind") == "train":
            step = _step(record, math.inf)
            if step <= trained:
                kept = [of for of in kept if of.get("kind") != "train" or _step(of, step) < step]
            trained = step
        kept.append(record)
    return kept


def _left_from(record: Record) -> float | None:
    """The last step that still counts after an event that left some; None: it left none."""
    if record.get("event") == "rolled back" and is_number(record.get("to")):
        return record["to"]
    if record.get("event") == "abandoned" and is_number(record.get("from")):
        return record["from"] - 1
    return None


def left_from(record: Record) -> int | None:
    """The last step that still counts after a record; None: the record takes none away."""
    left = _left_from(record)
    return None if left is None else int(left)


def _step(record: Record, otherwise: float) -> float:
    return record["step"] if is_number(record.get("step")) else otherwise


def of_kind(all_records: Iterable[Record], kind: str) -> list[Record]:
    """The records of a kind that have a step."""
    return [of for of in all_records if of.get("kind") == kind and is_number(of.get("step"))]


def measured_under(record: Record) -> tuple[tuple[str, str], ...]:
    """What an evaluation was measured under, as pairs (name, text); parts of a fingerprint singly.

    Two evaluations may be compared where it is the same.
    """
    pairs = []
    for field in MEASURED_UNDER:
        value = record.get(field)
        if isinstance(value, dict):
            # A path is where something lies, not what it is; words are for people.
            aside = {"words", "handle"} if value.get("digest") else {"words"}
            pairs += [
                (f"{field} {part}", text(value[part])) for part in sorted(value.keys() - aside)
            ]
        elif value is not None:
            pairs.append((field, text(value)))
    return tuple(pairs)


def latest(evaluations: Iterable[Record]) -> list[Record]:
    """One record, the later one, of each step and seed under one protocol; in order of writing."""
    found: dict[Any, Record] = {}
    for record in evaluations:
        key = (measured_under(record), record["step"], text(record.get("seed")))
        found.pop(key, None)
        found[key] = record
    return list(found.values())


class Key(NamedTuple):
    """What an evaluation is known by."""

    kind: str
    checkpoint_digest: str | None
    protocol: str
    generator: str | None
    content: str | None
    seed: Any  # of an aggregate all of them, a tuple
    measures: tuple[str, ...]


def key_of(record: Record) -> Key | None:
    """What an evaluation is known by; None for other records, and for those of versions without
    protocols.
    """
    fingerprint = _part(record, "protocol", "fingerprint")
    if record.get("kind") not in ("evaluation", "aggregate") or not fingerprint:
        return None
    is_one = record["kind"] == "evaluation"
    return Key(
        kind=record["kind"],
        checkpoint_digest=record.get("checkpoint_digest"),
        protocol=fingerprint,
        generator=_part(record, "generator", "digest"),
        content=_part(record, "reference", "content"),
        seed=record.get("seed") if is_one else tuple(record.get("seeds", ())),
        measures=tuple(record.get("measures", ())),
    )


def _part(record: Record, field: str, name: str) -> Any:
    value = record.get(field)
    return value.get(name) if isinstance(value, dict) else None


def keys_of(all_records: Iterable[Record]) -> set[Key]:
    """`key_of` of the evaluations that still count."""
    return {key for record in surviving(all_records) if (key := key_of(record)) is not None}


def aggregate(found: Sequence[Record]) -> Record:
    """One record over repeats of an evaluation.

    Every score of the repeats is there as its mean, under its own name, and under 'scores' with
    mean, std (ddof = 1), min and values. The headline is the mean; the best of n grows better with
    n.

    Args:
      found: the repeats' records, two or more; they differ by the seed.

    Raises:
      ValueError: they differ by more.
    """
    first = found[0]
    if len({key_of({**record, "seed": 0}) for record in found}) != 1:
        raise ValueError(
            "Only repeats of one evaluation can be put together: checkpoint and protocol must be "
            "the same."
        )
    same = {
        name: value
        for name, value in first.items()
        if all(record.get(name) == value for record in found)
    }
    spread = {}
    for name in first:
        values = [record[name] for record in found]
        if name not in ("time", "seconds") and all(isinstance(value, float) for value in values):
            mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
            spread[name] = {"mean": mean, "std": std, "min": min(values), "values": values}
    return {
        **same,
        # The same by its digest; one of the records may be of an earlier call that named it by
        # another path.
        "checkpoint": first["checkpoint"],
        "features": first["features"],
        "kind": "aggregate",
        "repeats": len(found),
        "seeds": [record["seed"] for record in found],
        **{name: part["mean"] for name, part in spread.items()},
        "scores": spread,
    }


class History:
    """The records of a run that still count.

    Args:
      path: the run's metrics.jsonl; it needn't be there yet.

    Attributes:
      all_records: of the file, those that count no more too.
    """

    def __init__(self, path: str):
        self.all_records = records.read(path) if tf.io.gfile.exists(path) else []
        self._records = surviving(self.all_records)

    def last_step(self) -> int:
        """The newest step that has a number; -1 without any."""
        kinds = ("train", "evaluation", "aggregate")
        return max((r["step"] for kind in kinds for r in self.of_kind(kind)), default=-1)

    def is_evaluated(
        self, *, step: int, digest: str | None, fingerprint: str | None = None
    ) -> bool:
        """Whether a checkpoint has an evaluation.

        Args:
          step: of the checkpoint; decides for records of versions that kept no digest.
          digest: of the checkpoint.
          fingerprint: of the protocol; None: any.
        """

        def is_of_it(record: Record) -> bool:
            known = record.get("checkpoint_digest")
            protocol = _part(record, "protocol", "fingerprint")
            same = known == digest if known and digest else record["step"] == step
            return same and (not (fingerprint and protocol) or protocol == fingerprint)

        return any(is_of_it(record) for record in self.of_kind("evaluation"))

    def of_kind(self, kind: str) -> list[Record]:
        """The records of a kind, in the order of writing."""
        return of_kind(self._records, kind)

    def _by_protocol(self, score: str) -> list[dict[int, float]]:
        """[{step: number}], one for each protocol, that of the newest record last."""
        protocols: dict[Any, list[Record]] = {}
        for record in self.of_kind("evaluation"):
            if is_number(record.get(score)):
                protocol = measured_under(record)
                protocols[protocol] = [*protocols.pop(protocol, ()), record]
        return [
            {step: mean for step, (mean, _) in means_by_step(of, score).items()}
            for of in protocols.values()
        ]

    def scores(self, score: str) -> dict[int, float]:
        """{step: number} of all that can be compared with the newest one: of the same protocol.
        Of a checkpoint with repeats it is their mean.
        """
        return next(reversed(self._by_protocol(score)), {})

    def best_steps(self, score: str, count: int, *, better: str = "lower") -> list[int]:
        """The `count` steps with the best of `scores`, the best first."""
        return _best(self.scores(score), count, better)

    def steps_to_keep(self, score: str, count: int, *, better: str = "lower") -> set[int]:
        """The `count` best steps of every protocol that the run was evaluated under."""
        found = self._by_protocol(score)
        return {step for of in found for step in _best(of, count, better)}


def means_by_step(
    evaluations: Iterable[Record], score: str
) -> dict[int, tuple[float, list[Record]]]:
    """What evaluations of one protocol say of each step.

    A step that was trained anew has other weights: the records of the newest ones count. Repeats
    differ by the seed, and of one seed the newest record counts: the best of n grows better with n,
    their mean doesn't.

    Args:
      evaluations: records in the order of writing.
      score: name of a number, which some of them may lack.

    Returns:
      {step: (mean over seeds, the records it is of)}.
    """
    found: dict[int, tuple[Any, dict[Any, Record]]] = {}
    for record in evaluations:
        if not is_number(record.get(score)):
            continue
        digest = record.get("checkpoint_digest")
        known, of = found.get(record["step"], (digest, {}))
        found[record["step"]] = (
            digest,
            {**(of if known == digest else {}), record.get("seed"): record},
        )
    return {
        step: (statistics.fmean(record[score] for record in of.values()), list(of.values()))
        for step, (_, of) in found.items()
    }


def _best(scores: dict[int, float], count: int, better: str) -> list[int]:
    return sorted(scores, key=lambda step: scores[step], reverse=better == "higher")[:count]
