"""The benchmarks of what is around the step: what is computed of the jobs' records, and that they
run.
"""

import pathlib
import re

import pytest

from hamgan.benchmarks import around, measure, step
from hamgan.cli import benchmark_steps

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
CASES = [step.Case("full"), step.Case("digits", batch_size=10)]


def test_periods_are_those_of_the_shipped_configurations():
    for size, name in (("full", "imagenet128"), ("digits", "digits")):
        text = (CONFIGS / f"{name}.gin").read_text()
        found = {
            what: int(re.search(rf"Schedule\.{setting} = ([\d_]+)", text)[1])
            for what, setting in (("checkpoint", "save_every"), ("grid", "sample_every"))
        }
        assert around.PERIODS[size] == found


def test_shares_of_made_overheads():
    def of_job(job, arguments):
        assert job is around.overhead_job and arguments["repeats"] == 3
        yield {"step": 2.0, "checkpoint": 50.0, "begin": 7.0, "grid": 10.0, "bytes": 3 * 10**6}

    first, second = around.measure_overhead(CASES, run=of_job)
    assert first["shares"] == {"checkpoint": 50 / 10_000, "grid": 10 / 20_000}
    assert second["shares"] == {"checkpoint": 50 / 600, "grid": 10 / 600}
    table = around.overhead_table(CASES, [first, second])
    assert "0.50%" in table and "8.33%" in table and "3 MB" in table
    assert "50.00 s, 7.00 s before the next step" in table


def test_rates_of_made_samples():
    def of_job(job, arguments):
        for seconds in (4.0, 1.0, 2.0):
            yield {"case": 0, "seconds": seconds}
            yield {"case": 1, "seconds": 10 * seconds}

    first, second = around.measure_samples(CASES, run=of_job)
    assert (first["seconds"], first["images_per_second"]) == (2.0, 2.0)
    assert (first["protocol_seconds"], second["protocol_seconds"]) == (25_000.0, 100_000.0)
    assert "416.7 min" in around.sample_table([first, second])


def test_a_sample_that_fails_leaves_the_others():
    def of_job(job, arguments):
        yield {"case": 0, "error": "out of memory"}
        yield {"case": 1, "seconds": 2.0}

    failed, other = around.measure_samples(CASES, run=of_job)
    assert failed["error"] == "out of memory" and other["images_per_second"] == 5.0
    assert "out of memory" in around.sample_table([failed, other])


def test_starts_are_medians(monkeypatch):
    monkeypatch.setattr(around, "help_seconds", {name: 0.25 for name in around.COMMANDS}.get)
    times = iter([3.0, 1.0, 2.0])

    def of_job(job, arguments):
        yield dict.fromkeys(("imported", "built", "first", "second"), next(times))

    helps, (row,) = around.measure_start(CASES[1:], run=of_job)
    assert set(helps.values()) == {0.25} and row["first"] == 2.0
    table = around.start_table(helps, [row])
    assert "2.0 s" in table and "train --help" in table and "0.25 s" in table


def test_numbers_are_refused():
    given = {"sizes": ["digits"], "networks": ["none"], "precisions": ["float32"]}
    with pytest.raises(ValueError, match="--batch_sizes must be whole numbers .* got '0'"):
        benchmark_steps.cases_of(**given, batch_sizes=["0"])
    (case,) = benchmark_steps.cases_of(**given, batch_sizes=["4"], microbatches=["2"])
    assert (case.images, case.microbatches, case.module) == (4, 2, "none")


@pytest.mark.slow
def test_jobs_run():
    # In processes of their own, as the benchmark has them: several mirrored strategies of one
    # process take each other's numbers for their sums.
    case = {"size": "digits", "module": "none", "batch_size": 4}
    (found,) = measure.in_child(
        around.overhead_job, {"case": case, "repeats": 1, "accelerator": "cpu"}
    )
    assert found["bytes"] > 10**6
    assert all(found[name] > 0 for name in ("step", "checkpoint", "begin", "grid"))
    records = list(
        measure.in_child(around.sample_job, {"cases": [case], "repeats": 2, "accelerator": "cpu"})
    )
    assert [record["case"] for record in records] == [0, 0]
    (started,) = measure.in_child(
        around.start_job, {"case": case, "accelerator": "cpu", "launched": 0.0}
    )
    assert started["imported"] < started["built"] < started["first"] < started["second"]


def test_help_is_timed():
    for command in around.COMMANDS:
        assert 0 < around.help_seconds(command) < 60
    with pytest.raises(measure.ChildError, match="(?s)fries --help: .*has no attribute 'fries'"):
        around.help_seconds("fries")
