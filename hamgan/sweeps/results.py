"""What a sweep has found: a row for each point, from its runs' records; differences by seed."""

import csv
import dataclasses
import io
import math
import os
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from hamgan.run.folder import Folder
from hamgan.run.history import History, is_number
from hamgan.sweeps import study as studies

COST_COLUMNS = (
    "parameters",
    "macs",
    "memory_bytes",
    "module_parameters",
    "module_macs",
    "module_memory_bytes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training of a point.

    Attributes:
      seed: its.
      folder: its.
      step: of its newest evaluation; None: there is none.
      score: at that step, None where it isn't finite.
      curve: {step: score}.
      step_seconds: measured, the median of its host calls; None: not known.
      memory_gib: peak of its process; None: not known.
      protocol: what its score was measured under, in words.
      details: {title: number} of `Sweep.details`, at that step.
      state: 'complete', or how far it came.
    """

    seed: int
    folder: str
    step: int | None
    score: float | None
    curve: Mapping[int, float]
    step_seconds: float | None
    memory_gib: float | None
    protocol: str
    details: Mapping[str, float]
    state: str


def read_run(folder, sweep, facts, *, seed):
    """The `Run` that a folder holds.

    Args:
      folder: of the run.
      sweep: the `Sweep`.
      facts: of its point: 'steps' and 'batch_size'.
      seed: its.
    """
    history = History(Folder(folder).metrics)
    evaluations = history.of_kind("evaluation")
    curve = history.scores(sweep.score)
    step = max((record["step"] for record in evaluations), default=None)
    train = history.of_kind("train")
    # The first call of a process holds its compilation: a median leaves it aside, where there are
    # more.
    rates = [r["images_per_second"] for r in train if is_number(r.get("images_per_second"))]
    memory = [r["memory/host_gib"] for r in train if is_number(r.get("memory/host_gib"))]
    words = [r["protocol"].get("words", "") for r in evaluations if "protocol" in r]
    steps = facts.get("steps")
    is_complete = step is not None and steps is not None and step >= steps
    return Run(
        seed=seed,
        folder=folder,
        step=step,
        score=curve.get(step),
        curve=curve,
        step_seconds=(
            facts["batch_size"] / statistics.median(rates)
            if rates and facts.get("batch_size")
            else None
        ),
        memory_gib=max(memory, default=None),
        protocol=words[-1] if words else "",
        details=_details(sweep, evaluations, step),
        state="complete" if is_complete else f"step {max(history.last_step(), 0)}",
    )


def _details(sweep, evaluations, step):
    newest = [record for record in evaluations if record["step"] == step][-1:]
    found = {}
    for title, fields in sweep.details.items():
        values = [_field(record, name) for record in newest for name in fields]
        # A class that no image of the split has, has no IoU.
        if numbers := [value for value in values if is_number(value)]:
            found[title] = statistics.fmean(numbers)
    return found


def _field(record, name):
    """'class_iou/cat': the part 'cat' of the field 'class_iou'; or the field of that name."""
    first, _, rest = name.partition("/")
    part = record.get(first)
    return part.get(rest) if isinstance(part, Mapping) else record.get(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A point with its runs.

    Attributes:
      name: of the point.
      values: {axis: value}.
      runs: its `Run`s, by seed; those that were pruned or failed among them.
      facts: what is known of the point: costs.
    """

    name: str
    values: Mapping[str, Any]
    runs: list[Run]
    facts: Mapping[str, Any]

    def scores(self):
        """{seed: score} of the runs that are complete."""
        return {
            run.seed: run.score
            for run in self.runs
            if run.state == "complete" and is_number(run.score)
        }

    @property
    def mean(self):
        """Of the scores, None without any."""
        scores = list(self.scores().values())
        return statistics.fmean(scores) if scores else None

    @property
    def std(self):
        """Of the scores, with n - 1; None of fewer than two."""
        scores = list(self.scores().values())
        return statistics.stdev(scores) if len(scores) > 1 else None

    def detail(self, title):
        """The mean of one of `Sweep.details` over the complete runs; None: not known."""
        known = [run.details.get(title) for run in self.runs if run.state == "complete"]
        numbers = [value for value in known if value is not None]
        return statistics.fmean(numbers) if numbers else None

    @property
    def step_seconds(self):
        """Mean over the runs; None: not known."""
        found = [run.step_seconds for run in self.runs if run.step_seconds]
        return statistics.fmean(found) if found else None

    def costs(self):
        """{name: number} of what is known of its costs, measured step time and memory too."""
        memory = [run.memory_gib for run in self.runs if run.memory_gib]
        found = {name: self.facts.get(name) for name in COST_COLUMNS}
        found["step_seconds"] = self.step_seconds
        found["host_gib"] = max(memory, default=None)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How a point differs from another one, by seed.

    Attributes:
      mean: of score - score of the other, over the seeds that both have.
      low, high: its 95 % confidence interval (Student's t); None of fewer than two seeds.
      seeds: how many.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def exceeds_noise(self):
        """Whether the interval leaves 0 out; None: one seed doesn't say."""
        return None if self.low is None else self.low > 0 or self.high < 0


def difference(row, other):
    """The `Difference` of two rows; None where no seed is complete in both."""
    mine, theirs = row.scores(), other.scores()
    found = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    if not found:
        return None
    mean, count = statistics.fmean(found), len(found)
    if count < 2:
        return Difference(mean=mean, low=None, high=None, seeds=count)
    quantile = float(scipy.stats.t.ppf(0.975, count - 1))
    half = quantile * statistics.stdev(found) / math.sqrt(count)
    return Difference(mean=mean, low=mean - half, high=mean + half, seeds=count)


def collect(sweep, study, output_dir):
    """The rows of all points that the study knows values of, the best first, those without a score
    last.
    """
    facts = studies.point_facts(study)
    found = {}
    for trial in study.get_trials(deepcopy=False):
        values = trial.user_attrs.get(studies.VALUES)
        if values is None:
            continue
        point = sweep.point(values)
        known = found.setdefault(point.name, (point, set()))
        known[1].update(trial.user_attrs[studies.SEEDS])
    rows = []
    for name, (point, seeds) in found.items():
        of_point = facts.get(name, {})
        runs = [
            read_run(os.path.join(output_dir, point.folder(seed)), sweep, of_point, seed=seed)
            for seed in sorted(seeds)
        ]
        rows.append(Row(name=name, values=point.values, runs=runs, facts=of_point))
    sign = 1 if sweep.better == "lower" else -1
    return sorted(rows, key=lambda row: math.inf if row.mean is None else sign * row.mean)


def pareto(rows, cost, *, better="lower"):
    """The rows that no other one is better and cheaper than, the cheapest first."""
    sign = 1 if better == "lower" else -1
    known = [row for row in rows if row.mean is not None and row.costs().get(cost) is not None]
    front, best = [], math.inf
    for row in sorted(known, key=lambda row: (row.costs()[cost], sign * row.mean)):
        if sign * row.mean < best:
            front.append(row)
            best = sign * row.mean
    return front


def table(sweep, rows):
    """(header, lines) of a table: a line a point, numbers as they are, None where there is none."""
    score = sweep.score
    header = [
        *(axis.name for axis in sweep.axes),
        f"{score}_mean",
        f"{score}_std",
        "seeds",
        "difference_to_best",
        "difference_low",
        "difference_high",
        *sweep.details,
        *COST_COLUMNS,
        "step_seconds",
        "host_gib",
    ]
    lines = []
    for row in rows:
        against = difference(row, rows[0]) if row is not rows[0] else None
        lines.append(
            [
                *(row.values[axis.name] for axis in sweep.axes),
                row.mean,
                row.std,
                len(row.scores()),
                *((against.mean, against.low, against.high) if against else (None,) * 3),
                *map(row.detail, sweep.details),
                *row.costs().values(),
            ]
        )
    return header, lines


def as_csv(sweep, rows):
    """The table as text; floats with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header, lines = table(sweep, rows)
    writer.writerow(header)
    writer.writerows([["" if cell is None else cell for cell in line] for line in lines])
    return text.getvalue()


def failures(study):
    """[(name, reason)] of the trials that failed, and weren't done again."""
    done = {
        trial.user_attrs.get(studies.KEY)
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "FAIL"
    }
    return [
        (trial.user_attrs[studies.KEY], trial.user_attrs[studies.REASON])
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(studies.REASON) and trial.user_attrs[studies.KEY] not in done
    ]


def pruned(study):
    """The names of the trials that were ended early."""
    return [
        trial.user_attrs[studies.KEY]
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name == "PRUNED"
    ]


def noise(rows):
    """The standard deviation over seeds, pooled over points; None: no point has two."""
    variances = [(row.std**2, len(row.scores()) - 1) for row in rows if row.std is not None]
    if not variances:
        return None
    weights = [weight for _, weight in variances]
    return float(np.sqrt(np.average([value for value, _ in variances], weights=weights)))
