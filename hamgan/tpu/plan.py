"""What a training would take on a TPU that isn't there: memory, time, images, money.

The program of the step (`program`) goes to the real TPU compiler (`compiler`), which libtpu has; it
needs no TPU. Sizes and counts are the compiler's; the time is an estimate, see `Plan.step_seconds`.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import venv

from hamgan.tpu import chips, compiler

# jax 0.10.2 and libtpu 0.0.52 compiled this project's step; they share no environment with
# TensorFlow's pins.
PACKAGES = ("jax==0.10.2", "jaxlib==0.10.2", "libtpu==0.0.52")
_ENVIRONMENT_VARIABLE = "HAMGAN_PLAN_PYTHON"
_CACHE = pathlib.Path("~/.cache/hamgan/tpu_plan")
# What a program must leave free: of the runtime, and of what runs beside the step.
HEADROOM = 0.05
# A step larger than the HBM; of other memories it is a program that compiles at no batch size.
_TOO_LARGE = re.compile(r"Ran out of memory (?:on|in memory space) hbm\b", re.IGNORECASE)
# As compilers of two years say how much: 40.26G of 15.75G.
_HOW_MUCH = re.compile(
    r"total memory required for [\w ]+ \([\d.]+\w\) exceeds available HBM \([\d.]+\w\)"
    r"|Used [\d.]+\w of [\d.]+\w hbm",
    re.IGNORECASE,
)
FORMULA = "step seconds = max(FLOPs / peak FLOP/s, bytes / HBM bytes/s), of one core"
_ROUNDS = (
    "the compiler counts one round of the loop over microbatches; FLOPs, bytes and instructions "
    "are {} times its account, so the update, which is done once, is in them too often"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One compiled step.

    Attributes:
      machine: a `chips.Machine`.
      batch_size: over all replicas.
      compiled: what `compiler.compile_program` gave, or {'refused': why} where the compiler found
        that the step doesn't fit.
      discriminator_steps: real batches a step.
      image_size: side of the images.
      microbatches: rounds of a step, of which the compiler counts one.
    """

    machine: chips.Machine
    batch_size: int
    compiled: dict
    discriminator_steps: int = 1
    image_size: int = 128
    microbatches: int = 1

    @property
    def used(self):
        """Bytes of a core's HBM that the step needs at once."""
        sizes = self.compiled
        outputs = sizes["outputs"] - sizes["aliased"]
        return sizes["arguments"] + outputs + sizes["temporaries"] + sizes["code"]

    @property
    def available(self):
        """Bytes of HBM of a core."""
        return self.machine.chip.gigabytes * 1e9 / self.machine.chip.cores

    @property
    def limit(self):
        """Bytes of HBM of a core that a step may take."""
        return (1 - HEADROOM) * self.available

    @property
    def refused(self):
        """What the compiler said of a step that is larger than the HBM, else None."""
        return self.compiled.get("refused")

    @property
    def fits(self):
        return not self.refused and self.used <= self.limit

    def counted(self, name):
        """'flops', 'bytes', 'hbm_bytes' or 'instructions' of a step."""
        return self.microbatches * self.compiled[name]

    @property
    def step_seconds(self):
        """By roofline, with all bytes that operations read and write, as if none stayed in the
        core's fast memory: an estimate from published peaks, which no program reaches. Time of
        all-reduces and of the host isn't in it.
        """
        return self._roofline(self.counted("bytes"))

    @property
    def least_seconds(self):
        """`step_seconds` with the bytes that do move between HBM and core."""
        return self._roofline(self.counted("hbm_bytes"))

    def _roofline(self, size):
        chip = self.machine.chip
        arithmetic = self.counted("flops") / (chip.tflops * 1e12 / chip.cores)
        return max(arithmetic, size / (chip.bandwidth * 1e9 / chip.cores))

    @property
    def images_per_second(self):
        return self.batch_size / self.step_seconds

    def lines(self, *, steps, tier="on_demand", table=None):
        """The plan as text, a list of lines.

        Args:
          steps: of the whole training.
          tier: see `chips.dollars_per_hour`.
          table: of prices; None: the shipped one.
        """
        sizes, machine = self.compiled, self.machine
        head = (
            f"{machine.topology} ({machine.accelerator_type}), {machine.replicas} replicas, batch "
            f"{self.batch_size}: {self.batch_size // machine.replicas} a core"
        )
        if self.refused:
            return [head, f"HBM of a core: DOESN'T FIT: {self.refused}"]
        hours = steps * self.step_seconds / 3600
        table = table or chips.prices()
        price = chips.dollars_per_hour(machine, tier=tier, table=table)
        real = self.images_per_second * self.discriminator_steps
        megabytes = real * self.image_size**2 * 3 / 1e6
        money = "no price in the table" if price is None else f"${hours * price:,.0f}"
        return [
            head,
            f"HBM of a core: {_gb(self.used)} of {_gb(self.available)}: "
            f"arguments {_gb(sizes['arguments'])}, temporaries {_gb(sizes['temporaries'])}, "
            f"new outputs {_gb(sizes['outputs'] - sizes['aliased'])}, "
            f"program {_gb(sizes['code'])}; free {_gb(self.available - self.used)}: "
            + ("fits" if self.fits else f"DOESN'T FIT ({HEADROOM:.0%} must stay free)"),
            f"a step of a core: {self.counted('flops') / 1e9:,.1f} GFLOP, "
            f"{_gb(self.counted('bytes'))} read and written, "
            f"{_gb(self.counted('hbm_bytes'))} of them in HBM, the rest in the core's fast memory; "
            f"{sizes['all_reduces']} all-reduces",
            f"{self.counted('instructions'):,} instructions are begun one after another; what that "
            "takes isn't in the estimate",
            *(
                [f"loops, of which one round is counted: {sizes['loops']}"]
                if sizes["loops"]
                else []
            ),
            *([_ROUNDS.format(self.microbatches)] if self.microbatches > 1 else []),
            f"ESTIMATE {self.step_seconds * 1e3:,.2f} ms a step, {self.least_seconds * 1e3:,.2f} "
            f"ms by the bytes in HBM alone ({FORMULA}: "
            f"{machine.chip.tflops:g} TFLOP/s, {machine.chip.bandwidth:g} GB/s a chip; no program "
            "reaches them, and all-reduces and the host aren't in it)",
            f"ESTIMATE {self.images_per_second:,.0f} images/s; the input must deliver {real:,.0f} "
            f"images/s, {megabytes:,.0f} MB/s decoded",
            f"ESTIMATE {hours:,.1f} hours for {steps:,} steps, {money} ({tier}, prices of "
            f"{table['date']}: {table['source']})",
            f"compiled in {sizes['seconds']:g} s",
        ]


def _gb(size):
    return f"{size / 1e9:.2f} GB"


def python_of_compiler(*, make=False, folder=None):
    """The Python that has jax and libtpu: that of $HAMGAN_PLAN_PYTHON, or of an environment in
    `folder`.

    Args:
      make: make the environment when it isn't there; it takes about 1 GB.
      folder: None: ~/.cache/hamgan/tpu_plan/environment.

    Raises:
      ValueError: there is none, and it isn't to be made; or making it failed.
    """
    named = os.environ.get(_ENVIRONMENT_VARIABLE)
    folder = pathlib.Path(folder or _CACHE / "environment").expanduser()
    python = pathlib.Path(named) if named else folder / "bin" / "python"
    if _has_compiler(python):
        return python
    if named or not make:
        raise ValueError(
            f"{python} has no jax and libtpu. Make an environment of its own: python -m venv "
            f"{folder} && {folder}/bin/pip install {' '.join(PACKAGES)}"
        )
    venv.create(folder, with_pip=True)
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=False)
    if done.returncode or not _has_compiler(python):
        raise ValueError(f"jax and libtpu couldn't be installed in {folder}; pip says why above.")
    return python


def _has_compiler(python):
    if not pathlib.Path(python).is_file():
        return False
    return not subprocess.run(
        [python, "-c", "import jaxlib, libtpu, jax"], capture_output=True, check=False
    ).returncode


def compile_for(hlo, machine, *, python, cache=None, timeout=3600):
    """What `compiler.compile_program` says of a program, from the cache if it is there.

    Args:
      hlo: a serialised program.
      machine: a `chips.Machine`.
      python: with jax and libtpu.
      cache: folder; None: ~/.cache/hamgan/tpu_plan.
      timeout: seconds.

    Returns:
      What `compiler.compile_program` gives; {'refused': why} of a program that needs more than the
      HBM.

    Raises:
      ValueError: the compiler refuses the program, with the names of the layers it speaks of; it
        took too long.
    """
    key = hashlib.sha256(hlo)
    # Another Python may have another compiler.
    key.update(f"{machine.topology} {machine.replicas} {PACKAGES} {python}".encode())
    key.update(pathlib.Path(compiler.__file__).read_bytes())
    folder = pathlib.Path(cache or _CACHE).expanduser()
    known = folder / f"{key.hexdigest()[:32]}.json"
    if known.is_file():
        return json.loads(known.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{known.stem}.{os.getpid()}.hlo"
    program.write_bytes(hlo)
    words = [python, compiler.__file__, program, f"--topology={machine.topology}"]
    try:
        done = subprocess.run(
            [*words, f"--replicas={machine.replicas}"],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{machine.topology}: no answer within {timeout} s.") from None
    finally:
        program.unlink()
    found = re.search(r"^compiled: (.*)$", done.stdout, re.MULTILINE)
    if not found:
        raise ValueError(f"The compiler ended with {done.returncode}: {done.stderr[-2000:]}")
    answer = json.loads(found[1])
    if "error" in answer:
        if not _TOO_LARGE.search(answer["error"]):
            raise ValueError(f"{machine.topology} can't run this step: {named(answer['error'])}")
        how_much = _HOW_MUCH.search(answer["error"])
        answer = {"refused": how_much[0] if how_much else answer["error"].splitlines()[0]}
    unfinished = known.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(answer))
    unfinished.replace(known)
    return answer


def named(message):
    """A compiler's message, with the layers that it names first."""
    layers = re.findall(r"\b(?:generator|discriminator)[\w]*(?:/[\w.]+)+", message)
    first = ", ".join(dict.fromkeys(layers[:5]))
    return f"{first}: {message}" if first else message


def largest_batch(needs, *, limit, start, step, most=65536):
    """The largest multiple of `step` that fits; 0 when none does.

    Memory grows about in proportion to the batch, so the next size that is tried is where the line
    through two known ones meets the limit: four or five sizes where bisection would take ten. What
    isn't on a line is halved after that.

    Args:
      needs: function (batch size) -> bytes, `math.inf` where only that it's too much is known.
      limit: what fits, bytes.
      start: where to begin, a multiple of `step`.
      step: the number of replicas.
      most: no more than this is tried.

    Raises:
      ValueError: start isn't a multiple of step.
    """
    if start < step or start % step:
        raise ValueError(f"start must be a multiple of step ({step}), got {start}.")
    known = {}
    low, high = 0, most // step * step + step  # fits, doesn't
    size = start
    while high - low > step:
        known[size] = needs(size)
        if known[size] <= limit:
            low = size
        else:
            high = size
        guess = _crossing(known, limit) if len(known) < 5 else (low + high) // 2
        size = min(max(guess // step * step, low + step), high - step)
    return low


def _crossing(known, limit):
    """About where {size: bytes} meets the limit."""
    finite = sorted((abs(limit - used), size) for size, used in known.items() if used < math.inf)
    sizes = [size for _, size in finite[:2]]
    if len(sizes) < 2 or known[sizes[0]] == known[sizes[1]]:
        fits = [size for size, used in known.items() if used <= limit]
        return 2 * max(fits) if fits else min(known) // 2
    one, other = sizes
    slope = (known[one] - known[other]) / (one - other)
    return int(one + (limit - known[one]) / slope)


def make_plan(experiment, machine, *, python, batch_size=None, cache=None, report=None):
    """The `Plan` of an experiment on a machine.

    Args:
      experiment: an `experiment.Experiment`.
      machine: a `chips.Machine`.
      python: see `python_of_compiler`.
      batch_size: None: the experiment's.
      cache: see `compile_for`.
      report: function (text) that is told what goes on.
    """
    from hamgan.tpu import program  # TensorFlow, which the command doesn't wait for

    say = report or (lambda text: print(text, file=sys.stderr, flush=True))
    say(f"tracing the step for {machine.replicas} replicas")
    step = program.lower(experiment, replicas=machine.replicas, batch_size=batch_size)
    say(f"compiling for {machine.topology}; minutes, at full size 200 to 460 s on two cores")
    compiled = compile_for(step.hlo, machine, python=python, cache=cache)
    return Plan(
        machine=machine,
        batch_size=step.batch_size,
        compiled=compiled,
        discriminator_steps=step.discriminator_steps,
        image_size=step.image_size,
        microbatches=step.microbatches,
    )
