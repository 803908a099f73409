"""Workers of a sweep as processes: TensorFlow is imported once for all of them."""

import json
import pathlib
import sys

import forked

from hamgan.signals import Interruption
from hamgan.sweeps import Axis, Sweep, storage, study, trial, worker

ROOT = pathlib.Path(__file__).parent.parent
FAKE = str(ROOT / "tests" / "fake_trainer.py")
FACTS = {"steps": 50, "batch_size": 20, "macs": 7, "parameters": 3}


def sweep(ranks, **options):
    if ranks:
        axis = Axis(name="rank", bindings=["G/context.Hamburger.rank"], values=list(ranks))
        options["axes"] = [axis]
    return Sweep(**{"seeds": (0, 1), "name": "test", **options})


def open_study(made, folder, url, *, heartbeat=1):
    opened = storage.open_storage(url, heartbeat=heartbeat, patience=60)
    found = study.open_study(made, storage=opened, output_dir=str(folder))
    return study.settle(made, found, storage=opened, output_dir=str(folder), where="test")


def work(made, folder, url, behaviour, *, heartbeat=1):
    """A worker, until no trial is left."""
    found = open_study(made, folder, url, heartbeat=heartbeat)
    for point in made.grid():
        found.set_user_attr(study.POINT + point.name, FACTS)
    study.enqueue(found, made)
    with Interruption() as interruption:
        objective = trial.Trainings(
            sweep=made,
            output_dir=str(folder),
            command=[sys.executable, FAKE],
            seed="trainer.Trainer.seed",
            environment={"FAKE": json.dumps(behaviour)},
            facts=lambda point: FACTS,
            interruption=interruption,
            poll=0.1,
            beat=heartbeat,
        )
        lost = worker.Lost(found, grace=4 * heartbeat, has_heartbeat=not storage.is_journal(url))
        worker.work(found, objective, lost=lost, interruption=interruption, poll=0.2)


def workers():
    """Context of start(*args, **kwargs) of a process that runs `work`."""
    return forked.nursery(work)
