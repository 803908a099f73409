"""Standard streams that can't end a run: closed ones, and pipes whose reader has gone."""

import os
import sys
import tempfile


class Surviving:
    """A text stream whose failures are passed over; after the first one it writes to nowhere.

    Args:
      stream: the stream.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self):
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self):
        # Python would fail once more when it writes at exit what the stream still holds.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            pass
        finally:
            os.close(nowhere)


def import_tensorflow():
    """TensorFlow, imported without the notes of its C++ code, which 2.21 writes at every level of
    TF_CPP_MIN_LOG_LEVEL. Where the import fails they come after all, and where that variable asks
    for more than hamgan/cli has set.
    """
    if "tensorflow" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        import tensorflow as tf

        return tf
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return tf


def keep_open():
    """Opens standard streams that were closed, as by `2>&-`, and has failures of all passed over.

    To be called before files are opened: they would get the numbers of the closed streams, and what
    libraries write to these would go into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")
        if not isinstance(stream, Surviving):
            setattr(sys, name, Surviving(stream))
