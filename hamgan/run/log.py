"""Where a run's numbers and words go: metrics.jsonl, TensorBoard and the screen, none of which can
end a training.
"""

import ast
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf
from tqdm import tqdm

from hamgan.run import curves, records
from hamgan.run.folder import Folder
from hamgan.run.history import History, Record, key_of, keys_of, left_from
from hamgan.run.sinks import Sink


class _Screen:
    """The standard error stream, whose failures are passed over: it may be a file on the disk that
    is full.
    """

    def __getattr__(self, name):
        return getattr(sys.stderr, name)

    def write(self, text):
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self):
        with contextlib.suppress(OSError):
            sys.stderr.flush()


SCREEN = _Screen()


@contextlib.contextmanager
def surviving_failed_writes(what: str) -> Iterator[None]:
    """Training outlives a full disk: what can't be written is said, and left."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        tqdm.write(f"WARNING: {what} can't be written now, training goes on: {error}", file=SCREEN)


def _number_in(text):
    """The number or truth that a text is, by which HParams sorts; else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, bool | int | float) else text


class _Guarded:
    """A sink whose failures are said and left: what isn't taken there is in metrics.jsonl."""

    def __init__(self, make, model_dir):
        self._make, self._model_dir = make, model_dir
        self._sink = None
        self._said: set[str] = set()

    def begin(self, configuration):
        self._call("begin", configuration)

    def write(self, record):
        self._call("write", record)

    def _call(self, method, argument):
        try:
            if self._sink is None:
                self._sink = self._make(self._model_dir)
            getattr(self._sink, method)(argument)
        except Exception as error:  # whatever a service's library raises
            words = f"{type(error).__name__}: {error}"
            if words not in self._said:
                tqdm.write(f"WARNING: A sink fails, training goes on: {words}", file=SCREEN)
            self._said.add(words)


class Log:
    """Writes a run's records to metrics.jsonl and TensorBoard, under the same names.

    A record that can't be written (a full disk, a bucket that fails) is kept and written with a
    later one.

    Args:
      model_dir: the run's folder.
      writes: False on hosts that leave the writing to another one.
      sinks: functions (model_dir) -> `sinks.Sink` of where records go too.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        writes: bool = True,
        sinks: Sequence[Callable[[str], Sink]] = (),
    ):
        self._folder = Folder(model_dir)
        self._path = self._folder.metrics
        self._shown: tf.summary.SummaryWriter | None = None
        self._curves = curves.Curves(model_dir) if writes else None
        self._waiting: list[Record] = []
        self._sinks = [_Guarded(make, model_dir) for make in sinks if writes]

    def write(self, record: Record) -> None:
        """Appends a record (see `hamgan.run.records`); its numbers become TensorBoard scalars.

        An evaluation is written once: not if one of the same `history.key_of` stands there and
        still counts, written by another process perhaps.
        """
        if self._curves is None:
            return
        self._waiting.append({"time": time.time(), **record})
        self._write_waiting()

    def _write_waiting(self):
        with surviving_failed_writes("Metrics"):
            while self._waiting:
                record = self._waiting[0]
                key = key_of(record)
                there = None if key is None else lambda found, key=key: key in keys_of(found)
                appended = records.append(self._path, record, unless=there)
                self._waiting.pop(0)
                if appended:
                    # Which are guarded, where a curve that can't be written ends this.
                    for sink in self._sinks:
                        sink.write(record)
                    self._write_scalars(record)
            self._curves.flush()

    def _write_scalars(self, record):
        if (last := left_from(record)) is not None:
            self._curves.leave(last)
        self._curves.add(record["step"], records.scalars(record))

    def show_picture(self, step: int, path: str) -> None:
        """Has TensorBoard show a PNG file as `samples`."""
        if self._curves is None:  # of another host, whose file it is
            return
        with self._showing(step):
            image = tf.io.decode_png(tf.io.read_file(path), channels=3)
            tf.summary.image("samples", image[None])

    def show_configuration(self, step: int) -> None:
        """Has TensorBoard show the run's configuration, where there is one."""
        if self._curves is not None and tf.io.gfile.exists(self._folder.config):
            with tf.io.gfile.GFile(self._folder.config) as file, self._showing(step):
                # As a block of code, not as Markdown.
                lines = "\n".join(f"    {line}" for line in file.read().splitlines())
                tf.summary.text("configuration", lines)

    @contextlib.contextmanager
    def _showing(self, step):
        """Summaries within go to the folder of what is shown."""
        with surviving_failed_writes("TensorBoard"):
            if self._shown is None:
                shown = tf.summary.create_file_writer(self._folder.shown)
                with shown.as_default(step=0):
                    tf.summary.experimental.write_raw_pb(curves.layout())
                self._shown = shown
            with self._shown.as_default(step=step):
                yield
            self._shown.flush()

    def show_settings(self, settings: Mapping[str, str]) -> None:
        """Has sinks and TensorBoard's HParams show the settings, {binding: value as text}."""
        if self._curves is None or not settings:
            return
        for sink in self._sinks:
            sink.begin(settings)
        with surviving_failed_writes("TensorBoard"):
            self._curves.describe({name: _number_in(text) for name, text in settings.items()})
            self._curves.flush()

    def history(self) -> History:
        """What has been written, as far as it still counts."""
        return History(self._path)
