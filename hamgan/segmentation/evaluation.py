"""How a segmentation network is scored: a test protocol, records, tables and pictures of it."""

import dataclasses
import hashlib
import io
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from hamgan import arguments, stateless
from hamgan.run import contents, records
from hamgan.run.folder import Folder
from hamgan.run.log import SCREEN, surviving_failed_writes
from hamgan.segmentation import metrics, testing

# Classes that a confusion picture writes numbers for.
_MOST_NUMBERS = 30


@arguments.take(
    stride=arguments.whole(1),
    scales=arguments.each(arguments.number(above=0)),
    seed=arguments.seed(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class HamNetTest:
    """HamNet's test (`testing.hamnet_logits`): the whole image, or all scales and mirror images.

    Attributes:
      stride: the network's output stride.
      scales: of the multi-scale test.
      seed: of the bases that each pass draws.
    """

    stride: int = 8
    scales: Sequence[float] = testing.HAMNET_SCALES
    seed: int = 0

    def __post_init__(self):
        arguments.check_fields(self)

    def scores(self, network, image, *, multi_scale):
        """Scores [h, w, C] of an image uint8 [h, w, 3], whose argmax is the prediction."""
        scales = self.scales if multi_scale else (1.0,)
        return testing.hamnet_logits(
            network, image, scales=scales, flip=multi_scale, stride=self.stride
        )


@arguments.take(
    base_size=arguments.each(arguments.whole(1)),
    ratios=arguments.each(arguments.number(above=0)),
    divisor=arguments.optional(arguments.whole(1)),
    seed=arguments.seed(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MMSegmentationTest:
    """MMSegmentation's test (`testing.mmsegmentation_probabilities`).

    Attributes:
      base_size: box that an image is resized into.
      ratios: of the box in the multi-scale test.
      divisor: 32 for Light-Ham; None: sides as they come.
      seed: of the bases that each pass draws.
    """

    base_size: tuple[int, int] = (2048, 512)
    ratios: Sequence[float] = testing.MMSEGMENTATION_RATIOS
    divisor: int | None = None
    seed: int = 0

    def __post_init__(self):
        arguments.check_fields(self)

    def scores(self, network, image, *, multi_scale):
        """Scores [h, w, C] of an image uint8 [h, w, 3], whose argmax is the prediction."""
        return testing.mmsegmentation_probabilities(
            network,
            image,
            base_size=self.base_size,
            ratios=self.ratios if multi_scale else (1.0,),
            flip=multi_scale,
            divisor=self.divisor,
        )


def describe(test, *, multi_scale: bool) -> dict[str, str]:
    """{'name', 'fingerprint', 'words'} of a test, as evaluations of GANs have them of protocols."""
    decides = {"kind": type(test).__name__, "multi_scale": multi_scale}
    used = {field.name: getattr(test, field.name) for field in dataclasses.fields(test)}
    if not multi_scale:
        used = {name: value for name, value in used.items() if name not in ("scales", "ratios")}
    decides.update({name: list(v) if isinstance(v, tuple) else v for name, v in used.items()})
    text = json.dumps(decides, sort_keys=True)
    words = "multi-scale and flip" if multi_scale else "single-scale"
    return {
        "name": f"{type(test).__name__} {words}",
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        "words": f"{words}, " + ", ".join(f"{name} {value}" for name, value in used.items()),
    }


class Predictor:
    """Predictions of a network for whole images, of any size.

    Bases are functions of the test's seed, the image's number and the pass over it: a prediction
    doesn't depend on what was predicted before.

    Args:
      network: a `segmenter.Segmenter`.
      test: `HamNetTest`, `MMSegmentationTest` or what has their method.
      multi_scale: all scales and mirror images, instead of the image as it is.
    """

    def __init__(self, network, test, *, multi_scale=False):
        self._test, self._multi_scale = test, multi_scale

        @tf.function(
            input_signature=[
                tf.TensorSpec([1, None, None, 3], tf.float32),
                tf.TensorSpec([1, 2], tf.int32),
            ]
        )
        def logits(images, keys):
            return tf.cast(network(images, training=False, keys=keys).logits, tf.float32)

        self._logits = logits

    def __call__(self, image: np.ndarray, number: int) -> np.ndarray:
        """uint8 [h, w] of the image uint8 [h, w, 3], the `number`-th of some."""
        parent = stateless.key(self._test.seed, stateless.EVALUATION, number)
        passes = iter(range(2**31))

        def network(images):
            return self._logits(images, stateless.fold(parent, next(passes))[None])

        scores = self._test.scores(network, np.asarray(image), multi_scale=self._multi_scale)
        return np.argmax(scores, axis=-1).astype(np.uint8)


class Evaluator:
    """Scores a network by a split's labels; each host looks at all of them, on one device.

    Args:
      network: a `segmenter.Segmenter`.
      dataset: a `data.SegmentationDataset`.
      test: as of `Predictor`.
      model_dir: the run's folder, which pictures of the confusion are drawn into; None: none are.
      multi_scale: all scales and mirror images.
      split: None: the data set's `test_split`.
      progress: draw a progress bar.

    Attributes:
      description: of the test, with its fingerprint.
    """

    def __init__(
        self,
        *,
        network,
        dataset,
        test,
        model_dir=None,
        multi_scale=False,
        split=None,
        progress=True,
    ):
        self.description = describe(test, multi_scale=multi_scale)
        self._predict = Predictor(network, test, multi_scale=multi_scale)
        self._dataset = dataset
        self._model_dir = model_dir
        self._split = split or dataset.test_split
        self._progress = progress

    def table(self) -> np.ndarray:
        """The table of counts int64 [C, C] of the whole split, rows truth, columns prediction."""
        classes = self._dataset.num_classes
        table = np.zeros([classes, classes], np.int64)
        examples = self._dataset.test_examples(split=self._split).as_numpy_iterator()
        for number, example in enumerate(
            tqdm(
                examples,
                total=self._dataset.num_examples(self._split),
                desc="evaluation",
                unit="image",
                file=SCREEN,
                disable=not self._progress,
                leave=False,
                mininterval=0.5 if sys.stderr.isatty() else 15,
            )
        ):
            predicted = self._predict(example["image"], number)
            table += metrics.confusion(example["label"], predicted, classes)
        return table

    def evaluate(self, *, checkpoint: str, step: int) -> dict:
        """The record of an evaluation of the weights that the network has.

        Args:
          checkpoint: where they are from.
          step: of the training.
        """
        start = time.monotonic()
        table = self.table()
        found = metrics.scores(table)
        names = self._dataset.class_names
        if self._model_dir is not None:
            path = Folder(self._model_dir).confusion(step)
            with surviving_failed_writes(path):
                draw_confusion(path, table, names, title=f"step {step:,}")
        return {
            "kind": "evaluation",
            "step": step,
            "checkpoint": checkpoint,
            "checkpoint_digest": contents.digest(checkpoint),
            "protocol": self.description,
            "reference": {"dataset": self._dataset.name, "split": self._split},
            "num_samples": self._dataset.num_examples(self._split),
            "mean_iou": found.mean_iou,
            "pixel_accuracy": found.pixel_accuracy,
            "mean_accuracy": found.mean_accuracy,
            "weighted_iou": found.weighted_iou,
            "class_iou": dict(zip(names, found.iou.tolist(), strict=True)),
            "class_accuracy": dict(zip(names, found.accuracy.tolist(), strict=True)),
            "seconds": time.monotonic() - start,
        }


def in_words(record: dict) -> str:
    """An evaluation for the terminal: a line for each class, percentages."""

    def percent(value):
        return f"{100 * value:6.2f}" if value is not None and np.isfinite(value) else "     –"

    of_class = record["class_iou"]
    width = max(map(len, [*of_class, "class"]))
    lines = [f"{'class':<{width}}     IoU     Acc"]
    for name, iou in of_class.items():
        lines.append(f"{name:<{width}}  {percent(iou)}  {percent(record['class_accuracy'][name])}")
    scores = ("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("pixel_accuracy", "aAcc")
    means = "  ".join(f"{title} {percent(record[name]).strip()}" for name, title in scores)
    split = record["reference"]["split"]
    return "\n".join(
        [
            *lines,
            f"{means}  (%; {record['num_samples']:,} images of {split}, "
            f"{record['protocol']['words']}, step {record['step']:,})",
        ]
    )


def draw_confusion(path: str, table: np.ndarray, names: Sequence[str], *, title: str = "") -> None:
    """Writes a picture of a table of counts: each row's shares.

    Args:
      path: of the PNG file.
      table: int64 [C, C], rows truth, columns prediction.
      names: of the classes.
      title: above it.
    """
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.full(table.shape, np.nan), where=totals > 0)
    count = len(names)
    side = min(4 + 0.45 * count, 24)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 9 if count <= _MOST_NUMBERS else 4
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=f"Shares of a true class's pixels {title}")
    if count <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.005), strict=True):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share > 0.5 else "black",
            )
    figure.colorbar(image, ax=axes, shrink=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    records.write_whole(path, buffer.getvalue())
