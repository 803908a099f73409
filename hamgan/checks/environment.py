"""Checks that this Python environment can run HamGAN: a line for each check, `ok` or `FAIL` with
what to do.

    python scripts/check_environment.py         what `pip install -e .` makes
    python scripts/check_environment.py --tpu   what requirements-tpu.txt makes, on a TPU VM or
                                                on any other machine

The exit status is 1 when a check failed. It imports nothing but Python's own library at first, so
that it can speak where nothing else is installed.
"""

import argparse
import glob
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import warnings

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REQUIREMENTS = "requirements-tpu.txt"
REQUIREMENTS_NODEPS = "requirements-tpu-nodeps.txt"
# The first is the only one that has a wheel for TPUs.
TENSORFLOW_VERSIONS = ("2.20", "2.21")
# All of them unpack into the folder `tensorflow`.
TENSORFLOW_WHEELS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tensorflow-tpu",
    "tf-nightly",
    "tf-nightly-cpu",
    "tf-nightly-tpu",
)
# {tensorflow-tpu: versions of libtpu that it was seen to load}. With 2.20.0, libtpu 0.0.10, 0.0.37
# and 0.0.52 end the process that imports TensorFlow.
LIBTPU_PAIRS = {"2.20.0": ("0.0.17", "0.0.21", "0.0.23.1", "0.0.24", "0.0.29")}
MODULES = (
    "keras",
    "tf_keras",
    "tensorflow_hub",
    "tensorflow_probability",
    "tensorflow_datasets",
    "gin",
    "absl",
    "importlib_resources",
    "matplotlib",
    "PIL",
    "scipy",
    "sklearn",
    "tqdm",
    "hamgan.tfgan",
    "hamgan.networks",
    "hamgan.trainer",
    "hamgan.loop",
)
INSTALL = "python -m pip install -e ."
# The lock file of this Python, made of both files above.
INSTALL_TPU = (
    "python -m pip install --no-deps -r requirements-tpu-{}.{}.lock && ".format(*sys.version_info)
    + "python -m pip install --no-deps -e ."
)
# What the child prints after this mark is the answer; libraries print before it.
_MARK = "devices of this environment: "
_LIST_DEVICES = f"""
import json
import tensorflow as tf
names = [device.name for device in tf.config.list_logical_devices()]
print({_MARK!r} + json.dumps([tf.__version__, names, tf.io.gfile.get_registered_schemes()]))
"""


def installed_packages():
    """{normalised name: version} of the distributions in this environment."""
    return {
        _normalised(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }


def wheel_error(installed, *, tpu):
    """What is wrong with the TensorFlow wheels among `installed`, or None.

    Args:
      installed: {normalised name: version}.
      tpu: whether it must be tensorflow-tpu; otherwise it must be any other, and only one.
    """
    found = [name for name in TENSORFLOW_WHEELS if name in installed]
    if tpu and found == ["tensorflow-tpu"]:
        return None
    if not tpu and len(found) == 1 and found != ["tensorflow-tpu"]:
        return None
    wanted = "tensorflow-tpu and no other" if tpu else "one for CPUs and GPUs"
    error = f"the TensorFlow wheel must be {wanted}; installed: {', '.join(found) or 'none'}"
    if len(found) > 1:
        error += ". They overwrite each other's files: start from a fresh virtual environment"
    return error


def pairing_errors(installed):
    """Sentences about what doesn't work together among `installed`, {normalised name: version}."""
    errors = []
    tf_keras = installed.get("tf-keras")
    for name in TENSORFLOW_WHEELS:
        version = installed.get(name)
        if version and tf_keras and version.split(".")[:2] != tf_keras.split(".")[:2]:
            errors.append(f"{name} {version} and tf-keras {tf_keras} must be of one minor version")
    libtpu, wheel = installed.get("libtpu"), installed.get("tensorflow-tpu")
    if wheel and wheel not in LIBTPU_PAIRS:
        errors.append(
            f"tensorflow-tpu {wheel} was never seen to load a libtpu; {', '.join(LIBTPU_PAIRS)} was"
        )
    elif wheel and libtpu not in LIBTPU_PAIRS[wheel]:
        errors.append(
            f"tensorflow-tpu {wheel} was seen to load libtpu {', '.join(LIBTPU_PAIRS[wheel])}, but "
            f"not {libtpu or 'none'}"
        )
    return errors


def is_known_pair(installed):
    """Whether tensorflow-tpu and libtpu of `installed` were seen to work together."""
    return installed.get("libtpu") in LIBTPU_PAIRS.get(installed.get("tensorflow-tpu"), ())


def requirement_errors(requirements, installed, *, waived=()):
    """What `installed` lacks of a list of requirements.

    Args:
      requirements: lines as pip takes them; comments, empty lines and those for other Pythons are
        passed over.
      installed: {normalised name: version}.
      waived: normalised names that aren't asked for.

    Returns:
      A list of sentences, empty when all is there.
    """
    from packaging.requirements import Requirement

    errors = []
    for line in requirements:
        line = line.partition("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        if _normalised(requirement.name) in waived:
            continue
        # `extra == "test"` and the like are false here: only what every environment needs is asked
        # for.
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(_normalised(requirement.name))
        if version is None:
            errors.append(f"{requirement.name}{requirement.specifier} isn't installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            errors.append(f"{requirement.name} must be {requirement.specifier}, but is {version}")
    return errors


def _normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(tpu):
    if not tpu:
        return importlib.metadata.requires("hamgan") or []
    lines = []
    for name in (REQUIREMENTS, REQUIREMENTS_NODEPS):
        with open(os.path.join(REPOSITORY, name), encoding="utf-8") as file:
            lines += file.read().splitlines()
    return lines


class Report:
    """Prints one line per check and counts the failures."""

    def __init__(self):
        self.failures = 0

    def check(self, what, error, remedy):
        """Prints `what` when `error` is empty, else the error and what to do. Returns whether it
        was ok.
        """
        if not error:
            print(f"ok    {what}", flush=True)
            return True
        self.failures += 1
        print(f"FAIL  {what}: {' '.join(str(error).split()).rstrip('.')}. Do: {remedy}", flush=True)
        return False

    def skip(self, what):
        """Prints that `what` wasn't checked."""
        print(f"skip  {what}", flush=True)


def _why_ended(child):
    lines = child.stderr.strip().splitlines()
    telling = [
        line for line in lines if "Error" in line or "not available in this library" in line
    ] or lines
    how = (
        f"ended by signal {-child.returncode}"
        if child.returncode < 0
        else f"exit status {child.returncode}"
    )
    return f"{how}: {telling[-1] if telling else 'no message'}"


def _check_devices(report, *, tpu, install):
    """TensorFlow and its devices, from a child process: an unsuitable libtpu aborts the process
    that loads it.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", _LIST_DEVICES],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return report.check(
            "import tensorflow",
            "no answer within 600 seconds",
            "end other programs that use the TPU (sudo lsof /dev/accel* /dev/vfio/*), or export "
            "TPU_SKIP_MDS_QUERY=1 "
            "when this machine has no TPU",
        )
    if child.returncode or _MARK not in child.stdout:
        return report.check("import tensorflow", _why_ended(child), install)
    version, devices, schemes = json.loads(child.stdout.rpartition(_MARK)[2])
    report.check("import tensorflow", None, install)
    wanted = TENSORFLOW_VERSIONS[:1] if tpu else TENSORFLOW_VERSIONS
    other = not version.startswith(tuple(f"{one}." for one in wanted))
    report.check(
        f"TensorFlow {version}", f"it must be {'.* or '.join(wanted)}.*" if other else None, install
    )
    report.check(
        "gs:// paths", None if "gs" in schemes else f"this TensorFlow knows only {schemes}", install
    )
    if not tpu:
        report.check(
            f"devices {', '.join(devices)}", None if devices else "there are none", install
        )
    elif os.environ.get("TPU_LOAD_LIBRARY") == "0":
        # On a slice of several hosts the image's TensorFlow server holds the chips; this process
        # only talks to it.
        report.skip("libtpu: TPU_LOAD_LIBRARY=0")
    else:
        found = "/device:TPU_SYSTEM:0" in devices
        report.check(
            f"libtpu loads, devices {', '.join(devices)}",
            None if found else "there is no /device:TPU_SYSTEM:0",
            f"unset TPU_LIBRARY_PATH if it is set; {install}",
        )
    return True


def check_tensorflow(report, *, tpu):
    """Checks versions, and that TensorFlow can be imported at all.

    Args:
      report: a `Report`, or what has its `check` and `skip`.
      tpu: whether this is to be the environment of requirements-tpu.txt.

    Returns:
      Whether this process may import TensorFlow.
    """
    install = INSTALL_TPU if tpu else INSTALL
    python = ".".join(map(str, sys.version_info[:3]))
    report.check(
        f"Python {python}",
        None
        if (3, 10) <= sys.version_info[:2] <= (3, 12)
        else "TensorFlow 2.20 on TPUs needs 3.10, 3.11 or 3.12",
        "make the virtual environment with one of those, e.g. python3.11 -m venv",
    )
    installed = installed_packages()
    report.check(
        "the project is installed",
        None if "hamgan" in installed else "there is no package hamgan",
        install,
    )
    report.check(
        "one TensorFlow wheel",
        wheel_error(installed, tpu=tpu),
        f"in a fresh virtual environment: {install}",
    )
    as_required = "versions as required"
    # The pin is one of several that load.
    waived = ("libtpu",) if tpu and is_known_pair(installed) else ()
    try:
        requirements = _requirements(tpu)
        errors = requirement_errors(requirements, installed, waived=waived)
        if requirement_errors(requirements, installed) != errors:
            as_required += f", but for libtpu {installed['libtpu']}, which loads too"
    except ImportError as error:
        errors = [f"{error} (it is needed to compare versions)"]
    except OSError as error:
        errors = [f"{error} (run the script of a complete checkout)"]
    report.check(as_required, "; ".join(errors), install)
    report.check("versions that work together", "; ".join(pairing_errors(installed)), install)
    # Without a TPU libtpu would look for Google's metadata server for minutes.
    if tpu and not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return _check_devices(report, tpu=tpu, install=install)


def check(*, tpu):
    """Runs all checks, prints their lines and returns how many failed."""
    report = Report()
    if check_tensorflow(report, tpu=tpu):
        # That libtpu loads is known by now; loading it once more here would only bring its
        # complaints again.
        os.environ["TPU_LOAD_LIBRARY"] = "0"
        # tensorflow-hub's import of pkg_resources.
        warnings.simplefilter("ignore")
        for name in MODULES:
            error = None
            try:
                importlib.import_module(name)
            except (
                Exception
            ) as exception:  # Whatever a package does at import, the other lines are wanted too.
                error = f"{type(exception).__name__}: {exception}"
            report.check(f"import {name}", error, INSTALL_TPU if tpu else INSTALL)
    return report.failures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tpu", action="store_true", help="check for the environment of requirements-tpu.txt"
    )
    failures = check(tpu=parser.parse_args().tpu)
    if failures:
        sys.exit(f"{failures} of the checks failed.")
    print("This environment is complete.")
