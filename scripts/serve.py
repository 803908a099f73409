"""See `hamgan.cli.serve`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import serve  # noqa: E402

if __name__ == "__main__":
    serve.run()
