"""From gin files to the parts of a run, and back to one file: the only module that knows gin.

What it takes from gin's insides stands in `_bindings_of_gin`, `_configurable` and `_references`,
each with its reason.
"""

import dataclasses
import difflib
import glob
import inspect
import os
import tempfile

import gin
import tensorflow as tf

from hamgan import experiment
from hamgan.evaluation import protocol as protocols
from hamgan.run import records
from hamgan.run.folder import Folder

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

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


def load_experiment(*, gin_files=(), gin_params=(), model_dir=None, protocol=None):
    """Parses a configuration and builds the experiment from it.

    Args:
      gin_files: gin files; none: the configuration that is kept in model_dir.
      gin_params: more bindings, which win over files.
      model_dir: the run's folder, or None.
      protocol: name of a file in configs/protocols, or a gin file, that is read after all others;
        None: none.

    Raises:
      ValueError: no configuration, a file that isn't there, a name that nothing has, or a change to
        a protocol that has a name.
    """
    gin.add_config_file_search_path(_ROOT)
    gin.config.register_file_reader(lambda path: tf.io.gfile.GFile(path, "r"), tf.io.gfile.exists)
    saved = Folder(model_dir or "MODEL_DIR").config
    files = gin_files
    if not files:
        if not model_dir or not tf.io.gfile.exists(saved):
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
            files, [*_PARAM_HEADER, *gin_params], finalize_config=True
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
            f"The configuration can't be read: {error}\n(files: {files}, parameters: {gin_params})"
        ) from error
    _check_names(gin_params)
    _check_protocol_name(gin_params)
    return gin.get_configurable(experiment.Experiment)()


def load_constructor(constructor, text, *, gin_params=()):
    """A constructor with the settings of a gin file's text, instead of all that was read before.

    Raises:
      ValueError: the text or a parameter can't be read.
    """
    gin.clear_config()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "import.gin")
        with open(path, "w") as file:
            file.write(text)
        try:
            gin.parse_config_files_and_bindings([path], gin_params, finalize_config=True)
        except (ValueError, SyntaxError, ImportError, AttributeError, NameError) as error:
            raise ValueError(f"The configuration can't be read: {error}") from error
    return gin.get_configurable(constructor)


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


def _check_names(gin_params):
    """Refuses macros of --gin_param that nothing uses, and parameters that a constructor would only
    find unknown when it is called, hours later at worst."""
    given = {param.split("=")[0].strip() for param in gin_params}
    references = [
        reference.config_key for reference in gin.config.iterate_references(_bindings_of_gin())
    ]
    used = {scope for scope, selector in references if selector == "gin.macro"}
    for (scope, selector), bindings in _bindings_of_gin().items():
        if selector == "gin.macro":
            if scope in given - used:
                near = difflib.get_close_matches(scope, used, 1)
                raise ValueError(
                    f"Nothing uses the macro {scope!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                    + f" Used are: {', '.join(sorted(used))}."
                )
            continue
        configurable = _configurable(selector)
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


def _check_protocol_name(gin_params):
    """Refuses a --gin_param that makes something else of a protocol but leaves it its name."""
    changed = {
        param.split("=")[0].strip().rpartition(".")[2]
        for param in gin_params
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


def resolved_configuration(model_dir):
    """The configuration as text: every binding, whether this command uses it or not, and the
    defaults of all that has been built by now.

    Raises:
      ValueError: model_dir belongs to a run with other settings; the differences are listed.
    """
    path = Folder(model_dir).config
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
                f"{model_dir} belongs to a run with other settings:\n"
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


def settings_of_run():
    """{name: value as text} of every binding and noted default that a run may not change."""
    text = gin.operative_config_str(max_line_length=10_000), gin.config_str(max_line_length=10_000)
    found = _bindings("\n".join(text))
    return {name: v for name, v in found.items() if not name.startswith(_CHANGEABLE)}


def changed_settings(model_dir):
    """In words, which bindings aren't those of the run in model_dir; None: none, or it kept none.

    Where to find the data and how it is read, and what only training has, isn't among them.
    """
    path = Folder(model_dir).config
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "r") as file:
        before = _bindings(file.read())
    now = _bindings(gin.config_str(max_line_length=10_000))
    aside = (*_CHANGEABLE, "features.", "data.", "trainer.", "D/")
    lines = [
        f"{name} = {now[name]} ({before.get(name, 'not set')} in the run)"
        for name in sorted(now)
        if not name.startswith(aside) and setting_differs(name, before, now)
    ]
    return "; ".join(lines) or None


def setting_differs(name, before, now):
    """Whether a setting of {name: value as text} is another one; see `settings_of_run`."""
    try:
        return _differs(name, before, now)
    except KeyError:  # a parameter of another version
        return True


def settle_configuration(model_dir):
    """Writes `resolved_configuration` into model_dir, after comparing it with the one that is
    there.
    """
    text = resolved_configuration(model_dir)
    try:
        records.write_whole(Folder(model_dir).config, text.encode())
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"--model_dir={model_dir} can't be written: {error}") from error


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
    configurable = _configurable(selector.split("/")[-1]) if selector else None
    if configurable is None:  # a macro, or a setting of a part that only one side has
        return True
    default = inspect.signature(configurable).parameters[parameter].default
    return repr(default) != value


def _bindings_of_gin():
    """{(scope, selector): {parameter: value}} of all that was parsed.

    Gin's public functions give one parameter at a time, and only by a name that is known already.
    """
    return gin.config._CONFIG


def _configurable(selector):
    """The class or function that a selector names; None: nothing has that name.

    Gin's public `get_configurable` gives a wrapper, whose signature isn't the parameter's.
    """
    found = gin.config._REGISTRY.get_match(selector)
    return found and found.wrapped
