"""Scoring the checkpoints of a run while another process writes them."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from hamgan.evaluation import runner, shards
from hamgan.evaluation.runner import Evaluator
from hamgan.run import checkpoints, contents, pins
from hamgan.run.folder import Folder
from hamgan.run.history import Record


class Pins:
    """Pins the checkpoints of a run as they appear, until they are scored.

    A trainer that writes faster than checkpoints are scored would delete the later ones before
    their turn.
    """

    def __init__(self, model_dir: str, poll_seconds: float):
        self._model_dir = model_dir
        self._pins: dict[str, contextlib.ExitStack] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(poll_seconds,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        for pin in self._pins.values():
            pin.close()

    def _run(self, poll_seconds):
        while not self._over.wait(poll_seconds):
            self.look()

    def look(self) -> list[str]:
        """The names of all checkpoints that have been seen, oldest first."""
        with self._lock:
            for name in checkpoints.available(self._model_dir):
                if name not in self._pins:
                    self._pins[name] = contextlib.ExitStack()
                    path = Folder(self._model_dir).checkpoint(name)
                    with contextlib.suppress(ValueError):  # deleted since
                        self._pins[name].enter_context(pins.pinned(path))
            return sorted(self._pins, key=checkpoints.step_of)

    def release(self, name: str) -> None:
        """Lets a checkpoint go; it isn't pinned again."""
        self._pins[name].close()


def _is_new(model_dir, name, scored):
    """Whether a checkpoint hasn't been scored, or was rewritten since."""
    if name not in scored:
        return True
    digest = contents.digest(Folder(model_dir).checkpoint(name))
    return digest is not None and digest != scored[name]


def evaluate_new_checkpoints(
    evaluator: Evaluator,
    *,
    model_dir: str,
    publish: Callable[[Record], Any],
    final_step: int,
    repeats: int | None = None,
    timeout: float = 3600,
    poll_seconds: float = 10,
) -> None:
    """Scores every checkpoint of a run as it appears, oldest first, until the one of `final_step`.

    What the evaluator's `work_dir` holds from an earlier call isn't computed again, only published.

    Args:
      evaluator: the `Evaluator`.
      model_dir: the run's folder.
      publish: function (record), called for each; with an event where a generator has diverged.
      final_step: the step at which training ends.
      repeats: evaluations of each; None: the protocol's number.
      timeout: seconds without a new checkpoint after which to stop.
      poll_seconds: pause between looks.
    """
    last_news = time.monotonic()
    scored: dict[str, str | None] = {}  # with the digests: after a rollback a name comes again
    with Pins(model_dir, poll_seconds) as pins:
        while True:
            names = [name for name in pins.look() if _is_new(model_dir, name, scored)]
            for name in names:
                path = Folder(model_dir).checkpoint(name)
                scored[name] = contents.digest(path)
                if scored[name] is not None:
                    try:
                        for record in evaluator.evaluate_checkpoint(path, repeats=repeats):
                            publish(record)
                            scored[name] = record.get("checkpoint_digest")
                    except runner.Gone as error:
                        print(error, flush=True)
                    except shards.NotFinite as error:
                        publish(
                            {
                                "kind": "event",
                                "step": checkpoints.step_of(name),
                                "event": str(error),
                            }
                        )
                else:
                    print(
                        f"{path} was deleted before it could be scored: raise "
                        "loop.Schedule.max_to_keep.",
                        flush=True,
                    )
                pins.release(name)
                last_news = time.monotonic()
            if names:
                continue
            if any(checkpoints.step_of(name) >= final_step for name in scored):
                return
            if time.monotonic() - last_news > timeout:
                return
            time.sleep(poll_seconds)
