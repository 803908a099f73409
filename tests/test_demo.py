"""The demo keeps what README and docs promise of it, at two fifths of its length."""

import json
import pathlib
import re
import sys

import documentation
import forked
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(script, *arguments):
    result = forked.run([sys.executable, script, *arguments], timeout=3000)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the demo's run, and what it printed at its end."""
    folder = tmp_path_factory.mktemp("demo")
    data, model = f"--data_dir={folder}/data", f"--model_dir={folder}/runs/digits"
    run("data_prep/digits.py", data)
    run("data_prep/digits_features.py", data)
    shorter = "--gin_param=loop.Schedule.num_steps=600"
    run("scripts/train.py", "--gin_file=configs/digits.gin", model, data, shorter)
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
    assert fid[600] <= fid[0] / 10
    recognised = float(re.search(r"real digits: ([\d.]+)% of 1,000", output)[1])
    assert recognised >= 50  # 10 by chance


def demo_commands():
    """The commands of README and docs that need no more than the demo's run."""
    return list(
        dict.fromkeys(  # pages share some of them
            tuple(words)
            for page in documentation.PAGES
            for words in documentation.commands(page)
            if words[0] == "python"
            and "--model_dir=runs/digits" in words
            and not any(word.startswith("--gin_file") for word in words)
        )
    )


def test_readme_has_commands_to_evaluate_and_sample():
    scripts = [words[1] for words in demo_commands()]
    assert {"scripts/evaluate.py", "scripts/sample.py"} <= set(scripts)


@pytest.mark.slow
@pytest.mark.parametrize("command", demo_commands(), ids=" ".join)
def test_readme_commands_run_as_they_stand(demo, command):
    if any("onnx" in word for word in command):
        pytest.importorskip("onnx", reason="ONNX is an extra")
    folder, _ = demo
    _, script, *arguments = command
    # As many images as a FID takes are two minutes of the same.
    arguments = [word.replace("--count=50000", "--count=500") for word in arguments]
    result = forked.run([sys.executable, ROOT / script, *arguments], cwd=folder, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
