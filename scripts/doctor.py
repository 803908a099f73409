"""See `hamgan.cli.doctor`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import doctor  # noqa: E402

if __name__ == "__main__":
    doctor.run()
