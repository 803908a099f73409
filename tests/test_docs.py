"""README and docs say what is: their commands are commands, their settings settings, their files
there.
"""

import functools
import json
import os
import re
import subprocess
import sys

import documentation
import pytest
from documentation import PAGES, ROOT

TRAIN = ("scripts/train.py",)
LAUNCHER = "scripts/launch_tpu.py"
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
MAKEFILE = (ROOT / "Makefile").read_text()


def everything():
    """All commands for Python, and all bindings as commands of their own: [(page, words), ...]."""
    found = []
    for page in PAGES:
        for words in documentation.commands(page):
            # The launcher has flags of its own kind: see `test_launches_are_understood`.
            if words[0] == "python" and words[1].endswith(".py") and words[1] != LAUNCHER:
                found.append((page.name, tuple(words[1:])))
        script = ("scripts/segment.py", "train") if page.stem == "segmentation" else TRAIN
        for bindings in documentation.bindings(page):
            params = (f"--gin_param={binding}" for binding in bindings)
            found.append((page.name, (*script, "--model_dir=runs/mine", *params)))
    return found


EVERYTHING = everything()


def faults(commands):
    """What is wrong with each command, '' for nothing, from one process."""
    paths = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "documentation.py")],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@functools.cache
def verdicts():
    """{words: what is wrong with them} of all commands."""
    words = sorted({words for _, words in EVERYTHING})
    return dict(zip(words, faults(words), strict=True))


def cases():
    for page, words in EVERYTHING:
        yield pytest.param(words, id=f"{page}: {' '.join(words)}")


@pytest.mark.parametrize("words", cases())
def test_commands_have_known_flags_and_settings(words):
    assert verdicts()[words] == ""


def test_wrong_commands_are_found():
    run = "--model_dir=runs/mine"
    wrong = {
        ("scripts/train.py", run, "--modle=train"): "modle",
        ("scripts/train.py", run, "--mode=trian"): "trian",
        ("scripts/train.py",): "model_dir",
        ("scripts/train.py", run, "--gin_file=configs/digits.gn"): "digits.gn",
        ("scripts/train.py", run, "--gin_param=trainer.Trainer.sead = 1"): "sead",
        ("scripts/evaluate.py", run, "--protocol=papier"): "papier",
        ("scripts/gone.py",): "gone.py",
        ("scripts/segment.py", "train", run, "--gin_param=data.SegmentationDataset.nam = 1"): "nam",
        ("scripts/segment.py", "predct", run): "predct",
    }
    for word, fault in zip(wrong.values(), faults(list(wrong)), strict=True):
        assert word in fault


def test_each_kind_of_command_is_found():
    scripts = {words[0] for _, words in EVERYTHING}
    assert {"scripts/train.py", "scripts/evaluate.py", "scripts/sample.py"} <= scripts
    assert {"data_prep/imagenet.py", "scripts/doctor.py", "scripts/benchmark.py"} <= scripts
    assert sum("--gin_param" in " ".join(words) for _, words in EVERYTHING) > 15


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_pages_name_only_what_exists(page):
    text = page.read_text()
    folders = "configs|scripts|data_prep|hamgan|docs|tests"
    names = set(re.findall(rf"\b(?:{folders})/[\w/]*\.\w+", text))
    assert not {name for name in names if not (ROOT / name).exists()}
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    targets = re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.MULTILINE)
    assert not [t for t in targets if not re.search(rf"^{t}:", MAKEFILE, flags=re.MULTILINE)]


def test_pages_can_be_reached_from_readme():
    text = (ROOT / "README.md").read_text()
    assert not [name for name in IDS if name != "README.md" and f"({name})" not in text]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lines_have_100_columns(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 100]


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def launches():
    return [
        words[1:]
        for page in PAGES
        for words in documentation.commands(page)
        if words[:2] == ["python", LAUNCHER]
    ]


def test_launches_are_found():
    assert {"up", "install", "train", "down"} <= {words[1] for words in launches()}


@pytest.mark.parametrize("words", launches(), ids=" ".join)
def test_launches_are_understood(words):
    result = subprocess.run(
        # With a repository: where the tests are there may be none.
        [sys.executable, *words, "--dry_run", "--repository=https://example.com/hamgan.git"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "gcloud" in result.stdout
