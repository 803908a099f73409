"""What a computation takes: multiply-adds of its compiled program, peak memory, time.

Peak memory is measured in processes of their own (`in_child`), because what an earlier computation
has left behind hides the peak of a later one.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2
from tqdm import tqdm

# On CPUs the high-water mark of resident memory tells what a computation takes only if memory that
# was given back is back: TensorFlow's oneDNN allocator keeps it in a pool, and glibc keeps blocks
# below a threshold that it raises.
MEMORY_ENVIRONMENT = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

_PACKAGE_FOLDER = str(pathlib.Path(__file__).resolve().parent.parent.parent)


# Multiply-adds


def count_macs(function, *arguments):
    """Multiply-adds of the program that XLA is given to compile for `function(*arguments)`.

    They are counted in the program, not from a formula: what a function computes twice counts
    twice, what nothing needs doesn't count. Of its operations matrix products and convolutions
    count, as in published tables; not elementwise operations, reductions and the factorisation of
    small matrices. Zeros of a padding or dilation count like numbers.

    Args:
      function: a function of tensors.
      arguments: tensors, or `tf.TensorSpec`s of known shape.

    Raises:
      ValueError: matrix products in a loop, whose number of rounds the program doesn't tell.
    """
    # Of nothing but these: default values of other parameters aren't tensors, which the compiler's
    # input must be.
    compiled = tf.function(lambda *tensors: function(*tensors), jit_compile=True, autograph=False)
    serialized = compiled.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    return macs_of_program(serialized)


def macs_of_program(serialized):
    """Multiply-adds of a program as `count_macs` counts them.

    Args:
      serialized: an `HloModuleProto`.

    Raises:
      ValueError: matrix products in a loop, whose number of rounds the program doesn't tell.
    """
    module = hlo_pb2.HloModuleProto.FromString(serialized)
    computations = {computation.id: computation for computation in module.computations}

    def of_computation(identifier):
        instructions = {i.id: i for i in computations[identifier].instructions}
        total = 0
        for instruction in instructions.values():
            inner = sum(of_computation(called) for called in instruction.called_computation_ids)
            if inner and instruction.opcode == "while":
                raise ValueError(
                    f"count_macs: {instruction.name} is a loop with matrix products in it. Unroll "
                    "it."
                )
            operands = [instructions[operand].shape for operand in instruction.operand_ids]
            total += inner + _macs_of_instruction(instruction, operands)
        return total

    return of_computation(module.entry_computation_id)


def _macs_of_instruction(instruction, operands):
    outputs = math.prod(instruction.shape.dimensions)
    if instruction.opcode == "dot":
        contracted = instruction.dot_dimension_numbers.lhs_contracting_dimensions
        return outputs * math.prod(operands[0].dimensions[i] for i in contracted)
    if instruction.opcode == "convolution":
        numbers, kernel = instruction.convolution_dimension_numbers, operands[1].dimensions
        window = math.prod(kernel[i] for i in numbers.kernel_spatial_dimensions)
        return (
            outputs
            * window
            * kernel[numbers.kernel_input_feature_dimension]
            // max(1, instruction.batch_group_count)
        )
    return 0


# Memory


def peak_memory(call, *, device=None, repeats=3):
    """Bytes that `call()` takes at its peak beyond what is held before it; its result is part of
    them.

    On a CPU this is the high-water mark of resident memory, which means something in a process
    started with MEMORY_ENVIRONMENT. Call the same kind of thing once before, at a small size: what
    TensorFlow sets up at first use would be counted too.

    Args:
      call: function without arguments.
      device: name of the device it runs on; None: the CPU.
      repeats: calls, of which the median is taken: operations that don't depend on each other
        change their order.

    Returns:
      An integer, or None on systems without Linux's /proc.
    """
    on_cpu = not device or "CPU" in device.upper()
    if on_cpu and resident_memory() is None:
        return None
    one = (lambda: _peak_on_cpu(call)) if on_cpu else (lambda: _peak_on_device(call, device))
    return int(statistics.median(one() for _ in range(repeats)))


def _peak_on_cpu(call):
    # Sets the high-water mark to what is resident now.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory()
    result = call()
    del result
    return _status("VmHWM") - before


def _peak_on_device(call, device):
    memory = tf.config.experimental
    memory.reset_memory_stats(device)
    before = memory.get_memory_info(device)["current"]
    result = call()
    tf.test.experimental.sync_devices()
    del result
    return memory.get_memory_info(device)["peak"] - before


def resident_memory():
    """Bytes of this process in memory; None on systems without Linux's /proc."""
    return _status("VmRSS")


def available_memory():
    """Bytes that a new process may take without swapping; None on systems without Linux's /proc."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _status(name):
    return _kilobytes("/proc/self/status", name)


def _kilobytes(path, name):
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        for line in file:
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
    return None


# Time


def seconds(call):
    """How long `call()` takes until its results are there."""
    start = time.perf_counter()
    result = call()
    tf.test.experimental.sync_devices()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleaved_seconds(calls, *, repeats, shortest=0.05):
    """Times calls in rounds, so that another load on the machine hits all of them alike.

    Args:
      calls: {name: function without arguments that returns how long it took, in seconds}.
      repeats: rounds after a first one that isn't counted: it traces and compiles.
      shortest: a call is repeated within a round until this many seconds are full, and its mean is
        taken.

    Yields:
      (name, seconds) of each round as it is measured, (name, None) before each call of the first
      round, and (name, error) for a call that failed: a TensorFlow error, ValueError or
        MemoryError. It isn't called again.
    """
    counts = {}
    for name, call in calls.items():
        yield name, None
        try:
            call()
            # Known only now, without what the first call does once.
            counts[name] = max(1, math.ceil(shortest / call()))
        except (tf.errors.OpError, ValueError, MemoryError) as error:
            yield name, error
    for _ in range(repeats):
        for name, count in counts.items():
            yield name, sum(calls[name]() for _ in range(count)) / count


# Progress


def progress_bar(iterable=None, **settings):
    """A `tqdm` bar on standard error, which writes less often where that is a file."""
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(iterable, mininterval=interval, dynamic_ncols=True, **settings)


# Processes


class ChildError(RuntimeError):
    """A child process ended before its work was done."""


def child_environment(more=None):
    """The environment of a Python process that finds this package, and `more` {name: value}."""
    path = os.pathsep.join(filter(None, [_PACKAGE_FOLDER, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **(more or {}), "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def in_child(job, arguments, *, environment=None, memory_limit=None):
    """Runs a generator function in a Python process of its own.

    Args:
      job: generator function at the top level of a module; what it yields must have a form in JSON.
      arguments: {name: value}, its keyword arguments, with a form in JSON.
      environment: {name: value} of more environment variables.
      memory_limit: the process ends itself when it holds more bytes; None: 80 % of what is
        available now.

    Yields:
      What the job yields, as soon as it does.

    Raises:
      ChildError: the process raised an error, took too much memory or was killed; what it had
        yielded stays valid.
    """
    if memory_limit is None and (available := available_memory()):
        memory_limit = int(0.8 * available)
    request = json.dumps(
        {
            "job": [job.__module__, job.__name__],
            "arguments": arguments,
            "memory_limit": memory_limit,
        }
    )
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _child; _child()"],
            env=child_environment(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            process.stdin.write(request)
            process.stdin.close()
            for line in process.stdout:
                record = json.loads(line)
                if "child_error" in record:
                    raise ChildError(record["child_error"])
                yield record["yielded"]
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code:
            log.seek(0)
            lines = log.read().strip().splitlines()
            name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            hint = (
                ", which the system sends when memory runs out" if code == -signal.SIGKILL else ""
            )
            raise ChildError(
                f"The process ended with {name}{hint}. {lines[-1] if lines else ''}".strip()
            )


def _child():
    """What the child process runs: the request on standard input, a line of JSON for each value on
    standard output.
    """
    # Whatever libraries print goes where the errors go.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(record):
        with lock:
            out.write(json.dumps(record) + "\n")
            out.flush()

    request = json.load(sys.stdin)
    if limit := request["memory_limit"]:
        threading.Thread(target=_watch_memory, args=(limit, send), daemon=True).start()
    module, name = request["job"]
    try:
        for value in getattr(importlib.import_module(module), name)(**request["arguments"]):
            send({"yielded": value})
    except (tf.errors.OpError, ValueError, MemoryError) as error:
        send({"child_error": first_line(error)})


def _watch_memory(limit, send):
    # Without it the system's own last resort would end a process of its choice.
    while True:
        if (resident_memory() or 0) > limit:
            send({"child_error": f"out of memory: more than {limit / 1e9:.1f} GB"})
            os._exit(1)
        time.sleep(0.02)


def first_line(error):
    """An error in one line: its type where its text doesn't say enough."""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return f"out of memory: {text}".removesuffix(": ")
    return text if isinstance(error, ValueError | ChildError) else f"{type(error).__name__}: {text}"
