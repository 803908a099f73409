"""The benchmark of training steps: what is counted, how times are told apart, what is printed."""

import dataclasses
import json

import benchmark_jobs
import pytest
from PIL import Image

from hamgan.benchmarks import measure, step, step_report
from hamgan.cli import benchmark_steps


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"size": "huge"}, "size must be one of full, digits, got 'huge'"),
        ({"size": "full", "module": "fries"}, "module must be one of none, .*got 'fries'"),
        (
            {"size": "full", "devices": 2, "microbatches": 4},
            "4 microbatches on 2 logical CPUs: 4 images can't be cut into 8 equal parts",
        ),
        (
            {"size": "digits", "module": "published"},
            "digits, published, float32, batch 32: the published graph is of size full in float32",
        ),
    ],
)
def test_cases_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        step.Case(**settings)


def test_the_published_graph_is_no_experiment():
    with pytest.raises(ValueError, match="full, published, float32, batch 4: .* a step to time"):
        step.Case("full", module="published").experiment()


def test_self_time_leaves_out_what_is_called(tmp_path):
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    plane = space.planes.add(name="/host:CPU")
    for key, name in enumerate(("a:MatMul", "b:Call", "c:Add")):
        plane.event_metadata[key].name = name
    line = plane.lines.add()
    # Call [0, 10] holds MatMul [1, 5], which holds Add [2, 3]; Add [12, 14] stands alone.
    for key, start, stop in ((2, 2, 3), (1, 0, 10), (0, 1, 5), (2, 12, 14)):
        line.events.add(
            metadata_id=key, offset_ps=start * 10**12, duration_ps=(stop - start) * 10**12
        )
    # Of another kind of plane nothing counts.
    space.planes.add(name="/host:metadata").lines.add().events.add(duration_ps=10**15)
    path = tmp_path / "host.xplane.pb"
    path.write_bytes(space.SerializeToString())
    found = {name: (seconds, calls) for name, seconds, calls in step.self_times(str(path))}
    assert found == {"Call": (6.0, 1), "MatMul": (3.0, 1), "Add": (3.0, 2)}


def test_yardsticks_count_what_they_compute():
    for macs, call in step._yardsticks("float32").values():
        assert macs == measure.count_macs(call.python_function)


def of_jobs(job, arguments, *, environment=None):
    """Made results: the second case doesn't fit into memory."""
    if job is step.time_job:
        for seconds in (2.0, 4.0, 3.0):
            yield {"case": 0, "seconds": seconds}
            yield {"rate": "float32", "macs": 100.0 * seconds}
        yield {"case": 1, "error": "out of memory"}
    elif arguments["case"]["module"] == "none":
        raise measure.ChildError("killed")
    elif job is step.count_job:
        yield {"macs": 600, "parameters": 7}
    else:
        assert environment is measure.MEMORY_ENVIRONMENT
        yield {"bytes": 3 * 10**9}


def test_rows_of_made_results(tmp_path):
    cases = [step.Case("digits"), step.Case("digits", module="none", batch_size=8)]
    rates, (first, second) = step.measure_steps(cases, run=of_jobs, progress=False)
    assert rates == {"float32": 400.0}
    assert first["seconds"] == 3.0 and first["images_per_second"] == 32 / 3
    assert first["share"] == 600 / 3 / 400 and first["memory"] == 3 * 10**9
    assert second["errors"] == {"work": "killed", "memory": "killed", "time": "out of memory"}
    table = step_report.step_table([first, second])
    assert "3.000 s" in table and "50%" in table and "3.00 GB" in table
    assert "digits, none, float32, batch 8, time: out of memory" in table
    step_report.draw([first, second], str(tmp_path / "step.png"))
    assert Image.open(tmp_path / "step.png").width > 500


def test_other_numbers_of_devices_have_processes_of_their_own():
    cases = [step.Case("digits", devices=devices) for devices in (1, 2, 1, 4)]
    asked = []

    def of_job(job, arguments, *, environment=None):
        if job is not step.time_job:
            yield {}
            return
        (devices,) = {case["devices"] for case in arguments["cases"]}
        asked.append(devices)
        if devices == 4:
            raise measure.ChildError("killed")
        for index in range(len(arguments["cases"])):
            yield {"case": index}
            yield {"case": index, "seconds": 10.0 * devices + index}

    _, rows = step.measure_steps(cases, run=of_job, progress=False)
    assert asked == [1, 2, 4]
    assert [row.get("seconds") for row in rows] == [10, 20, 11, None]
    # One that fails leaves the others be.
    assert [row["errors"] for row in rows] == [{}, {}, {}, {"time": "killed"}]


def test_scaling_varies_one_number_at_a_time():
    chosen = dict(sizes=["digits"], networks=["none"], precisions=["float32"])
    cases = benchmark_steps.scaling_cases(
        **chosen, batch_sizes=None, microbatches=None, devices=["1", "2", "4"]
    )
    assert [(case.images, case.microbatches, case.devices) for case in cases] == [
        (32, 1, 1),
        (16, 1, 1),
        (64, 1, 1),
        (32, 2, 1),
        (32, 4, 1),
        (32, 1, 2),
        (32, 1, 4),
    ]
    with pytest.raises(ValueError, match="--devices must be whole numbers from 1 on, got '0'"):
        benchmark_steps.scaling_cases(
            **chosen, batch_sizes=["8"], microbatches=["1"], devices=["0"]
        )


@pytest.mark.slow
def test_a_step_on_logical_cpus_is_measured(monkeypatch, tmp_path):
    case = step.Case("digits", module="none", batch_size=8, devices=2)
    monkeypatch.setattr(benchmark_steps, "scaling_cases", lambda: [case])
    benchmark_steps.benchmark_scaling(repeats=1, output=str(tmp_path))
    (row,) = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert (row["devices"], row["images"], row["errors"]) == (2, 8, {})
    assert row["seconds"] > 0 and row["memory"] > 10**7
    # Each computes its own images.
    (one,) = benchmark_jobs.in_process(
        step.count_job, {"case": {**dataclasses.asdict(case), "devices": 1}}
    )
    assert row["macs"] == pytest.approx(one["macs"], rel=0.2)
    assert Image.open(tmp_path / "scaling.png").width > 500


@pytest.mark.slow
def test_a_step_of_the_digits_is_measured():
    case = {"size": "digits", "batch_size": 4}
    (counted,) = benchmark_jobs.in_process(step.count_job, {"case": case})
    # Twice the images take twice the products of what depends on images.
    (more,) = benchmark_jobs.in_process(step.count_job, {"case": {**case, "batch_size": 8}})
    assert 1.5 < more["macs"] / counted["macs"] <= 2
    assert counted["parameters"] > 10**5
    job = {"cases": [{**case, "precision": "float32"}], "repeats": 2, "accelerator": "cpu"}
    records = list(benchmark_jobs.in_process(step.time_job, job))
    assert sum("seconds" in record for record in records) == 2, records
    assert sum("rate" in record for record in records) == 4
    (operations,) = benchmark_jobs.in_process(
        step.trace_job, {"case": case, "accelerator": "cpu", "steps": 1}
    )
    # Kernels are called differently by the library that computes them.
    assert any("Conv" in row["operation"] and row["seconds"] > 0 for row in operations)
