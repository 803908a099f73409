import json

import made
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hamgan import checkpoints, loop, records
from hamgan.evaluation import report
from hamgan.loop import Schedule


class CountingEvaluator:
    """Stands where an Evaluator does and notes what it was asked to score."""

    def __init__(self):
        self.calls = []

    def evaluate(self, *, checkpoint, step):
        assert tf.io.gfile.exists(checkpoint + ".index")
        self.calls.append((checkpoint.rsplit("/", 1)[1], step))
        return {"kind": "evaluation", "step": step, "checkpoint": checkpoint, "fid": 100.0 - step}


def schedule(**kwargs):
    return Schedule(
        **{
            **dict(num_steps=6, steps_per_loop=2, save_every=4, sample_every=3, evaluate_every=4, max_to_keep=None),
            **kwargs,
        }
    )


def run(model_dir, *, evaluator=None, trainer=None, **kwargs):
    return loop.train(
        trainer=trainer or made.small_trainer(),
        dataset=made.MadeDataset(),
        schedule=schedule(**kwargs),
        model_dir=str(model_dir),
        evaluator=evaluator,
        progress=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("run")
    evaluator = CountingEvaluator()
    return model_dir, run(model_dir, evaluator=evaluator), evaluator


def test_does_everything_when_it_is_due(finished):
    model_dir, path, evaluator = finished
    assert path == str(model_dir / "checkpoints" / "ckpt-6")
    assert checkpoints.available(str(model_dir)) == ["ckpt-0", "ckpt-4", "ckpt-6"]
    assert evaluator.calls == [("ckpt-0", 0), ("ckpt-4", 4), ("ckpt-6", 6)]
    assert sorted(p.name for p in (model_dir / "samples").iterdir()) == [f"step-{step:08d}.png" for step in (0, 3, 6)]
    train = records.read(model_dir / "metrics.jsonl", kind="train")
    assert [r["step"] for r in train] == [2, 3, 4, 6]
    assert all(r["images_per_second"] > 0 and np.isfinite(r["loss/discriminator"]) for r in train)


def test_pictures_have_a_row_for_each_class(finished):
    model_dir, *_ = finished
    for name in ("samples.png", "real.png"):
        width, height = Image.open(model_dir / name).size
        assert width > height * 2, name  # ten columns, three classes


def test_tensorboard_has_the_same_numbers(finished):
    model_dir, *_ = finished
    scalars = {}
    for path in model_dir.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                scalars[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    for record in records.read(model_dir / "metrics.jsonl", kind="train"):
        assert scalars["loss/generator", record["step"]] == pytest.approx(record["loss/generator"], rel=1e-6)
    assert scalars["evaluation/fid", 6] == 94.0


def test_goes_on_from_the_newest_checkpoint_and_ends_as_one_run(finished, tmp_path):
    whole_dir, *_ = finished
    run(tmp_path, num_steps=4)
    evaluator = CountingEvaluator()
    trainer = made.small_trainer()
    run(tmp_path, trainer=trainer, evaluator=evaluator)
    # Step 4 was saved without its evaluation: it is made up for.
    assert evaluator.calls == [("ckpt-4", 4), ("ckpt-6", 6)]
    whole = made.small_trainer()
    checkpoints.restore(checkpoints.find(str(whole_dir)), whole.variables())
    expected = made.values(whole)
    for name, value in made.values(trainer).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    events = records.read(tmp_path / "metrics.jsonl", kind="event")
    assert [(e["event"], e["step"]) for e in events] == [("resumed", 4)]


def test_finished_run_stays_as_it_is(finished):
    model_dir, path, _ = finished
    evaluator = CountingEvaluator()
    assert run(model_dir, evaluator=evaluator) == path
    assert evaluator.calls == []


def test_non_finite_loss_stops_the_run_and_names_the_step(tmp_path):
    run(tmp_path, num_steps=4)
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())

    class Poisoned(made.MadeDataset):
        def train_batches(self, **kwargs):
            return super().train_batches(**kwargs).map(lambda b: {**b, "image": b["image"] * np.nan})

    with pytest.raises(
        FloatingPointError, match=r"wasn't finite at step 5 \(steps 5 to 6.*last good checkpoint is .*ckpt-4"
    ):
        loop.train(
            trainer=made.small_trainer(),
            dataset=Poisoned(),
            schedule=schedule(),
            model_dir=str(tmp_path),
            progress=False,
        )
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "non-finite loss" and events[-1]["step"] == 5


def test_schedule_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="steps_per_loop must be at least 1, got 0"):
        Schedule(steps_per_loop=0)


def test_host_calls_end_where_something_is_due():
    s = Schedule(num_steps=10, steps_per_loop=4, save_every=6, sample_every=100, evaluate_every=9)
    step, ends = 0, []
    while step < 10:
        step += s.steps_until_due(step)
        ends.append(step)
    assert ends == [4, 6, 8, 9, 10]


def test_class_names_are_kept_with_the_run(tmp_path):
    assert loop.read_class_names(str(tmp_path), 2) == ["0", "1"]
    loop.write_class_names(str(tmp_path), ["tench", "goldfish, Carassius"])
    assert loop.read_class_names(str(tmp_path), 2) == ["tench", "goldfish, Carassius"]


def test_grid_shows_ten_classes_spread_over_all():
    assert loop.grid_classes(3).tolist() == [0, 1, 2]
    assert loop.grid_classes(1000).tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


def test_remote_folder_does_as_well_as_a_local_one():
    # ram:// is a file system that only tf.io.gfile knows, as gs:// is.
    model_dir = "ram://hamgan-test/run"
    run(model_dir, num_steps=2, save_every=2)
    assert run(model_dir, num_steps=4, save_every=2) == f"{model_dir}/checkpoints/ckpt-4"
    assert checkpoints.available(model_dir) == ["ckpt-0", "ckpt-2", "ckpt-4"]
    assert [r["step"] for r in records.read(f"{model_dir}/metrics.jsonl", kind="train")] == [2, 3, 4]
    assert tf.io.gfile.exists(f"{model_dir}/samples.png")
    assert report.write_report(model_dir) == f"{model_dir}/report.html"
