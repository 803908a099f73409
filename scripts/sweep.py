"""See `hamgan.cli.sweep`, or --help."""

import sys

from hamgan.cli import streams

streams.keep_open()

try:
    from hamgan.cli import sweep
except ModuleNotFoundError as error:
    if error.name not in ("optuna", "sqlalchemy"):
        raise
    sys.exit(f"ERROR: Sweeps need {error.name}, which isn't installed: pip install -e .[sweep]")

if __name__ == "__main__":
    sweep.run()
