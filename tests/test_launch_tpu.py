"""The TPU launcher: what it would run, word for word, and what it does when a machine is taken."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from hamgan.cli import launch_tpu
from hamgan.tpu import bill, chips, gcloud, launch, queued, request

ROOT = pathlib.Path(__file__).resolve().parents[1]
ZONE = "--zone=us-west4-a"
JOB = ["--model_dir=gs://bucket/run", "--data_dir=gs://bucket/tensorflow_datasets"]
ADDRESS = "--repository=https://host.example/my hamgan.git"
SSH = "gcloud compute tpus tpu-vm ssh hamgan --zone=us-west4-a --worker="
ALIVE = "--ssh-flag=-oServerAliveInterval=30"
QUEUE = "gcloud compute tpus queued-resources"
FLAGS = (
    "--accelerator=tpu --tpu=local --gin_file=configs/hamgan_strong.gin "
    "--model_dir=gs://bucket/run --data_dir=gs://bucket/tensorflow_datasets"
)
# Written by hand from gcloud's reference: what a dry run prints, line by line.
RECORDED = {
    ("up", ZONE, "--spot"): [
        f"{QUEUE} describe hamgan --zone=us-west4-a --format=json",
        f"{QUEUE} create hamgan --node-id=hamgan --zone=us-west4-a "
        "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite "
        "--scopes=https://www.googleapis.com/auth/cloud-platform --spot",
    ],
    ("doctor", ZONE, *JOB, '--gin_param=a.b = "it\'s $HOME"'): [
        f"{SSH}all {ALIVE} '--command=cd ~/hamgan/source && ~/hamgan/venv/bin/python "
        "scripts/check_environment.py --tpu'",
        f"{SSH}0 {ALIVE} '--command=cd ~/hamgan/source && ~/hamgan/venv/bin/python "
        "scripts/doctor.py "
        # A quote inside quotes, twice: for the VM's shell and for this one.
        + FLAGS
        + """ '"'"'--gin_param=a.b = "it'"'"'"'"'"'"'"'"'s $HOME"'"'"''""",
    ],
    ("logs", ZONE): [f"{SSH}0 {ALIVE} '--command=tail -n 100 -f ~/hamgan/train.log'"],
    ("down", ZONE, "--project=p-1"): [
        f"{QUEUE} delete hamgan --zone=us-west4-a --project=p-1 --force --quiet"
    ],
    ("cost", ZONE): [
        f"{QUEUE} describe hamgan --zone=us-west4-a --format=json",
        "gcloud compute tpus tpu-vm describe hamgan --zone=us-west4-a '--format=value(createTime)'",
    ],
}


class Recorded:
    """Takes gcloud's place: keeps what it is given, and answers in turn.

    Args:
      states: of the request, one for each `describe`; the last stays; None: there is none.
      training: what the VM says of its training, likewise.
      failure: part of the command that fails.
      installed: whether the VM has an installation; one that is made again hasn't.
      description: more of what `describe` says.
      text: what it says in place of JSON.
      created: createTime of the VM; None: gcloud can't say.
    """

    dry_run = False

    def __init__(
        self,
        states=("ACTIVE",),
        training=("running",),
        failure=None,
        *,
        installed=True,
        description=None,
        text=None,
        created=None,
    ):
        self.states, self.answers = list(states), list(training)
        self.failure, self.ran, self.created = failure, [], created
        self.installed, self.description, self.text = installed, description or {}, text

    def __call__(self, words, *, capture=False):
        self.ran.append(words)
        text = " ".join(words)
        if self.failure and self.failure in text:
            return gcloud.Result(7, "", "it broke")
        if "describe" in words and "tpu-vm" in words:
            return gcloud.Result(0, f"{self.created}\n") if self.created else gcloud.Result(1)
        if "describe" in words:
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            if state is None:
                return gcloud.Result(1, "", "ERROR: NOT_FOUND: Resource 'hamgan' was not found")
            if state == "UNAVAILABLE":
                return gcloud.Result(1, "", "ERROR: the service is UNAVAILABLE")
            if self.text is not None:
                return gcloud.Result(0, self.text)
            description = {"state": {"state": state}, **self.description}
            return gcloud.Result(0, json.dumps(description), "")
        if "create" in words:
            self.installed = False
        if "touch ~/hamgan/installed" in text:
            self.installed = True
        if "installed: yes" in text:
            return gcloud.Result(0, f"installed: {'yes' if self.installed else 'no'}\n", "")
        if "training: gone" in text:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return gcloud.Result(0 if answer else 255, f"training: {answer}\n" if answer else "")
        return gcloud.Result()

    def verbs(self):
        """What was done, a word each: 'create', 'delete', 'scp', 'train', ..."""
        names = {"supervisor --folder": "start", "doctor.py": "doctor", "rm -rf": "copy"}
        found = []
        for words in self.ran:
            text = " ".join(words)
            verb = next((name for part, name in names.items() if part in text), None)
            found.append(verb or next((w for w in ("create", "delete") if w in words), None))
        return [verb for verb in found if verb]


def run(*words, recorded=None, ask=None):
    """(exit status, the `Recorded`) of a command."""
    recorded = recorded or Recorded()
    flags = launch_tpu.parser().parse_args([*words])
    status = launch_tpu.execute(
        flags, run=recorded, sleep=lambda _: None, ask=ask or (lambda _: "")
    )
    return status, recorded


def dry_run(*words):
    """The lines that a dry run prints, by the script itself."""
    result = subprocess.run(
        [sys.executable, "-S", str(ROOT / "scripts" / "launch_tpu.py"), *words, "--dry_run"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def remote(command):
    """What a printed ssh command runs on the VM."""
    words = shlex.split(command)
    return next(w.removeprefix("--command=") for w in words if w.startswith("--command="))


@pytest.mark.parametrize("words", RECORDED, ids=lambda words: words[0])
def test_dry_run_prints_the_recorded_commands(words):
    assert dry_run(*words) == RECORDED[words]


def test_installation_takes_the_requirements_in_order():
    lines = [remote(line) for line in dry_run("install", ZONE, ADDRESS)]
    clone = "git clone --depth=1 'https://host.example/my hamgan.git' ~/hamgan/source"
    assert lines[1] == f"rm -rf ~/hamgan/installed ~/hamgan/source && {clone}"
    pip = "cd ~/hamgan/source && ~/hamgan/venv/bin/pip install --quiet --no-deps "
    version = "$(python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])')"
    assert lines[4:] == [
        "python3 -m venv --upgrade-deps ~/hamgan/venv",
        f"{pip}-r requirements-tpu-{version}.lock",
        f"{pip}-e . && touch ~/hamgan/installed",
    ]


def test_a_commit_is_copied():
    archive, copy = dry_run("install", ZONE)[1:3]
    file = re.fullmatch(r"git -C .* archive --format=tar.gz --output=(\S+) \w{40}", archive)[1]
    assert copy == (
        f"gcloud compute tpus tpu-vm scp {file} hamgan:launch_tpu.tar.gz --zone=us-west4-a "
        "--worker=all --scp-flag=-oServerAliveInterval=30"
    )


def test_dry_run_is_what_runs():
    words = ["train", ZONE, *JOB, "--gin_param=a.b = 'c d'", ADDRESS]
    _, recorded = run(*words, "--detach", recorded=Recorded(training=("gone",)))
    printed = [shlex.split(line) for line in dry_run(*words)]
    assert recorded.ran == printed


def test_requests_of_each_tier():
    create = {
        tier: shlex.split(dry_run("up", ZONE, "--type=v6e-8", *([f"--{tier}"] if tier else []))[1])
        for tier in ("", "spot", "reserved", "flex_start")
    }
    assert "--spot" in create["spot"] and "--reserved" in create["reserved"]
    assert create["flex_start"][:2] == ["gcloud", "alpha"]
    assert create["flex_start"][-2:] == ["--provisioning-model=flex-start", "--max-run-duration=7d"]
    assert not {"--spot", "--reserved", "alpha"} & set(create[""])


@pytest.mark.parametrize(
    "kind, image",
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-4", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_images_fit_the_types(kind, image):
    assert f"--runtime-version={image}" in shlex.split(dry_run("up", ZONE, f"--type={kind}")[1])


def test_up_asks_once_and_waits():
    states = (None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    assert run("up", ZONE, recorded=Recorded(states))[1].verbs() == ["create"]
    assert run("up", ZONE, recorded=Recorded(("PROVISIONING", "ACTIVE")))[1].verbs() == []
    assert run("up", ZONE)[1].verbs() == []


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_up_makes_again_what_was_taken(state):
    recorded = run("up", ZONE, recorded=Recorded((state, "PROVISIONING", "ACTIVE")))[1]
    assert recorded.verbs() == ["delete", "create"]


def test_up_waits_for_the_end_of_a_suspension():
    recorded = run("up", ZONE, recorded=Recorded(("SUSPENDING", "SUSPENDED", "ACTIVE")))[1]
    assert recorded.verbs() == ["delete", "create"]


def test_up_goes_on_when_a_question_fails():
    states = (None, "UNAVAILABLE", "PROVISIONING", "UNAVAILABLE", "ACTIVE")
    assert run("up", ZONE, recorded=Recorded(states))[1].verbs() == ["create"]
    recorded = Recorded((None, "UNAVAILABLE"))
    with pytest.raises(ValueError, match="can't say whether"):
        run("up", ZONE, recorded=recorded)
    assert recorded.verbs() == ["create"]
    # A day of looks, one in 30 s, and the first.
    assert len([words for words in recorded.ran if "describe" in words]) == 1 + 24 * 120


def test_up_sleeps_no_longer_than_it_may_wait():
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    place = request.Place(name="hamgan", zone="us-west4-a")
    recorded = Recorded(("WAITING_FOR_RESOURCES",))
    waiting = queued.Queued(place, run=recorded, sleep=sleep, clock=lambda: now[0])
    with pytest.raises(ValueError, match="WAITING_FOR_RESOURCES after 70 s. The request stays"):
        waiting.up(timeout=70.0)
    assert slept == [30.0, 30.0, 10.0]


def test_up_makes_what_it_deleted_though_creation_failed_once():
    recorded = Recorded(("SUSPENDED", None, "ACTIVE"), failure="queued-resources create")
    place = request.Place(name="hamgan", zone="us-west4-a")
    waiting = queued.Queued(place, run=recorded, sleep=lambda _: None)
    with pytest.raises(ValueError, match="status 7"):
        waiting.up(ask=False)
    recorded.failure = None
    waiting.up(ask=False)
    assert recorded.verbs() == ["delete", "create", "create"]


# Not understood: each is said, with the command to look by hand, and is never "no request".
SHAPES = [
    "",
    "ERROR",
    '{"state": {"state": "ACT',
    "[]",
    "null",
    '{"state": "ACTIVE"}',
    '{"state": {"state": ["ACTIVE"]}}',
    '{"state": {"state": null}}',
    '{"state": null}',
    "{}",
    '{"state": {"state": "ASLEEP"}}',
    '{"state": {"state": "SUSPENDED"}, "tpu": {"nodeSpec": ["a"]}}',
    '{"state": {"state": "SUSPENDED"}, "tpu": {"nodeSpec": {"node": {}}}}',
    '{"state": {"state": "SUSPENDED"}, "tpu": []}',
    '{"state": {"state": "SUSPENDED"}, "guaranteed": "x"}',
    '{"state": {"state": "SUSPENDED"}, "spot": true}',
]


@pytest.mark.parametrize("text", SHAPES)
def test_descriptions_of_another_shape_are_no_answer(text):
    by_hand = "See for yourself: gcloud compute tpus queued-resources describe hamgan --zone"
    for words in (["up"], ["train", *JOB, ADDRESS], ["status"]):
        recorded = Recorded(text=text, training=("gone",))
        with pytest.raises(ValueError, match=f"got |which nothing is known.*{by_hand}"):
            run(*words, ZONE, recorded=recorded)
        assert recorded.verbs() == []
    # Of a training that is watched: the next answer is as good.
    recorded = Recorded(training=("0",))
    look = launch.Launcher(
        request.Place(name="hamgan", zone="us-west4-a"), run=recorded, sleep=lambda _: None
    ).look
    assert look() == launch.Look("ACTIVE", "0")
    recorded.text = text
    found = look()
    assert found.state == "UNKNOWN" and found.training is None and by_hand in found.fault


def test_parts_that_are_not_said_are_as_asked_for():
    text = '{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [null]}, "spot": null}'
    assert run("up", ZONE, recorded=Recorded(text=text))[1].verbs() == []


def test_up_gives_up():
    with pytest.raises(ValueError, match="FAILED again"):
        run("up", ZONE, recorded=Recorded(("FAILED",)))
    with pytest.raises(ValueError, match="The request stays; .* delete hamgan"):
        run("up", ZONE, "--timeout=0", recorded=Recorded(("WAITING_FOR_RESOURCES",)))
    with pytest.raises(ValueError, match="can't say whether there is"):
        run("up", ZONE, recorded=Recorded(failure="describe"))


def test_training_goes_on_after_a_preemption():
    states = ("ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE")
    recorded = Recorded(states, training=("gone", "running", "0"))
    status, recorded = run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert status == 0
    again = ["delete", "create", "copy", "doctor", "start"]
    assert recorded.verbs() == ["doctor", "start", *again]


def test_training_goes_on_after_a_restart_of_the_vm():
    recorded = Recorded(training=("gone", "running", "gone", "3"))
    status, recorded = run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert status == 3 and recorded.verbs() == ["doctor", "start", "doctor", "start"]


def test_a_running_training_is_left_alone():
    status, recorded = run("train", ZONE, *JOB, recorded=Recorded(training=("running", "0")))
    assert status == 0 and recorded.verbs() == []


def test_a_training_that_has_ended_is_not_started_again(capsys):
    class Ended(Recorded):
        def __call__(self, words, *, capture=False):
            if "cat ~/hamgan/train.words" in " ".join(words):
                return gcloud.Result(0, f"scripts/train.py {FLAGS} --mode=train\n")
            return super().__call__(words, capture=capture)

    status, recorded = run("train", ZONE, *JOB, ADDRESS, recorded=Ended(training=("0",)))
    assert status == 0 and recorded.verbs() == []
    said = capsys.readouterr().err
    assert "has ended well: gs://bucket/run. Nothing is started" in said and "--again" in said
    # More steps are another training; so is what was asked for, and what ended otherwise.
    more = "--gin_param=loop.Schedule.num_steps = 2000000"
    for words, answers in (([more], ("0", "0")), (["--again"], ("0", "0")), ([], ("3", "0"))):
        recorded = Ended(training=answers)
        assert run("train", ZONE, *JOB, ADDRESS, *words, recorded=recorded)[0] == 0
        assert recorded.verbs() == ["doctor", "start"]


def test_nothing_starts_when_the_doctor_finds_something():
    recorded = Recorded(training=("gone",), failure="doctor.py")
    with pytest.raises(ValueError, match="status 7.*tpus queued-resources delete hamgan"):
        # One line: what a message says is matched over its lines.
        try:
            run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
        except ValueError as error:
            raise ValueError(str(error).replace("\n", " ")) from error
    assert "start" not in recorded.verbs()


def test_evaluation_has_a_machine_of_its_own():
    recorded = Recorded((None, "ACTIVE"), ("gone",))
    _, recorded = run("evaluate", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert recorded.verbs() == ["create", "copy", "doctor", "start"]
    assert "scripts/evaluate.py" in recorded.ran[-1][-1] and "--watch" in recorded.ran[-1][-1]
    assert all("hamgan-evaluate" in words for words in recorded.ran)
    create = next(words for words in recorded.ran if "create" in words)
    assert "--accelerator-type=v5litepod-1" in create
    words = ["evaluate", ZONE, "--name=judge", "--type=v6e-1", *JOB, ADDRESS]
    _, recorded = run(*words, recorded=Recorded((None, "ACTIVE")))
    assert all("judge-evaluate" in words for words in recorded.ran)
    # One that runs is left alone.
    assert run("evaluate", ZONE, *JOB, ADDRESS)[1].verbs() == []


def test_an_installation_that_was_begun_is_made_again():
    recorded = Recorded(("PROVISIONING", "ACTIVE"), ("gone",), installed=False)
    _, recorded = run("evaluate", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert recorded.verbs() == ["copy", "doctor", "start"]
    recorded = Recorded(training=("gone", "0"), installed=False)
    assert run("train", ZONE, *JOB, ADDRESS, recorded=recorded)[1].verbs() == [
        "copy",
        "doctor",
        "start",
    ]


def test_a_training_comes_back_after_a_preemption_that_nobody_saw():
    recorded = Recorded(("SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"), training=("0",))
    status, recorded = run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert status == 0
    assert recorded.verbs() == ["delete", "create", "copy", "doctor", "start"]


@pytest.mark.parametrize("state", [None, "DELETING"])
def test_training_needs_a_machine(state):
    recorded = Recorded((state,))
    with pytest.raises(ValueError, match="no hamgan in us-west4-a .*First: .*up, then install"):
        run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert recorded.verbs() == []


def test_training_waits_for_a_machine_that_comes():
    recorded = Recorded(("PROVISIONING", "PROVISIONING", "ACTIVE"), ("0",), installed=False)
    assert run("train", ZONE, *JOB, ADDRESS, recorded=recorded)[0] == 0
    assert recorded.verbs() == ["copy", "doctor", "start"]


@pytest.mark.parametrize(
    "states",
    [
        ("ACTIVE", "SUSPENDED", "SUSPENDED", "WAITING_FOR_RESOURCES", None),
        ("ACTIVE", "SUSPENDED", None),
        ("ACTIVE", "SUSPENDED", "SUSPENDED", "DELETING"),
    ],
)
def test_what_is_deleted_while_it_is_made_again_stays_deleted(states):
    recorded = Recorded(states)
    with pytest.raises(ValueError, match="hamgan was deleted"):
        run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert recorded.verbs().count("create") <= 1
    recorded = Recorded((None, "WAITING_FOR_RESOURCES", "DELETING"))
    with pytest.raises(ValueError, match="hamgan was deleted"):
        run("up", ZONE, recorded=recorded)
    assert recorded.verbs() == ["create"]


def test_a_machine_that_is_taken_while_it_is_installed_is_made_again():
    class Flaky(Recorded):
        def __call__(self, words, *, capture=False):
            if "rm -rf" in " ".join(words) and self.failures:
                self.failures -= 1
                self.ran.append(words)
                return gcloud.Result(255, "", "connection closed")
            return super().__call__(words, capture=capture)

    states = ("ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE")
    recorded = Flaky(states, ("running", "gone", "running", "0"))
    recorded.failures = 1
    assert run("train", ZONE, *JOB, ADDRESS, recorded=recorded)[0] == 0
    assert recorded.verbs() == ["delete", "create", "copy", "copy", "doctor", "start"]


def test_a_training_that_does_not_stay_is_not_started_for_ever():
    recorded = Recorded(training=("gone",))
    with pytest.raises(ValueError, match="was started 6 times and doesn't stay"):
        run("train", ZONE, *JOB, ADDRESS, recorded=recorded)


def test_another_training_is_not_watched():
    class Other(Recorded):
        def __call__(self, words, *, capture=False):
            if "cat ~/hamgan/train.words" in " ".join(words):
                return gcloud.Result(0, "scripts/train.py --model_dir=gs://b/other\n", "")
            return super().__call__(words, capture=capture)

    with pytest.raises(ValueError, match="trains something else. It runs: .*gs://b/other"):
        run("train", ZONE, *JOB, ADDRESS, recorded=Other(("ACTIVE", "ACTIVE")))


@pytest.mark.parametrize("state", [None, "DELETING"])
def test_a_machine_that_was_deleted_is_not_made_again(state):
    recorded = Recorded(("ACTIVE", "ACTIVE", state))
    with pytest.raises(ValueError, match="hamgan was deleted.*newest checkpoint"):
        run("train", ZONE, *JOB, ADDRESS, recorded=recorded)
    assert recorded.verbs() == []


def test_a_question_that_fails_ends_no_watch():
    states = ("ACTIVE", "UNAVAILABLE", "UNAVAILABLE", "ACTIVE")
    status, _ = run("train", ZONE, *JOB, ADDRESS, recorded=Recorded(states, ("running", "0")))
    assert status == 0
    # A day of looks, one a minute.
    with pytest.raises(ValueError, match="UNKNOWN, but didn't answer 1440 times.*UNAVAILABLE"):
        run("train", ZONE, *JOB, ADDRESS, recorded=Recorded(("ACTIVE", "UNAVAILABLE")))
    with pytest.raises(ValueError, match="ACTIVE, but didn't answer 1440 times.*ended with 255"):
        run("train", ZONE, *JOB, ADDRESS, recorded=Recorded(training=("running", None)))


def test_a_watch_goes_on_after_an_hour_without_network(capsys):
    states = ("ACTIVE", *["UNAVAILABLE"] * 60, "ACTIVE")
    for words in (["train", *JOB, ADDRESS], ["down", "--when_done"]):
        recorded = Recorded(states, ("running", "0"))
        assert run(*words, ZONE, recorded=recorded)[0] == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "it goes on" in line]
        assert len(said) == 6 and all("the service is UNAVAILABLE" in line for line in said)


@pytest.mark.parametrize(
    "description, message",
    [
        ({"tpu": {"nodeSpec": [{"node": {"acceleratorType": "v6e-8"}}]}}, "Give --type=v6e-8"),
        ({"spot": {}}, "asked for as spot, .* made again as on_demand. Give --spot"),
        ({"guaranteed": {"reserved": True}}, "asked for as reserved"),
        ({"spot": {}, "state": {"state": "SUSPENDED"}}, "Give --spot"),
    ],
)
def test_what_is_there_must_be_what_is_asked_for(description, message):
    for words in (["up"], ["train", *JOB, ADDRESS]):
        recorded = Recorded(description=description)
        with pytest.raises(ValueError, match=message):
            run(*words, ZONE, recorded=recorded)
        assert recorded.verbs() == []
    asked = []
    run(
        "down",
        ZONE,
        recorded=Recorded(description=description),
        ask=lambda q: asked.append(q) or "",
    )
    assert asked[0].startswith(
        f"Delete hamgan ({'v6e-8' if 'tpu' in description else 'v5litepod-8'})"
    )


def test_nothing_is_paid_for_before_the_repository_is_looked_at(tmp_path):
    for state in (None, "SUSPENDED"):
        for command in ("evaluate", "train") if state else ("evaluate",):
            recorded = Recorded((state, "ACTIVE"))
            with pytest.raises(ValueError, match="repository must be|gin_file must be"):
                run(command, ZONE, *JOB, f"--repository={tmp_path}", recorded=recorded)
            assert recorded.verbs() == []


def test_down_asks():
    assert run("down", ZONE, ask=lambda _: "n")[1].verbs() == []
    assert run("down", ZONE, ask=lambda _: "y")[1].verbs() == ["delete"]


def test_down_names_the_machine_of_the_evaluation(capsys):
    see = "launch_tpu.py status --name=hamgan-evaluate --zone=us-west4-a --project=p-1"
    for recorded in (Recorded(), Recorded((None,))):
        run("down", ZONE, "--project=p-1", "--yes", recorded=recorded)
        assert see in capsys.readouterr().err
    run("down", ZONE, "--project=p-1", ask=lambda _: "n")
    run("down", ZONE, "--project=p-1", "--name=hamgan-evaluate", "--yes")
    assert "launch_tpu.py status" not in capsys.readouterr().err


def test_down_when_done():
    recorded = Recorded(training=("running", "running", "0"))
    assert run("down", ZONE, "--when_done", recorded=recorded)[1].verbs() == ["delete"]
    recorded = Recorded(training=("running", "3"))
    with pytest.raises(ValueError, match="didn't end well, so the VM is kept"):
        run("down", ZONE, "--when_done", recorded=recorded)
    assert recorded.verbs() == []


def test_down_when_done_waits_for_no_ghost():
    assert run("down", ZONE, "--when_done", recorded=Recorded((None,)))[0] == 0
    for recorded, message in (
        (Recorded(("SUSPENDED",)), "Nothing has trained in 60 looks.*the VM is kept"),
        (Recorded(("FAILED",)), "Nothing has trained in 60 looks.*the VM is kept"),
        (Recorded(training=("gone",)), "Nothing has trained in 60 looks.*the VM is kept"),
        (Recorded(training=(None,)), "hamgan is ACTIVE, but didn't answer 1440 times"),
        (Recorded(("UNAVAILABLE",)), "hamgan is UNKNOWN, but didn't answer 1440 times"),
    ):
        with pytest.raises(ValueError, match=message):
            run("down", ZONE, "--when_done", recorded=recorded)
        assert recorded.verbs() == []


def test_down_without_anybody_or_anything():
    def nobody(question):
        raise EOFError

    with pytest.raises(ValueError, match="nobody answers here: give --yes"):
        run("down", ZONE, ask=nobody)
    assert run("down", ZONE, "--yes", ask=nobody)[1].verbs() == ["delete"]
    status, recorded = run("down", ZONE, recorded=Recorded((None,)), ask=nobody)
    assert status == 0 and recorded.verbs() == []


def test_a_dry_run_of_waiting_shows_the_questions():
    describe, question, delete = dry_run("down", ZONE, "--when_done")
    assert "describe" in describe and "train.status" in question and "delete" in delete
    assert len(dry_run("status", ZONE)) == 2


def test_the_cost_is_that_of_what_is_there(capsys):
    description = {
        "createTime": "2026-01-01T00:00:00Z",
        "tpu": {"nodeSpec": [{"node": {"acceleratorType": "v6e-8"}}]},
        "spot": {},
    }
    assert run("cost", ZONE, recorded=Recorded(description=description))[0] == 0
    of_request = capsys.readouterr().out
    place = request.Place(name="a", zone="us-west4-a", type="v6e-8", tier="spot")
    assert bill.cost(place, hours=1.0)[1].split(":")[0] == of_request.splitlines()[1].split(":")[0]
    price = chips.dollars_per_hour(place.machine, tier="spot")
    assert price is None or f"x ${price:.2f}/h" in of_request
    with pytest.raises(ValueError, match="createTime must be like 2026-.*got None"):
        run("cost", ZONE)
    with pytest.raises(ValueError, match="no hamgan in us-west4-a, so nothing is paid"):
        run("cost", ZONE, recorded=Recorded((None,)))


YEAR_OF_2020 = {"createTime": "2020-01-01T00:00:00Z"}
STEPS = ["--steps_done=250", "--steps=1000"]


@pytest.mark.parametrize(
    "state", ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "FAILED"]
)
def test_a_machine_that_was_never_there_cost_nothing(state, capsys):
    recorded = Recorded((state,), description=YEAR_OF_2020)
    assert run("cost", ZONE, *STEPS, recorded=recorded)[0] == 0
    text = capsys.readouterr().out
    assert re.findall(r"\$[\d,.]+\d", text) == ["$0.00"] and f"is {state}" in text
    assert "to the end" not in text


@pytest.mark.parametrize(
    "state, now",
    [
        ("SUSPENDED", "nothing is paid for now"),
        ("SUSPENDING", "it may be paid for until it is gone"),
        ("DELETING", "it may be paid for until it is gone"),
        ("ASLEEP", "it isn't known whether anything is paid for"),
        (None, "UNKNOWN: it isn't known whether anything is paid for"),
    ],
)
def test_a_machine_that_may_have_been_there_cost_at_most_so_much(state, now, capsys):
    text = json.dumps({"state": {"state": state}, **YEAR_OF_2020})
    assert run("cost", ZONE, *STEPS, recorded=Recorded(text=text))[0] == 0
    text = capsys.readouterr().out
    assert now in text and "so far: at most" in text and "to the end: no pace is known" in text


def test_hours_count_from_the_machine_where_gcloud_knows_it(capsys):
    created = time.strftime("%Y-%m-%dT%H:%M:%S.5Z", time.gmtime(time.time() - 2 * 3600))
    recorded = Recorded(description=YEAR_OF_2020, created=created)
    assert run("cost", ZONE, *STEPS, recorded=recorded)[0] == 0
    text = capsys.readouterr().out
    assert "at most 2.0 h" in text and "6.0 h more" in text and "this machine was made" in text
    # Of the request alone: waiting in the queue would be counted as training.
    assert run("cost", ZONE, *STEPS, recorded=Recorded(description=YEAR_OF_2020))[0] == 0
    text = capsys.readouterr().out
    assert "no pace is known" in text and "this request was made" in text


def test_status_fails_where_there_is_no_answer(capsys):
    assert run("status", ZONE)[0] == 0
    assert capsys.readouterr().out == "hamgan: ACTIVE, training: running\n"
    assert run("status", ZONE, recorded=Recorded((None,)))[0] == 0
    with pytest.raises(ValueError, match="can't say whether.*it broke"):
        run("status", ZONE, recorded=Recorded(failure="describe"))
    with pytest.raises(ValueError, match="ssh ended with 7: it broke"):
        run("status", ZONE, recorded=Recorded(failure="train.status"))
    assert "hamgan: ACTIVE, training: no answer" in capsys.readouterr().out


def test_a_log_that_cannot_be_read_is_said():
    with pytest.raises(ValueError, match="can't be read .status 7"):
        run("logs", ZONE, recorded=Recorded(failure="tail"))


def test_a_reader_that_has_enough_is_no_fault():
    words = [sys.executable, str(ROOT / "scripts" / "launch_tpu.py"), "evaluate", ZONE, *JOB]
    result = subprocess.run(
        ["bash", "-c", f"{shlex.join([*words, '--dry_run'])} | head -c 10"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr


def test_cost_to_the_end():
    place = request.Place(name="a", zone="us-west4-a", type="v5litepod-8")
    table = {"date": "2000-01", "source": "made", "on_demand": {"v5e": 2.0}}
    text = "\n".join(bill.cost(place, hours=3.0, steps_done=250, steps=1000, table=table))
    # 8 chips at $2: $16 an hour; a quarter is done in 3 hours.
    assert "3.0 h x $16.00/h = $48.00" in text and "9.0 h more, $144.00 more" in text
    assert "in all: $192.00" in text
    assert "2000-01" in text
    table = {**table, "on_demand": {}}
    assert "no price of v5litepod-8" in "\n".join(bill.cost(place, hours=1.0, table=table))
    for done in (-100, 0, 2000):
        with pytest.raises(ValueError, match=f"steps_done must be above .*1000.*got {done}"):
            bill.cost(place, hours=1.0, steps_done=done, steps=1000, table=table)
    begun = dict(steps_begun=500, steps_done=600, steps=1000)
    text = "\n".join(
        bill.cost(place, hours=1.0, table={**table, "on_demand": {"v5e": 2.0}}, **begun)
    )
    assert "4.0 h more, $64.00 more" in text and "in all" not in text
    with pytest.raises(ValueError, match="needs both"):
        bill.cost(place, hours=1.0, steps=1000, table=table)


def test_hours_count_from_the_request():
    assert bill.hours_since("1970-01-01T01:30:00.123456Z", now=3 * 3600) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", ZONE], "train needs --model_dir"),
        (["train", ZONE, "--model_dir=runs/x", JOB[1]], "folder in a bucket, .* got 'runs/x'"),
        (["train", ZONE, "--model_dir=gs://b", JOB[1]], "folder in a bucket, .* got 'gs://b'"),
        (["train", ZONE, JOB[0], "--data_dir=data"], "data_dir must be .* got 'data'"),
        (
            ["train", ZONE, *JOB, "--gin_file=configs/no.gin"],
            "in the repository .*, got 'configs/no",
        ),
        (["train", ZONE, *JOB, "--gin_file=/etc/a.gin"], "a path inside the repository"),
        (["train", ZONE, *JOB, "--gin_param=nonsense"], "NAME = VALUE, got 'nonsense'"),
        (["train", ZONE, "--model_dir=gs://my bucket/a", JOB[1]], "no spaces, got"),
        (["train", ZONE, *JOB, "--repository=/nowhere"], "repository must be .* got '/nowhere'"),
        (["train", ZONE, *JOB, "--repository=gs://a/b"], "repository must be .* got 'gs://a/b'"),
        (["train", ZONE, *JOB, "--repository="], "repository must be .* got ''"),
        (["train", ZONE, *JOB, "--steps=100"], "--steps is for cost, not for train"),
        (["up", ZONE, "--again"], "--again is for train, not for up"),
        (["up", ZONE, "--when_done"], "--when_done is for down, not for up"),
        (["up", ZONE, "--timeout=nan"], "timeout must be a number of seconds from 0, got nan"),
        (["up", ZONE, "--timeout=-5"], "timeout must be .* got -5"),
        (["up", ZONE, "--max_run_duration=3d"], "for flex_start, not for on_demand"),
        (["up", ZONE, "--flex_start", "--max_run_duration=banana"], "like 2d12h, got 'banana'"),
        (["up", ZONE, "--project=my proj'x"], "project must be like"),
        (["up", ZONE, "--runtime_version=a b'c"], "runtime_version must be like"),
        (["up", ZONE, "--type=v2-4"], "the smallest is v2-8; got 'v2-4'"),
        (["up", ZONE, "--type=v5e-8"], "v5e is called v5litepod.*got 'v5e-8'"),
        (["up", "--zone=mars"], "zone must be like us-west4-a.* got 'mars'"),
        (["up", ZONE, "--name=My_TPU"], "name must be small letters, .* got 'My_TPU'"),
        (["up", ZONE, "--type=v3"], "accelerator type like .* got 'v3'"),
        (["up", ZONE, "--type=v5litepod-3"], "a host has 1, 4 or 8 chips, not 3"),
        (["up", ZONE, "--type=v5p-8", "--flex_start"], "offered for v5e and v6e"),
        (["up", ZONE, "--type=v5litepod-16"], "v5litepod-16 has 2 hosts.* Take one host: v5lite"),
        (["up", ZONE, "--type=v3-32"], "v3-32 has 4 hosts.*-pod-pjrt if gcloud"),
        (
            ["up", ZONE, "--type=v3-32", "--runtime_version=tpu-vm-tf-2.17.0-pod-pjrt"],
            "of one TensorFlow version",
        ),
        (["install", ZONE, "--repository=/"], "a git checkout or an address to clone"),
    ],
)
def test_wrong_use_is_explained(words, message):
    recorded = Recorded(training=("gone",))
    with pytest.raises(ValueError, match=message):
        run(*words, recorded=recorded)
    assert "create" not in recorded.verbs() and "copy" not in recorded.verbs()


def test_a_slice_with_its_server_is_reached_by_name():
    image = f"--runtime_version=tpu-vm-tf-{launch_tpu.tensorflow_version()}-pod-pjrt"
    lines = dry_run("train", ZONE, "--name=pod", "--type=v3-32", image, *JOB)
    assert "--tpu=pod" in remote(lines[-1])
    python = [remote(line) for line in lines if "venv/bin/python" in line]
    assert len(python) == 3 and all("TPU_LOAD_LIBRARY=0" in line for line in python)
    assert "TPU_LOAD_LIBRARY" not in "".join(dry_run("train", ZONE, *JOB))


def test_what_would_not_be_copied_stops_the_launch(tmp_path):
    for name in ("requirements-tpu-3.10.lock", "setup.py", "scripts/train.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    source = request.source_of(str(tmp_path), gin_file="setup.py")
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert source.commit == commit.strip()
    assert source.archive == str(tmp_path / ".git" / f"launch_tpu-{source.commit[:12]}.tar.gz")
    (tmp_path / "mine.gin").write_text("a.b = 1")
    with pytest.raises(ValueError, match="repository's last commit.*git add.*got 'mine.gin'"):
        request.source_of(str(tmp_path), gin_file="mine.gin")
    (tmp_path / "setup.py").write_text("changed")
    with pytest.raises(ValueError, match="last commit, which is copied, hasn't got.*setup.py"):
        request.source_of(str(tmp_path))
    assert request.source_of(str(tmp_path), strict=False) == source


def test_missing_git_is_explained(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="git isn't on the PATH"):
        request.source_of(str(ROOT))


def test_missing_gcloud_is_explained(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="gcloud isn't on the PATH. Install"):
        gcloud.Runner()(["gcloud"])


def fake_gcloud(folder, monkeypatch, script):
    """A `gcloud` that is a shell script, first on the PATH."""
    path = folder / "gcloud"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_question_that_hangs_is_a_question_without_an_answer(tmp_path, monkeypatch):
    # As gcloud does it: what hangs is a child of a child.
    fake_gcloud(tmp_path, monkeypatch, f"sleep 600 &\necho $! > {tmp_path}/pid\nwait")
    result = gcloud.Runner(limit=0.5)(["gcloud", "describe"], capture=True)
    assert result == gcloud.Result(gcloud.TIMED_OUT, "", "no answer within 0.5 s.")
    child = pathlib.Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "what gcloud started runs on"
        time.sleep(0.02)


def test_an_answer_need_not_be_utf8(tmp_path, monkeypatch):
    script = 'case "$*" in *describe*) echo \'{"state": {"state": "ACTIVE"}}\';;\n'
    script += "*) printf '\\377\\376 motd\\ntraining: 0\\n';; esac"
    fake_gcloud(tmp_path, monkeypatch, script)
    place = request.Place(name="hamgan", zone="us-west4-a")
    assert launch.Launcher(place, run=gcloud.Runner()).look() == launch.Look("ACTIVE", "0")


def test_a_look_survives_what_ssh_raises():
    class Missing(Recorded):
        def __call__(self, words, *, capture=False):
            if "ssh" in words:
                raise ValueError("gcloud isn't on the PATH.")
            return super().__call__(words, capture=capture)

    place = request.Place(name="hamgan", zone="us-west4-a")
    found = launch.Launcher(place, run=Missing()).look()
    assert found == launch.Look("ACTIVE", None, "gcloud isn't on the PATH.")


def test_a_gcloud_that_cannot_be_run_is_explained(tmp_path, monkeypatch):
    (tmp_path / "gcloud").write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path))
    for capture in (False, True):
        with pytest.raises(ValueError, match="gcloud can't be run: .*Permission denied"):
            gcloud.Runner()(["gcloud"], capture=capture)


def test_start_runs_in_a_shell(tmp_path):
    """The VM's shell starts the supervisor, which runs the training with the words given."""
    source = tmp_path / "hamgan" / "source"
    (source / "scripts").mkdir(parents=True)
    (source / "scripts" / "train.py").write_text(
        "import json, sys\nopen('arguments.json', 'w').write(json.dumps(sys.argv))\n"
        "print('trained')\n"
    )
    (source / "hamgan").symlink_to(ROOT / "hamgan")
    python = tmp_path / "hamgan" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    binding = 'a.b = "it\'s $HOME"'
    line = remote(dry_run("train", ZONE, *JOB, f"--gin_param={binding}")[-1])
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=90
    )
    assert result.returncode == 0 and "trained" in result.stdout, result.stderr
    arguments = json.loads((source / "arguments.json").read_text())
    assert arguments[0] == "scripts/train.py" and f"--gin_param={binding}" in arguments
    assert (tmp_path / "hamgan" / "train.status").read_text() == "0\n"


def test_supervisor_starts_again_and_counts(tmp_path):
    script = tmp_path / "fails_twice.py"
    script.write_text(
        "import pathlib, sys\ncount = pathlib.Path('count')\n"
        "done = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(done + 1))\nsys.exit(0 if done == 2 else 4)\n"
    )
    words = [sys.executable, "-m", "hamgan.tpu.supervisor", f"--folder={tmp_path}", "--wait=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def supervise(*more):
        (tmp_path / "count").unlink(missing_ok=True)
        command = [*words, *more, "--", sys.executable, str(script)]
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=60).returncode

    assert supervise() == 0
    assert (tmp_path / "count").read_text() == "3"
    assert (tmp_path / "train.status").read_text() == "0\n"
    assert supervise("--failures=2") == 4
    assert (tmp_path / "count").read_text() == "2"
    assert (tmp_path / "train.status").read_text() == "4\n"
    assert "no more is tried" in (tmp_path / "train.log").read_text()


def test_supervisor_hands_on_the_end(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    words = [sys.executable, "-m", "hamgan.tpu.supervisor", f"--folder={tmp_path}", "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*words, sys.executable, str(script)], env=environment)
    try:
        log, end = tmp_path / "train.log", time.monotonic() + 30
        while not (log.exists() and "ready" in log.read_text()):
            assert time.monotonic() < end
            time.sleep(0.1)
        # One at a time.
        second = subprocess.run([*words, "true"], env=environment, capture_output=True, text=True)
        assert second.returncode == 1 and "Another supervisor is at work" in second.stderr
        process.terminate()
        assert process.wait(timeout=30) == 5
    finally:
        process.kill()
    assert (tmp_path / "train.status").read_text() == "5\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_supervisor_leaves_no_training_beside_another(tmp_path):
    script = tmp_path / "saves.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    print('saves', flush=True)\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.02)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path('child').write_text(str(os.getpid()))\n"
        "print('ready', flush=True)\n"
        "time.sleep(120)\n"
    )
    words = [sys.executable, "-m", "hamgan.tpu.supervisor", f"--folder={tmp_path}", "--"]
    where = dict(cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    log = tmp_path / "train.log"

    def until(text):
        end = time.monotonic() + 60
        while not (log.exists() and text in log.read_text().split()):
            assert time.monotonic() < end, text
            time.sleep(0.05)

    process = subprocess.Popen([*words, sys.executable, str(script)], **where)
    try:
        until("ready")
        process.kill()
        process.wait()
        until("saves")
        second = subprocess.run([*words, "true"], **where, capture_output=True, text=True)
        assert second.returncode == 1 and "what it started still saves" in second.stderr
        (tmp_path / "go").touch()
        until("saved")
        end = time.monotonic() + 30
        while subprocess.run([*words, "true"], **where, capture_output=True).returncode:
            assert time.monotonic() < end
        assert (tmp_path / "train.status").read_text() == "0\n"
    finally:
        process.kill()
        (tmp_path / "go").touch()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_help_names_every_command():
    text = launch_tpu.parser().format_help()
    for command in launch_tpu.COMMANDS:
        assert re.search(rf"^{command}\b", text, re.MULTILINE), command
