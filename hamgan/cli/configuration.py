"""From gin files to the parts of a run, and back to one file: the only module that knows gin.

What it takes from gin's insides stands in `_set_up`, `_bindings_of_gin`, `_configurable` and
`_is_macro`, each with its reason.
"""

import contextlib
import dataclasses
import difflib
import glob
import inspect
import io
import os
import tempfile

import gin
import tensorflow as tf
from absl import logging
from gin import config_parser

from hamgan import arguments, experiment, sweeps
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

# Where the classes and functions are that the configuration of a run's folder may name. Others of
# the project write files, or start what one didn't ask for.
_PARTS = (
    *(f"hamgan.{module}" for module in _MODULES),
    "hamgan.collapse",
    "hamgan.evaluation.features",
    "hamgan.evaluation.protocol",
    "hamgan.evaluation.scores",
    "hamgan.segmentation",
)

# Settings that say how long and how often, not what: a run may go on with others.
_CHANGEABLE = ("loop.Schedule.", "protocol.", "sampling.")

# How a run's own file is called.
_CONFIG_NAME = os.path.basename(Folder("MODEL_DIR").config)

_ERRORS = (ValueError, OSError, SyntaxError, ImportError, AttributeError, NameError, TypeError)


def load_experiment(
    *, gin_files=(), gin_params=(), model_dir=None, protocol=None, trusted_modules=()
):
    """Parses a configuration and builds the experiment from it.

    Args:
      gin_files: gin files; none: the configuration that is kept in model_dir.
      gin_params: more bindings, which win over files.
      model_dir: the run's folder, or None.
      protocol: name of a file in configs/protocols, or a gin file, that is read after all others;
        None: none.
      trusted_modules: what the configuration in model_dir may name beside the project's parts.

    Raises:
      ValueError: no configuration, a file that isn't there, a name that nothing has, a value that
        an argument doesn't take, a gin_param that reaches nothing, a change to a protocol that has
        a name, or a configuration in model_dir that names what it may not.
    """
    _set_up()
    files = [_find(file) for file in gin_files]
    if not files:
        _read_saved(model_dir, trusted_modules)
    if protocol:
        files = [*files, _protocol_file(protocol)]
    with _readable(files, gin_params):
        gin.parse_config_files_and_bindings(
            files, [*_PARAM_HEADER, *gin_params], finalize_config=True
        )
    _check_names(gin_params)
    _check_values()
    _check_protocol_name(gin_params)
    _check_reach(files, gin_params, experiment.Experiment)
    return gin.get_configurable(experiment.Experiment)()


def load_sweep(file, *, gin_params=()):
    """The `sweeps.Sweep` that a gin file describes, instead of all that was read before; it is
    called as the file unless it has a name.

    Raises:
      ValueError: there is no such file, or it can't be read, or a value isn't what an argument
        takes.
    """
    _set_up()
    gin.clear_config()
    file = _find(file)
    header = ("from __gin__ import dynamic_registration", "from hamgan import sweeps")
    with _readable([file], gin_params):
        gin.parse_config_files_and_bindings([file], [*header, *gin_params], finalize_config=True)
    _check_names(gin_params)
    _check_values()
    sweep = gin.get_configurable(sweeps.Sweep)()
    name = sweep.name or os.path.basename(file).removesuffix(".gin")
    return dataclasses.replace(sweep, name=name)


def load_point(*, gin_files, gin_params):
    """(experiment, {binding: value as text}) of one point of a sweep, instead of all that was read
    before.

    Raises:
      ValueError: as of `load_experiment`.
    """
    gin.clear_config()
    made = load_experiment(gin_files=gin_files, gin_params=gin_params)
    found = _bindings(gin.config_str(max_line_length=10_000))
    return made, {name: repr(value) for name, value in found.items()}


def load_constructor(constructor, text, *, gin_params=()):
    """A constructor with the settings of a gin file's text, instead of all that was read before.

    Raises:
      ValueError: the text or a parameter can't be read, or a value isn't what an argument takes.
    """
    _set_up()
    gin.clear_config()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "import.gin")
        with open(path, "w") as file:
            file.write(text)
        with _readable([path], gin_params):
            gin.parse_config_files_and_bindings([path], gin_params, finalize_config=True)
    _check_values()
    return gin.get_configurable(constructor)


# Files


def _set_up():
    """Has gin read all files by `_open`.

    Its own readers look for an include in the working folder and the search paths alone, and one of
    them logs an error for each file that another one finds.
    """
    gin.config._FILE_READERS[:] = [(_open, tf.io.gfile.exists)]
    if _ROOT not in gin.config._LOCATION_PREFIXES:  # of an include in a --gin_param
        gin.add_config_file_search_path(_ROOT)


@contextlib.contextmanager
def _readable(files, gin_params):
    """Whatever goes wrong with reading is one kind of error, with the sources' names."""
    try:
        yield
    except _ERRORS as error:
        raise ValueError(
            f"The configuration can't be read: {error}\n(files: {files}, parameters: "
            f"{list(gin_params)})"
        ) from error


def _read_text(path):
    with tf.io.gfile.GFile(path, "r") as file:
        return file.read()


def _open(path):
    """A gin file as gin reads it: its includes are whole paths."""
    text = _read_text(path)
    lines = text.split("\n")
    try:
        statements = _statements(text)
    except SyntaxError:  # gin will find it again, and say where it is
        statements = []
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            found = _find_include(statement.filename, path)
            lines[statement.location.line_num - 1] = f"include {found!r}"
    file = io.StringIO("\n".join(lines))
    file.name = path  # gin's errors name it
    return file


def _find_include(name, path):
    """The path of a file that the file `path` includes: beside it, or as it stands."""
    name = os.path.expanduser(name)
    folder = os.path.dirname(path)
    own = [_ROOT, ""] if _is_shipped(path) else ["", _ROOT]
    places = [os.path.join(place, name) for place in (folder, *own)]
    for place in places:
        if tf.io.gfile.exists(place):
            return place
    raise ValueError(f"{path} includes {name!r}, which isn't there: looked for {places}.")


def _is_shipped(path):
    return os.path.abspath(path).startswith(os.path.join(_ROOT, "configs") + os.sep)


def _find(file):
    """The path of a --gin_file: as it stands, or among the shipped ones."""
    for path in (file, os.path.join(_ROOT, file)):
        if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
            return path
    raise ValueError(f"There is no --gin_file={file}. Shipped: {_shipped()}.")


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


# The configuration in a run's folder: data, not code


def check_saved(model_dir, trusted_modules=()):
    """ValueError unless the configuration in model_dir is there and imports nothing but the
    project's parts and the trusted modules. Imports nothing itself; returns its path.
    """
    path = Folder(model_dir or "MODEL_DIR").config
    if not model_dir or not tf.io.gfile.exists(path):
        raise ValueError(
            f"No configuration: {path} isn't there and no --gin_file was given. Shipped: "
            f"{_shipped()}."
        )
    with _readable([path], ()):
        statements = _statements(_read_text(path))
    for statement in statements:
        if isinstance(statement, config_parser.IncludeStatement):
            raise ValueError(
                f"{path} includes {statement.filename!r}: a run's configuration is one file. Give "
                "the files that it is made of by --gin_file."
            )
        if isinstance(statement, config_parser.ImportStatement):
            module = statement.module
            if not module.startswith("__gin__.") and not _may_name(module, trusted_modules):
                raise _not_trusted(path, f"imports {module!r}", module)
    return path


def _module_of(target):
    """Where a class or function is from; '' of objects that don't say it."""
    return getattr(target, "__module__", None) or ""


def _may_name(module, trusted_modules):
    return any(
        module == part or module.startswith(f"{part}.") for part in (*_PARTS, *trusted_modules)
    )


def _not_trusted(path, does, module):
    return ValueError(
        f"{path} {does}. The configuration in a run's folder may name the parts of hamgan only. If "
        f"you know this code and trust it, say so: --trust_module={module}"
    )


def _read_saved(model_dir, trusted_modules):
    """Has gin parse the configuration in model_dir, and checks what its names stand for."""
    path = check_saved(model_dir, trusted_modules)
    with _readable([path], ()):
        gin.parse_config_files_and_bindings([path], None, finalize_config=False)
    # A name may lead out of a module, to one that it imports.
    named = [(selector, False) for _, selector in _bindings_of_gin()]
    for reference in gin.config.iterate_references(_bindings_of_gin()):
        named.append((reference.config_key[1], reference.evaluate))
    for selector, called in named:
        target = _configurable(selector)
        if _is_macro(selector):
            continue
        module = _module_of(target)
        if not _may_name(module, trusted_modules):
            raise _not_trusted(path, f"names {selector!r} of {module!r}", module)
        if called and not inspect.isclass(target) and not _may_call(module, trusted_modules):
            raise _not_trusted(path, f"calls the function {selector!r}", module)


def _may_call(module, trusted_modules):
    """Parts of the project are named or made; only what is trusted may be called."""
    return any(module == name or module.startswith(f"{name}.") for name in trusted_modules)


# What is bound


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


def _check_values():
    """Checks kind and range of every value, and puts in place what is meant by it: 1000 for 1e3.

    Raises:
      ValueError: an argument doesn't take its value: the argument, its rule, the value, and what it
        takes.
    """
    for (scope, selector), bindings in _bindings_of_gin().items():
        if _is_macro(selector):
            continue
        kinds = _kinds(_configurable(selector))
        for name, value in bindings.items():
            if name in kinds:
                bindings[name] = _checked(
                    kinds[name], f"{_in_words(scope, selector)}.{name}", value
                )
    _check_precision()


def _kinds(target):
    if _module_of(target).split(".")[0] == "hamgan":
        return arguments.kinds_of(target)
    # Of other code a default doesn't say what else may be given.
    return getattr(target, "ARGUMENTS", {})


def _checked(kind, name, value):
    """The value as it is used; `ValueError` where the argument `name` doesn't take it."""
    if isinstance(value, gin.config.ConfigurableReference):
        macro, selector = value.config_key
        if _is_macro(selector):
            found = _bindings_of_gin().get((macro, selector))
            if found:
                found["value"] = _checked(kind, f"{name} (which is %{macro})", found["value"])
        elif not kind.refers(inspect.unwrap(_configurable(selector)), value.evaluate):
            raise arguments.refused(kind, name, repr(value))
        return value
    if kind.parts and isinstance(value, list | tuple):
        return type(value)(
            _checked(kind.parts, f"{name}[{index}]", part) for index, part in enumerate(value)
        )
    try:
        return kind.convert(value)
    except (ValueError, TypeError):
        raise arguments.refused(kind, name, repr(value)) from None


def _check_precision():
    """Refuses two precisions of one network."""
    bound = {
        f"{_in_words(scope, selector)}.{name}": value
        for (scope, selector), bindings in _bindings_of_gin().items()
        for name, value in bindings.items()
        if name in ("dtype", "precision") and value is not None
    }
    precision = bound.pop("experiment.Experiment.precision", None)
    for name, value in bound.items():
        if precision and value != precision:
            raise ValueError(
                f"{name} = {value!r} has no effect beside experiment.Experiment.precision = "
                f"{precision!r}, which is of both networks: leave one of them out."
            )


def _check_reach(gin_files, gin_params, root):
    """Refuses a parameter that changes nothing: nothing uses what it is of, or each use has a
    binding of its own. Of a gin file of one's own the latter is reported: it may be meant to be
    included by others.
    """
    uses = _uses(root)
    for param in gin_params:
        for binding in _own_bindings(param):
            if message := _unused(binding, uses) or _shadowed(binding, uses):
                raise ValueError(message)
    for file in gin_files:
        # A run's own file has all defaults, those of no effect among them.
        if not _is_shipped(file) and os.path.basename(file) != _CONFIG_NAME:
            for binding in _own_bindings(_read_text(file)):
                if message := _shadowed(binding, uses):
                    logging.warning("%s: %s", file, message)


def _own_bindings(text):
    """The bindings of a configuration's text that are of a class or function."""
    return [
        statement
        for statement in _statements(text)
        if isinstance(statement, config_parser.BindingStatement) and statement.arg_name
    ]


def _uses_of(binding, uses):
    """The scopes of all uses that lie within the binding's."""
    full = _selector_of(binding.selector)
    return [scope for scope, of in uses if of == full and _is_within(scope, binding.scope)]


def _shadowed(binding, uses):
    """What is to be said of a binding that others go before; None: it is in use somewhere."""
    scope, selector, name = binding.scope, binding.selector, binding.arg_name
    full = _selector_of(selector)
    over = {_last_binding(used, full, name) for used in _uses_of(binding, uses)}
    if not over or scope in over:
        return None
    shadows = {
        f"{_scoped(other, selector)}.{name}": _bindings_of_gin()[other, full][name]
        for other in sorted(over)
    }
    return (
        f"{_scoped(scope, selector)}.{name} has no effect: "
        + ", ".join(f"{shadow} = {value!r}" for shadow, value in shadows.items())
        + f" {'is' if len(over) == 1 else 'are'} set, and what is more special wins. Write "
        + " ".join(f'--gin_param="{shadow} = {binding.value!r}"' for shadow in shadows)
    )


def _unused(binding, uses):
    """What is to be said of a binding of something that nothing uses; None: something does."""
    if _uses_of(binding, uses):
        return None
    full, own = _selector_of(binding.selector), _scoped(binding.scope, binding.selector)
    elsewhere = sorted(_scoped(used, binding.selector) for used, of in uses if of == full)
    if elsewhere:
        return (
            f"{own}.{binding.arg_name} has no effect: the scopes that are used are "
            f"{', '.join(elsewhere)}."
        )
    near = sorted({_in_words(used, of) for used, of in uses if of})
    return (
        f"{own}.{binding.arg_name} has no effect: nothing in this configuration uses "
        f"{binding.selector}. Used are: {', '.join(near)}."
    )


def _scoped(scope, name):
    return f"{scope}/{name}" if scope else name


def _in_words(scope, selector):
    """As gin files name it: 'G/context.Hamburger'."""
    return _scoped(scope, ".".join(selector.split(".")[-2:]))


def _is_within(scope, outer):
    return not outer or scope == outer or scope.startswith(f"{outer}/")


def _last_binding(scope, selector, name):
    """The scope of the binding that a use in `scope` takes: of those around it the innermost."""
    bound = [
        outer
        for (outer, of), bindings in _bindings_of_gin().items()
        if of == selector and name in bindings and _is_within(scope, outer)
    ]
    return max(bound, key=len)


def _uses(root):
    """{(scope, selector)} of all that is reached by references from `root`.

    A reference without a scope may be called where it stands, or later, outside of all scopes.
    """
    todo = [("", _selector_of_target(root))]
    found = set()
    while todo:
        use = todo.pop()
        if use in found:
            continue
        found.add(use)
        scope, selector = use
        names = {
            name
            for (outer, of), bindings in _bindings_of_gin().items()
            if of == selector and _is_within(scope, outer)
            for name in bindings
        }
        for name in names:
            value = _bindings_of_gin()[_last_binding(scope, selector, name), selector][name]
            for inner, of in _references(value):
                todo += [(place, of) for place in ({inner} if inner else {scope, ""})]
    return found


def _references(value):
    """(scope, selector) of all classes and functions that a value names, macros followed."""
    for reference in gin.config.iterate_references(value):
        scope, selector = reference.config_key
        if _is_macro(selector):
            bound = _bindings_of_gin().get((scope, selector), {})
            yield from _references(bound.get("value"))
        else:
            yield scope, selector


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


# The configuration as text


class _Name(str):
    """A reference or macro, as it is written: '@context.Hamburger', '%WIDTH'."""

    def __repr__(self):
        return str(self)


class _Reader(config_parser.ParserDelegate):
    """Takes names for what they are, and looks nothing up."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return _Name(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Name(f"%{macro_name}")


def _statements(text):
    """The statements of a configuration's text, without any effect. SyntaxError: it is none."""
    return list(config_parser.ConfigParser(text, _Reader()))


def _bindings(text):
    """{'scope/module.Class.parameter': value} of a configuration's text."""
    return {
        _scoped(s.scope, f"{s.selector}.{s.arg_name}" if s.arg_name else s.selector): s.value
        for s in _statements(text)
        if isinstance(s, config_parser.BindingStatement)
    }


def _saved_bindings(path):
    try:
        return _bindings(_read_text(path))
    except _ERRORS as error:
        raise ValueError(
            f"The configuration of this run can't be read, so nothing can be compared with it: "
            f"{error} ({path}). Correct it, or choose another --model_dir."
        ) from error


def resolved_configuration(model_dir):
    """The configuration as text: every binding, whether this command uses it or not, and the
    defaults of all that has been built by now.

    Raises:
      ValueError: model_dir belongs to a run with other settings; the differences are listed. Or a
        value can't be written so that it can be read back.
    """
    path = Folder(model_dir).config
    texts = gin.operative_config_str(max_line_length=10_000), gin.config_str(max_line_length=10_000)
    _check_complete(_bindings(texts[1]))
    now = {**_bindings(texts[0]), **_bindings(texts[1])}
    if tf.io.gfile.exists(path):
        before = _saved_bindings(path)
        differing = [
            name for name in sorted(before.keys() | now.keys()) if _differs(name, before, now)
        ]
        if differing:
            raise ValueError(
                f"{model_dir} belongs to a run with other settings:\n"
                + "\n".join(
                    "  {} = {} there, {} asked for".format(n, *_shown(n, before, now))
                    for n in differing
                )
                + "\nChoose another --model_dir, or leave --gin_file and --gin_param out to go "
                "on with the settings that are there."
            )
    text = _as_text(texts, now)
    if {n: repr(v) for n, v in _bindings(text).items()} != {n: repr(v) for n, v in now.items()}:
        raise ValueError("The configuration can't be written so that it reads back the same.")
    return text


def _as_text(texts, bindings):
    """One line per binding, however long."""
    imports = {
        line
        for text in texts
        for line in text.splitlines()
        if line.startswith(("from ", "import "))
    }
    # Dynamic registration comes before what it is to register, macros before their use.
    imports = sorted(imports, key=lambda line: ("__gin__" not in line, line))
    lines = [
        f"{name} = {value!r}"
        for name, value in sorted(bindings.items(), key=lambda item: ("." in item[0], item[0]))
    ]
    return "\n".join([*imports, "", *lines, ""])


def settings_of_run():
    """{name: value as gin writes it} of every binding and noted default that a run may not
    change.
    """
    texts = gin.operative_config_str(max_line_length=10_000), gin.config_str(max_line_length=10_000)
    found = {**_bindings(texts[0]), **_bindings(texts[1])}
    return {name: repr(v) for name, v in found.items() if not name.startswith(_CHANGEABLE)}


def changed_settings(model_dir):
    """In words, which bindings aren't those of the run in model_dir; None: none, or it kept none.

    Where to find the data and how it is read, and what only training has, isn't among them.
    """
    path = Folder(model_dir).config
    if not tf.io.gfile.exists(path):
        return None
    before = _saved_bindings(path)
    now = _bindings(gin.config_str(max_line_length=10_000))
    aside = (*_CHANGEABLE, "features.", "data.", "trainer.", "D/")
    lines = []
    for name in sorted(now):
        if not name.startswith(aside) and _differs(name, before, now):
            there, here = _shown(name, before, now)
            lines.append(f"{name} = {here} ({there.strip('()')} in the run)")
    return "; ".join(lines) or None


def setting_differs(name, before, now):
    """Whether a setting is another one; both sides are {name: value} of `settings_of_run`."""

    def read(side):
        return {name: _bindings(f"{name} = {side[name]}")[name]} if name in side else {}

    return _differs(name, read(before), read(now))


def _check_complete(written):
    """Gin leaves out what it can't write; here that would be a setting that is lost."""
    for (scope, selector), bindings in _bindings_of_gin().items():
        for name, value in bindings.items():
            last = scope if _is_macro(selector) else f"{selector.rpartition('.')[2]}.{name}"
            if not any(key.endswith(last) and _is_within(key, scope) for key in written):
                raise ValueError(
                    f"{_scoped(scope, selector)}.{name} = {value!r} can't be written into the "
                    "run's configuration."
                )


def _shown(name, before, now):
    """Both sides of a difference as text, of long values where they begin to differ."""
    texts = [repr(side[name]) if name in side else "(not set)" for side in (before, now)]
    if max(map(len, texts)) <= 200:
        return texts
    start = max(0, len(os.path.commonprefix(texts)) - 30)
    return [f"{'...' if start else ''}{text[start : start + 100]}..." for text in texts]


def settle_configuration(model_dir):
    """Writes `resolved_configuration` into model_dir, after comparing it with the one that is
    there.
    """
    text = resolved_configuration(model_dir)
    try:
        records.write_whole(Folder(model_dir).config, text.encode())
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(f"--model_dir={model_dir} can't be written: {error}") from error


def _same(one, other):
    """1e6 and 1000000 are one number; whatever else differs in writing differs."""

    def is_number(value):
        return isinstance(value, int | float) and not isinstance(value, bool)

    return repr(one) == repr(other) or (is_number(one) and is_number(other) and one == other)


def _differs(name, before, now):
    """Whether a setting is another one; one that is only on one side is compared with its
    default.
    """
    if name.startswith(_CHANGEABLE):
        return False
    if name in before and name in now:
        return not _same(before[name], now[name])
    value = before.get(name, now.get(name))
    selector, _, parameter = name.rpartition(".")
    configurable = _configurable(selector.split("/")[-1]) if selector else None
    if configurable is None:  # a macro, or a setting of a part that only one side has
        return True
    found = inspect.signature(configurable).parameters.get(parameter)
    # Keras' own, `dtype` and `name`, are None where nobody gives them.
    return not _same(found.default if found else None, value)


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


def _selector_of(name):
    """The selector under which a name's bindings are kept."""
    found = gin.config._REGISTRY.get_match(name)
    return found.selector if found else name


def _selector_of_target(target):
    """The selector of a class or function; None: no configuration names it."""
    selectors = {selector for _, selector in _bindings_of_gin()}
    return next((selector for selector in selectors if _configurable(selector) is target), None)


def _is_macro(selector):
    """Whether a selector is gin's own word for `NAME = value` or a constant."""
    return _configurable(selector) in (gin.config.macro, gin.config._retrieve_constant)
