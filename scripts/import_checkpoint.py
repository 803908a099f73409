"""See `hamgan.cli.import_checkpoint`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import import_checkpoint  # noqa: E402

if __name__ == "__main__":
    import_checkpoint.run()
