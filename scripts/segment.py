"""See `hamgan.cli.segment`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import segment  # noqa: E402

if __name__ == "__main__":
    segment.run()
