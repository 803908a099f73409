"""The commands of segmentation as a user runs them, and what they refuse."""

import json
import pathlib
import sys
import tarfile

import forked
import numpy as np
import pytest
from PIL import Image

from data_prep import segment_digits
from hamgan.cli import segment_predict
from hamgan.evaluation import report
from hamgan.run import records
from hamgan.run.folder import Folder
from hamgan.segmentation import evaluation

ROOT = pathlib.Path(__file__).parent.parent
PARAMS = {
    "NUM_STEPS": 4,
    "convnet.ConvNet.widths": (4, 4, 4, 4),
    "heads.HamNetHead.channels": 8,
    "heads.HamNetHead.align_channels": 4,
    "hamburger.HamburgerV2.rank": 2,
    "training.SegmentationTrainer.batch_size": 2,
    "loop.Schedule.steps_per_loop": 2,
    "loop.Schedule.save_every": 2,
}


def script(*words, fails=False):
    result = forked.run([sys.executable, *words])
    assert bool(result.returncode) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_train_evaluate_predict_inspect_and_second_stage(tmp_path):
    data = f"--data_dir={tmp_path / 'data'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_digits, "NUM_SCENES", {"train": 8, "validation": 3})
        segment_digits.prepare(str(tmp_path / "data"))
    run = f"--model_dir={tmp_path / 'run'}"
    params = [f"--gin_param={name} = {value!r}" for name, value in PARAMS.items()]
    gin_file = "--gin_file=configs/segmentation/digits.gin"
    segment = "scripts/segment.py"
    output = script(segment, "train", gin_file, run, data, *params)
    assert "ckpt-4" in output and "Report:" in output

    # Without gin files: the configuration is the run's.
    output = script(segment, "evaluate", run, data, f"--json={tmp_path / 'one.json'}")
    assert "1 with a 0" in output and "mIoU" in output
    record = json.loads((tmp_path / "one.json").read_text())
    folder = Folder(str(tmp_path / "run"))
    kept = records.read(folder.metrics, "evaluation")[-1]
    assert kept["class_iou"] == record["class_iou"] and kept["step"] == 4
    assert 0 <= record["mean_iou"] <= 1
    page = pathlib.Path(folder.report).read_text()
    assert "1 with a 0" in page and "mIoU" in page and "Discriminator" not in page

    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50, 3)), ("b.jpg", (33, 61, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(photos / name)
    found = tmp_path / "found"
    tar = tmp_path / "voc.tar"
    options = [f"--images={photos}", f"--output={found}", f"--submission={tar}", "--multi_scale"]
    script(segment, "predict", run, *options)
    with Image.open(found / "b.png") as image:
        assert image.mode == "P" and image.size == (61, 33)
        assert np.asarray(image).max() < len(segment_digits.CLASSES)
    assert Image.open(found / "overlays" / "a.png").size == (50, 40)
    with tarfile.open(tar) as archive:
        assert len(archive.getnames()) == 2

    script("scripts/inspect_ham.py", run, data, "--network=segmentation", "--batch_size=2")
    inspected = json.loads(next((tmp_path / "run" / "inspection").rglob("*.json")).read_text())
    assert inspected["module"] == "HamburgerV2" and inspected["images"] == "training"

    second = f"--model_dir={tmp_path / 'second'}"
    weights = f"--weights={tmp_path / 'run'}"
    output = script(segment, "train", gin_file, second, data, weights, *params)
    assert "variables from" in output
    events = records.read(Folder(str(tmp_path / "second")).metrics, "event")
    assert events[0]["event"] == "started from weights" and "ckpt-4" in events[0]["weights"]
    output = script(segment, "train", second, data, weights)
    assert "--weights is left aside" in output


def test_prediction_goes_on_past_damaged_images_and_turns_others(tmp_path):
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(np.zeros([20, 30, 3], np.uint8)).save(tmp_path / "a.jpg", exif=turned)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    Image.fromarray(np.zeros([8, 9], np.uint8)).save(tmp_path / "c.png")
    images = segment_predict.find_images([str(tmp_path)])
    made = segment_predict.predictions(
        lambda image, number: np.full(image.shape[:2], number, np.uint8),
        images,
        str(tmp_path / "found"),
        opacity=0.5,
    )
    shapes = {}
    with pytest.raises(ValueError, match=r"(?s)1 of 3 images can't be read.*b\.jpg"):
        for name, indices in made:
            shapes[name] = indices.shape
    assert shapes == {"a": (30, 20), "c": (8, 9)}
    with Image.open(tmp_path / "found" / "c.png") as image:
        assert np.asarray(image).min() == 2
    assert (tmp_path / "found" / "overlays" / "a.png").exists()


def test_images_are_found_by_name(tmp_path):
    for name in ("b.jpg", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = segment_predict.find_images([str(tmp_path)])
    assert list(found) == ["a", "b"]
    assert list(segment_predict.find_images([str(tmp_path)], ["b"])) == ["b"]
    with pytest.raises(ValueError, match="aren't in --images, the first of them c"):
        segment_predict.find_images([str(tmp_path)], ["b", "c"])
    with pytest.raises(ValueError, match="There is no --images=.*gone"):
        segment_predict.find_images([str(tmp_path / "gone")])
    with pytest.raises(ValueError, match="--images must name an image or a folder"):
        segment_predict.find_images([])
    with pytest.raises(ValueError, match="Two images are called a"):
        segment_predict.find_images([str(tmp_path), str(tmp_path / "a.png")])
    with pytest.raises(ValueError, match="a.png can't be read as an image"):
        segment_predict.read(str(tmp_path / "a.png"))


def test_predictions_replace_no_image(tmp_path):
    images = {"a": str(tmp_path / "a.png"), "b": str(tmp_path / "b.jpg")}
    with pytest.raises(ValueError, match="a.png would be replaced"):
        segment_predict.check_output(images, f"{tmp_path}/.")
    deeper = {"c": str(tmp_path / "overlays" / "c.png")}
    with pytest.raises(ValueError, match="c.png would be replaced"):
        segment_predict.check_output(deeper, str(tmp_path))
    segment_predict.check_output(images, str(tmp_path / "predicted"))
    segment_predict.check_output({"b": images["b"]}, str(tmp_path))


def test_report_of_a_segmentation(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    train = {"kind": "train", "step": 10, "loss/network": 0.5, "images_per_second": 3.0}
    records.append(path, train)
    protocol = evaluation.describe(evaluation.HamNetTest(), multi_scale=False)
    for step, iou in ((0, 0.125), (10, 0.75), (20, 0.5)):
        record = {
            "kind": "evaluation",
            "step": step,
            "protocol": protocol,
            "mean_iou": iou,
            "class_iou": {"sky <1>": iou},
            "class_accuracy": {"sky <1>": None},
        }
        records.append(path, record)
    page = pathlib.Path(report.write_report(str(tmp_path))).read_text()
    assert "mIoU, best" in page and "0.75" in page
    assert "sky &lt;1&gt;" in page and "50.00" in page
    assert "scripts/segment.py evaluate" in page and "scripts/sample.py" not in page
