"""Where a run's records go beside its folder: MLflow, Weights & Biases, or what has their two
methods. None of them can end a training.

A record goes out as it is: its numbers under TensorBoard's tags at its step, other kinds of
records (events) as text. A run that goes on, goes on there too: which run that is stands in the
run's folder.
"""

import functools
import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from hamgan.run import records
from hamgan.run.folder import Folder

EXPERIMENT = "hamgan"


class Sink(Protocol):
    """What a sink has."""

    def begin(self, configuration: Mapping[str, str]) -> None:
        """Takes the run's settings, {binding: value as text}; called once a process."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a record of `hamgan.run.records`."""


class MLflow:
    """Records in an MLflow store: settings as parameters, numbers as metrics, events as tags.

    Args:
      model_dir: the run's folder, whose name the run gets.
      uri: tracking URI, as MLflow has them; None: its own default (MLFLOW_TRACKING_URI, else here).
    """

    def __init__(self, model_dir: str, uri: str | None = None):
        import mlflow

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._id = _known(model_dir, "mlflow", functools.partial(self._create, model_dir))

    def _create(self, model_dir):
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        return self._client.create_run(experiment, run_name=Folder(model_dir).name).info.run_id

    def begin(self, configuration: Mapping[str, str]) -> None:
        """Settings become parameters; those that a run that goes on has already stay."""
        there = self._client.get_run(self._id).data.params
        # A request takes 100 parameters, whose values have at most 6,000 characters.
        new = [
            self._entities.Param(name, value[:6000])
            for name, value in configuration.items()
            if name not in there
        ]
        for first in range(0, len(new), 100):
            self._client.log_batch(self._id, params=new[first : first + 100])

    def write(self, record: Mapping[str, Any]) -> None:
        """Numbers become metrics at the record's step, an event a tag."""
        at = int(1000 * record["time"])
        step = int(record["step"])
        metrics = [
            self._entities.Metric(_in_letters(tag), value, at, step)
            for tag, value in records.scalars(record).items()
        ]
        self._client.log_batch(self._id, metrics=metrics)
        if record["kind"] == "event":
            self._client.set_tag(self._id, f"event at {step:,}", str(record["event"]))


class WandB:
    """Records in Weights & Biases. Its own steps only grow, and a run may go back: so the run's
    step is a number beside the others, over which everything is drawn.

    Args:
      model_dir: the run's folder, whose name the run gets.
      project: there; None: 'hamgan'.
    """

    def __init__(self, model_dir: str, project: str | None = None):
        import wandb

        self._run = wandb.init(
            project=project or EXPERIMENT,
            id=_known(model_dir, "wandb", lambda: uuid.uuid4().hex[:12]),
            name=Folder(model_dir).name,
            resume="allow",
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def begin(self, configuration: Mapping[str, str]) -> None:
        """Settings become the run's configuration."""
        self._run.config.update(dict(configuration), allow_val_change=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """Numbers are logged with the record's step, an event as an alert."""
        self._run.log({**records.scalars(record), "step": record["step"]})
        if record["kind"] == "event":
            self._run.alert(str(record["event"]), f"at step {record['step']:,}")


KINDS: dict[str, tuple[str, Callable[..., Sink]]] = {
    "mlflow": ("mlflow", MLflow),
    "wandb": ("wandb", WandB),
}


def parse(texts: Sequence[str]) -> list[Callable[[str], Sink]]:
    """Functions (model_dir) -> sink, of texts like 'mlflow' or 'mlflow=sqlite:///runs.db'.

    Raises:
      ValueError: no such kind, or its package isn't installed.
    """
    found: list[Callable[[str], Sink]] = []
    for text in texts:
        kind, _, where = text.partition("=")
        if kind not in KINDS:
            raise ValueError(f"--sink must be one of {', '.join(KINDS)} (=WHERE), got {text!r}.")
        package, sink = KINDS[kind]
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"--sink={kind} needs {package}: pip install {package}")
        found.append(functools.partial(_made, sink, where or None))
    return found


def _made(sink, where, model_dir):
    return sink(model_dir, where)


def _known(model_dir, kind, create):
    """The name that a run has elsewhere, which is kept in its folder."""
    path = Folder(model_dir).sinks
    names = {}
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            names = json.load(file)
    if kind not in names:
        names[kind] = create()
        records.write_whole(path, json.dumps(names).encode())
    return names[kind]


def _in_letters(tag):
    """A tag in the letters that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-./ :" else "-" for c in tag)
