"""Evaluations as text for a terminal."""

from collections.abc import Iterable

from hamgan.evaluation import markup, summary
from hamgan.evaluation.scores import LEADING
from hamgan.run.history import Record, is_number


def table(all_records: Iterable[Record]) -> str:
    """The evaluations among records, and the means over repeats, as a table of text, by step.

    Args:
      all_records: dictionaries as `hamgan.run.records.read` gives them; other kinds are passed
        over.

    Returns:
      Lines of text without a line break at the end; an empty string where there is no evaluation.
    """

    def scores(record):
        for score in LEADING:
            key = score.name
            cell = markup.number(record[key]) if key in record else "–"
            if is_number(record.get(score.error)):
                cell += f" ± {markup.number(record[score.error])}"
            elif found := summary.interval(record, key):
                cell += f" {markup.interval_text(found)}"
            yield cell

    def mean(of):
        return markup.number(of["mean"]) + (
            f" ± {markup.number(of['std'])}" if is_number(of.get("std")) else ""
        )

    rows = []
    for record in all_records:
        protocol = record.get("protocol")
        name = protocol.get("name", "–") if isinstance(protocol, dict) else "–"
        if record.get("kind") == "evaluation":
            count = record["num_samples"] if "num_samples" in record else None
            rows.append(
                (
                    record["step"],
                    0,
                    name,
                    *scores(record),
                    markup.number(count) if count else "–",
                    markup.cell(record, "seed"),
                )
            )
        elif record.get("kind") == "aggregate" and (every := summary.statistics(record)):
            cells = [mean(every[score.name]) if score.name in every else "–" for score in LEADING]
            repeats = max(len(of.get("values", [])) for of in every.values())
            rows.append((record["step"], 1, name, *cells, f"mean of {repeats}", ""))
    if not rows:
        return ""
    rows.sort(key=lambda row: row[:2])
    lines = [("Step", "Protocol", *(score.short for score in LEADING), "Samples", "Seed")]
    lines += [(markup.number(step), *cells) for step, _, *cells in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def line_of(record: Record) -> str:
    """A record in one line."""
    if record["kind"] == "event":
        return f"step {record['step']}: {record['event']}"

    def number(score):
        name, digits = score.name, score.digits
        # Records have null for what isn't a number.
        text = "-" if record.get(name) is None else f"{record[name]:.{digits}f}"
        if record["kind"] == "aggregate" and name in record["scores"]:
            text += " +- {std:.{0}f} (smallest {min:.{0}f})".format(
                digits, **record["scores"][name]
            )
        return text

    of = (
        f"seed {record['seed']}"
        if record["kind"] == "evaluation"
        else f"mean of {record['repeats']} seeds"
    )
    real = record["reference"]
    numbers = "  ".join(f"{score.short} {number(score)}" for score in LEADING)
    return (
        f"{record['checkpoint']}: {numbers}  ({record['protocol']['name']}, "
        f"{record['num_samples']:,} samples, {of}, {real['count']:,} images of "
        f"{real['dataset']} {real['split']})"
        + (f"\nNOTE: {note}" if (note := summary.of_own_features(record)) else "")
        + (f"\nCAUTION: {record['caution']}" if record.get("caution") else "")
    )
