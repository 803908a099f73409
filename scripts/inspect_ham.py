"""See `hamgan.cli.inspect_ham`, or --help."""

from hamgan.cli import inspect_ham

if __name__ == "__main__":
    inspect_ham.run()
