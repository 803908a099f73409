"""A TensorFlow profile of some steps of a training."""

import tensorflow as tf


class Profile:
    """Starts and ends the profile where its steps begin and end, or where its context is left.

    Args:
      steps: (start, stop), steps between which it is written; None: nowhere.
      num_steps: where training ends.
      model_dir: the folder that it is written into.
      announce: function (event, *, message), called when it is there.
    """

    def __init__(self, steps, num_steps, model_dir, announce):
        self.steps = steps or ()
        self._num_steps = num_steps
        self._model_dir = model_dir
        self._announce = announce
        self._step = 0
        self._runs = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def follow(self, step):
        """Training is at this step now."""
        self._step = step
        if not self.steps:
            return
        wanted = self.steps[0] <= step < self.steps[1] and step < self._num_steps
        if wanted and not self._runs:
            tf.profiler.experimental.start(self._model_dir)
        elif self._runs and not wanted:
            self.end()
        self._runs = wanted

    def end(self):
        """Writes the profile if one is running."""
        if self._runs:
            self._runs = False
            tf.profiler.experimental.stop()
            self._announce(
                "profile",
                message=f"of the steps {self.steps[0]} to {self._step}: "
                f"tensorboard --logdir={self._model_dir}",
            )
