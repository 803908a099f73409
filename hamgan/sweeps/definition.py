"""What a sweep is: settings that vary, their values, and the points that come of them."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hamgan import arguments
from hamgan.evaluation.scores import ALL_SCORES, SEGMENTATION_SCORES

SAMPLERS = ("grid", "tpe", "gp", "random", "qmc")
PRUNERS = (None, "median", "halving", "hyperband", "wilcoxon")
# What a point costs, as an objective beside the score; all are better lower.
COSTS = ("step_seconds", "macs", "module_macs", "parameters", "memory_bytes")

_NUMBER = arguments.either(arguments.number())


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_gin(value: Any) -> str:
    """A value as gin reads it; a text that begins with @ or % is a reference already."""
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    return repr(value)


def label(value: Any) -> str:
    """A value in a folder's name: '@decomposition.cd' is 'cd'."""
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, str) and value.startswith("@"):
        text = value.rpartition(".")[2].removesuffix("()")
    else:
        text = str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def _scaled(value, factor):
    """value * factor, a whole number where it is one."""
    product = value * factor
    return int(product) if isinstance(product, float) and product.is_integer() else product


@arguments.take(
    name=arguments.text(),
    bindings=arguments.each(arguments.text()),
    low=arguments.optional(_NUMBER),
    high=arguments.optional(_NUMBER),
    step=arguments.optional(arguments.number(above=0)),
    log=arguments.truth(),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """Something that varies.

    One of `values`, `choices`, and `low` with `high` says how.

    Attributes:
      name: short, for folders and tables: 'rank'.
      bindings: names of the settings that take the value, 'G/context.Hamburger.rank'; several are
        tied to each other.
      tied: {name of a setting: factor} of settings that take a multiple of the value: d = 8 r.
      values: what it takes; texts like '@decomposition.cd' are references of gin.
      choices: {label: texts}, where one value is several settings: bindings like
        'networks.Generator.context = None', or gin files.
      low, high, step, log: a range, for samplers other than the grid; whole numbers if low and high
        are.

    Raises:
      ValueError: none or several of values, choices and a range; no setting; a factor for what
        isn't a number; two values of one label.
    """

    name: str
    bindings: Sequence[str] = ()
    tied: Mapping[str, float] = dataclasses.field(default_factory=dict)
    values: Sequence[Any] | None = None
    choices: Mapping[str, Sequence[str]] | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        owner = f"Axis {self.name!r}"
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name) or self.name == "seed":
            raise ValueError(f"{owner}: name must be a word other than 'seed', got {self.name!r}.")
        given = [self.values is not None, self.choices is not None, self.is_range]
        if sum(given) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(
                f"{owner} must have one of values, choices, and low with high; got values="
                f"{self.values}, choices={self.choices}, low={self.low}, high={self.high}."
            )
        if (self.choices is None) != bool(self.bindings or self.tied):
            raise ValueError(
                f"{owner} must say what takes its value: bindings or tied (or choices, which bind "
                f"by themselves, alone), got bindings={list(self.bindings)}, tied="
                f"{dict(self.tied)}."
            )
        if self.is_range and not self.low < self.high:
            raise ValueError(f"{owner}: low must be below high, got {self.low} and {self.high}.")
        if self.tied and not all(map(_is_number, self.values or (0,))):
            raise ValueError(f"{owner}: tied needs numbers as values, got {list(self.values)}.")
        labels = self.labels()
        if self.values is not None and not labels or len(set(labels)) < len(labels):
            raise ValueError(f"{owner}: values must be there, and differ in name; got {labels}.")

    @property
    def is_range(self) -> bool:
        """Whether values are drawn from a range."""
        return self.low is not None

    def options(self) -> list[Any]:
        """The values, or the labels of the choices; none of a range."""
        return list(self.choices if self.choices is not None else self.values or ())

    def labels(self) -> list[str]:
        """The options as folders name them."""
        return [label(value) for value in self.options()]

    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return self.is_range or bool(self.values) and all(map(_is_number, self.values or ()))

    def settings(self, value: Any) -> list[str]:
        """The bindings, and gin files, that a value stands for."""
        if self.choices is not None:
            return list(self.choices[value])
        return [
            *(f"{name} = {as_gin(value)}" for name in self.bindings),
            *(f"{name} = {as_gin(_scaled(value, by))}" for name, by in self.tied.items()),
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One value of each axis.

    Attributes:
      values: {name of an axis: value, or label of a choice}.
      gin_files, gin_params: of its trainings, without the seed.
    """

    values: Mapping[str, Any]
    gin_files: Sequence[str]
    gin_params: Sequence[str]

    @property
    def name(self) -> str:
        """'rank=16,dim=128'."""
        return ",".join(f"{axis}={label(value)}" for axis, value in self.values.items())

    def folder(self, seed: int) -> str:
        """The name of a training's folder: 'rank=16,dim=128,seed=1'."""
        return f"{self.name},seed={seed}"


@arguments.take(
    name=arguments.optional(arguments.text()),
    gin_files=arguments.each(arguments.text()),
    gin_params=arguments.each(arguments.text()),
    axes=arguments.each(arguments.made("@sweeps.Axis()", of=Axis)),
    seeds=arguments.each(arguments.seed()),
    objectives=arguments.each(
        arguments.one_of(*(score.name for score in ALL_SCORES), *COSTS),
    ),
    protocol=arguments.optional(arguments.text()),
    sampler=arguments.one_of(*SAMPLERS),
    pruner=arguments.one_of(*PRUNERS),
    points=arguments.optional(arguments.whole(1)),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep.

    Attributes:
      gin_files: the experiment's.
      gin_params: bindings of all its trainings, the budget among them:
        'loop.Schedule.num_steps = 400'.
      axes: what varies.
      seeds: of the trainings of each point.
      objectives: the score that decides, and costs beside it: ('fid', 'macs'). 'mean_iou' and the
        other scores of segmentation say that segmentation networks are trained.
      protocol: a name in configs/protocols, or a gin file, that scores all trainings; None: the
        experiment's own.
      details: {title: fields of an evaluation's record} of more columns: the mean of these fields
        at the last step, {'IoU of the animals': ('class_iou/cat', 'class_iou/dog')}.
      sampler: 'grid' (every point), or one of SAMPLERS, which draws `points` of them.
      pruner: ends trainings that fall behind, by their score so far; None: none.
      points: how many a sampler draws.
      sampler_seed: of the sampler.
      name: of the study; None: the file's.

    Raises:
      ValueError: no axes or two of one name, seeds that repeat, a setting that two axes have, a
        grid over a range, a sampler without `points`, a pruner with several objectives, details
        that aren't lists, or a protocol or an estimate of memory for segmentation, which has none.
    """

    gin_files: Sequence[str] = ()
    gin_params: Sequence[str] = ()
    axes: Sequence[Axis] = ()
    seeds: Sequence[int] = (0, 1, 2)
    objectives: Sequence[str] = ("fid",)
    protocol: str | None = None
    details: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    sampler: str = "grid"
    pruner: str | None = None
    points: int | None = None
    sampler_seed: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Sweep: axes must be there, and differ in name; got {names}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Sweep: seeds must be there, and differ; got {list(self.seeds)}.")
        bound = [name for axis in self.axes for name in (*axis.bindings, *axis.tied)]
        twice = sorted({name for name in bound if bound.count(name) > 1})
        if twice:
            raise ValueError(f"Sweep: a setting must belong to one axis, got twice: {twice}.")
        if not self.objectives or self.objectives[0] in COSTS:
            raise ValueError(
                f"Sweep: objectives must begin with a score, got {list(self.objectives)}."
            )
        if self.pruner and len(self.objectives) > 1:
            raise ValueError(
                f"Sweep: pruner must be None with several objectives, got {self.pruner!r}."
            )
        self._check_sampler()
        _check_details(self.details)
        if self.of_segmentation and (self.protocol or "memory_bytes" in self.objectives):
            raise ValueError(
                "Sweep: segmentation is tested as its gin files say, and its memory isn't "
                f"estimated: protocol must be None, got {self.protocol!r}, and objectives without "
                f"'memory_bytes', got {list(self.objectives)}."
            )

    def _check_sampler(self):
        ranges = [axis.name for axis in self.axes if axis.is_range]
        if self.sampler == "grid" and (ranges or self.points):
            raise ValueError(
                "Sweep: a grid takes every value there is, so axes must have values and points "
                f"must be None; got ranges of {ranges}, points={self.points}. Or choose a sampler: "
                f"{', '.join(SAMPLERS[1:])}."
            )
        if self.sampler != "grid" and not self.points:
            raise ValueError(
                f"Sweep: points must say how many {self.sampler} draws, got {self.points}."
            )

    @property
    def score(self) -> str:
        """The score that decides, a field of evaluations."""
        return self.objectives[0]

    @property
    def better(self) -> str:
        """'lower' or 'higher'."""
        return next(score.better for score in ALL_SCORES if score.name == self.score)

    @property
    def of_segmentation(self) -> bool:
        """Whether segmentation networks are trained, and not GANs."""
        return self.score in {score.name for score in SEGMENTATION_SCORES}

    @property
    def seeds_in_one_trial(self) -> bool:
        """Whether a trial is a point with all its seeds, not one of them: a sampler is to learn
        from their mean, and a pruner over seeds needs them together.
        """
        return self.sampler != "grid" or self.pruner == "wilcoxon"

    def point(self, values: Mapping[str, Any]) -> Point:
        """The point with these values of the axes.

        Raises:
          ValueError: two axes set the same.
        """
        settings = [text for axis in self.axes for text in axis.settings(values[axis.name])]
        files = [text for text in settings if text.endswith(".gin")]
        params = [text for text in settings if not text.endswith(".gin")]
        protocol = self.protocol
        if protocol and not protocol.endswith(".gin"):
            protocol = f"configs/protocols/{protocol}.gin"
        names = [text.split("=")[0].strip() for text in params]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Sweep: a setting must belong to one axis, got twice: {twice}.")
        return Point(
            values={axis.name: values[axis.name] for axis in self.axes},
            gin_files=(*self.gin_files, *files, *([protocol] if protocol else [])),
            gin_params=(*self.gin_params, *params),
        )

    def grid(self) -> Iterator[Point]:
        """Every point; of ranges both ends."""
        options = [[axis.low, axis.high] if axis.is_range else axis.options() for axis in self.axes]
        names = [axis.name for axis in self.axes]
        for values in itertools.product(*options):
            yield self.point(dict(zip(names, values, strict=True)))

    def num_points(self) -> int:
        """How many points are trained."""
        return self.points or math.prod(len(axis.options()) for axis in self.axes)

    def num_trials(self) -> int:
        """How many trials a study of it has."""
        return self.num_points() * (1 if self.seeds_in_one_trial else len(self.seeds))

    def as_json(self) -> dict[str, Any]:
        """What decides its trials, in a form that JSON has."""
        return {
            **{
                field.name: _plain(getattr(self, field.name))
                for field in dataclasses.fields(self)
                if field.name not in ("axes", "name", "details")
            },
            "axes": {axis.name: _plain(dataclasses.asdict(axis)) for axis in self.axes},
        }


def _check_details(details):
    known = isinstance(details, Mapping) and all(
        isinstance(fields, list | tuple)
        and fields
        and all(isinstance(name, str) for name in (title, *fields))
        for title, fields in details.items()
    )
    if not known:
        raise ValueError(f"Sweep: details must be lists of fields by title, got {details!r}.")


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes another sweep of a definition, a line each; both as `Sweep.as_json` gives them.

    More values, choices, seeds and points make the same sweep larger, and are no difference.
    """
    lines = []
    for name in sorted(before.keys() | now.keys()):
        there, here = before.get(name), now.get(name)
        if name == "axes" and there and here:
            lines += _differences_of_axes(there, here)
        elif not (there == here or _is_larger(name, there, here)):
            lines.append(f"{name} = {here!r}, but {there!r} there")
    return lines


def _differences_of_axes(there, here):
    if there.keys() != here.keys():
        return [f"axes {sorted(here)}, but {sorted(there)} there"]
    return [
        f"{axis}: {name} = {here[axis][name]!r}, but {there[axis][name]!r} there"
        for axis in there
        for name in there[axis]
        if there[axis][name] != here[axis][name]
        and not _is_larger(name, there[axis][name], here[axis][name])
    ]


def _is_larger(name, there, here):
    """Whether a part of a definition has only grown."""
    if there is None or here is None:
        return False
    if name in ("values", "seeds"):
        return all(value in here for value in there)
    if name == "choices":
        return all(key in here and here[key] == there[key] for key in there)
    return name == "points" and here >= there
