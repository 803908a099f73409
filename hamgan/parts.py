"""Parts of layers by name: functions and constructors that a layer takes, as its configuration has
them.

A configuration that goes into a file can't hold a function, so it holds the name under which
Keras's registry has it: 'nmf' for what this library registered, 'package>name' for anyone else's,
and {"name": ..., "arguments": {...}} for a `functools.partial`. Layers take the same spellings.
"""

import contextlib
import contextvars
import functools
import inspect

import keras

PACKAGE = "hamgan"
# Attribute of a wrapper around a function: what gives the function itself, or a
# `functools.partial` of it with what the wrapper adds to its arguments.
STANDS_FOR = "__hamgan_stands_for__"
_spells = contextvars.ContextVar("spells", default=False)

# Decorates a class or function of this library: files hold its name.
registered = keras.saving.register_keras_serializable(package=PACKAGE)


def resolve(part, argument):
    """The function or constructor that `part` stands for.

    Args:
      part: a callable (given back as it is), the name of a registered one, or a dictionary {"name":
        ..., "arguments": {...}}.
      argument: what the caller calls it, for the error.

    Raises:
      ValueError: nothing is registered under that name, or it is none of these.
    """
    if _is_part(part):
        arguments = {
            key: resolve(value, f"{argument}.{key}") if _is_part(value) else value
            for key, value in part["arguments"].items()
        }
        found = resolve(part["name"], argument)
        return functools.partial(found, **arguments) if arguments else found
    if isinstance(part, str):
        for name in (f"{PACKAGE}>{part}", part):
            found = keras.saving.get_registered_object(name)
            if found is not None:
                return found
        raise ValueError(
            f"{argument} must be a function or class, or the name of one that is registered "
            f"(keras.saving.register_keras_serializable), got {part!r}."
        )
    if not callable(part):
        raise ValueError(
            f"{argument} must be a function or class, or the name of a registered one, got "
            f"{part!r}."
        )
    return part


def name_of(part, argument, made=None, given=()):
    """What stands for `part` in a configuration; `resolve` is its inverse.

    Args:
      part: callable.
      argument: what the caller calls it, for the error.
      made: the layer that the constructor `part` has made, which knows its own arguments also where
        the constructor is a wrapper that hides them.
      given: arguments that the caller gives the constructor anyway.

    Raises:
      ValueError: it isn't registered, or is a partial with positional arguments.
    """
    part = getattr(part, STANDS_FOR, lambda: part)()
    name = keras.saving.get_registered_name(part) if hasattr(part, "__name__") else None
    if name is not None and keras.saving.get_registered_object(name) is part:
        return name.removeprefix(f"{PACKAGE}>")
    if isinstance(part, functools.partial) and not part.args:
        try:
            name = name_of(part.func, argument)
        except ValueError:
            if made is None:
                raise
        else:
            return {"name": name, "arguments": _names_in(part.keywords, argument)}
    if made is not None and made.__class__ is not part:
        # `given` and what is the outer layer's to decide.
        arguments = made.get_config()
        for key in ("name", "trainable", "dtype", *given):
            arguments.pop(key, None)
        return {"name": name_of(type(made), argument), "arguments": arguments}
    if _spells.get() and hasattr(part, "__qualname__"):
        function = inspect.unwrap(part)
        return f"{function.__module__}.{function.__qualname__}"
    raise ValueError(
        f"{argument} can be saved only by its name: it must be registered with "
        "keras.saving.register_keras_serializable, or a functools.partial of what is, with keyword "
        f"arguments; got {part!r}."
    )


@contextlib.contextmanager
def spelled():
    """Within, `name_of` gives what isn't registered the name it has in Python: to be compared by,
    not to be made from.
    """
    token = _spells.set(True)
    try:
        yield
    finally:
        _spells.reset(token)


def _is_part(value):
    return isinstance(value, dict) and set(value) == {"name", "arguments"}


def _names_in(arguments, argument):
    """Arguments of a partial, with dictionaries for those that are functions: a name alone could be
    any string.
    """
    names = {}
    for key, value in arguments.items():
        if callable(value):
            value = name_of(value, f"{argument}.{key}")
            value = value if _is_part(value) else {"name": value, "arguments": {}}
        names[key] = value
    return names
