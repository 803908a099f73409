"""See `hamgan.cli.export`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import export  # noqa: E402

if __name__ == "__main__":
    export.run()
