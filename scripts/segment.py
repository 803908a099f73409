"""See `hamgan.cli.segment`, or --help."""

from hamgan.cli import segment

if __name__ == "__main__":
    segment.run()
