"""What the scripts share: flags of a run, the gin configuration and its errors, and the run's
folder.
"""

import dataclasses
import difflib
import glob
import inspect
import os
import re
import sys

import gin
import tensorflow as tf
from absl import app, flags, logging

from hamgan import distribution, experiment
from hamgan.evaluation import protocol as protocols
from hamgan.run import checkpoints, records
from hamgan.run.folder import Folder

FLAGS = flags.FLAGS
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_MODULES = (
    "augmentation context data decomposition experiment labels loop losses networks normalization "
    "regularization "
    "sampling schedules trainer"
).split()

# What a --gin_param may name, whether the gin file speaks of it or not.
_PARAM_HEADER = (
    "from __gin__ import dynamic_registration",
    *(f"from hamgan import {module}" for module in _MODULES),
    "from hamgan.evaluation import features",
    "from hamgan.evaluation import protocol",
    "from hamgan.evaluation import scores",
)

# Settings that say how long and how often, not what: a run may go on with others.
_CHANGEABLE = ("loop.Schedule.", "protocol.", "sampling.")


def define_flags(*, model_dir_required=True):
    """Defines the flags of a run."""
    flags.DEFINE_string(
        "model_dir",
        None,
        "The run's folder: checkpoints, metrics, samples. Local or gs://.",
        required=model_dir_required,
    )
    flags.DEFINE_string(
        "data_dir",
        os.path.join(os.path.expanduser("~"), "tensorflow_datasets"),
        "Folder of the prepared TFDS data sets. Local or gs://.",
    )
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "Gin file of the experiment, e.g. configs/digits.gin; default: the configuration in "
        "model_dir.",
    )
    flags.DEFINE_multi_string(
        "gin_param",
        [],
        (
            'One more gin binding, e.g. "trainer.Trainer.batch_size=512". '
            "May be repeated; wins over files."
        ),
    )
    flags.DEFINE_enum(
        "accelerator",
        "auto",
        distribution.ACCELERATORS,
        "What to compute on. With several hosts in the environment variable TF_CONFIG: on all of "
        "them.",
    )
    flags.DEFINE_string(
        "tpu",
        os.environ.get("TPU_NAME", "local"),
        "With --accelerator=tpu: 'local' on a TPU VM, else the TPU's name; default: the "
        "environment variable TPU_NAME.",
    )


def run(main):
    """Runs a script's main function; wrong use ends with one readable message instead of a stack of
    calls.
    """

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Arguments without a flag name: {argv[1:]}. Write --name=value.")
        # TensorFlow's notes on saved models and graph passes say nothing to a user.
        tf.get_logger().setLevel("ERROR")
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (ValueError, FloatingPointError, FileNotFoundError, checkpoints.NotSaved) as error:
            logging.debug("Where it happened:", exc_info=True)
            sys.exit(f"\nERROR: {error}")
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


def load_experiment(*, protocol=None):
    """Parses the configuration of the flags and builds the experiment from it.

    Args:
      protocol: name of a file in configs/protocols, or a gin file, that is read after all others;
        None: none.

    Raises:
      ValueError: no configuration, a file that isn't there, a name that nothing has, or a change to
        a protocol that has a name.
    """
    gin.add_config_file_search_path(_ROOT)
    gin.config.register_file_reader(lambda path: tf.io.gfile.GFile(path, "r"), tf.io.gfile.exists)
    saved = Folder(FLAGS.model_dir or "MODEL_DIR").config
    files = FLAGS.gin_file
    if not files:
        if not FLAGS.model_dir or not tf.io.gfile.exists(saved):
            raise ValueError(
                f"No configuration: {saved} isn't there and no --gin_file was given. Shipped: "
                f"{_shipped()}."
            )
        files = [saved]
    for file in files:
        if not any(tf.io.gfile.exists(path) for path in (file, os.path.join(_ROOT, file))):
            raise ValueError(f"There is no --gin_file={file}. Shipped: {_shipped()}.")
    if protocol:
        files = [*files, _protocol_file(protocol)]
    try:
        gin.parse_config_files_and_bindings(
            files, [*_PARAM_HEADER, *FLAGS.gin_param], finalize_config=True
        )
    except (
        ValueError,
        OSError,
        SyntaxError,
        ImportError,
        AttributeError,
        NameError,
        TypeError,
    ) as error:
        raise ValueError(
            f"The configuration can't be read: {error}\n(files: {files}, parameters: "
            f"{FLAGS.gin_param})"
        ) from error
    _check_names()
    _check_protocol_name()
    return gin.get_configurable(experiment.Experiment)()


def _shipped():
    return ", ".join(
        sorted(
            os.path.relpath(path, _ROOT)
            for path in glob.glob(f"{glob.escape(_ROOT)}/configs/*.gin")
        )
    )


def _protocol_file(protocol):
    shipped = sorted(tf.io.gfile.glob(os.path.join(_ROOT, "configs", "protocols", "*.gin")))
    names = {os.path.basename(path).removesuffix(".gin"): path for path in shipped}
    path = names.get(protocol, protocol)
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"--protocol must be one of {', '.join(names)}, or a gin file; there is no {protocol}."
        )
    return path


def _check_names():
    """Refuses macros of --gin_param that nothing uses, and parameters that a constructor would only
    find unknown when it is called, hours later at worst."""
    given = {param.split("=")[0].strip() for param in FLAGS.gin_param}
    references = [
        reference.config_key for reference in gin.config.iterate_references(gin.config._CONFIG)
    ]
    used = {scope for scope, selector in references if selector == "gin.macro"}
    for (scope, selector), bindings in gin.config._CONFIG.items():
        if selector == "gin.macro":
            if scope in given - used:
                near = difflib.get_close_matches(scope, used, 1)
                raise ValueError(
                    f"Nothing uses the macro {scope!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                    + f" Used are: {', '.join(sorted(used))}."
                )
            continue
        configurable = gin.config._REGISTRY[selector].wrapped
        known = [
            p.name
            for p in inspect.signature(configurable).parameters.values()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        for name in bindings:
            if name not in [*known, "dtype", "name"]:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"{selector} has no parameter {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                    + f" It has: {', '.join(known)}."
                )


def _check_protocol_name():
    """Refuses a --gin_param that makes something else of a protocol but leaves it its name."""
    changed = {
        param.split("=")[0].strip().rpartition(".")[2]
        for param in FLAGS.gin_param
        if "Protocol." in param
    }
    changed &= {field.name for field in dataclasses.fields(protocols.Protocol)} - {
        *protocols.NOT_DECIDING
    } | {"name"}
    try:
        name = gin.query_parameter("protocol.Protocol.name")
    except ValueError:  # not bound
        return
    if name and changed and "name" not in changed:
        raise ValueError(
            f"Protocol {name!r} with another {', '.join(sorted(changed))} is another protocol. "
            "Give it a name of its "
            "own: --gin_param=\"protocol.Protocol.name = 'NAME'\"."
        )


def resolved_configuration():
    """The configuration as text: every binding, whether this command uses it or not, and the
    defaults of all that has been built by now.

    Raises:
      ValueError: model_dir belongs to a run with other settings; the differences are listed.
    """
    path = Folder(FLAGS.model_dir).config
    # One line per binding, however long, so that lines can be compared.
    texts = gin.operative_config_str(max_line_length=10_000), gin.config_str(max_line_length=10_000)
    now = _bindings("\n".join(texts))
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "r") as file:
            before = _bindings(file.read())
        differing = [
            name for name in sorted(before.keys() | now.keys()) if _differs(name, before, now)
        ]
        if differing:
            raise ValueError(
                f"{FLAGS.model_dir} belongs to a run with other settings:\n"
                + "\n".join(
                    f"  {n} = {before.get(n, '(not set)')} there, {now.get(n, '(not set)')} asked "
                    "for"
                    for n in differing
                )
                + "\nChoose another --model_dir, or leave --gin_file and --gin_param out to go "
                "on with the settings that are there."
            )
    imports = {
        line
        for text in texts
        for line in text.splitlines()
        if line.startswith(("from ", "import "))
    }
    # Dynamic registration comes before what it is to register, macros before their use.
    imports = sorted(imports, key=lambda line: ("__gin__" not in line, line))
    lines = [
        f"{name} = {value}"
        for name, value in sorted(now.items(), key=lambda item: ("." in item[0], item))
    ]
    return "\n".join([*imports, "", *lines, ""])


def settle_configuration():
    """Writes `resolved_configuration()` into model_dir, after comparing it with the one that is
    there.
    """
    text = resolved_configuration()
    try:
        records.write_whole(Folder(FLAGS.model_dir).config, text.encode())
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"--model_dir={FLAGS.model_dir} can't be written: {error}") from error


def _bindings(text):
    """{'scope/module.Class.parameter': value} of a configuration with one binding per line."""
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    return dict(line.split(" = ", 1) for line in lines)


def _differs(name, before, now):
    """Whether a setting is another one; one that is only on one side is compared with its
    default.
    """
    if name.startswith(_CHANGEABLE):
        return False
    if name in before and name in now:
        return before[name] != now[name]
    value = before.get(name, now.get(name))
    selector, _, parameter = name.rpartition(".")
    configurable = gin.config._REGISTRY.get_match(selector.split("/")[-1]) if selector else None
    if configurable is None:  # a macro, or a setting of a part that only one side has
        return True
    default = inspect.signature(configurable.wrapped).parameters[parameter].default
    return repr(default) != value
