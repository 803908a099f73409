import helpers
import numpy as np
import pytest
import tensorflow as tf

from hamgan import distribution


def test_cpu_strategy_spans_all_logical_cpus():
    assert distribution.create_strategy("cpu").num_replicas_in_sync == len(
        tf.config.list_logical_devices("CPU")
    )


def test_auto_finds_what_the_host_has():
    strategy = distribution.create_strategy("auto")
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    assert all(kind in device for device in strategy.extended.worker_devices)


def test_unknown_accelerator_is_refused():
    with pytest.raises(
        ValueError, match="accelerator must be one of auto, cpu, gpu, tpu, got 'ipu'"
    ):
        distribution.create_strategy("ipu")


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="this host has a GPU")
def test_missing_gpu_is_an_error_that_says_what_there_is():
    with pytest.raises(ValueError, match=r"sees no GPU on this host, only \['CPU'\]"):
        distribution.create_strategy("gpu")


def test_unreachable_tpu_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="(?s)tpu='local' can't be reached.*requirements-tpu.txt"):
        distribution.create_strategy("tpu")


def test_division_of_batches():
    assert distribution.per_replica_batch_size(1024, 8) == 128
    with pytest.raises(
        ValueError,
        match=r"\(100\) must be divisible by the number of replicas \(8\); 96 and 104 are",
    ):
        distribution.per_replica_batch_size(100, 8)


def test_gather_joins_replicas_in_order():
    strategy = helpers.two_replicas()

    @tf.function
    def gathered():
        parts = strategy.run(
            lambda: tf.fill([2], tf.distribute.get_replica_context().replica_id_in_sync_group)
        )
        return distribution.gather(strategy, parts)

    np.testing.assert_array_equal(gathered().numpy(), [0, 0, 1, 1])


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": 3}}'])
def test_environment_that_names_no_hosts_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match='TF_CONFIG must be JSON like {"cluster": {"worker": '):
        distribution.create_strategy("cpu")


def test_environment_without_a_place_for_this_host_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1", "localhost:2"]}}')
    with pytest.raises(
        ValueError, match="(?s)The hosts of TF_CONFIG can't be joined.*which of them this is"
    ):
        distribution.create_strategy("cpu")


@pytest.mark.parametrize("text", ["{}", '{"cluster": {"worker": ["localhost:1"]}}'])
def test_one_host_needs_no_other(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    strategy = distribution.create_strategy("cpu")
    assert distribution.num_hosts(strategy) == 1
    assert distribution.is_chief(strategy)
    assert distribution.of_hosts(strategy, 7) == [7]
