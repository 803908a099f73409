"""What a training step costs: time, work, memory, and where the time goes.

A subject is a trainer with images that are there already, so that only the step is measured. The
jobs are generator functions whose arguments and results have a form in JSON, for processes of their
own (`measure.in_child`).
"""

import collections
import dataclasses
import functools
import glob
import os
import statistics
import tempfile

import numpy as np
import tensorflow as tf

from hamgan import arguments, context, distribution, experiment, networks, trainer
from hamgan.benchmarks import measure, published_step
from hamgan.tpu import program

# What mixes the whole image in both networks.
MODULES = {
    "none": None,
    "hamburger": context.Hamburger,
    "hamburger_v2": context.HamburgerV2,
    "hamburger_v2plus": context.HamburgerV2Plus,
    "self_attention": context.SelfAttention,
}
# Beside them, the published graph (`published_step`).
PUBLISHED = "published"
# Steps of a host call, as a run has many of them: what a call does once counts little.
_STEPS_A_CALL = {"full": 3, "digits": 10}
# Networks: settings of both, and the images of a step.
SIZES = {
    "full": dict(width=64, image_size=128, num_classes=1000, batch_size=4),
    "digits": dict(width=4, image_size=32, num_classes=10, batch_size=32),
}
_FAILURES = (tf.errors.OpError, ValueError, MemoryError)
# Sides of what the machine's rate is measured with: products of matrices, and a convolution like
# those in the middle of the networks.
_MATRIX, _CONVOLUTION = 2048, (8, 32, 256)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step.

    Attributes:
      size: one of SIZES.
      module: one of MODULES, or PUBLISHED.
      precision: a Keras dtype policy.
      batch_size: images a step; None: that of the size.
      microbatches: parts that a batch is computed in.
      devices: logical CPUs that share a batch; None: what the accelerator has.
    """

    size: str
    module: str = "hamburger"
    precision: str = "float32"
    batch_size: int | None = None
    microbatches: int = 1
    devices: int | None = None

    def __post_init__(self):
        for name, known in (
            ("size", SIZES),
            ("module", (*MODULES, PUBLISHED)),
            ("precision", arguments.PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        if self.module == PUBLISHED and (self.size, self.precision, self.parts) != (
            "full",
            "float32",
            1,
        ):
            raise ValueError(
                f"{self}: the published graph is of size full in float32, on one device without "
                "microbatches."
            )
        if self.images % self.parts:
            raise ValueError(
                f"{self}: {self.images} images can't be cut into {self.parts} equal parts. Choose "
                "another batch size, or fewer microbatches or devices."
            )

    @property
    def images(self):
        return self.batch_size or SIZES[self.size]["batch_size"]

    @property
    def parts(self):
        """Parts that a batch is cut into: for devices, and for the rounds of a loop on each."""
        return (self.devices or 1) * self.microbatches

    def experiment(self):
        """The `Experiment` of this case, of which only networks and trainer are used.

        Raises:
          ValueError: the published graph is no experiment.
        """
        if self.module == PUBLISHED:
            raise ValueError(f"{self}: of the published graph there is a step to time, no more.")
        settings = {**SIZES[self.size]}
        settings.pop("batch_size")
        module = MODULES[self.module]
        return experiment.Experiment(
            generator=functools.partial(networks.Generator, context=module, **settings),
            discriminator=functools.partial(networks.Discriminator, context=module, **settings),
            trainer=functools.partial(
                trainer.Trainer, batch_size=self.images, microbatches=self.microbatches
            ),
            precision=self.precision,
        )

    def __str__(self):
        more = f", {self.microbatches} microbatches" if self.microbatches > 1 else ""
        more += f" on {self.devices} logical CPUs" if (self.devices or 1) > 1 else ""
        return f"{self.size}, {self.module}, {self.precision}, batch {self.images}{more}"


class Subject:
    """A trainer of a case on a strategy, with made images.

    Args:
      case: a `Case`.
      strategy: the strategy.
    """

    def __init__(self, case, *, strategy):
        made = case.experiment()
        self.trainer = made.trainer(
            strategy=strategy, generator=made.generator, discriminator=made.discriminator
        )
        endless = tf.data.Dataset.from_tensors(made_batch(case)).repeat()
        self._batches = iter(strategy.experimental_distribute_dataset(endless))

    def run(self, num_steps=1):
        """Runs steps, until their metrics are there."""
        return self.trainer.train_steps(self._batches, num_steps)


class PublishedSubject:
    """As `Subject`, the published graph."""

    def __init__(self, case, *, strategy):
        with strategy.scope():
            self.step = published_step_of(case)
        self._strategy = strategy
        # Two programs, one after the other, as published.
        self._updates = [
            tf.function(update, autograph=False)
            for update in (self.step.discriminator_update, self.step.generator_update)
        ]

    def run(self, num_steps=1):
        """Runs steps, until their losses are there."""
        for _ in range(num_steps):
            losses = [self._strategy.run(update) for update in self._updates]
        return [float(loss) for loss in losses]


def published_step_of(case):
    """The `published_step.Step` of a case, with made images."""
    batch = made_batch(case)
    settings = {name: SIZES[case.size][name] for name in ("width", "num_classes")}
    return published_step.Step(batch["image"], batch["label"], **settings)


def made_batch(case):
    """{"image": float32 [B, H, W, 3] in [-1, 1], "label": int32 [B]} of a case, NumPy arrays."""
    settings = SIZES[case.size]
    rng = np.random.default_rng(0)
    side = settings["image_size"]
    return {
        "image": rng.uniform(-1, 1, [case.images, side, side, 3]).astype(np.float32),
        "label": rng.integers(0, settings["num_classes"], case.images).astype(np.int32),
    }


def create_subject(case, *, strategy):
    """The `Subject` or `PublishedSubject` of a case."""
    kind = PublishedSubject if case.module == PUBLISHED else Subject
    return kind(case, strategy=strategy)


def create_strategy(accelerator, devices=None):
    """The strategy of an accelerator, or of so many logical CPUs."""
    if not devices:
        return distribution.create_strategy(accelerator)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    return distribution.create_strategy("cpu")


def count_job(*, case):
    """Yields {"macs": multiply-adds of a step in the form that is chosen for this machine,
    "parameters": of both networks}.
    """
    whole = Case(**case)
    if whole.module == PUBLISHED:
        built = published_step_of(whole)
        updates = (built.discriminator_update, built.generator_update)
        macs = sum(measure.count_macs(update) for update in updates)
    else:
        # The parts of a batch are counted by one of them: forms depend on its size.
        part = {"microbatches": 1, "devices": None, "batch_size": whole.images // whole.parts}
        made = dataclasses.replace(whole, **part).experiment()
        lowered = program.lower(made, replicas=1, device=None)
        macs = whole.parts * measure.macs_of_program(lowered.hlo)
        built = program.build(made, replicas=1)
    yield {
        "macs": macs,
        "parameters": sum(
            int(np.prod(variable.shape))
            for network in (built.generator, built.discriminator)
            for variable in network.trainable_variables
        ),
    }


def memory_job(*, case, accelerator, steps=3):
    """Yields {"bytes": what the process holds at its peak, networks and optimizers included, beyond
    TensorFlow itself; None where it can't be told}.
    """
    strategy = create_strategy(accelerator, case.get("devices"))
    device = strategy.extended.worker_devices[0]

    def run():
        subject = create_subject(Case(**case), strategy=strategy)
        for _ in range(steps):
            subject.run()
        return subject

    yield {"bytes": measure.peak_memory(run, device=device, repeats=1)}


def time_job(*, cases, repeats, accelerator):
    """Times steps in rounds (see `measure.interleaved_seconds`), and the machine's own rate in the
    same rounds. All of them are on as many devices as the first.

    Yields:
      {"case": index, "seconds": number}, {"case": index, "error": text}, {"case": index} before its
      first call; of the machine's rate {"rate": precision, "macs": multiply-adds a second}.
    """
    strategy = create_strategy(accelerator, cases[0].get("devices"))
    calls = {}
    for index, case in enumerate(cases):
        subject = functools.cache(
            functools.partial(create_subject, Case(**case), strategy=strategy)
        )
        calls[index] = functools.partial(_seconds_of_step, subject, _STEPS_A_CALL[case["size"]])
    work = {}
    for precision in dict.fromkeys(case["precision"] for case in cases):
        for name, (macs, call) in _yardsticks(precision).items():
            calls[precision, name] = lambda call=call: measure.seconds(call)
            work[precision, name] = macs
    for key, value in measure.interleaved_seconds(calls, repeats=repeats):
        if key in work:
            if isinstance(value, float):
                yield {"rate": key[0], "macs": work[key] / value}
        elif value is None:
            yield {"case": key}
        elif isinstance(value, Exception):
            yield {"case": key, "error": measure.first_line(value)}
        else:
            yield {"case": key, "seconds": value}


def _seconds_of_step(subject, steps):
    return measure.seconds(functools.partial(subject().run, steps)) / steps


def _yardsticks(precision):
    """{name: (multiply-adds, function without arguments)}: what this machine does best."""
    dtype = tf.bfloat16 if "bfloat16" in precision else tf.float32
    batch, side, channels = _CONVOLUTION
    matrix = tf.ones([_MATRIX, _MATRIX], dtype)
    image = tf.ones([batch, side, side, channels], dtype)
    kernel = tf.ones([3, 3, channels, channels], dtype)
    product = tf.function(lambda: tf.matmul(matrix, matrix), autograph=False)
    convolution = tf.function(lambda: tf.nn.conv2d(image, kernel, 1, "SAME"), autograph=False)
    return {
        "product": (_MATRIX**3, product),
        "convolution": (batch * side**2 * 9 * channels**2, convolution),
    }


def trace_job(*, case, accelerator, steps=3):
    """Yields [{"operation", "seconds": self time a step over all threads, "calls": a step}], the
    longest first.
    """
    strategy = create_strategy(accelerator, case.get("devices"))
    subject = create_subject(Case(**case), strategy=strategy)
    subject.run()
    subject.run()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        subject.run(steps)
        tf.profiler.experimental.stop()
        (path,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
        yield [
            {"operation": name, "seconds": seconds / steps, "calls": calls / steps}
            for name, seconds, calls in self_times(path)
        ]


def self_times(path):
    """[(operation, seconds, calls)] of a TensorFlow profile: time within an operation but not in
    those that it calls, summed over threads, the longest first.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # slow to import, and used here alone

    with open(path, "rb") as file:
        space = xplane_pb2.XSpace.FromString(file.read())
    seconds, calls = collections.Counter(), collections.Counter()
    for plane in space.planes:
        if not any(kind in plane.name for kind in ("CPU", "GPU", "TPU")):
            continue
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            for event, own in _own_times(line.events):
                name = names[event.metadata_id].rpartition(":")[2].strip()
                seconds[name] += own / 1e12
                calls[name] += 1
    return [(name, total, calls[name]) for name, total in seconds.most_common()]


def _own_times(events):
    """(event, picoseconds without those of events inside it) of one thread."""
    found, open_ = [], []
    ordered = sorted(events, key=lambda event: (event.offset_ps, -event.duration_ps))
    for event in ordered:
        while open_ and open_[-1][0].offset_ps + open_[-1][0].duration_ps <= event.offset_ps:
            found.append(open_.pop())
        if open_:
            open_[-1][1] += event.duration_ps
        open_.append([event, 0])
    return [(event, event.duration_ps - inner) for event, inner in [*found, *open_]]


def measure_steps(cases, *, repeats=5, accelerator="auto", run=measure.in_child, progress=True):
    """Measures steps side by side, those on other numbers of logical CPUs after each other. What
    fails for one of them leaves the others be.

    Args:
      cases: list of `Case`.
      repeats: rounds of timing, in which all take turns.
      accelerator: as in `hamgan.distribution`.
      run: how jobs are run, `measure.in_child`.
      progress: draw a progress bar.

    Returns:
      ({precision: multiply-adds a second that this machine does best}, a dictionary per case: its
      settings, 'title', 'images'; 'macs', 'parameters'; 'memory' in bytes; 'seconds', the median,
      'all_seconds'; 'images_per_second'; 'share' of the machine's rate; 'errors' {what: text}. What
      couldn't be measured is missing.)
    """
    plain = [dataclasses.asdict(case) for case in cases]
    rows = [
        {**one, "title": str(case), "images": case.images, "all_seconds": [], "errors": {}}
        for one, case in zip(plain, cases, strict=True)
    ]
    bar = measure.progress_bar(
        total=len(cases) * (3 + repeats),
        desc="step",
        disable=not progress,
    )
    with bar:
        for row, one in zip(rows, plain, strict=True):
            _one(row, "work", count_job, {"case": one}, None, run)
            bar.update()
            on = {"case": one, "accelerator": accelerator}
            _one(row, "memory", memory_job, on, measure.MEMORY_ENVIRONMENT, run)
            bar.update()
        rates = collections.defaultdict(list)
        # A process has its number of devices for life, so those of another number come after.
        for devices in dict.fromkeys(case.devices for case in cases):
            of_devices = [row for row in rows if row["devices"] == devices]
            job = {
                "cases": [one for one in plain if one["devices"] == devices],
                "repeats": repeats,
                "accelerator": accelerator,
            }
            try:
                for record in run(time_job, job):
                    _timed(record, of_devices, rates, bar)
            except measure.ChildError as error:
                for row in of_devices:
                    row["errors"].setdefault("time", measure.first_line(error))
    best = {precision: max(found) for precision, found in rates.items()}
    for row in rows:
        _conclude(row, best)
    return best, rows


def _timed(record, rows, rates, bar):
    """Takes what `time_job` yields."""
    if "rate" in record:
        rates[record["rate"]].append(record["macs"])
    elif "error" in record:
        rows[record["case"]]["errors"]["time"] = record["error"]
    else:
        if "seconds" in record:
            rows[record["case"]]["all_seconds"].append(record["seconds"])
        bar.update()


def _one(row, what, job, given, environment, run):
    try:
        (record,) = run(job, given, environment=environment)
    except (measure.ChildError, *_FAILURES) as error:
        row["errors"][what] = measure.first_line(error)
        return
    row.update({"memory" if name == "bytes" else name: value for name, value in record.items()})


def _conclude(row, rates):
    if not row["all_seconds"]:
        return
    row["seconds"] = statistics.median(row["all_seconds"])
    row["images_per_second"] = row["images"] / row["seconds"]
    if "macs" in row and row["precision"] in rates:
        row["share"] = row["macs"] / row["seconds"] / rates[row["precision"]]
