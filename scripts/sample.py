"""See `hamgan.cli.sample`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import sample  # noqa: E402

if __name__ == "__main__":
    sample.run()
