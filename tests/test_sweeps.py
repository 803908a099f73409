"""Workers of a sweep, with a training that is quick: every point once, whatever happens."""

import collections
import contextlib
import csv
import glob
import io
import json
import os
import pathlib
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time

import fake_trainer
import optuna
import pytest
import sweep_jobs
from PIL import Image

from hamgan.run import records
from hamgan.sweeps import Axis, page, results, storage, study, worker
from hamgan.sweeps.trial import Trainings

POSTGRES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1:]


class Postgres:
    """A server of this test's own, on a free port."""

    def __init__(self, folder, programs):
        self.data, self.programs = folder / "data", pathlib.Path(programs)
        with socket.socket() as sock:
            sock.bind(("localhost", 0))
            self.port = sock.getsockname()[1]
        folder.mkdir()
        # It refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self._run("initdb", "-A", "trust", "-U", "sweep", "--no-sync", "--locale=C", "-EUTF8")
        self.url = f"postgresql+psycopg://sweep@localhost:{self.port}/postgres"
        self.log = folder / "log"

    def _run(self, program, *arguments):
        words = [str(self.programs / program), "-D", str(self.data), *arguments]
        subprocess.run(
            words, user=self.user, cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=60
        )

    def start(self):
        options = f"-p {self.port} -k {self.data} -c listen_addresses=localhost -F"
        self._run("pg_ctl", "start", "-w", "-l", str(self.log), "-o", options)

    def stop(self):
        self._run("pg_ctl", "stop", "-m", "fast", "-w")


@pytest.fixture(scope="session")
def postgres():
    """A server of PostgreSQL, which listens."""
    if not POSTGRES:
        pytest.skip("PostgreSQL isn't installed (Debian's package postgresql)")
    if os.getuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("PostgreSQL doesn't run as root, and there is no user postgres")
    pytest.importorskip("psycopg", reason="psycopg isn't installed")
    # pytest's own folders are closed to other users.
    folder = pathlib.Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)
    server = Postgres(folder / "server", POSTGRES[0])
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def place(request, tmp_path):
    """(URL of a storage that is empty, its server or None) of each kind."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        name = f"t{time.monotonic_ns()}"
        import psycopg

        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return server.url.replace("/postgres", f"/{name}"), server
    return {
        "sqlite": f"sqlite:///{tmp_path}/study.db",
        "journal": str(tmp_path / "study.journal"),
    }[request.param], None


@pytest.fixture(scope="module")
def start():
    with sweep_jobs.workers() as starter:
        yield starter


def trials(made, folder, url):
    return sweep_jobs.open_study(made, folder, url).get_trials()


def starts(folder):
    """{training: the steps that it was begun from}."""
    return {
        path.parent.name: list(map(int, path.read_text().split()))
        for path in folder.glob("*/starts")
    }


def states(found):
    return collections.Counter(trial.state.name for trial in found)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It didn't happen in time."
        time.sleep(0.05)


def ended(*processes, seconds=120):
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


def test_two_workers_train_every_point_once(start, place, tmp_path):
    url, _ = place
    made = sweep_jobs.sweep([1, 2, 3])
    both = [start(made, tmp_path, url, {"pause": 0.05}) for _ in range(2)]
    assert ended(*both) == [0, 0]
    found = [t for t in trials(made, tmp_path, url) if t.state.name != "FAIL"]
    keys = [trial.user_attrs["key"] for trial in found]
    assert sorted(keys) == [f"rank={rank},seed={seed}" for rank in (1, 2, 3) for seed in (0, 1)]
    assert states(found) == {"COMPLETE": 6}
    assert starts(tmp_path) == {key: [0] for key in keys}
    for trial in found:
        rank, seed = trial.params["rank"], trial.params["seed"]
        assert trial.value == pytest.approx(fake_trainer.score(rank, seed, 50))
    # Both have worked.
    assert len({trial.user_attrs["worker"].split()[-1] for trial in found}) == 2


def test_a_killed_workers_trial_goes_on_from_its_folder(start, place, tmp_path):
    url, _ = place
    made = sweep_jobs.sweep([1, 2], seeds=(0,))
    # Both workers would fill an empty queue, and which trial then follows which isn't told.
    study.enqueue(sweep_jobs.open_study(made, tmp_path, url), made)
    first, second = (start(made, tmp_path, url, {"pause": 0.6}) for _ in range(2))
    steps = [tmp_path / f"rank={rank},seed=0" / "step" for rank in (1, 2)]
    wait_for(lambda: all(path.exists() for path in steps))
    first.kill()
    assert ended(second) == [0]
    found = trials(made, tmp_path, url)
    complete = [trial.user_attrs["key"] for trial in found if trial.state.name == "COMPLETE"]
    assert sorted(complete) == ["rank=1,seed=0", "rank=2,seed=0"]
    # One was begun again, not from the beginning; the killed worker's training had ended.
    begun = sorted(starts(tmp_path).values(), key=len)
    assert begun[0] == [0] and begun[1][0] == 0 and len(begun[1]) == 2 and begun[1][1] > 0
    (stale,) = [trial for trial in found if trial.state.name == "FAIL"]
    (again,) = [trial for trial in found if trial.system_attrs.get("retry_history")]
    assert again.system_attrs["retry_history"] == [stale.number]
    # No step was written twice, so two trainings never wrote at once.
    for folder in tmp_path.glob("rank=*"):
        kept = [record["step"] for record in records.read(folder / "metrics.jsonl", "train")]
        assert kept == [10, 20, 30, 40, 50]


@contextlib.contextmanager
def away(url, server):
    """The storage is away for ten seconds."""
    if server:
        server.stop()
        time.sleep(10)
        server.start()
        yield
        return
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(10)
        database.execute("ROLLBACK")
    yield


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_a_storage_may_be_away_for_ten_seconds(start, place, tmp_path):
    url, server = place
    made = sweep_jobs.sweep([1, 2], seeds=(0,))
    worker = start(made, tmp_path, url, {"pause": 0.4}, heartbeat=2)
    wait_for((tmp_path / "rank=1,seed=0" / "step").exists)
    with away(url, server):
        assert ended(worker) == [0]
    complete = [t for t in trials(made, tmp_path, url) if t.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["key"] for trial in complete) == [
        "rank=1,seed=0",
        "rank=2,seed=0",
    ]
    assert [list(map(float, t.intermediate_values)) for t in complete] == [
        [10, 20, 30, 40, 50],
        [10, 20, 30, 40, 50],
    ]


@pytest.fixture(scope="module")
def mixed(start, tmp_path_factory):
    """A sweep with a training that raises, one without a number, and one that falls behind."""
    folder = tmp_path_factory.mktemp("mixed")
    made = sweep_jobs.sweep([1, 2, 3, 4, 5, 6, 7, 8], seeds=(0,), pruner="median")
    url = f"sqlite:///{folder}/study.db"
    behaviour = {"error": [2], "nan": [3], "bad": [8], "pause": 0.3}
    assert ended(start(made, folder, url, behaviour)) == [0]
    return made, folder, sweep_jobs.open_study(made, folder, url)


def test_error_nan_and_pruned_each_end_their_trial_alone(mixed):
    made, folder, found = mixed
    by_key = {trial.user_attrs["key"]: trial for trial in found.get_trials()}
    assert len(by_key) == 8 and len(found.get_trials()) == 8
    assert by_key["rank=2,seed=0"].state.name == "FAIL"
    assert by_key["rank=3,seed=0"].state.name == "FAIL"
    assert by_key["rank=8,seed=0"].state.name == "PRUNED"
    assert states(found.get_trials())["COMPLETE"] == 5
    reasons = dict(results.failures(found))
    assert reasons == {
        "rank=2,seed=0": "this rank is out of luck (ended with status 1)",
        "rank=3,seed=0": "fid isn't finite at step 50.",
    }
    # What was pruned was told to save, and not all of it was trained.
    assert int((folder / "rank=8,seed=0" / "step").read_text()) < 50
    assert "Stopped before its end." in (folder / "logs" / "rank=8,seed=0.log").read_text()


def test_the_page_says_what_the_records_say(mixed):
    made, folder, found = mixed
    rows = results.collect(made, found, str(folder))
    written = page.write(made, found, rows, str(folder))
    assert [os.path.basename(path) for path in written] == ["sweep.html", "sweep.csv", "sweep.png"]
    lines = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))
    assert [line["rank"] for line in lines[:5]] == ["1", "4", "5", "6", "7"]
    for line in lines[:5]:
        path = folder / f"rank={line['rank']},seed=0" / "metrics.jsonl"
        newest = records.read(path, "evaluation")[-1]
        assert (newest["step"], float(line["fid_mean"])) == (50, newest["fid"])
        assert line["fid_std"] == "" and line["seeds"] == "1"
        rate = records.read(path, "train")[-1]["images_per_second"]
        assert float(line["step_seconds"]) == pytest.approx(20 / rate)
        assert (line["macs"], line["parameters"]) == ("7", "3")
    # What failed or was pruned has no score, and says so.
    assert {line["fid_mean"] for line in lines[5:]} == {""}
    html = (folder / "sweep.html").read_text()
    assert "this rank is out of luck" in html and "fid isn&#x27;t finite at step 50." in html
    assert 'href="rank%3D1%2Cseed%3D0/report.html"' in html
    assert "<li>rank=8,seed=0</li>" in html
    assert html.count("<svg") == 5
    assert Image.open(folder / "sweep.png").size == (1200, 1260)


def test_what_has_failed_is_repeated_when_it_is_asked_for(mixed):
    made, _, found = mixed
    assert study.enqueue(found, made) == 0
    assert study.enqueue(found, made, retry_failed=True) == 2


def test_interrupted_worker_leaves_its_trial(start, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    made = sweep_jobs.sweep([1], seeds=(0,))
    worker = start(made, tmp_path, url, {"pause": 0.5})
    wait_for((tmp_path / "rank=1,seed=0" / "step").exists)
    worker.terminate()
    assert ended(worker) == [0]
    assert states(trials(made, tmp_path, url)) == {"FAIL": 1, "WAITING": 1}
    step = int((tmp_path / "rank=1,seed=0" / "step").read_text())
    assert 0 < step < 50
    assert ended(start(made, tmp_path, url, {})) == [0]
    assert starts(tmp_path) == {"rank=1,seed=0": [0, step]}
    assert states(trials(made, tmp_path, url)) == {"FAIL": 1, "COMPLETE": 1}


def test_more_seeds_and_points_go_on_with_the_study(start, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    assert ended(start(sweep_jobs.sweep([1], seeds=(0,)), tmp_path, url, {})) == [0]
    larger = sweep_jobs.sweep([1, 2], seeds=(0, 1))
    assert ended(start(larger, tmp_path, url, {})) == [0]
    found = trials(larger, tmp_path, url)
    assert states(found) == {"COMPLETE": 4}
    assert set(map(tuple, starts(tmp_path).values())) == {(0,)}
    with pytest.raises(ValueError, match=r"(?s)other settings:.*seeds = \[0\], but \[0, 1\]"):
        sweep_jobs.open_study(sweep_jobs.sweep([1, 2], seeds=(0,)), tmp_path, url)
    with pytest.raises(ValueError, match="pruner = 'median', but None there"):
        changed = sweep_jobs.sweep([1, 2], seeds=(0, 1), pruner="median")
        sweep_jobs.open_study(changed, tmp_path, f"sqlite:///{tmp_path}/other.db")


def test_more_choices_go_on_in_a_study_that_has_what_has_ended(start, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    rank = "G/context.Hamburger.rank = "
    small = sweep_jobs.sweep(
        [], axes=[Axis(name="size", choices={"small": [f"{rank}1"]})], seeds=(0,)
    )
    assert ended(start(small, tmp_path, url, {})) == [0]
    large = Axis(name="size", choices={"small": [f"{rank}1"], "large": [f"{rank}5"]})
    large = sweep_jobs.sweep([], axes=[large], seeds=(0,))
    for _ in range(2):
        assert ended(start(large, tmp_path, url, {})) == [0]
    assert starts(tmp_path) == {"size=small,seed=0": [0], "size=large,seed=0": [0]}
    found = sweep_jobs.open_study(large, tmp_path, url)
    assert found.study_name == "test #2"
    assert [(t.params["size"], t.value) for t in found.get_trials()] == [
        ("small", fake_trainer.score(1, 0, 50)),
        ("large", fake_trainer.score(5, 0, 50)),
    ]


def test_sampler_draws_points_and_takes_all_seeds(start, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    options = dict(sampler="tpe", points=4, objectives=("fid", "macs"))
    made = sweep_jobs.sweep([1, 2, 3], **options)
    both = [start(made, tmp_path, url, {}) for _ in range(2)]
    assert ended(*both) == [0, 0]
    complete = [t for t in trials(made, tmp_path, url) if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["key"] for t in complete) == [f"#{i},seed=0+1" for i in range(4)]
    for trial in complete:
        rank = trial.user_attrs["values"]["rank"]
        mean = statistics.fmean(fake_trainer.score(rank, seed, 50) for seed in (0, 1))
        assert trial.values == [pytest.approx(mean), 7]


@pytest.mark.parametrize("sampler", ["gp", "random", "qmc"])
def test_samplers_draw_from_a_range(tmp_path, sampler):
    if sampler == "gp":
        pytest.importorskip("torch", reason="Optuna's Gaussian process needs torch")
    axis = Axis(name="rank", bindings=["G/context.Hamburger.rank"], low=1, high=40)
    made = sweep_jobs.sweep(None, axes=[axis], sampler=sampler, points=5, seeds=(0, 1))
    url = f"sqlite:///{tmp_path}/study.db"
    sweep_jobs.work(made, tmp_path, url, {})
    found = sweep_jobs.open_study(made, tmp_path, url).get_trials()
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 5
    ranks = [trial.params["rank"] for trial in found]
    assert all(1 <= rank <= 40 for rank in ranks) and len(set(ranks)) > 1
    for trial, rank in zip(found, ranks, strict=True):
        # 100 / 51 + rank + 0.25 * seed, the mean of two seeds.
        assert trial.value == pytest.approx(100 / 51 + rank + 0.125)


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruners_end_what_falls_behind(tmp_path, pruner):
    """The best begins: what follows is worse, the last two by far."""
    made = sweep_jobs.sweep([1, 2, 3, 4, 5, 6, 7, 8], seeds=(0,), pruner=pruner)
    url = f"sqlite:///{tmp_path}/study.db"
    sweep_jobs.work(made, tmp_path, url, {"bad": [7, 8], "pause": 0.05})
    found = sweep_jobs.open_study(made, tmp_path, url)
    ended = {trial.user_attrs["key"]: trial.state.name for trial in found.get_trials()}
    assert len(ended) == 8 and set(ended.values()) == {"COMPLETE", "PRUNED"}
    assert ended["rank=1,seed=0"] == "COMPLETE" and found.best_value == pytest.approx(100 / 51 + 1)
    assert "PRUNED" in (ended["rank=7,seed=0"], ended["rank=8,seed=0"])
    assert int((tmp_path / "rank=1,seed=0" / "step").read_text()) == 50


def test_wilcoxon_compares_seeds(start, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    seeds = tuple(range(6))
    made = sweep_jobs.sweep([1, 2], seeds=seeds, pruner="wilcoxon")
    assert ended(start(made, tmp_path, url, {"bad": [2]})) == [0]
    first, second = trials(made, tmp_path, url)
    assert list(first.intermediate_values) == list(seeds) and first.state.name == "COMPLETE"
    assert second.state.name == "PRUNED" and 2 <= len(second.intermediate_values) < 6


class Calm:
    """In place of `signals.Interruption`, none."""

    signal = None


def test_a_trial_that_failed_for_an_absent_storage_is_done_again(tmp_path):
    made = sweep_jobs.sweep([1, 2], seeds=(0,))
    found = sweep_jobs.open_study(made, tmp_path, f"sqlite:///{tmp_path}/study.db")
    study.enqueue(found, made)
    seen = []

    def objective(trial):
        trial.set_user_attr(study.WORKER, f"{trial.number} {socket.gethostname()} {os.getpid()}")
        seen.append(trial.user_attrs["key"])
        if len(seen) == 1:
            raise optuna.exceptions.StorageInternalError("The server has gone")
        return 1.0

    lost = worker.Lost(found, grace=60, has_heartbeat=True)
    said = []
    worker.work(found, objective, lost=lost, interruption=Calm, poll=0.1, say=said.append)
    assert said[0] == "The storage is away, asking again: The server has gone"
    assert seen == ["rank=1,seed=0", "rank=2,seed=0", "rank=1,seed=0"]
    assert states(found.get_trials()) == {"FAIL": 1, "COMPLETE": 2}


def test_a_training_that_always_ends_early_is_left_in_the_end(tmp_path):
    made = sweep_jobs.sweep([1], seeds=(0,))
    found = sweep_jobs.open_study(made, tmp_path, f"sqlite:///{tmp_path}/study.db")
    study.enqueue(found, made)
    objective = Trainings(
        sweep=made,
        output_dir=str(tmp_path),
        command=[sys.executable, "-c", "print('Stopped before its end.')"],
        seed="trainer.Trainer.seed",
        facts=lambda point: sweep_jobs.FACTS,
        interruption=Calm,
        poll=0.1,
    )
    lost = worker.Lost(found, grace=60, has_heartbeat=True)
    worker.work(found, objective, lost=lost, interruption=Calm, poll=0.1, say=lambda text: None)
    ((name, reason),) = results.failures(found)
    assert name == "rank=1,seed=0" and "ended at step None of 50. So it did 5 times" in reason


def test_a_duplicate_is_not_trained(tmp_path):
    made = sweep_jobs.sweep([1], seeds=(0,))
    found = sweep_jobs.open_study(made, tmp_path, f"sqlite:///{tmp_path}/study.db")
    assert study.enqueue(found, made) == 1 and study.enqueue(found, made) == 0
    # As two processes leave it that have looked at the empty queue at once.
    (one,) = found.get_trials()
    found.add_trial(
        optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs=one.user_attrs)
    )
    first, second = found.get_trials()
    assert not study.is_duplicate(found, first) and study.is_duplicate(found, second)


def test_a_worker_that_was_taken_for_dead_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    made = sweep_jobs.sweep([1, 2], seeds=(0,))
    found = sweep_jobs.open_study(made, tmp_path, url)
    study.enqueue(found, made)
    said = []

    def objective(trial):
        if not trial.number:
            # As another worker does, after two minutes without a sign of life.
            other = sweep_jobs.open_study(made, tmp_path, url)
            other.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return 1.0

    lost = worker.Lost(found, grace=1000, has_heartbeat=True)
    worker.work(found, objective, lost=lost, interruption=Calm, wait=False, say=said.append)
    assert states(found.get_trials()) == {"FAIL": 1, "COMPLETE": 1}
    assert any("taken over by others" in text for text in said)


def test_storage_that_is_not_there_is_one_readable_error():
    with pytest.raises(ValueError, match="--storage=nothing://there can't be opened"):
        storage.open_storage("nothing://there")
    with pytest.raises(ValueError, match="Say where one is: --storage=URL"):
        storage.default_url("gs://bucket/sweep")
    assert "secret" not in storage.shown("postgresql://me:secret@host/database")
    with pytest.raises(ValueError, match="can't be opened") as error:
        storage.open_storage("postgresql://me:secret@localhost:port/database")
    assert "secret" not in str(error.value)


def test_the_fake_trainer_has_the_flags_of_the_real_one(tmp_path):
    words = ["--gin_param=G/context.Hamburger.rank = 2", "--gin_param=trainer.Trainer.seed = 1"]
    subprocess.run([sys.executable, sweep_jobs.FAKE, f"--model_dir={tmp_path}", *words], check=True)
    newest = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert newest["fid"] == fake_trainer.score(2, 1, 50)
