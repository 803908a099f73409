"""What the tests themselves stand on."""

import signal
import subprocess
import sys
import time
import types

import conftest
import forked
import pytest

SCRIPT = """
import sys, time
print(" ".join(sys.argv[1:]), __name__)
print("tensorflow" in sys.modules, file=sys.stderr, flush=True)
if "wait" in sys.argv:
    time.sleep(600)
sys.exit("no good" if "bad" in sys.argv else 0)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, "script.py"], tmp_path


def test_a_script_has_its_arguments_streams_status_and_tensorflow(script):
    words, cwd = script
    result = forked.run([*words, "--a", "b"], cwd=cwd)
    assert (result.returncode, result.stdout) == (0, "--a b __main__\n")
    assert result.stderr == "True\n"
    result = forked.run([*words, "bad"], cwd=cwd)
    assert result.returncode == 1 and result.stderr.endswith("no good\n")


def test_a_script_can_be_stopped(script):
    words, cwd = script
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([*words, "wait"], cwd=cwd, timeout=1)
    running = forked.Script([*words, "wait"], cwd=cwd)
    assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    "marker, until, skipped", [("slow", -1, 1), ("slow", 60, 0), (None, -1, 0)]
)
def test_what_is_slow_is_skipped_when_time_is_up(monkeypatch, marker, until, skipped):
    monkeypatch.setenv("HAMGAN_TESTS_UNTIL", str(time.time() + until))
    item = types.SimpleNamespace(get_closest_marker=lambda name: name if name == marker else None)
    try:
        conftest.pytest_runtest_setup(item)
    except pytest.skip.Exception as reason:
        assert skipped and "HAMGAN_TESTS_UNTIL" in str(reason)
    else:
        assert not skipped
