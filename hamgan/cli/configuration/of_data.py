"""Settings that a prepared data set decides, between those of files and those of --gin_param."""

import gin
import tensorflow as tf

from hamgan.cli.configuration import lookup, sources, syntax
from hamgan.run.folder import Folder

_NAME = "data.ImageDataset.name"
CHOSEN = "_OF_DATA"  # the end of macros that are chosen by the number of images


def settled(settings, *, gin_files, gin_params, model_dir=None):
    """Those of a data set's settings that are in force, {name: value}.

    Left out is what --gin_param or a gin file of one's own sets; what was chosen for a run that is
    there stays as it was.

    Args:
      settings: of `hamgan.fitting.settings`.
      gin_files, gin_params, model_dir: as of `load_experiment`.

    Raises:
      ValueError: another data set is set elsewhere.
    """
    own = [sources.find(file) for file in gin_files]
    texts = [*gin_params, *(sources.read_text(p) for p in own if not sources.is_shipped(p))]
    with sources.readable(gin_files, gin_params):
        given = {name: value for text in texts for name, value in syntax.bindings(text).items()}
    if given.get(_NAME, settings[_NAME]) != settings[_NAME]:
        raise ValueError(
            f"--data={settings[_NAME]}, but {_NAME} = {given[_NAME]!r} is set too: leave one of "
            "them out."
        )
    found = {name: value for name, value in settings.items() if name not in given or name == _NAME}
    path = Folder(model_dir).config if model_dir else None
    if path and tf.io.gfile.exists(path) and not sources.says_nothing(path):
        with sources.readable([path], ()):
            kept = syntax.bindings(sources.read_text(path))
        found |= {n: kept[n] for n in found if n.endswith(CHOSEN) and n in kept}
    return found


def statements(settings):
    """Settings as statements of a configuration."""
    return [f"{name} = {value!r}" for name, value in settings.items()]


def drop_unused():
    """Forgets macros of a data set that the configuration doesn't use."""
    used = {
        reference.config_key
        for reference in gin.config.iterate_references(lookup.bindings_of_gin())
    }
    for key in list(lookup.bindings_of_gin()):
        if lookup.is_macro(key[1]) and key[0].endswith(CHOSEN) and key not in used:
            del lookup.bindings_of_gin()[key]


def value_of(name):
    """The value of a parameter, macros followed; None: nothing sets it."""
    try:
        value = gin.query_parameter(name)
    except ValueError:
        return None
    while isinstance(value, gin.config.ConfigurableReference) and lookup.is_macro(
        value.config_key[1]
    ):
        value = lookup.bindings_of_gin().get(value.config_key, {}).get("value")
    return value
