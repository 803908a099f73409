"""The benchmark of training steps: what is counted, how times are told apart, what is printed."""

import pytest
from PIL import Image

from hamgan.benchmarks import context, measure, step, step_report


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"size": "huge"}, "size must be one of full, digits, got 'huge'"),
        ({"size": "full", "module": "fries"}, "module must be one of none, .*got 'fries'"),
    ],
)
def test_cases_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        step.Case(**settings)


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
    assert first["seconds"] == 3.0 and first["images_per_second"] == 64 / 3
    assert first["share"] == 600 / 3 / 400 and first["memory"] == 3 * 10**9
    assert second["errors"] == {"work": "killed", "memory": "killed", "time": "out of memory"}
    table = step_report.step_table([first, second])
    assert "3.000 s" in table and "50%" in table and "3.00 GB" in table
    assert "digits, none, float32, batch 8, time: out of memory" in table
    step_report.draw([first, second], str(tmp_path / "step.png"))
    assert Image.open(tmp_path / "step.png").width > 500


@pytest.mark.slow
def test_a_step_of_the_digits_is_measured():
    case = {"size": "digits", "batch_size": 4}
    (counted,) = context.in_process(step.count_job, {"case": case})
    # Twice the images take twice the products of what depends on images.
    (more,) = context.in_process(step.count_job, {"case": {**case, "batch_size": 8}})
    assert 1.5 < more["macs"] / counted["macs"] <= 2
    assert counted["parameters"] > 10**5
    job = {"cases": [{**case, "precision": "float32"}], "repeats": 2, "accelerator": "cpu"}
    records = list(context.in_process(step.time_job, job))
    assert sum("seconds" in record for record in records) == 2, records
    assert sum("rate" in record for record in records) == 4
    (operations,) = context.in_process(
        step.trace_job, {"case": case, "accelerator": "cpu", "steps": 1}
    )
    # Kernels are called differently by the library that computes them.
    assert any("Conv" in row["operation"] and row["seconds"] > 0 for row in operations)
