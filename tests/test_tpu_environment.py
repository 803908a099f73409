"""The TPU environment's lists agree with setup.py, and its check says what is wrong."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from hamgan.checks import environment as check_environment

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    # What the checks accept, no more and no less.
    accepted = check_environment.TENSORFLOW_VERSIONS
    assert [
        v for v in ("2.19", "2.20", "2.21", "2.22") if tensorflow.specifier.contains(f"{v}.1")
    ] == [*accepted]


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
            re.match(f"FAIL  {text}.* Do: .*requirements-tpu-3.1[012].lock", line) for line in lines
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


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_lock_files_hold_all_that_is_required(python):
    locked = {r.name: r for r in requirements(f"requirements-tpu-{python}.lock")}
    assert all(len(r.specifier) == 1 and str(r.specifier)[:2] == "==" for r in locked.values())
    for name in ("requirements-tpu.txt", "requirements-tpu-nodeps.txt"):
        for requirement in requirements(name):
            if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
                continue
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            version = str(locked[key].specifier).removeprefix("==")
            assert requirement.specifier.contains(version), requirement
    others = set(check_environment.TENSORFLOW_WHEELS) - {"tensorflow-tpu"}
    assert not others & set(locked)
    pair = {name: str(locked[name].specifier)[2:] for name in ("tensorflow-tpu", "libtpu")}
    assert check_environment.pairing_errors(pair) == []


class Lines:
    """Takes a report's place: {what was checked: its error}."""

    def __init__(self):
        self.errors = {}

    def check(self, what, error, remedy):
        self.errors[what] = error

    skip = check


@pytest.mark.parametrize("libtpu", check_environment.LIBTPU_PAIRS["2.20.0"])
def test_every_pair_that_loads_passes(libtpu, monkeypatch):
    python = "{}.{}".format(*sys.version_info)
    locked = requirements(f"requirements-tpu-{python}.lock")
    installed = {
        re.sub(r"[-_.]+", "-", r.name).lower(): str(r.specifier).removeprefix("==")
        for r in locked
        if not r.marker or r.marker.evaluate()
    }
    monkeypatch.setattr(check_environment, "_check_devices", lambda *_, **__: True)

    def lines(**others):
        there = {**installed, "libtpu": libtpu, **others}
        monkeypatch.setattr(check_environment, "installed_packages", lambda: there)
        report = Lines()
        check_environment.check_tensorflow(report, tpu=True)
        return {w: e for w, e in report.errors.items() if w.startswith("versions")}

    pinned = installed["libtpu"]
    note = "" if libtpu == pinned else f", but for libtpu {libtpu}, which loads too"
    assert lines() == {
        f"versions as required{note}": "",
        "versions that work together": "",
    }
    wrong = lines(libtpu="0.0.52")
    assert "libtpu must be" in wrong["versions as required"]
    assert "not 0.0.52" in wrong["versions that work together"]


def test_pairs_that_do_not_load_are_told():
    errors = check_environment.pairing_errors
    assert "0.0.21" in errors({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.52"})[0]
    assert "never seen" in errors({"tensorflow-tpu": "2.19.0", "libtpu": "0.0.21"})[0]
    assert errors({"tensorflow-tpu": "2.20.0", "libtpu": "0.0.29"}) == []
