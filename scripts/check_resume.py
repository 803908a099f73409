"""See `hamgan.cli.check_resume`, or --help."""

from hamgan.cli import streams

streams.keep_open()

from hamgan.cli import check_resume  # noqa: E402

if __name__ == "__main__":
    check_resume.run()
