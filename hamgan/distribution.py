"""Where a run computes: a distribution strategy from two flags, and the arithmetic of global batches."""

import tensorflow as tf

ACCELERATORS = ("auto", "cpu", "gpu", "tpu")


def create_strategy(accelerator="auto", tpu="local"):
    """The strategy for an accelerator.

    Args:
      accelerator: 'tpu'; 'gpu' (all GPUs of the host); 'cpu' (all logical CPU devices, usually one); 'auto': a TPU if
        this host has one, else its GPUs, else the CPU.
      tpu: 'local' for the TPU VM this runs on, otherwise the TPU's name or its grpc:// address.

    Raises:
      ValueError: an unknown accelerator, or one that this host doesn't have.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, got {accelerator!r}.")
    if accelerator == "auto":
        if tpu != "local" or tf.config.list_physical_devices("TPU"):
            accelerator = "tpu"
        else:
            accelerator = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    # TensorFlow 2.20's remapper fails on residual blocks ("fanout ... exist for missing node"): it prints an error and
    # leaves the graph as it was.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    if accelerator == "tpu":
        return _tpu_strategy(tpu)
    devices = tf.config.list_logical_devices(accelerator.upper())
    if not devices:
        raise ValueError(
            f"accelerator={accelerator}: TensorFlow sees no {accelerator.upper()} on this host, only "
            f"{sorted({d.device_type for d in tf.config.list_logical_devices()})}. Check the driver (nvidia-smi) and "
            "that TensorFlow was installed with tensorflow[and-cuda], or use --accelerator=cpu."
        )
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0].name)
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _tpu_strategy(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"tpu={tpu!r} can't be reached: {error}\nOn a TPU VM use --tpu=local with the packages of "
            "requirements-tpu.txt (scripts/check_environment.py --tpu tells what is missing); from elsewhere give the "
            "TPU's name."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def per_replica_batch_size(batch_size, num_replicas):
    """The share of one replica in a global batch.

    Raises:
      ValueError: the global batch can't be cut into equal parts.
    """
    if batch_size < 1 or batch_size % num_replicas:
        lower = max(num_replicas, batch_size // num_replicas * num_replicas)
        raise ValueError(
            f"Batch size ({batch_size}) must be divisible by the number of replicas ({num_replicas}); "
            f"{lower} and {lower + num_replicas} are."
        )
    return batch_size // num_replicas


def gather(strategy, value):
    """The parts of all local replicas joined along the first axis, as one tensor."""
    return tf.concat(strategy.experimental_local_results(value), axis=0)
