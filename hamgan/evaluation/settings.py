"""The settings that a network computes with, resolved: those of every layer, defaults too."""

import functools
import hashlib
import json
from typing import Any

import keras

from hamgan import parts
from hamgan.layers import layers_of

# What a layer is called decides nothing, and Keras numbers the layers of a process.
_ASIDE = ("name", "build_config", "registered_name")


def settings_of(model) -> list[Any]:
    """[class, settings] of a Keras model and of every layer in it, in the order of making.

    They are of the objects, not of a configuration: however a value was set, it is here.
    """
    return [
        [type(layer).__name__, _plain(_config_of(layer))]
        for layer in (model, *layers_of(model, keras.layers.Layer))
    ]


def digest_of(model) -> str:
    """SHA-256 of `settings_of`, 16 hexadecimal digits."""
    text = json.dumps(settings_of(model), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _config_of(layer):
    try:
        # The policy by its name, which is a setting; names of layers aren't.
        with parts.spelled():
            return {**layer.get_config(), "dtype": layer.dtype_policy.name}
    except NotImplementedError:  # a network of one's own that tells nothing but its layers
        return {"dtype": layer.dtype_policy.name}


def _plain(value: Any) -> Any:
    """`value` as JSON has it, the same in every process."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items() if key not in _ASIDE}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, type) or callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    config = value.get_config() if hasattr(value, "get_config") else getattr(value, "__dict__", {})
    return [f"{type(value).__module__}.{type(value).__qualname__}", _plain(dict(config))]
