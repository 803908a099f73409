"""See `hamgan.cli.sweep`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import sweep  # noqa: E402

if __name__ == "__main__":
    sweep.run()
