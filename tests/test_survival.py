"""Runs in processes of their own that are killed, and that change their number of replicas and
hosts.
"""

import random
import time

import children
import numpy as np
import pytest

from hamgan.run import checkpoints, contents, records

FOREVER = 10**6


@pytest.fixture(scope="module")
def start():
    with children.nursery() as start:
        yield start


def finish(process, *, exitcode=0):
    process.join(300)
    assert process.exitcode == exitcode


def last_step(model_dir):
    return checkpoints.step_of((checkpoints.available(str(model_dir)) or ["ckpt--1"])[-1])


def wait_for_step(model_dir, step, *processes):
    deadline = time.monotonic() + 300
    while last_step(model_dir) < step:
        assert all(process.is_alive() for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def load(model_dir):
    return contents.load(checkpoints.find(str(model_dir)))


def assert_same(model_dir, other, *, tolerance=0.0):
    values, expected = load(model_dir), load(other)
    assert values.keys() == expected.keys() and values["step"] == expected["step"]
    for name, value in expected.items():
        scale = max(1e-3, np.abs(value).max())
        np.testing.assert_allclose(
            values[name], value, rtol=0, atol=tolerance * scale, err_msg=name
        )


@pytest.mark.slow
def test_run_that_is_killed_twenty_times_is_the_same_run(start, tmp_path):
    moments = random.Random(0)
    for kill in range(20):
        before = last_step(tmp_path / "killed")
        process = start(tmp_path / "killed", FOREVER)
        if kill % 2:
            # Between or in the writing of checkpoints.
            wait_for_step(tmp_path / "killed", before + 1, process)
            time.sleep(moments.uniform(0, 0.5))
        else:
            time.sleep(moments.uniform(0, 5))
        assert process.is_alive()
        process.kill()
        process.join()
    end = last_step(tmp_path / "killed") + 2
    finish(start(tmp_path / "killed", end))
    finish(start(tmp_path / "whole", end, save_every=1000))
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert [
        p.name
        for p in (tmp_path / "killed" / "checkpoints").iterdir()
        if p.name.startswith("writing")
    ] == []


@pytest.mark.slow
def test_number_of_replicas_may_change_at_the_same_batch_size(start, tmp_path):
    for num_steps, devices in ((2, 1), (4, 2), (6, 4), (8, 1)):
        finish(start(tmp_path / "changing", num_steps, devices=devices, epsilon=1.0))
    finish(start(tmp_path / "one", 8, epsilon=1.0))
    assert_same(tmp_path / "changing", tmp_path / "one", tolerance=1e-4)


@pytest.mark.slow
def test_two_hosts_are_one_run_and_survive_the_death_of_one(start, tmp_path):
    lost = tmp_path / "lost.txt"

    def start_both(num_steps):
        return [
            start(tmp_path / "two", num_steps, tf_config=config, epsilon=1.0, lost=lost)
            for config in children.cluster()
        ]

    chief, other = start_both(FOREVER)
    wait_for_step(tmp_path / "two", 3, chief, other)
    other.kill()
    chief.join(60)
    assert chief.exitcode == 1  # it can't go on alone, and doesn't hang
    assert lost.read_text().startswith("Lost: worker 1 at localhost:")
    reached = last_step(tmp_path / "two")
    for process in start_both(reached + 3):
        finish(process)
    # And the other way round: one host goes on where two were.
    finish(start(tmp_path / "two", reached + 5, epsilon=1.0))
    finish(start(tmp_path / "one", reached + 5, epsilon=1.0))
    assert_same(tmp_path / "two", tmp_path / "one", tolerance=1e-4)
    resumed = [
        e
        for e in records.read(tmp_path / "two" / "metrics.jsonl", kind="event")
        if e["event"] == "resumed"
    ]
    assert [event["step"] for event in resumed] == [reached, reached + 3]
    steps = [r["step"] for r in records.read(tmp_path / "two" / "metrics.jsonl", kind="train")]
    assert len(steps) == len(set(steps))  # one of the hosts writes
