"""Images as a person sees them: 8 bits, and grids with their rows labelled."""

import functools
import io
import os

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hamgan.run import records

_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 48)
_GAP = 2  # pixels between images
_MARGIN = 8  # pixels around the grid, and between the labels and their rows
_LEGIBLE_SIZE = 64  # pixels that an image should have at least on a screen
_MAX_LABEL_WIDTH = 140  # pixels


def to_uint8(images):
    """Images in 8 bits: [-1, 1] becomes [0, 255], rounded to the nearest and clipped.

    Args:
      images: any shape, floating point in [-1, 1]; uint8 is returned as it is.

    Returns:
      uint8 array of the same shape.

    Raises:
      ValueError: another integer type, or values that aren't finite.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "biuO":
        raise ValueError(f"images must be floating point in [-1, 1] or uint8, got {images.dtype}")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        count = np.count_nonzero(~np.isfinite(images))
        raise ValueError(
            f"images must be finite, got {count} values that aren't: the generator has diverged"
        )
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def save_grid(path, images, *, columns, row_labels=None, title=None, scale=None):
    """Writes images as a grid, row by row, in one PNG file.

    Args:
      path: the file, local or remote; it appears when it is complete.
      images: [R * columns, H, W, 3], floating point in [-1, 1] or uint8.
      columns: images in a row.
      row_labels: R names, drawn at the left and shortened to fit. None for no labels.
      title: a line above the grid, or None.
      scale: enlargement by repeated pixels, an integer >= 1. None enlarges small images until a
        person can see them.

    Raises:
      ValueError: sizes that don't fit together, or what `to_uint8` refuses.
    """
    images = to_uint8(images)
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images must have the shape [N, height, width, 3], got {list(images.shape)}"
        )
    count, height, width, _ = images.shape
    if columns < 1 or count % columns:
        raise ValueError(
            f"The number of images ({count}) must be a multiple of columns ({columns})"
        )
    rows = count // columns
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must have one name per row ({rows}), got {len(row_labels)}")
    if scale is None:
        scale = -(-_LEGIBLE_SIZE // min(height, width))
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale must be an integer of at least 1, got {scale}")
    images = images.repeat(int(scale), axis=1).repeat(int(scale), axis=2)
    height, width = images.shape[1:3]

    font = _font(min(14, height))
    labels = [_shorten(name, font, _MAX_LABEL_WIDTH) for name in row_labels or []]
    left = _MARGIN
    if labels:
        left += max(_text_width(label, font) for label in labels) + _MARGIN
    canvas_width = left + columns * (width + _GAP) - _GAP + _MARGIN
    top = _MARGIN
    title_font = _font(16)
    if title is not None:
        title = _shorten(title, title_font, canvas_width - 2 * _MARGIN)
        top += 16 + _MARGIN
    canvas_height = top + rows * (height + _GAP) - _GAP + _MARGIN

    canvas = np.full([canvas_height, canvas_width, 3], _BACKGROUND, np.uint8)
    for index, image in enumerate(images):
        y = top + index // columns * (height + _GAP)
        x = left + index % columns * (width + _GAP)
        canvas[y : y + height, x : x + width] = image
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        middle = top + row * (height + _GAP) + height / 2
        draw.text((left - _MARGIN, middle), label, fill=_INK, font=font, anchor="rm")
    if title is not None:
        draw.text((_MARGIN, _MARGIN + 8), title, fill=_INK, font=title_font, anchor="lm")

    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    records.write_whole(path, buffer.getvalue())


@functools.cache
def _font(size):
    # The font that matplotlib brings along is the same on every machine, and has many scripts.
    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size
    )


def _text_width(text, font):
    return int(np.ceil(font.getlength(text)))


def _shorten(text, font, width):
    """`text` on one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(str(text).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1].rstrip(" ,;")
    return text + "…"
