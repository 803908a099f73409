"""Any image file as a careful viewer shows it, for those who prepare data and for training alike.

`plain` is where all of them begin: TensorFlow decodes what it gives, and of two who decode the same
file both get the same pixels.
"""

import contextlib
import functools
import io
import struct
import threading

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from hamgan import choices

# What is opened, whatever a file is called: a PostScript file would start Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF")
MAX_PIXELS = choices.MAX_PIXELS

# Bytes that `kind_of` asks for.
HEAD_BYTES = 32

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF files.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SAMPLE_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex", 6: "complex"}
_ORIENTATION = 0x112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How the orientation begins in EXIF data of either byte order, and in XMP.
_ORIENTATION_SIGNS = (b"\x12\x01\x03\x00", b"\x01\x12\x00\x03", b"Orientation")


def shown(encoded: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Any image as a viewer shows it, uint8 [h, w, 1 or 3], turned as its EXIF orientation says.

    Transparent pixels are put on white. 16 bits are scaled to 8. Colours are converted to sRGB by
    the image's own profile where it has one. Of an animation the first picture is taken.

    Raises:
      ValueError: the bytes are of no format in FORMATS; more than max_pixels; samples without a
        fixed white (32 bits, floating point, signed).
    """
    with _opened(encoded, max_pixels) as image:
        orientation = _orientation(image)
        if image.format == "TIFF":
            _check_samples(image)
        if image.mode == "I" and image.format != "PNG":
            raise ValueError("32-bit integer samples: convert it to 8 or 16 bits")
        if image.mode.startswith("I"):
            image = _of_16_bits(image)
        else:
            image = _in_srgb(image, encoded)
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def plain(encoded: bytes, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """The file in a form whose central square any decoder shows alike: JPEG or PNG of 8 bits,
    upright, in sRGB, without transparency.

    Most files are so, and are given back as they are. Of others it is `shown` as a PNG of the
    central square (`hamgan.data.preprocess`).

    Raises:
      ValueError: as `shown`; of a file that is given back, only that it has too many pixels.
    """
    if _is_plain(encoded, max_pixels):
        return encoded
    pixels = shown(encoded, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    square = pixels[top : top + side, left : left + side]
    buffer = io.BytesIO()
    image = Image.fromarray(square[..., 0] if square.shape[2] == 1 else square)
    image.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def side_of(encoded: bytes) -> int:
    """The shorter side of an image in pixels, read from the beginning of the file.

    Raises:
      ValueError: the bytes are of no format in FORMATS.
    """
    with _opened(encoded, None) as image:
        return min(image.size)


def _why_not(encoded):
    """Why Pillow doesn't know a file, in words."""
    kind = kind_of(encoded[:HEAD_BYTES])
    if kind == "TIFF":
        return (
            "it is a TIFF, damaged or with samples that Pillow can't read: convert it to 8 or 16 "
            "bits"
        )
    if kind in _known():
        return f"it is damaged: {kind} by its first bytes"
    more = f" (it is {kind}, which isn't read here: convert it)" if kind else ""
    return f"it is none of {', '.join(FORMATS)}, by its content{more}"


def kind_of(head: bytes) -> str | None:
    """What kind of image a file is by its first HEAD_BYTES bytes: of FORMATS, or HEIC, JPEG XL,
    JPEG 2000; None: none of these.
    """
    if head[4:8] == b"ftyp":
        # The brand, and those that it is compatible with.
        brands = {head[at : at + 4] for at in (8, *range(16, len(head), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        heic = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
        return "HEIC" if brands & heic else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    starts = {
        "JPEG": (b"\xff\xd8\xff",),
        "PNG": (_PNG,),
        "GIF": (b"GIF87a", b"GIF89a"),
        "TIFF": _TIFF,
        "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
        "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    }
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # two letters alone say little
        return "BMP"
    return next((kind for kind, signs in starts.items() if head.startswith(signs)), None)


@contextlib.contextmanager
def _opened(encoded, max_pixels):
    """The file, opened and not decoded yet, if it isn't too large."""
    with _LIMIT.ours():
        try:
            opened = Image.open(io.BytesIO(encoded), formats=[f for f in FORMATS if f in _known()])
        except UnidentifiedImageError as error:
            raise ValueError(_why_not(encoded)) from error
        with opened as image:
            _check_size(*image.size, max_pixels)
            yield image


class _Limit:
    """Pillow's own limit, which is the process's, is off while one of ours is in force."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._before = None

    @contextlib.contextmanager
    def ours(self):
        with self._lock:
            if not self._users:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    Image.MAX_IMAGE_PIXELS = self._before


_LIMIT = _Limit()


def _check_size(width, height, max_pixels):
    if max_pixels and width * height > max_pixels:
        raise ValueError(
            f"it has {width} x {height} pixels, more than {max_pixels:,} (the limit max_pixels)"
        )


@functools.cache
def _known():
    Image.init()
    return frozenset(Image.OPEN)


def _is_plain(encoded, max_pixels):
    """Whether TensorFlow's decoders show the file as `shown` does."""
    if encoded.startswith(b"\xff\xd8"):
        return _is_plain_jpeg(encoded, max_pixels)
    return encoded.startswith(_PNG) and _is_plain_png(encoded, max_pixels)


def _is_plain_jpeg(encoded, max_pixels):
    at, suspicious = 2, False
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack(">H", encoded[at + 2 : at + 4])
        segment = encoded[at + 4 : at + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 5:
            height, width = struct.unpack(">HH", segment[1:5])
            _check_size(width, height, max_pixels)
        elif marker == 0xE1:
            suspicious |= any(sign in segment for sign in _ORIENTATION_SIGNS)
        elif marker == 0xE2:
            suspicious |= segment.startswith(b"ICC_PROFILE")
        at += 2 + length
    if not suspicious:
        return True
    with _opened(encoded, max_pixels) as image:
        profile = image.info.get("icc_profile")
        return _orientation(image) not in _TURNS and (not profile or _is_srgb(profile))


def _is_plain_png(encoded, max_pixels):
    if len(encoded) < 29:
        return False
    width, height, bits, colours = struct.unpack(">IIBB", encoded[16:26])
    _check_size(width, height, max_pixels)
    if bits != 8 or colours not in (0, 2):
        return False
    at = 8
    while at + 8 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[at : at + 8])
        start = encoded[at + 8 : at + 8 + min(length, 40)]
        if kind in (b"tRNS", b"iCCP", b"eXIf"):
            return False
        # Where programs put EXIF data and XMP before there was eXIf.
        if kind in (b"tEXt", b"zTXt", b"iTXt") and start.startswith((b"Raw profile", b"XML:com")):
            return False
        at += 12 + length
    return True


def _orientation(image):
    """Of the EXIF data; an entry that can't be read counts as none, and no other entry matters."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # whatever Pillow's parser stumbles over
        return None


def _check_samples(image):
    """ValueError of a TIFF whose samples have no fixed white."""
    kinds = image.tag_v2.get(_SAMPLE_FORMAT, 1)
    for kind in kinds if isinstance(kinds, tuple) else (kinds,):
        if kind in _SAMPLE_FORMATS:
            raise ValueError(
                f"{_bits(image)}-bit {_SAMPLE_FORMATS[kind]} samples: convert it to 8 or 16 bits "
                "without a sign"
            )


def _bits(image):
    """Of a TIFF's samples."""
    bits = image.tag_v2.get(_BITS, 1)
    return bits[0] if isinstance(bits, tuple) else bits


def _of_16_bits(image):
    """A grey image of more than 8 bits in 8: `L`."""
    grey = np.asarray(image).astype(np.float64)
    transparent = image.info.get("transparency")
    white, white_is_zero = 65535, False
    if image.format == "TIFF":
        # Of 12 bits, say, which Pillow leaves as they are.
        white = 2 ** _bits(image) - 1
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC) == 0
    values = np.clip(np.rint((white - grey if white_is_zero else grey) * (255 / white)), 0, 255)
    if isinstance(transparent, int):
        values = np.where(grey == transparent, 255, values)
    return Image.fromarray(values.astype(np.uint8))


def _in_srgb(image, encoded):
    """An image of 8 bits or less as `RGB`, transparent pixels on white."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode in ("1", "L") and isinstance(transparent, int):
        # Pillow stretches samples of 1, 2 and 4 bits to 8, and leaves this value as it is stored.
        image = image.convert("L")
        image.info["transparency"] = transparent * 255 // (2 ** min(encoded[24], 8) - 1)
    profile = image.info.get("icc_profile")
    alpha = None
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _by_profile(image, profile) if profile else image
    image = image.convert("RGB")
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _by_profile(image, profile):
    """An image in sRGB; as it is where its profile can't be used."""
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if _is_srgb(profile):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image


@functools.lru_cache(64)  # photographs of one camera have one
def _is_srgb(profile):
    """Whether a profile says that it is sRGB, or says nothing that can be read."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return "srgb" in ImageCms.getProfileDescription(source).lower()
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return True
