"""SGD and AdamW as PyTorch computes them, with rates and weight decay per group of variables.

Keras's own optimizers differ where the published recipes show it: its SGD folds the learning rate
into the momentum, which matters while the rate changes, and its Adam adds epsilon to a root that
isn't corrected yet.

A group rule is a function variable -> `Group`; rules of the published systems are `HamNetGroups`
and `MMSegmentationGroups`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from hamgan import arguments

WEIGHT, SCALE, BIAS = "weight", "scale", "bias"

# What Keras's layers, and those of `hamgan`, call their variables.
_ROLES = {
    "kernel": WEIGHT,
    "depthwise_kernel": WEIGHT,
    "gamma": SCALE,
    "gate": SCALE,
    "scale": SCALE,
    "coef_ham": SCALE,
    "coef_shortcut": SCALE,
    "bias": BIAS,
    "beta": BIAS,
}


class Group(NamedTuple):
    """How a variable is trained.

    Attributes:
      rate: factor of the learning rate.
      weight_decay: of the variable; not scaled by `rate` in itself.
    """

    rate: float = 1.0
    weight_decay: float = 0.0


GroupRule = Callable[[keras.Variable], Group]


def role_by_name(variable: keras.Variable) -> str:
    """WEIGHT (kernels), SCALE (gammas, HamNet's coefficients) or BIAS (biases, betas), by name.

    Raises:
      ValueError: another name.
    """
    name = variable.path.split("/")[-1]
    if name not in _ROLES:
        raise ValueError(
            f"Variables must be named {', '.join(sorted(_ROLES))} to have a role, got "
            f"{variable.path}: give a role of your own."
        )
    return _ROLES[name]


@arguments.take(
    weight_decay=arguments.number(0),
    bias_rate=arguments.number(0),
    role=arguments.function("@optimizers.role_by_name"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class HamNetGroups:
    """HamNet's three groups: only convolutions' weights decay, biases learn at twice the rate.

    Attributes:
      weight_decay: of weights.
      bias_rate: of biases and batch norm's offsets.
      role: variable -> WEIGHT, SCALE or BIAS.

    Raises:
      ValueError: a number out of range; when called, if `role` gives something else.
    """

    weight_decay: float = 1e-4
    bias_rate: float = 2.0
    role: Callable[[keras.Variable], str] = role_by_name

    def __post_init__(self):
        arguments.check_fields(self)

    def __call__(self, variable: keras.Variable) -> Group:
        groups = {
            WEIGHT: Group(1.0, self.weight_decay),
            SCALE: Group(),
            BIAS: Group(self.bias_rate, 0.0),
        }
        of = self.role(variable)
        if of not in groups:
            raise ValueError(f"role must give {', '.join(groups)}, got {of!r} for {variable.path}.")
        return groups[of]


def path_of(variable: keras.Variable) -> str:
    """A variable's path in its network."""
    return variable.path


@arguments.take(
    weight_decay=arguments.number(0), name=arguments.function("@training.published_name")
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MMSegmentationGroups:
    """MMCV's rule: factors for variables whose published name contains a word.

    Attributes:
      weight_decay: of variables without a factor: Light-Ham 0.01, HamNet+ 5e-4.
      multipliers: {word: (factor of the rate, factor of the decay)}; of several words in a name
        the longest counts, of equal length the first in the alphabet. None: Light-Ham's, no decay
        for names with `norm`, which are the backbone's norms; group norms of the head are called
        `gn` and decay. SegNeXt's adds {'head': (10, 1)}. HamNet+ has none: {}.
      name: variable -> its name in the published state dict.

    Raises:
      ValueError: a negative decay.
    """

    weight_decay: float = 0.01
    multipliers: Mapping[str, tuple[float, float]] | None = None
    name: Callable[[keras.Variable], str] = path_of

    def __post_init__(self):
        arguments.check_fields(self)

    def __call__(self, variable: keras.Variable) -> Group:
        given = {"norm": (1.0, 0.0)} if self.multipliers is None else self.multipliers
        words = sorted(sorted(given), key=len, reverse=True)
        published = self.name(variable)
        word = next((word for word in words if word in published), None)
        rate, decay = given.get(word, (1.0, 1.0))
        return Group(rate, decay * self.weight_decay)


class _Grouped(keras.optimizers.Optimizer):
    """What both have: groups, found when the optimizer is built.

    Gradients have been summed over the replicas: the guard wants to see them first.
    """

    def __init__(self, learning_rate, *, groups, name=None):
        super().__init__(learning_rate=learning_rate, name=name)
        self._groups = groups

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # Each one's place among the slots, too.
        self._known = {id(v): (index, self._groups(v)) for index, v in enumerate(variables)}

    def group(self, variable: keras.Variable) -> Group:
        """The group of one of the variables that the optimizer was built for."""
        return self._known[id(variable)][1]

    def apply(self, grads, trainable_variables):
        """Args: one gradient for each variable, the same on every replica."""
        known = [self._known[id(variable)] for variable in trainable_variables]
        variables = [variable.value for variable in trainable_variables]

        def update_all(strategy, gradients, rate):
            parts = zip(variables, gradients, known, strict=True)
            for variable, gradient, (index, group) in parts:
                update = functools.partial(self._update, index=index, group=group)
                strategy.extended.update(variable, update, args=(gradient, rate), group=False)

        replicas = tf.distribute.get_replica_context()
        replicas.merge_call(update_all, args=(list(grads), self.learning_rate))
        self.iterations.assign_add(1)

    def get_config(self):
        raise NotImplementedError(
            "A rule of groups is a function, which a configuration can't hold."
        )


class SGD(_Grouped):
    """v = momentum * v + g + weight_decay * p; p -= rate * v.

    Args:
      learning_rate: number, or what Keras's optimizers take.
      momentum: in [0, 1).
      groups: variable -> `Group`; None: HamNet's.

    Raises:
      ValueError: momentum out of range.
    """

    def __init__(
        self, learning_rate=9e-3, *, momentum=0.9, groups: GroupRule | None = None, name="sgd"
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
        super().__init__(learning_rate, groups=groups or HamNetGroups(), name=name)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def _update(self, variable, gradient, learning_rate, *, index, group):
        velocity = self.velocities[index]
        gradient = ops.cast(gradient, variable.dtype) + group.weight_decay * variable
        self.assign(velocity, self.momentum * velocity + gradient)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * group.rate * velocity)


class AdamW(_Grouped):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as in PyTorch.

    p *= 1 - rate * weight_decay; p -= rate * m' / (sqrt(v') + epsilon), m' and v' corrected for
    their start at 0.

    Args:
      learning_rate: number, or what Keras's optimizers take.
      beta_1, beta_2: in [0, 1).
      epsilon: above 0.
      groups: variable -> `Group`; None: Light-Ham's.

    Raises:
      ValueError: a number out of range.
    """

    def __init__(
        self,
        learning_rate=6e-5,
        *,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        groups: GroupRule | None = None,
        name="adamw",
    ):
        for argument, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= value < 1:
                raise ValueError(f"{argument} must be in [0, 1), got {value}.")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}.")
        super().__init__(learning_rate, groups=groups or MMSegmentationGroups(), name=name)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.means, self.squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def _update(self, variable, gradient, learning_rate, *, index, group):
        mean, square = self.means[index], self.squares[index]
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) * group.rate
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign(mean, self.beta_1 * mean + (1 - self.beta_1) * gradient)
        self.assign(square, self.beta_2 * square + (1 - self.beta_2) * ops.square(gradient))
        root = ops.sqrt(square / _corrected(self.beta_2, step)) + self.epsilon
        change = mean / _corrected(self.beta_1, step) / root
        self.assign(variable, variable * (1 - rate * group.weight_decay) - rate * change)


def _corrected(beta, step):
    """1 - beta^step, without float32's loss where it is small."""
    return -ops.expm1(step * math.log(beta)) if beta else ops.ones_like(step)
