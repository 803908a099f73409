"""Evaluations that have been done: which record is of what."""

from typing import Any

import tensorflow as tf

from hamgan.run import history, records


def describes(record: history.Record, about: dict[str, Any]) -> bool:
    """Whether a kept record is of all of `about`."""
    return (
        record.get("checkpoint_digest") == about["checkpoint_digest"]
        and record.get("seed") == about["seed"]
        and record["protocol"]["fingerprint"] == about["protocol"]
        and record["generator"]["digest"] == about["generator"]
        and record["reference"]["content"] == about["content"]
        and record["measures"] == about.get("measures", record["measures"])
    )


def find(
    path: str, measures: list[str], about: dict[str, Any] | None = None
) -> history.Record | None:
    """The record that a file keeps of finished work.

    Args:
      path: of the file, which needn't be there.
      measures: what must have been measured.
      about: what it must be of, see `describes`; None: isn't asked.

    Returns:
      The last such record; None: there is none, or it lacks scores.
    """
    found = records.read(path) if tf.io.gfile.exists(path) else []
    if about is not None:
        found = [record for record in found if describes(record, about)]
    return found[-1] if found and set(measures) <= set(found[-1]["measures"]) else None
