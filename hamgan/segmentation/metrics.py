"""Scores of segmentations from one table of counts: NumPy, no TensorFlow.

The table has a row for each true class and a column for each predicted one. HamNet's scores and
MMSegmentation's are the same functions of it.
"""

import dataclasses

import numpy as np


def confusion(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pixels of each class were predicted as each class.

    Args:
      true: integers of any shape; pixels that aren't in [0, num_classes), 255 among them, don't
        count.
      predicted: integers of the same shape in [0, num_classes).
      num_classes: C.

    Returns:
      int64 [C, C], rows truth, columns prediction; tables of several images are added.

    Raises:
      ValueError: shapes that differ, or a counted pixel whose prediction is no class.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.shape != predicted.shape:
        raise ValueError(
            f"true and predicted must have the same shape, got {true.shape} and {predicted.shape}."
        )
    counts = (true >= 0) & (true < num_classes)
    true, predicted = true[counts].astype(np.int64), predicted[counts].astype(np.int64)
    if predicted.size and not 0 <= predicted.min() <= predicted.max() < num_classes:
        raise ValueError(
            f"predicted must be in [0, {num_classes}), got {predicted.min()} to {predicted.max()}."
        )
    table = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return table.reshape(num_classes, num_classes)


def without_first_class(label: np.ndarray) -> np.ndarray:
    """ADE20K's stored labels as classes: 0 (other) becomes 255, others are one less; uint8."""
    label = np.asarray(label)
    return np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a table of counts amounts to; all between 0 and 1.

    Attributes:
      iou: float64 [C], intersection over union of each class; NaN where it is in neither truth nor
        prediction.
      accuracy: float64 [C], the share of each class's pixels that are right; NaN without pixels.
      pixel_accuracy: the share of all pixels that are right (pAcc, aAcc).
      mean_accuracy: over the classes with pixels (mAcc).
      weighted_iou: over classes by their share of the true pixels (fIoU).
      mean_iou: over the classes that are in truth or prediction (mIoU).
    """

    iou: np.ndarray
    accuracy: np.ndarray
    pixel_accuracy: float
    mean_accuracy: float
    weighted_iou: float
    mean_iou: float


def scores(table: np.ndarray) -> Scores:
    """Scores of counts [C, C], rows truth, columns prediction.

    Raises:
      ValueError: the table isn't square, or counts nothing.
    """
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"table must have the shape [C, C], got {list(table.shape)}.")
    total = table.sum()
    if total < 1:
        raise ValueError(f"table must count at least one pixel, got {total}.")
    right, of_class = np.diag(table).astype(np.float64), table.sum(axis=1)
    union = of_class + table.sum(axis=0) - right
    with np.errstate(invalid="ignore"):
        iou, accuracy = right / union, right / of_class
    present = of_class > 0
    return Scores(
        iou=iou,
        accuracy=accuracy,
        pixel_accuracy=float(right.sum() / total),
        mean_accuracy=float(np.nanmean(accuracy)),
        weighted_iou=float((of_class[present] / total * iou[present]).sum()),
        mean_iou=float(np.nanmean(iou)),
    )
