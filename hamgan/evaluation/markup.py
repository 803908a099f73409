"""Words, numbers, tables and pictures of a report, as HTML."""

import base64
import datetime
import html
import io
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

import tensorflow as tf
from PIL import Image

from hamgan.evaluation.scores import ALL_SCORES
from hamgan.run.history import Record, is_number, text

NAMES = {
    **{score.name: score.title for score in ALL_SCORES},
    **{score.error: f"{score.title}, standard error" for score in ALL_SCORES},
    "num_samples": "Generated samples",
    "seed": "Seed",
    "checkpoint": "Checkpoint",
    "protocol": "Protocol",
    "protocol name": "Protocol",
    "features": "Features",
    "reference": "Reference",
    "images_per_second": "Images per second",
    "eta_seconds": "Time left (seconds)",
    "input_wait_percent": "Waiting for images (%)",
    "memory/host_gib": "Memory of the host (GiB)",
    "memory/device_gib": "Memory of the device (GiB)",
    "gate": "Weight of the context module",
    "gradient_norm": "Norm of the gradient",
    "logits": "Discriminator outputs",
    "loss": "Loss",
    "residual": "What the decomposition leaves",
    "sigma": "Largest singular value",
}


# Data URL, width, height.
Picture = tuple[str, int, int]


def escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def interval_text(interval: Sequence[float]) -> str:
    return f"[{number(interval[0])}, {number(interval[1])}]"


def number(value: Any) -> str:
    """A number from a record for reading; what isn't one was not finite when it was written."""
    if not is_number(value):
        return "not finite"
    if isinstance(value, int) or abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def cell(record: Record, key: str) -> str:
    if key not in record:
        return "–"
    value = record[key]
    # Numbers that weren't finite are written as null.
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not finite"
    return number(value) if isinstance(value, float) else text(value)


def name(key: str) -> str:
    """A field's name for people: 'eta_seconds' is time left, 'sigma/generator' a singular value of
    the generator.
    """
    if key in NAMES:
        return NAMES[key]
    first, _, rest = key.partition("/")
    if rest and first in NAMES:
        return f"{NAMES[first]}, {rest.replace('_', ' ')}"
    return key[:1].upper() + key[1:].replace("_", " ")


def when(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Container[int] = ()
) -> str:
    """An HTML table of plain strings; the columns `numeric` are set flush right."""

    def line(tag, cells):
        return "".join(
            f"<{tag}{' class=n' if i in numeric else ''}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def evenly(items: list, count: int) -> list:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def embed(path: str, *, max_bytes: int, max_width: int) -> Picture | None:
    """A picture as (data URL, width, height), as JPEG if it is large.

    None if it isn't there or can't be read.
    """
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read()
    kind = "png"
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    if len(data) > max_bytes:
        picture.thumbnail((max_width, 4 * max_width))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=88)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *picture.size


def img(source: Picture, alt: str) -> str:
    url, width, height = source
    return f'<img src="{url}" width="{width}" height="{height}" alt="{escape(alt)}">'
