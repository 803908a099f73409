"""Trains every point of a sweep and compares them in one table and one page.

    python scripts/sweep.py --sweep=configs/sweeps/digits_dim_rank.gin \\
        --output_dir=runs/digits_dim_rank --data_dir=data --workers=2

Each training is a run of scripts/train.py, or of scripts/segment.py where the score is
segmentation's, in a folder of its own inside output_dir, named by its point:
rank=16,dim=128,seed=1. Ends with sweep.html, sweep.csv and sweep.png in output_dir. The same
command goes on where it was interrupted, and elsewhere, with the same --storage and --output_dir,
joins in. docs/sweeps.md says more.
"""

import functools
import os
import subprocess
import sys
import time

from absl import flags
from tqdm import tqdm

from hamgan import choices
from hamgan.cli import common, lazily, paths
from hamgan.run.folder import Folder

with lazily.imports():
    from hamgan import signals
    from hamgan.benchmarks import measure
    from hamgan.cli import configuration, sweep_kinds
    from hamgan.run import history
    from hamgan.sweeps import emit, page, results, storage, study, trial, worker

FLAGS = flags.FLAGS
# The flags that --emit writes into its commands.
EMITTED = ("sweep", "gin_param", "output_dir", "data_dir", "storage", "accelerator", "workers")


# Points are built in processes of their own, which leaves accelerators to the trainings.


def build_job(*, kind, points, replicas, data_dir, fields=()):
    """Yields for each of [(gin_files, gin_params), ...] its facts, or {'error': why not}.

    Args:
      kind: a name in `sweep_kinds.KINDS`.
      points, replicas, data_dir: as of `build`.
      fields: of `Sweep.details`.
    """
    import tensorflow as tf

    kind = sweep_kinds.KINDS[kind]

    for files, params in points:
        try:
            experiment, settings = kind.load(files, params)
            kind.check_fields(experiment, fields, data_dir=data_dir)
            trainer = kind.build(experiment, replicas=replicas, data_dir=data_dir)
            yield {
                "steps": experiment.schedule.num_steps,
                "batch_size": trainer.batch_size,
                **kind.count(trainer),
                "settings": settings,
            }
        except (ValueError, tf.errors.OpError, TypeError) as error:
            yield {"error": str(error)}


# Points that one process builds. XLA keeps what it was given to compile until the process ends: 65
# MB a point even of the digits' networks.
_POINTS_OF_A_PROCESS = 20


def _answers(points, **arguments):
    """Yields what `build_job` says of each point."""
    environment = {**measure.MEMORY_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "-1"}
    for start in range(0, len(points), _POINTS_OF_A_PROCESS):
        some = points[start : start + _POINTS_OF_A_PROCESS]
        job = {"points": [[list(p.gin_files), list(p.gin_params)] for p in some], **arguments}
        yield from measure.in_child(build_job, job, environment=environment)


def build(points, *, kind, replicas, data_dir, fields=(), progress=True):
    """{name of a point: its facts} of points that can all be built.

    Args:
      points: the `Point`s.
      kind: a name in `sweep_kinds.KINDS`.
      replicas: which batches are to be cut for.
      data_dir: of the data sets, which are looked into too; None: they aren't.
      fields: of evaluations' records that the sweep's table will show.
      progress: whether a bar is shown.

    Raises:
      ValueError: some can't; all of them are listed.
    """
    found = {}
    answers = _answers(points, kind=kind, replicas=replicas, data_dir=data_dir, fields=fields)
    bar = tqdm(
        zip(points, answers, strict=True),
        total=len(points),
        unit="point",
        desc="building",
        disable=not progress or not points,
    )
    try:
        for point, facts in bar:
            found[point.name] = facts
    except measure.ChildError as error:
        raise ValueError(f"{points[len(found)].name} can't be built: {error}") from error
    wrong = [f"{name}: {facts['error']}" for name, facts in found.items() if "error" in facts]
    if wrong:
        raise ValueError("These points can't be built:\n  " + "\n  ".join(wrong))
    return found


def _gpus_here():
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _replicas(workers):
    """The GPUs that a training here has, at least 1."""
    count = _gpus_here()
    return max(1, count // workers if 1 < workers <= count else count)


def main():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = configuration.load_sweep(FLAGS.sweep, gin_params=FLAGS.gin_param)
    if not FLAGS.worker:
        _announce(sweep)
    points = list(sweep.grid())
    build_here = functools.partial(
        build,
        kind=sweep_kinds.name_of(sweep),
        replicas=FLAGS.replicas or _replicas(FLAGS.workers),
        data_dir=None if FLAGS.dry_run or FLAGS.emit else FLAGS.data_dir,
        fields=[name for names in sweep.details.values() for name in names],
    )
    if FLAGS.dry_run:
        _print_costs(build_here(points))
        return
    if FLAGS.emit:
        # Before minutes of building: it may be refused.
        text = emit.text(FLAGS.emit, sweep, flags={name: FLAGS[name].value for name in EMITTED})
        build_here(points)
        print(text)
        return
    if not FLAGS.output_dir:
        raise ValueError("--output_dir must say where the trainings go.")
    url = FLAGS.storage or storage.default_url(FLAGS.output_dir)
    opened = storage.open_storage(url, heartbeat=FLAGS.heartbeat)
    found = study.open_study(sweep, storage=opened, output_dir=FLAGS.output_dir)
    if FLAGS.status:
        print("\n".join(_status(sweep, found, FLAGS.output_dir)))
        return
    if FLAGS.worker:
        flags_of_training = [
            f"--{name}={FLAGS[name].value}" for name in ("data_dir", "accelerator")
        ]
        _work(
            sweep,
            found,
            build=build_here,
            flags=flags_of_training,
            has_heartbeat=not storage.is_journal(url),
            environment=_threads(FLAGS.threads, FLAGS.workers),
            **{name: FLAGS[name].value for name in ("output_dir", "trainer", "heartbeat", "wait")},
        )
        return
    places = dict(storage=opened, output_dir=FLAGS.output_dir, where=storage.shown(url))
    found = settle(sweep, found, points, build=build_here, **places)
    study.enqueue(found, sweep, retry_failed=FLAGS.retry_failed)
    if FLAGS.workers:
        with signals.Interruption() as interruption:
            _lead(sweep, found, interruption, workers=FLAGS.workers, output_dir=FLAGS.output_dir)
    _publish(sweep, found, FLAGS.output_dir)


def _announce(sweep):
    print(
        f"Sweep {sweep.name}: {sweep.num_points()} points, seeds "
        f"{', '.join(map(str, sweep.seeds))}, {sweep.num_trials()} trials",
        flush=True,
    )


def _print_costs(facts):
    names = ("steps", *results.COST_COLUMNS)
    for name, of in facts.items():
        counted = ", ".join(f"{key} {of[key]:,}" for key in names if key in of)
        print(f"{name}: {counted}")
    print("Every point can be built. Nothing was trained.")


def settle(sweep, found, points, *, build, **places):
    """The study to go on with, when the points that it knows are the same, and the others are
    built: `study.settle`, whose arguments `places` are.
    """
    known = study.point_facts(found)
    kind = sweep_kinds.KINDS[sweep_kinds.name_of(sweep)]
    study.check_settings(
        found,
        {
            point.name: kind.load(point.gin_files, point.gin_params)[1]
            for point in points
            if point.name in known
        },
    )
    facts = build([point for point in points if point.name not in known])
    return study.settle(sweep, found, facts=facts, **places)


# Workers


def _threads(threads, workers):
    """Environment that gives each training its share of the cores, or so many threads."""
    if threads is None and workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
    if not threads:
        return {}
    found = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"), str(threads))
    # With one alone the input waits for the step that it feeds, and is taken for slow.
    return {**found, "TF_NUM_INTEROP_THREADS": str(max(2, threads))}


def _gpus(index, workers):
    """Environment that gives a worker its share of the GPUs, where there are enough."""
    count = _gpus_here()
    if not 1 < workers <= count or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(index, count, workers)))}


def _work(sweep, found, *, build, trainer, heartbeat, has_heartbeat, wait, **trainings):
    """One worker of several.

    Args:
      sweep, found: the sweep and its study.
      build: function (points, progress) -> what is known of them.
      trainer: path of a script that trains; None: this project's.
      heartbeat: seconds between signs of life.
      has_heartbeat: whether the storage notices itself that a worker has died.
      wait: whether to stay while others train.
      **trainings: further arguments of `trial.Trainings`.
    """

    def facts(point):
        known = study.point_facts(found)
        if point.name not in known:
            known = build([point], progress=False)
            found.set_user_attr(study.POINT + point.name, known[point.name])
        return known[point.name]

    kind = sweep_kinds.KINDS[sweep_kinds.name_of(sweep)]
    with signals.Interruption() as interruption:
        objective = trial.Trainings(
            sweep=sweep,
            command=kind.command(trainer),
            seed=kind.seed,
            facts=facts,
            interruption=interruption,
            beat=heartbeat,
            **trainings,
        )
        worker.work(
            found,
            objective,
            lost=worker.Lost(found, grace=5 * heartbeat, has_heartbeat=has_heartbeat),
            interruption=interruption,
            wait=wait,
            say=lambda text: print(text, flush=True),
        )


def _lead(sweep, found, interruption, *, workers, output_dir):
    """Starts the workers and shows how far they are."""
    start = "from hamgan.cli import sweep; sweep.run()"
    words = [sys.executable, "-c", start, *sys.argv[1:], "--worker"]
    os.makedirs("sweep_logs" if "://" in output_dir else output_dir, exist_ok=True)
    processes = [
        subprocess.Popen(words, env={**os.environ, **_gpus(index, workers)})
        for index in range(workers)
    ]
    bar = tqdm(unit="step", mininterval=0.5 if sys.stderr.isatty() else 15, smoothing=0.05)
    try:
        with bar:
            while any(process.poll() is None for process in processes):
                if interruption.signal:
                    for process in processes:
                        process.terminate()
                    for process in processes:
                        process.wait()
                    break
                _show(bar, sweep, found, output_dir)
                time.sleep(2)
            _show(bar, sweep, found, output_dir)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    codes = [process.returncode for process in processes]
    if any(codes):
        print(f"Workers ended with status {codes}; the same command goes on.", flush=True)


def _steps(sweep, found, output_dir):
    """(steps that are done, steps of all trainings), of those that are known."""
    facts = study.point_facts(found)
    done = total = 0
    for of in found.get_trials(deepcopy=False):
        values = of.user_attrs.get(study.VALUES)
        if of.state.name == "FAIL" or values is None:
            continue
        point = sweep.point(values)
        for seed in of.user_attrs[study.SEEDS]:
            steps = facts.get(point.name, {}).get("steps", 0)
            total += steps
            if of.state.name in ("COMPLETE", "PRUNED"):
                done += steps
            elif of.state.name == "RUNNING":
                folder = os.path.join(output_dir, point.folder(seed))
                done += max(0, history.History(Folder(folder).metrics).last_step())
    return done, total


def _show(bar, sweep, found, output_dir):
    import optuna

    try:
        (done, total), states = _steps(sweep, found, output_dir), study.counts(found)
    except optuna.exceptions.StorageInternalError:
        return
    ended = states["complete"] + states["pruned"] + states["failed"]
    words = f"trials {ended}/{sweep.num_trials()}, {states['failed']} failed"
    bar.set_postfix_str(words, refresh=False)
    if total and bar.total != total:
        # What earlier calls have done doesn't tell how fast this one is.
        bar.total, bar.initial, bar.n = total, done, done
    bar.update(max(0, done - bar.n))


def _status(sweep, found, output_dir):
    """Lines that say how far the study is."""
    import optuna

    states = study.counts(found)
    done, total = _steps(sweep, found, output_dir)
    lines = [
        f"{found.study_name}: {sweep.num_trials()} trials: "
        + ", ".join(f"{count} {state}" for state, count in states.items()),
    ]
    if total:
        lines.append(f"{done:,} of {total:,} steps ({done / total:.0%})")
    ended = [
        of for of in found.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    ]
    left = states["waiting"] + states["running"]
    if ended and left:
        seconds = sum(of.duration.total_seconds() for of in ended) / len(ended)
        rounds = -(-left // max(1, states["running"]))
        lines.append(
            f"A trial took {seconds / 60:.1f} minutes; about {seconds * rounds / 60:.0f} minutes "
            f"are left with {max(1, states['running'])} at once"
        )
    lines += [f"failed: {name}: {reason}" for name, reason in results.failures(found)]
    return lines


def _publish(sweep, found, output_dir):
    rows = results.collect(sweep, found, output_dir)
    written = page.write(sweep, found, rows, output_dir)
    print(page.as_text(sweep, rows))
    for name, reason in results.failures(found):
        print(f"failed: {name}: {reason}")
    print("\n".join(written))


def define_flags():
    """Defines the flags of the command."""
    paths.define_path(
        "sweep",
        None,
        "Gin file of the sweep, or the name of a shipped one in configs/sweeps: digits_rank.",
        required=True,
    )
    flags.DEFINE_multi_string(
        "gin_param",
        [],
        'One more binding of the sweep, e.g. "sweeps.Sweep.seeds = [0, 1]". May be repeated.',
    )
    paths.define_path("output_dir", None, "Folder of the trainings and of the comparison.")
    paths.define_path("data_dir", "data", "Folder of the prepared TFDS data sets.")
    flags.DEFINE_string(
        "storage",
        None,
        "Where the study is: a URL like postgresql://USER@HOST/DATABASE, or the path of a journal "
        "file in a folder that all share; default: SQLite in output_dir.",
    )
    flags.DEFINE_integer(
        "workers", 1, "Processes that train, one training each at a time; 0: only the page.", 0
    )
    flags.DEFINE_integer(
        "threads", None, "Of each training on a CPU; default: the cores shared among workers.", 1
    )
    flags.DEFINE_enum("accelerator", "auto", choices.ACCELERATORS, "What a training computes on.")
    flags.DEFINE_integer(
        "replicas", None, "Which batches are to be cut for; default: one, or the GPUs here.", 1
    )
    flags.DEFINE_bool("dry_run", False, "Build every point, say what it costs, and train nothing.")
    flags.DEFINE_bool("status", False, "Print how far the sweep is and what is left.")
    flags.DEFINE_bool("retry_failed", False, "Train again what has failed with an error.")
    flags.DEFINE_bool(
        "wait", True, "Stay while others train, and take up what they leave; else leave."
    )
    flags.DEFINE_enum(
        "emit", None, ("slurm", "tpu"), "Print an array job, or commands for TPUs, and run nothing."
    )
    flags.DEFINE_integer(
        "heartbeat",
        choices.HEARTBEAT_SECONDS,
        "Seconds between signs of life; after twice as many without one a trial is taken up again.",
        1,
    )
    paths.define_path(
        "trainer",
        None,
        "A script of your own with the flags of what trains: scripts/train.py, say.",
    )
    flags.DEFINE_bool("worker", False, "Be one of the workers; for the command itself.")


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__])
    try:
        common.run(main)
    except ModuleNotFoundError as error:
        if error.name not in ("optuna", "sqlalchemy"):
            raise
        sys.exit(
            f"\nERROR: Sweeps need {error.name}, which isn't installed: pip install -e .[sweep]"
        )
