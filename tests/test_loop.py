import dataclasses
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref

import made
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator

from hamgan import grids, loop, watching
from hamgan.evaluation import report
from hamgan.loop import Schedule
from hamgan.run import checkpoints, class_names, contents, lock, records
from hamgan.run.folder import Folder
from hamgan.run.history import History
from hamgan.run.identity import Identity
from hamgan.run.log import Log


class CountingEvaluator:
    """Stands where an Evaluator does and notes what it was asked to score."""

    def __init__(self):
        self.calls = []

    def evaluate(self, *, checkpoint, step):
        assert tf.io.gfile.exists(checkpoint + ".index")
        self.calls.append((checkpoint.rsplit("/", 1)[1], step))
        return {"kind": "evaluation", "step": step, "checkpoint": checkpoint, "fid": 100.0 - step}


class Painter:
    """Stands where a generator does: every pixel is its weight and a little noise."""

    num_classes, latent_dim = made.NUM_CLASSES, 2

    def __init__(self):
        self.weight = tf.Variable(0.5)

    def __call__(self, z, labels, training=False, keys=None):
        noise = tf.reshape(tf.tanh(z[:, 0]), [-1, 1, 1, 1]) / 10
        return tf.tile(self.weight / 100 + noise, [1, made.IMAGE_SIZE, made.IMAGE_SIZE, 3])


class Pupil:
    """Stands where a Trainer does, and learns in no time: its one weight depends on all images,
    seeds and rollbacks.

    Args:
      after: function (pupil, metrics) called after each step; may change both.
    """

    batch_size, seed = 8, 3

    def __init__(self, after=lambda pupil, metrics: None):
        self.strategy = made.one_device()
        self.generator = Painter()
        self.step = tf.Variable(0, dtype=tf.int64)
        self.rollbacks = tf.Variable(0, dtype=tf.int64)
        self._after = after

    def variables(self):
        return {
            "step": self.step,
            "rollbacks": self.rollbacks,
            "generator/weight": self.generator.weight,
        }

    def gates(self):
        return {}

    def batches(self, dataset):
        return iter(dataset.train_batches(batch_size=8, seed=3, start_batch=int(self.step.numpy())))

    def train_steps(self, batches, num_steps):
        metrics = {
            "loss/discriminator": 1.0,
            "loss/generator": 0.0,
            "logits/real": 0.5,
            "logits/fake": -0.5,
        }
        metrics["first_bad_step"] = -1
        for _ in range(num_steps):
            drawn = np.random.default_rng(
                [3, int(self.step.numpy()), int(self.rollbacks.numpy())]
            ).normal()
            self.generator.weight.assign(
                0.9 * self.generator.weight + tf.reduce_mean(next(batches)["image"]) + drawn
            )
            self.step.assign_add(1)
            if metrics["first_bad_step"] < 0 and not np.isfinite(self.generator.weight.numpy()):
                metrics.update(first_bad_step=int(self.step.numpy()), first_bad="generator/weight")
            self._after(self, metrics)
        return metrics


def schedule(**kwargs):
    return Schedule(
        **{
            **dict(
                num_steps=6,
                steps_per_loop=2,
                save_every=4,
                sample_every=3,
                evaluate_every=4,
                max_to_keep=None,
            ),
            **kwargs,
        }
    )


def run(
    model_dir,
    *,
    evaluator=None,
    trainer=None,
    dataset=None,
    profile=None,
    progress=False,
    identity=None,
    **kwargs,
):
    """The last checkpoint; that of a run that a signal ended has an event that says so."""
    ended = loop.train(
        trainer=trainer or made.small_trainer(),
        dataset=dataset or made.MadeDataset(),
        schedule=schedule(**kwargs),
        model_dir=str(model_dir),
        evaluator=evaluator,
        progress=progress,
        profile=profile,
        identity=identity,
    )
    assert ended.stopped == ("stopped" in [event["event"] for event in events(model_dir)][-1:])
    return ended.checkpoint


def events(model_dir):
    path = f"{model_dir}/metrics.jsonl"
    return records.read(path, kind="event") if tf.io.gfile.exists(path) else []


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
    assert sorted(p.name for p in (model_dir / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (0, 3, 6)
    ]
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
        assert scalars["loss/generator", record["step"]] == pytest.approx(
            record["loss/generator"], rel=1e-6
        )
    assert scalars["evaluation/fid", 6] == 94.0


def test_tensorboard_shows_the_grids_and_the_configuration(tmp_path):
    (tmp_path / "config.gin").write_text("a.b = 1\n")
    run(tmp_path, num_steps=2, sample_every=1)
    shown = {}
    for path in (tmp_path / "tensorboard").glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                shown[value.tag, event.step] = tf.make_ndarray(value.tensor)
    width, height, png = shown["samples", 2]
    picture = Image.open(tmp_path / "samples" / "step-00000002.png")
    assert (int(width), int(height)) == picture.size
    np.testing.assert_array_equal(
        tf.io.decode_png(png, channels=3), np.asarray(picture.convert("RGB"))
    )
    assert "a.b = 1" in str(shown["configuration", 0])


def test_goes_on_from_the_newest_checkpoint_and_ends_as_one_run(finished, tmp_path):
    whole_dir, *_ = finished
    run(tmp_path, num_steps=4)
    evaluator = CountingEvaluator()
    trainer = made.small_trainer()
    run(tmp_path, trainer=trainer, evaluator=evaluator)
    # Step 4 was saved without its evaluation: it is made up for.
    assert evaluator.calls == [("ckpt-4", 4), ("ckpt-6", 6)]
    whole = made.small_trainer()
    contents.restore(checkpoints.find(str(whole_dir)), whole.variables())
    expected = made.values(whole)
    for name, value in made.values(trainer).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [("resumed", 4)]


def test_finished_run_stays_as_it_is(finished):
    model_dir, path, _ = finished
    evaluator = CountingEvaluator()
    assert run(model_dir, evaluator=evaluator) == path
    assert evaluator.calls == []


class Poisoned(made.MadeDataset):
    """Images that aren't numbers, all of them or those of one batch."""

    def __init__(self, only=None):
        super().__init__()
        self.only = only

    def train_batches(self, *, start_batch=0, **kwargs):
        def poison(number, batch):
            bad = True if self.only is None else number == self.only
            return {**batch, "image": tf.where(bad, np.float32(np.nan), batch["image"])}

        return (
            super()
            .train_batches(start_batch=start_batch, **kwargs)
            .enumerate(start_batch)
            .map(poison)
        )


def test_what_stays_non_finite_stops_the_run_and_names_the_step(tmp_path):
    run(tmp_path, trainer=Pupil(), num_steps=4)
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(
        FloatingPointError,
        match=(
            r"generator/weight wasn't finite at step 5 \(steps 5 to "
            r"6.*After 2 rollbacks .*last good .*ckpt-4"
        ),
    ):
        run(tmp_path, trainer=Pupil(), dataset=Poisoned(), max_rollbacks=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before
    found = events(tmp_path)
    assert [e["event"] for e in found] == ["resumed", "rolled back", "rolled back", "gave up"]
    assert {(e["step"], e["first_bad"]) for e in found[1:]} == {(5, "generator/weight")}
    assert [e.get("to") for e in found[1:]] == [4, 4, None]


def test_run_goes_back_and_on_with_other_random_numbers(tmp_path):
    trainer = made.small_trainer()
    train_steps = trainer.train_steps

    def poisoned_once(batches, num_steps):
        if int(trainer.step.numpy()) == 5 and int(trainer.rollbacks.numpy()) == 0:
            trainer.discriminator.dense.bias.assign([np.nan])
        return train_steps(batches, num_steps)

    trainer.train_steps = poisoned_once
    path = run(tmp_path, trainer=trainer, steps_per_loop=1)
    (event,) = events(tmp_path)
    assert (event["event"], event["step"], event["to"], event["rollbacks"]) == (
        "rolled back",
        6,
        4,
        1,
    )
    assert event["checkpoint"].endswith("ckpt-4") and event["first_bad"]
    assert contents.load(path)["rollbacks"] == 1
    losses = [
        r["loss/generator"]
        for r in records.read(tmp_path / "metrics.jsonl", kind="train")
        if r["step"] == 5
    ]
    assert len(losses) == 2 and losses[0] != losses[1]


def test_step_after_which_a_variable_is_not_finite_is_never_saved(tmp_path):
    def poison(pupil, metrics):
        if pupil.step == 4 and pupil.rollbacks == 0:
            pupil.generator.weight.assign(np.inf)

    run(tmp_path, trainer=Pupil(poison))
    (event,) = events(tmp_path)
    assert (event["event"], event["step"], event["to"], event["first_bad"]) == (
        "rolled back",
        4,
        0,
        "generator/weight",
    )
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-4", "ckpt-6"]


def test_schedule_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="steps_per_loop must be at least 1, got 0"):
        Schedule(steps_per_loop=0)
    with pytest.raises(ValueError, match="max_rollbacks must be at least 0, got -1"):
        Schedule(max_rollbacks=-1)
    with pytest.raises(ValueError, match="evaluate_every must be at least 1, got None"):
        Schedule(evaluate_every=None)


def test_host_calls_end_where_something_is_due():
    s = Schedule(num_steps=10, steps_per_loop=4, save_every=6, sample_every=100, evaluate_every=9)
    step, ends = 0, []
    while step < 10:
        step += s.steps_until_due(step)
        ends.append(step)
    assert ends == [4, 6, 8, 9, 10]
    assert s.steps_until_due(0, ends=(0, 3)) == 3 and s.steps_until_due(3, ends=(0, 3)) == 1


def test_class_names_are_kept_with_the_run(tmp_path):
    assert class_names.read(str(tmp_path), 2) == ["0", "1"]
    class_names.write(str(tmp_path), ["tench", "goldfish, Carassius"])
    assert class_names.read(str(tmp_path), 2) == ["tench", "goldfish, Carassius"]


def test_grid_shows_ten_classes_spread_over_all():
    assert grids.grid_classes(3).tolist() == [0, 1, 2]
    assert grids.grid_classes(1000).tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


def test_remote_folder_does_as_well_as_a_local_one():
    # ram:// is a file system that only tf.io.gfile knows, as gs:// is.
    model_dir = "ram://hamgan-test/run"
    run(model_dir, trainer=Pupil(), num_steps=2, save_every=2)
    assert (
        run(model_dir, trainer=Pupil(), num_steps=4, save_every=2)
        == f"{model_dir}/checkpoints/ckpt-4"
    )
    assert checkpoints.available(model_dir) == ["ckpt-0", "ckpt-2", "ckpt-4"]
    assert [r["step"] for r in records.read(f"{model_dir}/metrics.jsonl", kind="train")] == [
        2,
        3,
        4,
    ]
    assert tf.io.gfile.exists(f"{model_dir}/samples.png")
    assert report.write_report(model_dir) == f"{model_dir}/report.html"


class ActingEvaluator(CountingEvaluator):
    """Does something at the evaluation of a step, and gives the FIDs it is told to."""

    def __init__(self, actions=(), fids=()):
        super().__init__()
        self.actions, self.fids = dict(actions), dict(fids)

    def evaluate(self, *, checkpoint, step):
        self.actions.get(step, lambda: None)()
        record = super().evaluate(checkpoint=checkpoint, step=step)
        return {**record, "fid": float(self.fids.get(step, record["fid"]))}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_after_the_host_call(tmp_path, number):
    def interrupt(pupil, metrics):
        if pupil.step == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT)
    assert run(tmp_path / "parts", trainer=Pupil(interrupt)).endswith("ckpt-2")
    assert [(e["event"], e["step"]) for e in events(tmp_path / "parts")] == [("stopped", 2)]
    assert signal.getsignal(signal.SIGINT) == before
    got = contents.load(run(tmp_path / "parts", trainer=Pupil()))
    assert got == contents.load(run(tmp_path / "whole", trainer=Pupil()))


def test_signal_breaks_an_evaluation_off(tmp_path):
    evaluator = ActingEvaluator({4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert run(tmp_path, trainer=Pupil(), evaluator=evaluator).endswith("ckpt-4")
    assert [r["step"] for r in records.read(tmp_path / "metrics.jsonl", kind="evaluation")] == [0]
    assert [e["event"] for e in events(tmp_path)] == ["stopped"]


@pytest.mark.parametrize("step", [4, 6])
def test_signal_before_an_evaluation_leaves_it_to_the_next_run(tmp_path, step):
    def interrupt(pupil, metrics):
        if pupil.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    evaluator = CountingEvaluator()
    assert run(tmp_path, trainer=Pupil(interrupt), evaluator=evaluator).endswith(f"ckpt-{step}")
    assert [e["event"] for e in events(tmp_path)] == ["stopped"]
    assert [at for _, at in evaluator.calls] == [at for at in (0, 4) if at < step]
    run(tmp_path, trainer=Pupil(), evaluator=evaluator)
    assert [at for _, at in evaluator.calls] == [0, 4, 6]


@pytest.fixture
def disk():
    """Its `fill` makes every file end at 100 bytes, as on a full disk, until `free` is called or
    the test ends.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Disk:
        def fill(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

        def free(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield Disk()
    Disk().free()


def test_full_disk_keeps_training_alive_and_is_said(tmp_path, disk, capsys):
    def free(pupil, metrics):
        if pupil.step == 5:
            disk.free()

    evaluator = ActingEvaluator({0: disk.fill})
    path = run(tmp_path, trainer=Pupil(free), evaluator=evaluator, save_every=2, steps_per_loop=1)
    assert path.endswith("ckpt-6") and checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-6"]
    # What isn't saved isn't evaluated.
    assert evaluator.calls == [("ckpt-0", 0), ("ckpt-6", 6)]
    errors = capsys.readouterr().err
    assert "Step 2, checkpoint not saved: " in errors and "the last good one is " in errors
    # No record is lost.
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [
        ("checkpoint not saved", 2),
        ("checkpoint not saved", 4),
    ]
    assert [r["step"] for r in records.read(tmp_path / "metrics.jsonl", kind="train")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_messages_on_a_full_disk_do_not_end_training(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(sys, "stderr", open(tmp_path / "log.txt", "w", buffering=1))

    def free(pupil, metrics):
        if pupil.step == 5:
            disk.free()

    run(
        tmp_path,
        trainer=Pupil(free),
        evaluator=ActingEvaluator({0: disk.fill}),
        progress=True,
        save_every=2,
    )
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-6"]


def test_last_checkpoint_that_cannot_be_saved_is_an_error(tmp_path, disk):
    with pytest.raises(checkpoints.NotSaved, match="ckpt-6 couldn't be written"):
        run(tmp_path, trainer=Pupil(), evaluator=ActingEvaluator({4: disk.fill}))


@pytest.fixture
def slow_second(monkeypatch):
    """Writing the checkpoint of step 2, or of another `step`, takes until `opened` is set, and
    fails if `fails` is.
    """

    class Second:
        step, opened, fails = 2, threading.Event(), threading.Event()

    write, second = contents.write, Second()

    def waiting(path, held):
        if f"ckpt-{second.step}." in path:
            assert second.opened.wait(60)
            if second.fails.is_set():
                raise OSError("the bucket is gone")
        return write(path, held)

    monkeypatch.setattr(contents, "write", waiting)
    yield second
    second.opened.set()


def at_step_3(act):
    """A pupil that acts once, after step 3, of a run that saves every second step."""
    done = []

    def after(pupil, metrics):
        if pupil.step == 3 and not done:
            done.append(1)
            act()

    return dict(trainer=Pupil(after), save_every=2, steps_per_loop=1)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, slow_second):
    seen = []

    def follow(pupil, metrics):
        if pupil.step == 3:
            seen.append(checkpoints.available(str(tmp_path)))
            slow_second.opened.set()
        if pupil.step == 5:  # step 4 is evaluated, so it's there
            seen.append(checkpoints.available(str(tmp_path)))

    evaluator = CountingEvaluator()
    path = run(tmp_path, trainer=Pupil(follow), evaluator=evaluator, save_every=2, steps_per_loop=1)
    assert path.endswith("ckpt-6") and events(tmp_path) == []
    assert seen == [["ckpt-0"], ["ckpt-0", "ckpt-2", "ckpt-4"]]
    # The checkpoint is of its step, not of the one that it was written in.
    run(tmp_path / "other", trainer=Pupil(), num_steps=2)
    weights = [
        contents.load(str(folder / "checkpoints" / "ckpt-2"))["generator/weight"]
        for folder in (tmp_path, tmp_path / "other")
    ]
    assert weights[0] == weights[1]


def test_what_is_being_written_is_gone_back_to(tmp_path, slow_second):
    def poison(pupil, metrics):
        if pupil.step == 3 and pupil.rollbacks == 0:
            threading.Timer(0.3, slow_second.opened.set).start()
            pupil.generator.weight.assign(np.inf)
            metrics.update(first_bad_step=3, first_bad="generator/weight")

    run(tmp_path, trainer=Pupil(poison), save_every=2, steps_per_loop=1)
    (event,) = events(tmp_path)
    assert (event["event"], event["step"], event["to"]) == ("rolled back", 3, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_waits_for_what_is_being_written(tmp_path, slow_second, fails):
    def fail():
        threading.Timer(0.3, slow_second.opened.set).start()
        raise RuntimeError("of training")

    if fails:
        slow_second.fails.set()
    with pytest.raises(RuntimeError, match="of training"):
        run(tmp_path, **at_step_3(fail))
    saved = ["ckpt-0"] if fails else ["ckpt-0", "ckpt-2"]
    assert checkpoints.available(str(tmp_path)) == saved
    said = [(e["event"], e["step"], e["message"]) for e in events(tmp_path)]
    assert len(said) == fails
    if fails:
        assert said[0][:2] == ("checkpoint not saved", 2) and "the bucket is gone" in said[0][2]
        assert "Training goes on" not in said[0][2]


def test_leaving_at_once_gives_up_what_is_being_written(tmp_path, slow_second):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **at_step_3(interrupt))
    # Another process may be in the folder by now.
    (writing,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    slow_second.opened.set()
    writing.join(60)
    assert [path.name for path in (tmp_path / "checkpoints").glob("*2*")] == []
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0"]


def test_what_was_taken_over_while_it_was_written_is_not_named(tmp_path, slow_second):
    def take():
        (tmp_path / "writer.lock").rename(tmp_path / "writer.lock.taken")
        slow_second.opened.set()

    with pytest.raises(lock.Lost, match="was taken over"):
        run(tmp_path, max_to_keep=1, **at_step_3(take))
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0"] and events(tmp_path) == []


def test_what_failed_beside_is_saved_when_training_is_to_stop(tmp_path, monkeypatch):
    write, failures = contents.write, []

    def failing_once(path, held):
        if "ckpt-2" in path and not failures:
            failures.append(path)
            raise OSError("a moment without network")
        return write(path, held)

    monkeypatch.setattr(contents, "write", failing_once)

    class Interrupted(Pupil):
        """A signal between the save of step 2 and the look at signals after it."""

        def gates(self):
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

    path = run(tmp_path, trainer=Interrupted(), save_every=2, steps_per_loop=1)
    assert path.endswith("ckpt-2") and failures
    assert [e["event"] for e in events(tmp_path)] == ["checkpoint not saved", "stopped"]


def test_collapse_chooses_among_what_a_checkpoint_beside_has_left(tmp_path, slow_second):
    slow_second.step = 6
    reasons = iter(["looks bad"])

    class Suspicious:
        """Signs that are bad once, at step 7, while the checkpoint of step 6 is written."""

        def __init__(self, schedule):
            self.calls = 0

        def in_metrics(self, metrics):
            self.calls += 1
            if self.calls != 7:
                return None
            threading.Timer(0.3, slow_second.opened.set).start()
            return next(reasons, None)

        def in_images(self, images):
            return None

        def forget(self):
            pass

    loop.train(
        trainer=Pupil(),
        dataset=made.MadeDataset(),
        schedule=schedule(
            num_steps=8,
            save_every=2,
            steps_per_loop=1,
            keep_best=0,
            max_to_keep=1,
            on_collapse=loop.rollback,
        ),
        model_dir=str(tmp_path),
        evaluator=ActingEvaluator(fids={0: 9.0, 4: 5.0, 8: 4.0}),
        progress=False,
        signs=Suspicious,
    )
    back = [e for e in events(tmp_path) if e["event"] == "rolled back"]
    # Step 4 had the best score; its checkpoint went when that of step 6 was there.
    assert [(e["step"], e["to"]) for e in back] == [(7, 6)]


def test_best_checkpoint_stays(tmp_path):
    evaluator = ActingEvaluator(fids={0: 9.0, 2: 3.0, 4: 5.0, 6: 4.0})
    run(
        tmp_path, trainer=Pupil(), evaluator=evaluator, evaluate_every=2, max_to_keep=1, keep_best=1
    )
    assert checkpoints.available(str(tmp_path)) == ["ckpt-2", "ckpt-6"]


def test_best_checkpoint_stays_when_another_protocol_is_used_in_between(tmp_path):
    def by_another_protocol():
        records.append(
            f"{tmp_path}/metrics.jsonl",
            {"kind": "evaluation", "step": 4, "fid": 1.0, "protocol": "other"},
        )

    evaluator = ActingEvaluator(
        {6: by_another_protocol}, fids={0: 9.0, 2: 3.0, 4: 5.0, 6: 4.0, 8: 6.0}
    )
    run(
        tmp_path,
        trainer=Pupil(),
        evaluator=evaluator,
        num_steps=8,
        evaluate_every=2,
        max_to_keep=1,
        keep_best=1,
    )
    assert checkpoints.available(str(tmp_path)) == ["ckpt-2", "ckpt-8"]
    found = History(Folder(tmp_path).metrics)
    assert found.best_steps("fid", 1) == [2] and found.steps_to_keep("fid", 1) == {2, 4}


def test_only_fids_of_one_protocol_are_compared(tmp_path):
    log = Log(str(tmp_path))
    for step, fid, num_samples in ((1, 2.0, 100), (2, 30.0, 50), (3, 20.0, 50), (4, 25.0, 50)):
        log.write({"kind": "evaluation", "step": step, "fid": fid, "num_samples": num_samples})
    assert log.history().best_steps("fid", 2) == [3, 4]
    log.write({"kind": "event", "step": 4, "event": "rolled back", "to": 2})
    assert log.history().best_steps("fid", 2) == [2]
    assert {record["step"] for record in log.history().of_kind("evaluation")} == {1, 2}


def test_fid_far_above_the_best_is_flagged(tmp_path):
    evaluator = ActingEvaluator(fids={0: 10.0, 2: 29.0, 4: 31.0, 6: 20.0})
    run(tmp_path, trainer=Pupil(), evaluator=evaluator, evaluate_every=2, collapse_factor=3)
    (event,) = events(tmp_path)
    assert (event["event"], event["step"]) == ("collapse", 4)
    assert "FID 31 is more than 3 times the best of this run, 10" in event["message"]


def test_collapse_stops_a_run_that_is_to_stop(tmp_path):
    evaluator = ActingEvaluator(fids={0: 10.0, 2: 31.0})
    with pytest.raises(loop.Collapse, match="FID 31"):
        run(tmp_path, trainer=Pupil(), evaluator=evaluator, evaluate_every=2, on_collapse=loop.stop)
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-2"]


def test_collapse_goes_back_to_the_best_checkpoint(tmp_path):
    evaluator = ActingEvaluator(fids={0: 30.0, 2: 10.0, 4: 20.0, 6: 31.0})
    evaluator.actions[6] = lambda: len(evaluator.calls) > 3 and evaluator.fids.update({6: 9.0})
    run(tmp_path, trainer=Pupil(), evaluator=evaluator, evaluate_every=2, on_collapse=loop.rollback)
    assert [step for _, step in evaluator.calls] == [0, 2, 4, 6, 4, 6]
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [
        ("collapse", 6),
        ("rolled back", 6),
    ]
    assert events(tmp_path)[1]["to"] == 2
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-2", "ckpt-4", "ckpt-6"]


@pytest.mark.parametrize(
    "metrics", [{"loss/discriminator": 0.0}, {"logits/real": -0.2, "logits/fake": 0.2}]
)
def test_saturated_discriminator_is_flagged_when_it_lasts(tmp_path, metrics):
    def saturate(pupil, values):
        if pupil.step != 2:
            values.update(metrics)

    run(tmp_path, trainer=Pupil(saturate), steps_per_loop=1, collapse_calls=3)
    (event,) = events(tmp_path)
    assert (event["event"], event["step"]) == ("collapse", 5)
    assert "saturated for 3 host calls in a row" in event["message"]


def test_time_that_input_takes_is_measured_inside_the_device_loop():
    def batches(seconds):
        def slowly(number):
            time.sleep(seconds)
            return number

        numbers = tf.data.Dataset.range(100).map(
            lambda number: tf.numpy_function(slowly, [number], tf.int64)
        )
        return watching.TimedBatches.of(iter(numbers))

    @tf.function
    def use(batches):
        total = tf.constant(0, tf.int64)
        for _ in tf.range(5):
            total += tf.ensure_shape(next(batches), [])
        return total

    slow, fast = batches(0.1), batches(0)
    assert int(use(slow)) == int(use(fast)) == 10
    assert slow.waited() > fast.waited() + 0.3
    assert slow.waited() == 0
    assert use.experimental_get_tracing_count() == 1


def test_train_records_say_how_fast_and_how_large(finished):
    model_dir, *_ = finished
    train = records.read(model_dir / "metrics.jsonl", kind="train")
    for record in train:
        assert 0 <= record["input_wait_percent"] <= 100
        assert record["memory/host_gib"] > 0.05
    assert train[-1]["eta_seconds"] == 0 and train[-2]["eta_seconds"] > 0


def test_profile_covers_the_steps_asked_for(tmp_path):
    run(tmp_path, trainer=Pupil(), steps_per_loop=4, profile=(3, 5))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert [(e["event"], e["step"]) for e in events(tmp_path)] == [("profile", 5)]
    assert [r["step"] for r in records.read(tmp_path / "metrics.jsonl", kind="train")] == [
        3,
        4,
        5,
        6,
    ]


def test_a_damaged_record_is_set_aside_and_training_goes_on(tmp_path):
    run(tmp_path, trainer=Pupil(), num_steps=4)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 40 + b"\nstep,loss\n")
    run(tmp_path, trainer=Pupil(), num_steps=6)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\0" * 40 + b"\nstep,loss\n"
    assert path.read_bytes().startswith(whole)
    assert {record["step"] for record in records.read(path, "train")} >= {4, 6}
    found = [e for e in events(tmp_path) if e["event"] == "damaged record"]
    lines = whole.count(b"\n")
    assert [f"line {lines + i} of" in e["message"] for i, e in enumerate(found, 1)] == [True] * 2


def test_a_rollback_passes_over_a_checkpoint_that_is_not_finite(tmp_path):
    pupil = Pupil()
    run(tmp_path, trainer=pupil, num_steps=6, save_every=2, max_to_keep=None)
    # Such a checkpoint isn't written by a run; one of an earlier version may be there.
    saved = tf.train.Checkpoint(
        step=tf.Variable(6, dtype=tf.int64),
        rollbacks=tf.Variable(0, dtype=tf.int64),
        **{"generator/weight": tf.Variable(np.nan)},
    )
    saved.write(str(tmp_path / "checkpoints" / "ckpt-6"))
    run(tmp_path, trainer=Pupil(), num_steps=8, save_every=2, max_to_keep=None)
    (back,) = [e for e in events(tmp_path) if e["event"] == "rolled back"]
    assert back["to"] == 4
    assert checkpoints.available(str(tmp_path))[-1] == "ckpt-8"


@pytest.mark.slow
def test_what_was_logged_is_not_kept_in_memory(tmp_path):
    class Number(float):
        """A number that tells when it is gone."""

    log = Log(str(tmp_path))
    number = Number(0.123)
    gone = weakref.ref(number)
    log.write({"kind": "train", "step": 1, "loss": number})
    del number
    gc.collect()
    assert gone() is None


def identity(**settings):
    return Identity(settings={"rate": "1", **settings}, data={"content": "records:a"})


def test_second_training_in_a_folder_is_refused(tmp_path):
    # In a process of its own, since one process may go on with what it holds.
    code = (
        "import sys; from hamgan.run import lock\n"
        "with lock.writing(sys.argv[1]): print('held', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(lock.Held, match=f"process {other.pid} on "):
            run(tmp_path, trainer=Pupil())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["writer.lock"]
    finally:
        other.kill()
        other.communicate()
    assert run(tmp_path, trainer=Pupil()).endswith("ckpt-6")


def test_training_that_was_taken_over_saves_no_more(tmp_path):
    def take(pupil, metrics):
        if pupil.step == 3:
            (tmp_path / "writer.lock").rename(tmp_path / "writer.lock.taken")

    with pytest.raises(lock.Lost, match="was taken over"):
        run(tmp_path, trainer=Pupil(take))
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0"]


def test_new_run_among_the_records_of_an_old_one_is_refused(tmp_path):
    run(tmp_path, trainer=Pupil(), evaluator=CountingEvaluator())
    shutil.rmtree(tmp_path / "checkpoints")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds \d+ records of a run whose checkpoints aren't"):
        run(tmp_path, trainer=Pupil())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "checkpoints").exists()


def test_another_run_is_refused_with_what_differs_and_the_same_goes_on(tmp_path):
    run(tmp_path, trainer=Pupil(), num_steps=2, save_every=2, identity=identity())
    other = dataclasses.replace(identity(rate="2"), data={"content": "records:b"})
    told = r"(?s)ckpt-2 is of another run.*rate = 1 there, 2 asked for.*records:a there, records:b"
    with pytest.raises(ValueError, match=told):
        run(tmp_path, trainer=Pupil(), num_steps=4, identity=other)
    assert checkpoints.available(str(tmp_path)) == ["ckpt-0", "ckpt-2"]
    assert run(tmp_path, trainer=Pupil(), num_steps=4, identity=identity()).endswith("ckpt-4")
    assert set(contents.load(str(tmp_path / "checkpoints" / "ckpt-4"))) == set(Pupil().variables())


def test_checkpoints_without_an_identity_go_on_and_get_one(tmp_path):
    run(tmp_path, trainer=Pupil(), num_steps=2, save_every=2)
    path = run(tmp_path, trainer=Pupil(), num_steps=4, identity=identity())
    assert contents.read_identity(path).settings == {"rate": "1"}


def curves(folder):
    """{tag: steps} as TensorBoard shows them."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


def test_steps_that_a_kill_left_are_marked_and_in_no_curve_twice(tmp_path):
    def kill(pupil, metrics):
        if pupil.step == 6:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, trainer=Pupil(kill), num_steps=8, steps_per_loop=1, evaluate_every=100)
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in their names
    run(tmp_path, trainer=Pupil(), num_steps=8, steps_per_loop=1, evaluate_every=100)
    (left,) = [e for e in events(tmp_path) if e["event"] == "abandoned"]
    assert (left["step"], left["from"], left["to"]) == (4, 5, 5)
    steps = [r["step"] for r in records.read(tmp_path / "metrics.jsonl", kind="train")]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    kept = [r["step"] for r in History(str(tmp_path / "metrics.jsonl")).of_kind("train")]
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curves(tmp_path)["loss/discriminator"] == kept


def test_steps_of_a_rollback_are_in_no_curve_twice(tmp_path):
    def spoil(pupil, metrics):
        if pupil.step == 6 and pupil.rollbacks == 0:
            pupil.generator.weight.assign(np.nan)
            metrics.update(first_bad_step=6, first_bad="generator/weight")

    run(tmp_path, trainer=Pupil(spoil), num_steps=8, steps_per_loop=1, evaluate_every=100)
    assert curves(tmp_path)["loss/discriminator"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_evaluation_counts_for_the_weights_that_it_is_of(tmp_path):
    class Knowing(CountingEvaluator):
        def evaluate(self, *, checkpoint, step):
            record = super().evaluate(checkpoint=checkpoint, step=step)
            return {**record, "checkpoint_digest": contents.digest(checkpoint)}

    first, again = Knowing(), Knowing()
    run(tmp_path, trainer=Pupil(), evaluator=first, num_steps=4)
    run(tmp_path, trainer=Pupil(), evaluator=again, num_steps=4)
    assert first.calls == [("ckpt-0", 0), ("ckpt-4", 4)] and not again.calls
    # Other weights under the name.
    trainer = Pupil()
    saved = checkpoints.Checkpoints(
        str(tmp_path / "checkpoints"), trainer.variables(), seed=trainer.seed, max_to_keep=None
    )
    saved.restore_latest()
    trainer.generator.weight.assign(9.0)
    saved.save()
    run(tmp_path, trainer=Pupil(), evaluator=again, num_steps=4)
    assert again.calls == [("ckpt-4", 4)]


def test_scores_of_weights_that_were_replaced_count_for_no_best(tmp_path):
    path = str(tmp_path / "metrics.jsonl")
    for step, digest, fid in ((2, "a", 5.0), (4, "b", 1.0), (4, "c", 7.0)):
        record = {"kind": "evaluation", "step": step, "fid": fid, "checkpoint_digest": digest}
        records.append(path, record)
    assert History(path).scores("fid") == {2: 5.0, 4: 7.0}
    assert History(path).best_steps("fid", 1) == [2]
