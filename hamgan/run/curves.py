"""TensorBoard's file of a run's scalars and settings, written event by event, and which are shown
first.

`tf.summary` has no public way to say that a run has gone back, and steps that were given up would
stay in the curves. The format is TFRecord files of `Event`s.
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Mapping

import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as layouts
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

_Event = tf.compat.v1.Event
# Tells the files of one process apart that were begun in one second.
_NUMBERS = itertools.count()
# What one looks at first: {title: a regular expression of tags}.
_FIRST = {
    "FID": r"^(evaluation|aggregate)/(.*/)?fid$",
    "Losses": r"^loss/",
    "Images a second": r"^images_per_second$",
    "Mean IoU": r"^(evaluation|aggregate)/(.*/)?mean_iou$",
}


def layout() -> bytes:
    """What has TensorBoard's page "Custom Scalars" show `_FIRST`, a serialised summary."""
    charts = [
        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[pattern]))
        for title, pattern in _FIRST.items()
    ]
    category = layout_pb2.Category(title="First", chart=charts)
    return layouts.pb(layout_pb2.Layout(category=[category])).SerializeToString()


class Curves:
    """A file of scalars and settings in a folder; it is begun when the first of them comes.

    Args:
      folder: that TensorBoard reads, made if it isn't there.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._file: tf.io.TFRecordWriter | None = None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds numbers of one step, {tag: value}.

        Raises:
          tf.errors.OpError: the file can't be begun or written.
        """
        for tag, value in scalars.items():
            self._write_summary(step, scalar_pb(tag, value))

    def describe(self, settings: Mapping[str, bool | float | str]) -> None:
        """Has HParams show settings; here, because it takes as a run's metrics what stands in the
        same folder. Raises as `add` does.
        """
        # At step 0, which no `leave` takes away.
        self._write_summary(0, hparams.hparams_pb(dict(settings)))

    def leave(self, last: int) -> None:
        """Has TensorBoard forget the steps after `last`; raises as `add` does."""
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        # Twice: the first of a folder is taken for its beginning.
        for _ in range(2):
            self._write(_Event(wall_time=time.time(), step=last + 1, session_log=start))

    def flush(self) -> None:
        """Has all that was added written to the file; raises as `add` does."""
        if self._file is not None:
            with self._left_when_failing():
                self._file.flush()

    def _write_summary(self, step, made):
        # Of TensorBoard's own protocol buffers, which are the same and of another class.
        summary = tf.compat.v1.Summary.FromString(made.SerializeToString())
        self._write(_Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event):
        if self._file is None:
            self._file = self._begun()
        with self._left_when_failing():
            self._file.write(event.SerializeToString())

    @contextlib.contextmanager
    def _left_when_failing(self):
        """Behind a record that was half written (a full disk) nothing can be read: what follows
        begins another file.
        """
        try:
            yield
        except tf.errors.OpError:
            self._file = None
            raise

    def _begun(self):
        now = time.time()
        # TensorBoard reads a folder's files by name: later ones go on where earlier ones end.
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        tf.io.gfile.makedirs(self._folder)
        file = tf.io.TFRecordWriter(os.path.join(self._folder, f"{name}.{next(_NUMBERS):06d}.v2"))
        file.write(_Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        return file
