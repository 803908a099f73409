"""The configuration in a run's folder is data, not code: what it may name."""

import inspect

import gin
import tensorflow as tf
from gin import config_parser

from hamgan.cli.configuration import lookup, sources, syntax
from hamgan.run.folder import Folder

# The rooms that configurations are made of.
MODULES = (
    "augmentation context data decomposition experiment labels loop losses networks normalization "
    "regularization sampling schedules trainer"
).split()

# Where the classes and functions are that the configuration of a run's folder may name. Others of
# the project write files, or start what one didn't ask for.
_PARTS = (
    *(f"hamgan.{module}" for module in MODULES),
    "hamgan.collapse",
    "hamgan.evaluation.features",
    "hamgan.evaluation.protocol",
    "hamgan.evaluation.scores",
    "hamgan.segmentation",
    "hamgan.timetable",
)


def check_saved(model_dir, trusted_modules=()):
    """ValueError unless the configuration in model_dir is there and imports nothing but the
    project's parts and the trusted modules. Imports nothing itself; returns its path.
    """
    path = Folder(model_dir or "MODEL_DIR").config
    if not model_dir or not tf.io.gfile.exists(path):
        raise ValueError(
            f"No configuration: {path} isn't there and no --gin_file was given. Shipped: "
            f"{sources.shipped()}."
        )
    sources.check_not_empty(path)
    with sources.readable([path], ()):
        statements = syntax.statements(sources.read_text(path))
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


def module_of(target):
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


def read_saved(model_dir, trusted_modules):
    """Has gin parse the configuration in model_dir, and checks what its names stand for; returns
    its path.
    """
    path = check_saved(model_dir, trusted_modules)
    with sources.readable([path], ()):
        gin.parse_config_files_and_bindings([path], None, finalize_config=False)
    # A name may lead out of a module, to one that it imports.
    named = [(selector, False) for _, selector in lookup.bindings_of_gin()]
    for reference in gin.config.iterate_references(lookup.bindings_of_gin()):
        named.append((reference.config_key[1], reference.evaluate))
    for selector, called in named:
        target = lookup.configurable(selector)
        if lookup.is_macro(selector):
            continue
        module = module_of(target)
        if not _may_name(module, trusted_modules):
            raise _not_trusted(path, f"names {selector!r} of {module!r}", module)
        if called and not inspect.isclass(target) and not _may_call(module, trusted_modules):
            raise _not_trusted(path, f"calls the function {selector!r}", module)
    return path


def _may_call(module, trusted_modules):
    """Parts of the project are named or made; only what is trusted may be called."""
    return any(module == name or module.startswith(f"{name}.") for name in trusted_modules)
