"""From a TPU that was asked for to a training on it, through the `gcloud` command.

Python's own library is all this needs: it runs where nothing is installed.
"""

import dataclasses
import re
import shlex
import time

from hamgan.tpu import chips
from hamgan.tpu.gcloud import note
from hamgan.tpu.queued import DAY, GONE, UNKNOWN, WAITING, Deleted, Queued

# The last is there when an installation has come to its end.
SOURCE, VENV, INSTALLED = "~/hamgan/source", "~/hamgan/venv", "~/hamgan/installed"
WORDS = "~/hamgan/train.words"  # of the command that was started last
_SURELY = 5  # looks in a row
_EVALUATION_WAITS = 7 * 24 * 3600  # seconds for a new checkpoint
_VM = ("compute", "tpus", "tpu-vm")
# After three of these without an answer ssh and scp end: the machine may have been taken away.
_ALIVE = "-oServerAliveInterval=30"
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


@dataclasses.dataclass(frozen=True)
class Look:
    """What a look at a request and its training found.

    Attributes:
      state: of the request; None: there is none.
      training: 'running', 'gone' or an exit status; None: no machine is there, or no answer.
      fault: why there is no answer, None where there is one.
    """

    state: str | None
    training: str | None = None
    fault: str | None = None


class Launcher(Queued):
    """The commands of one TPU.

    Args:
      place: a `Place`.
      run: a `Runner`, or what takes its place.
      tensorflow: version of the wheel that is installed there.
      sleep, clock: see `Queued`.
    """

    def __init__(self, place, *, run, tensorflow="2.20.0", sleep=time.sleep, clock=time.monotonic):
        chips.check_hosts(place.machine, image=place.runtime_version, tensorflow=tensorflow)
        super().__init__(place, run=run, sleep=sleep, clock=clock)
        several = place.machine.hosts > 1
        self._tpu = place.name if several else "local"
        # On a slice the image's server holds the chips of every host; a process that loads libtpu
        # as well gets none.
        self._environment = "TPU_LOAD_LIBRARY=0 " if several else ""

    def ssh(self, command, *, everywhere=False, capture=False, check=True):
        """Runs a line in the VM's shell."""
        worker = "all" if everywhere else "0"
        words = ["gcloud", *_VM, "ssh", self.place.name, *self.place.where, f"--worker={worker}"]
        words += [f"--ssh-flag={_ALIVE}", f"--command={command}"]
        return self._checked(words, capture=capture) if check else self.run(words, capture=capture)

    def install(self, source):
        """Copies a commit to the VM, or has it clone an address, and makes the environment.

        Args:
          source: a `request.Source`.

        Raises:
          ValueError: a command failed.
        """
        self._refuse_where_running()
        fresh = f"rm -rf {INSTALLED} {SOURCE}"
        if source.commit is None:
            clone = f"git clone --depth=1 {shlex.quote(source.repository)} {SOURCE}"
            self.ssh(f"{fresh} && {clone}", everywhere=True)
        else:
            words = ["git", "-C", source.repository, "archive", "--format=tar.gz"]
            self._checked([*words, f"--output={source.archive}", source.commit])
            words = ["gcloud", *_VM, "scp", source.archive, f"{self.place.name}:launch_tpu.tar.gz"]
            self._checked([*words, *self.place.where, "--worker=all", f"--scp-flag={_ALIVE}"])
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

    def prepare(self, source, *, timeout=None, ask=True):
        """`up`, then `install` where it isn't done."""
        self.up(timeout=timeout, ask=ask)
        if not self.is_installed():
            self.install(source)

    def _refuse_where_running(self):
        refusal = (
            'echo "ERROR: a training is running on this VM, process '
            "$(cat ~/hamgan/supervisor.pid). Wait for its end, or stop it: kill "
            '$(cat ~/hamgan/supervisor.pid)" >&2'
        )
        self.ssh(f"mkdir -p ~/hamgan; ! {_RUNNING} || {{ {refusal}; exit 1; }}")

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
        self._refuse_where_running()
        # Not all records: that takes hours of a machine that is paid for.
        self.doctor(job, "--mode=train", "--quick")
        self._start(self._train_words(job))

    def evaluate(self, job):
        """Starts the evaluation of every checkpoint, old and to come, on this machine."""
        self._refuse_where_running()
        self.doctor(job, "--quick")
        # Longer than a spot machine of the training may wait in the queue.
        words = ["--watch", f"--timeout={_EVALUATION_WAITS}"]
        self._start(["scripts/evaluate.py", *job.flags(self._tpu), *words])

    def _start(self, words):
        command = f"{VENV}/bin/python {shlex.join(words)}"
        # gcloud sends a line again when its connection breaks.
        self.ssh(
            f"cd {SOURCE} || exit 1; {_RUNNING} || {{ rm -f ~/hamgan/train.status; "
            f"echo {shlex.quote(shlex.join(words))} > {WORDS}; {self._environment}"
            "PYTHONUNBUFFERED=1 nohup "
            f"{VENV}/bin/python -m hamgan.tpu.supervisor --folder=$HOME/hamgan -- {command} "
            ">> ~/hamgan/supervisor.log 2>&1 < /dev/null & } ; "
            "for second in $(seq 60); do test ! -f ~/hamgan/train.status || break; sleep 1; done; "
            "tail -n 20 ~/hamgan/train.log; "
            'test ! -f ~/hamgan/train.status || exit "$(cat ~/hamgan/train.status)"; '
            f"{_RUNNING} || {{ tail -n 20 ~/hamgan/supervisor.log >&2; exit 1; }}"
        )

    def check_running(self, job):
        """Refuses to watch a training for another: after a preemption that would be started.

        Raises:
          ValueError: what runs isn't this job's training.
        """
        words = self._last_words()
        if words and not self.is_last(job, words):
            raise ValueError(
                f"{self.place.name} trains something else. It runs: {words}  Asked for: "
                f"{shlex.join(self._train_words(job))}  Give its flags, or another --name."
            )

    def is_last(self, job, words=None):
        """Whether what the machine started last is this job's training, or isn't known."""
        words = words or self._last_words()
        return words in ("", shlex.join(self._train_words(job)))

    def _last_words(self):
        answer = self.ssh(f"cat {WORDS}", capture=True, check=False)
        return "" if answer.status else answer.output.strip()

    def _train_words(self, job):
        return ["scripts/train.py", *job.flags(self._tpu), "--mode=train"]

    def look(self):
        """A `Look`, whose state is UNKNOWN where gcloud can't say: that ends nothing."""
        state = UNKNOWN
        try:
            state = self.state()
            return Look(state, *(self._asked() if state == "ACTIVE" else ()))
        except ValueError as error:
            return Look(state, fault=str(error))

    def keep(self, job, *, source, poll=60.0, patience=DAY, attempts=5):
        """Waits for the end of a training; makes the TPU again and goes on when it is taken away.

        Interrupting this doesn't stop the training.

        Args:
          job: a `request.Job`.
          source: a `request.Source`.
          poll: seconds between looks.
          patience: seconds of looks without an answer, after which this ends.
          attempts: to start it, in a row, without seeing it run.

        Returns:
          The training's exit status.

        Raises:
          Deleted: the request was deleted.
          ValueError: nothing answers, the training doesn't start.
        """
        silent = tried = 0
        while True:
            found = self.look()
            state, training = found.state, found.training
            if training and training.isdigit():
                return int(training)
            if training == "running":
                tried = 0
            if state in (None, "DELETING", *GONE) or training == "gone":
                note(f"{self.place.name} is {state or 'gone'}, its training {training or 'too'}.")
                tried += 1
                try:
                    self.prepare(source, ask=False)
                    self.train(job)
                except Deleted:
                    raise
                except ValueError as error:
                    # A spot machine may be taken while it is installed.
                    if tried >= attempts:
                        raise
                    note(str(error))
                if tried > attempts:
                    raise ValueError(
                        f"{self.place.name}: the training was started {tried} times and doesn't "
                        "stay. See ~/hamgan/supervisor.log there."
                    )
            silent = self._silent(silent, found, poll, patience)
            self._sleep(poll)

    def _silent(self, before, found, poll, patience):
        """How many looks in a row had no answer, with this one; too many are a ValueError."""
        if not found.fault:
            return 0
        looks = before + 1
        if looks * poll >= patience:
            raise ValueError(
                f"{self.place.name} is {found.state}, but didn't answer {looks} times. "
                f"{found.fault}"
            )
        self._note_silence(looks, found.fault)
        return looks

    def wait(self, *, poll=60.0, vain=60, patience=DAY):
        """Waits until the training has ended well.

        Args:
          poll: seconds between looks.
          vain: looks in a row that find no training at work, after which this ends.
          patience: seconds of looks without an answer, after which this ends.

        Returns:
          Whether there is a machine; False: the request is gone.

        Raises:
          ValueError: the training ended otherwise, or nothing trains; the machine stays.
        """
        idle, silent, missing, shown = 0, 0, 0, None
        while True:
            found = self.look()
            state, training, line = found.state, found.training, self.line(found)
            if line != shown:
                note(f"{time.strftime('%H:%M:%S')} {line}")
                shown = line
            # Between deletion and creation of one that was taken away there is none either.
            missing = missing + 1 if state is None else 0
            if missing >= _SURELY:
                return False
            if training == "0":
                # For `keep`, which looks as often, to see it too.
                self._sleep(2 * poll)
                return True
            if training and training.isdigit():
                raise ValueError(f"The training didn't end well, so the VM is kept: {line}")
            silent = self._silent(silent, found, poll, patience)
            if not silent:
                idle = 0 if training == "running" or state in WAITING else idle + 1
            if idle >= vain:
                raise ValueError(
                    f"Nothing has trained in {vain} looks, one in {poll:.0f} s, so the VM is "
                    f"kept: {line}"
                )
            self._sleep(poll)

    def line(self, found):
        """What a `Look` found, as one line."""
        rest = found.training or ("no answer" if found.state == "ACTIVE" else "-")
        return f"{self.place.name}: {found.state or 'not there'}, training: {rest}"

    def training(self):
        """'running', 'gone' (none is, or the VM was restarted), an exit status; None: no answer."""
        return self._asked()[0]

    def _asked(self):
        """(what `training` says, why it says nothing)."""
        result = self.ssh(_wait_words(), capture=True, check=False)
        found = re.search(r"^training: (running|gone|[0-9]+)$", result.output, re.MULTILINE)
        if found:
            return found[1], None
        said = (result.errors.strip() or result.output.strip() or "nothing")[-300:]
        return None, f"{self.place.name} has no answer, ssh ended with {result.status}: {said}"

    def answer(self, *, poll=30.0, patience=10):
        """`training`, asked again where the VM doesn't answer; None after so many looks."""
        found = self.training()
        while found is None and patience > 1 and not self.dry_run:
            patience -= 1
            self._sleep(poll)
            found = self.training()
        return found

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

    def machine_created(self):
        """createTime of the VM, which may be days after that of the request; None: not known."""
        words = ["gcloud", *_VM, "describe", self.place.name, *self.place.where]
        result = self.run([*words, "--format=value(createTime)"], capture=True)
        found = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", result.output)
        return found[0] if found and not result.status else None

    def status(self):
        """A `Look`; in a dry run both questions are printed."""
        found = self.look()
        if self.dry_run:
            note("The next runs only if the one above says ACTIVE:")
            self.training()
        return found


def _wait_words():
    """A line for the VM that says how its training is: 'training: running', 'gone' or a status.

    What was stopped by the machine's own end, and the machine runs again, is gone.
    """
    return (
        "if test -f ~/hamgan/train.status && { "
        'test "$(cat ~/hamgan/train.status)" != 143 || '
        "cmp -s ~/hamgan/supervisor.boot /proc/sys/kernel/random/boot_id; }; "
        'then echo "training: $(cat ~/hamgan/train.status)"; '
        f"elif {_RUNNING}; then echo 'training: running'; else echo 'training: gone'; fi"
    )
