"""What a TPU has cost and will cost."""

import calendar
import time

from hamgan.tpu import chips

# Before the first ACTIVE. A request that FAILED couldn't be met: QueuedResourceState.State of
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources
NEVER_THERE = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "FAILED")
_PAID_NOW = {
    "SUSPENDED": "nothing is paid for now",
    "SUSPENDING": "it may be paid for until it is gone",
    "DELETING": "it may be paid for until it is gone",
}


def cost(
    place,
    *,
    hours,
    state="ACTIVE",
    trained=True,
    steps_begun=0,
    steps_done=None,
    steps=None,
    table=None,
):
    """What a run has cost and will cost, as lines.

    Args:
      place: a `Place`.
      hours: an upper bound of those that the machine has been there.
      state: of the request.
      trained: whether the machine was there in all of these hours: only then they give a pace.
      steps_begun: of the training when the machine began.
      steps_done, steps: of the training; None: the end isn't known.
      table: see `chips.prices`.

    Raises:
      ValueError: hours are negative; steps are of no training.
    """
    if hours < 0:
        raise ValueError(f"hours must not be negative, got {hours}.")
    if (steps is None) != (steps_done is None):
        raise ValueError("The end needs both, steps_done and steps.")
    if steps is not None and not 0 <= steps_begun < steps_done <= steps:
        raise ValueError(
            f"steps_done must be above steps_begun ({steps_begun}), at most steps ({steps}), got "
            f"{steps_done}."
        )
    table = table or chips.prices()
    price = chips.dollars_per_hour(place.machine, tier=place.tier, table=table)
    lines = [f"prices of {table['date']} ({table['source']})"]
    if state in NEVER_THERE:
        return [*lines, f"so far: $0.00: {place.name} is {state}, its machine was never there"]
    if state != "ACTIVE":
        now = _PAID_NOW.get(state, "it isn't known whether anything is paid for")
        lines.append(f"{place.name} is {state}: {now}")
    if price is None:
        return [*lines, f"no price of {place.type} as {place.tier}: enter it in {chips.PRICES}"]
    lines.append(f"so far: at most {hours:.1f} h x ${price:.2f}/h = ${hours * price:,.2f}")
    if steps and not trained:
        lines.append(
            "to the end: no pace is known, since these hours may hold some without training"
        )
    elif steps:
        more = hours * (steps - steps_done) / (steps_done - steps_begun)
        lines.append(
            f"to the end, at this pace: {more:,.1f} h more, ${more * price:,.2f} more (estimate: "
            "hours x steps left / steps of these hours)"
        )
        if not steps_begun:
            lines.append(f"in all: ${(hours + more) * price:,.2f}")
    return lines


def hours_since(created, *, now):
    """Hours since a request or a machine was made, an upper bound of what is paid for.

    Args:
      created: gcloud's createTime.
      now: seconds since 1970.

    Raises:
      ValueError: it isn't a time.
    """
    try:
        moment = time.strptime(str(created)[:19], "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise ValueError(
            f"gcloud's createTime must be like 2026-01-31T12:00:00Z, got {created!r}."
        ) from None
    return max(0.0, now - calendar.timegm(moment)) / 3600
