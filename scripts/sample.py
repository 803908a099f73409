"""See `hamgan.cli.sample`, or --help."""

from hamgan.cli import sample

if __name__ == "__main__":
    sample.run()
