"""See `hamgan.cli.check_resume`, or --help."""

from hamgan.cli import check_resume

if __name__ == "__main__":
    check_resume.run()
