"""Which bindings reach anything: one that nothing uses, or that others go before, has no effect."""

import os

import gin
from absl import logging
from gin import config_parser

from hamgan.cli.configuration import lookup, sources, syntax
from hamgan.run.folder import Folder

# How a run's own file is called.
_CONFIG_NAME = os.path.basename(Folder("MODEL_DIR").config)


def check_reach(gin_files, gin_params, root):
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
        if not sources.is_shipped(file) and os.path.basename(file) != _CONFIG_NAME:
            for binding in _own_bindings(sources.read_text(file)):
                if message := _shadowed(binding, uses):
                    logging.warning("%s: %s", file, message)


def _own_bindings(text):
    """The bindings of a configuration's text that are of a class or function."""
    return [
        statement
        for statement in syntax.statements(text)
        if isinstance(statement, config_parser.BindingStatement) and statement.arg_name
    ]


def _uses_of(binding, uses):
    """The scopes of all uses that lie within the binding's."""
    full = lookup.selector_of(binding.selector)
    return [scope for scope, of in uses if of == full and lookup.is_within(scope, binding.scope)]


def _shadowed(binding, uses):
    """What is to be said of a binding that others go before; None: it is in use somewhere."""
    scope, selector, name = binding.scope, binding.selector, binding.arg_name
    full = lookup.selector_of(selector)
    over = {_last_binding(used, full, name) for used in _uses_of(binding, uses)}
    if not over or scope in over:
        return None
    shadows = {
        f"{lookup.scoped(other, selector)}.{name}": lookup.bindings_of_gin()[other, full][name]
        for other in sorted(over)
    }
    return (
        f"{lookup.scoped(scope, selector)}.{name} has no effect: "
        + ", ".join(f"{shadow} = {value!r}" for shadow, value in shadows.items())
        + f" {'is' if len(over) == 1 else 'are'} set, and what is more special wins. Write "
        + " ".join(f'--gin_param="{shadow} = {binding.value!r}"' for shadow in shadows)
    )


def _unused(binding, uses):
    """What is to be said of a binding of something that nothing uses; None: something does."""
    if _uses_of(binding, uses):
        return None
    full, own = lookup.selector_of(binding.selector), lookup.scoped(binding.scope, binding.selector)
    elsewhere = sorted(lookup.scoped(used, binding.selector) for used, of in uses if of == full)
    if elsewhere:
        return (
            f"{own}.{binding.arg_name} has no effect: the scopes that are used are "
            f"{', '.join(elsewhere)}."
        )
    near = sorted({lookup.in_words(used, of) for used, of in uses if of})
    return (
        f"{own}.{binding.arg_name} has no effect: nothing in this configuration uses "
        f"{binding.selector}. Used are: {', '.join(near)}."
    )


def _last_binding(scope, selector, name):
    """The scope of the binding that a use in `scope` takes: of those around it the innermost."""
    bound = [
        outer
        for (outer, of), bindings in lookup.bindings_of_gin().items()
        if of == selector and name in bindings and lookup.is_within(scope, outer)
    ]
    return max(bound, key=len)


def _uses(root):
    """{(scope, selector)} of all that is reached by references from `root`.

    A reference without a scope may be called where it stands, or later, outside of all scopes.
    """
    todo = [("", lookup.selector_of_target(root))]
    found = set()
    while todo:
        use = todo.pop()
        if use in found:
            continue
        found.add(use)
        scope, selector = use
        names = {
            name
            for (outer, of), bindings in lookup.bindings_of_gin().items()
            if of == selector and lookup.is_within(scope, outer)
            for name in bindings
        }
        for name in names:
            value = lookup.bindings_of_gin()[_last_binding(scope, selector, name), selector][name]
            for inner, of in _references(value):
                todo += [(place, of) for place in ({inner} if inner else {scope, ""})]
    return found


def _references(value):
    """(scope, selector) of all classes and functions that a value names, macros followed."""
    for reference in gin.config.iterate_references(value):
        scope, selector = reference.config_key
        if lookup.is_macro(selector):
            bound = lookup.bindings_of_gin().get((scope, selector), {})
            yield from _references(bound.get("value"))
        else:
            yield scope, selector
