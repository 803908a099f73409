"""From a TPU that was asked for to a training on it, through the `gcloud` command.

Python's own library is all this needs: it runs where nothing is installed.
"""

import re
import shlex
import time

from hamgan.tpu import chips
from hamgan.tpu.gcloud import note
from hamgan.tpu.queued import GONE, WAITING, Queued

# Of a request of which gcloud can't say.
UNKNOWN = "UNKNOWN"
# The last is there when an installation has come to its end.
SOURCE, VENV, INSTALLED = "~/hamgan/source", "~/hamgan/venv", "~/hamgan/installed"
_EVALUATION_WAITS = 7 * 24 * 3600  # seconds for a new checkpoint
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


class Launcher(Queued):
    """The commands of one TPU.

    Args:
      place: a `Place`.
      run: a `Runner`, or what takes its place.
      tensorflow: version of the wheel that is installed there.
      sleep: waits so many seconds.
    """

    def __init__(self, place, *, run, tensorflow="2.20.0", sleep=time.sleep):
        chips.check_hosts(place.machine, image=place.runtime_version, tensorflow=tensorflow)
        super().__init__(place, run=run, sleep=sleep)
        several = place.machine.hosts > 1
        self._tpu = place.name if several else "local"
        # On a slice the image's server holds the chips of every host; a process that loads libtpu
        # as well gets none.
        self._environment = "TPU_LOAD_LIBRARY=0 " if several else ""

    def ssh(self, command, *, everywhere=False, capture=False, check=True):
        """Runs a line in the VM's shell."""
        worker = "all" if everywhere else "0"
        words = ["gcloud", *_VM, "ssh", self.place.name, *self.place.where, f"--worker={worker}"]
        words += [f"--command={command}"]
        return self._checked(words, capture=capture) if check else self.run(words, capture=capture)

    def install(self, source):
        """Copies a commit to the VM, or has it clone an address, and makes the environment.

        Args:
          source: a `request.Source`.

        Raises:
          ValueError: a command failed.
        """
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        fresh = f"rm -rf {INSTALLED} {SOURCE}"
        if source.commit is None:
            clone = f"git clone --depth=1 {shlex.quote(source.repository)} {SOURCE}"
            self.ssh(f"{fresh} && {clone}", everywhere=True)
        else:
            words = ["git", "-C", source.repository, "archive", "--format=tar.gz"]
            self._checked([*words, f"--output={source.archive}", source.commit])
            words = ["gcloud", *_VM, "scp", source.archive, f"{self.place.name}:launch_tpu.tar.gz"]
            self._checked([*words, *self.place.where, "--worker=all"])
            unpack = f"tar -xzf ~/launch_tpu.tar.gz -C {SOURCE}"
            self.ssh(f"{fresh} && mkdir -p {SOURCE} && {unpack}", everywhere=True)
        pip = f"cd {SOURCE} && {VENV}/bin/pip install --quiet --no-deps"
        for command in (
            _FREE_PYTHON,
            _ENSURE_VENV,
            f"python3 -m venv --upgrade-deps {VENV}",
            f"{pip} -r requirements-tpu-{_PYTHON}.lock",
            f"{pip} -e . && touch {INSTALLED}",
        ):
            self.ssh(command, everywhere=True)

    def is_installed(self):
        """Whether `install` has come to its end on every host of the VM."""
        question = f"test -f {INSTALLED} && echo installed: yes || echo installed: no"
        answer = self.ssh(question, everywhere=True, capture=True, check=False).output
        return "installed: yes" in answer and "installed: no" not in answer

    def prepare(self, source, *, timeout=None):
        """`up`, then `install` where it isn't done."""
        self.up(timeout=timeout)
        if not self.is_installed():
            self.install(source)

    def _refusal(self):
        return (
            'echo "ERROR: a training is running on this VM, process '
            "$(cat ~/hamgan/supervisor.pid). Wait for its end, or stop it: kill "
            '$(cat ~/hamgan/supervisor.pid)" >&2'
        )

    def doctor(self, job, *more):
        """Checks environment, data, buckets and configuration on the VM.

        Args:
          job: a `request.Job`.
          *more: flags of the doctor.
        """
        python = f"cd {SOURCE} && {self._environment}{VENV}/bin/python"
        self.ssh(f"{python} scripts/check_environment.py --tpu", everywhere=True)
        self.ssh(f"{python} scripts/doctor.py {shlex.join([*job.flags(self._tpu), *more])}")

    def train(self, job):
        """Starts a training under the VM's supervisor, after the doctor.

        A training that ends within a minute has most likely failed: its log is shown.
        """
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        # Not all records: that takes hours of a machine that is paid for.
        self.doctor(job, "--mode=train", "--quick")
        self._start(["scripts/train.py", *job.flags(self._tpu), "--mode=train"])

    def evaluate(self, job):
        """Starts the evaluation of every checkpoint, old and to come, on this machine."""
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {self._refusal()}; exit 1; }}")
        self.doctor(job, "--quick")
        # Longer than a spot machine of the training may wait in the queue.
        words = ["--watch", f"--timeout={_EVALUATION_WAITS}"]
        self._start(["scripts/evaluate.py", *job.flags(self._tpu), *words])

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

    def look(self):
        """(state of the request, what `training` says of an active one).

        The state is UNKNOWN where gcloud can't say: one answer that fails ends nothing.
        """
        try:
            state = self.state()
        except ValueError as error:
            note(str(error))
            return UNKNOWN, None
        return state, self.training() if state == "ACTIVE" else None

    def keep(self, job, *, source, poll=60.0, patience=10):
        """Waits for the end of a training; makes the TPU again and goes on when it is taken away.

        Interrupting this doesn't stop the training.

        Args:
          job: a `request.Job`.
          source: a `request.Source`.
          poll: seconds between looks.
          patience: looks without an answer, after which this ends.

        Returns:
          The training's exit status.

        Raises:
          ValueError: the request was deleted, nothing answers, a command failed.
        """
        silent = 0
        while True:
            state, training = self.look()
            if state in (None, "DELETING"):
                raise ValueError(
                    f"{self.place.name} was deleted. If its training wasn't over, up, install and "
                    "train go on from the newest checkpoint."
                )
            if state in GONE:
                note(f"{self.place.name} is {state}: it is made again.")
                self.prepare(source)
                self.train(job)
            elif training == "gone":
                note("The VM was restarted: the training goes on.")
                self.train(job)
            elif training and training.isdigit():
                return int(training)
            # Of one that is taken away, the machine is gone before its state says so.
            is_silent = state == UNKNOWN or (state == "ACTIVE" and not training)
            silent = silent + 1 if is_silent else 0
            if silent >= patience:
                raise ValueError(f"{self.place.name} is {state}, but didn't answer {silent} times.")
            self._sleep(poll)

    def wait(self, *, poll=60.0, patience=60):
        """Waits until the training has ended well.

        Args:
          poll: seconds between looks.
          patience: looks in a row that find no training at work, after which this ends.

        Returns:
          Whether there is a machine; False: the request is gone.

        Raises:
          ValueError: the training ended otherwise, or nothing trains; the machine stays.
        """
        vain, shown = 0, None
        while True:
            state, training = found = self.look()
            line = self._line(*found)
            if line != shown:
                note(f"{time.strftime('%H:%M:%S')} {line}")
                shown = line
            if state is None:
                return False
            if training == "0":
                return True
            if training and training.isdigit():
                raise ValueError(f"The training didn't end well, so the VM is kept: {line}")
            vain = 0 if training == "running" or state in WAITING else vain + 1
            if vain >= patience:
                raise ValueError(
                    f"Nothing has trained in {patience} looks, one in {poll:.0f} s, so the VM is "
                    f"kept: {line}"
                )
            self._sleep(poll)

    def _line(self, state, training):
        rest = training or ("no answer" if state == "ACTIVE" else "-")
        return f"{self.place.name}: {state or 'not there'}, training: {rest}"

    def training(self):
        """'running', 'gone' (none is, or the VM was restarted), an exit status; None: no answer."""
        result = self.ssh(_wait_words(), capture=True, check=False)
        found = re.search(r"^training: (\S+)$", result.output, re.MULTILINE)
        return found[1] if found else None

    def logs(self, *, follow=True):
        """Shows the log, and what comes.

        Raises:
          ValueError: it can't be read.
        """
        follow = "-f " if follow else ""
        result = self.ssh(f"tail -n 100 {follow}~/hamgan/train.log", check=False)
        if result.status:
            raise ValueError(
                f"The log of {self.place.name} can't be read (status {result.status}). Is there a "
                "VM, and has a training begun? See: launch_tpu.py status"
            )

    def status(self):
        """One line: the request's state, and the training's."""
        state, training = self.look()
        if self.dry_run:
            note("The next runs only if the one above says ACTIVE:")
            self.training()
            return ""
        return self._line(state, training)


def _wait_words():
    """A line for the VM that says how its training is: 'training: running', 'gone' or a status."""
    return (
        'if test -f ~/hamgan/train.status; then echo "training: $(cat ~/hamgan/train.status)"; '
        f"elif {_RUNNING}; then echo 'training: running'; else echo 'training: gone'; fi"
    )
