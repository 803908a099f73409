"""Where a run computes: a distribution strategy from flags and environment, and the arithmetic of
global batches.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from hamgan import heap
from hamgan.choices import ACCELERATORS

_JOBS = ("chief", "worker")
_TASK_KEYS = {"type", "index", "trial", "cloud"}
# The last three, and the last two above, are other programs': they change nothing here.
_TF_CONFIG_KEYS = {"cluster", "task", "environment", "job", "rpc_layer"}
_NO_TASK = (
    "The hosts of TF_CONFIG can't be joined: it names hosts, but no task, which of them this is."
)
_TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
)


def create_strategy(
    accelerator: str = "auto", tpu: str = "local", *, across_hosts: bool = True
) -> tf.distribute.Strategy:
    """The strategy for an accelerator, on this host or on all hosts that the environment variable
    TF_CONFIG names.

    To be called before anything else of TensorFlow where TF_CONFIG names several hosts.

    Args:
      accelerator: 'tpu'; 'gpu' (all GPUs of the host); 'cpu' (all logical CPU devices, usually
        one); 'auto': a TPU if this host has one, else its GPUs, else the CPU.
      tpu: 'local' for the TPU VM this runs on, otherwise the TPU's name or its grpc:// address.
      across_hosts: whether the hosts of TF_CONFIG compute together; False: this host alone.

    Raises:
      ValueError: an unknown accelerator, or one that this host doesn't have; a TF_CONFIG that can't
        be used.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"accelerator must be one of {', '.join(ACCELERATORS)}, got {accelerator!r}."
        )
    if accelerator == "auto":
        if tpu != "local" or tf.config.list_physical_devices("TPU"):
            accelerator = "tpu"
        else:
            accelerator = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    # TensorFlow 2.20's remapper fails on residual blocks ("fanout ... exist for missing node"): it
    # prints an error and leaves the graph as it was.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    if accelerator == "tpu":
        return _tpu_strategy(tpu)
    if accelerator == "cpu":
        heap.keep()
    # All of it must be understood, of a cluster of one host too.
    if across_hosts and _hosts_of_cluster() > 1:
        task_of_cluster()
        return _multi_host_strategy(accelerator)
    devices = tf.config.list_logical_devices(accelerator.upper())
    if not devices:
        raise ValueError(
            f"accelerator={accelerator}: TensorFlow sees no {accelerator.upper()} on this host, "
            "only "
            f"{sorted({d.device_type for d in tf.config.list_logical_devices()})}. Check the "
            "driver (nvidia-smi) and "
            "that TensorFlow was installed with tensorflow[and-cuda], or use --accelerator=cpu."
        )
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0].name)
    with _without_cluster():
        return tf.distribute.MirroredStrategy([device.name for device in devices])


@contextlib.contextmanager
def _without_cluster() -> Iterator[None]:
    """TensorFlow's strategy of one host reads TF_CONFIG too, and stumbles over an empty one."""
    text = os.environ.pop("TF_CONFIG", None)
    try:
        yield
    finally:
        if text is not None:
            os.environ["TF_CONFIG"] = text


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # OSError: outside of Google's cloud nobody knows its hosts. ImportError: there is no client.
    except (ValueError, RuntimeError, OSError, ImportError, tf.errors.OpError) as error:
        named = ""
        if tpu != "local" and os.environ.get("TPU_NAME") == tpu:
            named = (
                "The name comes from the environment variable TPU_NAME. Without a TPU, unset it or "
                "use --accelerator=cpu (or gpu).\n"
            )
        raise ValueError(
            f"tpu={tpu!r} can't be reached: {error}\n{named}On a TPU VM use --tpu=local with the "
            "packages of requirements-tpu.txt (scripts/check_environment.py --tpu tells what is "
            "missing); from elsewhere give the TPU's name."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _hosts_of_cluster() -> int:
    """How many hosts TF_CONFIG names; 0 where it isn't set."""
    return len(_tf_config().hosts)


def task_of_cluster() -> tuple[int, int] | None:
    """(number of this host, number of hosts) by TF_CONFIG; None where it isn't set.

    Raises:
      ValueError: TF_CONFIG can't be used, or doesn't say which of the hosts this is.
    """
    cluster = _tf_config()
    if not cluster.hosts:
        return None
    if cluster.task is None:
        if len(cluster.hosts) == 1:
            return 0, 1
        raise _wrong_cluster(_NO_TASK)
    return list(cluster.hosts).index(cluster.task), len(cluster.hosts)


def cluster_in_words() -> str | None:
    """The hosts of TF_CONFIG and which of them this is; None where it isn't set.

    Raises:
      ValueError: as `task_of_cluster`.
    """
    hosts = _tf_config().hosts
    task = task_of_cluster() if len(hosts) > 1 else None
    if task is None:
        return None
    names = [f"{job} {index} at {address}" for (job, index), address in hosts.items()]
    return (
        f"Hosts (TF_CONFIG): {', '.join(names)}. This is {names[task[0]]}, number {task[0] + 1} of "
        f"{task[1]}; "
        f"{'it writes' if task[0] == 0 else 'the first one writes'} checkpoints and records."
    )


class _Cluster(NamedTuple):
    """What TF_CONFIG says: {(job, index): address} of the hosts that train, in the order of their
    numbers; and (job, index) of this one, or None.
    """

    hosts: dict[tuple[str, int], str]
    task: tuple[str, int] | None


def _wrong_cluster(why: str) -> ValueError:
    return ValueError(
        f"TF_CONFIG must be JSON like {_TF_CONFIG_EXAMPLE}: {why} Got "
        f"{os.environ.get('TF_CONFIG')!r}. Unset it (unset TF_CONFIG) to use this host alone."
    )


def _tf_config() -> _Cluster:
    """What the environment variable TF_CONFIG says; empty means not set.

    Raises:
      ValueError: any of it isn't understood.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return _Cluster({}, None)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _wrong_cluster(f"it can't be read ({error}; texts stand in double quotes).") from None
    if not isinstance(config, dict):
        raise _wrong_cluster("it is no object.")
    unknown = sorted(config.keys() - _TF_CONFIG_KEYS)
    if unknown:
        raise _wrong_cluster(f"{', '.join(unknown)} isn't known.")
    hosts = _hosts(config.get("cluster") or {})
    task = config.get("task")
    return _Cluster(hosts, None if task is None else _task(task, hosts))


def _hosts(cluster: Any) -> dict[tuple[str, int], str]:
    """{(job, index): address} of the value of `cluster`."""
    if not isinstance(cluster, dict):
        raise _wrong_cluster("cluster is no object.")
    unknown = sorted(cluster.keys() - set(_JOBS))
    if unknown:
        raise _wrong_cluster(
            f"the job {', '.join(unknown)} isn't known; hosts that train are {' or '.join(_JOBS)}."
        )
    hosts: dict[tuple[str, int], str] = {}
    for job in _JOBS:
        addresses = cluster.get(job, [])
        if not isinstance(addresses, list):
            raise _wrong_cluster(f"{job} must be a list of addresses.")
        for index, address in enumerate(addresses):
            if not isinstance(address, str) or not re.fullmatch(r"\S+:\d+", address):
                raise _wrong_cluster(f"{job} {index} must be HOST:PORT, not {address!r}.")
            if address in hosts.values():
                raise _wrong_cluster(f"{address} is named twice.")
            hosts[job, index] = address
    if ("chief", 1) in hosts:
        raise _wrong_cluster("there can be one chief only.")
    return hosts


def _task(task: Any, hosts: dict[tuple[str, int], str]) -> tuple[str, int]:
    """(job, index) of the value of `task`, one of the hosts."""
    if not isinstance(task, dict) or not {"type", "index"} <= task.keys() <= _TASK_KEYS:
        raise _wrong_cluster("task must have type and index, and nothing else.")
    index = task["index"]
    if isinstance(index, str) and index.isdecimal():
        index = int(index)  # as some schedulers write it
    if isinstance(index, bool) or not isinstance(index, int):
        raise _wrong_cluster(f"the task's index must be a whole number, not {index!r}.")
    if (task["type"], index) not in hosts:
        there = ", ".join(f"{job} {number}" for job, number in hosts) or "no hosts"
        raise _wrong_cluster(
            f"the task {task['type']} {index} is none of its cluster, which has {there}."
        )
    return task["type"], index


def _multi_host_strategy(accelerator: str) -> tf.distribute.Strategy:
    if accelerator == "cpu":
        tf.config.set_visible_devices([], "GPU")  # it would take them
    elif not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            "accelerator=gpu: TensorFlow sees no GPU on this host. Check the driver (nvidia-smi)."
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, KeyError, RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            f"The hosts of TF_CONFIG can't be joined: {error}\nTF_CONFIG is "
            f"{os.environ['TF_CONFIG']}; it must name "
            f"all hosts and which of them this is, like {_TF_CONFIG_EXAMPLE}, and the same command "
            "must run on each."
        ) from error


# What TensorFlow's errors say when another host is gone, whatever their class is: the coordination
# service misses its heartbeats, or a connection breaks. What hosts that live tell each other (two
# shapes of one sum, say) aborts collective operations too.
_GONE = re.compile(
    r"unhealthy|Heartbeat|Socket closed|Connection (?:reset|refused)|failed to connect|Broken pipe"
)


class HostLost(RuntimeError):
    """Another host of the cluster has ended, or can't be reached any more."""


@contextlib.contextmanager
def naming_lost_hosts(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says in one line which of the other hosts is gone; TensorFlow notices it by itself.

    Raises:
      HostLost: instead of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if num_hosts(strategy) == 1 or not _GONE.search(error.message):
            raise
        raise HostLost(_lost_in_words(error.message)) from error


def _lost_in_words(message: str) -> str:
    hosts, this = _tf_config()
    # The message may have come by way of other hosts, which are named before the one that is gone,
    # or after a list of all those without heartbeats.
    _, listed, rest = message.rpartition("unhealthy")
    rest = rest.partition("Additional GRPC")[0] if listed else message
    named = [
        (job, int(index))
        for job, index in re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", rest)
        if (job, int(index)) != this
    ]
    # The first host listens for heartbeats; of one that is gone only the service may be named.
    if not named and "CoordinationService" in message:
        named = [host for host in list(hosts)[:1] if host != this]
    lost = [host for host in hosts if host in (named if listed else named[-1:])]
    words = ", ".join(f"{job} {index} at {hosts[job, index]}" for job, index in lost)
    return (
        f"Lost: {words or 'another host'}. It has ended (its own output says why) or can't be "
        "reached, and this host can't go on alone. Nothing that was saved is lost: end what still "
        "runs and start the same command on every host again; it goes on from the newest "
        "checkpoint."
    )


def per_replica_batch_size(batch_size: int, num_replicas: int) -> int:
    """The share of one replica in a global batch.

    Raises:
      ValueError: the global batch isn't a positive integer, or can't be cut into equal parts.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"Batch size must be a positive integer, got {batch_size!r}.")
    if batch_size % num_replicas:
        lower = max(num_replicas, batch_size // num_replicas * num_replicas)
        raise ValueError(
            f"Batch size ({batch_size}) must be divisible by the number of replicas "
            f"({num_replicas}); "
            f"{lower} and {lower + num_replicas} are."
        )
    return batch_size // num_replicas


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this host is the one that writes checkpoints, metrics and pictures."""
    return strategy.extended.should_checkpoint


def num_hosts(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that run this program together."""
    # A TPUStrategy drives all of its hosts from this process.
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return _hosts_of_cluster() if several else 1


def of_hosts(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """A number of each host, as a list; every host must ask."""
    if num_hosts(strategy) == 1:
        return [value]
    replicas = gather(strategy, strategy.run(lambda: tf.constant([value], tf.int64)))
    return replicas.numpy()[:: strategy.num_replicas_in_sync // num_hosts(strategy)].tolist()


def gather(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    """The parts of all replicas joined along the first axis, as one tensor."""
    if num_hosts(strategy) > 1:
        return strategy.gather(value, axis=0)
    return tf.concat(strategy.experimental_local_results(value), axis=0)
