"""Names and values of all bindings, before anything is built."""

import dataclasses
import difflib
import inspect

import gin

from hamgan import arguments
from hamgan.cli.configuration import lookup, trust
from hamgan.evaluation import protocol as protocols


def check_names(gin_params):
    """Refuses macros of --gin_param that nothing uses, and parameters that a constructor would only
    find unknown when it is called, hours later at worst."""
    given = {param.split("=")[0].strip() for param in gin_params}
    references = [
        reference.config_key
        for reference in gin.config.iterate_references(lookup.bindings_of_gin())
    ]
    used = {scope for scope, selector in references if selector == "gin.macro"}
    for (scope, selector), bindings in lookup.bindings_of_gin().items():
        if selector == "gin.macro":
            if scope in given - used:
                near = difflib.get_close_matches(scope, used, 1)
                raise ValueError(
                    f"Nothing uses the macro {scope!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                    + f" Used are: {', '.join(sorted(used))}."
                )
            continue
        configurable = lookup.configurable(selector)
        known = list(arguments.parameters_of(configurable))
        for name in bindings:
            if name not in [*known, "dtype", "name"]:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"{selector} has no parameter {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                    + f" It has: {', '.join(known)}."
                )


def check_values():
    """Checks kind and range of every value, and puts in place what is meant by it: 1000 for 1e3.

    Raises:
      ValueError: an argument doesn't take its value: the argument, its rule, the value, and what it
        takes.
    """
    for (scope, selector), bindings in lookup.bindings_of_gin().items():
        if lookup.is_macro(selector):
            continue
        kinds = _kinds(lookup.configurable(selector))
        for name, value in bindings.items():
            if name in kinds:
                bindings[name] = _checked(
                    kinds[name], f"{lookup.in_words(scope, selector)}.{name}", value
                )
    _check_precision()


def _kinds(target):
    if trust.module_of(target).split(".")[0] == "hamgan":
        return arguments.kinds_of(target)
    # Of other code a default doesn't say what else may be given.
    return getattr(target, "ARGUMENTS", {})


def _checked(kind, name, value):
    """The value as it is used; `ValueError` where the argument `name` doesn't take it."""
    if isinstance(value, gin.config.ConfigurableReference):
        macro, selector = value.config_key
        if lookup.is_macro(selector):
            found = lookup.bindings_of_gin().get((macro, selector))
            if found:
                found["value"] = _checked(kind, f"{name} (which is %{macro})", found["value"])
        elif not kind.refers(inspect.unwrap(lookup.configurable(selector)), value.evaluate):
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
        f"{lookup.in_words(scope, selector)}.{name}": value
        for (scope, selector), bindings in lookup.bindings_of_gin().items()
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


def check_protocol_name(gin_params):
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
