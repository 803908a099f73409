"""What the context modules cost: the paper's table (Geng et al. 2021, section 4.2), and how cost
grows with n and K.

A `Case` is one module at one shape. The jobs at the end of this file measure cases; they are
generator functions whose arguments and results have a form in JSON, so that they can run in
processes of their own (`measure.in_child`).
"""

import dataclasses
import functools
import os
import platform
import statistics
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan import context, decomposition, distribution
from hamgan.benchmarks import measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Where a module stands.

    Attributes:
      name: what tables call it.
      batch, height, width, channels: of the module's input [B, H, W, C]; d = C.
      rank: r of the hams.
      num_classes: of the generator's batch norm inside the hams; None: none.
    """

    name: str
    batch: int = 1
    height: int
    width: int
    channels: int
    rank: int
    num_classes: int | None = None

    def __post_init__(self):
        for name in ("batch", "height", "width", "channels", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"Shape: {name} must be at least 1, got {getattr(self, name)}.")

    @property
    def pixels(self):
        return self.height * self.width

    @property
    def input(self):
        return (self.batch, self.height, self.width, self.channels)

    def __str__(self):
        return f"{'x'.join(str(size) for size in self.input)}, r={self.rank}"


SHAPES = {
    # The paper's table doesn't name its input; this one has its numbers of multiply-adds.
    "paper": Shape(name="paper", height=128, width=128, channels=512, rank=64),
    "generator": Shape(
        name="generator", batch=16, height=32, width=32, channels=256, rank=32, num_classes=1000
    ),
    "discriminator": Shape(
        name="discriminator", batch=16, height=32, width=32, channels=128, rank=16
    ),
}

# Geng et al. 2021, on a GPU: parameters, multiply-adds, bytes in inference and in training, seconds
# likewise.
PUBLISHED = {
    "self_attention": (1.00e6, 292e9, 2148e6, 5253e6, 82.2e-3, 242.0e-3),
    "double_attention": (1.01e6, 25.7e9, 165e6, 326e6, 8.0e-3, 22.9e-3),
    "v1_cd": (0.50e6, 16.2e9, 102e6, 162e6, 13.0e-3, 20.0e-3),
    "v1_nmf": (0.50e6, 17.6e9, 98e6, 202e6, 7.7e-3, 15.6e-3),
}

SOLVES = {
    "one_step": decomposition.one_step,
    "implicit": decomposition.implicit,
    "unrolled": decomposition.unrolled,
}
MODES = ("forward", "training")


# The modules that only a comparison of costs needs


class FullAttention(context.SelfAttention):
    """Self-attention as in the paper's table of costs: every pixel attends to every pixel, without
    SAGAN's pooling.
    """

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels and keys have no effect."""
        del labels, keys
        batch, height, width = tf.shape(x)[0], *x.shape[1:3]

        def as_rows(y):
            return tf.reshape(y, [batch, height * width, y.shape[-1]])  # [B, N, c]

        queries, keys, values = (
            as_rows(conv(x, training=training)) for conv in (self.theta, self.phi, self.g)
        )
        y = self._attend(queries, keys, values)
        y = tf.reshape(y, [batch, height, width, y.shape[-1]])
        return x + tf.cast(self.gate, x.dtype) * self.attn(y, training=training)


class DoubleAttention(FullAttention):
    """A2-Net's double attention (Chen et al. 2018): values are gathered into `dim` features, then
    distributed again.

    The softmax is over pixels where features are gathered, over features where they are
    distributed. Arguments as in `SelfAttention`.
    """

    def _attend(self, queries, keys, values):
        gathered = tf.matmul(
            tf.nn.softmax(keys, axis=1), values, transpose_a=True
        )  # [B, N, c] [B, N, v] -> [B, c, v]
        return tf.matmul(tf.nn.softmax(queries, axis=-1), gathered)  # [B, N, v]


# What the modules are, and how many multiply-adds they should have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A row of the table.

    Attributes:
      title: for people.
      layer: constructor, called with a `Case`.
      macs: function of a `Case`, multiply-adds of a forward pass by formula.
    """

    title: str
    layer: Callable
    macs: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A module at a shape; K and the gradient of its decomposition, where it has one."""

    module: str
    shape: Shape
    num_steps: int = 6
    solve: str = "one_step"

    def as_json(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain):
        return cls(**{**plain, "shape": Shape(**plain["shape"])})


def _spectral_norm_macs(inputs, outputs):
    # W^T u, W v, and W v again where the gradient passes.
    return 3 * inputs * outputs


def _conv_macs(shape, inputs, outputs):
    return shape.batch * shape.pixels * inputs * outputs + _spectral_norm_macs(inputs, outputs)


def _nmf_macs(n, d, r, steps):
    coef = n * d * r + d * r * r + n * r * r
    bases = n * d * r + n * r * r + d * r * r
    return n * d * r + steps * (coef + bases) + coef


def _cd_macs(n, d, r, steps):
    return steps * (n * d + 2 * n * d * r) + d * r * r + n * d * r


def _vq_macs(n, d, r, steps):
    return steps * (n * d + 2 * n * d * r) + n * d + n * d * r


def _low_rank_macs(shape, size, dim, outputs):
    # The factors, [size, R] and [dim, R], and the next kernel, [dim, outputs]: the two smaller ones
    # first.
    return shape.batch * shape.rank * outputs * (dim + size) + _spectral_norm_macs(dim, outputs)


def _v1_macs(case, ham):
    shape, c = case.shape, case.shape.channels
    decomposed = shape.batch * ham(shape.pixels, c, shape.rank, case.num_steps)
    return _conv_macs(shape, c, c) + decomposed + _low_rank_macs(shape, shape.pixels, c, c)


def _v2_macs(case, ham):
    return _v1_macs(case, ham) + _conv_macs(case.shape, case.shape.channels, case.shape.channels)


def _v2plus_macs(case, ham):
    shape, c = case.shape, case.shape.channels
    dual = [(shape.pixels, c // 2), (c // 2, shape.pixels)]
    hams = shape.batch * sum(ham(n, d, shape.rank, case.num_steps) for n, d in dual)
    return 2 * _conv_macs(shape, c, c) + hams + 2 * _low_rank_macs(shape, shape.pixels, c // 2, c)


def _attention_macs(case, *, dim, value_dim, keys):
    shape, c, n = case.shape, case.shape.channels, case.shape.pixels
    breads = sum(
        _conv_macs(shape, *sizes) for sizes in ((c, dim), (c, dim), (c, value_dim), (value_dim, c))
    )
    return breads + shape.batch * n * keys * (dim + value_dim)


def _ham(title, kind, function, macs, ham_macs):
    def layer(case):
        return kind(
            num_classes=case.shape.num_classes,
            rank=case.shape.rank,
            num_steps=case.num_steps,
            decomposition=function,
            solve=SOLVES[case.solve],
        )

    return Module(title=title, layer=layer, macs=lambda case: macs(case, ham_macs))


def _attention(title, kind, *, full, keys):
    """`full`: dim and value_dim are C; else the published C / 8 and C / 2. keys: function of the
    number of pixels.
    """

    def sizes(case):
        c = case.shape.channels
        return dict(dim=c, value_dim=c) if full else dict(dim=c // 8, value_dim=c // 2)

    return Module(
        title=title,
        layer=lambda case: kind(**(sizes(case) if full else {})),
        macs=lambda case: _attention_macs(case, **sizes(case), keys=keys(case)),
    )


MODULES = {
    "self_attention": _attention(
        "Self-attention, n x n", FullAttention, full=True, keys=lambda case: case.shape.pixels
    ),
    "sagan": _attention(
        "Self-attention, SAGAN",
        context.SelfAttention,
        full=False,
        keys=lambda case: case.shape.pixels // 4,
    ),
    "ylg": _attention(
        "Sparse attention, YLG",
        context.SparseAttention,
        full=False,
        keys=lambda case: case.shape.pixels // 4,
    ),
    "double_attention": _attention(
        "Double attention, A2", DoubleAttention, full=True, keys=lambda case: case.shape.channels
    ),
}
for _version, _kind, _macs in (
    ("V1", context.Hamburger, _v1_macs),
    ("V2", context.HamburgerV2, _v2_macs),
    ("V2+", context.HamburgerV2Plus, _v2plus_macs),
):
    for _name, _ham_macs in (("nmf", _nmf_macs), ("cd", _cd_macs), ("vq", _vq_macs)):
        MODULES[f"{_version.lower().replace('+', 'plus')}_{_name}"] = _ham(
            f"Hamburger {_version}, {_name.upper()}",
            _kind,
            getattr(decomposition, _name),
            _macs,
            _ham_macs,
        )


def check_modules(names):
    """Raises: ValueError: a name isn't one of MODULES."""
    for name in names:
        if name not in MODULES:
            raise ValueError(f"modules must be some of {', '.join(MODULES)}; got {name!r}.")


# Jobs


class Subject:
    """A built module with inputs, and functions that run it.

    Args:
      case: a `Case`.
      jit: compile with XLA.
    """

    def __init__(self, case, *, jit):
        shape = case.shape
        self.layer = MODULES[case.module].layer(case)
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


def in_process(job, arguments, *, environment=None):
    """Runs a job here instead of in a process of its own; memory is then what this process makes of
    it.
    """
    del environment
    yield from job(**arguments)


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
      run: how jobs are run, `measure.in_child` or `in_process`.
      title: of the progress bar.
      progress: draw it.

    Returns:
      A dictionary per case: 'module', 'title', 'shape', 'num_steps', 'solve'; 'parameters', 'macs',
        'macs_training',
      'formula'; 'memory' {mode: bytes}, 'seconds' {mode: median}, 'all_seconds' {mode: list};
      'errors' {what: text}. What couldn't be measured is missing.
    """
    plain = [case.as_json() for case in cases]
    rows = [
        {"module": c.module, "title": MODULES[c.module].title, "shape": dataclasses.asdict(c.shape)}
        | {
            "num_steps": c.num_steps,
            "solve": c.solve,
            "memory": {},
            "seconds": {},
            "all_seconds": {},
            "errors": {},
        }
        for c in cases
    ]
    on = {"accelerator": accelerator, "jit": jit}
    bar = tqdm(
        total=len(cases) * (1 + len(memory_modes) + len(time_modes) * (1 + repeats)),
        desc=title,
        unit="",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
        bar_format=(
            "{desc}: {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        ),
    )
    with bar:
        _count(cases, rows, plain, run, bar)
        for case, row, one in zip(cases, rows, plain, strict=True):
            for mode in memory_modes:
                bar.set_postfix_str(f"memory: {_label(case)}, {mode}")
                try:
                    (record,) = run(
                        memory_job,
                        {"case": one, "mode": mode, **on},
                        environment=measure.MEMORY_ENVIRONMENT,
                    )
                    if record["bytes"] is not None:
                        row["memory"][mode] = record["bytes"]
                except (measure.ChildError, *_FAILURES) as error:
                    row["errors"][f"{mode} memory"] = measure.first_line(error)
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
# An exponent is fitted to the largest sizes: at small ones the linear layers count for more.
FITTED = 3

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


def exponent(sizes, values):
    """p of the power law values = c sizes^p through the FITTED largest sizes, by least squares in
    logarithms.

    Args:
      sizes: numbers.
      values: numbers, or None for those that couldn't be measured.

    Returns:
      A number; None with fewer than two values above 0 among the largest sizes.
    """
    pairs = sorted(zip(sizes, values, strict=True))[-FITTED:]
    pairs = [(size, value) for size, value in pairs if value]
    if len(pairs) < 2:
        return None
    return float(np.polyfit(*np.log(np.float64(pairs)).T, 1)[0])


def series(rows, value, *, key):
    """{module: (sizes, values)} of the rows of a sweep.

    Args:
      rows: of `measure_cases`.
      value: function of a row; None where it has none.
      key: function of a row, its size.
    """
    grouped = {}
    for row in rows:
        grouped.setdefault(row["module"], []).append((key(row), value(row)))
    return {module: tuple(zip(*sorted(pairs), strict=True)) for module, pairs in grouped.items()}


def pixels(row):
    """n of a row."""
    return row["shape"]["height"] * row["shape"]["width"]


SCALING_VALUES = {
    "macs": ("multiply-adds", lambda row: row.get("macs")),
    "memory": ("memory, training", lambda row: row["memory"].get("training")),
    "seconds": ("time, training", lambda row: row["seconds"].get("training")),
}


def exponents(rows):
    """{module: {'macs', 'memory', 'seconds': exponent of n}} of a scaling sweep."""
    found = {}
    for name, (_, value) in SCALING_VALUES.items():
        for module, (sizes, values) in series(rows, value, key=pixels).items():
            found.setdefault(module, {})[name] = exponent(sizes, values)
    return found
