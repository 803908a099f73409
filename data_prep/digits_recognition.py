"""How many generated digits an SVC, trained on the real ones, recognises as what they were asked to
be.

python scripts/sample.py --model_dir=runs/digits --per_class=100 --output=runs/digits/samples.npz
python data_prep/digits_recognition.py --model_dir=runs/digits --data_dir=data
"""

# isort: off
import data_prep.first  # noqa: F401 - first of all
# isort: on

import io
import os

import numpy as np
import tensorflow as tf
from absl import flags
from sklearn import svm

from data_prep import packing
from hamgan import data, pictures
from hamgan.evaluation import report
from hamgan.run import checkpoints, records
from hamgan.run.folder import Folder


def pixels(images: np.ndarray) -> np.ndarray:
    """Images [N, S, S, 3], uint8 or in [-1, 1], as the SVC sees them: grey in [0, 1], [N, S *
    S].
    """
    return pictures.to_uint8(images).mean(axis=-1).reshape(len(images), -1) / 255


def fit(digits: data.ImageDataset) -> tuple[svm.SVC, float]:
    """An SVC with scikit-learn's defaults on the training split, and its accuracy on the test
    split.
    """

    def load(split):
        batch = next(digits.reference_batches(split=split, batch_size=10_000).as_numpy_iterator())
        return pixels(batch["image"]), batch["label"]

    classifier = svm.SVC().fit(*load("train"))
    return classifier, classifier.score(*load("test"))


def main():
    flag = flags.FLAGS
    path = Folder(flag.model_dir).sample_array
    if not tf.io.gfile.exists(path):
        raise SystemExit(
            f"There is no {path}: make it with scripts/sample.py --per_class=100 --output={path}"
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        samples = np.load(io.BytesIO(file.read()), allow_pickle=False)
    digits = data.ImageDataset(
        name="digits",
        image_size=samples["images"].shape[1],
        num_classes=10,
        reference_split="test",
        data_dir=os.path.expanduser(flag.data_dir),
    )
    classifier, real_accuracy = fit(digits)
    recognised = classifier.score(pixels(samples["images"]), samples["labels"])
    print(
        "Recognised as their label by an SVC trained on the real digits: "
        f"{recognised:.1%} of {len(samples['labels']):,} samples (real test digits: "
        f"{real_accuracy:.1%})"
    )
    checkpoint = checkpoints.find(flag.model_dir)
    records.append(
        Folder(flag.model_dir).metrics,
        {
            "kind": "event",
            "step": checkpoints.step_of(checkpoint),
            "event": (
                f"{recognised:.1%} of {len(samples['labels'])} samples "
                "recognised as their label by an SVC"
            ),
            "recognised": recognised,
        },
    )
    report.write_report(flag.model_dir)
    folder = Folder(flag.model_dir)
    print("\n".join([folder.samples, folder.report, folder.metrics]))


if __name__ == "__main__":
    packing.run(main)
