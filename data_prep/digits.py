"""scikit-learn's handwritten digits as a TFDS data set: real images that need no download.

The 1,797 8x8 grey images are the test part of the "Optical Recognition of Handwritten Digits" set
(Alpaydin and Kaynak, UCI, 1998) and lie inside the scikit-learn package.

    python data_prep/digits.py --data_dir=data

writes data/digits/1.0.0, and does nothing when that is already there.
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_prep import shipped

NUM_TEST = 300
_CLASSES = tuple("0123456789")
_GREY_LEVELS = 16  # the images hold 0..16 inclusive

_DESCRIPTION = """
The 1,797 handwritten digits of scikit-learn (`sklearn.datasets.load_digits`), 8x8 grey, levels
0..16 scaled to 0..255 and rounded. `test` holds 300 of them, every class in proportion, evenly
spaced through scikit-learn's order; `train` holds the rest.
"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `digits`: splits train (1,497) and test (300), features image and label."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "All 1,797 images of scikit-learn in a stratified split."}
    # Nothing is downloaded, so there are no checksums. TFDS would look for them, and import
    # importlib_resources for that, which it does not install (4.9.10).
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(8, 8, 1), dtype=np.uint8, encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing to download
        images, labels = load_digits()
        is_test = np.zeros(len(labels), bool)
        is_test[choose_test(labels)] = True
        return {
            "train": self._generate_examples(images, labels, np.flatnonzero(~is_test)),
            "test": self._generate_examples(images, labels, np.flatnonzero(is_test)),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images uint8 [1797, 8, 8, 1] in 0..255, labels int64 [1797]."""
    # Imported late: a run that finds the data set already made does not pay for it.
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / _GREY_LEVELS)).astype(np.uint8)
    return images[..., np.newaxis], digits.target.astype(np.int64)


def choose_test(labels: np.ndarray, num_test: int = NUM_TEST) -> np.ndarray:
    """Which examples are the test split: stratified, without random numbers.

    Class c, of n_c examples, gives its proportional share of `num_test`, rounded down; what is then
    missing comes one each from the classes with the largest remainders (ties: the smaller label).
    Of its n_c examples in stored order it gives numbers floor((j + 0.5) * n_c / share).

    Args:
      labels: int [N].
      num_test: how many examples to take.

    Returns:
      int64 [num_test], increasing.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(num_test * counts, len(labels))
    largest_first = np.argsort(-remainders, kind="stable")
    shares[largest_first[: num_test - shares.sum()]] += 1
    chosen = [
        np.flatnonzero(labels == label)[((np.arange(share) + 0.5) * count / share).astype(np.int64)]
        for label, count, share in zip(classes, counts, shares, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def prepare(data_dir: str | None = None) -> tuple[Digits, bool]:
    """Writes the data set below `data_dir` unless it is there.

    Args:
      data_dir: a folder, local or gs://; None: TFDS's own (`TFDS_DATA_DIR`, else
        ~/tensorflow_datasets).

    Returns:
      The builder, and whether this call wrote the data set.
    """
    builder = Digits(data_dir=data_dir)
    return builder, shipped.prepare(builder)


if __name__ == "__main__":
    shipped.run(prepare)
