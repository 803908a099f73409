"""What there is to rent: chips, their peaks, the machines they come in, and what TensorFlow drives.

Peaks are those that Google publishes for each chip (cloud.google.com/tpu/docs, pages of v2 to v6e).
"""

import dataclasses
import json
import math
import pathlib
import re

PRICES = pathlib.Path(__file__).with_name("prices.json")
TIERS = ("on_demand", "spot", "flex_start", "reserved")

# Why not more: see `check_hosts`.
_SLICE = (
    "{type} has {hosts} hosts. One process drives the chips of several hosts only through the "
    "server that images tpu-vm-tf-x.y.z-pod run on each of them, and server and client must be of "
    "one TensorFlow version. {rest}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation.

    Attributes:
      name: as topologies begin, 'v5e'.
      prefix: as accelerator types begin, 'v5litepod'.
      counts_cores: whether the number of a type counts cores ('v3-8': 4 chips) or chips.
      cores: replicas of a chip, as TensorFlow numbers them.
      tflops: peak of a chip in bfloat16, 1e12/s.
      gigabytes: HBM of a chip, 1e9 bytes as published (2^30 up to v4).
      bandwidth: of a chip's HBM, 1e9 bytes/s.
      host_chips: the most that one host has.
      image: the runtime image.
      dimensions: of a topology's numbers.
    """

    name: str
    prefix: str
    counts_cores: bool
    cores: int
    tflops: float
    gigabytes: float
    bandwidth: float
    host_chips: int
    image: str
    dimensions: int = 2


def _chip(name, cores, tflops, gigabytes, bandwidth, host_chips, image, **more):
    fields = dict(prefix=name, counts_cores=True, cores=cores, tflops=tflops)
    fields |= dict(gigabytes=gigabytes, bandwidth=bandwidth, host_chips=host_chips, image=image)
    return Chip(name=name, **(fields | more))


_UBUNTU = "tpu-ubuntu2204-base"
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v2", 2, 46, 16, 700, 4, _UBUNTU),
        _chip("v3", 2, 123, 32, 900, 4, _UBUNTU),
        # Both cores of a chip are one device to TensorFlow from v4 on.
        _chip("v4", 1, 275, 32, 1200, 4, _UBUNTU, dimensions=3),
        _chip(
            *("v5e", 1, 197, 16, 819, 8, "v2-alpha-tpuv5-lite"),
            prefix="v5litepod",
            counts_cores=False,
        ),
        _chip("v5p", 1, 459, 95, 2765, 4, "v2-alpha-tpuv5", dimensions=3),
        _chip("v6e", 1, 918, 32, 1638, 8, "v2-alpha-tpuv6e", counts_cores=False),
    )
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """So many chips of one kind, connected.

    Attributes:
      chip: a `Chip`.
      chips: how many.
      shape: of a topology, or None.
    """

    chip: Chip
    chips: int
    shape: tuple | None = None

    @property
    def replicas(self):
        return self.chips * self.chip.cores

    @property
    def hosts(self):
        return math.ceil(self.chips / self.chip.host_chips)

    @property
    def accelerator_type(self):
        # v4 and v5p count two cores of each chip, though TensorFlow sees one.
        number = self.chips * 2 if self.chip.counts_cores else self.chips
        return f"{self.chip.prefix}-{number}"

    @property
    def topology(self):
        """As a compiler takes it, 'v5e:2x4'."""
        shape = self.shape or _shape(self.chip, self.chips)
        return f"{self.chip.name}:{'x'.join(map(str, shape))}"


def _shape(chip, chips):
    """The usual shape: sides as equal as can be, no smaller one after a greater one."""
    shape, rest = [], chips
    for left in range(chip.dimensions, 0, -1):
        side = max(d for d in range(1, rest + 1) if rest % d == 0 and d**left <= rest)
        shape.append(side if left > 1 else rest)
        rest //= shape[-1]
    # One host of v4 and v5p is 2x2x1, not 1x2x2.
    return tuple(sorted(shape, reverse=chips <= 4 and chip.dimensions == 3))


def from_topology(text):
    """The `Machine` of 'v5e:2x4'.

    Raises:
      ValueError: no such chip, or a shape of another form.
    """
    name, _, shape = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise ValueError(
            f"A topology must begin with a chip, one of {', '.join(CHIPS)}, got {text!r}."
        )
    form = "x".join("ABC"[: chip.dimensions])
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != chip.dimensions:
        raise ValueError(f"A topology of {name} must be {name}:{form}, chips a side; got {text!r}.")
    sides = tuple(map(int, shape.split("x")))
    return Machine(chip, math.prod(sides), sides)


def from_type(text):
    """The `Machine` of an accelerator type like v3-8, v5litepod-4 or v6e-8.

    Raises:
      ValueError: no such type.
    """
    prefix, _, number = text.partition("-")
    chip = next((chip for chip in CHIPS.values() if chip.prefix == prefix), None)
    if chip is None or not re.fullmatch(r"[1-9]\d*", number):
        known = ", ".join(f"{chip.prefix}-8" for chip in CHIPS.values())
        named = CHIPS.get(prefix)
        hint = f" ({prefix} is called {named.prefix})" if named and named.prefix != prefix else ""
        raise ValueError(f"type must be an accelerator type like {known}{hint}; got {text!r}.")
    count = int(number)
    if chip.counts_cores and count % 2:
        raise ValueError(f"type: {prefix} counts cores, two a chip; got {text!r}.")
    chips = count // 2 if chip.counts_cores else count
    if chips < 4 and chip.counts_cores:
        raise ValueError(f"type: the smallest is {prefix}-8; got {text!r}.")
    if chips <= chip.host_chips and chips not in (1, 4, 8):
        raise ValueError(f"type: a host has 1, 4 or 8 chips, not {chips}; got {text!r}.")
    return Machine(chip, chips)


def check_hosts(machine, *, image, tensorflow):
    """Refuses machines that TensorFlow's TPUStrategy can't drive with the wheels of this project.

    One host: `TPUClusterResolver('local')` finds its chips through libtpu. Several hosts: the
    resolver asks for the addresses of their servers, `experimental_connect_to_cluster` connects to
    them (tensorflow/python/distribute/cluster_resolver/tpu; cloud.google.com/tpu/docs/runtimes:
    images tpu-vm-tf-x.y.z-pod for slices).

    Args:
      machine: a `Machine`.
      image: the runtime image that was asked for, or None.
      tensorflow: the version of the wheel, '2.20.0'.

    Raises:
      ValueError: several hosts, and no image that serves this version of TensorFlow; or chips for
        which there is none.
    """
    if machine.hosts == 1:
        return
    words = dict(type=machine.accelerator_type, hosts=machine.hosts)
    one = next(n for n in (8, 4) if n <= machine.chip.host_chips)
    largest = Machine(machine.chip, one).accelerator_type
    if machine.chip.name in ("v5e", "v5p", "v6e"):
        rest = (
            f"For {machine.chip.name} the image is {machine.chip.image}, which has no such server. "
            f"Take one host: {largest}."
        )
        raise ValueError(_SLICE.format(rest=rest, **words))
    served = re.fullmatch(r"tpu-vm-tf-(\d+\.\d+\.\d+)-pod(-pjrt)?", image or "")
    if not served or served[1] != tensorflow:
        rest = (
            f"Give --runtime_version=tpu-vm-tf-{tensorflow}-pod-pjrt if gcloud compute tpus tpu-vm "
            "versions list --zone=ZONE has it (it was never seen by this project), or take one "
            f"host: {largest}."
        )
        raise ValueError(_SLICE.format(rest=rest, **words))


def prices(path=PRICES):
    """The table of prices, with its date and its source.

    Raises:
      ValueError: it isn't such a table.
    """
    try:
        table = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} isn't a table of prices in JSON: {error}") from None
    missing = {"date", "source", "on_demand"} - (table.keys() if isinstance(table, dict) else set())
    if missing:
        raise ValueError(f"{path}: a table of prices must have {', '.join(sorted(missing))}.")
    for tier in table.keys() & set(TIERS):
        if not isinstance(table[tier], dict):
            raise ValueError(f"{path}: {tier} must have a price for each chip, got {table[tier]}.")
        for chip, price in table[tier].items():
            number = isinstance(price, (int, float)) and not isinstance(price, bool)
            if price is not None and not (number and 0 <= price < math.inf):
                raise ValueError(
                    f"{path}: the price of {chip} ({tier}) must be dollars for a chip and hour, or "
                    f"null where it isn't known; got {price!r}."
                )
    return table


def dollars_per_hour(machine, *, tier="on_demand", table=None):
    """Price of a machine for an hour, or None where the table has none.

    Args:
      machine: a `Machine`.
      tier: one of TIERS.
      table: what `prices` gave; None: the shipped one.
    """
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}.")
    each = (table or prices()).get(tier, {}).get(machine.chip.name)
    return machine.chips * each if each else None
