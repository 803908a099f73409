"""Label images as files: PNGs whose pixels are indices of classes, with VOC's palette or any."""

import io
import tarfile
from collections.abc import Iterable

import numpy as np
from PIL import Image, UnidentifiedImageError

from hamgan.run import records

_INDEXED = ("P", "L", "1")
# The background and twenty things.
VOC_CLASSES = 21


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, uint8 [256, 3].

    The bits of a class are dealt to red, green and blue in turn: bits 0, 3, 6 to red from its
    highest bit down, 1, 4, 7 to green, 2, 5 to blue.
    """
    classes = np.arange(256)
    palette = np.zeros([256, 3], np.int64)
    for bit in range(8):
        palette[:, bit % 3] |= (classes >> bit & 1) << (7 - bit // 3)
    return palette.astype(np.uint8)


def encode_png(indices: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG of 8 bits with these indices.

    Args:
      indices: uint8 [h, w].
      palette: uint8 [256, 3]; None: a grey image.

    Raises:
      ValueError: another shape or type.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.dtype != np.uint8:
        raise ValueError(
            f"indices must be uint8 [h, w], got {indices.dtype} {list(indices.shape)}."
        )
    image = Image.fromarray(indices)
    if palette is not None:
        if np.shape(palette) != (256, 3):
            raise ValueError(
                f"palette must have the shape [256, 3], got {list(np.shape(palette))}."
            )
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
    buffer = io.BytesIO()
    # With a bit depth given, Pillow doesn't choose a smaller one for few colours.
    image.save(buffer, format="PNG", bits=8)
    return buffer.getvalue()


def write_png(path: str, indices: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Writes `encode_png`'s bytes to a file, local or remote; it appears when it is complete."""
    records.write_whole(path, encode_png(indices, palette))


def write_voc_submission(path: str, predictions: Iterable[tuple[str, np.ndarray]]) -> int:
    """Writes what VOC's test server takes: a tar of PNGs with VOC's palette.

    Args:
      path: the file, local or remote; it appears when it is complete.
      predictions: (image's name, uint8 [h, w]), of all 1,456 test images.

    Returns:
      How many there were.

    Raises:
      ValueError: a name twice, or what `encode_png` refuses.
    """
    buffer, names = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, indices in predictions:
            if name in names:
                raise ValueError(f"predictions must have every image once, got {name} twice.")
            names.add(name)
            content = encode_png(indices, voc_palette())
            member = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    records.write_whole(path, buffer.getvalue())
    return len(names)


def read_indices(encoded: bytes) -> np.ndarray:
    """The indices of a label image: a palette's own numbers, or grey values as they are.

    Args:
      encoded: a file that Pillow reads: with a palette, or grey of 1, 8 or 16 bits.

    Returns:
      uint8 [h, w].

    Raises:
      ValueError: not such an image, a damaged one, or indices above 255.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            mode, indices = image.mode, np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("Pillow knows no such image format") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged: {error}") from None
    if mode.startswith("I"):
        if indices.min() < 0 or indices.max() > 255:
            raise ValueError(f"labels must be in 0..255, got {indices.min()} to {indices.max()}")
    elif mode not in _INDEXED:
        raise ValueError(
            f"labels must be indices (a palette or grey), got an image of mode {mode}: colours "
            "aren't classes"
        )
    return indices.astype(np.uint8)


def overlay(image: np.ndarray, indices: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """An image under VOC's colours of its classes; pixels labelled 255 stay as they are.

    Args:
      image: uint8 [h, w, 3].
      indices: uint8 [h, w].
      opacity: of the colours, in [0, 1].

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: sizes that differ, or opacity out of range.
    """
    if image.shape[:2] != indices.shape:
        raise ValueError(
            f"image and indices must have one size, got {image.shape[:2]} and {indices.shape}."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}.")
    share = np.where(indices == 255, 0, np.float32(opacity))[..., None]
    colours = voc_palette()[indices].astype(np.float32)
    return np.rint(image * (1 - share) + colours * share).astype(np.uint8)
