"""What a check finds, and a run over checks in which none stops the others.

It imports Python's own library alone, so that it can speak where TensorFlow can't be imported.
"""

import collections
import dataclasses
import json
import re
import traceback
from typing import Any

# What to do about images.
PREPARE = "prepare the data set again"
COPY = f"copy the files again from where they were prepared, or {PREPARE}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check found.

    Attributes:
      name: of the check.
      status: "ok", "warn" (a run works, but maybe not as meant), "fail" (a run stops or computes
        nonsense) or "skip".
      message: what was found.
      remedy: what to do; empty where nothing is to be done.
      value: what later checks need of this one; None: there is nothing.
    """

    name: str = ""
    status: str
    message: str
    remedy: str = ""
    value: Any = None

    def line(self):
        """The outcome as one line of text."""
        do = f". Do: {self.remedy}" if self.remedy else ""
        return (
            f"{self.status:<4}  {self.name}: {self.message.rstrip('.') if do else self.message}{do}"
        )


def ok(message, value=None):
    """The outcome of a check that found all well."""
    return Outcome(status="ok", message=message, value=value)


def warn(message, remedy, value=None):
    """The outcome of a check that found something doubtful."""
    return Outcome(status="warn", message=message, remedy=remedy, value=value)


def fail(message, remedy, value=None):
    """The outcome of a check that found what no run survives."""
    return Outcome(status="fail", message=message, remedy=remedy, value=value)


def skip(message):
    """The outcome of a check that had nothing to do."""
    return Outcome(status="skip", message=message)


class Checkup:
    """Runs checks one after another and keeps their outcomes.

    Args:
      publish: function (outcome), called as soon as a check is over; None: nothing is.
    """

    def __init__(self, publish=None):
        self.outcomes = []
        self._publish = publish

    def check(self, name, function, *needs, remedy="correct what the message names", **settings):
        """Runs one check.

        Args:
          name: of the check.
          function: returns an `Outcome`; called with the values of `needs`, and with `settings`.
          needs: outcomes of earlier checks. One without a value: this check is skipped.
          remedy: what to do when `function` raises a `ValueError`. Any other error is a failure
            too.

        Returns:
          The `Outcome`, with its name.
        """
        lacking = [need.name for need in needs if need.value is None]
        if lacking:
            outcome = skip(f"it needs what {' and '.join(lacking)} couldn't give")
        else:
            try:
                outcome = function(*(need.value for need in needs), **settings)
            except ValueError as error:
                outcome = fail(str(error), remedy)
            except (
                Exception
            ) as error:  # whatever happens in a check, the other lines are wanted too
                where = traceback.extract_tb(error.__traceback__)[-1]
                outcome = fail(
                    f"{type(error).__name__} in {where.filename}:{where.lineno}: {describe(error)}",
                    "if the message doesn't tell what to correct, report it with this line",
                )
        outcome = dataclasses.replace(
            outcome,
            name=name,
            message=" ".join(outcome.message.split()),
            remedy=" ".join(outcome.remedy.split()),
        )
        self.outcomes.append(outcome)
        if self._publish:
            self._publish(outcome)
        return outcome

    def failed(self):
        """Whether a check failed."""
        return any(outcome.status == "fail" for outcome in self.outcomes)

    def summary(self):
        """How many checks ended how, as a line of text."""
        counts = collections.Counter(outcome.status for outcome in self.outcomes)
        return f"{len(self.outcomes)} checks: " + ", ".join(
            f"{count} {status}" for status, count in counts.items()
        )

    def json(self):
        """All outcomes as a JSON object: "ok" and a list "checks" of name, status, message and
        remedy.
        """
        fields = ("name", "status", "message", "remedy")
        checks = [{field: getattr(outcome, field) for field in fields} for outcome in self.outcomes]
        return json.dumps({"ok": not self.failed(), "checks": checks}, indent=1)


def describe(error):
    """The first line of an error's message, without the operations' names that TensorFlow puts
    around it.
    """
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", getattr(error, "message", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
