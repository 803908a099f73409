"""See `hamgan.checks.environment`, or --help. Works where nothing is installed."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from hamgan.checks import environment  # noqa: E402

if __name__ == "__main__":
    environment.main()
