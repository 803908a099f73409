"""Where a sweep's study is kept: a database or a journal file, as Optuna has them."""

import os
import threading
import time
import warnings

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage

from hamgan import choices

# How often a trial whose worker has vanished is taken up again: one that kills each of its workers
# must not go on for ever.
MAX_RETRIES = 5
# How long a database may be away before it counts as lost.
PATIENCE_SECONDS = 600


class _PatientStorage(RDBStorage):
    """A database that may be away for a while."""

    def record_heartbeat(self, trial_id):
        """As of Optuna; a beat that can't be written is left out: an error would end the thread,
        and the trial would be taken for dead.
        """
        try:
            super().record_heartbeat(trial_id)
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
            pass


def retry_callback():
    """What puts the trial of a worker that has vanished back into the queue."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


def default_url(output_dir):
    """SQLite in the output folder."""
    if "://" in output_dir:
        raise ValueError(
            f"--output_dir={output_dir} can't hold a database. Say where one is: --storage=URL."
        )
    return f"sqlite:///{os.path.abspath(output_dir)}/study.db"


def shown(url):
    """A URL without its password."""
    if is_journal(url):
        return url
    try:
        return sqlalchemy.engine.make_url(url).render_as_string()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url.partition("://")[0] + "://..."


def is_journal(url):
    """Whether a storage is a journal file."""
    return "://" not in url


def open_storage(url, *, heartbeat=choices.HEARTBEAT_SECONDS, patience=PATIENCE_SECONDS):
    """The storage of a URL of SQLAlchemy's, or of the path of a journal file.

    Args:
      url: 'sqlite:///runs/sweep/study.db', 'postgresql://USER@HOST/DATABASE', or
        'shared/study.journal'.
      heartbeat: seconds between two signs of life of a trial; after twice as many without one it
        counts as stale.
      patience: seconds for which a database that is away is asked again.

    Raises:
      ValueError: it can't be opened.
    """
    if is_journal(url):
        os.makedirs(os.path.dirname(os.path.abspath(url)), exist_ok=True)
        return JournalStorage(JournalFileBackend(url))
    try:
        parsed = sqlalchemy.engine.make_url(url)
        options = {"pool_pre_ping": True}
        if parsed.get_backend_name() == "sqlite":
            os.makedirs(os.path.dirname(os.path.abspath(parsed.database)), exist_ok=True)
            options["connect_args"] = {"timeout": patience}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = _first(
                lambda: _PatientStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat,
                    grace_period=2 * heartbeat,
                    heartbeat_stale_trial_callback=retry_callback(),
                )
            )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise ValueError(f"--storage={shown(url)} can't be opened: {error}") from error
    _wait_for_connections(storage.engine, patience)
    return storage


def _first(open_it, tries=5):
    """What `open_it` opens: processes that make one database's tables at once hinder each other."""
    for _ in range(tries - 1):
        try:
            return open_it()
        except (
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.IntegrityError,
            sqlalchemy.exc.ProgrammingError,
        ):
            time.sleep(1)
    return open_it()


def _wait_for_connections(engine, patience):
    """Has an engine ask again where its database doesn't answer."""
    leaving = threading.Event()

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect, record, arguments, parameters):
        del record
        deadline = time.monotonic() + patience
        while True:
            try:
                return dialect.connect(*arguments, **parameters)
            except dialect.loaded_dbapi.OperationalError:
                if time.monotonic() > deadline or leaving.wait(1):
                    raise
