"""What an installation brings: commands, and the shipped configurations by name."""

import configparser
import importlib
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import pytest

from data_prep import commands, segmentation
from hamgan import choices, importing
from hamgan.benchmarks import context_modules, names, step
from hamgan.cli import benchmark
from hamgan.cli.configuration import sources

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = "train evaluate sample export explore sweep doctor inspect segment serve prepare".split()
_HELP = """
import runpy, sys
sys.argv = {arguments!r}
try:
    runpy.run_path({script!r}, run_name="__main__")
finally:
    print("\\nwith" if "tensorflow" in sys.modules else "\\nwithout", "TensorFlow")
"""


def run(code, *, path=ROOT, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
    )


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("train", ["--help"], "python scripts/train.py --gin_file=configs/digits.gin"),
        ("train", ["--modle_dir=x"], "Did you mean: model_dir"),
        ("train", ["--model_dir=x", "--data= "], "--data is empty"),
        ("evaluate", ["--help"], "--protocol"),
        ("sample", ["--help"], "--per_class"),
        ("export", ["--help"], "--formats"),
        ("export", ["--model_dir=x", "--weights=best"], "should be one of"),
        ("explore", ["--help"], "--starts"),
        ("inspect_ham", ["--help"], "--network"),
        ("serve", ["--help"], "--port"),
        ("serve", ["--model_dir=x", "--prot=1"], "Did you mean"),
        ("doctor", ["--help"], "--steps_per_second"),
        ("doctor", ["--model_dir=x", "--quik"], "quik"),
        ("sweep", ["--help"], "--heartbeat"),
        ("sweep", ["--sweep=x", "--retry"], "Unknown command line flag 'retry'"),
        ("tpu_plan", ["--help"], "--topology"),
        ("check_resume", ["--help"], "--tolerance"),
        ("segment", ["import", "--help"], "--verify"),
        ("benchmark", ["--help"], "self_attention"),
        ("benchmark", ["--reapets=2"], "Did you mean: repeats"),
        ("benchmark", ["stepp"], "one of: context, step, "),
        ("import_checkpoint", ["--help"], "nmf or cd"),
        ("import_checkpoint", ["--model_dir=x"], "checkpoint must have a value"),
        ("segment", ["train", "--help"], "--weights"),
        ("segment", ["predict", "--help"], "--model_dir"),
    ],
)
def test_help_and_wrong_flags_are_answered_without_tensorflow(script, arguments, words):
    path = str(ROOT / "scripts" / f"{script}.py")
    result = run(_HELP.format(script=path, arguments=[path, *arguments]))
    assert words in result.stdout + result.stderr
    assert "\nwithout TensorFlow" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["scripts/train.py", "--gin_file=configs/nothing.gin", "--model_dir=x"],
        ["data_prep/folder.py", "--image_dir=nothing", "--data_dir=x"],
    ],
)
def test_only_the_error_is_written(words, tmp_path):
    """None of the notes that TensorFlow's C++ code begins with."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run(
        [sys.executable, ROOT / words[0], *words[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ERROR: ") and "nothing" in lines[0]


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's kernels are for x86-64"
)
@pytest.mark.parametrize("chosen", [None, "0"])
def test_commands_take_the_kernels_of_onednn_unless_told(chosen):
    name = "TF_ENABLE_ONEDNN_OPTS"
    code = (
        f"import os, hamgan.cli; print(os.environ[{name!r}]); "
        "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    )
    environment = {k: v for k, v in os.environ.items() if k != name}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | ({} if chosen is None else {name: chosen}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    asked, taken = result.stdout.split()
    assert asked == (chosen or "1")
    # The wheel for TPUs needn't have them.
    has_them = not importlib.util.find_spec("libtpu")
    assert taken == str(asked == "1" and has_them)


def test_layers_come_with_the_package_when_asked_for():
    code = (
        "import sys, hamgan; assert 'tensorflow' not in sys.modules; "
        "from hamgan import Hamburger; print(Hamburger.__module__, 'tensorflow' in sys.modules)"
    )
    assert run(code).stdout.split() == ["hamgan.context.hamburger", "True"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that an installation would copy, and the one of its metadata."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in ("hamgan", "data_prep", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={target}"]
        + ["egg_info", f"--egg-base={target}"],
        cwd=source,
        check=True,
        timeout=120,
    )
    return target


def test_an_installation_finds_configurations_by_name(built, tmp_path):
    assert {p.name for p in (built / "hamgan" / "configs").rglob("*.gin")} == {
        p.name for p in (ROOT / "configs").rglob("*.gin")
    }
    code = (
        "from hamgan.cli import configuration; "
        "from hamgan.cli.configuration import sources; "
        "e = configuration.load_experiment(gin_files=['digits_ylg'], protocol='paper'); "
        "print(sources.find('hamgan_strong')); print(e.schedule.num_steps, e.protocol.name)"
    )
    lines = run(code, path=built, cwd=tmp_path).stdout.splitlines()
    assert lines == [str(built / "hamgan" / "configs" / "hamgan_strong.gin"), "1500 paper"]


def test_the_page_comes_with_an_installation(built):
    assert {"page.html", "page.css", "page.js"} <= set(os.listdir(built / "hamgan" / "serving"))


def test_commands_are_there(built):
    file = configparser.ConfigParser()
    file.read(built / "hamgan.egg-info" / "entry_points.txt")
    commands = dict(file["console_scripts"])
    assert {f"hamgan-{name}" for name in COMMANDS} <= set(commands)
    for target in commands.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_metadata_is_complete(built):
    text = (built / "hamgan.egg-info" / "PKG-INFO").read_text()
    import hamgan

    assert f"Version: {hamgan.__version__}\n" in text
    for line in ("Summary: ", "Classifier: ", "Project-URL: ", "License: Apache-2.0", "# HamGAN"):
        assert line in text
    # Where nothing lies beside the text.
    assert "](https://arxiv.org/abs/2109.04553)" in text and "docs/training.md: " in text
    assert not re.search(r"\]\((?!https://)", text) and "![" not in text


def test_commands_are_documented():
    page = (ROOT / "docs" / "sampling.md").read_text()
    listed = page.partition("brings the commands")[2].partition("the same as")[0]
    assert set(re.findall(r"`(?:hamgan)?-(\w+)`", listed)) == set(COMMANDS)


@pytest.mark.parametrize("words", [[], ["train"]])
def test_segmentation_is_called_as_it_was_installed(words):
    argv = ["/usr/bin/hamgan-segment", *words, "--help"]
    code = f"import sys; sys.argv = {argv}; from hamgan.cli import commands; commands.segment()"
    told = run(code).stdout
    assert "    hamgan-segment train --gin_file=" in told and "scripts/segment.py" not in told


def test_a_configuration_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.find("digits") == sources.find("configs/digits.gin")
    assert sources.find("digits") == str(ROOT / "configs" / "digits.gin")
    (tmp_path / "digits").mkdir()  # a folder of this name isn't meant
    assert sources.find("digits") == str(ROOT / "configs" / "digits.gin")
    (tmp_path / "mine.gin").write_text("")
    assert sources.find("mine.gin") == "mine.gin"
    with pytest.raises(ValueError, match="There is no --gin_file=mine. Shipped: "):
        sources.find("mine")


@pytest.mark.parametrize(
    "job, arguments, words",
    [
        *((job, ["--help"], "--data_dir") for job in commands.JOBS),
        ("digits_recognition", ["--help"], "samples.npz"),
        ("folder", ["--imagedir=x"], "Did you mean: image_dir"),
        ("pack", ["--size=0"], "flag --size=0: 0 is not"),
        ("segmentation", ["--dataset=coco"], "<voc2012|pascal_context|ade20k|folder>"),
        ("features", [], "data must have a value"),
        ("features", ["--data="], "--data is empty; is a variable of your shell not set?"),
        ("imagenet", ["photos"], "Arguments without a flag name: ['photos']"),
    ],
)
def test_jobs_answer_help_and_wrong_flags_without_tensorflow(job, arguments, words):
    path = str(ROOT / "data_prep" / f"{job}.py")
    result = run(_HELP.format(script=path, arguments=[path, *arguments]))
    assert words in result.stdout + result.stderr
    assert "\nwithout TensorFlow" in result.stdout


def test_a_job_is_known_by_its_name_wherever_it_lies(tmp_path):
    """By a link, and in a checkout beside an installation."""
    (tmp_path / "link").symlink_to(ROOT)
    copied = tmp_path / "checkout" / "data_prep"
    copied.mkdir(parents=True)
    shutil.copy(ROOT / "data_prep" / "folder.py", copied)
    for path in (tmp_path / "link" / "data_prep" / "folder.py", copied / "folder.py"):
        found = run(_HELP.format(script=str(path), arguments=[str(path), "--help"]))
        assert "--image_dir" in found.stdout, found.stderr


def test_names_of_choices_are_those_of_the_code():
    assert tuple(context_modules.MODULES) == names.MODULES
    assert (*step.MODULES, step.PUBLISHED) == names.STEP_NETWORKS and tuple(
        step.SIZES
    ) == names.STEP_SIZES
    assert sorted(benchmark.commands()) == sorted(benchmark.COMMANDS)
    assert tuple(importing.ATTENTIONS) == choices.PUBLISHED_ATTENTIONS
    assert (*segmentation.NUM_IMAGES, "folder") == choices.SEGMENTATION_SOURCES


def test_prepare_knows_its_jobs():
    code = "import sys; from data_prep import commands; sys.argv = ['x', {!r}]; commands.run()"
    assert "imagenet" in run(code.format("--help")).stdout
    helped = "import sys; from data_prep import commands; sys.argv = ['x', 'folder', '--help']; "
    told = run(helped + "commands.run()").stdout
    assert "hamgan-prepare features --data=" in told and "hamgan-train" in told
    assert "python data_prep" not in told and "--image_dir" in told
    result = run(code.format("fodler"))
    assert "The job must be one of" in result.stderr and "fodler" in result.stderr
    assert result.returncode != 0
