"""See `hamgan.cli.inspect_ham`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import inspect_ham  # noqa: E402

if __name__ == "__main__":
    inspect_ham.run()
