"""What gin knows, by names that aren't public: each with its reason. Nothing else of the project
looks into gin.
"""

import copy
import functools
import inspect

import gin
import tensorflow as tf

from hamgan import parts


def bindings_of_gin():
    """{(scope, selector): {parameter: value}} of all that was parsed.

    Gin's public functions give one parameter at a time, and only by a name that is known already.
    """
    return gin.config._CONFIG


def configurable(selector):
    """The class or function that a selector names; None: nothing has that name.

    Gin's public `get_configurable` gives a wrapper, whose signature isn't the parameter's.
    """
    found = gin.config._REGISTRY.get_match(selector)
    return found and found.wrapped


def selector_of(name):
    """The selector under which a name's bindings are kept."""
    found = gin.config._REGISTRY.get_match(name)
    return found.selector if found else name


def selector_of_target(target):
    """The selector of a class or function; None: no configuration names it."""
    selectors = {selector for _, selector in bindings_of_gin()}
    return next((selector for selector in selectors if configurable(selector) is target), None)


def tell_functions():
    """Has every function that a binding refers to say what it stands for, which gin's wrapper
    around it hides: the function itself, with the arguments that are bound for it (`parts.name_of`
    asks).
    """
    for reference in gin.config.iterate_references(bindings_of_gin()):
        function = reference.configurable.wrapped
        if inspect.isfunction(function) and not is_macro(reference.selector):
            told = functools.partial(_standing, function, _bound(reference))
            setattr(reference.scoped_configurable_fn, parts.STANDS_FOR, told)


def _bound(reference):
    """{argument: value} that gin gives a function which is called by a reference."""
    found = {}
    for count in range(len(reference.scopes) + 1):
        key = ("/".join(reference.scopes[:count]), reference.config_key[1])
        found.update(bindings_of_gin().get(key, {}))
    return found


def _standing(function, bound):
    """The function with its arguments, of which in a copy gin has called what it refers to."""
    arguments = copy.deepcopy(bound)
    return functools.partial(function, **arguments) if arguments else function


def is_macro(selector):
    """Whether a selector is gin's own word for `NAME = value` or a constant."""
    return configurable(selector) in (gin.config.macro, gin.config._retrieve_constant)


def scoped(scope, name):
    return f"{scope}/{name}" if scope else name


def in_words(scope, selector):
    """As gin files name it: 'G/context.Hamburger'."""
    return scoped(scope, ".".join(selector.split(".")[-2:]))


def is_within(scope, outer):
    return not outer or scope == outer or scope.startswith(f"{outer}/")


def read_files_by(open_file, *, root):
    """Has gin read all files by `open_file(path)`, and find an include in a --gin_param in `root`.

    Gin's own readers look for an include in the working folder and the search paths alone, and one
    of them logs an error for each file that another one finds.
    """
    gin.config._FILE_READERS[:] = [(open_file, tf.io.gfile.exists)]
    if root not in gin.config._LOCATION_PREFIXES:
        gin.add_config_file_search_path(root)
