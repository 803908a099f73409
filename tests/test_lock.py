"""One writer for a run's folder: who is refused, and what frees it."""

import json
import os
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from hamgan.run import lock, records
from hamgan.run.folder import Folder

HOLD = """
import sys, time
from hamgan.run import lock
with lock.writing(sys.argv[1]) as held:
    print("held", flush=True)
    sys.stdin.readline()
    held.check()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path until it gets a line, then asks whether it still does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_writer_is_refused_until_the_first_is_killed(tmp_path, holder, monkeypatch):
    told = rf"process {holder.pid} on \S+ since \d{{4}}-.* --take_over"
    with pytest.raises(lock.Held, match=told):
        with lock.writing(str(tmp_path)):
            pass
    # The same folder by another path.
    (tmp_path.parent / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    for path in ("link", tmp_path.name, f"{tmp_path}/"):
        with pytest.raises(lock.Held):
            with lock.writing(path):
                pass
    holder.kill()
    holder.wait()
    with lock.writing(str(tmp_path)) as held:
        held.check()


def test_who_is_taken_over_finds_out_and_stops(tmp_path, holder):
    with lock.writing(str(tmp_path), take_over=True) as held:
        _, errors = holder.communicate("go on\n")
        assert f"was taken over by process {os.getpid()} on " in errors
        assert holder.returncode == 1
        held.check()


def test_process_may_ask_again_for_what_it_holds(tmp_path):
    with lock.writing(str(tmp_path)) as outer:
        with lock.writing(f"{tmp_path}/") as inner:
            assert inner is outer
        outer.check()
    with lock.writing(str(tmp_path)) as later:
        assert later is not outer


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--model_dir=.*file/run can't be written"):
        with lock.writing(str(tmp_path / "file" / "run")):
            pass


def write_lease(model_dir, *, age):
    words = {"token": "other", "host": "far", "pid": 7, "since": "noon"}
    words["renewed"] = time.time() - age
    records.write_whole(Folder(model_dir).lock, json.dumps(words).encode())


def test_remote_folder_has_a_lease_that_runs_out(monkeypatch):
    monkeypatch.setattr(lock, "_PAUSE_SECONDS", 0.1)
    model_dir = "ram://hamgan-lock/run"
    tf.io.gfile.makedirs(model_dir)
    write_lease(model_dir, age=lock.LEASE_SECONDS / 2)
    with pytest.raises(lock.Held, match="process 7 on far since noon.*lease runs out 120 seconds"):
        with lock.writing(model_dir):
            pass
    write_lease(model_dir, age=lock.LEASE_SECONDS + 1)
    with lock.writing(model_dir) as held:
        held.check()
        write_lease(model_dir, age=0)
        with pytest.raises(lock.Lost, match="taken over by process 7 on far"):
            held.check()
    # Another's lease is left as it is.
    assert tf.io.gfile.exists(Folder(model_dir).lock)
    with lock.writing(model_dir, take_over=True) as held:
        held.check()
    assert not tf.io.gfile.exists(Folder(model_dir).lock)


def test_lease_is_renewed_while_it_is_held(monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.4)
    model_dir = "ram://hamgan-lock/renewed"
    with lock.writing(model_dir):
        time.sleep(1)
        with tf.io.gfile.GFile(Folder(model_dir).lock) as file:
            assert time.time() - json.loads(file.read())["renewed"] < 0.4
