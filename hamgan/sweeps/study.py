"""The Optuna study of a sweep: opened or joined, compared, and filled with trials that wait."""

import importlib.util
import json
import os
import warnings

import optuna
import tensorflow as tf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hamgan.run import records
from hamgan.sweeps.definition import differences

# Attributes of trials.
KEY, VALUES, SEEDS, REASON = "key", "values", "seeds", "reason"
WORKER, BEAT, LEFT = "worker", "beat", "left"
# Attributes of the study.
DEFINITION, POINT = "definition", "point "
_ALIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


def sampler(sweep):
    """The sampler of a sweep; a grid's trials have their values before they begin."""
    seed = sweep.sampler_seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sweep.sampler == "tpe":
            # Workers that run at once are not to draw the same.
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if sweep.sampler == "gp":
            if importlib.util.find_spec("torch") is None:
                raise ValueError(
                    "Sweep: sampler 'gp' needs torch: pip install torch, or another sampler."
                )
            return optuna.samplers.GPSampler(seed=seed)
        if sweep.sampler == "qmc":
            return optuna.samplers.QMCSampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def pruner(sweep):
    """The pruner of a sweep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = {
            None: optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
            "wilcoxon": optuna.pruners.WilcoxonPruner,
        }
        return made[sweep.pruner]()


def distribution(axis):
    """What Optuna knows of an axis."""
    if not axis.is_numeric():
        return CategoricalDistribution(axis.labels())
    if not axis.is_range:
        values = axis.options()
        kind = IntDistribution if all(isinstance(v, int) for v in values) else FloatDistribution
        return kind(min(values), max(values))
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log, step=axis.step or 1)
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def as_parameter(axis, value):
    """A value of an axis as `distribution` has it."""
    if axis.is_numeric():
        return value
    return axis.labels()[axis.options().index(value)]


def suggest(trial, sweep):
    """{axis: value} that a sampler draws for a trial."""
    found = {}
    for axis in sweep.axes:
        kind = distribution(axis)
        if axis.is_range:
            whole = isinstance(kind, IntDistribution)
            draw = trial.suggest_int if whole else trial.suggest_float
            step = {"step": kind.step} if kind.step else {}
            found[axis.name] = draw(axis.name, axis.low, axis.high, log=axis.log, **step)
        else:
            labels = axis.labels()
            drawn = trial.suggest_categorical(axis.name, labels)
            found[axis.name] = axis.options()[labels.index(drawn)]
    return found


def open_study(sweep, *, storage, output_dir):
    """The study of a sweep, begun if it isn't there. What the sweep is, `settle` writes into it.

    Args:
      sweep: the `Sweep`.
      storage: what `storages.open_storage` gives.
      output_dir: the sweep's folder, which keeps the definition too.

    Raises:
      ValueError: a study, or a folder, of that name has other settings; they are listed.
    """
    definition = sweep.as_json()
    path = os.path.join(output_dir, "sweep.json")
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "r") as file:
            _compare(json.load(file).get(DEFINITION, definition), definition, output_dir)
    study = _create(sweep, _newest(sweep.name, storage), storage)
    _compare(study.user_attrs.get(DEFINITION, definition), definition, f"the study {sweep.name!r}")
    return study


def settle(sweep, study, *, storage, output_dir, where=None, facts=None):
    """Writes into a study, and into the sweep's folder, what the sweep is: not before its points
    could be built.

    Args:
      sweep, storage, output_dir: as of `open_study`, after which it is called.
      study: the sweep's.
      where: the storage's URL, for people.
      facts: {name of a point: what was found when it was built} of points that are new.

    Returns:
      The study to go on with.
    """
    definition = sweep.as_json()
    before = study.user_attrs.get(DEFINITION)
    if before and _has_new_choices(before, sweep):
        study = _with_new_choices(sweep, study, storage)
    if before != definition:
        study.set_user_attr(DEFINITION, definition)
    for name, of_point in (facts or {}).items():
        study.set_user_attr(POINT + name, of_point)
    kept = {"study": study.study_name, "storage": where, DEFINITION: definition}
    path = os.path.join(output_dir, "sweep.json")
    records.write_whole(path, json.dumps(kept, indent=1).encode())
    return study


def _create(sweep, name, storage):
    return optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        directions=[
            "minimize" if sweep.better == "lower" else "maximize",
            *("minimize" for _ in sweep.objectives[1:]),
        ],
        sampler=sampler(sweep),
        pruner=pruner(sweep),
    )


# Optuna's choices can't grow: with more of them a sweep goes on in a study of another name, to
# which all that has ended is copied.


def _numbered(name, number):
    return name if number == 1 else f"{name} #{number}"


def _newest(name, storage):
    """The name of the study that a sweep is in by now."""
    there = set() if storage is None else set(optuna.get_all_study_names(storage))
    number = 1
    while _numbered(name, number + 1) in there:
        number += 1
    return _numbered(name, number)


def _has_new_choices(before, sweep):
    return any(
        isinstance(distribution(axis), CategoricalDistribution)
        and _options(before["axes"][axis.name]) != axis.options()
        for axis in sweep.axes
    )


def _options(axis):
    """The options of an axis of a definition."""
    return list(axis["values"] if axis["choices"] is None else axis["choices"])


def _with_new_choices(sweep, before, storage):
    found = before.get_trials(deepcopy=False)
    if any(trial.state == TrialState.RUNNING for trial in found):
        raise ValueError(
            f"The study {before.study_name!r} can't get more choices while trials run: stop the "
            "workers (Ctrl-C, or SIGTERM) first."
        )
    number = int((before.study_name.removeprefix(sweep.name) or " #1").removeprefix(" #"))
    study = _create(sweep, _numbered(sweep.name, number + 1), storage)
    for name, value in before.user_attrs.items():
        study.set_user_attr(name, value)
    kinds = {axis.name: distribution(axis) for axis in sweep.axes}
    for trial in found:
        if trial.state.is_finished():
            study.add_trial(
                optuna.create_trial(
                    state=trial.state,
                    values=trial.values,
                    params=trial.params,
                    distributions={
                        name: kinds.get(name, kind) for name, kind in trial.distributions.items()
                    },
                    user_attrs=trial.user_attrs,
                    intermediate_values=trial.intermediate_values,
                )
            )
    return study


def _compare(before, now, where):
    lines = differences(before, json.loads(json.dumps(now)))
    if lines:
        raise ValueError(
            f"{where} belongs to a sweep with other settings:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGo on with those, or choose another --output_dir and sweeps.Sweep.name. (More "
            "values, choices, seeds and points may be added.)"
        )


def point_facts(study):
    """{name of a point: what was found when it was built: costs, steps, settings}."""
    return {
        name.removeprefix(POINT): value
        for name, value in study.user_attrs.items()
        if name.startswith(POINT)
    }


def check_settings(study, settings):
    """Compares the settings of points with those that the study was begun with.

    Args:
      settings: {name of a point: {binding: value as text}}.

    Raises:
      ValueError: a gin file now says something else.
    """
    facts = point_facts(study)
    for name, now in settings.items():
        before = facts.get(name, {}).get("settings", now)
        lines = [
            f"  {binding} = {now.get(binding, '(not set)')}, but "
            f"{before.get(binding, '(not set)')} there"
            for binding in sorted(before.keys() | now.keys())
            if before.get(binding) != now.get(binding)
        ]
        if lines:
            raise ValueError(
                f"The study {study.study_name!r} was begun with other settings; {name}:\n"
                + "\n".join(lines)
                + "\nGo on with those, or choose another --output_dir and sweeps.Sweep.name."
            )


# The queue


def jobs(sweep):
    """[(key, values of the axes or None, seeds)]: all trials that a sweep should have.

    Seed by seed, so that a sweep that is broken off has compared all points.
    """
    together = f",seed={'+'.join(map(str, sweep.seeds))}"
    if sweep.sampler != "grid":
        return [(f"#{i}{together}", None, tuple(sweep.seeds)) for i in range(sweep.points)]
    points = list(sweep.grid())
    if sweep.seeds_in_one_trial:
        return [(p.name + together, dict(p.values), tuple(sweep.seeds)) for p in points]
    return [(p.folder(seed), dict(p.values), (seed,)) for seed in sweep.seeds for p in points]


def enqueue(study, sweep, *, retry_failed=False):
    """Adds the trials that are missing, to wait for a worker; returns how many.

    One that failed with a reason is missing only with `retry_failed`.
    """
    there = {}
    for trial in study.get_trials(deepcopy=False):
        there.setdefault(trial.user_attrs.get(KEY), []).append(trial)
    added = 0
    for key, values, seeds in jobs(sweep):
        counted = [
            trial
            for trial in there.get(key, ())
            if trial.state in _ALIVE or (trial.user_attrs.get(REASON) and not retry_failed)
        ]
        if not counted:
            study.add_trial(_waiting(sweep, key, values or _drawn(there, key), seeds))
            added += 1
    return added


def _drawn(there, key):
    """The values of an earlier trial of a sampler's, which is to get more seeds; None: none."""
    slot = key.partition(",")[0]
    for other, trials in there.items():
        if other and other.partition(",")[0] == slot:
            for trial in trials:
                if VALUES in trial.user_attrs:
                    return trial.user_attrs[VALUES]
    return None


def _waiting(sweep, key, values, seeds):
    attributes = {KEY: key, SEEDS: list(seeds)}
    parameters, distributions = {}, {}
    if values is not None:
        attributes[VALUES] = values
        for axis in sweep.axes:
            parameters[axis.name] = as_parameter(axis, values[axis.name])
            distributions[axis.name] = distribution(axis)
        if not sweep.seeds_in_one_trial:
            parameters["seed"] = seeds[0]
            distributions["seed"] = IntDistribution(min(sweep.seeds), max(sweep.seeds))
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=parameters,
        distributions=distributions,
        user_attrs=attributes,
    )


def is_duplicate(study, trial):
    """Whether an earlier trial does the same: two processes may have filled the queue at once."""
    key = trial.user_attrs.get(KEY)
    return key is None or any(
        other.number < trial.number and other.user_attrs.get(KEY) == key and other.state in _ALIVE
        for other in study.get_trials(deepcopy=False)
    )


def is_followed(study, trial):
    """Whether a trial that has failed is done, or to be done, by another one."""
    return any(
        other.user_attrs.get(KEY) == trial.user_attrs.get(KEY) and other.state in _ALIVE
        for other in study.get_trials(deepcopy=False)
    )


def leave(study, trial, *, count=0):
    """Puts a trial that was broken off back into the queue, for whoever comes.

    Args:
      study: the study.
      trial: a `FrozenTrial` that has failed.
      count: how often its training has ended early by itself.
    """
    attributes = {k: v for k, v in trial.user_attrs.items() if k in (KEY, VALUES, SEEDS)}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**attributes, LEFT: count},
        )
    )


def counts(study):
    """{state: number of trials} of those that count: not of what was taken up again."""
    found = dict.fromkeys(("waiting", "running", "complete", "pruned", "failed"), 0)
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.FAIL:
            found["failed"] += REASON in trial.user_attrs
        else:
            found[trial.state.name.lower()] += 1
    return found
