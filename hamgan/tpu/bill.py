"""What a TPU has cost and will cost."""

import calendar
import time

from hamgan.tpu import chips


def cost(place, *, hours, steps_begun=0, steps_done=None, steps=None, table=None):
    """What a run has cost and will cost, as lines.

    Args:
      place: a `Place`.
      hours: that the machine has been there.
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
    if price is None:
        return [*lines, f"no price of {place.type} as {place.tier}: enter it in {chips.PRICES}"]
    spent = hours * price
    lines.append(f"so far: {hours:.1f} h x ${price:.2f}/h = ${spent:,.2f}")
    if steps:
        more = hours * (steps - steps_done) / (steps_done - steps_begun)
        lines.append(
            f"to the end, at this pace: {more:,.1f} h more, ${more * price:,.2f} more (estimate: "
            "hours x steps left / steps of these hours)"
        )
        if not steps_begun:
            lines.append(f"in all: ${(hours + more) * price:,.2f}")
    return lines


def hours_of(description, *, now):
    """Hours since a request was made, an upper bound of what is paid for.

    Args:
      description: see `Queued.found`.
      now: seconds since 1970.

    Raises:
      ValueError: it doesn't say.
    """
    created = str(description.get("createTime"))
    try:
        moment = time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        raise ValueError(f"gcloud's description has no createTime, but {created!r}.") from None
    return max(0.0, now - calendar.timegm(moment)) / 3600
