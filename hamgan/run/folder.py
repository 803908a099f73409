"""Where everything lies in a run's folder: every name stands here, once."""

import dataclasses
import os
import re


@dataclasses.dataclass(frozen=True)
class Folder:
    """The paths of a run. Nothing is made or looked at.

    Attributes:
      path: the run's folder (`model_dir`), local or remote (`gs://...`).
    """

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))

    def _of(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    @property
    def name(self) -> str:
        """What the run is called elsewhere: as its folder, local (`.` too) or remote."""
        path = self.path if "://" in self.path else os.path.abspath(self.path)
        return os.path.basename(path.rstrip("/")) or path

    @property
    def metrics(self) -> str:
        """Every record of the run, one a line (`hamgan.run.records`)."""
        return self._of("metrics.jsonl")

    @property
    def config(self) -> str:
        """The configuration that the run was begun with."""
        return self._of("config.gin")

    @property
    def sinks(self) -> str:
        """What the run is called elsewhere (`hamgan.run.sinks`)."""
        return self._of("sinks.json")

    @property
    def lock(self) -> str:
        """Says which process writes to the folder (`hamgan.run.lock`)."""
        return self._of("writer.lock")

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints (`hamgan.run.checkpoints`)."""
        return self._of("checkpoints")

    def checkpoint(self, name: str) -> str:
        """The prefix of one checkpoint's files."""
        return os.path.join(self.checkpoints, name)

    @property
    def class_names(self) -> str:
        """The names of the classes, by label, one a line."""
        return self._of("classes.txt")

    @property
    def evaluation(self) -> str:
        """The folder of finished and half-done evaluations."""
        return self._of("evaluation")

    @property
    def neighbours(self) -> str:
        """The folder of what was found of samples' nearest training images."""
        return self._of("neighbours")

    @property
    def report(self) -> str:
        """The run as one HTML page."""
        return self._of("report.html")

    @property
    def samples(self) -> str:
        """The last grid of samples."""
        return self._of("samples.png")

    @property
    def sample_array(self) -> str:
        """Samples and their labels as arrays."""
        return self._of("samples.npz")

    @property
    def real_images(self) -> str:
        """Real images of the grid's classes."""
        return self._of("real.png")

    @property
    def grids(self) -> str:
        """The folder of the grids over time."""
        return self._of("samples")

    def grid(self, step: int) -> str:
        """The grid of one step."""
        return os.path.join(self.grids, f"step-{step:08d}.png")

    @staticmethod
    def step_of_grid(name: str) -> int | None:
        """The step of a grid's file; None: it isn't one."""
        found = re.fullmatch(r"step-(\d+)\.png", name)
        return int(found[1]) if found else None

    def neighbours_at(self, step: int) -> str:
        """What was found of one step's nearest training images, without the files' endings."""
        return os.path.join(self.neighbours, f"step-{step:08d}")

    def confusion(self, step: int) -> str:
        """The picture of which classes a segmentation of one step takes for which."""
        return self._of("confusion", f"step-{step:08d}.png")

    @property
    def predictions(self) -> str:
        """The folder of predicted label images."""
        return self._of("predictions")

    @property
    def shown(self) -> str:
        """TensorBoard's pictures and texts: a run of its own there, beside the numbers."""
        return self._of("tensorboard")

    @property
    def doctor(self) -> str:
        """The picture of the doctor."""
        return self._of("doctor.png")
