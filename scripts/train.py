"""See `hamgan.cli.train`, or --help."""

from hamgan.cli import train

if __name__ == "__main__":
    train.run()
