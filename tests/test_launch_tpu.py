"""The TPU launcher's commands, as printed, as given to a stand-in for gcloud, and as a VM's shell
would run them.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from packaging.requirements import Requirement

from hamgan.checks import environment as check_environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "scripts" / "launch_tpu.sh"
FLAGS = [
    "--zone=europe-west4-a",
    "--model_dir=gs://bucket/run",
    "--data_dir=gs://bucket/tensorflow_datasets",
]
GIN_FILE = "configs/hamgan_strong.gin"
# What the VM needs of the project; the launcher refuses a repository without it.
NEEDED = [
    "requirements-tpu.txt",
    "requirements-tpu-nodeps.txt",
    "setup.py",
    "scripts/train.py",
    GIN_FILE,
]
NEEDED += ["scripts/check_environment.py"]

pytestmark = pytest.mark.skipif(
    not shutil.which("bash") or not shutil.which("git"), reason="needs bash and git"
)


def launch(*flags, path=None, **environment):
    variables = {**os.environ, **environment}
    variables.pop("GIN_FILE", None)
    variables.update(environment)
    if path:
        variables["PATH"] = path
    return subprocess.run(
        ["bash", str(LAUNCHER), *flags],
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT,
        check=False,
    )


def dry_run(*flags, **environment):
    """The words of each command that would run."""
    result = launch("--dry_run", *flags, **environment)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def remote(command):
    """What an ssh command runs on the VM, None for other commands."""
    return next(
        (word.removeprefix("--command=") for word in command if word.startswith("--command=")), None
    )


def train_words(commands):
    """The words of the training's command line, from scripts/train.py on."""
    script = next(remote(c) for c in commands if "nohup" in (remote(c) or ""))
    words = shlex.split(script)
    start = words.index("scripts/train.py")
    return words[start : words.index("&", start)]


@pytest.fixture
def repository(tmp_path):
    """A clean checkout with what the launcher looks for."""
    folder = tmp_path / "checkout"
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(
        folder,
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.com",
        "commit",
        "--quiet",
        "--message=x",
    )
    return folder


def git(folder, *words):
    subprocess.run(
        ["git", "-C", str(folder), *words],
        check=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
    )


@pytest.fixture
def gcloud(tmp_path):
    """A stand-in that writes its arguments down; FAKE_STATE is what describe answers, nothing: no
    such VM.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "with open(os.environ['FAKE_LOG'], 'a') as file:\n"
        "    file.write(json.dumps(['gcloud', *sys.argv[1:]]) + '\\n')\n"
        "if os.environ['FAKE_FAILURE'] and os.environ['FAKE_FAILURE'] in ' '.join(sys.argv):\n"
        "    sys.exit(7)\n"
        "if 'describe' in sys.argv:\n"
        "    if not os.environ['FAKE_STATE']:\n"
        "        sys.exit(\"ERROR: NOT_FOUND: Resource 'hamgan' was not found\")\n"
        "    print(os.environ['FAKE_STATE'])\n"
    )
    (folder / "gcloud").chmod(0o755)
    log = tmp_path / "log"

    def run(*flags, state="", failure=""):
        log.write_text("")
        result = launch(
            *flags,
            path=f"{folder}{os.pathsep}{os.environ['PATH']}",
            FAKE_LOG=str(log),
            FAKE_STATE=state,
            FAKE_FAILURE=failure,
        )
        return result, [json.loads(line) for line in log.read_text().splitlines()]

    return run


def test_dry_run_prints_the_steps_in_order():
    commands = dry_run(*FLAGS, "--project=mine", "--name=tpu-1", "--spot")
    whole = [" ".join(c) for c in commands]
    expected = [
        "tpu-vm describe tpu-1",
        "tpu-vm create tpu-1",
        "a training is running",
        "archive",
        "tpu-vm scp",
        "tar -xzf",
        "sys.version_info",
        "ensurepip",
        "-m venv",
        "-r requirements-tpu.txt",
        "--no-deps -r requirements-tpu-nodeps.txt",
        "--no-deps -e .",
        "scripts/check_environment.py --tpu",
        "nohup",
    ]
    assert len(whole) == len(expected)
    for text, line in zip(expected, whole, strict=True):
        assert text in line
    assert "--no-deps" not in whole[9]
    assert commands[1][5:] == [
        "tpu-1",
        "--zone=europe-west4-a",
        "--project=mine",
        "--accelerator-type=v3-8",
        "--version=tpu-ubuntu2204-base",
        "--spot",
    ]
    for command in commands:
        if command[0] == "gcloud":
            assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
            assert "--zone=europe-west4-a" in command and "--project=mine" in command
        if "scp" in command or remote(command):
            of_the_training = any(
                text in " ".join(command) for text in ("nohup", "a training is running")
            )
            assert ("--worker=0" if of_the_training else "--worker=all") in command


def test_training_gets_all_its_flags():
    bindings = ["trainer.Trainer.batch_size = 512", 'data.ImageDataset.name = "it\'s $HOME"']
    words = train_words(dry_run(*FLAGS, *[f"--gin_param={b}" for b in bindings]))
    assert words == [
        "scripts/train.py",
        "--accelerator=tpu",
        "--tpu=local",
        f"--gin_file={GIN_FILE}",
        "--model_dir=gs://bucket/run",
        "--data_dir=gs://bucket/tensorflow_datasets",
        "--mode=train_and_evaluate",
        *[f"--gin_param={b}" for b in bindings],
    ]
    # --helpfull after them: train.py parses them all, and refuses one it doesn't know, before it
    # prints its help.
    result = subprocess.run(
        [sys.executable, *words, "--helpfull"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "flags:" in result.stdout and "FATAL" not in result.stderr, result.stderr


def test_gin_file_comes_from_flag_or_environment():
    assert "--gin_file=configs/digits.gin" in train_words(
        dry_run(*FLAGS, GIN_FILE="configs/digits.gin")
    )
    words = train_words(
        dry_run(*FLAGS, "--gin_file", "configs/hamgan_baby.gin", GIN_FILE="configs/digits.gin")
    )
    assert "--gin_file=configs/hamgan_baby.gin" in words


def test_commands_in_the_headers_of_gin_files_are_accepted():
    found = 0
    for path in sorted((ROOT / "configs").glob("*.gin")):
        header = re.sub(r"\\\n#", " ", path.read_text())
        for line in re.findall(r"^#\s+scripts/launch_tpu\.sh(.*)$", header, re.M):
            words = shlex.split(line)
            assert dry_run(*words), path
            if not any(word.startswith("--gin_file") for word in words):
                assert path.name == os.path.basename(GIN_FILE)
            found += 1
    assert found


def test_images_fit_the_types():
    images = {
        "v2-8": "tpu-ubuntu2204-base",
        "v4-8": "tpu-ubuntu2204-base",
        "v5litepod-4": "v2-alpha-tpuv5-lite",
    }
    images |= {"v5p-8": "v2-alpha-tpuv5", "v6e-8": "v2-alpha-tpuv6e"}
    for kind, image in images.items():
        assert f"--version={image}" in dry_run(*FLAGS, f"--type={kind}")[1]
    assert "--version=other" in dry_run(*FLAGS, "--version=other")[1]


def test_slice_is_reached_by_name_from_its_first_host():
    commands = dry_run(*FLAGS, "--type=v3-32", "--name=pod")
    version = next(
        r for r in requirements("requirements-tpu.txt") if r.name == "tensorflow-tpu"
    ).specifier
    assert f"--version=tpu-vm-tf-{str(version).removeprefix('==')}-pod-pjrt" in commands[1]
    assert "--tpu=pod" in train_words(commands)
    for command in commands:
        if "venv/bin/python" in (remote(command) or ""):
            assert "TPU_LOAD_LIBRARY=0" in remote(command)
    assert "TPU_LOAD_LIBRARY" not in str(dry_run(*FLAGS))


def test_address_is_cloned_on_the_vm_instead_of_copied():
    commands = dry_run(*FLAGS, "--repository=https://host.example/my hamgan.git")
    assert not any("scp" in c or "archive" in c for c in commands)
    clone = next(remote(c) for c in commands if "git clone" in (remote(c) or ""))
    assert shlex.split(clone)[-2:] == ["https://host.example/my hamgan.git", "~/hamgan/source"]


def test_launch_runs_what_the_dry_run_prints(repository, gcloud):
    flags = [*FLAGS, f"--repository={repository}", "--gin_param=a.b = 'c d'"]
    result, ran = gcloud(*flags)
    assert result.returncode == 0, result.stderr
    assert ran == [c for c in dry_run(*flags) if c[0] == "gcloud"]
    names = subprocess.check_output(
        ["tar", "-tzf", repository / ".git" / "launch_tpu.tar.gz"], text=True
    ).split()
    assert set(NEEDED) <= set(names)
    for hint in ("tail -n 100 -f ~/hamgan/train.log", "tpu-vm delete hamgan --zone=europe-west4-a"):
        assert hint in result.stderr


def test_existing_vm_is_reused(repository, gcloud):
    flags = [*FLAGS, f"--repository={repository}"]
    result, ran = gcloud(*flags, state="READY\tv3-8")
    assert result.returncode == 0, result.stderr
    assert not any("create" in command for command in ran)
    assert ran[1:] == [c for c in dry_run(*flags, "--no_create") if c[0] == "gcloud"]
    assert gcloud(*flags, "--no_create")[1] == ran[1:]


@pytest.mark.parametrize(
    "state, message",
    [
        ("PREEMPTED\tv3-8", "is PREEMPTED and can't be started again. Delete it"),
        ("STOPPED\tv3-8", "Start it and launch again: gcloud compute tpus tpu-vm start hamgan"),
        ("CREATING\tv3-8", "is 'CREATING', not READY. Wait"),
        ("READY\tv2-8", "the VM hamgan is a v2-8, but --type=v3-8. Give --type=v2-8"),
    ],
)
def test_unusable_vm_stops_the_launch(repository, gcloud, state, message):
    result, ran = gcloud(*FLAGS, f"--repository={repository}", state=state)
    assert result.returncode == 2 and message in result.stderr
    assert len(ran) == 1


def test_failing_step_stops_the_launch(repository, gcloud):
    result, ran = gcloud(*FLAGS, f"--repository={repository}", failure="requirements-tpu.txt")
    assert result.returncode == 7
    assert "-r requirements-tpu.txt" in ran[-1][-1]
    assert (
        "this command ended with status 7" in result.stderr
        and "tpu-vm delete hamgan" in result.stderr
    )
    result, ran = gcloud(*FLAGS, f"--repository={repository}", failure="describe")
    assert result.returncode == 2 and "gcloud can't say whether there is a VM" in result.stderr


def test_vm_is_deleted_after_a_good_end_only(repository, gcloud):
    flags = [*FLAGS, f"--repository={repository}", "--delete"]
    result, ran = gcloud(*flags)
    assert result.returncode == 0, result.stderr
    assert "delete" in ran[-1] and "--quiet" in ran[-1] and "while" in remote(ran[-2])
    assert ran == [c for c in dry_run(*flags) if c[0] == "gcloud"]
    result, ran = gcloud(*flags, failure="while")
    assert result.returncode == 2 and "status 7), so the VM is kept" in result.stderr
    assert not any("delete" in command for command in ran)


def vm_shell(script, home):
    return subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def vm_home(tmp_path):
    """A home folder like the VM's when all is installed, with a training that writes down its
    arguments and ends.
    """
    source = tmp_path / "hamgan" / "source" / "scripts"
    source.mkdir(parents=True)
    (source / "train.py").write_text(
        "import json, sys, time\n"
        "open('arguments.json', 'w').write(json.dumps(sys.argv))\n"
        "print('training')\n"
        "sys.exit(3)\n"
    )
    python = tmp_path / "hamgan" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return tmp_path


def test_start_command_runs_in_a_shell(vm_home):
    commands = dry_run(*FLAGS, '--gin_param=a.b = "it\'s $HOME"')
    result = vm_shell(next(remote(c) for c in commands if "nohup" in (remote(c) or "")), vm_home)
    # The training's end within the first minute is the launcher's failure, with its log.
    assert result.returncode == 3, result.stderr
    assert "training" in result.stdout
    hamgan = vm_home / "hamgan"
    assert json.loads((hamgan / "source" / "arguments.json").read_text()) == train_words(commands)
    assert (hamgan / "train.status").read_text() == "3\n"
    assert "training" in (hamgan / "train.log").read_text()


def test_running_training_is_left_alone(vm_home):
    commands = dry_run(*FLAGS, "--delete")
    guard, wait = (
        next(remote(c) for c in commands if t in (remote(c) or ""))
        for t in ("a training is", "while")
    )
    assert vm_shell(guard, vm_home).returncode == 0
    hamgan = vm_home / "hamgan"
    (hamgan / "train.pid").write_text(f"{os.getpid()}\n")
    assert vm_shell(guard, vm_home).returncode == 0, "that number is of another process now"
    (hamgan / "source" / "scripts" / "train.py").write_text("import time\ntime.sleep(60)\n")
    training = subprocess.Popen([sys.executable, "scripts/train.py"], cwd=hamgan / "source")
    try:
        (hamgan / "train.pid").write_text(f"{training.pid}\n")
        time.sleep(0.2)
        result = vm_shell(guard, vm_home)
        assert (
            result.returncode == 1
            and f"a training is running on this VM, process {training.pid}" in result.stderr
        )
    finally:
        training.kill()
        training.wait()
    (hamgan / "train.status").write_text("4\n")
    assert vm_shell(wait, vm_home).returncode == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (FLAGS[1:], "--zone is missing. Give one that has v3-8"),
        ([FLAGS[0], FLAGS[2]], "--model_dir is missing. Give the run's folder in a bucket"),
        (
            [*FLAGS, "--model_dir=runs/x"],
            "--model_dir must be a folder in a bucket, .* got 'runs/x'",
        ),
        (
            [*FLAGS, "--model_dir=gs://bucket"],
            "--model_dir must be a folder in a bucket, .* got 'gs://bucket'",
        ),
        (FLAGS[:2], "--data_dir is missing"),
        ([*FLAGS, "--data_dir=data"], "--data_dir must be gs://BUCKET/FOLDER, .* got 'data'"),
        ([*FLAGS, "--type=v3"], "--type must be an accelerator type like v3-8, .* got 'v3'"),
        ([*FLAGS, "--name=My_TPU"], "--name must be small letters, .* got 'My_TPU'"),
        ([*FLAGS, "--name"], "--name needs a value"),
        ([*FLAGS, "--zone="], "--zone must not be empty"),
        ([*FLAGS, "--modeldir=x"], "unknown flag --modeldir=x. See: .* --help"),
        ([*FLAGS, "more"], "an argument without a flag name: more"),
        ([*FLAGS, "--dry_run=false"], "--dry_run takes no value"),
        (
            [*FLAGS, "--gin_file=configs/nothing.gin"],
            "has no configs/nothing.gin. It has: .*configs/hamgan_strong.gin",
        ),
        (
            [*FLAGS, f"--gin_file={ROOT / GIN_FILE}"],
            "--gin_file must be a path inside the repository",
        ),
        (
            [*FLAGS, "--repository=/"],
            "--repository must be a git checkout or an address to clone, got '/'",
        ),
    ],
)
def test_wrong_use_is_explained(flags, message):
    for mode in (["--dry_run"], []):
        result = launch(*mode, *flags)
        assert result.returncode == 2 and result.stdout == ""
        assert re.search(message, result.stderr), result.stderr


def test_changes_that_would_not_be_copied_stop_the_launch(repository, gcloud):
    flags = [*FLAGS, f"--repository={repository}"]
    (repository / "setup.py").write_text("changed")
    (repository / "configs" / "new.gin").write_text("")
    for more, message in (
        ([], "setup.py"),
        (["--gin_file=configs/new.gin"], "configs/new.gin isn't committed"),
    ):
        result, ran = gcloud(*flags, *more)
        assert result.returncode == 2 and message in result.stderr and not ran
        # A dry run copies nothing: it says so and goes on.
        result = launch("--dry_run", *flags, *more)
        assert (
            result.returncode == 0
            and "A launch would stop here" in result.stderr
            and message in result.stderr
        )


def test_missing_gcloud_is_explained(repository, tmp_path):
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in ("bash", "git", "sed", "dirname", "head", "tr"):
        (folder / tool).symlink_to(shutil.which(tool))
    result = launch(*FLAGS, f"--repository={repository}", path=str(folder))
    assert result.returncode == 2 and "gcloud isn't on the PATH. Install" in result.stderr
    assert (
        launch("--dry_run", *FLAGS, f"--repository={repository}", path=str(folder)).returncode == 0
    )


def test_help_names_every_flag():
    result = launch("--help")
    assert result.returncode == 0
    known = set(re.findall(r"(--[a-z_]+)=\*", LAUNCHER.read_text())) | {
        "--dry_run",
        "--no_create",
        "--delete",
    }
    assert {"--model_dir", "--gin_param"} < known
    for flag in known:
        assert re.search(rf"^  {flag}\b", result.stdout, re.M), flag


def requirements(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def setup_requirements():
    """What setup.py asks for, read from its text: it isn't a module that may be imported."""
    text = (ROOT / "setup.py").read_text()
    text = text[text.index("install_requires") : text.index("extras_require")]
    return [Requirement(line) for line in re.findall(r'^\s*"(.*)",$', text, re.M)]


def test_tpu_environment_has_all_that_setup_asks_for():
    asked = setup_requirements()
    assert len(asked) > 10
    pins = {
        r.name: r
        for name in ("requirements-tpu.txt", "requirements-tpu-nodeps.txt")
        for r in requirements(name)
    }
    for requirement in asked:
        pin = pins["tensorflow-tpu" if requirement.name == "tensorflow" else requirement.name]
        exact = [s.version for s in pin.specifier if s.operator == "=="]
        for version in exact:
            assert requirement.specifier.contains(version), f"{pin}, but setup.py has {requirement}"
    tensorflow = next(r for r in asked if r.name == "tensorflow")
    assert str(tensorflow.specifier) == f"=={check_environment.TENSORFLOW_VERSION}.*"


def test_wheels_that_ask_for_tensorflow_are_installed_without_dependencies():
    names = {r.name for r in requirements("requirements-tpu-nodeps.txt")}
    assert names == {"tf-keras", "tensorflow-hub", "tensorflow-gan"}
    first = {r.name for r in requirements("requirements-tpu.txt")}
    assert first & set(check_environment.TENSORFLOW_WHEELS) == {"tensorflow-tpu"}
    assert not first & names


def test_check_tells_wrong_tensorflow_wheels():
    assert check_environment.wheel_error({"tensorflow-tpu": "2.20.0"}, tpu=True) is None
    assert check_environment.wheel_error({"tensorflow": "2.20.0"}, tpu=False) is None
    assert "installed: tensorflow" in check_environment.wheel_error(
        {"tensorflow": "2.20.0"}, tpu=True
    )
    assert "installed: none" in check_environment.wheel_error({}, tpu=True)
    assert "installed: tensorflow-tpu" in check_environment.wheel_error(
        {"tensorflow-tpu": "2.20.0"}, tpu=False
    )
    both = {"tensorflow": "2.20.0", "tensorflow-tpu": "2.20.0"}
    for tpu in (False, True):
        assert "overwrite each other's files" in check_environment.wheel_error(both, tpu=tpu)


def test_check_tells_missing_and_wrong_versions():
    lines = [
        "# comment",
        "",
        "tf-keras==2.20.1  # why",
        "lib.tpu==0.0.21",
        "old==1; python_version < '3'",
        "PIL>=2",
    ]
    lines += ['pytest>=1; extra == "test"']
    assert (
        check_environment.requirement_errors(
            lines, {"tf-keras": "2.20.1", "lib-tpu": "0.0.21", "pil": "2"}
        )
        == []
    )
    assert check_environment.requirement_errors(
        lines, {"tf-keras": "2.20.1", "lib-tpu": "0.0.52"}
    ) == [
        "lib.tpu must be ==0.0.21, but is 0.0.52",
        "PIL>=2 isn't installed",
    ]


def test_check_speaks_where_nothing_is_installed():
    # -S hides the installed packages from the script; the child that it starts to ask TensorFlow
    # still sees them.
    script = ROOT / "scripts" / "check_environment.py"
    result = subprocess.run(
        [sys.executable, "-S", script, "--tpu"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and "of the checks failed" in result.stderr
    lines = result.stdout.splitlines()
    assert all(re.match(r"ok    \S|FAIL  \S.*\. Do: \S", line) for line in lines), lines
    for text in (
        "one TensorFlow wheel: .* installed: none",
        "versions as required: .*packaging",
        "import gin: .*'gin'",
    ):
        assert any(
            re.match(f"FAIL  {text}.* Do: .*requirements-tpu-nodeps.txt", line) for line in lines
        ), lines


def test_proof_of_installation_refuses_wrong_use(tmp_path):
    result = subprocess.run(
        ["bash", ROOT / "scripts" / "check_tpu_environment.sh", ROOT / "scripts"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2 and "FOLDER must be new or empty" in result.stderr
    result = subprocess.run(
        ["bash", ROOT / "scripts" / "check_tpu_environment.sh", tmp_path / "venv"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": "no-such-python"},
    )
    assert result.returncode == 2 and "PYTHON=no-such-python doesn't run" in result.stderr
