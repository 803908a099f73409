"""One trial of a sweep: trainings as processes of their own, watched through what they write."""

import collections
import os
import signal
import socket
import subprocess
import sys
import time

import optuna

from hamgan.run.folder import Folder
from hamgan.run.history import History, is_number
from hamgan.sweeps import results, study
from hamgan.sweeps.storage import MAX_RETRIES

# Has the system end a training whose worker has died, however it died; 1 is PR_SET_PDEATHSIG. A
# worker that died before that is found by its number.
_GUARD = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('The worker has gone.')\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)
_HELD = "is being written by"
# How often a folder that another process holds is asked for again, and seconds between.
_HELD_TRIES, _HELD_SECONDS = 180, 10


class TrialFailed(Exception):
    """A training ended with an error, or without a number."""


class Left(Exception):
    """A training was broken off, and its trial is for others."""


class Duplicate(Exception):
    """Another trial does the same."""


class Trainings:
    """The objective of a sweep's study.

    A training's folder holds its state: it begins, or goes on from its newest checkpoint, whoever
    had begun it.

    Args:
      sweep: the `Sweep`.
      output_dir: folder of the trainings' folders.
      command: what trains, with its first words; it takes the flags of scripts/train.py or of
        `segment.py train`.
      seed: the setting that is a training's seed.
      flags: further flags of all trainings.
      environment: {name: value} of more environment variables for them.
      facts: function (`Point`) -> what is known of a point before it is trained: 'steps',
        'batch_size' and costs; a ValueError says why it can't be built.
      interruption: a `signals.Interruption`.
      poll: seconds between two looks at a training.
      beat: seconds between two signs of life in the trial's attributes, for storages without a
        heartbeat.
    """

    def __init__(
        self,
        *,
        sweep,
        output_dir,
        command,
        facts,
        interruption,
        seed,
        flags=(),
        environment=None,
        poll=2.0,
        beat=60.0,
    ):
        self.sweep = sweep
        self.output_dir = output_dir
        self.command = list(command)
        self.seed = seed
        self.flags = list(flags)
        self.environment = environment or {}
        self.facts = facts
        self.interruption = interruption
        self.poll = poll
        self.beat = beat

    def __call__(self, trial):
        """The objectives of a trial.

        Raises:
          Duplicate, Left, TrialFailed, optuna.TrialPruned.
        """
        if study.is_duplicate(trial.study, trial):
            raise Duplicate
        trial.set_user_attr(study.WORKER, f"{trial.number} {socket.gethostname()} {os.getpid()}")
        values = trial.user_attrs.get(study.VALUES) or study.suggest(trial, self.sweep)
        trial.set_user_attr(study.VALUES, values)
        point = self.sweep.point(values)
        try:
            facts = self.facts(point)
            runs = []
            for index, seed in enumerate(trial.user_attrs[study.SEEDS]):
                runs.append(self._train(trial, point, seed, index, facts))
        except (ValueError, TrialFailed) as error:
            trial.set_user_attr(study.REASON, str(error))
            raise TrialFailed(str(error)) from error
        found = [sum(run.score for run in runs) / len(runs)]
        seconds = [run.step_seconds for run in runs if run.step_seconds]
        measured = {"step_seconds": sum(seconds) / len(seconds) if seconds else 0.0}
        found += [{**facts, **measured}[name] for name in self.sweep.objectives[1:]]
        return tuple(found) if len(found) > 1 else found[0]

    def _train(self, trial, point, seed, index, facts):
        """The `results.Run` of one training, when it has ended."""
        folder = os.path.join(self.output_dir, point.folder(seed))
        words = [
            *self.command,
            f"--model_dir={folder}",
            *(f"--gin_file={file}" for file in point.gin_files),
            *(f"--gin_param={param}" for param in point.gin_params),
            f"--gin_param={self.seed} = {seed}",
            *self.flags,
        ]
        report = _Reports(
            trial, self.sweep, index=index, seed=seed, steps=facts["steps"], beat=self.beat
        )
        for _ in range(_HELD_TRIES):
            code, tail = self._run(words, point.folder(seed), folder, report)
            if not (code and _HELD in tail):
                break
            # What another worker had begun still saves; or that worker was taken for dead.
            self._pause(_HELD_SECONDS)
        if code:
            raise TrialFailed(_reason(code, tail))
        run = results.read_run(folder, self.sweep, facts, seed=seed)
        if run.step is None or run.step < facts["steps"]:
            early = f"{folder} ended at step {run.step} of {facts['steps']}."
            if trial.user_attrs.get(study.LEFT, 0) >= MAX_RETRIES:
                raise TrialFailed(f"{early} So it did {MAX_RETRIES} times before.")
            raise Left(early)
        if not is_number(run.score):
            raise TrialFailed(f"{self.sweep.score} isn't finite at step {run.step}.")
        report(folder)
        return run

    def _pause(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.interruption.signal:
            time.sleep(min(self.poll, 1))
        if self.interruption.signal:
            raise Left(self.interruption.signal)

    def _run(self, words, name, folder, report):
        """(exit status, end of the output) of a training."""
        log = _log_path(self.output_dir, name)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _GUARD, str(os.getpid()), *words],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the worker, which ends the training.
                start_new_session=True,
            )
        start = os.path.getsize(log)
        try:
            while True:
                # What has ended is looked at once more.
                ended = process.poll() is not None
                report(folder)
                if ended:
                    break
                if self.interruption.signal:
                    raise Left(self.interruption.signal)
                try:
                    process.wait(self.poll)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            _end(process)
        with open(log, "rb") as output:
            output.seek(start)
            tail = output.read()[-20_000:].decode(errors="replace")
        return process.returncode, tail


def _log_path(output_dir, name):
    """Where a training's output goes; beside a remote folder that is here."""
    place = "sweep_logs" if "://" in output_dir else os.path.join(output_dir, "logs")
    os.makedirs(place, exist_ok=True)
    return os.path.join(place, f"{name}.log")


def _end(process, patience=120):
    """Has a training save and leave, if it runs."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(code, tail):
    """Why a training failed, from the end of its output."""
    lines = [line.strip() for line in tail.replace("\r", "\n").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR: ")]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    last = collections.deque(told or lines, maxlen=1)
    return f"{last[0].removeprefix('ERROR: ') if last else 'no output'} (ended with {how})"


class _Reports:
    """Tells Optuna each score of a training once, and asks whether to go on.

    Steps of a trial with several seeds are counted on. The pruner over seeds gets final scores.
    """

    def __init__(self, trial, sweep, *, index, seed, steps, beat):
        self._trial = trial
        self._sweep = sweep
        self._index, self._seed, self._steps = index, seed, steps
        self._told = set()
        self._beat_seconds, self._beat = beat, time.monotonic()

    def __call__(self, folder):
        if time.monotonic() - self._beat > self._beat_seconds:
            self._beat = time.monotonic()
            self._trial.set_user_attr(study.BEAT, time.time())
        # Of several objectives none is told before the end.
        if len(self._sweep.objectives) > 1:
            return
        over_seeds = self._sweep.pruner == "wilcoxon"
        scores = History(Folder(folder).metrics).scores(self._sweep.score)
        for step, score in sorted(scores.items()):
            # Before the first step there is nothing that a point could be judged by.
            if step == 0 or step in self._told or (over_seeds and step < self._steps):
                continue
            self._told.add(step)
            self._trial.report(score, self._seed if over_seeds else self._shifted(step))
            # One that has all its steps is complete.
            last = (
                step >= self._steps and self._index == len(self._trial.user_attrs[study.SEEDS]) - 1
            )
            if not last and self._trial.should_prune():
                raise optuna.TrialPruned(f"{self._sweep.score} {score:.4g} at step {step}")

    def _shifted(self, step):
        return self._index * (self._steps + 1) + step
