"""Signals that end a process, obeyed where training can save first."""

import contextlib
import os
import signal
import threading


class _Interrupted(Exception):
    pass


class Interruption:
    """SIGTERM, SIGHUP (a closed terminal), SIGQUIT and Ctrl-C as a wish to stop that is looked at
    between host calls; a second Ctrl-C stops at once.

    Attributes:
      signal: name of the signal that came; None: none yet.
    """

    def __init__(self):
        self.signal = None
        self._handlers = {}
        self._raises = False

    def __enter__(self):
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
                # A process that was started to outlive its terminal (nohup) does.
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        # Not print: it can't be called while it is interrupted.
        words = f"\n{self.signal}: saving, then leaving. (Ctrl-C again: leave at once.)\n"
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(2, words.encode())
        if self._raises:
            raise _Interrupted

    @contextlib.contextmanager
    def at_once(self):
        """What may be broken off in the middle: in this context a signal ends the context."""
        self._raises = True
        try:
            yield
        except _Interrupted:
            pass
        finally:
            self._raises = False
