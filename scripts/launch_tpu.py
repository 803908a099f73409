"""See `hamgan.cli.launch_tpu`, or --help."""

import pathlib
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an older one would end with a traceback
    sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ".")

# It runs where the project isn't installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hamgan.cli import launch_tpu  # noqa: E402

if __name__ == "__main__":
    launch_tpu.run()
