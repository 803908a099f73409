import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hamgan import tfgan
from hamgan.benchmarks import fid
from hamgan.evaluation import metrics

ROOT = pathlib.Path(__file__).parent.parent


def test_distance_from_moments_is_tf_gan_s_from_activations():
    real, fake = (np.random.default_rng(seed).normal(1 + seed, 1, size=(50, 12)) for seed in (0, 1))
    expected = tfgan.frechet_classifier_distance_from_activations(real, fake).numpy()
    first, second = (metrics.Moments.from_features(x) for x in (real, fake))
    np.testing.assert_allclose(fid.tf_gan_distance(first, second), expected, rtol=1e-9)


def test_three_ways_to_one_distance():
    result = fid.measure_fid(width=24, num_samples=100, repeats=3, progress=False)
    ours, cached, oracle = result["rows"]
    assert ours["fid"] == cached["fid"] > 0
    np.testing.assert_allclose(ours["fid"], oracle["fid"], rtol=1e-6)
    assert ours["relative_difference"] == abs(ours["fid"] - oracle["fid"]) / oracle["fid"]
    assert oracle["relative_difference"] == 0 and oracle["times_faster"] == 1
    assert [len(row["all_seconds"]) for row in result["rows"]] == [3, 3, 1]
    assert all(
        row["seconds"] == sorted(row["all_seconds"])[len(row["all_seconds"]) // 2]
        for row in result["rows"]
    )
    assert json.loads(json.dumps(result)) == result
    lines = fid.fid_table(result).splitlines()
    for row, line in zip(result["rows"], lines[2:], strict=True):
        assert (
            line.startswith(row["title"])
            and f"{row['fid']:.12g}" in line
            and f"{row['seconds']:.2f} s" in line
        )


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"width": 1}, "width must be at least 2, got 1"),
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        fid.measure_fid(**{"width": 8, **sizes}, progress=False)


@pytest.mark.slow
def test_script_prints_both_side_by_side(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark.py"),
        "fid",
        "--width=64",
        "--repeats=2",
    ]
    result = subprocess.run(
        [*command, f"--output={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for title in (
        "ours  ",
        "ours, cached reference factor  ",
        "TF-GAN's own  ",
        "FID from moments of 64 features",
    ):
        assert f"\n{title}" in result.stdout
    assert json.loads((tmp_path / "fid.json").read_text())["width"] == 64
