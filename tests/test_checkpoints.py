import contextlib
import gc
import resource
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf

from hamgan.evaluation import jobs
from hamgan.evaluation.scores import HEADLINE
from hamgan.run import checkpoints, contents, pins, records
from hamgan.run.checkpoints import Checkpoints


def variables(step=0, **extra):
    named = {
        "step": tf.Variable(step, dtype=tf.int64),
        "generator/block.1/kernel": tf.Variable(np.arange(6.0).reshape(2, 3)),
    }
    return {**named, **extra}


def test_restores_what_was_saved(tmp_path):
    saved = variables(step=7)
    path = checkpoints.Checkpoints(str(tmp_path), saved).save()
    assert path.endswith("ckpt-7")
    fresh = variables()
    fresh["generator/block.1/kernel"].assign(tf.zeros([2, 3], tf.float64))
    assert checkpoints.Checkpoints(str(tmp_path), fresh).restore_latest() == path
    assert int(fresh["step"].numpy()) == 7
    np.testing.assert_array_equal(
        fresh["generator/block.1/kernel"].numpy(), np.arange(6.0).reshape(2, 3)
    )


def test_no_checkpoint_restores_nothing(tmp_path):
    assert checkpoints.Checkpoints(str(tmp_path), variables()).restore_latest() is None


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_folder_that_is_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="TensorFlow sees a pattern"):
        checkpoints.Checkpoints(str(tmp_path / name), {"step": tf.Variable(0)})


def test_keeps_the_last_n(tmp_path):
    named = variables()
    saved = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), named, max_to_keep=2)
    for step in (1, 2, 10):
        named["step"].assign(step)
        saved.save()
    assert checkpoints.available(str(tmp_path)) == ["ckpt-2", "ckpt-10"]


def test_partial_restore_takes_a_part(tmp_path):
    path = checkpoints.Checkpoints(str(tmp_path), variables(step=7)).save()
    part = {"step": tf.Variable(0, dtype=tf.int64)}
    contents.restore(path, part, partial=True)
    assert int(part["step"].numpy()) == 7


def test_differences_are_listed_and_nothing_is_changed(tmp_path):
    path = checkpoints.Checkpoints(
        str(tmp_path), variables(step=7, only_there=tf.Variable(1.0))
    ).save()
    here = variables(only_here=tf.Variable(1.0))
    here["generator/block.1/kernel"] = tf.Variable(np.zeros([3, 3]))
    with pytest.raises(ValueError) as error:
        contents.restore(path, here)
    message = str(error.value)
    assert "only_here: not in the checkpoint" in message
    assert "only_there []: only in the checkpoint" in message
    assert (
        "generator/block.1/kernel: [2, 3] in the checkpoint, [3, 3] in this configuration"
        in message
    )
    assert int(here["step"].numpy()) == 0


def test_truncated_checkpoint_is_an_error(tmp_path):
    path = checkpoints.Checkpoints(str(tmp_path), variables()).save()
    index = tmp_path / "ckpt-0.index"
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        contents.restore(path, variables())


def test_find_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="No checkpoint in .*checkpoints. Train first"):
        checkpoints.find(str(tmp_path))
    path = checkpoints.Checkpoints(str(tmp_path / "checkpoints"), variables(step=5)).save()
    assert checkpoints.find(str(tmp_path)) == path
    assert checkpoints.find(str(tmp_path), "ckpt-5") == path
    assert checkpoints.find(str(tmp_path), path) == path
    with pytest.raises(ValueError, match="No checkpoint ckpt-6; .* holds: ckpt-5. "):
        checkpoints.find(str(tmp_path), "ckpt-6")
    (tmp_path / "checkpoints" / "best-fid.index").write_bytes(b"")
    with pytest.raises(ValueError, match="No checkpoint best-is; .* holds: ckpt-5, best-fid. "):
        checkpoints.find(str(tmp_path), "best-is")


@contextlib.contextmanager
def full_disk(limit=100):
    """No file may become longer than `limit` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_steps(directory, *steps, **kwargs):
    """Saves these steps; the kernel of a checkpoint is full of its step. Returns the variables."""
    named = variables()
    saved = Checkpoints(str(directory), named, **{"max_to_keep": None, **kwargs})
    for step in steps:
        named["step"].assign(step)
        named["generator/block.1/kernel"].assign(tf.fill([2, 3], tf.cast(step, tf.float64)))
        saved.save()
    return saved, named


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until this `threading.Event` is set, at most a minute."""
    opened, write = threading.Event(), contents.write

    def waiting(path, held):
        assert opened.wait(60)
        return write(path, held)

    monkeypatch.setattr(contents, "write", waiting)
    yield opened
    opened.set()


def test_what_is_written_beside_is_what_there_was(tmp_path, gate):
    named = variables(step=3, half=tf.Variable([1.5, 2.5], dtype=tf.bfloat16))
    saved = Checkpoints(str(tmp_path), named, seed=5)
    assert saved.is_written
    path = saved.begin()
    assert path == str(tmp_path / "ckpt-3") and not saved.is_written
    with pytest.raises(RuntimeError, match="ckpt-3 was begun and not finished"):
        saved.begin()
    kernel = named["generator/block.1/kernel"]
    # In place, and by another value.
    kernel.assign_add(tf.ones([2, 3], tf.float64))
    tf.raw_ops.ResourceScatterUpdate(
        resource=kernel.handle, indices=[1], updates=tf.zeros([1, 3], tf.float64)
    )
    named["step"].assign(4)
    assert not tf.io.gfile.glob(str(tmp_path / "ckpt-*"))
    gate.set()
    assert saved.finish() == path and saved.is_written
    held = contents.load(path)
    np.testing.assert_array_equal(held["generator/block.1/kernel"], np.arange(6.0).reshape(2, 3))
    assert held["step"] == 3 and held["half"].dtype == named["half"].dtype.as_numpy_dtype
    assert named["generator/block.1/kernel"].numpy().tolist() == [[1, 2, 3], [0, 0, 0]]
    with pytest.raises(RuntimeError, match="No checkpoint was begun"):
        saved.finish()


def test_what_is_written_beside_has_the_same_bytes(tmp_path):
    files = []
    for folder in ("beside", "at once"):
        named = variables(step=3)
        named["half"] = tf.Variable([1.5], dtype=tf.bfloat16, name="half")
        saved = Checkpoints(str(tmp_path / folder), named, seed=5)
        if folder == "beside":
            saved.begin()
            saved.finish()
        else:
            saved.save()
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert files[0] == files[1] and "ckpt-3.index" in files[0]


def test_what_could_not_be_written_beside_is_said_at_its_end(tmp_path):
    saved, _ = save_steps(tmp_path, 1)
    saved._variables["step"].assign(2)
    with full_disk():
        saved.begin()
        with pytest.raises(checkpoints.NotSaved, match="ckpt-2 couldn't be written"):
            saved.finish()
    assert [name for name in names(tmp_path) if name.startswith(("ckpt-2", "writing"))] == []
    saved.begin()
    assert saved.finish() == saved.restore_latest() == str(tmp_path / "ckpt-2")


def test_what_is_given_up_gets_no_name(tmp_path, gate):
    saved, named = Checkpoints(str(tmp_path), variables(step=2)), variables(step=2)
    saved.begin()
    saved.cancel()
    assert saved.begun is None and saved.is_written
    successor = Checkpoints(str(tmp_path), named)
    (thread,) = [one for one in threading.enumerate() if one.name == "checkpoint"]
    named["generator/block.1/kernel"].assign(tf.ones([2, 3], tf.float64))
    threading.Timer(0.2, gate.set).start()
    path = successor.save()
    thread.join(60)
    assert sorted(names(tmp_path)) == ["checkpoint", "ckpt-2.data-00000-of-00001", "ckpt-2.index"]
    assert np.all(contents.load(path)["generator/block.1/kernel"] == 1)


def test_failures_keep_no_copies(tmp_path, monkeypatch):
    made, copies = [], contents.copies

    def watched(held):
        copied = copies(held)
        made.extend(weakref.ref(copy) for copy in copied.values())
        return copied

    monkeypatch.setattr(contents, "copies", watched)
    saved = Checkpoints(str(tmp_path), variables(step=2))
    gc.disable()
    try:
        with full_disk():
            for _ in range(3):
                saved.begin()
                with pytest.raises(checkpoints.NotSaved):
                    saved.finish()
        assert len(made) == 6 and all(copy() is None for copy in made)
    finally:
        gc.enable()


def test_hosts_that_do_not_write_begin_nothing(tmp_path):
    saved = Checkpoints(str(tmp_path), variables(step=7), writes=False)
    saved.begin()
    assert saved.is_written and saved.finish() == str(tmp_path / "ckpt-7")
    assert names(tmp_path) == []


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_folder_holds_nothing_but_checkpoints_and_their_state(tmp_path):
    save_steps(tmp_path, 1, 2)
    files = [f"ckpt-{step}.{part}" for step in (1, 2) for part in ("data-00000-of-00001", "index")]
    assert names(tmp_path) == ["checkpoint", *files]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-2")


def damaged(path, how):
    """A damaged copy of a file's bytes."""
    data = bytearray(path.read_bytes())
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "emptied":
        return b""
    data[len(data) // 2] ^= 4
    return data


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "missing"])
@pytest.mark.parametrize("file", ["index", "data-00000-of-00001"])
def test_damaged_newest_is_reported_and_the_one_before_is_taken(tmp_path, how, file):
    if (how, file) == ("missing", "index"):
        return  # then there is no such checkpoint
    save_steps(tmp_path, 1, 2)
    path = tmp_path / f"ckpt-2.{file}"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged(path, how))
    messages, named = [], variables()
    saved = Checkpoints(str(tmp_path), named, report=messages.append)
    assert saved.restore_latest() == str(tmp_path / "ckpt-1")
    assert "ckpt-2 can't be read as a checkpoint" in messages[0] and len(messages) == 1
    assert int(named["step"].numpy()) == 1
    np.testing.assert_array_equal(named["generator/block.1/kernel"].numpy(), np.ones([2, 3]))
    # The run comes to this step again and replaces it.
    named["step"].assign(2)
    saved.save()
    assert Checkpoints(str(tmp_path), variables()).restore_latest() == str(tmp_path / "ckpt-2")


def test_every_flipped_bit_of_the_values_is_noticed(tmp_path):
    save_steps(tmp_path, 1)
    path = tmp_path / "ckpt-1.data-00000-of-00001"
    data = path.read_bytes()
    values = np.ones(6).tobytes()
    start = data.index(values)
    for offset in range(start, start + len(values)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << (offset % 8)
        path.write_bytes(flipped)
        with pytest.raises(contents.Damaged):
            contents.restore(str(tmp_path / "ckpt-1"), variables())


def test_damaged_ones_do_not_count_as_newest_ones_that_stay(tmp_path):
    save_steps(tmp_path, 1, 9)
    (tmp_path / "ckpt-9.index").write_bytes(b"")
    named = variables()
    saved = Checkpoints(str(tmp_path), named, max_to_keep=1, report=lambda message: None)
    saved.restore_latest()
    named["step"].assign(5)
    assert saved.save() == saved.restore_latest()


def test_nothing_but_damaged_ones_is_an_error_and_not_a_new_run(tmp_path):
    save_steps(tmp_path, 1, 2)
    for path in tmp_path.glob("*.index"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 2 checkpoints in .* can be read"):
        Checkpoints(str(tmp_path), variables(), report=lambda message: None).restore_latest()


def test_find_passes_over_a_damaged_one(tmp_path, capsys):
    save_steps(tmp_path / "checkpoints", 1, 2)
    path = tmp_path / "checkpoints" / "ckpt-2.data-00000-of-00001"
    path.write_bytes(damaged(path, "flipped"))
    assert checkpoints.find(str(tmp_path)).endswith("ckpt-1")
    assert "ckpt-2 is passed over" in capsys.readouterr().out


def test_full_disk_is_an_error_that_leaves_the_last_one_as_it_was(tmp_path):
    saved, named = save_steps(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    named["step"].assign(2)
    with full_disk(), pytest.raises(checkpoints.NotSaved, match="ckpt-2 couldn't be written: "):
        saved.save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    saved.save()
    assert checkpoints.step_of(saved.restore_latest()) == 2


def test_what_cannot_be_read_back_gets_no_name(tmp_path, monkeypatch):
    saved, named = save_steps(tmp_path, 1)
    named["step"].assign(2)
    write = tf.train.Checkpoint.write

    def flip_a_bit(checkpoint, prefix):
        path = write(checkpoint, prefix)
        (data,) = tf.io.gfile.glob(path + ".data-*")
        with open(data, "r+b") as file:
            file.seek(-40, 2)
            byte = file.read(1)
            file.seek(-40, 2)
            file.write(bytes([byte[0] ^ 1]))
        return path

    monkeypatch.setattr(tf.train.Checkpoint, "write", flip_a_bit)
    with pytest.raises(checkpoints.NotSaved, match="can't be read as a checkpoint"):
        saved.save()
    assert "ckpt-2.index" not in names(tmp_path)


def test_values_that_are_not_finite_get_no_name(tmp_path):
    saved, named = save_steps(tmp_path, 1)
    named["generator/block.1/kernel"].assign(np.full([2, 3], np.nan))
    named["step"].assign(2)
    assert contents.first_not_finite(named) == "generator/block.1/kernel"
    with pytest.raises(checkpoints.NotSaved, match="generator/block.1/kernel isn't finite"):
        saved.save()
    assert "ckpt-2.index" not in names(tmp_path)


def test_what_a_killed_process_left_is_cleaned_and_nothing_else(tmp_path):
    save_steps(tmp_path, 1)
    before = names(tmp_path)
    (tmp_path / "writing-ckpt-2" / "ckpt_temp").mkdir(parents=True)
    (tmp_path / "writing-ckpt-2" / "ckpt.index").write_bytes(b"half")
    (tmp_path / "ckpt-3.data-00000-of-00001").write_bytes(b"named, but its index isn't")
    (tmp_path / "ckpt-4_temp").mkdir()
    (tmp_path / "checkpoint.123.tmp").write_bytes(b"")
    (tmp_path / "ckpt-1.pinned-0").write_text("0")
    (tmp_path / "notes.txt").write_text("mine")
    assert Checkpoints(str(tmp_path), variables()).restore_latest() == str(tmp_path / "ckpt-1")
    assert names(tmp_path) == sorted([*before, "notes.txt"])


def test_best_ones_stay(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, max_to_keep=2, best=lambda: [1])
    assert [name for name in names(tmp_path) if name.endswith("index")] == [
        f"ckpt-{s}.index" for s in (1, 3, 4)
    ]


def test_pinned_one_stays_until_it_is_free_or_the_pin_is_a_day_old(tmp_path):
    saved, named = save_steps(tmp_path, 1, 2, max_to_keep=1)
    with pins.pinned(str(tmp_path / "ckpt-2")) as path:
        named["step"].assign(3)
        saved.save()
        contents.restore(path, variables())
    assert "ckpt-2.index" in names(tmp_path)
    (tmp_path / "ckpt-3.pinned-0").write_text("0")  # in 1970
    named["step"].assign(4)
    saved.save()
    assert [name for name in names(tmp_path) if "ckpt-" in name and "4" not in name] == [
        "ckpt-3.pinned-0"
    ]
    with (
        pytest.raises(ValueError, match="No checkpoint .*ckpt-3"),
        pins.pinned(str(tmp_path / "ckpt-3")),
    ):
        pass
    assert names(tmp_path) == [
        "checkpoint",
        "ckpt-3.pinned-0",
        "ckpt-4.data-00000-of-00001",
        "ckpt-4.index",
    ]


def test_going_back_leaves_newer_ones_out_of_sight(tmp_path):
    saved, named = save_steps(tmp_path, 1, 2, 3)
    saved.restore(str(tmp_path / "ckpt-1"))
    assert int(named["step"].numpy()) == 1
    assert saved.restore_latest() == str(tmp_path / "ckpt-1")
    assert "ckpt-2.index.left" in names(tmp_path) and "ckpt-2.data-00000-of-00001" in names(
        tmp_path
    )
    named["step"].assign(2)
    assert saved.save() == saved.restore_latest()
    assert "ckpt-2.index.left" not in names(tmp_path)


def test_another_seed_is_refused(tmp_path):
    save_steps(tmp_path, 1, seed=5)
    with pytest.raises(
        ValueError, match="ckpt-1 is of a run with seed 5, and the trainer's seed is 6"
    ):
        Checkpoints(str(tmp_path), variables(), seed=6).restore_latest()
    assert Checkpoints(str(tmp_path), variables(), seed=5).restore_latest()


def test_checkpoints_of_earlier_versions_can_be_read(tmp_path):
    save_steps(tmp_path, 1)
    rollbacks = tf.Variable(0, dtype=tf.int64)
    Checkpoints(str(tmp_path), variables(rollbacks=rollbacks), seed=5).restore_latest()
    assert int(rollbacks.numpy()) == 0


def test_host_that_leaves_the_writing_to_another_writes_nothing(tmp_path):
    assert Checkpoints(str(tmp_path), variables(step=7), writes=False).save() == str(
        tmp_path / "ckpt-7"
    )
    assert names(tmp_path) == []


def test_remote_folder_does_as_well(tmp_path):
    directory = "ram://hamgan-checkpoints/run"
    saved, named = save_steps(directory, 1, 2, 3, max_to_keep=2)
    assert tf.train.latest_checkpoint(directory) == f"{directory}/ckpt-3"
    with tf.io.gfile.GFile(f"{directory}/ckpt-3.index", "wb") as file:
        file.write(b"short")
    assert (
        Checkpoints(directory, variables(), report=lambda message: None).restore_latest()
        == f"{directory}/ckpt-2"
    )
    with pins.pinned(f"{directory}/ckpt-2"):
        for step in (4, 5, 6):
            named["step"].assign(step)
            saved.save()
    assert sorted(n for n in tf.io.gfile.listdir(directory) if n.endswith("index")) == [
        f"ckpt-{step}.index" for step in (2, 5, 6)
    ]


def test_short_name_means_this_runs_wherever_one_stands(tmp_path, monkeypatch):
    for run in "ab":
        save_steps(tmp_path / run / "checkpoints", 2, 4)
    monkeypatch.chdir(tmp_path / "b" / "checkpoints")
    for name, found in (("ckpt-2", "ckpt-2"), ("latest", "ckpt-4"), (None, "ckpt-4")):
        expected = str(tmp_path / "a" / "checkpoints" / found)
        assert checkpoints.find(str(tmp_path / "a"), name) == expected
        assert checkpoints.find("../../a", name) == expected
    # A path is what has a separator.
    for path in ("./ckpt-2", "../../b/checkpoints/ckpt-2.index"):
        found = checkpoints.find(str(tmp_path / "a"), path)
        assert found == str(tmp_path / "b" / "checkpoints" / "ckpt-2")
        assert not checkpoints.is_of_run(str(tmp_path / "a"), found)
        assert checkpoints.is_of_run("../../b", found)
    with pytest.raises(ValueError, match="named by its path, with a '/'"):
        checkpoints.find(str(tmp_path / "a"), "ckpt-6")
    with pytest.raises(ValueError, match="there is no .*/b/checkpoints/ckpt-6.index"):
        checkpoints.find(str(tmp_path / "a"), "./ckpt-6")


def test_checkpoint_of_another_run_is_not_evaluated_into_this_ones_records(tmp_path):
    for run in "ab":
        save_steps(tmp_path / run / "checkpoints", 2)
    path = str(tmp_path / "b" / "checkpoints" / "ckpt-2")
    with pytest.raises(ValueError, match="isn't a checkpoint of .*/a, and its numbers would"):
        jobs.paths_of(str(tmp_path / "a"), [path])
    assert jobs.paths_of(str(tmp_path / "b"), [path]) == [path]


def test_best_is_that_of_the_records_unless_a_checkpoint_has_the_name(tmp_path):
    save_steps(tmp_path / "checkpoints", 2, 4, 6)
    with pytest.raises(ValueError, match=r"No checkpoint is the best .*\(ckpt-2, ckpt-4, ckpt-6\)"):
        checkpoints.find(str(tmp_path), "best")
    for step, fid in ((2, 5.0), (4, 3.0), (6, 7.0), (8, 1.0)):
        record = {"kind": "evaluation", "step": step, HEADLINE.name: fid}
        records.append(tmp_path / "metrics.jsonl", record)
    # Step 8 isn't there.
    assert checkpoints.find(str(tmp_path), "best").endswith("/ckpt-4")
    assert (HEADLINE.name, HEADLINE.better) == ("fid", "lower")  # what find takes by itself
    for end in (".index", ".data-00000-of-00001"):
        folder = tmp_path / "checkpoints"
        (folder / f"best{end}").write_bytes((folder / f"ckpt-2{end}").read_bytes())
    best = checkpoints.find(str(tmp_path), "best")
    assert best.endswith("/best") and contents.step_in(best) == 2


def test_checkpoint_is_not_rewritten_while_it_is_read(tmp_path):
    saved, named = save_steps(tmp_path, 2)
    path = str(tmp_path / "ckpt-2")
    before = contents.digest(path)
    named["generator/block.1/kernel"].assign(tf.fill([2, 3], tf.constant(9, tf.float64)))
    with pins.being_read(path):
        writer = threading.Thread(target=saved.save)
        writer.start()
        writer.join(1)
        assert writer.is_alive() and contents.digest(path) == before
    writer.join(20)
    assert not writer.is_alive() and contents.digest(path) != before
