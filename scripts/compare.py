"""See `hamgan.cli.compare`, or --help."""

from hamgan.cli import compare

if __name__ == "__main__":
    compare.run()
