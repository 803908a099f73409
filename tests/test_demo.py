"""The demo at full length keeps what README promises of it."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(script, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the demo's run, and what it printed at its end."""
    folder = tmp_path_factory.mktemp("demo")
    data, model = f"--data_dir={folder}/data", f"--model_dir={folder}/runs/digits"
    run("data_prep/digits.py", data)
    run("data_prep/digits_features.py", data)
    run("scripts/train.py", "--gin_file=configs/digits.gin", model, data)
    run("scripts/sample.py", model, "--per_class=100", f"--output={folder}/runs/digits/samples.npz")
    return folder, run("data_prep/digits_recognition.py", model, data)


@pytest.mark.slow
def test_demo_learns_the_digits(demo):
    folder, output = demo
    records = [
        json.loads(line)
        for line in (folder / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
    ]
    fid = {record["step"]: record["fid"] for record in records if record["kind"] == "evaluation"}
    assert fid[max(fid)] <= fid[0] / 10
    recognised = float(re.search(r"real digits: ([\d.]+)% of 1,000", output)[1])
    assert recognised >= 95


def readme_commands():
    """The commands of README that need no more than the demo's run, one per line."""
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^    (python scripts/.*)$", text, flags=re.MULTILINE)
    return [
        " ".join(line.split())
        for line in lines
        if "--model_dir=runs/digits " in line + " " and "gin_file" not in line
    ]


def test_readme_has_commands_to_evaluate_and_sample():
    scripts = [command.split()[1] for command in readme_commands()]
    assert {"scripts/evaluate.py", "scripts/sample.py"} <= set(scripts)


@pytest.mark.slow
@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_run_as_they_stand(demo, command):
    folder, _ = demo
    _, script, *arguments = shlex.split(command)
    result = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    names = set(re.findall(r"\b(?:configs|scripts|data_prep|hamgan|docs)/[\w/]*\.\w+", text))
    assert len(names) > 10
    missing = {name for name in names if not (ROOT / name).exists()}
    assert not missing
