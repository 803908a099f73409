"""What a worker does: it takes trials from the study until none is left."""

import os
import socket
import time
import warnings

import optuna
import sqlalchemy
from optuna.trial import TrialState

from hamgan.sweeps import storage as storages
from hamgan.sweeps import study as studies
from hamgan.sweeps.trial import Duplicate, Left, TrialFailed

_AWAY = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


class Lost:
    """Finds trials that nobody works on, where the storage's heartbeat doesn't tell.

    A journal file has no heartbeat, and in a database a worker may die between taking a trial and
    its first beat. What is looked at is change, on this machine's clock alone.

    Args:
      study: the study.
      grace: seconds without a change after which a trial is taken for lost.
      has_heartbeat: whether the storage has one.
    """

    def __init__(self, study, *, grace, has_heartbeat):
        self._study = study
        self._grace = grace
        self._has_heartbeat = has_heartbeat
        self._seen = {}
        self._retry = storages.retry_callback()

    def take_up(self):
        """Puts the lost trials back into the queue."""
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            begun = str(trial.user_attrs.get(studies.WORKER, "")).startswith(f"{trial.number} ")
            if begun and self._has_heartbeat:
                continue
            signs = (trial.user_attrs.get(studies.BEAT), len(trial.intermediate_values), begun)
            before, since = self._seen.get(trial.number, (None, 0.0))
            if before != signs:
                self._seen[trial.number] = signs, time.monotonic()
            elif time.monotonic() - since > self._grace:
                self._fail(trial)

    def _fail(self, trial):
        try:
            self._study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return  # another worker has found it
        self._retry(self._study, trial)


def work(study, objective, *, lost, interruption, wait=True, poll=2.0, say=print):
    """Runs trials until none waits.

    Args:
      study: the study.
      objective: a `trial.Trainings`.
      lost: a `Lost`.
      interruption: a `signals.Interruption`, which ends it.
      wait: for trials of others, which may be lost and come back; False: leave.
      poll: seconds between two looks at the queue.
      say: function (text).
    """
    was_away = False
    while not interruption.signal:
        try:
            if was_away:
                _leave_own(study)
                was_away = False
            _fail_stale(study)
            lost.take_up()
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            if TrialState.WAITING in states:
                _run_one(study, objective, interruption, say)
            elif TrialState.RUNNING in states and wait:
                time.sleep(poll)
            else:
                return
        except _AWAY as error:
            # What was running has no sign of life now: it becomes stale, and is taken up from its
            # folder. Or it has failed, where the storage came back in time for that.
            was_away = True
            say(f"The storage is away, asking again: {str(error).splitlines()[0]}")
            time.sleep(poll)


def _fail_stale(study):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _run_one(study, objective, interruption, say):
    try:
        study.optimize(
            objective,
            n_trials=1,
            catch=(TrialFailed, Duplicate),
            callbacks=[lambda _, trial: _tell(trial, say)],
        )
    except Left as error:
        trial = _own(study)[-1]
        by_itself = not interruption.signal
        studies.leave(study, trial, count=trial.user_attrs.get(studies.LEFT, 0) + by_itself)
        say(f"{trial.user_attrs[studies.KEY]} is left to others: {error}")
    except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError) as error:
        # It was taken for dead, and failed by another worker: while the storage was away, or while
        # this machine slept. Optuna may say so by an assertion that follows.
        words = f"{error} {error.__context__ or ''}"
        if "Cannot tell" not in words and "updated" not in words:
            raise
        say("A trial was taken over by others, which took this worker for dead.")


def _own(study):
    """The trials that this process has failed to finish."""
    own = f"{socket.gethostname()} {os.getpid()}"
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL])
        if trial.user_attrs.get(studies.WORKER) == f"{trial.number} {own}"
    ]


def _leave_own(study):
    """Puts what failed for nothing but an absent storage back into the queue."""
    for trial in _own(study):
        if not trial.user_attrs.get(studies.REASON) and not studies.is_followed(study, trial):
            studies.leave(study, trial)


def _tell(trial, say):
    key = trial.user_attrs.get(studies.KEY)
    if trial.state == TrialState.FAIL:
        if reason := trial.user_attrs.get(studies.REASON):
            say(f"{key} failed: {reason}")
    else:
        values = ", ".join(f"{value:.5g}" for value in trial.values or ())
        say(f"{key} {trial.state.name.lower()}: {values}")
