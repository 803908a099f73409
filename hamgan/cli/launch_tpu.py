"""A training on a Cloud TPU, from the request to the bill.

    python scripts/launch_tpu.py up       --name=hamgan --zone=us-west4-a --type=v5litepod-8 --spot
    python scripts/launch_tpu.py install  --name=hamgan --zone=us-west4-a
    python scripts/launch_tpu.py train    --name=hamgan --zone=us-west4-a --spot \\
        --model_dir=gs://BUCKET/RUN --data_dir=gs://BUCKET/tensorflow_datasets

up        asks for the TPU (a queued resource) and waits; again: goes on; makes anew what was taken
install   copies the last commit and makes the environment
doctor    checks environment, data, buckets and configuration there
train     doctor, then the training under a supervisor; stays, and makes the TPU again when it is
          taken away (--detach: doesn't stay)
evaluate  up, install and doctor of a second, smaller machine, NAME-evaluate; it scores every
          checkpoint
logs      the training's log
status    of the request and of the training
cost      so far and to the end, by the table hamgan/tpu/prices.json
down      deletes it, after a question; --when_done: when the training has ended well

--dry_run prints the exact commands, quoted for a shell, and runs none. Nothing but Python is needed
here, and gcloud. Python's own library is all that this module imports.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import re
import shlex
import sys
import time

from hamgan.tpu import bill, gcloud, launch, queued, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = "up install doctor train evaluate logs status cost down".split()
_NEED_JOB = ("doctor", "train", "evaluate")
_EVALUATE = "-evaluate"  # ends the name of evaluate's machine
# What is of one command or two: said to another, it would be passed over in silence.
_ONLY = {
    "detach": ("train",),
    "again": ("train",),
    "when_done": ("down",),
    "yes": ("down",),
    "timeout": ("up", "evaluate"),
    "steps": ("cost",),
    "steps_done": ("cost",),
    "steps_begun": ("cost",),
}


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
    where.add_argument(
        "--name", default="hamgan", help="of the request and its VM; evaluate's is NAME-evaluate"
    )
    where.add_argument("--zone", required=True, help="e.g. us-west4-a")
    where.add_argument("--project", help="default: gcloud's own")
    where.add_argument(
        "--type", help="accelerator type; default: v5litepod-8, of evaluate v5litepod-1"
    )
    where.add_argument("--runtime_version", help="image; default: the chip's")
    tier = where.add_mutually_exclusive_group()
    for name in request.TIERS[1:]:
        words = dict(action="store_const", const=name, dest="tier")
        tier.add_argument(f"--{name}", **words, help=f"take it as {name.replace('_', '-')}")
    where.add_argument("--max_run_duration", help="with --flex_start, e.g. 2d12h; default: 7d")
    what = result.add_argument_group("what")
    what.add_argument("--model_dir", help="the run's folder, gs://...")
    what.add_argument("--data_dir", help="prepared data, gs://... or a path on the VM")
    what.add_argument("--gin_file", default="configs/hamgan_strong.gin")
    what.add_argument("--gin_param", action="append", default=[], help="one more binding")
    what.add_argument("--repository", default=str(ROOT), help="a checkout, or an address to clone")
    how = result.add_argument_group("how")
    how.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    how.add_argument("--detach", action="store_true", help="train: start it and return")
    how.add_argument("--again", action="store_true", help="train: also what has ended well")
    how.add_argument("--when_done", action="store_true", help="down: when training has ended well")
    how.add_argument("--yes", action="store_true", help="down: without a question")
    how.add_argument("--timeout", type=float, help="up, evaluate: seconds to wait for the machine")
    how.add_argument("--steps", type=int, help="cost: of the whole training")
    how.add_argument("--steps_done", type=int, help="cost: so far")
    how.add_argument("--steps_begun", type=int, help="cost: when this machine began; default: 0")
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
    _check(flags)
    is_judge = flags.command == "evaluate"
    place = request.Place(
        name=f"{flags.name}{_EVALUATE}" if is_judge else flags.name,
        type=flags.type or ("v5litepod-1" if is_judge else "v5litepod-8"),
        **{name: getattr(flags, name) for name in ("zone", "project", "tier")},
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
        return _train(launcher, flags, job)
    if flags.command == "evaluate":
        # Before anything is paid for.
        source = _source(flags, job)
        launcher.prepare(source, timeout=flags.timeout)
        if launcher.answer() == "running":
            gcloud.note(f"The evaluation runs on {place.name}.")
            return 0
        launcher.evaluate(job)
    elif flags.command == "doctor":
        launcher.doctor(job)
    elif flags.command == "up":
        launcher.up(timeout=flags.timeout)
    elif flags.command == "install":
        launcher.install(_source(flags))
    elif flags.command == "down":
        return _down(launcher, flags, sleep, ask)
    elif flags.command == "cost":
        return _cost(launcher, flags)
    elif flags.command == "status":
        _status(launcher)
    else:
        launcher.logs()
    return 0


def _check(flags):
    """Refuses numbers out of range, and flags of other commands."""
    for name, commands in _ONLY.items():
        if getattr(flags, name) not in (None, False) and flags.command not in commands:
            raise ValueError(f"--{name} is for {' and '.join(commands)}, not for {flags.command}.")
    if flags.timeout is not None and not 0 <= flags.timeout < math.inf:
        raise ValueError(f"timeout must be a number of seconds from 0, got {flags.timeout}.")


def _source(flags, job=None, *, strict=True):
    strict = strict and not flags.dry_run
    gin_file = job.gin_file if job else None
    return request.source_of(flags.repository, gin_file=gin_file, strict=strict)


def _train(launcher, flags, job):
    name, zone = launcher.place.name, launcher.place.zone
    found = launcher.found()
    state = queued.state_of(found)
    if not flags.dry_run and state in (None, "DELETING"):
        raise ValueError(
            f"There is no {name} in {zone} ({state or 'no request'}). First: launch_tpu.py up, "
            "then install, with the same flags."
        )
    if found:
        launcher.check(found)
    training = None
    if state in ("ACTIVE", None):
        training = launcher.answer()
    if training == "0" and not flags.again and launcher.is_last(job):
        gcloud.note(
            f"This training has ended well: {job.model_dir}. Nothing is started. To train on, give "
            "more steps (--gin_param='loop.Schedule.num_steps = N') or another --model_dir; "
            "--again starts the same command, e.g. after a change of its gin file."
        )
        return 0
    # Of one that runs, changes since are nobody's business.
    source = _source(flags, job, strict=training != "running")
    if training == "running":
        launcher.check_running(job)
    else:
        if flags.dry_run:  # as `prepare` does where the machine is there
            launcher.found()
            launcher.is_installed()
        else:
            launcher.prepare(source, ask=False)
        launcher.train(job)
    if flags.detach or flags.dry_run:
        return 0
    gcloud.note("Interrupting this doesn't stop the training; the same command comes back.")
    return launcher.keep(job, source=source)


def _job(flags):
    for name in ("model_dir", "data_dir"):
        if not getattr(flags, name):
            raise ValueError(f"{flags.command} needs --{name}=gs://BUCKET/FOLDER, got none.")
    inside = "://" not in flags.gin_file and not os.path.isabs(flags.gin_file)
    if inside and not request.is_address(flags.repository):
        folder = pathlib.Path(flags.repository)
        if not flags.repository or not folder.is_dir():
            raise ValueError(
                "repository must be a git checkout or an address to clone (https://, ssh://, "
                f"git@), got {flags.repository!r}."
            )
        if not (folder / flags.gin_file).is_file():
            raise ValueError(
                f"gin_file must be in the repository ({folder}), got {flags.gin_file!r}."
            )
    return request.Job(
        model_dir=flags.model_dir,
        data_dir=flags.data_dir,
        gin_file=flags.gin_file,
        gin_params=tuple(flags.gin_param),
    )


def _status(launcher):
    found = launcher.status()
    if not launcher.dry_run:
        print(launcher.line(found), flush=True)
    if found.fault:
        raise ValueError(found.fault)


def _down(launcher, flags, sleep, ask):
    status = _deleted(launcher, flags, sleep, ask)
    place = launcher.place
    if not status and not place.name.endswith(_EVALUATE):
        words = ["status", f"--name={place.name}{_EVALUATE}", *place.where]
        gcloud.note(
            f"The machine of its evaluation is another, and may be paid for. See: launch_tpu.py "
            f"{shlex.join(words)}"
        )
    return status


def _deleted(launcher, flags, sleep, ask):
    if flags.when_done and flags.dry_run:
        launcher.status()
        gcloud.note("The next runs only when the training has ended with status 0:")
    elif flags.when_done and not launcher.wait():
        gcloud.note(f"There is no {launcher.place.name} in {launcher.place.zone}.")
        return 0
    # Days after the last word of a user: one command that fails mustn't leave a machine paid.
    for left in reversed(range(10 if flags.when_done else 1)):
        try:
            return 0 if launcher.down(ask=None if flags.when_done or flags.yes else ask) else 1
        except ValueError as error:
            if not left:
                raise
            gcloud.note(str(error))
            sleep(60.0)


def _cost(launcher, flags):
    place, found = launcher.place, launcher.found()
    if launcher.dry_run:
        gcloud.note("The next runs only if the one above says ACTIVE:")
        launcher.machine_created()
        return 0
    if found is None:
        raise ValueError(f"There is no {place.name} in {place.zone}, so nothing is paid for.")
    # As it is there, whatever these flags say.
    there = dict(type=launcher.kind(found), tier=launcher.tier(found))
    place = dataclasses.replace(place, **there, max_run_duration=None)
    state = queued.state_of(found)
    created = launcher.machine_created() if state == "ACTIVE" else None
    never = state in bill.NEVER_THERE
    since = created or found.get("createTime")
    lines = bill.cost(
        place,
        hours=0.0 if never else bill.hours_since(since, now=time.time()),
        state=state,
        trained=created is not None,
        steps_begun=flags.steps_begun or 0,
        steps_done=flags.steps_done,
        steps=flags.steps,
    )
    if not never:
        what = "machine was made" if created else "request was made, and waiting costs nothing"
        lines.append(
            f"Hours count from when this {what}. Machines that were there before it aren't in them "
            "(--steps_begun: the step that it began with)."
        )
    print("\n".join(lines))
    return 0


def run():
    """The command."""
    try:
        sys.exit(execute(parser().parse_args()))
    except ValueError as error:
        sys.exit(f"ERROR: {error}")
    except BrokenPipeError:  # of a reader that has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("Interrupted. What runs there goes on; the same command comes back to it.")


if __name__ == "__main__":
    run()
