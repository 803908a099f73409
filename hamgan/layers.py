"""The layers that a network is made of."""

import keras


def layers_of(network, kind):
    """The layers of a class in a network, wherever they are nested.

    Keras lists the layers of a model (`layers`), but not those of a layer, so these are looked for
    where they are kept: among its attributes, and in lists, tuples and dictionaries there.

    Args:
      network: a `keras.Model`.
      kind: class of the layers looked for.

    Returns:
      List, in the order of the network's own layers; within each from its last part to its first.
    """
    found, seen = [], set()
    waiting = list(reversed(_parts(network)))
    while waiting:
        layer = waiting.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, kind):
            found.append(layer)
        waiting.extend(_parts(layer))
    return found


def _parts(layer):
    """The layers among the attributes of a layer."""
    if isinstance(layer, keras.Model):
        return layer.layers
    return list(_layers_in(list(vars(layer).values())))


def _layers_in(value):
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, dict):
        yield from _layers_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _layers_in(part)
