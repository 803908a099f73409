"""Moving pictures: frames as GIF or MP4."""

import io

import numpy as np
from PIL import Image

from hamgan import pictures
from hamgan.run import records

ENDINGS = (".gif", ".mp4")


def check(path):
    """ValueError unless a film can be written under this name, before anything is computed."""
    if path.endswith(".mp4"):
        _import_imageio()
    elif not path.endswith(ENDINGS):
        raise ValueError(f"A film must end in {' or '.join(ENDINGS)}, got {path!r}.")


def _import_imageio():
    try:
        import av  # noqa: F401 - what imageio writes MP4 by
        import imageio.v3
    except ImportError as error:
        raise ValueError(
            f"MP4 needs the extra video ({error}): pip install 'hamgan[video]'. GIF needs none."
        ) from None
    return imageio.v3


def frames_of(images):
    """Frames [F, H, W, 3] uint8 of paths [paths, F, S, S, 3]: the paths side by side, enlarged
    until a person can see them, and cut to even sizes, which MP4 needs.
    """
    images = pictures.to_uint8(images)
    paths, count, height, width, _ = images.shape
    columns = int(np.ceil(np.sqrt(paths)))
    rows = -(-paths // columns)
    blank = np.full([rows * columns - paths, *images.shape[1:]], 255, np.uint8)
    table = np.concatenate([images, blank]).reshape(rows, columns, count, height, width, 3)
    frames = table.transpose(2, 0, 3, 1, 4, 5).reshape(count, rows * height, columns * width, 3)
    scale = -(-128 // min(height, width))
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def write(path, images, *, frames_per_second=16):
    """Writes images on paths [paths, F, S, S, 3] as a film, there and back again.

    Args:
      path: .gif or .mp4, local or remote.
      images: floating point in [-1, 1] or uint8.
      frames_per_second: the film's speed.

    Raises:
      ValueError: another ending, or the extra `video` isn't installed.
    """
    check(path)
    frames = frames_of(images)
    frames = np.concatenate([frames, frames[-2:0:-1]])
    if path.endswith(".gif"):
        first, *others = [Image.fromarray(frame) for frame in frames]
        buffer = io.BytesIO()
        first.save(
            buffer,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=round(1000 / frames_per_second),
            loop=0,
        )
        content = buffer.getvalue()
    else:
        content = _import_imageio().imwrite(
            "<bytes>",
            frames,
            extension=".mp4",
            plugin="pyav",
            codec="libx264",
            fps=frames_per_second,
        )
    records.write_whole(path, content)
