"""The checkpoints of a run: how they are kept, found and gone back to.

A checkpoint is called `ckpt-<step>`; what it holds is the subject of `contents`. It is complete or
invisible: it is written in a folder beside, read back, and only then named, its index last. Folders
may be remote (`gs://...`).
"""

import contextlib
import functools
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from hamgan.run import contents, lock, pins, records
from hamgan.run.folder import Folder
from hamgan.run.history import History
from hamgan.run.identity import Identity

# Where a checkpoint is until it has a name.
_ASIDE = "writing-"


class NotSaved(OSError):
    """A checkpoint that couldn't be written. Those that are there stay as they are."""


class _GivenUp(Exception):
    """A checkpoint that was given up."""


class _Writing(threading.Thread):
    """A checkpoint that is being written.

    Args:
      write: function (path, {name: tf.Variable}, context in which the checkpoint is named).
    """

    def __init__(self, write, path, held):
        super().__init__(name="checkpoint")
        self._work = functools.partial(write, path, held, self)
        self._naming = threading.Lock()
        self._given_up = False
        self._error = None

    def run(self):
        try:
            self._work()
        except BaseException as error:
            # The frames hold the copies, and the error is held by who asks.
            error.__context__ = None
            self._error = error.with_traceback(None)
        finally:
            del self._work

    def __enter__(self):
        self._naming.acquire()
        if self._given_up:
            self._naming.release()
            raise _GivenUp

    def __exit__(self, *error):
        self._naming.release()

    def cancel(self):
        """Returns when the checkpoint has its name, or never gets one."""
        with self._naming:
            self._given_up = True

    def result(self):
        """Waits; raises what the writing raised."""
        self.join()
        if self._error is not None:
            raise self._error


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: folder that holds them, local or gs://.
      variables: {name: tf.Variable}, all that a run needs to go on, with 'step' among them.
      max_to_keep: this many newest ones stay; None keeps all.
      best: function () -> steps whose checkpoints stay too.
      seed: of the run, kept in every checkpoint: going on with another one is refused. None: not
        kept.
      identity: the `hamgan.run.identity.Identity` of the run, kept in every checkpoint: going on
        as another one is refused. None: not kept, and not asked for.
      writes: False on hosts that leave the writing to another one; `save` then only names the
        checkpoint.
      check: function (), called before a checkpoint is written, before it is named and before
        others are deleted; raises `lock.Lost` where another process has the folder by then.
      report: function (message), called where a checkpoint is passed over or can't be deleted.

    Raises:
      ValueError: the folder's name holds a character that TensorFlow takes for a pattern.
    """

    def __init__(
        self,
        directory: str,
        variables: Mapping[str, tf.Variable],
        *,
        max_to_keep: int | None = 3,
        best: Callable[[], Iterable[int]] = lambda: (),
        seed: int | None = None,
        identity: Identity | None = None,
        writes: bool = True,
        check: Callable[[], Any] = lambda: None,
        report: Callable[[str], Any] = print,
    ):
        if found := set("*?[]\\") & set(directory):
            raise ValueError(
                f"The folder {directory} can't hold checkpoints: in {' '.join(sorted(found))} "
                "TensorFlow sees a "
                "pattern of names. Choose another --model_dir."
            )
        self.directory = directory
        self._variables = variables
        self._max_to_keep = max_to_keep
        self._best = best
        self._seed = seed
        self._identity = identity
        self._writes = writes
        self._report = report
        self._damaged: set[str] = set()
        self._check = check
        self._begun: tuple[str, _Writing | None] | None = None

    def save(self) -> str:
        """Writes the variables; returns the checkpoint's path.

        Raises:
          NotSaved: it couldn't be written, or what was written isn't what it should be.
        """
        path = self._path()
        if self._writes:
            self._check()
            held = {**self._variables, **self._of_run()}
            self._end(path, lambda: self._write(path, held, contextlib.nullcontext()))
        return path

    def begin(self) -> str:
        """Copies the variables and begins to write the copies, in a thread; `finish` ends it.

        The copies take as much memory as the variables, on the host, until they are written.

        Returns:
          The path that the checkpoint will have.

        Raises:
          NotSaved: they couldn't be copied.
          RuntimeError: one that was begun before wasn't finished.
        """
        if self._begun is not None:
            raise RuntimeError(f"{self.begun} was begun and not finished.")
        path, writing = self._path(), None
        if self._writes:
            self._check()
            try:
                held = {**contents.copies(self._variables), **self._of_run()}
            except tf.errors.OpError as error:
                raise NotSaved(f"{path}: the variables couldn't be copied: {error}") from error
            writing = _Writing(self._write, path, held)
        self._begun = path, writing
        if writing is not None:
            writing.start()
        return path

    @property
    def begun(self) -> str | None:
        """The path of what was begun and not finished."""
        return self._begun and self._begun[0]

    @property
    def is_written(self) -> bool:
        """Whether `finish` wouldn't wait."""
        return self._begun is None or self._begun[1] is None or not self._begun[1].is_alive()

    def finish(self) -> str:
        """Waits for what was begun; returns the checkpoint's path.

        Raises:
          NotSaved: as `save`.
          RuntimeError: nothing was begun.
        """
        if self._begun is None:
            raise RuntimeError("No checkpoint was begun.")
        path, writing = self._begun
        try:
            if writing is not None:
                self._end(path, writing.result)
        finally:
            if self.is_written:  # else it was the waiting that ended
                self._begun = None
        return path

    def cancel(self) -> None:
        """Gives up what was begun: from now on it gets no name, if it has none yet."""
        if self._begun is not None and self._begun[1] is not None:
            self._begun[1].cancel()
        self._begun = None

    def _path(self):
        return os.path.join(self.directory, name_of(self._variables["step"].numpy()))

    def _of_run(self):
        """What a checkpoint holds beside the variables."""
        held = {}
        with tf.device("CPU:0"):
            if self._seed is not None:
                held["seed"] = tf.Variable(self._seed, dtype=tf.int64)
            if self._identity is not None:
                held["identity"] = tf.Variable(self._identity.to_text(), dtype=tf.string)
        return held

    def _end(self, path, write):
        """`write` is done, or waited for; then what a new checkpoint changes is changed."""
        try:
            write()
        except lock.Lost:
            raise
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise NotSaved(f"{path} couldn't be written: {error}") from error
        self._damaged.discard(path)
        self._check()
        try:
            self._delete_old_ones()
        except (OSError, ValueError, tf.errors.OpError) as error:
            self._report(f"Old checkpoints couldn't be deleted: {error}")

    def _write(self, path, held, naming):
        """Writes {name: tf.Variable}; what changes the folder's checkpoints is done in the context
        `naming`.
        """
        # A name of its own: one that was given up may still be written.
        name = os.path.basename(path)
        aside = os.path.join(self.directory, f"{_ASIDE}{name}.{uuid.uuid4().hex[:8]}")
        try:
            written = contents.write(os.path.join(aside, "ckpt"), held)
            found = contents.read_through(written, finite=True)
            lacking = [
                key
                for key, variable in self._variables.items()
                if found.get(key) != variable.shape.as_list()
            ]
            if lacking:
                raise ValueError(f"{lacking[0]} isn't in what was written")
            pins.wait_for_readers(path)
            with naming:
                self._check()
                # A damaged one of this step goes, index first: at no moment do parts of two have
                # one name.
                _delete(path)
                for file in sorted(tf.io.gfile.glob(written + ".*")):  # .data-... before .index
                    records.rename_whole(file, path + file.removeprefix(written))
                # For tf.train.latest_checkpoint.
                state = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
                records.write_whole(os.path.join(self.directory, "checkpoint"), state.encode())
        finally:
            if tf.io.gfile.exists(aside):
                tf.io.gfile.rmtree(aside)

    def _delete_old_ones(self):
        if self._max_to_keep is None:
            return
        names = [
            name
            for name in _names(self.directory)
            if os.path.join(self.directory, name) not in self._damaged
        ]
        kept = {*names[-self._max_to_keep :], *map(name_of, self._best())}
        for name in names:
            path = os.path.join(self.directory, name)
            if name not in kept and not pins.is_pinned(path):
                _delete(path)

    def restore_latest(self) -> str | None:
        """Reads the newest checkpoint that isn't damaged into the variables; returns its path, or
        None without any.

        Also deletes what a killed process has left half-written.

        Raises:
          ValueError: it doesn't fit, or is of a run with another seed, or all that there are are
            damaged.
        """
        if self._writes:
            self._clean()
        return _first_intact(self.directory, self._restore, self._report, self._damaged)

    def newest_finite(self) -> str:
        """The path of the newest checkpoint that is whole and without a NaN or an infinity.

        Raises:
          ValueError: there is none.
        """

        def read(path):
            try:
                contents.read_through(path, finite=True)
            except contents.Damaged:
                raise
            except ValueError as error:
                raise contents.NotFinite(f"{path}: {error}.") from error

        path = _first_intact(self.directory, read, self._report, set())
        if path is None:
            raise ValueError(f"There is no checkpoint in {self.directory} to go back to.")
        return path

    def restore(self, path: str) -> None:
        """Reads one of the checkpoints into the variables, and makes the newer ones invisible: the
        run leaves them.

        Their indices are renamed to `ckpt-<step>.index.left`; a later checkpoint of the same step
        replaces them.
        """
        self._restore(path)
        if self._writes:
            for name in _names(self.directory):
                if step_of(name) > step_of(path):
                    pins.wait_for_readers(os.path.join(self.directory, name))
                    index = os.path.join(self.directory, name + ".index")
                    tf.io.gfile.rename(index, index + ".left", overwrite=True)

    def _restore(self, path):
        if self._seed is not None and (seed := contents.read_seed(path)) not in (None, self._seed):
            raise ValueError(
                f"{path} is of a run with seed {seed}, and the trainer's seed is {self._seed}."
            )
        if self._identity is not None:
            _refuse_another(path, self._identity)
        contents.restore(path, self._variables)

    def _clean(self):
        if not tf.io.gfile.exists(self.directory):
            return
        for name in tf.io.gfile.listdir(self.directory):
            name = name.rstrip("/")
            path = os.path.join(self.directory, name)
            if name.startswith(_ASIDE) or re.fullmatch(r"ckpt-\d+_temp", name):
                tf.io.gfile.rmtree(path)
            elif re.fullmatch(r"checkpoint\.\w+\.tmp", name) or pins.is_left_behind(path):
                tf.io.gfile.remove(path)
            elif match := re.fullmatch(r"(ckpt-\d+)\.data-\d+-of-\d+", name):
                if not tf.io.gfile.glob(os.path.join(self.directory, match[1] + ".index*")):
                    tf.io.gfile.remove(path)


def check_run(model_dir: str, identity: Identity | None = None) -> None:
    """Asks whether a training may write to a folder: as a new run, or going on with its own.

    Args:
      model_dir: the run's folder.
      identity: of the training; None: unknown.

    Raises:
      ValueError: the folder's newest checkpoint is of another run, or it holds records of a run
        whose checkpoints are gone.
    """
    directory = Folder(model_dir).checkpoints
    names = _names(directory)
    if not names:
        metrics = Folder(model_dir).metrics
        kinds = ("train", "evaluation", "aggregate")
        found = [r for r in History(metrics).all_records if r.get("kind") in kinds]
        if found:
            raise ValueError(
                f"{model_dir} holds {len(found)} records of a run whose checkpoints aren't there: "
                "the numbers of a new run would stand among those of the old one. Choose another "
                f"--model_dir, put the checkpoints back into {directory}, or remove what is left "
                f"of the old run, {metrics} and the files beside it."
            )
    if identity is None:
        return
    for name in reversed(names):
        try:
            _refuse_another(os.path.join(directory, name), identity)
            return
        except contents.Damaged:  # passed over, as when it is restored
            continue


def _refuse_another(path, identity):
    found = contents.read_identity(path)
    lines = identity.differences(found) if found else ()
    if lines:
        raise ValueError(
            f"{path} is of another run than the one asked for:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nA run goes on as it was begun: restore its settings and its data, or begin "
            "another one in a new --model_dir."
        )


def _first_intact(directory, read, report, damaged):
    """The newest checkpoint that `read(path)` finds undamaged; adds the others to the set
    `damaged`.
    """
    names = _names(directory)
    for name in reversed(names):
        path = os.path.join(directory, name)
        try:
            read(path)
            return path
        except contents.Damaged as error:
            damaged.add(path)
            report(f"{error}\n{name} is passed over: the one before it is taken.")
    if names:
        raise ValueError(f"None of the {len(names)} checkpoints in {directory} can be read.")
    return None


def whole_path(path: str) -> str:
    """A path that means the same from every working folder."""
    return path if not path or "://" in path else os.path.abspath(path)


def find(
    model_dir: str, name: str | None = None, *, score: str = "fid", better: str = "lower"
) -> str:
    """The path of a checkpoint, a whole one: `ckpt-1000` is the run's wherever one stands.

    Args:
      model_dir: the run's folder.
      name: the name of a checkpoint of this run, like 'ckpt-1000'; 'best' or 'latest'; or a path,
        which has a separator. None: the latest, which is the newest that isn't damaged.
      score, better: what the best one is best in; see `history.History.best_steps`.

    Raises:
      ValueError: there is none; says which there are.
    """
    directory = whole_path(Folder(model_dir).checkpoints)
    if name and "/" in name:
        path = whole_path(os.path.expanduser(name).removesuffix(".index"))
        if tf.io.gfile.exists(path + ".index"):
            return path
        raise ValueError(f"No checkpoint {name}: there is no {path}.index.")
    if name and tf.io.gfile.exists(os.path.join(directory, name + ".index")):
        return os.path.join(directory, name)
    if name == "best":
        return _best_of(model_dir, directory, score, better)
    if name in (None, "latest"):
        path = _first_intact(directory, contents.read_through, print, set())
        if path is None:
            raise ValueError(
                f"No checkpoint in {directory}. Train first: python scripts/train.py "
                f"--model_dir={model_dir} ..."
            )
        return path
    there = available(model_dir)
    if tf.io.gfile.isdir(directory):
        files = tf.io.gfile.listdir(directory)
        named = {file.removesuffix(".index") for file in files if file.endswith(".index")}
        there += sorted(named - set(there))
    raise ValueError(
        f"No checkpoint {name}; {directory} holds: {', '.join(there) or 'none'}. "
        "A checkpoint elsewhere is named by its path, with a '/'."
    )


def _best_of(model_dir, directory, score, better):
    found = History(Folder(model_dir).metrics)
    scores = found.scores(score)
    there = {step_of(name) for name in available(model_dir)}
    best = [step for step in found.best_steps(score, len(scores), better=better) if step in there]
    if not best:
        raise ValueError(
            f"No checkpoint is the best of {directory}: none of those that are there "
            f"({', '.join(available(model_dir)) or 'none'}) has been evaluated."
        )
    return os.path.join(directory, name_of(best[0]))


def is_of_run(model_dir: str, path: str) -> bool:
    """Whether a checkpoint lies in a run's folder, however the two are spelled."""

    def folder(name):
        return name.rstrip("/") if "://" in name else os.path.realpath(name)

    return folder(os.path.dirname(path)) == folder(Folder(model_dir).checkpoints)


def available(model_dir: str) -> list[str]:
    """The names of a run's checkpoints, oldest first."""
    return _names(Folder(model_dir).checkpoints)


def _names(directory):
    paths = tf.io.gfile.glob(os.path.join(directory, "ckpt-*.index"))
    names = [os.path.basename(path).removesuffix(".index") for path in paths]
    return sorted((name for name in names if re.fullmatch(r"ckpt-\d+", name)), key=step_of)


def name_of(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"ckpt-{int(step)}"


def step_of(path: str) -> int:
    """The step that a checkpoint's name tells."""
    return int(path.rsplit("-", 1)[1])


def _delete(path):
    for file in tf.io.gfile.glob(path + ".index*") + tf.io.gfile.glob(path + ".data-*"):
        tf.io.gfile.remove(file)
