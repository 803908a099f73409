"""TensorBoard's file of scalars: what TensorBoard reads of it, and after a write that failed."""

import json

import pytest
import tensorflow as tf
from tensorboard import context
from tensorboard.backend.event_processing import (
    data_provider,
    plugin_event_accumulator,
    plugin_event_multiplexer,
)
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import custom_scalars_plugin
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)
from tensorboard.plugins.scalar import scalars_plugin

from hamgan.run import curves, log


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def read_by_tensorboard(folder):
    """What TensorBoard's pages ask, of all runs in a folder."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return data_provider.MultiplexerDataProvider(multiplexer, str(folder))


def test_tensorboard_shows_what_was_added(tmp_path):
    made = curves.Curves(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing to say yet
    made.add(1, {"loss/a": 0.5, "b": 3})
    made.add(2, {"loss/a": 0.25})
    made.flush()
    assert shown(tmp_path / "run") == {"loss/a": [(1, 0.5), (2, 0.25)], "b": [(1, 3.0)]}


def test_what_was_given_up_is_forgotten(tmp_path):
    made = curves.Curves(str(tmp_path))
    for step in (1, 2, 3):
        made.add(step, {"a": step})
    made.leave(1)
    made.add(2, {"a": 20})
    made.flush()
    assert shown(tmp_path) == {"a": [(1, 1.0), (2, 20.0)]}


def test_files_of_one_second_are_two(tmp_path):
    for value in (1, 2):
        made = curves.Curves(str(tmp_path))
        made.add(value, {"a": value})
        made.flush()
    assert len(list(tmp_path.iterdir())) == 2
    assert shown(tmp_path) == {"a": [(1, 1.0), (2, 2.0)]}


def test_behind_a_torn_record_another_file_begins(tmp_path, monkeypatch):
    made = curves.Curves(str(tmp_path))
    made.add(1, {"a": 1})
    made.flush()
    (first,) = tmp_path.iterdir()

    class Full:
        def write(self, record):
            with open(first, "ab") as file:
                file.write(record[:5])
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(made, "_file", Full())
    with pytest.raises(tf.errors.ResourceExhaustedError):
        made.add(2, {"a": 2})
    made.add(3, {"a": 3})
    made.flush()
    assert len(list(tmp_path.iterdir())) == 2
    whole = max(tmp_path.iterdir())
    steps = [
        event.step
        for event in tf.compat.v1.train.summary_iterator(str(whole))
        if event.summary.value
    ]
    assert steps == [3]


RECORDS = [
    {"kind": "train", "step": 1, "loss/generator": 0.5, "gate/generator": 0.1},
    {"kind": "train", "step": 2, "loss/generator": 0.25, "images_per_second": 9.0},
    {"kind": "evaluation", "step": 2, "fid": 20.0, "kid": 0.5, "seed": 0},
    {"kind": "evaluation", "step": 2, "fid": 21.0, "seed": 1, "protocol": {"name": "published"}},
    {"kind": "evaluation", "step": 2, "mean_iou": 0.5, "mean_accuracy": 0.6},
]


def test_first_cards_come_first(tmp_path):
    (tmp_path / "config.gin").write_text("a.b = 1\n")
    made = log.Log(str(tmp_path))
    made.show_configuration(0)
    for record in RECORDS:
        made.write(record)
    provider = read_by_tensorboard(tmp_path)
    plugins = {}
    shared = base_plugin.TBContext(
        data_provider=provider, logdir=str(tmp_path), plugin_name_to_instance=plugins
    )
    plugins["scalars"] = scalars_plugin.ScalarsPlugin(shared)
    plugin = custom_scalars_plugin.CustomScalarsPlugin(shared)
    request = context.RequestContext()
    layout = plugin.layout_impl(request, "")
    layout = json.loads(layout) if isinstance(layout, str) else layout
    (category,) = layout["category"]
    found = {
        chart["title"]: sorted(
            plugin.scalars_impl(request, ".", chart["multiline"]["tag"][0], "")["tag_to_events"]
        )
        for chart in category["chart"]
    }
    assert list(found.items()) == [
        ("FID", ["evaluation/fid", "evaluation/published/seed 1/fid"]),
        ("Losses", ["loss/generator"]),
        ("Images a second", ["images_per_second"]),
        ("Mean IoU", ["evaluation/mean_iou"]),
    ]


def compared_by_hparams(folder):
    """({setting: whether it differs}, [({setting: value}, {tag: last value})] by session)."""
    shared = base_plugin.TBContext(data_provider=read_by_tensorboard(folder), logdir=str(folder))
    backend, asking = backend_context.Context(shared), context.RequestContext()
    asked = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(asking, backend, "", asked).run()
    asked = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        include_metrics=True,
        slice_size=10,
    )
    groups = list_session_groups.Handler(asking, backend, "", asked).run().session_groups
    sessions = [
        (
            {name: value.number_value for name, value in group.hparams.items()},
            {value.name.tag: value.value for value in group.metric_values},
        )
        for group in groups
    ]
    return {info.name: info.differs for info in experiment.hparam_infos}, sessions


def write_run(folder, rank, fid):
    """Two processes that train, the second of which goes back, and one that evaluates."""
    for _ in range(2):
        made = log.Log(str(folder))
        made.show_settings({"seed": "3", "rank": str(rank)})
        made.write({"kind": "train", "step": 5, "loss/generator": 9.0})
    made.write({"kind": "event", "step": 5, "event": "rolled back", "to": 1})
    made.write({"kind": "train", "step": 2, "loss/generator": fid / 100})
    log.Log(str(folder)).write({"kind": "evaluation", "step": 2, "fid": fid})


def test_hparams_compares_runs_by_fid_and_losses(tmp_path):
    for rank, fid in ((4, 20.0), (8, 10.0)):
        write_run(tmp_path / f"rank{rank}", rank, fid)
    differs, sessions = compared_by_hparams(tmp_path)
    assert differs == {"seed": False, "rank": True}
    assert sorted(sessions, key=str) == [
        ({"seed": 3, "rank": 4}, {"evaluation/fid": 20, "loss/generator": pytest.approx(0.2)}),
        ({"seed": 3, "rank": 8}, {"evaluation/fid": 10, "loss/generator": pytest.approx(0.1)}),
    ]
