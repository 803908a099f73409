"""See `hamgan.cli.explore`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import explore  # noqa: E402

if __name__ == "__main__":
    explore.run()
