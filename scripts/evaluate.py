"""See `hamgan.cli.evaluate`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import evaluate  # noqa: E402

if __name__ == "__main__":
    evaluate.run()
