"""Scenes of scikit-learn's handwritten digits with a label for every pixel: no download.

    python data_prep/segment_digits.py --data_dir=data

writes data/segment_digits/1.0.0 (half a minute), and does nothing when that is already there.

A scene has 72x72 pixels: four real digits on textured ground, among strokes and pieces of digits
that are clutter. Digits may overlap. A pixel's class is its digit's, and class 0 the ground's, with
one exception, which can't be told from near by: a one is of the class `1 with a 0` where there is
a zero at the other side of the scene, which in half of the scenes there is. Two ones stand at one
side of every scene. From them to the zero it is at least 30 pixels.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import digits, shipped

SIDE = 72
NUM_SCENES = {"train": 2000, "validation": 200}
CLASSES = ("ground", *(str(digit) for digit in range(10)), "1 with a 0")
ONE, WITH_ZERO = 2, 11  # labels

_SEEDS = {"train": 0, "validation": 1}
_INK = 0.45  # of the largest grey level, from which on a pixel is the digit's
_SIZES = (16, 21)  # sides of a digit's square, which has margins of its own
# Where the one and the digit opposite of it are, from the edges: so no closer than 30 pixels.
_EDGE = (8, 12)
_MARGIN = 9  # of other digits' middles

_DESCRIPTION = """
Scenes of 72x72 made from scikit-learn's 1,797 real handwritten digits, with the class of every
pixel. Digits of the validation scenes are in no training scene.
"""


class SegmentDigits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `segment_digits`: features image, label and id."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "2,000 scenes for training and 200 for validation."}
    # As in `data_prep.digits`: nothing is downloaded.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "label": tfds.features.LabeledImage(
                        shape=(SIDE, SIDE, 1), labels=list(CLASSES), encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in NUM_SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, object]]]:
        by_digit = digits_of(split)
        for number in range(NUM_SCENES[split]):
            rng = np.random.default_rng([_SEEDS[split], number])
            image, label = make_scene(rng, by_digit)
            name = f"{split}-{number:05d}"
            yield name, {"image": image, "label": label[..., None], "id": name}


def digits_of(split: str) -> list[np.ndarray]:
    """For each digit 0 to 9 the images of a split, uint8 [n, 8, 8]; no image is in both."""
    images, labels = digits.load_digits()
    held_out = np.zeros(len(labels), bool)
    held_out[digits.choose_test(labels)] = True
    chosen = held_out if split == "validation" else ~held_out
    return [images[chosen & (labels == digit), ..., 0] for digit in range(10)]


def make_scene(
    rng: np.random.Generator, by_digit: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image uint8 [72, 72, 3] and label uint8 [72, 72]."""
    canvas = _ground(rng)
    label = np.zeros([SIDE, SIDE], np.uint8)
    for _ in range(rng.integers(2, 5)):
        _draw_stroke(rng, canvas)
    for _ in range(rng.integers(1, 3)):
        _draw_piece(rng, canvas, by_digit)
    # Ones and the digit opposite come last: nothing covers what decides.
    with_zero = rng.random() < 0.5
    opposite = 0 if with_zero else int(rng.integers(2, 10))
    others = [(int(rng.integers(2, 10)), rng.integers(_MARGIN, SIDE - _MARGIN, 2))]
    placed = [*others, *zip((opposite, 1, 1), _opposite_places(rng), strict=True)]
    for digit, place in placed:
        mask = _digit(rng, by_digit[digit])
        where = _draw(canvas, mask, place, _ink(rng, canvas))
        label[where] = WITH_ZERO if digit == 1 and with_zero else digit + 1
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), label


def _opposite_places(rng):
    """One place at an edge, two at the opposite one; any pair of edges, either way round."""
    edge, opposite = rng.permutation([0, SIDE])
    depths = rng.integers(*_EDGE, 3)
    # Along the edge the two ones keep clear of each other, mostly.
    along = rng.integers(_MARGIN, SIDE - _MARGIN), rng.integers(_MARGIN, SIDE // 2 - 4)
    along = [*along, rng.integers(SIDE // 2 + 4, SIDE - _MARGIN)]
    across = [abs(edge - depths[0]), abs(opposite - depths[1]), abs(opposite - depths[2])]
    places = np.stack([along, across], axis=1)
    return places if rng.random() < 0.5 else places[:, ::-1]


def _ground(rng):
    """Noise of three scales between two colours, float64 [72, 72, 3]."""
    weight = np.zeros([SIDE, SIDE])
    for cells in (3, 8, 24):
        noise = Image.fromarray(rng.random([cells, cells]).astype(np.float32))
        weight += np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 3
    first, second = rng.uniform(0, 255, [2, 3])
    return first + (second - first) * np.clip(weight, 0, 1)[..., None]


def _ink(rng, canvas):
    """A colour that can be seen on the ground."""
    ground = canvas.mean(axis=(0, 1))
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - ground.mean()) > 60:
            return colour


def _digit(rng, images):
    """The mask of one of some digits, bool [s, s]."""
    size = int(rng.integers(*_SIZES))
    image = Image.fromarray(images[rng.integers(len(images))])
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) > _INK * 255


def _draw(canvas, mask, centre, colour):
    """Paints a mask around a place; returns the pixels, as an index of the canvas."""
    rows, columns = np.nonzero(mask)
    rows, columns = rows + centre[0] - mask.shape[0] // 2, columns + centre[1] - mask.shape[1] // 2
    inside = (rows >= 0) & (rows < SIDE) & (columns >= 0) & (columns < SIDE)
    where = rows[inside], columns[inside]
    canvas[where] = colour
    return where


def _draw_stroke(rng, canvas):
    start, end = rng.uniform(0, SIDE - 2, [2, 2])
    colour = rng.uniform(0, 255, 3)
    for part in np.linspace(0, rng.uniform(0.2, 0.6), 60):
        row, column = (start + part * (end - start)).astype(int)
        canvas[row : row + 2, column : column + 2] = colour


def _draw_piece(rng, canvas, by_digit):
    """A quarter of a digit, which is ground."""
    mask = _digit(rng, by_digit[int(rng.integers(10))])
    half = mask.shape[0] // 2
    row, column = rng.integers(0, 2, 2) * half
    _draw(
        canvas,
        mask[row : row + half, column : column + half],
        rng.integers(_MARGIN, SIDE - _MARGIN, 2),
        _ink(rng, canvas),
    )


def prepare(data_dir: str | None = None) -> tuple[SegmentDigits, bool]:
    """Writes the data set below `data_dir` unless it is there; as `data_prep.digits.prepare`."""
    builder = SegmentDigits(data_dir=data_dir)
    return builder, shipped.prepare(builder)


if __name__ == "__main__":
    shipped.run(prepare)
