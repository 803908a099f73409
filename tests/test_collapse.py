"""Signs of collapse and death, on made metrics and images."""

import numpy as np
import pytest

from hamgan import collapse
from hamgan.loop import Schedule

ALIVE = {
    "loss/discriminator": 1.2,
    "loss/generator": 0.3,
    "logits/real": 0.5,
    "logits/fake": -0.5,
    "gradient_norm/discriminator": 2.0,
    "gradient_norm/generator": 0.7,
}


def said(*changes, **schedule):
    """What is said of host calls with these changes to a network that is alive."""
    signs = collapse.Signs(Schedule(**schedule))
    return [signs.in_metrics({**ALIVE, **change}) for change in changes]


def test_nothing_is_said_of_networks_that_learn():
    tiny = {"gradient_norm/generator": 1e-30, "loss/generator": -50.0}
    assert said(*[{}] * 30, *[tiny] * 10) == [None] * 40


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_gradient_of_exactly_zero_is_said_once_when_it_lasts(network):
    dead = {f"gradient_norm/{network}": 0.0}
    found = said(dead, dead, {}, dead, dead, dead, dead, dead)
    assert [text is not None for text in found] == [False] * 5 + [True, False, False]
    assert f"The {network}'s gradient was exactly 0 for 3 host calls" in found[5]


def test_a_loss_without_bound_is_said():
    found = said(*[{"loss/generator": value} for value in (5e3, 2e4, -5e4, 9e4, 1e5)])
    assert [text is not None for text in found] == [False, False, False, True, False]
    assert "The generator's loss was above 10000 for 3 host calls in a row, 9e+04 now" in found[3]


def test_a_saturated_discriminator_is_said_as_often_as_it_lasts():
    found = said(*[{"loss/discriminator": 0.001}] * 5, {}, collapse_calls=2)
    assert [text is not None for text in found] == [False, True, False, True, False, False]


def test_a_rollback_begins_anew():
    signs = collapse.Signs(Schedule())
    dead = {**ALIVE, "gradient_norm/generator": 0.0}
    assert [signs.in_metrics(dead) for _ in range(2)] == [None, None]
    signs.forget()
    assert [signs.in_metrics(dead) for _ in range(2)] == [None, None]
    assert signs.in_metrics(dead) is not None


def test_a_constant_output_is_said_when_it_begins():
    signs = collapse.Signs(Schedule())
    rng = np.random.default_rng(0)
    constant = np.tile(rng.uniform(-1, 1, [1, 4, 4, 3]), [6, 1, 1, 1])
    varied = constant + rng.uniform(-0.1, 0.1, constant.shape)
    found = [signs.in_images(images) for images in (varied, constant, constant, varied, constant)]
    assert [text is not None for text in found] == [False, True, False, False, True]
    assert "All 6 samples of the grid are the same image" in found[1]
