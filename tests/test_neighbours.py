"""Nearest neighbours against scikit-learn, and a check of memorisation that finds what was
memorised.
"""

import json

import made
import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from hamgan import pictures
from hamgan.evaluation import neighbours


def points(count, seed, width=5):
    return np.random.default_rng(seed).normal(size=[count, width]).astype(np.float32)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_nearest_are_scikit_learns(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    queries, keys = points(20, 0), points(50, 1)
    distances, indices = neighbours.nearest(queries, keys, k=3)
    expected = (
        NearestNeighbors(n_neighbors=3)
        .fit(keys.astype(np.float64))
        .kneighbors(queries.astype(np.float64))
    )
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_no_point_is_its_own_neighbour(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    keys = points(50, 1)
    distances, indices = neighbours.nearest(keys[:20], keys, k=2, exclude_self=True)
    expected = NearestNeighbors(n_neighbors=2).fit(keys.astype(np.float64)).kneighbors()
    np.testing.assert_array_equal(indices, expected[1][:20])
    np.testing.assert_allclose(distances, expected[0][:20], rtol=1e-12)


def test_a_copy_far_from_the_origin_has_the_distance_zero():
    keys = points(50, 1) + 1e4
    distances, indices = neighbours.nearest(keys[:5], keys)
    np.testing.assert_array_equal(indices[:, 0], range(5))
    np.testing.assert_array_equal(distances, 0)


def test_fresh_samples_are_as_far_from_the_training_set_as_held_out_images():
    result = neighbours.memorisation(points(2000, 0), points(3000, 1), points(2000, 2))
    assert result["distance_ratio"] == pytest.approx(1, abs=0.05)
    assert result["closer_than_real"] == pytest.approx(0.01, abs=0.008)
    assert (result["num_generated"], result["num_training"], result["num_real"]) == (
        2000,
        3000,
        2000,
    )


@pytest.mark.parametrize("held_out", [None, points(500, 2)], ids=["leave_one_out", "held_out"])
def test_memorised_samples_are_found(held_out):
    training = points(500, 1)
    copies = training[:300] + 0.01 * points(300, 3)
    result = neighbours.memorisation(copies, training, held_out)
    assert result["distance_ratio"] < 0.1
    assert result["closer_than_real"] > 0.9


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match=r"got \[4, 5\] and \[4, 6\]"):
        neighbours.nearest(points(4, 0), points(4, 0, width=6))
    with pytest.raises(ValueError, match=r"between 1 and the number of keys \(3\), got 4"):
        neighbours.nearest(points(4, 0), points(4, 0), k=4, exclude_self=True)


def test_picture_shows_samples_beside_their_nearest_training_images(tmp_path):
    dataset = made.MadeDataset(image_size=8, count=300)
    training = points(300, 1)
    images = np.random.default_rng(5).uniform(-1, 1, [4, 8, 8, 3]).astype(np.float32)
    nearest = [290, 3, 17]
    generated = training[[*nearest, 40]]
    result = neighbours.write(
        tmp_path,
        step=12,
        images=images,
        generated=generated,
        training=training,
        dataset=dataset,
        split="train",
        rows=3,
        columns=2,
    )
    record = json.loads((tmp_path / "neighbours" / "step-00000012.json").read_text())
    assert record["step"] == 12 and record["distance_ratio"] == result["distance_ratio"] == 0
    assert [row[0] for row in record["shown"]["indices"]] == nearest
    others = [row[1] for row in record["shown"]["indices"]]
    table = [
        x
        for i, (a, b) in enumerate(zip(nearest, others, strict=True))
        for x in (images[i], *dataset.images[[a, b]])
    ]
    pictures.save_grid(tmp_path / "expected.png", np.stack(table), columns=3)
    np.testing.assert_array_equal(
        Image.open(tmp_path / "neighbours" / "step-00000012.png"),
        Image.open(tmp_path / "expected.png"),
    )
