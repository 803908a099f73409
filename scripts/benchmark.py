"""See `hamgan.cli.benchmark`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import benchmark  # noqa: E402

if __name__ == "__main__":
    benchmark.run()
