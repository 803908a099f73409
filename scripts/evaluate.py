"""See `hamgan.cli.evaluate`, or --help."""

from hamgan.cli import evaluate

if __name__ == "__main__":
    evaluate.run()
