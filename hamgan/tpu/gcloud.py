"""Runs commands, of `gcloud` above all, or prints them."""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys

TIMED_OUT = 124  # the exit status, as `timeout` has it


def note(text):
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command came to: exit status and what it printed."""

    status: int = 0
    output: str = ""
    errors: str = ""


class Runner:
    """Runs commands, or prints them.

    Args:
      dry_run: print each command, quoted for a shell, and run none.
      limit: seconds for a question, a command whose output is captured.
    """

    def __init__(self, *, dry_run=False, limit=120.0):
        self.dry_run, self.limit = dry_run, limit

    def __call__(self, words, *, capture=False):
        """The `Result` of a command; without `capture` it prints where this process does.

        A question without an answer in time has failed with status TIMED_OUT.

        Raises:
          ValueError: there is no such command.
        """
        if self.dry_run:
            print(shlex.join(words), flush=True)
            return Result()
        note(f"+ {shlex.join(words)}")
        try:
            if capture:
                return self._ask(words)
            return Result(subprocess.run(words, check=False).returncode)
        except FileNotFoundError:
            raise ValueError(
                f"{words[0]} isn't on the PATH. Install the Google Cloud CLI "
                "(https://cloud.google.com/sdk/docs/install) and run: gcloud auth login"
            ) from None
        except OSError as error:
            raise ValueError(f"{words[0]} can't be run: {error}.") from None

    def _ask(self, words):
        # A session of its own, because what gcloud started (Python, ssh) has to end with it.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        with process:
            try:
                output, errors = process.communicate(timeout=self.limit)
            except subprocess.TimeoutExpired:
                _end(process)
                return Result(TIMED_OUT, "", f"no answer within {self.limit:g} s.")
            except BaseException:
                _end(process)
                raise
        return Result(process.returncode, output, errors)


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
