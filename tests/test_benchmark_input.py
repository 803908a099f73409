import itertools
import json
import pathlib
import subprocess
import sys

import benchmark_jobs
import numpy as np
import pytest
from PIL import Image

from hamgan.benchmarks import input as feeding
from hamgan.benchmarks import input_report, measure
from hamgan.cli import benchmark_parts

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return feeding.make_photographs(str(tmp_path_factory.mktemp("made")), count=12, progress=False)


def by_brightness(images, labels):
    """A batch sorted by something that tells its images apart."""
    order = np.argsort(images.mean(axis=(1, 2, 3)))
    return images[order], labels[order]


def test_photographs_have_the_size_and_the_entropy_of_photographs(made):
    images = list(feeding.photographs(4))
    assert all(image.shape == (375, 500, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 4
    # ImageNet's mean is about 110 KB.
    assert 90e3 < made["bytes"] < 130e3
    # Neighbours are alike, as noise alone wouldn't be.
    grey = np.stack(images).astype(float).mean(axis=3)
    assert np.corrcoef(grey[:, :, :-1].ravel(), grey[:, :, 1:].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", [name for name in feeding.ARRANGEMENTS if "host" not in name])
def test_every_arrangement_feeds_the_same_images(made, name, monkeypatch):
    monkeypatch.setattr(feeding, "SHUFFLE_BUFFER", 1)
    arrangement = feeding.ARRANGEMENTS[name]
    (expected,) = feeding._image_dataset(made["jpeg"]).reference_batches(
        batch_size=12, split="train"
    )
    (batch,) = arrangement.batches(made[arrangement.source], 12).take(1)
    images, labels = by_brightness(batch["image"].numpy(), batch["label"].numpy())
    expected, expected_labels = by_brightness(expected["image"].numpy(), expected["label"].numpy())
    np.testing.assert_array_equal(labels, expected_labels)
    if "flip" in name:
        images = np.stack(
            [
                min(x, x[:, ::-1], key=lambda y, z=z: np.abs(y - z).sum())
                for x, z in zip(images, expected, strict=True)
            ]
        )
    if name == "jpeg_inexact":
        assert np.corrcoef(images.ravel(), expected.ravel())[0, 1] > 0.95
    else:
        # Half a grey level where it was packed. At the border crop_and_resize may take pixels for
        # outside.
        np.testing.assert_allclose(
            images[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1.01 / 255
        )


def test_hosts_have_their_own_images(made):
    batches = feeding.ARRANGEMENTS["packed_host"].batches(made["packed"], 1)
    labels = [int(batch["label"][0]) for batch in itertools.islice(batches, 3)]
    whole = feeding._image_dataset(made["packed"]).train_batches(batch_size=1, seed=0)
    assert labels == [int(batch["label"][0]) for batch in itertools.islice(whole, 0, 24, 8)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small benchmark of everything, in this process; what it prints, its JSON, its picture."""
    folder = tmp_path_factory.mktemp("benchmark")
    lines = []
    patch = pytest.MonkeyPatch()
    patch.setattr("builtins.print", lambda text, **kwargs: lines.append(text))
    patch.setattr(feeding, "SHUFFLE_BUFFER", 8)
    patch.setattr(
        feeding,
        "ARRANGEMENTS",
        {name: feeding.ARRANGEMENTS[name] for name in ("plain", "jpeg", "packed", "packed_flip")},
    )
    benchmark_parts.benchmark_input(
        images=10,
        batch_size=2,
        repeats=2,
        seconds=0.01,
        output=str(folder),
        run=benchmark_jobs.in_process,
    )
    patch.undo()
    return "\n".join(lines), json.loads((folder / "input.json").read_text()), folder / "input.png"


def test_ratios_are_to_the_plain_arrangement(measured):
    _, result, picture = measured
    assert [row["name"] for row in result["rows"]] == ["plain", "jpeg", "packed", "packed_flip"]
    plain = result["rows"][0]
    for row in result["rows"]:
        assert (
            len(row["rates"]) == 2
            and min(row["rates"]) <= row["rate"] <= max(row["rates"])
            and row["first"] > 0
        )
        assert row["rate_ratio"] == row["rate"] / plain["rate"]
    assert Image.open(picture).size[0] > 1000


def test_terminal_has_goals_and_how_images_were_made(measured):
    text, result, _ = measured
    assert "10 JPEGs of 500x375" in text and feeding.HOW_MADE in text
    (line,) = [line for line in text.splitlines() if line.startswith("packed squares  ")]
    assert f"{result['rows'][2]['rate_ratio']:.2f}x (goal 25x: " in line
    assert all(f"\n{name} " in text for name in input_report.SLICES)
    assert "An estimate" in text and "1.77 GB an image" in text and "141 GFLOP an image" in text


def test_goals_are_compared_on_the_right_side():
    common = dict(rates=[1.0], first=1.0, rate=1.0, core_rate=1.0, memory=5e6)
    rows = [
        {"name": "jpeg", "title": "a", "rate_ratio": 1.5, "memory_ratio": 0.5, **common},
        {"name": "packed", "title": "b", "rate_ratio": 24.0, "memory_ratio": 0.05, **common},
        {"name": "plain", "title": "c", "error": "out of memory"},
    ]
    jpeg, packed, plain = input_report.feed_table(rows).splitlines()[2:5]
    assert "1.50x (goal 1x: reached)" in jpeg and "0.500x (goal 0.1x: missed)" in jpeg
    assert "24.00x (goal 25x: missed)" in packed and "0.050x (goal 0.1x: reached)" in packed
    assert "not measured: out of memory" in plain


def test_demand_by_hand():
    # 4 chips of 900 GB/s, 28.3 GB for 16 images; 123 TFLOP/s, 2253 GFLOP for 16 images.
    estimate = input_report.demand(input_report.SLICES["v3-8"])
    assert estimate["memory"] == pytest.approx(3600 / 28.3 * 16)
    assert estimate["arithmetic"] == pytest.approx(492_000 / 2253 * 16)
    table = input_report.demand_table([{"name": "jpeg", "rate": 1000.0, "core_rate": 500.0}])
    (line,) = [line for line in table.splitlines() if line.startswith("v3-8")]
    assert line.split() == ["v3-8", "2,035", "8.0", "2.0", "3,494", "4.1-7.0", "96"]


def test_one_arrangement_that_fails_leaves_the_others(monkeypatch):
    def run(job, arguments):
        if arguments["arrangement"] == "jpeg":
            raise measure.ChildError("out of memory")
        yield {"first": 1.0, "rates": [2.0, 4.0, 9.0], "core_rate": 3.0, "memory": None}

    monkeypatch.setattr(
        feeding, "make_photographs", lambda *args, **kwargs: {"jpeg": "", "packed": "", "bytes": 1}
    )
    result = feeding.measure_arrangements(
        count=1, batch_size=1, repeats=3, names=["plain", "jpeg", "packed"], run=run, progress=False
    )
    plain, jpeg, packed = result["rows"]
    assert plain["rate"] == 4 and packed["rate_ratio"] == 1 and "memory_ratio" not in packed
    assert jpeg["error"] == "out of memory"


def test_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no measured rows"):
        input_report.draw({"rows": [{"title": "a", "error": "b"}]}, str(tmp_path / "a.png"))


@pytest.mark.slow
def test_script_measures_feeding_in_processes_of_their_own(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark.py"),
        "input",
        "--images=50",
        "--batch_size=8",
    ]
    command += ["--repeats=1", f"--output={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "input.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(feeding.ARRANGEMENTS)
    assert [row for row in rows if "error" in row] == []
    assert all(row["rate"] > 0 and row["memory"] > 0 for row in rows)
