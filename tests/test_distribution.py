import re
import types

import helpers
import numpy as np
import pytest
import tensorflow as tf

from hamgan import distribution, training
from hamgan.segmentation import experiment


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


@pytest.mark.parametrize("text", ["", " ", "{}", '{"cluster": {"worker": ["localhost:1"]}}'])
def test_one_host_needs_no_other(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    strategy = distribution.create_strategy("cpu")
    assert distribution.num_hosts(strategy) == 1
    assert distribution.is_chief(strategy)
    assert distribution.of_hosts(strategy, 7) == [7]


TWO = '"cluster": {"worker": ["a:1", "b:2"]}'


@pytest.mark.parametrize(
    "text, why",
    [
        ("{'cluster': {}}", "texts stand in double quotes"),
        ('{"task": {"type": "worker", "index": 0}}', "the task worker 0 is none of its cluster"),
        ('{"clusters": {"worker": ["a:1"]}}', "clusters isn't known"),
        ('{"cluster": {"worker": ["a:1"], "worker_hosts": ["b:2"]}}', "the job worker_hosts isn't"),
        ('{"cluster": {"worker": "a:1"}}', "worker must be a list of addresses"),
        ('{"cluster": {"worker": ["a"]}}', "worker 0 must be HOST:PORT, not 'a'"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}}', "a:1 is named twice"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}}', "one chief only"),
        ('{"cluster": ["a:1"]}', "cluster is no object"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "worker 1 is"),
        (f'{{{TWO}, "task": {{"type": "chief", "index": 0}}}}', "which has worker 0, worker 1"),
        (
            f'{{{TWO}, "task": {{"type": "worker", "index": 0.0}}}}',
            "must be a whole number, not 0.0",
        ),
        (f'{{{TWO}, "task": {{"type": "worker", "index": true}}}}', "whole number, not True"),
        (f'{{{TWO}, "task": {{"type": "worker"}}}}', "task must have type and index"),
        (f'{{{TWO}, "task": "worker"}}', "task must have type and index"),
    ],
)
def test_environment_that_is_not_understood_is_refused(monkeypatch, text, why):
    monkeypatch.setenv("TF_CONFIG", text)
    for read in (
        lambda: distribution.create_strategy("cpu"),
        distribution.task_of_cluster,
        distribution.cluster_in_words,
    ):
        with pytest.raises(ValueError) as error:
            read()
        for part in ("TF_CONFIG must be JSON like", why, f"Got {text!r}", "unset TF_CONFIG"):
            assert part in str(error.value)


def test_evaluation_reads_the_task_too(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", f"{{{TWO}}}")
    with pytest.raises(ValueError, match="which of them this is.*Got .*unset TF_CONFIG"):
        distribution.task_of_cluster()
    monkeypatch.setenv("TF_CONFIG", "")
    assert distribution.task_of_cluster() is None
    monkeypatch.setenv("TF_CONFIG", f'{{{TWO}, "task": {{"type": "worker", "index": "1"}}}}')
    assert distribution.task_of_cluster() == (1, 2)


def test_hosts_and_this_ones_part_in_words(monkeypatch):
    cluster = '"cluster": {"chief": ["a:1"], "worker": ["b:2"]}'
    monkeypatch.setenv("TF_CONFIG", f'{{{cluster}, "task": {{"type": "worker", "index": 0}}}}')
    assert distribution.cluster_in_words() == (
        "Hosts (TF_CONFIG): chief 0 at a:1, worker 0 at b:2. This is worker 0 at b:2, number 2 of "
        "2; the first one writes checkpoints and records."
    )
    monkeypatch.delenv("TF_CONFIG")
    assert distribution.cluster_in_words() is None


def test_commands_of_one_host_join_no_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", f'{{{TWO}, "task": {{"type": "worker", "index": 0}}}}')
    strategy = distribution.create_strategy("cpu", across_hosts=False)  # would wait for b:2
    assert distribution.num_hosts(strategy) == 1


@pytest.mark.parametrize("error", [OSError("Name or service not known"), ImportError("no client")])
def test_tpu_that_is_not_there_is_one_sentence(monkeypatch, error):
    def resolver(tpu):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    with pytest.raises(ValueError, match=f"tpu='mine' can't be reached: {error}") as found:
        distribution.create_strategy("auto", "mine")
    assert "TPU_NAME" not in str(found.value)
    monkeypatch.setenv("TPU_NAME", "mine")
    with pytest.raises(ValueError, match="environment variable TPU_NAME.*--accelerator=cpu"):
        distribution.create_strategy("auto", "mine")


FOUR = (
    '{"cluster": {"chief": ["a:1"], "worker": ["b:2", "c:3", "d:4"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# As TensorFlow 2.20 has written them when one of four processes was killed or stopped.
RESET = (
    "Collective ops is aborted by: recvmsg:Connection reset by peer\nAdditional GRPC error "
    "information from remote target /job:worker/replica:0/task:1 while calling "
    "/tensorflow.WorkerService/RecvBuf:\n:UNKNOWN:Error received from peer"
)
UNHEALTHY = (
    "Collective ops is aborted by: Error reported from /job:worker/task:2: The following tasks are "
    "unhealthy (stopped sending heartbeats):\n/job:worker/replica:0/task:2\nThe tasks have crashed."
)
RELAYED = (
    "Collective ops is aborted by: Additional GRPC error information from remote target "
    "/job:chief/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf: "
)


@pytest.mark.parametrize(
    "message, lost",
    [
        (RESET, "worker 1 at c:3"),
        (RELAYED + RESET, "worker 1 at c:3"),
        (RESET + " Op at device /job:worker/replica:0/task:0/device:CPU:0", "worker 1 at c:3"),
        (UNHEALTHY, "worker 2 at d:4"),
        (UNHEALTHY + "\n" + RELAYED, "worker 2 at d:4"),
        ("Collective ops is aborted by: Socket closed", "another host"),
        (RELAYED + UNHEALTHY, "worker 2 at d:4"),
        (
            UNHEALTHY + "\n/job:worker/replica:0/task:1\n",
            "worker 1 at c:3, worker 2 at d:4",
        ),
        (
            "Collective ops is aborted by: Deadline Exceeded\n\nRPC: "
            "/tensorflow.CoordinationService/Heartbeat",
            "chief 0 at a:1",
        ),
    ],
)
def test_a_lost_host_is_named(monkeypatch, message, lost):
    monkeypatch.setenv("TF_CONFIG", FOUR)
    monkeypatch.setattr(distribution, "num_hosts", lambda strategy: 4)
    with (
        pytest.raises(distribution.HostLost, match=f"^Lost: {lost}. It has ended.*same command"),
        distribution.naming_lost_hosts(tf.distribute.get_strategy()),
    ):
        raise tf.errors.UnavailableError(None, None, message)


@pytest.mark.parametrize(
    "hosts, message",
    [
        (4, "The bucket can't be reached."),
        (
            4,
            "Collective ops is aborted by: Shape mismatch in the collective instance 100. Op at "
            "device /job:worker/replica:0/task:1/device:CPU:0 expected shape [2] but another "
            "member in the group expected shape [3].",
        ),
        (1, RESET),
    ],
)
def test_other_errors_name_no_host(monkeypatch, hosts, message):
    monkeypatch.setenv("TF_CONFIG", FOUR)
    monkeypatch.setattr(distribution, "num_hosts", lambda strategy: hosts)
    with (
        pytest.raises(tf.errors.UnavailableError, match=re.escape(message)),
        distribution.naming_lost_hosts(tf.distribute.get_strategy()),
    ):
        raise tf.errors.UnavailableError(None, None, message)


def gan_parts(trainer):
    dataset = types.SimpleNamespace(class_names=["cat"])
    return training.build, types.SimpleNamespace(
        dataset=lambda data_dir: dataset, trainer=trainer, generator=None, discriminator=None
    )


def segmentation_parts(trainer):
    dataset = types.SimpleNamespace(check_files=lambda: None)
    return experiment.build, types.SimpleNamespace(
        dataset=lambda data_dir: dataset, trainer=trainer, network=None
    )


@pytest.mark.parametrize("parts", [gan_parts, segmentation_parts])
def test_a_host_that_is_lost_while_networks_are_made_is_named(monkeypatch, parts):
    monkeypatch.setenv("TF_CONFIG", FOUR)
    monkeypatch.setattr(distribution, "num_hosts", lambda strategy: 4)

    def trainer(**arguments):
        raise tf.errors.UnavailableError(None, None, RESET)

    build, made = parts(trainer)
    with pytest.raises(distribution.HostLost, match="^Lost: worker 1 at c:3"):
        build(made, strategy=tf.distribute.get_strategy(), data_dir="")
