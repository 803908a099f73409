"""Where a run computes: a distribution strategy from flags and environment, and the arithmetic of
global batches.
"""

import json
import os

import tensorflow as tf

ACCELERATORS = ("auto", "cpu", "gpu", "tpu")
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
    if across_hosts and _hosts_of_cluster() > 1:
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
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"tpu={tpu!r} can't be reached: {error}\nOn a TPU VM use --tpu=local with the packages "
            "of "
            "requirements-tpu.txt (scripts/check_environment.py --tpu tells what is missing); from "
            "elsewhere give the "
            "TPU's name."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _hosts_of_cluster() -> int:
    """How many hosts TF_CONFIG names; 0 where it isn't set."""
    cluster, _ = _tf_config()
    return len(cluster)


def task_of_cluster() -> tuple[int, int] | None:
    """(number of this host, number of hosts) by TF_CONFIG; None where it isn't set.

    Raises:
      ValueError: TF_CONFIG can't be used, or its task is none of the hosts.
    """
    hosts, task = _tf_config()
    if not hosts and task is None:
        return None
    if task not in hosts:
        raise ValueError(
            f"TF_CONFIG names the task {task}; only chief and workers evaluate: {hosts}."
        )
    return hosts.index(task), len(hosts)


def _tf_config() -> tuple[list[tuple[str, int]], tuple[str, int] | None]:
    """([(job, index)] of the hosts that train, (job, index) of this one or None) by TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        hosts = [(job, i) for job in ("chief", "worker") for i in range(len(cluster.get(job, ())))]
        task = config.get("task")
        return hosts, task and (task["type"], int(task["index"]))
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"TF_CONFIG must be JSON like {_TF_CONFIG_EXAMPLE}, got {text!r}. Unset it to train on "
            "this host alone."
        ) from error


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
