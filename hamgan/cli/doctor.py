"""Checks machine, data set and configuration of a run before it costs anything.

    python scripts/doctor.py --gin_file=configs/digits.gin --model_dir=runs/mine --data_dir=data
    python scripts/doctor.py --gin_file=configs/hamgan_strong.gin --model_dir=gs://BUCKET/strong \\
        --data_dir=gs://BUCKET/tensorflow_datasets --accelerator=tpu --steps_per_second=2.5

Give it the flags of the training that is to follow. It prints one line per check:

    ok    all is well
    warn  a run works, but maybe not as it was meant
    fail  a run would stop or compute nonsense; the line ends with what to do
    skip  not checked, and why

and exits with status 1 when one failed, else 0. Checked are: versions of Python, TensorFlow,
tf-keras and libtpu; devices and batch size; whether model_dir and data_dir can be written; free
disk for the checkpoints; memory for the shuffle buffer; the feature network; that the data set is
complete, its files whole, its labels those of the classes; a sample of decoded images; the input's
images per second. doctor.png in model_dir shows images beside the names of their
classes: look at it. It, and model_dir if there was none, is all that stays behind.

All records are read once (ImageNet: about 145 GB); --quick reads samples. --json prints one JSON
object and nothing
else: {"ok": true, "checks": [{"name": ..., "status": ..., "message": ..., "remedy": ...}, ...]}.

Where packages are missing, start with scripts/check_environment.py.
"""

import argparse
import contextlib
import functools
import sys

# Python's own library alone: TensorFlow may be what is wrong.
from hamgan.checks import environment as check_environment
from hamgan.checks.outcome import Checkup, fail, ok, skip

MODES = ("train_and_evaluate", "train")


class Environment:
    """What check_environment finds, as outcomes of a checkup."""

    def __init__(self, checkup):
        self._checkup = checkup

    def check(self, what, error, remedy):
        self._checkup.check(
            "environment", lambda: fail(f"{what}: {error}", remedy) if error else ok(what)
        )
        return not error

    def skip(self, what):
        self._checkup.check("environment", lambda: skip(what))


def early_flags(argv):
    """The flags that matter before TensorFlow, and with it the rest of the flags, is imported."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--json", nargs="?", const="true", default="false")
    return parser.parse_known_args(argv)[0]


def finish(checkup, *, as_json):
    """Prints what is left to print and ends the process."""
    print(checkup.json() if as_json else checkup.summary())
    sys.exit(checkup.failed())


def import_project():
    """The modules that import TensorFlow, to be called when it is known that it can be imported."""
    from hamgan.cli import streams

    streams.import_tensorflow()
    from hamgan import distribution
    from hamgan.checks import doctor
    from hamgan.cli import common, configuration, lazily

    lazily.load()
    modules = (common, configuration, distribution, doctor)
    return ok("the project's modules import", value=modules)


def answer_at_once():
    """Help, and words on wrong flags, without TensorFlow; returns where there is more to do.

    Where nothing is installed the checks will say so.
    """
    try:
        from absl import flags

        from hamgan.cli import common
    except ImportError:
        return
    define_flags(common)
    common.show_in_help(sys.modules[__name__], common)
    try:
        flags.FLAGS(sys.argv)
    except flags.Error:  # --help isn't known yet either
        common.run(lambda: None)
    flags.FLAGS.unparse_flags()


def define_flags(common):
    """Defines the flags of the command."""
    from absl import flags

    from hamgan.cli import paths

    common.define_flags()
    common.define_data_flag()
    flags.DEFINE_bool("json", False, "Print JSON and nothing else.")
    flags.DEFINE_bool("quick", False, "Read samples of the records instead of all.")
    paths.define_path(
        "output",
        None,
        "PNG file of images and their classes' names; default: model_dir/doctor.png.",
    )
    flags.DEFINE_enum(
        "mode",
        MODES[0],
        MODES,
        "Of the training that is to follow: train needs no feature network.",
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "Of the machine the run is meant for, 8 for a v3-8; default: this one's.",
        1,
    )
    flags.DEFINE_float(
        "seconds", 5.0, "How long the input's speed is measured; 0: not at all.", 0.0
    )
    flags.DEFINE_float(
        "steps_per_second", None, "Of the device, if known: warn when the input can't keep up.", 0.0
    )


def main(checkup, common, configuration, distribution, doctor):
    from absl import flags

    FLAGS = flags.FLAGS

    def load(data, data_dir, gin_files, **others):
        distribution.cluster_in_words()  # as training will read it
        others["gin_files"] = gin_files
        of_data = common.settings_of_data(data, data_dir=data_dir, **others)
        experiment = configuration.load_experiment(**others, of_data=of_data)
        return ok(", ".join(gin_files) or "the one kept in model_dir", value=experiment)

    def examine(*, as_json, create_strategy, loading, **what):
        # Whatever libraries print must not get into the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            loaded = checkup.check(
                "configuration",
                lambda: load(**loading),
                remedy="correct the gin file or --gin_param",
            )
            doctor.examine(checkup, loaded, create_strategy=create_strategy, **what)
        finish(checkup, as_json=as_json)

    common.run(
        lambda: examine(
            as_json=FLAGS.json,
            create_strategy=functools.partial(
                distribution.create_strategy, FLAGS.accelerator, FLAGS.tpu, across_hosts=False
            ),
            loading=dict(data=FLAGS.data, data_dir=FLAGS.data_dir, **common.configuration_flags()),
            model_dir=FLAGS.model_dir,
            data_dir=FLAGS.data_dir,
            output=FLAGS.output,
            quick=FLAGS.quick,
            evaluate=FLAGS.mode != "train",
            replicas=FLAGS.replicas,
            seconds=FLAGS.seconds,
            steps_per_second=FLAGS.steps_per_second,
        )
    )


def run():
    """The command."""
    answer_at_once()
    early = early_flags(sys.argv[1:])
    as_json = early.json == "true"
    checkup = Checkup(
        publish=None if as_json else lambda outcome: print(outcome.line(), flush=True)
    )
    tpu = early.accelerator == "tpu" or "tensorflow-tpu" in check_environment.installed_packages()
    if not check_environment.check_tensorflow(Environment(checkup), tpu=tpu):
        checkup.check("all else", lambda: skip("it needs TensorFlow"))
        finish(checkup, as_json=as_json)
    modules = checkup.check("environment", import_project)
    if modules.value is None:
        finish(checkup, as_json=as_json)
    main(checkup, *modules.value)
