"""From a request for a TPU to a training on it, through the `gcloud` command.

TPUs are had through queued resources (cloud.google.com/tpu/docs/queued-resources): a request waits,
is provisioned, is active, and is suspended when a spot machine is taken away; then it can only be
deleted and made again. Python's own library is all this needs: it runs where nothing is installed.
"""

import calendar
import json
import re
import shlex
import time

from hamgan.tpu import chips
from hamgan.tpu.gcloud import note
from hamgan.tpu.request import check_repository

# What becomes another state by itself, and what has to be deleted before it can be made again.
WAITING = (
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "CREATING",
    "PROVISIONING",
    "SUSPENDING",
    "DELETING",
)
GONE = ("SUSPENDED", "FAILED")
SOURCE, VENV = "~/hamgan/source", "~/hamgan/venv"
_QUEUE = ("compute", "tpus", "queued-resources")
_VM = ("compute", "tpus", "tpu-vm")
_FREE_PYTHON = (
    'python3 -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" || '
    '{ echo "ERROR: the image has $(python3 --version), but tensorflow-tpu needs 3.10, 3.11 or '
    '3.12. Choose another --runtime_version." >&2; exit 1; }'
)
_PYTHON = "$(python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])')"
# Ubuntu's Python comes without the part of venv that brings pip; a new VM's own updates may hold
# apt's lock.
_ENSURE_VENV = (
    'python3 -c "import ensurepip" 2> /dev/null || '
    "{ sudo apt-get -o DPkg::Lock::Timeout=600 update -qq && "
    "sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv; }"
)
# The name too, because a number is given to another process after a restart.
_RUNNING = (
    'grep -qs hamgan.tpu.supervisor "/proc/$(cat ~/hamgan/supervisor.pid 2> /dev/null)/cmdline"'
)


class Launcher:
    """The commands of one TPU.

    Args:
      place: a `Place`.
      run: a `Runner`, or what takes its place.
      tensorflow: version of the wheel that is installed there.
      sleep: waits so many seconds.
    """

    def __init__(self, place, *, run, tensorflow="2.20.0", sleep=time.sleep):
        chips.check_hosts(place.machine, image=place.runtime_version, tensorflow=tensorflow)
        self.place, self.run, self._sleep = place, run, sleep
        several = place.machine.hosts > 1
        self._tpu = place.name if several else "local"
        # On a slice the image's server holds the chips of every host; a process that loads libtpu
        # as well gets none.
        self._environment = "TPU_LOAD_LIBRARY=0 " if several else ""

    @property
    def dry_run(self):
        return getattr(self.run, "dry_run", False)

    # The request

    def state(self):
        """State of the request, None when there is none.

        Raises:
          ValueError: gcloud can't say.
        """
        words = ["gcloud", *_QUEUE, "describe", self.place.name, *self.place.where]
        result = self.run([*words, "--format=value(state.state)"], capture=True)
        if result.status and "NOT_FOUND" in result.errors:
            return None
        if result.status:
            raise ValueError(
                f"gcloud can't say whether there is a {self.place.name} in {self.place.zone}: "
                f"{result.errors.strip()} Check zone and project, and run: gcloud auth login"
            )
        return result.output.strip() or None

    def create_words(self):
        """The words of the request."""
        place = self.place
        flex = place.tier == "flex_start"
        # What only the alpha track has: https://cloud.google.com/tpu/docs/request-using-flex-start
        words = ["gcloud", *(["alpha"] if flex else []), *_QUEUE, "create", place.name]
        words += [f"--node-id={place.name}", *place.where, f"--accelerator-type={place.type}"]
        words += [f"--runtime-version={place.runtime_version or place.machine.chip.image}"]
        # For buckets; without it a VM may read them only.
        words += ["--scopes=https://www.googleapis.com/auth/cloud-platform"]
        if flex:
            duration = f"--max-run-duration={place.max_run_duration}"
            words += ["--provisioning-model=flex-start", duration]
        elif place.tier != "on_demand":
            words += [f"--{place.tier}"]
        return words

    def delete_words(self):
        words = ["gcloud", *_QUEUE, "delete", self.place.name, *self.place.where]
        return [*words, "--force", "--quiet"]

    def up(self, *, poll=30.0, timeout=None, failures=3):
        """Asks for the TPU and waits until it is there; makes again what was taken away.

        What is there is used. Called again it goes on.

        Args:
          poll: seconds between looks.
          timeout: seconds, after which waiting ends and the request stays; None: never.
          failures: of requests; after so many no more is made.

        Returns:
          Whether the VM is new, so that nothing is installed.
        """
        state, new, start, shown = self.state(), False, time.monotonic(), None
        if self.dry_run:
            note("What follows runs only if the one above finds no request:")
            self._checked(self.create_words())
            return True
        while state != "ACTIVE":
            if state in GONE:
                failures -= state == "FAILED"
                if failures < 1:
                    raise ValueError(
                        f"{self.place.name} is FAILED again. Why: gcloud {shlex.join(_QUEUE)} "
                        f"describe {self.place.name} {shlex.join(self.place.where)}"
                    )
                note(f"{self.place.name} is {state}: it is deleted and made again.")
                self._checked(self.delete_words())
                state = None
            if state is None:
                self._checked(self.create_words())
                new = True
            elif state not in WAITING:
                raise ValueError(f"{self.place.name} is {state!r}, which nothing is known about.")
            waited = time.monotonic() - start
            if timeout is not None and waited > timeout:
                raise ValueError(
                    f"{self.place.name} is {state} after {waited:.0f} s. The request stays; the "
                    f"same command goes on. To give it up: {shlex.join(self.delete_words())}"
                )
            self._sleep(poll)
            state = self.state()
            if state != shown:
                note(f"{time.strftime('%H:%M:%S')} {self.place.name}: {state}")
                shown = state
        return new

    def down(self, *, ask=input):
        """Deletes the TPU, after a question. Returns whether it did."""
        if not self.dry_run:
            question = f"Delete {self.place.name} ({self.place.type}) in {self.place.zone}? [y/N] "
            if ask(question).strip().lower() not in ("y", "yes"):
                note("It stays, and costs money.")
                return False
        self._checked(self.delete_words())
        return True

    # The VM

    def ssh(self, command, *, everywhere=False, capture=False, check=True):
        """Runs a line in the VM's shell."""
        worker = "all" if everywhere else "0"
        words = ["gcloud", *_VM, "ssh", self.place.name, *self.place.where, f"--worker={worker}"]
        words += [f"--command={command}"]
        return self._checked(words, capture=capture) if check else self.run(words, capture=capture)

    def install(self, repository):
        """Copies the last commit of a checkout to the VM, or has it clone an address, and makes the
        environment.

        Raises:
          ValueError: no checkout of this project; a command failed.
        """
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        if re.match(r"\w+://|git@", repository):
            clone = f"git clone --depth=1 {shlex.quote(repository)} {SOURCE}"
            self.ssh(f"rm -rf {SOURCE} && {clone}", everywhere=True)
        else:
            archive = check_repository(repository, strict=not self.dry_run)
            words = ["git", "-C", repository, "archive", "--format=tar.gz"]
            self._checked([*words, f"--output={archive}", "HEAD"])
            words = ["gcloud", *_VM, "scp", archive, f"{self.place.name}:launch_tpu.tar.gz"]
            self._checked([*words, *self.place.where, "--worker=all"])
            unpack = f"tar -xzf ~/launch_tpu.tar.gz -C {SOURCE}"
            self.ssh(f"rm -rf {SOURCE} && mkdir -p {SOURCE} && {unpack}", everywhere=True)
        pip = f"cd {SOURCE} && {VENV}/bin/pip install --quiet --no-deps"
        for command in (
            _FREE_PYTHON,
            _ENSURE_VENV,
            f"python3 -m venv --upgrade-deps {VENV}",
            f"{pip} -r requirements-tpu-{_PYTHON}.lock",
            f"{pip} -e .",
        ):
            self.ssh(command, everywhere=True)

    def _refusal(self):
        return (
            'echo "ERROR: a training is running on this VM, process '
            "$(cat ~/hamgan/supervisor.pid). Wait for its end, or stop it: kill "
            '$(cat ~/hamgan/supervisor.pid)" >&2'
        )

    def doctor(self, job):
        """Checks environment, data, buckets and configuration on the VM."""
        python = f"cd {SOURCE} && {self._environment}{VENV}/bin/python"
        self.ssh(f"{python} scripts/check_environment.py --tpu", everywhere=True)
        self.ssh(f"{python} scripts/doctor.py {shlex.join(job.flags(self._tpu))}")

    def train(self, job):
        """Starts a training under the VM's supervisor, after the doctor.

        A training that ends within a minute has most likely failed: its log is shown.
        """
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        self.doctor(job)
        words = ["scripts/train.py", *job.flags(self._tpu), "--mode=train"]
        self._start(words)

    def evaluate(self, job):
        """Starts the evaluation of every checkpoint, old and to come, on this machine."""
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        self.doctor(job)
        self._start(["scripts/evaluate.py", *job.flags(self._tpu), "--watch"])

    def _start(self, words):
        command = f"{VENV}/bin/python {shlex.join(words)}"
        self.ssh(
            f"cd {SOURCE} && rm -f ~/hamgan/train.status && {{ {self._environment}"
            "PYTHONUNBUFFERED=1 nohup "
            f"{VENV}/bin/python -m hamgan.tpu.supervisor --folder=$HOME/hamgan -- {command} "
            ">> ~/hamgan/supervisor.log 2>&1 < /dev/null & } ; "
            "for second in $(seq 60); do test ! -f ~/hamgan/train.status || break; sleep 1; done; "
            "tail -n 20 ~/hamgan/train.log; "
            'test ! -f ~/hamgan/train.status || exit "$(cat ~/hamgan/train.status)"'
        )

    def keep(self, job, *, repository, poll=60.0):
        """Waits for the end of a training; makes the TPU again and goes on when it is taken away.

        Interrupting this doesn't stop the training.

        Returns:
          The training's exit status.
        """
        silent = 0
        while True:
            state = self.state()
            if state == "ACTIVE":
                training = self.training()
                silent = 0 if training else silent + 1
                if training and training.isdigit():
                    return int(training)
                if training == "gone":
                    note("The VM was restarted: the training goes on.")
                    self.train(job)
                # Of one that is taken away, the machine is gone before its state says so.
                if silent >= 10:
                    raise ValueError(
                        f"{self.place.name} is ACTIVE, but didn't answer {silent} times."
                    )
            elif state in (None, *GONE):
                note(f"{self.place.name} is {state or 'gone'}: it is made again.")
                self.up()
                self.install(repository)
                self.train(job)
            self._sleep(poll)

    def training(self):
        """'running', 'gone' (none is, or the VM was restarted), an exit status; None: no answer."""
        result = self.ssh(_wait_words(), capture=True, check=False)
        found = re.search(r"^training: (\S+)$", result.output, re.MULTILINE)
        return found[1] if found else None

    def logs(self, *, follow=True):
        """Shows the log, and what comes."""
        follow = "-f " if follow else ""
        self.ssh(f"tail -n 100 {follow}~/hamgan/train.log", check=False)

    def status(self):
        """One line: the request's state, and the training's."""
        state = self.state()
        training = "-"
        if state == "ACTIVE":
            training = self.training() or "no answer"
        return f"{self.place.name}: {state or 'not there'}, training: {training}"

    def _checked(self, words, *, capture=False):
        result = self.run(words, capture=capture)
        if result.status:
            raise ValueError(
                f"This command ended with status {result.status}: {shlex.join(words)}\n"
                f"{result.errors.strip()}\nThe same command goes on when the cause is gone: what "
                "is done is used. If there is a VM now, it costs money; delete it: "
                f"{shlex.join(self.delete_words())}"
            )
        return result


def _wait_words():
    """A line for the VM that says how its training is: 'training: running', 'gone' or a status."""
    return (
        'if test -f ~/hamgan/train.status; then echo "training: $(cat ~/hamgan/train.status)"; '
        f"elif {_RUNNING}; then echo 'training: running'; else echo 'training: gone'; fi"
    )


def cost(place, *, hours, steps_done=None, steps=None, table=None):
    """What a run has cost and will cost, as lines.

    Args:
      place: a `Place`.
      hours: that the machine has been there.
      steps_done, steps: of the training; None: the end isn't known.
      table: see `chips.prices`.

    Raises:
      ValueError: hours are negative.
    """
    if hours < 0:
        raise ValueError(f"hours must not be negative, got {hours}.")
    table = table or chips.prices()
    price = chips.dollars_per_hour(place.machine, tier=place.tier, table=table)
    lines = [f"prices of {table['date']} ({table['source']})"]
    if price is None:
        return [*lines, f"no price of {place.type} as {place.tier}: enter it in {chips.PRICES}"]
    spent = hours * price
    lines.append(f"so far: {hours:.1f} h x ${price:.2f}/h = ${spent:,.2f}")
    if steps_done and steps:
        total = hours * steps / steps_done
        lines.append(
            f"to the end, at this pace: {total - hours:,.1f} h more, "
            f"${(total - hours) * price:,.2f} more, "
            f"${total * price:,.2f} in all (estimate: hours x steps / steps done)"
        )
    return lines


def hours_of(description, *, now):
    """Hours since a request was made, from gcloud's JSON of it; an upper bound of what is paid for.

    Args:
      description: text of `describe --format=json`.
      now: seconds since 1970.
    """
    created = json.loads(description)["createTime"]
    moment = time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S")
    return max(0.0, now - calendar.timegm(moment)) / 3600
