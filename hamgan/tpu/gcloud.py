"""Runs commands, of `gcloud` above all, or prints them."""

import dataclasses
import shlex
import subprocess
import sys


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
    """

    def __init__(self, *, dry_run=False):
        self.dry_run = dry_run

    def __call__(self, words, *, capture=False):
        """The `Result` of a command; without `capture` it prints where this process does."""
        if self.dry_run:
            print(shlex.join(words), flush=True)
            return Result()
        note(f"+ {shlex.join(words)}")
        try:
            done = subprocess.run(words, capture_output=capture, text=True, check=False)
        except FileNotFoundError:
            raise ValueError(
                f"{words[0]} isn't on the PATH. Install the Google Cloud CLI "
                "(https://cloud.google.com/sdk/docs/install) and run: gcloud auth login"
            ) from None
        return Result(done.returncode, done.stdout or "", done.stderr or "")
