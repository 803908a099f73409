"""The configuration that a run keeps as one file, and how another one differs from it."""

import os

import gin
import tensorflow as tf

from hamgan import arguments
from hamgan.cli.configuration import lookup, sources, syntax
from hamgan.run import records
from hamgan.run.folder import Folder

# Settings that say how long and how often, not what: a run may go on with others.
_CHANGEABLE = ("loop.Schedule.", "protocol.", "sampling.", "evaluation.")


def _is_kept(path):
    """Whether a run has kept a configuration. One that was emptied is one that was lost: the
    checkpoints know the settings too, and are asked.
    """
    return tf.io.gfile.exists(path) and not sources.says_nothing(path)


def _saved_bindings(path):
    try:
        return syntax.bindings(sources.read_text(path))
    except syntax.ERRORS as error:
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
    _check_complete(syntax.bindings(texts[1]))
    now = {**syntax.bindings(texts[0]), **syntax.bindings(texts[1])}
    if _is_kept(path):
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
    if {n: repr(v) for n, v in syntax.bindings(text).items()} != {
        n: repr(v) for n, v in now.items()
    }:
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
    found = {**syntax.bindings(texts[0]), **syntax.bindings(texts[1])}
    return {name: repr(v) for name, v in found.items() if not name.startswith(_CHANGEABLE)}


def changed_settings(model_dir):
    """In words, which bindings aren't those of the run in model_dir; None: none, or it kept none.

    Where to find the data and how it is read, and what only training has, isn't among them.
    """
    path = Folder(model_dir).config
    if not _is_kept(path):
        return None
    before = _saved_bindings(path)
    now = syntax.bindings(gin.config_str(max_line_length=10_000))
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
        return {name: syntax.bindings(f"{name} = {side[name]}")[name]} if name in side else {}

    return _differs(name, read(before), read(now))


def _check_complete(written):
    """Gin leaves out what it can't write; here that would be a setting that is lost."""
    for (scope, selector), bindings in lookup.bindings_of_gin().items():
        for name, value in bindings.items():
            last = scope if lookup.is_macro(selector) else f"{selector.rpartition('.')[2]}.{name}"
            if not any(key.endswith(last) and lookup.is_within(key, scope) for key in written):
                raise ValueError(
                    f"{lookup.scoped(scope, selector)}.{name} = {value!r} can't be written into "
                    "the run's configuration."
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
    configurable = lookup.configurable(selector.split("/")[-1]) if selector else None
    if configurable is None:  # a macro, or a setting of a part that only one side has
        return True
    found = arguments.parameters_of(configurable).get(parameter)
    # Keras' own, `dtype` and `name`, are None where nobody gives them.
    return not _same(found.default if found else None, value)
