"""The commands that an installation brings, `hamgan-train` and its like: what scripts/ has."""

import functools
import importlib

from hamgan.cli import streams


def _run(module):
    streams.keep_open()
    importlib.import_module(f"hamgan.cli.{module}").run()


train = functools.partial(_run, "train")
evaluate = functools.partial(_run, "evaluate")
sample = functools.partial(_run, "sample")
export = functools.partial(_run, "export")
explore = functools.partial(_run, "explore")
sweep = functools.partial(_run, "sweep")
doctor = functools.partial(_run, "doctor")
inspect = functools.partial(_run, "inspect_ham")
segment = functools.partial(_run, "segment")
serve = functools.partial(_run, "serve")
