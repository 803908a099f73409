"""Closed terminals and pipes, in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
from hamgan.cli import streams
streams.keep_open()
import os, sys
path = sys.argv[1]
file = open(path, "w")
print("x" * 100_000)
print("x" * 100_000, file=sys.stderr)
sys.stdout.flush()
os.write(2, b"words of a library")
file.write("written")
file.close()
print("done", flush=True)
"""


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-", "| head -c 1", ""])
def test_closed_streams_and_pipes_change_nothing(tmp_path, redirection):
    path = tmp_path / "file"
    command = f"{sys.executable} -c '{PROGRAM}' {path} {redirection}; echo ${{PIPESTATUS[0]}} >&3"
    status = tmp_path / "status"
    result = subprocess.run(
        ["bash", "-c", f"exec 3>{status}; {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert path.read_text() == "written"  # and not what was meant for a closed stream
    assert status.read_text().strip() == "0"
    assert "Exception" not in result.stderr


def with_signals():
    """In the child: signals as a terminal has them, whatever these tests were started with."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


WAITING = """
import sys, time
from hamgan import signals
with signals.Interruption() as interruption:
    print("ready", flush=True)
    while interruption.signal is None:
        time.sleep(0.01)
print("saved", interruption.signal, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"])
def test_signals_that_end_a_process_are_a_wish_to_stop(name):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=with_signals,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == f"saved {name}\n"
    assert process.wait(30) == 0


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(tmp_path):
    words = tmp_path / "words"
    process = subprocess.Popen(
        ["bash", "-c", f"exec {sys.executable} -c '{WAITING}' >{words} 2>&-"],
        cwd=ROOT,
        preexec_fn=with_signals,
    )
    deadline = time.monotonic() + 60
    while not words.exists() or "ready" not in words.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(30) == 0
    assert "saved SIGHUP" in words.read_text()
