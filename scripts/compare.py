"""See `hamgan.cli.compare`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import compare  # noqa: E402

if __name__ == "__main__":
    compare.run()
