"""See `hamgan.cli.train`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import train  # noqa: E402

if __name__ == "__main__":
    train.run()
