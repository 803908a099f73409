"""See `hamgan.cli.import_checkpoint`, or --help."""

from hamgan.cli import import_checkpoint

if __name__ == "__main__":
    import_checkpoint.run()
