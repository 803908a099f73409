"""Layers that mix the whole image: one call signature,
`(x, labels=None, training=False, keys=None)`.

[B, H, W, C] -> [B, H, W, C], the identity at the start of training (gate 0). `num_classes` in every
constructor is the number of classes of the normalisation inside (the generator's modules); None: no
normalisation (the discriminator's).

Hamburger, HamburgerV2, HamburgerV2Plus: Geng et al. 2021. SelfAttention: Zhang et al. 2019 (SAGAN).
SparseAttention: Daras et al. 2020 ("Your Local GAN"). What a ham starts from is a part of its own:
RandomBases, FixedBases, LearnedBases, WarmStartBases.
"""

import contextlib
import functools
import inspect
import random
import threading

import keras
import numpy as np
import tensorflow as tf

from hamgan import decomposition as decompositions
from hamgan import stateless
from hamgan.normalization import BatchNorm
from hamgan.spectral import SpectralConv2D


class RandomBases(keras.layers.Layer):
    """Initial bases drawn anew in every forward pass, the paper's choice: keys [B, 2] -> [B,
    *shape] float32.

    Args:
      shape: of one example's bases, (S, D, R).
      draw: function of `hamgan.stateless`, (shape, keys) -> [B, *shape].
    """

    # Whether `update` is to be called with what the decomposition made of these bases, in training.
    learns_online = False

    def __init__(self, shape, *, draw, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.draw = draw

    def build(self, input_shape=None):
        del input_shape

    def call(self, keys):
        return self.draw(self.shape, keys)

    def get_config(self):
        return {**super().get_config(), "shape": self.shape, "draw": self.draw}


class FixedBases(RandomBases):
    """Initial bases drawn once and kept, the same for every example; as `RandomBases` otherwise.

    Args:
      shape, draw: as in `RandomBases`.
      seed: of the draw; None: one that follows `keras.utils.set_random_seed`, as those of other
        initial weights do.
    """

    # Whether the optimizer changes the bases.
    trained = False

    def __init__(self, shape, *, draw, seed=None, **kwargs):
        super().__init__(shape, draw=draw, **kwargs)
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed

    def build(self, input_shape=None):
        del input_shape

        def initializer(shape, dtype):
            del dtype  # float32, as every weight is
            return self.draw(shape, stateless.key(self.seed)[None])[0]

        # Every replica computes the same bases, so one of them is enough to store.
        aggregation = "none" if self.trained else "only_first_replica"
        self.bases = self.add_weight(
            name="bases",
            shape=self.shape,
            initializer=initializer,
            trainable=self.trained,
            autocast=False,
            aggregation=aggregation,
        )

    def call(self, keys):
        return tf.broadcast_to(self.bases, [tf.shape(keys)[0], *self.shape])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


class LearnedBases(FixedBases):
    """Initial bases that the optimizer trains, which needs a gradient through all updates
    (`decomposition.unrolled`).

    The paper's worst initialisation. Arguments as in `FixedBases`.
    """

    trained = True


class WarmStartBases(FixedBases):
    """Initial bases that follow the solved ones: bases += rate * (batch mean - bases), then columns
    of length 1.

    The mean is over the global batch. Evaluation changes nothing.

    Args:
      shape, draw, seed: as in `FixedBases`.
      rate: 1 forgets all earlier batches.

    Raises:
      ValueError: the rate isn't in (0, 1].
    """

    learns_online = True

    def __init__(self, shape, *, draw, seed=None, rate=0.9, **kwargs):
        super().__init__(shape, draw=draw, seed=seed, **kwargs)
        if not 0 < rate <= 1:
            raise ValueError(f"WarmStartBases: rate must be in (0, 1], got {rate}.")
        self.rate = rate

    def update(self, solved):
        """Args: solved [B, *shape] of this replica; every replica holds the same B."""
        mean = tf.reduce_mean(tf.stop_gradient(solved), axis=0)
        replicas = tf.distribute.get_replica_context()
        if replicas is not None and replicas.num_replicas_in_sync > 1:
            mean = replicas.all_reduce("mean", mean)
        bases = tf.convert_to_tensor(self.bases)
        self.bases.assign(decompositions.normalize_bases(bases + self.rate * (mean - bases)))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class _Observation(threading.local):
    # Of one thread, because replicas are traced in threads of their own.
    errors = None


_observation = _Observation()


@contextlib.contextmanager
def observed_errors():
    """While active in this thread, Hamburgers report how far their decomposition is from what it
    decomposes.

    Yields:
      A dict that each ham of a forward pass adds to, under its name in `Hamburger.hams`. The values
      are float32 scalars, |x - y| / |x| in the Frobenius norm, the mean over matrices (0 for a
      matrix of zeros); x is what `solve` is given (NMF: without negative entries), y the product of
      the factors. Good to about 1e-3, and constant for the gradient.
    """
    _observation.errors = {}
    try:
        yield _observation.errors
    finally:
        _observation.errors = None


def _relative_error(x, y):
    """x, y [B, N, D] -> scalar."""
    square, difference = (tf.reduce_sum(tf.square(z), axis=[1, 2]) for z in (x, x - y))
    return tf.stop_gradient(_mean_ratio(difference, square))


def _relative_error_of_factors(x, bases, coef):
    """As `_relative_error` for y = coef bases^T, which isn't formed: the parts of |x|^2 - 2 <x, y>
    + |y|^2.
    """
    x, bases, coef = tf.stop_gradient(x), tf.stop_gradient(bases), tf.stop_gradient(coef)
    square = tf.einsum("bnd,bnd->b", x, x)
    mixed = tf.reduce_sum(coef * tf.matmul(x, bases), axis=[1, 2])
    grams = [tf.matmul(factor, factor, transpose_a=True) for factor in (bases, coef)]  # [B, R, R]
    difference = square - 2 * mixed + tf.reduce_sum(grams[0] * grams[1], axis=[1, 2])
    return _mean_ratio(tf.maximum(difference, 0.0), square)


def _mean_ratio(difference, square):
    return tf.reduce_mean(tf.sqrt(difference / tf.where(square == 0, tf.ones_like(square), square)))


def _takes(function, name):
    """Whether a function can be called with the keyword argument `name`."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class Hamburger(keras.layers.Layer):
    """Hamburger V1: lower bread, matrix decomposition, upper bread (Geng et al. 2021, section 3.1).

    The input is mapped to `sections * dim` channels by a spectrally normalised 1x1 convolution;
    each section's channels form a matrix X [dim, H*W], which the decomposition replaces by a matrix
    of rank `rank`; a second 1x1 convolution, (conditional) batch norm in the generator, and a
    scalar gate lead back to x.

    Args:
      num_classes: classes of the conditional batch norm after the ham; None: no batch norm.
      norm: constructor of that batch norm.
      dim: d, channels of each section; None: as many as x has (the paper's rule).
      rank: r, columns of the bases; None: d / 8 (the paper's rule).
      num_steps: K, updates of the decomposition before the differentiable last one.
      eval_steps: K outside of training; None: `num_steps`.
      sections: S, matrices that are decomposed independently.
      decomposition: function of `hamgan.decomposition`.
      solve: how the K updates are run and differentiated.
      bases: constructor of the initial bases, `RandomBases` or one of its subclasses.

    Raises:
      ValueError: a size isn't positive or a number of steps negative; in `build`, if `bases` has
        weights to train but `solve` lets no gradient through to them.
    """

    # Names of the decompositions of a forward pass: what a row of the matrix is numbered by.
    hams = ("space",)

    def __init__(
        self,
        *,
        num_classes=None,
        norm=BatchNorm,
        dim=None,
        rank=None,
        num_steps=6,
        eval_steps=None,
        sections=1,
        decomposition=decompositions.nmf,
        solve=decompositions.one_step,
        bases=RandomBases,
        **kwargs,
    ):
        super().__init__(**kwargs)
        kind = type(self).__name__
        for name, value in dict(dim=dim, rank=rank, sections=sections).items():
            if value is not None and value < 1:
                raise ValueError(f"{kind}: {name} must be at least 1, got {value}.")
        for name, value in dict(num_steps=num_steps, eval_steps=eval_steps).items():
            if value is not None and value < 0:
                raise ValueError(f"{kind}: {name} must not be negative, got {value}.")
        self.num_classes = num_classes
        self.norm_constructor = norm
        self.dim = dim
        self.rank = rank
        self.num_steps = num_steps
        self.eval_steps = eval_steps
        self.sections = sections
        self.decomposition = decomposition
        self.solve = solve
        self.bases_constructor = bases

    def build(self, input_shape):
        self._dim = self.dim or input_shape[-1]
        self._rank = self.rank or max(1, self._dim // 8)
        ham_shape = (*input_shape[:-1], self.sections * self._dim)
        self.lower_bread = self._bread(ham_shape[-1], "lower_bread", input_shape)
        self._build_ham(input_shape)
        self._build_upper(ham_shape, input_shape)
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros", autocast=False)

    def _bread(self, channels, name, input_shape):
        bread = SpectralConv2D(
            channels, 1, use_bias=False, exact=True, name=name, dtype=self.dtype_policy
        )
        bread.build(input_shape)
        return bread

    def _norm(self, shape):
        if not self.num_classes:
            return None
        norm = self.norm_constructor(
            num_classes=self.num_classes, name="norm", dtype=self.dtype_policy
        )
        norm.build(shape)
        return norm

    def _initial(self, dim, name):
        shape = (self.sections, dim, self._rank)
        bases = self.bases_constructor(
            shape, draw=decompositions.draw_bases_of(self.decomposition), name=name
        )
        bases.build()
        if bases.trainable_weights and not decompositions.reaches_initial_state(
            self.solve, self.num_steps
        ):
            raise ValueError(
                f"{type(self).__name__}: solve must let a gradient through to learned bases, which "
                "would never change "
                f"otherwise; {getattr(self.solve, '__name__', self.solve)} with "
                f"num_steps={self.num_steps} stops it. "
                "Use decomposition.unrolled (or last_steps with count >= num_steps), or FixedBases."
            )
        return bases

    def _build_ham(self, input_shape):
        del input_shape
        self.bases = self._initial(self._dim, "bases")

    def _build_upper(self, ham_shape, input_shape):
        self.upper_bread = self._bread(input_shape[-1], "upper_bread", ham_shape)
        self.norm = self._norm(input_shape)

    def initial_bases(self, keys):
        """Initial bases [B, S, D, R] float32, row i a function of keys[i] [2] alone. Replace it to
        choose others.
        """
        return self.bases(keys)

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels int [B]; keys int32 [B, 2] of the bases (None: fresh ones at
        every call).
        """
        if keys is None:
            keys = stateless.fresh_keys(tf.shape(x)[0])
        y = self.lower_bread(x, training=training)
        # The decomposition is a float32 island: its divisions lose all meaning with bfloat16's 8
        # bits.
        y = self._ham(tf.cast(y, tf.float32), self._next_kernel(training), keys, training)
        y = self._upper(tf.cast(y, x.dtype), labels, training)
        return self._shortcut(x) + y

    def _kernel(self, bread, training, *, gated):
        """The kernel [channels in, channels out] of a bread; `gated`: times the gate.

        Gating this small matrix spares the gradient of the gate a copy of what the branch gives.
        """
        kernel = bread.normalized_kernel(training)[0, 0]
        return tf.cast(self.gate, kernel.dtype) * kernel if gated else kernel

    def _next_kernel(self, training):
        """The kernel of the bread that follows the ham."""
        return self._kernel(self.upper_bread, training, gated=self.norm is None)

    def _ham(self, x, kernel, keys, training):
        """The decomposition of x [B, H, W, S*D], then the bread with `kernel` [S*D, C]: [B, H, W,
        C].
        """
        return self._decompose_space(x, kernel, self.initial_bases(keys), training)

    def _upper(self, x, labels, training):
        """What follows the first bread behind the ham, up to the gated branch: [B, H, W, C]."""
        return (
            x
            if self.norm is None
            else tf.cast(self.gate, x.dtype) * self.norm(x, labels, training=training)
        )

    def _shortcut(self, x):
        return x

    def _decompose_space(self, x, kernel, initial, training):
        """The rank-R approximation of each section, a pixel a row, times the kernel.

        x [B, H, W, S*D], kernel [S*D, C], initial [B, S, D, R] -> [B, H, W, C].
        """
        batch, height, width, sections = tf.shape(x)[0], *x.shape[1:3], self.sections
        dim = x.shape[-1] // sections
        y = tf.reshape(x, [batch, height * width, sections, dim])
        y = tf.transpose(y, [0, 2, 1, 3]) if sections > 1 else y
        y = tf.reshape(y, [batch * sections, height * width, dim])  # [B*S, N, D]
        kernel = tf.cast(tf.reshape(kernel, [sections, dim, -1]), tf.float32)

        def reconstruct(bases, coef):
            return self._product(coef, bases, kernel)

        def apply(y):
            y = tf.reshape(y, [batch, sections, height * width, dim])
            return tf.einsum("bsnd,sdc->bnc", y, kernel)

        y = self._decompose(y, initial, self.bases, training, reconstruct=reconstruct, apply=apply)
        return tf.reshape(y, [batch, height, width, y.shape[-1]])

    def _product(self, pixels, channels, kernel):
        """The product of factors and kernel, the smaller product first.

        pixels [B*S, N, R], channels [B*S, D, R], kernel [S, D, C] -> [B, N, C], the sum over
        sections of pixels channels^T kernel.
        """
        sections, dim, filters = kernel.shape
        size, rank = pixels.shape[1:]
        channels = tf.reshape(channels, [-1, sections, dim, rank])
        small = tf.einsum("bsdr,sdc->bsrc", channels, kernel)
        small = tf.reshape(small, [-1, sections * rank, filters])
        if sections > 1:
            pixels = tf.transpose(tf.reshape(pixels, [-1, sections, size, rank]), [0, 2, 1, 3])
            pixels = tf.reshape(pixels, [-1, size, sections * rank])
        return tf.matmul(pixels, small)

    def _decompose(self, x, initial, part, training, *, reconstruct, apply):
        """x [B*S, N, D], initial [B, S, D, R] that `part` gave, to what `reconstruct` makes of the
        factors.

        `apply` makes the same of y, for decompositions that have no parameter `reconstruct`.
        """
        num_steps = self.num_steps if training or self.eval_steps is None else self.eval_steps
        _, sections, dim, rank = initial.shape
        flat = tf.reshape(initial, [-1, dim, rank])  # [B*S, D, R]
        solved, factors = [], []

        def observed_solve(update, x, state, num_steps):
            state = self.solve(update, x, state, num_steps)
            solved.append((x, state[0]))
            return state

        def observed_reconstruct(bases, coef):
            factors.append((bases, coef))
            return reconstruct(bases, coef)

        run = functools.partial(self.decomposition, num_steps=num_steps, solve=observed_solve)
        if _takes(self.decomposition, "reconstruct"):
            result = run(x, flat, reconstruct=observed_reconstruct)
        else:
            y = run(x, flat)
            result = apply(y)
        if _observation.errors is not None:
            x = solved[0][0] if solved else x
            error = _relative_error_of_factors(x, *factors[0]) if factors else _relative_error(x, y)
            _observation.errors[self.hams[0] if part is self.bases else self.hams[1]] = error
        if not (training and part.learns_online):
            return result
        if len(solved) != 1:
            raise ValueError(
                f"{type(self).__name__}: decomposition must call its solve once for bases that "
                "learn online, got "
                f"{len(solved)} calls. Use RandomBases or FixedBases with it."
            )
        part.update(tf.reshape(solved[0][1], [-1, sections, dim, rank]))
        return result

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "norm": self.norm_constructor,
            "dim": self.dim,
            "rank": self.rank,
            "num_steps": self.num_steps,
            "eval_steps": self.eval_steps,
            "sections": self.sections,
            "decomposition": self.decomposition,
            "solve": self.solve,
            "bases": self.bases_constructor,
        }


class HamburgerV2(Hamburger):
    """Hamburger V2: between ham and upper bread lies a cheese, a 1x1 convolution, the batch norm
    and a ReLU.

    Arguments as in `Hamburger`; the batch norm moves from after the upper bread to after the
    cheese's convolution.
    """

    def _build_upper(self, ham_shape, input_shape):
        self.cheese = self._bread(input_shape[-1], "cheese", ham_shape)
        self.norm = self._norm(input_shape)
        self.upper_bread = self._bread(input_shape[-1], "upper_bread", input_shape)

    def _next_kernel(self, training):
        return self._kernel(self.cheese, training, gated=False)

    def _upper(self, x, labels, training):
        if self.norm is not None:
            x = self.norm(x, labels, training=training)
        return tf.nn.conv2d(
            tf.nn.relu(x),
            self._kernel(self.upper_bread, training, gated=True)[None, None],
            1,
            "SAME",
        )


class HamburgerV2Plus(HamburgerV2):
    """Hamburger V2+: a dual ham with V2's cheese, and learned scalars on both shortcut and ham.

    The first half of the lower bread's channels is decomposed over space: a pixel is a row of D / 2
    numbers, as in V1. The second half is decomposed over channels: a channel is a row of H * W
    numbers. Published for segmentation.

    Arguments as in `Hamburger`. `dim` must be even, since each half takes half of it; each half has
    rank `rank`.

    Raises:
      ValueError: `dim` is odd, or height or width isn't known when the layer is built.
    """

    hams = ("space", "channels")

    def build(self, input_shape):
        dim = self.dim or input_shape[-1]
        if dim % 2:
            raise ValueError(f"HamburgerV2Plus: dim must be even, to be halved, got {dim}.")
        if None in input_shape[1:3]:
            raise ValueError(
                "HamburgerV2Plus: height and width must be known, got input shape "
                f"{tuple(input_shape)}."
            )
        super().build(input_shape)
        self.shortcut_gate = self.add_weight(
            name="shortcut_gate", shape=(), initializer="ones", autocast=False
        )

    def _build_ham(self, input_shape):
        self.bases = self._initial(self._dim // 2, "bases")
        self.channel_bases = self._initial(input_shape[1] * input_shape[2], "channel_bases")

    def initial_channel_bases(self, keys):
        """As `initial_bases`, which is now for the half over space, for the half over channels: [B,
        S, H*W, R].
        """
        # A draw of its own: the two halves' bases would otherwise begin with the same numbers.
        return self.channel_bases(
            tf.map_fn(lambda key: stateless.fold(key, 1), tf.convert_to_tensor(keys))
        )

    def _ham(self, x, kernel, keys, training):
        parts = zip(tf.split(x, 2, axis=-1), tf.split(kernel, 2), strict=True)
        (over_space, space_kernel), (over_channels, channel_kernel) = parts
        y = self._decompose_space(over_space, space_kernel, self.initial_bases(keys), training)
        bases = self.initial_channel_bases(keys)
        return y + self._decompose_channels(over_channels, channel_kernel, bases, training)

    def _decompose_channels(self, x, kernel, initial, training):
        """As `_decompose_space`, a channel a row: x [B, H, W, S*D], initial [B, S, H*W, R]."""
        batch, height, width, channels = tf.shape(x)[0], *x.shape[1:]
        dim = channels // self.sections
        y = tf.transpose(tf.reshape(x, [batch, height * width, channels]), [0, 2, 1])  # [B, S*D, N]
        y = tf.reshape(y, [batch * self.sections, dim, height * width])
        kernel = tf.cast(tf.reshape(kernel, [self.sections, dim, -1]), tf.float32)

        def reconstruct(bases, coef):
            return self._product(bases, coef, kernel)

        def apply(y):
            y = tf.reshape(y, [batch, self.sections, dim, height * width])
            return tf.einsum("bsdn,sdc->bnc", y, kernel)

        y = self._decompose(
            y, initial, self.channel_bases, training, reconstruct=reconstruct, apply=apply
        )
        return tf.reshape(y, [batch, height, width, y.shape[-1]])

    def _shortcut(self, x):
        return tf.cast(self.shortcut_gate, x.dtype) * x


def _max_pool(x):
    """2x2 maxima as rows: [B, H, W, C] -> [B, H*W/4, C]."""
    x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    return tf.reshape(x, [tf.shape(x)[0], x.shape[1] * x.shape[2], x.shape[3]])


class SelfAttention(keras.layers.Layer):
    """SAGAN's self-attention: every pixel attends to the 2x2 maxima of the whole image (Zhang et
    al. 2019).

    Args:
      num_classes: taken because every module is given it; there is no normalisation here.
      dim: channels of queries and keys; None: C / 8 (published).
      value_dim: channels of values; None: C / 2 (published).

    Raises:
      ValueError: in `build`: height or width isn't even, or C not divisible where the published
        sizes are asked for.
    """

    num_heads = 1

    def __init__(self, *, num_classes=None, dim=None, value_dim=None, **kwargs):
        super().__init__(**kwargs)
        for name, value in dict(dim=dim, value_dim=value_dim).items():
            if value is not None and (value < 1 or value % self.num_heads):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a positive multiple of the number of "
                    "heads "
                    f"({self.num_heads}), got {value}."
                )
        self.num_classes = num_classes
        self.dim = dim
        self.value_dim = value_dim

    def build(self, input_shape):
        height, width, channels = input_shape[1:]
        if height % 2 or width % 2:
            raise ValueError(
                f"{type(self).__name__}: height and width must be even, got {height}x{width}."
            )
        dim = self.dim or self._part(channels, 8, "dim")
        value_dim = self.value_dim or self._part(channels, 2, "value_dim")
        self.theta = self._conv(dim, "theta", input_shape)
        self.phi = self._conv(dim, "phi", input_shape)
        self.g = self._conv(value_dim, "g", input_shape)
        self.attn = self._conv(channels, "attn", (*input_shape[:-1], value_dim))
        self.gate = self.add_weight(name="gate", shape=(), initializer="zeros", autocast=False)

    def _part(self, channels, divisor, name):
        divisor_of_heads = divisor * self.num_heads
        if channels % divisor_of_heads:
            raise ValueError(
                f"{type(self).__name__}: {name} is 1/{divisor} of the input's channels, which must "
                "be divisible by "
                f"{divisor_of_heads}, got {channels}. Give {name}, a multiple of {self.num_heads}."
            )
        return channels // divisor

    def _conv(self, filters, name, input_shape):
        conv = SpectralConv2D(
            filters, 1, use_bias=False, exact=True, name=name, dtype=self.dtype_policy
        )
        conv.build(input_shape)
        return conv

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels and keys have no effect."""
        del labels, keys
        batch, height, width = tf.shape(x)[0], *x.shape[1:3]
        queries = self.theta(x, training=training)
        queries = tf.reshape(queries, [batch, height * width, queries.shape[-1]])  # [B, N, c]
        keys = _max_pool(self.phi(x, training=training))  # [B, N/4, c]
        values = _max_pool(self.g(x, training=training))  # [B, N/4, C/2]
        # Scores and softmax are a float32 island: bfloat16's 8 bits would round scores of 100 to
        # halves.
        y = self._attend(tf.cast(queries, tf.float32), tf.cast(keys, tf.float32), values)
        y = self.attn(tf.reshape(y, [batch, height, width, values.shape[-1]]), training=training)
        return x + tf.cast(self.gate, x.dtype) * y

    def _attend(self, queries, keys, values):
        """queries [B, N, c] and keys [B, M, c] float32, values [B, M, v] -> [B, N, v] in the type
        of the values.
        """
        weights = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True), axis=-1)  # [B, N, M]
        return tf.matmul(tf.cast(weights, values.dtype), values)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "dim": self.dim,
            "value_dim": self.value_dim,
        }


def sparse_masks(side):
    """The two-step attention patterns of YLG's eight heads on a square grid of pooled cells.

    Cells are renumbered by their Manhattan distance from the upper left corner, ties from the top;
    the patterns are those of sparse transformers over these numbers, with stride `side` (Daras et
    al. 2020, section 3.2).

    Args:
      side: cells per row and per column.

    Returns:
      bool tensor [8, n, n], n = side^2: whether the query in cell q (row-major) may attend to the
      key in cell k.
    """
    row, column = np.divmod(np.arange(side * side), side)
    number = np.empty(side * side, np.int32)
    number[np.lexsort([row, row + column])] = np.arange(side * side)
    # Ops on the n numbers, which the graph's compiler folds or fuses: a constant of n^2 would be
    # stored in every graph.
    query, key = tf.constant(number)[:, None], tf.constant(number)[None, :]

    def floor(query, key):
        return (key >= query - query % side) & (key <= query)

    left_floor, right_floor = floor(query, key), floor(key, query)
    left_repetitive = (query == key) | (key % side == side - 1)
    right_repetitive = (query == key) | (key % side == 0)
    return tf.stack([right_floor, right_repetitive] * 2 + [left_floor, left_repetitive] * 2)


class SparseAttention(SelfAttention):
    """YLG's local sparse attention: eight heads, each with a two-dimensional sparse pattern (Daras
    et al. 2020).

    `SelfAttention` with its channels split into heads and the scores of forbidden pairs lowered by
    1000. The result
    interleaves the heads: channel = position within head * 8 + head.

    Arguments as in `SelfAttention`; dim and value_dim must be multiples of 8.

    Raises:
      ValueError: in `build`, as in `SelfAttention`, or the image isn't square.
    """

    num_heads = 8

    def build(self, input_shape):
        if input_shape[1] != input_shape[2]:
            raise ValueError(
                f"SparseAttention: the image must be square, got {input_shape[1]}x{input_shape[2]}."
            )
        super().build(input_shape)

    def _split(self, x):
        return tf.reshape(
            x, [tf.shape(x)[0], x.shape[1], self.num_heads, x.shape[2] // self.num_heads]
        )

    def _attend(self, queries, keys, values):
        batch, num_queries, num_keys, heads = (
            tf.shape(queries)[0],
            queries.shape[1],
            keys.shape[1],
            self.num_heads,
        )
        scores = tf.einsum("bqhc,bkhc->bhqk", self._split(queries), self._split(keys))
        # A pattern of n x n cells serves each block of n consecutive queries (not the pixels of a
        # cell: published so).
        scores = tf.reshape(scores, [batch, heads, num_queries // num_keys, num_keys, num_keys])
        masks = sparse_masks(round(num_keys**0.5))[:, None]
        scores = tf.where(masks, scores, scores - 1000.0)
        weights = tf.nn.softmax(tf.reshape(scores, [batch, heads, num_queries, num_keys]), axis=-1)
        y = tf.einsum("bhqk,bkhc->bqch", tf.cast(weights, values.dtype), self._split(values))
        return tf.reshape(y, [batch, num_queries, values.shape[-1]])
