"""See `hamgan.cli.benchmark`, or --help."""

from hamgan.cli import benchmark

if __name__ == "__main__":
    benchmark.run()
