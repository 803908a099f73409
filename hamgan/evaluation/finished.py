"""Evaluations that have been done: which record is of what."""

from typing import Any

import tensorflow as tf

from hamgan.run import history, records


def describes(record: history.Record, about: dict[str, Any]) -> bool:
    """Whether a kept record is of all of `about`, {field of `history.Key`: value}."""
    key = history.key_of(record)
    return key is not None and about.items() <= key._asdict().items()


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
