"""Scripts in processes of their own that needn't import TensorFlow: they are forked from one that
has. The import takes longer than most of what tests ask of a script.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import weakref

ROOT = pathlib.Path(__file__).parent.parent
_PATHS = [str(ROOT), str(ROOT / "tests")]
# The first process asks for them all: they are imported once, whoever asks.
_PRELOADED = ["children", "sweep_jobs", "hamgan.evaluation.jobs", "matplotlib.pyplot", "sklearn"]


@contextlib.contextmanager
def _importable():
    """Has what is started meanwhile find the tests' modules."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(_PATHS)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(target, args=(), kwargs=None):
    """A multiprocessing.Process that runs `target` and has TensorFlow when it starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=target, args=args, kwargs=kwargs or {})
    with _importable():
        process.start()
    return process


@contextlib.contextmanager
def nursery(target):
    """Yields start(*args, **kwargs) of a process that runs `target`; kills those that are left."""
    started = []

    def start_one(*args, **kwargs):
        started.append(start(target, args, kwargs))
        return started[-1]

    try:
        yield start_one
    finally:
        for process in started:
            process.kill()


def _work(script, arguments, cwd, environment, outputs):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [os.path.dirname(script), *(path for path in sys.path if path not in _PATHS)]
    sys.argv = [script, *arguments]
    for number, path in enumerate([os.devnull, *outputs]):
        file = os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


class Script:
    """`python SCRIPT ARGUMENTS`, running; what subprocess.Popen has and tests use.

    Args:
      arguments: the interpreter (which is not looked at), the script and its flags.
      cwd: where it runs.
      env: its environment; without one, this process's.
    """

    def __init__(self, arguments, *, cwd=ROOT, env=None):
        _, script, *words = map(str, arguments)
        self.args = arguments
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [pathlib.Path(self._folder.name) / name for name in ("out", "err")]
        for path in self._outputs:
            path.touch()
        environment = dict(os.environ if env is None else env)
        self._process = start(
            _work,
            [
                os.path.join(cwd, script),
                words,
                str(cwd),
                environment,
                list(map(str, self._outputs)),
            ],
        )
        # Python waits at its end for such processes, and a test that failed leaves its own running.
        weakref.finalize(self, self._process.kill)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout, *self.read())
        return self.returncode

    def read(self):
        """What it has written so far: stdout and stderr."""
        return tuple(path.read_text() for path in self._outputs)


def run(arguments, *, cwd=ROOT, env=None, timeout=600):
    """A script's end as a subprocess.CompletedProcess, with its output as text."""
    script = Script(arguments, cwd=cwd, env=env)
    try:
        script.wait(timeout)
    except subprocess.TimeoutExpired:
        script.kill()
        script.wait()
        raise
    return subprocess.CompletedProcess(arguments, script.returncode, *script.read())
