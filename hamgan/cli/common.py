"""What the commands share: the flags of a run, and errors as one readable message."""

import os
import re
import sys

from absl import app, flags, logging

from hamgan import choices
from hamgan.cli import lazily, paths, streams

with lazily.imports():
    from hamgan import distribution, fitting
    from hamgan.cli import configuration
    from hamgan.run import checkpoints

FLAGS = flags.FLAGS


def define_flags(*, model_dir_required=True):
    """Defines the flags of a run."""
    paths.define_path(
        "model_dir",
        None,
        "The run's folder: checkpoints, metrics, samples. Local or gs://.",
        required=model_dir_required,
    )
    paths.define_path(
        "data_dir",
        os.path.join(os.path.expanduser("~"), "tensorflow_datasets"),
        "Folder of the prepared TFDS data sets. Local or gs://.",
    )
    paths.define_paths(
        "gin_file",
        "Gin file of the experiment, or the name of a shipped one: digits, hamgan_strong; default: "
        "the configuration in model_dir.",
    )
    flags.DEFINE_multi_string(
        "gin_param",
        [],
        (
            'One more gin binding, e.g. "trainer.Trainer.batch_size=512". '
            "May be repeated; wins over files."
        ),
    )
    flags.DEFINE_multi_string(
        "trust_module",
        [],
        "A module of your own that the configuration in model_dir may name, and so run. Without it "
        "only hamgan's. May be repeated.",
    )
    flags.DEFINE_enum(
        "accelerator",
        "auto",
        choices.ACCELERATORS,
        "What to compute on. With several hosts in the environment variable TF_CONFIG: on all of "
        "them.",
    )
    flags.DEFINE_string(
        "tpu",
        os.environ.get("TPU_NAME") or "local",
        "With --accelerator=tpu: 'local' on a TPU VM, else the TPU's name; default: the "
        "environment variable TPU_NAME.",
    )


def define_data_flag():
    """Defines --data, of commands that begin with a gin file."""
    paths.define_name(
        "data",
        None,
        "A prepared data set in data_dir, which decides name, classes, size and reference split; "
        "with --gin_file=photos also width, batch and length. --gin_param wins over it.",
    )


def settings_of_data(name, *, data_dir, gin_files, gin_params, model_dir, **others):
    """{setting: value} that --data decides, printed; None without it.

    Args:
      name: what --data says.
      data_dir: folder of the prepared data sets.
      gin_files, gin_params, model_dir, others: of `configuration_flags`.

    Raises:
      ValueError: no such data set, or it doesn't fit; another one is set too.
    """
    del others
    if name is None:
        return None
    if not gin_files:
        raise ValueError(
            f"--data={name} goes with --gin_file, as --gin_file=photos; a run that is there keeps "
            "its data set in its configuration."
        )
    found = fitting.summarise(name, data_dir)
    chosen = configuration.settled(
        fitting.settings(found, data_dir),
        gin_files=gin_files,
        gin_params=gin_params,
        model_dir=model_dir,
    )
    print(fitting.in_words(found, chosen), file=sys.stderr, flush=True)
    return chosen


def run(main):
    """Runs a script's main function; wrong use ends with one readable message instead of a stack of
    calls.
    """

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Arguments without a flag name: {argv[1:]}. Write --name=value.")
        # Not before: wrong flags are told at once.
        tf = streams.import_tensorflow()
        lazily.load()
        # TensorFlow's notes on saved models and graph passes say nothing to a user.
        tf.get_logger().setLevel("ERROR")
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (
            ValueError,
            FloatingPointError,
            FileNotFoundError,
            checkpoints.NotSaved,
            distribution.HostLost,
        ) as error:
            logging.debug("Where it happened:", exc_info=True)
            sys.exit(f"\nERROR: {error}")
        except (PermissionError, tf.errors.PermissionDeniedError) as error:
            logging.debug("Where it happened:", exc_info=True)
            sys.exit(
                f"\nERROR: {getattr(error, 'message', error)}. A folder can't be written to: "
                "choose another --output or --model_dir, or see who may write there (ls -ld)."
            )
        except tf.errors.OpError as error:
            # What Python raises in a pipeline of data comes through TensorFlow, behind its
            # traceback.
            raised = re.findall(r"^(?:.*\s)?ValueError: (.+)$", error.message, re.MULTILINE)
            if not raised:
                raise
            logging.debug("Where it happened:", exc_info=True)
            sys.exit(f"\nERROR: {raised[-1]}")
        except TypeError as error:
            # Gin's own words for an argument that a configuration leaves out.
            if "In call to configurable" not in str(error):
                raise
            sys.exit(
                "\nERROR: The configuration lacks something, or gives what doesn't belong there: "
                f"{error}"
            )

    app.run(guarded)


def configuration_flags():
    """What the flags say of the configuration, as arguments of `configuration.load_experiment`."""
    return dict(
        gin_files=FLAGS.gin_file,
        gin_params=FLAGS.gin_param,
        model_dir=FLAGS.model_dir,
        trusted_modules=FLAGS.trust_module,
    )


def report_hosts():
    """Prints the hosts that compute together and which of them this is, where there are several."""
    words = distribution.cluster_in_words()
    if words:
        print(words, flush=True)


def define_checkpoint():
    """Defines the flag that chooses a checkpoint of the run."""
    paths.define_path(
        "checkpoint",
        None,
        "A checkpoint of the run: ckpt-1000, best, latest, or a path; default: the newest.",
    )


def define_generator():
    """Defines the flags that choose a checkpoint's generator: its weights, its moments."""
    flags.DEFINE_enum(
        "weights",
        None,
        [*choices.WEIGHTS],
        "The weights themselves, or their moving average; default: what the run is scored by.",
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        choices.BATCH_NORMS[:2],
        "Moments of batch norm, of training or of what these weights generate; default: as in "
        "sample.py.",
    )


def define_sink():
    """Defines the flag of where records go too."""
    flags.DEFINE_multi_string(
        "sink",
        [],
        "Where records go too: mlflow or mlflow=TRACKING_URI, wandb or wandb=PROJECT. May be "
        "repeated.",
    )


def show_in_help(*modules):
    """Shows the flags of these modules of the command in its --help, and the first one's words."""
    for module in modules:
        for flag in FLAGS.get_key_flags_for_module(module.__name__):
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    sys.modules["__main__"].__doc__ = as_called(modules[0].__doc__, sys.argv[0])


def as_called(text, command):
    """Words on a command, with the commands that are installed where it was called as one."""
    if not os.path.basename(command).startswith("hamgan-"):
        return text
    text = text.replace("python scripts/inspect_ham.py", "hamgan-inspect")
    text = re.sub(r"python data_prep/(\w+)\.py", r"hamgan-prepare \1", text)
    return re.sub(
        r"python scripts/(train|evaluate|sample|export|explore|sweep|doctor|segment|serve)\.py",
        r"hamgan-\1",
        text,
    )
