"""See `hamgan.cli.doctor`, or --help."""

from hamgan.cli import doctor

if __name__ == "__main__":
    doctor.run()
