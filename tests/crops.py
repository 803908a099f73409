"""A few hundred crops of photographs that well-known packages ship, a folder for each class."""

import pathlib

import numpy as np
from matplotlib import cbook
from PIL import Image
from sklearn import datasets


def photographs():
    """{class: photograph, uint8 [H, W, 3]}: scikit-learn's two, and one of Matplotlib's."""
    temple, flower = datasets.load_sample_images().images
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = np.asarray(Image.open(file).convert("RGB"))
    return {"flower": flower, "portrait": portrait, "temple": temple}


def write(folder, *, per_class=100, side=128, seed=0):
    """Writes folder/CLASS/NUMBER.png: squares of one to two times `side`, brought to `side`."""
    rng = np.random.default_rng(seed)
    for name, photograph in photographs().items():
        into = pathlib.Path(folder) / name
        into.mkdir(parents=True)
        for number in range(per_class):
            size = int(rng.integers(side, 2 * side + 1))
            top, left = (int(rng.integers(0, n - size + 1)) for n in photograph.shape[:2])
            crop = Image.fromarray(photograph[top : top + size, left : left + size])
            crop.resize((side, side), Image.Resampling.LANCZOS).save(into / f"{number:03d}.png")
