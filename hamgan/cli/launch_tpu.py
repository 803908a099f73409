"""A training on a Cloud TPU, from the request to the bill.

    python scripts/launch_tpu.py up       --name=hamgan --zone=us-west4-a --type=v5litepod-8 --spot
    python scripts/launch_tpu.py install  --name=hamgan --zone=us-west4-a
    python scripts/launch_tpu.py train    --name=hamgan --zone=us-west4-a \\
        --model_dir=gs://BUCKET/RUN --data_dir=gs://BUCKET/tensorflow_datasets

up        asks for the TPU (a queued resource) and waits; again: goes on; makes anew what was taken
install   copies the last commit and makes the environment
doctor    checks environment, data, buckets and configuration there
train     doctor, then the training under a supervisor; stays, and makes the TPU again when it is
          taken away (--detach: doesn't stay)
evaluate  up, install and doctor of a second, smaller machine; it scores every checkpoint
logs      the training's log
status    of the request and of the training
cost      so far and to the end, by the table hamgan/tpu/prices.json
down      deletes it, after a question; --when_done: when the training has ended well

--dry_run prints the exact commands, quoted for a shell, and runs none. Nothing but Python is needed
here, and gcloud. Python's own library is all that this module imports.
"""

import argparse
import os
import pathlib
import re
import sys
import time

from hamgan.tpu import gcloud, launch, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = "up install doctor train evaluate logs status cost down".split()
_NEED_JOB = ("doctor", "train", "evaluate")


def parser():
    """The flags of the command."""
    result = argparse.ArgumentParser(
        prog="launch_tpu.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("command", choices=COMMANDS)
    where = result.add_argument_group("where")
    where.add_argument("--name", default="hamgan", help="of the request and its VM")
    where.add_argument("--zone", required=True, help="e.g. us-west4-a")
    where.add_argument("--project", help="default: gcloud's own")
    where.add_argument("--type", default="v5litepod-8", help="accelerator type")
    where.add_argument("--runtime_version", help="image; default: the chip's")
    tier = where.add_mutually_exclusive_group()
    for name in request.TIERS[1:]:
        words = dict(action="store_const", const=name, dest="tier")
        tier.add_argument(f"--{name}", **words, help=f"take it as {name.replace('_', '-')}")
    where.add_argument("--max_run_duration", default="7d", help="with --flex_start")
    what = result.add_argument_group("what")
    what.add_argument("--model_dir", help="the run's folder, gs://...")
    what.add_argument("--data_dir", help="prepared data, gs://... or a path on the VM")
    what.add_argument("--gin_file", default="configs/hamgan_strong.gin")
    what.add_argument("--gin_param", action="append", default=[], help="one more binding")
    what.add_argument("--repository", default=str(ROOT), help="a checkout, or an address to clone")
    how = result.add_argument_group("how")
    how.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    how.add_argument("--detach", action="store_true", help="train: start it and return")
    how.add_argument("--when_done", action="store_true", help="down: when training has ended well")
    how.add_argument("--timeout", type=float, help="up: seconds to wait")
    how.add_argument("--steps", type=int, help="cost: of the whole training")
    how.add_argument("--steps_done", type=int, help="cost: so far")
    result.set_defaults(tier="on_demand")
    return result


def tensorflow_version():
    """The version that requirements-tpu.txt installs."""
    text = (ROOT / "requirements-tpu.txt").read_text(encoding="utf-8")
    return re.search(r"^tensorflow-tpu==([\d.]+)", text, re.MULTILINE)[1]


def execute(flags, *, run=None, sleep=time.sleep, ask=input):
    """Runs a command.

    Args:
      flags: what `parser` gave.
      run: a `gcloud.Runner`, or what takes its place.
      sleep, ask: what waits and what asks.

    Returns:
      The exit status.

    Raises:
      ValueError: wrong use, or a command that failed.
    """
    place = request.Place(
        **{name: getattr(flags, name) for name in "name zone type project tier".split()},
        runtime_version=flags.runtime_version,
        max_run_duration=flags.max_run_duration,
    )
    job = _job(flags) if flags.command in _NEED_JOB else None
    launcher = launch.Launcher(
        place,
        run=run or gcloud.Runner(dry_run=flags.dry_run),
        tensorflow=tensorflow_version(),
        sleep=sleep,
    )
    if flags.command == "train":
        if flags.dry_run or launcher.training() != "running":
            launcher.train(job)
        if flags.detach or flags.dry_run:
            return 0
        gcloud.note("Interrupting this doesn't stop the training; the same command comes back.")
        return launcher.keep(job, repository=flags.repository)
    if flags.command == "evaluate":
        if launcher.up(timeout=flags.timeout):
            launcher.install(flags.repository)
        launcher.evaluate(job)
    elif flags.command == "doctor":
        launcher.doctor(job)
    elif flags.command == "up":
        launcher.up(timeout=flags.timeout)
    elif flags.command == "install":
        launcher.install(flags.repository)
    elif flags.command == "down":
        return _down(launcher, flags, sleep, ask)
    elif flags.command == "cost":
        return _cost(launcher, flags)
    else:
        shown = getattr(launcher, flags.command)()
        print(shown or "", end="\n" if shown else "")
    return 0


def _job(flags):
    for name in ("model_dir", "data_dir"):
        if not getattr(flags, name):
            raise ValueError(f"{flags.command} needs --{name}=gs://BUCKET/FOLDER, got none.")
    if not flags.gin_file.startswith("gs://") and "://" not in flags.repository:
        if (
            not os.path.isabs(flags.gin_file)
            and not (pathlib.Path(flags.repository) / flags.gin_file).is_file()
        ):
            raise ValueError(f"gin_file must be in the repository, got {flags.gin_file!r}.")
    return request.Job(
        model_dir=flags.model_dir,
        data_dir=flags.data_dir,
        gin_file=flags.gin_file,
        gin_params=tuple(flags.gin_param),
    )


def _down(launcher, flags, sleep, ask):
    if not flags.when_done:
        return 0 if launcher.down(ask=ask) else 1
    while not launcher.dry_run:
        line = launcher.status()
        training = line.rpartition(": ")[2]
        if training == "0":
            break
        if training.isdigit():
            raise ValueError(f"The training didn't end well, so the VM is kept: {line}")
        sleep(60.0)
    return 0 if launcher.down(ask=lambda question: "y") else 1


def _cost(launcher, flags):
    place = launcher.place
    words = ["gcloud", "compute", "tpus", "queued-resources", "describe", place.name]
    result = launcher.run([*words, *place.where, "--format=json"], capture=True)
    if launcher.dry_run:
        return 0
    if result.status:
        raise ValueError(f"gcloud can't describe {place.name}: {result.errors.strip()}")
    hours = launch.hours_of(result.output, now=time.time())
    lines = launch.cost(place, hours=hours, steps_done=flags.steps_done, steps=flags.steps)
    print("\n".join([*lines, "Hours count from the request; those of waiting cost nothing."]))
    return 0


def run():
    """The command."""
    try:
        sys.exit(execute(parser().parse_args()))
    except ValueError as error:
        sys.exit(f"ERROR: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What runs there goes on; the same command comes back to it.")


if __name__ == "__main__":
    run()
