"""Recordings of the published segmentation systems, from the folder SEGMENTATION_GOLDEN."""

import os
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(
    os.environ.get("SEGMENTATION_GOLDEN", pathlib.Path(__file__).parent / "golden" / "segmentation")
)


def load(name):
    """{key: array} of a recording; the test is skipped where the folder has none."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no recording {path}")
    with np.load(path) as file:
        return dict(file)


def channels_last(x):
    """[B, C, H, W] -> [B, H, W, C]"""
    return np.moveaxis(x, 1, -1)
