"""Records go elsewhere too, as they are, and whatever fails there ends no training."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import pytest

from hamgan.run import sinks
from hamgan.run.folder import Folder
from hamgan.run.log import Log

TRAIN = {"kind": "train", "step": 50, "loss/generator": 0.5, "sigma/generator/a b": 1.25}
EVALUATION = {
    "kind": "evaluation",
    "step": 50,
    "fid": 12.5,
    "protocol": {"name": "mine", "fingerprint": "f"},
    "checkpoint_digest": "d",
    "generator": {"digest": "g"},
    "reference": {"content": "c"},
    "measures": ["fid"],
}
EVENT = {"kind": "event", "step": 60, "event": "rolled back"}


class Kept:
    """A sink of the test's own."""

    def __init__(self, model_dir):
        self.model_dir, self.begun, self.records = model_dir, [], []

    def begin(self, configuration):
        self.begun.append(dict(configuration))

    def write(self, record):
        if record["step"] == 60:
            raise ConnectionError("no route to the service")
        self.records.append(record)


def test_records_go_out_once_and_failures_are_said(tmp_path, capsys):
    made = []

    def make(model_dir):
        made.append(Kept(model_dir))
        return made[-1]

    log = Log(str(tmp_path), sinks=[make])
    log.show_settings({"trainer.Trainer.batch_size": "64", "networks.Generator.norm": "@bn"})
    for record in (TRAIN, EVALUATION, EVALUATION, EVENT, {**TRAIN, "step": 100}):
        log.write(record)
    (sink,) = made
    assert sink.model_dir == str(tmp_path)
    assert sink.begun == [
        {"trainer.Trainer.batch_size": "64", "networks.Generator.norm": "@bn"},
    ]
    assert [(record["kind"], record["step"]) for record in sink.records] == [
        ("train", 50),
        ("evaluation", 50),
        ("train", 100),
    ]
    assert sink.records[1]["fid"] == 12.5
    log.write({**EVENT, "event": "again"})
    assert capsys.readouterr().err.count("ConnectionError: no route to the service") == 1
    # What failed there stands in the run's folder.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == [
        *("train", "evaluation", "event", "train", "event")
    ]


def test_a_host_that_leaves_the_writing_to_another_makes_none(tmp_path):
    log = Log(str(tmp_path), writes=False, sinks=[pytest.fail])
    log.show_settings({"a.b": "1"})
    log.write(TRAIN)


def test_sinks_that_are_not_there_are_refused():
    with pytest.raises(
        ValueError, match=r"--sink must be one of mlflow, wandb \(=WHERE\), got 'x=1'"
    ):
        sinks.parse(["x=1"])


def test_a_package_that_is_missing_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--sink=wandb needs wandb: pip install wandb"):
        sinks.parse(["wandb=project"])


@pytest.mark.parametrize(
    "model_dir, name",
    [
        (".", "mine"),
        ("./", "mine"),
        ("../mine/x/..", "mine"),
        ("runs/digits/", "digits"),
        ("gs://bucket/runs/digits/", "digits"),
        ("gs://bucket", "bucket"),
        ("/", "/"),
    ],
)
def test_a_run_is_called_as_its_folder(tmp_path, monkeypatch, model_dir, name):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert Folder(model_dir).name == name


def test_mlflow_has_the_records_of_a_run_that_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is an extra")
    uri = f"sqlite:///{tmp_path}/store.db"
    run = tmp_path / "digits"
    run.mkdir()
    monkeypatch.chdir(run)
    for step in (50, 100):  # two processes, as it were
        log = Log(".", sinks=sinks.parse([f"mlflow={uri}"]))
        log.show_settings({"trainer.Trainer.batch_size": "64", "G/context.Hamburger.rank": "8"})
        log.write({**TRAIN, "step": step, "loss/generator": step / 100})
    log.write(EVALUATION)
    log.write(EVENT)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(sinks.EXPERIMENT)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "digits"
    assert found.info.run_id == json.loads(open(Folder(str(run)).sinks).read())["mlflow"]
    assert found.data.params == {
        "trainer.Trainer.batch_size": "64",
        "G/context.Hamburger.rank": "8",
    }
    history = client.get_metric_history(found.info.run_id, "loss/generator")
    assert [(metric.step, metric.value) for metric in history] == [(50, 0.5), (100, 1.0)]
    assert found.data.metrics["sigma/generator/a b"] == 1.25
    assert found.data.metrics["evaluation/mine/fid"] == 12.5
    assert found.data.tags["event at 60"] == "rolled back"


WANDB_RUN = """
import sys
from hamgan.run import sinks
from hamgan.run.log import Log
log = Log(sys.argv[1], sinks=sinks.parse(["wandb=mine"]))
log.show_settings({"trainer.Trainer.batch_size": "64"})
at = {"time": 1.0, "step": int(sys.argv[2])}
log.write({**at, "kind": "train", "loss/generator": int(sys.argv[2]) / 100})
log.write({**at, "kind": "event", "event": "rolled back"})
"""


def wandb_records(path):
    """What a run that isn't online writes for a later `wandb sync`: records of its protocol, in the
    format of LevelDB's logs.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole, block = path.read_bytes(), 7, b"", 1 << 15
    while at + 7 <= len(data):
        if block - at % block < 7:  # no room for a head
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, its last part
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            yield record.WhichOneof("record_type"), record


@pytest.mark.slow
def test_wandb_has_the_records_of_a_run_that_goes_on(tmp_path):
    pytest.importorskip("wandb", reason="Weights & Biases is an extra")
    run = tmp_path / "digits"
    run.mkdir()
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    }
    for step in (50, 100):
        subprocess.run(
            [sys.executable, "-c", WANDB_RUN, str(run), str(step)],
            check=True,
            env=environment,
            timeout=300,
        )
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    name = json.loads(open(Folder(str(run)).sinks).read())["wandb"]
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    for file, step in zip(files, (50, 100), strict=True):
        found = list(wandb_records(file))
        (begun,) = [record.run for kind, record in found if kind == "run"]
        assert (begun.run_id, begun.project, begun.display_name) == (name, "mine", "digits")
        settings = {
            item.key: json.loads(item.value_json)
            for kind, record in found
            if kind == "config"
            for item in record.config.update
        }
        assert settings["trainer.Trainer.batch_size"] == "64"
        numbers = {
            "/".join(item.nested_key): json.loads(item.value_json)
            for kind, record in found
            if kind == "history"
            for item in record.history.item
        }
        assert (numbers["step"], numbers["loss/generator"]) == (step, step / 100)
        alerts = [record.alert for kind, record in found if kind == "alert"]
        assert [(alert.title, alert.text) for alert in alerts] == [
            ("rolled back", f"at step {step}")
        ]
