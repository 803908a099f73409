"""See `hamgan.cli.tpu_plan`, or --help."""

from hamgan.cli import tpu_plan

if __name__ == "__main__":
    tpu_plan.run()
