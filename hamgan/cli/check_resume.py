"""Proves on your own set-up that a resumed run is the same run: N steps, a restart and N steps
equal 2N steps.

    python scripts/check_resume.py --gin_file=configs/digits.gin --data_dir=data --steps=20

Trains 2N steps in one process, and N and N in two others, in a temporary folder, and compares every
variable of the two
last checkpoints: weights, Adam's moments, batch-norm moments, spectral-norm vectors, step. Exits
with 0 if all are equal, bit for bit. Where the device isn't deterministic (most GPUs), --tolerance
allows a difference.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

from hamgan.cli import common, lazily
from hamgan.run.folder import Folder

with lazily.imports():
    from hamgan.cli import configuration
    from hamgan.run import checkpoints, contents

FLAGS = flags.FLAGS


def configuration_files(gin_files, model_dir, trusted_modules=()):
    """Those that were given, or the one that the run in model_dir has kept."""
    if not gin_files and not model_dir:
        raise ValueError(
            "No configuration: give --gin_file, or --model_dir of a run whose configuration to "
            "check."
        )
    if not gin_files:
        # As a file the trainings will trust it.
        configuration.load_experiment(model_dir=model_dir, trusted_modules=trusted_modules)
    return gin_files or [Folder(model_dir).config]


def train(model_dir, steps, *, never, flags_of_run):
    """Trains in a process of its own, as scripts/train.py does, until `steps`.

    Args:
      model_dir: the folder of this training.
      steps: where it ends.
      never: a step that isn't reached.
      flags_of_run: other flags of the training, as written on a command line.
    """
    schedule = dict(
        num_steps=steps, save_every=never, sample_every=never, evaluate_every=never, max_rollbacks=0
    )
    arguments = [
        sys.executable,
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py"),
        f"--model_dir={model_dir}",
        "--mode=train",
        *flags_of_run,
        *(f"--gin_param=loop.Schedule.{name} = {value}" for name, value in schedule.items()),
    ]
    if subprocess.run(arguments).returncode:
        raise ValueError(f"Training failed (see above): {' '.join(arguments)}")
    return checkpoints.find(model_dir, checkpoints.name_of(steps))


def differences(first, second):
    """{name: largest difference, relative to the largest value} of two checkpoints' variables."""
    first, second = (contents.load(path) for path in (first, second))
    if first.keys() != second.keys():
        raise ValueError(f"Only one of the checkpoints has {sorted(first.keys() ^ second.keys())}.")
    return {name: _difference(first[name], second[name]) for name in first}


def _difference(one, other):
    if one.tobytes() == other.tobytes():
        return 0.0
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    # At least the smallest number: -0 and 0 are equal numbers, but not the same.
    return max(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30), sys.float_info.min)


def main():
    steps = FLAGS.steps
    files = configuration_files(FLAGS.gin_file, FLAGS.model_dir, FLAGS.trust_module)
    common_arguments = dict(
        never=2 * steps + 1,
        flags_of_run=[
            *(f"--{name}={FLAGS[name].value}" for name in ("data_dir", "accelerator", "tpu")),
            *(f"--gin_file={path}" for path in files),
            *(f"--gin_param={param}" for param in FLAGS.gin_param),
        ],
    )
    with tempfile.TemporaryDirectory(prefix="hamgan_resume_") as folder:
        whole, parts = os.path.join(folder, "whole"), os.path.join(folder, "parts")
        print(f"{2 * steps} steps", flush=True)
        expected = train(whole, 2 * steps, **common_arguments)
        for part in (1, 2):
            print(
                f"{steps} steps, {'' if part == 1 else 'and again '}in a new process",
                flush=True,
            )
            path = train(parts, part * steps, **common_arguments)
        found = differences(expected, path)
    parts = {}
    for name, difference in found.items():
        parts.setdefault(name.split("/")[0], {})[name] = difference
    failed = False
    for part, of_part in parts.items():
        name = max(of_part, key=of_part.get)
        differing = sum(difference > 0 for difference in of_part.values())
        if not differing:
            verdict = "equal bit for bit"
        else:
            verdict = (
                f"{differing} differ, at most by {of_part[name]:.2g} of the largest entry: {name}"
            )
            failed |= of_part[name] > FLAGS.tolerance or np.isnan(of_part[name])
        print(f"{part:<24} {len(of_part):>4} variables  {verdict}")
    print(
        "FAILED: a resumed run isn't the same run."
        if failed
        else "OK: a resumed run is the same run."
    )
    sys.exit(int(failed))


def define_flags():
    """Defines the flags of the command."""
    common.define_flags(model_dir_required=False)
    flags.DEFINE_integer("steps", 20, "N.", lower_bound=1)
    flags.DEFINE_float(
        "tolerance",
        0.0,
        "Allowed difference, relative to a variable's largest entry.",
        lower_bound=0.0,
    )


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
