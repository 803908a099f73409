"""See `hamgan.cli.launch_tpu`, or --help."""

import pathlib
import sys

# It runs where the project isn't installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hamgan.cli import launch_tpu  # noqa: E402

if __name__ == "__main__":
    launch_tpu.run()
