"""Class names on their way from folders to a data set, to a run, and back."""

import numpy as np
import pytest
from PIL import Image
from test_prepare import PNG, pack_tree, read, write_tree

from hamgan import data, pictures
from hamgan.evaluation import markup
from hamgan.run import class_names

KEPT = [
    "a\tb",
    "a b",
    "ünï",
    "u\u0308",
    "日本",
    "$x$",
    "<b>",
    "'q\"",
    '"q"',
    "\\n",
    "a,b",
    "%s",
    "{0}",
]
LOST = [" lead", "trail ", "tab\t", "line\nbreak", "cr\rx", "\u2028x", "\u00a0nb"]


@pytest.mark.parametrize("name", KEPT)
def test_a_name_survives(tmp_path, name):
    tree = write_tree(tmp_path / "tree", {f"{name}/0.png": PNG, "other/0.png": PNG})
    folder, _ = pack_tree(tree, tmp_path / "data")
    expected = sorted([name, "other"])
    assert read(folder)[2].names == expected
    dataset = data.ImageDataset(
        name="made_8",
        image_size=8,
        num_classes=2,
        reference_split="train",
        data_dir=str(tmp_path / "data"),
    )
    assert dataset.class_names == expected
    assert pack_tree(tree, tmp_path / "data") == (folder, False)  # the same classes as before
    class_names.write(str(tmp_path / "run"), dataset.class_names)
    assert class_names.read(str(tmp_path / "run"), 2) == expected
    grid = tmp_path / "grid.png"
    pictures.save_grid(str(grid), np.zeros([2, 8, 8, 3]), columns=1, row_labels=expected)
    assert Image.open(grid).width > 64 + 16  # its label stands beside it
    assert "<b>" not in markup.escape(name)


@pytest.mark.parametrize("name", LOST)
def test_a_name_that_would_be_lost_is_refused(tmp_path, name):
    tree = write_tree(tmp_path / "tree", {f"{name}/0.png": PNG, "other/0.png": PNG})
    with pytest.raises(ValueError, match="class folder's name must be one line") as error:
        pack_tree(tree, tmp_path / "data")
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("names", [["line\nbreak", "b"], ['"quoted"', "b"], ["", " b "]])
def test_a_run_keeps_names_that_no_folder_has(tmp_path, names):
    class_names.write(str(tmp_path), names)
    assert class_names.read(str(tmp_path), 2) == names


def test_a_damaged_list_of_names_counts_as_none(tmp_path):
    class_names.write(str(tmp_path), ["a", "b", "c"])
    assert class_names.read(str(tmp_path), 4) == ["0", "1", "2", "3"]


def test_quoted_names_of_earlier_runs_are_read_as_they_stand(tmp_path):
    (tmp_path / "classes.txt").write_text('"half\nb')
    assert class_names.read(str(tmp_path), 2) == ['"half', "b"]
