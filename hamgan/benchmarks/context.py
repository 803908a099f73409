"""What the context modules cost: the paper's table (Geng et al. 2021, section 4.2), and how cost
grows with n and K.

The jobs measure cases (`context_modules.Case`); they are generator functions whose arguments and
results have a form in JSON, so that they can run in processes of their own (`measure.in_child`).
"""

import dataclasses
import functools
import os
import platform
import statistics

import numpy as np
import tensorflow as tf

from hamgan import distribution
from hamgan.benchmarks import measure
from hamgan.benchmarks.context_modules import (
    MODES,
    MODULES,
    SOLVES,
    Case,
    Shape,
)


class Subject:
    """A built module with inputs, and functions that run it.

    Args:
      case: a `Case`; of a layer that is given only its shape counts.
      jit: compile with XLA.
      layer: a built module in place of the case's own.
    """

    def __init__(self, case, *, jit, layer=None):
        shape = case.shape
        self.layer = MODULES[case.module].layer(case) if layer is None else layer
        if not self.layer.built:
            self.layer.build(shape.input)
        # With the gate at its initial 0 the gradients of everything behind it would be zeros.
        self.layer.gate.assign(0.5)
        rng = np.random.default_rng(0)
        self.x, self.gradient = (
            tf.constant(rng.standard_normal(shape.input, np.float32)) for _ in range(2)
        )
        self.labels = tf.constant(
            rng.integers(0, shape.num_classes or 1, shape.batch).astype(np.int32)
        )
        self._keys = tf.constant(rng.integers(0, 2**31 - 1, [shape.batch, 2]).astype(np.int32))
        self._jit = jit

    @property
    def parameters(self):
        return sum(int(np.prod(v.shape)) for v in self.layer.trainable_variables)

    def forward(self, x):
        """The module in inference."""
        return self.layer(x, self.labels, training=False, keys=self._keys)

    def training(self, x, gradient):
        """The module in training, and the gradients of x and of the weights for a gradient of its
        output.
        """
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = self.layer(x, self.labels, training=True, keys=self._keys)
        sources = [x, *(v.value for v in self.layer.trainable_variables)]
        # Bases that are learned don't get a gradient in every mode.
        return y, tape.gradient(y, sources, gradient, unconnected_gradients="zero")

    def function(self, mode):
        """(function of mode 'forward' or 'training', its arguments)."""
        if mode == "forward":
            return self.forward, (self.x,)
        return self.training, (self.x, self.gradient)

    def call(self, mode):
        """A compiled function without arguments."""
        function, arguments = self.function(mode)
        compiled = tf.function(function, jit_compile=self._jit, autograph=False)
        # Traced now, so that it isn't part of what is measured.
        compiled.get_concrete_function(*arguments)
        return lambda: compiled(*arguments)

    def timed(self, mode):
        """A function that returns the seconds of one run; mode 'backward' is the gradient's part of
        'training'.
        """
        if mode != "backward":
            call = self.call(mode)
            return lambda: measure.seconds(call)
        forward = tf.function(
            lambda x: self.layer(x, self.labels, training=True, keys=self._keys),
            jit_compile=self._jit,
            autograph=False,
        )
        sources = [self.x, *(v.value for v in self.layer.trainable_variables)]

        def timed():
            with tf.GradientTape() as tape:
                tape.watch(self.x)
                y = forward(self.x)
            tf.test.experimental.sync_devices()
            return measure.seconds(
                lambda: tape.gradient(y, sources, self.gradient, unconnected_gradients="zero")
            )

        return timed


_FAILURES = (tf.errors.OpError, ValueError, MemoryError)


def count_job(*, cases):
    """Yields per case a dictionary: case (its index), and parameters, macs, macs_training, formula;
    or error.
    """
    for index, case in enumerate(cases):
        case = Case.from_json(case)
        try:
            subject = Subject(case, jit=True)
            counts = {
                f"macs_{mode}": measure.count_macs(*_flat(subject.function(mode))) for mode in MODES
            }
        except _FAILURES as error:
            yield {"case": index, "error": measure.first_line(error)}
            continue
        yield {
            "case": index,
            "parameters": subject.parameters,
            "macs": counts["macs_forward"],
            "macs_training": counts["macs_training"],
            "formula": MODULES[case.module].macs(case),
        }


def _flat(function_and_arguments):
    function, arguments = function_and_arguments
    return function, *arguments


def memory_job(*, case, mode, accelerator, jit):
    """Yields {"bytes": peak memory or None}. To be run in a process of its own, with
    `measure.MEMORY_ENVIRONMENT`.
    """
    case = Case.from_json(case)
    device, jit = _device(accelerator, jit)
    with tf.device(device):
        small = dataclasses.replace(case.shape, height=8, width=8)
        Subject(dataclasses.replace(case, shape=small), jit=jit).call(mode)()
        call = Subject(case, jit=jit).call(mode)
        yield {"bytes": measure.peak_memory(call, device=device)}


def time_job(*, cases, repeats, accelerator, jit):
    """Times cases in rounds (see `measure.interleaved_seconds`).

    Args:
      cases: list of (case, mode).

    Yields:
      {"case": index, "seconds": number} or {"case": index, "error": text}; {"case": index} before
        its first call.
    """
    device, jit = _device(accelerator, jit)
    with tf.device(device):
        subjects = {}
        calls = {}
        for index, (case, mode) in enumerate(cases):
            case = Case.from_json(case)
            # The modes of a case share its weights and inputs. Both are made in the first round:
            # what fails then fails for its own case.
            if case not in subjects:
                subjects[case] = functools.cache(lambda case=case: Subject(case, jit=jit))
            calls[index] = functools.cache(
                lambda subject=subjects[case], mode=mode: subject().timed(mode)
            )
        calls = {index: lambda call=call: call()() for index, call in calls.items()}
        for index, value in measure.interleaved_seconds(calls, repeats=repeats):
            if value is None:
                yield {"case": index}
            elif isinstance(value, Exception):
                yield {"case": index, "error": measure.first_line(value)}
            else:
                yield {"case": index, "seconds": value}


def device_job(*, accelerator, jit):
    """Yields one dictionary: what everything is measured on."""
    device, jit = _device(accelerator, jit)
    yield {
        "device": _device_name(device),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "jit": jit,
        "tensorflow": tf.__version__,
    }


def _device_name(device):
    kind = tf.DeviceSpec.from_string(device).device_type
    if kind == "CPU":
        if os.path.exists("/proc/cpuinfo"):
            with open("/proc/cpuinfo") as file:
                names = [
                    line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
                ]
            return f"CPU: {names[0]}" if names else f"CPU: {platform.machine()}"
        return f"CPU: {platform.processor() or platform.machine()}"
    if kind == "GPU":
        details = tf.config.experimental.get_device_details(
            tf.config.list_physical_devices("GPU")[0]
        )
        return f"GPU: {details.get('device_name', 'unknown')}"
    return kind


def _device(accelerator, jit):
    """(name of the device to compute on, whether to compile with XLA)."""
    # The strategy itself isn't used, but what makes it sets TensorFlow up as for training.
    device = distribution.create_strategy(accelerator).extended.worker_devices[0]
    # A TPU runs nothing else than what XLA compiled.
    return device, tf.DeviceSpec.from_string(device).device_type == "TPU" if jit is None else jit


# The whole benchmark


def _empty_row(case):
    return {
        "module": case.module,
        "title": MODULES[case.module].title,
        "shape": dataclasses.asdict(case.shape),
        "num_steps": case.num_steps,
        "solve": case.solve,
        "memory": {},
        "seconds": {},
        "all_seconds": {},
        "errors": {},
    }


def _measure_memory(row, job, run):
    try:
        (record,) = run(memory_job, job, environment=measure.MEMORY_ENVIRONMENT)
        if record["bytes"] is not None:
            row["memory"][job["mode"]] = record["bytes"]
    except (measure.ChildError, *_FAILURES) as error:
        row["errors"][f"{job['mode']} memory"] = measure.first_line(error)


def measure_cases(
    cases,
    *,
    memory_modes=MODES,
    time_modes=MODES,
    repeats=5,
    accelerator="auto",
    jit=None,
    run=measure.in_child,
    title="",
    progress=True,
):
    """Measures cases. What fails for one of them (out of memory, a shape that a module refuses)
    leaves the others be.

    Args:
      cases: list of `Case`.
      memory_modes: of 'forward' and 'training', each measured in a process of its own.
      time_modes: of 'forward', 'training' and 'backward' (the gradient's part of training). All
        cases and modes take turns in one process.
      repeats: rounds of timing.
      accelerator: as in `hamgan.distribution`.
      jit: compile with XLA; None: on TPUs.
      run: how jobs are run, `measure.in_child`.
      title: of the progress bar.
      progress: draw it.

    Returns:
      A dictionary per case: 'module', 'title', 'shape', 'num_steps', 'solve'; 'parameters', 'macs',
        'macs_training',
      'formula'; 'memory' {mode: bytes}, 'seconds' {mode: median}, 'all_seconds' {mode: list};
      'errors' {what: text}. What couldn't be measured is missing.
    """
    plain = [case.as_json() for case in cases]
    rows = [_empty_row(case) for case in cases]
    on = {"accelerator": accelerator, "jit": jit}
    bar = measure.progress_bar(
        total=len(cases) * (1 + len(memory_modes) + len(time_modes) * (1 + repeats)),
        desc=title,
        unit="",
        disable=not progress,
        bar_format=(
            "{desc}: {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        ),
    )
    with bar:
        _count(cases, rows, plain, run, bar)
        for case, row, one in zip(cases, rows, plain, strict=True):
            for mode in memory_modes:
                bar.set_postfix_str(f"memory: {_label(case)}, {mode}")
                _measure_memory(row, {"case": one, "mode": mode, **on}, run)
                bar.update()
        # What didn't fit into a process of its own doesn't fit into one with others.
        timed = [
            (index, mode)
            for index, row in enumerate(rows)
            for mode in time_modes
            if f"{'training' if mode == 'backward' else mode} memory" not in row["errors"]
        ]
        _time(timed, cases, rows, plain, repeats, on, run, bar)
    for row in rows:
        row["seconds"] = {
            mode: statistics.median(values) for mode, values in row["all_seconds"].items()
        }
    return rows


def _label(case):
    return f"{case.module} {case.shape.name}, K={case.num_steps}, {case.solve}"


def _count(cases, rows, plain, run, bar):
    bar.set_postfix_str("counting multiply-adds")
    try:
        for record in run(count_job, {"cases": plain}):
            row = rows[record.pop("case")]
            if "error" in record:
                row["errors"]["counts"] = record["error"]
            row |= {name: value for name, value in record.items() if name != "error"}
            bar.update()
    except measure.ChildError as error:
        for row in rows:
            if "macs" not in row:
                row["errors"].setdefault("counts", measure.first_line(error))


def _time(timed, cases, rows, plain, repeats, on, run, bar):
    while timed:
        current = None
        failed = set()
        for index, mode in timed:
            rows[index]["all_seconds"][mode] = []
        arguments = {
            "cases": [(plain[index], mode) for index, mode in timed],
            "repeats": repeats,
            **on,
        }
        try:
            for record in run(time_job, arguments):
                current = timed[record["case"]]
                index, mode = current
                bar.set_postfix_str(f"time: {_label(cases[index])}, {mode}", refresh=False)
                if "error" in record:
                    failed.add(current)
                    rows[index]["errors"][f"{mode} time"] = record["error"]
                elif "seconds" in record:
                    rows[index]["all_seconds"][mode].append(record["seconds"])
                bar.update()
            break
        except measure.ChildError as error:
            # The process is gone, and with it the turns: the others begin again without the one
            # that ended it.
            culprits = [current] if current else timed
            for index, mode in culprits:
                rows[index]["all_seconds"][mode] = []
                rows[index]["errors"][f"{mode} time"] = measure.first_line(error)
            failed.update(culprits)
            timed = [one for one in timed if one not in failed]
    for row in rows:
        row["all_seconds"] = {mode: values for mode, values in row["all_seconds"].items() if values}


# Over the number of pixels: side of the square image. Channels and rank are those of the
# discriminator's module.
SCALING_SIDES = (16, 32, 48, 64, 96)
SCALING_MODULES = ("self_attention", "sagan", "ylg", "double_attention", "v1_nmf", "v1_cd", "v1_vq")

STEPS = (1, 2, 4, 8, 16, 32)
STEPS_SHAPE = Shape(name="steps", height=128, width=128, channels=128, rank=16)


def scaling_cases(modules=SCALING_MODULES, *, sides=SCALING_SIDES, channels=128, rank=16):
    """Modules at images of growing size."""
    shapes = [
        Shape(name=f"{side}x{side}", height=side, width=side, channels=channels, rank=rank)
        for side in sides
    ]
    return [Case(module=module, shape=shape) for module in modules for shape in shapes]


def steps_cases(*, module="v1_nmf", shape=STEPS_SHAPE, steps=STEPS, solves=tuple(SOLVES)):
    """A Hamburger with growing K, for each way to differentiate its updates."""
    return [
        Case(module=module, shape=shape, num_steps=k, solve=solve)
        for solve in solves
        for k in steps
    ]
