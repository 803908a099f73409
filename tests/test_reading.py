"""What can only be read is enough for reading: data folders and runs of another user."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made import MadeDataset

from data_prep import digits, digits_features
from hamgan.evaluation import manifold, metrics, protocol, reference, scores, uncertainty
from hamgan.run import records

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "WIDTH = 1",
    "trainer.Trainer.batch_size = 8",
    "trainer.Trainer.ema_decay = None",
    "protocol.Protocol.weights = 'raw'",
    "loop.Schedule.num_steps = 2",
    "loop.Schedule.steps_per_loop = 2",
    "loop.Schedule.evaluate_every = 2",
    "protocol.Protocol.num_samples = 20",
    "protocol.Protocol.scores = (@scores.standard,)",
]


# Root isn't kept from anything by a file's mode, unless it gives up the right to pass it over.
_KEPT_OUT = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all".split()


@pytest.fixture
def readable(tmp_path):
    """(function that makes a folder read-only, function that runs a script as one whom that keeps
    from writing).
    """
    closed, kept_out = [], []
    if not os.geteuid():
        if not shutil.which("setpriv"):
            pytest.skip("root can write anywhere, and there is no setpriv")
        kept_out = _KEPT_OUT

    def close(folder):
        for path in [folder, *pathlib.Path(folder).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
            closed.append(path)

    def run(script, *arguments, ends=0):
        result = subprocess.run(
            [*kept_out, sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert result.returncode == ends, result.stdout + result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        return result.stdout + result.stderr

    yield close, run
    for path in closed:
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.slow
def test_a_run_on_data_that_can_only_be_read(tmp_path, readable):
    close, run = readable
    data_dir, runs = tmp_path / "data", tmp_path / "runs"
    digits.prepare(str(data_dir))
    digits_features.build(str(data_dir))
    runs.mkdir()
    close(data_dir)
    flags = [f"--model_dir={runs}/run", f"--data_dir={data_dir}", "--accelerator=cpu"]
    params = [f"--gin_param={param}" for param in TINY]

    told = run("train", "--gin_file=configs/digits.gin", *flags, *params)
    assert f"{data_dir} can't be written to: the features of its real images are kept in" in told
    assert not (data_dir / "reference_features").exists()
    found = records.read(str(runs / "run" / "metrics.jsonl"))
    evaluations = [record for record in found if record["kind"] == "evaluation"]
    fid = f"{evaluations[-1]['fid']:.2f}"

    told = run("doctor", "--quick", "--seconds=0", *flags)
    assert f"warn  data_dir: {data_dir} can't be written to" in told

    # Another user's run.
    close(runs / "run")
    told = run("evaluate", *flags)
    assert f"{runs}/run can't be written to: the numbers are printed here" in told
    assert fid in told
    run("sample", *flags, f"--output={runs}/x.png")
    assert (runs / "x.png").exists()
    told = run("sample", *flags, ends=1)
    assert "can't be written to: choose another --output" in told


def test_whether_a_folder_can_be_written_is_tried(tmp_path):
    assert records.can_write(tmp_path / "new") and list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    assert not records.can_write(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "images, settings, told",
    [
        (1, {}, "at least 2 real images, and split 'train' of made has 1"),
        (5, {"scores": (scores.standard, scores.quality_and_variety)}, "at least 6 real images"),
        (4, {"reference_count": 5}, "reference_count is 5, but split 'train' of made has 4"),
        (
            9,
            {"scores": (scores.standard, scores.infinity), "num_samples": 15},
            "num_samples must be at least 16",
        ),
    ],
)
def test_too_few_images_are_told(images, settings, told):
    with pytest.raises(ValueError, match=told):
        reference.check_counts(
            MadeDataset(count=images), protocol.Protocol(**{"num_samples": 20, **settings})
        )


def test_enough_images_are_enough():
    settings = dict(scores=(scores.standard, scores.quality_and_variety, scores.infinity))
    found = reference.check_counts(
        MadeDataset(count=6), protocol.Protocol(num_samples=16, **settings)
    )
    assert found == ("train", 6)


def test_what_the_scores_need_is_what_they_need():
    features = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    factor = metrics.frechet_factor(metrics.Moments.from_features(features))
    assert scores.least([scores.quality_and_variety]) == (6, 6)
    manifold.manifold_scores(features[:6], features[:6])
    with pytest.raises(ValueError, match="density_neighbors"):
        manifold.manifold_scores(features[:5], features[:6])
    assert scores.least([scores.infinity])[1] == 16
    uncertainty.frechet_infinity(factor, features)
    with pytest.raises(ValueError, match="enough rows"):
        uncertainty.frechet_infinity(factor, features[:15])


def test_features_are_kept_where_they_can_be(tmp_path, capfd):
    wanted = {"dataset": "made", "split": "train", "count": 2}
    good, bad = str(tmp_path / "good"), str(tmp_path / "file" / "bad")
    (tmp_path / "file").write_text("in the way")
    assert reference._place_to_write([good, bad], wanted) == reference.folder_of(good, wanted)
    assert capfd.readouterr().err == ""
    assert reference._place_to_write([bad, good], wanted) == reference.folder_of(good, wanted)
    assert f"{bad} can't be written to" in capfd.readouterr().err
    assert reference._place_to_write([bad], wanted) is None
    assert "memory" in capfd.readouterr().err
    shutil.rmtree(good)
