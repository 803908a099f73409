"""Layers are found wherever a network keeps them."""

import keras
import made

from hamgan.layers import layers_of
from hamgan.normalization import BatchNorm
from hamgan.spectral import SpectralDense, SpectralLayer


class Nest(keras.layers.Layer):
    """Keeps layers in every way."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.plain = SpectralDense(1, name="plain")
        self._private = SpectralDense(1, name="private")
        self.listed = [SpectralDense(1, name="listed")]
        self.named = {"a": (SpectralDense(1, name="deep"),)}
        self.again = self.plain
        self.other = keras.layers.Dense(1)


class Network(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = SpectralDense(1, name="first")
        self.nests = [Nest(), Nest()]


def test_nested_layers_are_found_once():
    network = Network()
    names = [layer.name for layer in layers_of(network, SpectralLayer)]
    parts = {"plain", "private", "listed", "deep"}
    assert names[0] == "first" and set(names[1:5]) == set(names[5:]) == parts
    assert len(names) == 9
    # The network's own parts in their order.
    assert {id(layer) for layer in layers_of(network.nests[0], SpectralLayer)} == {
        id(layer) for layer in layers_of(network, SpectralLayer)[1:5]
    }
    assert layers_of(network, BatchNorm) == []


def test_every_kernel_of_the_networks_has_its_layer():
    for network in (made.small_generator(), made.small_discriminator()):
        kernels = {id(v) for v in network.variables if v.path.endswith("/kernel")}
        assert {id(layer.kernel) for layer in layers_of(network, SpectralLayer)} == kernels
    norms = layers_of(made.small_generator(), BatchNorm)
    assert len(norms) == 8 and len({id(norm) for norm in norms}) == 8
