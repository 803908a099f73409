"""Hamburgers (Geng et al. 2021): a matrix decomposition between two 1x1 convolutions."""

import contextlib
import functools
import operator

import keras
import numpy as np
import tensorflow as tf

from hamgan import arguments, parts, stateless
from hamgan import decomposition as decompositions
from hamgan.context.bases import RandomBases
from hamgan.normalization import BatchNorm
from hamgan.parts import registered
from hamgan.shapes import check_map, sizes
from hamgan.spectral import SpectralConv2D

# The parts of a Hamburger that its hams' bases are from.
_BASES = {"space": "bases", "channels": "channel_bases"}


def _island(x):
    """x in float32 at least: bfloat16's 8 bits leave a decomposition's divisions no meaning."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


@arguments.take(
    **dict.fromkeys(("num_classes", "dim", "rank"), arguments.optional(arguments.whole(1))),
    norm=arguments.constructor("@normalization.BatchNorm", of=keras.layers.Layer),
    num_steps=arguments.whole(0),
    eval_steps=arguments.optional(arguments.whole(0)),
    sections=arguments.whole(1),
    decomposition=arguments.function("@decomposition.nmf"),
    solve=arguments.function("@decomposition.unrolled"),
    bases=arguments.constructor("@context.LearnedBases", of=keras.layers.Layer),
)
@registered
class Hamburger(keras.layers.Layer):
    """Hamburger V1: lower bread, matrix decomposition, upper bread (Geng et al. 2021, section 3.1).

    The input is mapped to `sections * dim` channels by a spectrally normalised 1x1 convolution;
    each section's channels form a matrix X [dim, H*W], which the decomposition replaces by a matrix
    of rank `rank`; a second 1x1 convolution, (conditional) batch norm in the generator, and a
    scalar gate lead back to x.

    Args:
      num_classes: classes of the conditional batch norm after the ham; None: no batch norm.
      norm: constructor of that batch norm. It, `decomposition`, `solve` and `bases` may also be
        names ("nmf", "RandomBases"): see `hamgan.parts`.
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
        for name, value in dict(num_steps=num_steps, eval_steps=eval_steps).items():
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{kind}: {name} must not be negative, got {value}.")
        sizes = arguments.check(
            kind,
            self.ARGUMENTS,
            num_classes=num_classes,
            dim=dim,
            rank=rank,
            num_steps=num_steps,
            eval_steps=eval_steps,
            sections=sections,
        )
        for name, value in sizes.items():
            setattr(self, name, value)
        self.norm_constructor = parts.resolve(norm, f"{kind}: norm")
        self.decomposition = parts.resolve(decomposition, f"{kind}: decomposition")
        self.solve = parts.resolve(solve, f"{kind}: solve")
        self.bases_constructor = parts.resolve(bases, f"{kind}: bases")
        self._left_out = None

    def build(self, input_shape):
        check_map(self, input_shape)
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

    def _part(self, dim, name):
        shape = (self.sections, dim, self._rank)
        bases = self.bases_constructor(shape, draw=self._draw(), name=name)
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

    def _draw(self):
        """The function of `hamgan.stateless` that initial bases are drawn by."""
        return decompositions.draw_bases_of(self.decomposition)

    def _build_ham(self, input_shape):
        del input_shape
        self.bases = self._part(self._dim, "bases")

    def _build_upper(self, ham_shape, input_shape):
        self.upper_bread = self._bread(input_shape[-1], "upper_bread", ham_shape)
        self.norm = self._norm(input_shape)

    def initial_bases(self, keys):
        """The layer's own initial bases [B, S, D, R] float32, row i a function of keys[i] [2]
        alone.
        """
        return self.bases(keys)

    def initial(self, keys):
        """{ham: initial bases} of all `hams`."""
        return {"space": self.initial_bases(keys)}

    def call(self, x, labels=None, training=False, keys=None, *, initial=None, return_hams=False):
        """The layer's output, with `return_hams` (output, {ham: `decomposition.Factors`}).

        Args:
          x: [B, H, W, C].
          labels: int [B] or [B, 1].
          training: whether batch norm, spectral norm and bases learn.
          keys: int32 [B, 2] of the bases; None: fresh ones at every call.
          initial: function keys -> {ham: [B, S, D, R] float32} that gives the initial bases in
            place of the layer's own, its method `initial`. (Of a tensor Keras would make one of the
            compute dtype.)
          return_hams: also return what was decomposed into what, B * S matrices for each ham; of a
            decomposition that gives y alone, a `decomposition.Approximation`.
        """
        check_map(self, x.shape)
        if keys is None:
            keys = stateless.fresh_keys(tf.shape(x)[0])
        initial = (initial or self.initial)(keys)
        kernel = _island(self._next_kernel(training))
        hams = self.decompose(x, initial, training=training)
        y = self._product(hams if self._left_out is None else self._without(hams), kernel)
        y = tf.reshape(y, [*sizes(x)[:3], y.shape[-1]])
        y = self._upper(tf.cast(y, x.dtype), labels, training)
        y = self._shortcut(x) + y
        return (y, hams) if return_hams else y

    @contextlib.contextmanager
    def without(self, section, base):
        """Within, the ham over space goes without one base of a section, for every example."""
        self._left_out = np.ones([self.sections, 1, self._rank], np.float32)
        self._left_out[section, 0, base] = 0
        try:
            yield
        finally:
            self._left_out = None

    def _without(self, hams):
        found = hams["space"]
        mask = tf.tile(self._left_out, [tf.shape(found.coef)[0] // self.sections, 1, 1])
        return {**hams, "space": found._replace(coef=found.coef * mask)}

    def decompose(self, x, initial, *, num_steps=None, training=False):
        """The lower bread and the hams: what becomes of x [B, H, W, C], {ham: `Factors`}.

        Args:
          x: the layer's input.
          initial: {ham: initial bases [B, S, D, R]}.
          num_steps: K; None: the layer's.
          training: as in `call`.
        """
        if num_steps is None:
            is_own = training or self.eval_steps is None
            num_steps = self.num_steps if is_own else self.eval_steps
        y = _island(self.lower_bread(x, training=training))
        return {
            ham: self._solve(rows, initial[ham], part, num_steps, training)
            for ham, (rows, part) in self._matrices(y).items()
        }

    def _matrices(self, y):
        """{ham: (rows [B*S, N, D], the part that its initial bases are from)} of y [B, H, W, C],
        whose channels are shared out evenly.
        """
        rows = {"space": self._pixels_as_rows, "channels": self._channels_as_rows}
        parts = tf.split(y, len(self.hams), axis=-1)
        return {
            ham: (rows[ham](part), getattr(self, _BASES[ham]))
            for ham, part in zip(self.hams, parts, strict=True)
        }

    def _pixels_as_rows(self, x):
        """[B, H, W, S*D] -> [B*S, H*W, D]."""
        batch, height, width, channels = sizes(x)
        sections, dim = self.sections, channels // self.sections
        x = tf.reshape(x, [batch, height * width, sections, dim])
        x = tf.transpose(x, [0, 2, 1, 3]) if sections > 1 else x
        return tf.reshape(x, [batch * sections, height * width, dim])

    def _channels_as_rows(self, x):
        """[B, H, W, S*D] -> [B*S, D, H*W]."""
        batch, height, width, channels = sizes(x)
        x = tf.reshape(x, [batch, height * width, channels])
        x = tf.transpose(x, [0, 2, 1])  # [B, S*D, N]
        return tf.reshape(x, [batch * self.sections, channels // self.sections, height * width])

    def _solve(self, x, initial, part, num_steps, training):
        """x [B*S, N, D] from the bases initial [B, S, D, R], which `part` learns from where it
        learns online: `Factors` or `Approximation`.
        """
        _, sections, dim, rank = sizes(initial)
        states = []

        def solve(update, x, state, num_steps):
            state = self.solve(update, x, state, num_steps)
            states.append((x, state[0]))
            return state

        initial = tf.cast(tf.reshape(initial, [-1, dim, rank]), x.dtype)  # [B*S, D, R]
        found = self.decomposition(x, initial, num_steps=num_steps, solve=solve)
        if not isinstance(found, decompositions.Factors):
            # What the solver is given is what is decomposed, where it is run at all.
            found = decompositions.Approximation(states[0][0] if states else x, found)
        if training and part.learns_online:
            if len(states) != 1:
                raise ValueError(
                    f"{type(self).__name__}: decomposition must call its solve once for bases that "
                    "learn online, got "
                    f"{len(states)} calls. Use RandomBases or FixedBases with it."
                )
            ((_, solved),) = states
            part.update(tf.reshape(solved, [-1, sections, dim, rank]))
        return found

    def _product(self, hams, kernel):
        """The bread with `kernel` [S*D, C] on what the hams stand for: [B, H*W, C] float32."""
        products = {"space": self._space_product, "channels": self._channel_product}
        kernels = tf.split(kernel, len(self.hams))
        parts = [
            products[ham](hams[ham], part) for ham, part in zip(self.hams, kernels, strict=True)
        ]
        return functools.reduce(operator.add, parts)

    def _space_product(self, found, kernel):
        """As `_product`, of the ham whose rows are pixels."""
        kernel = self._of_sections(kernel)
        if isinstance(found, decompositions.Factors):
            return self._small_product(found.coef, found.bases, kernel)
        y = tf.reshape(found.y, [-1, self.sections, *sizes(found.x)[1:]])
        return tf.einsum("bsnd,sdc->bnc", y, kernel)

    def _channel_product(self, found, kernel):
        """As `_space_product`, of the ham whose rows are channels."""
        kernel = self._of_sections(kernel)
        if isinstance(found, decompositions.Factors):
            return self._small_product(found.bases, found.coef, kernel)
        y = tf.reshape(found.y, [-1, self.sections, *sizes(found.x)[1:]])
        return tf.einsum("bsdn,sdc->bnc", y, kernel)

    def _of_sections(self, kernel):
        """[S*D, C] -> [S, D, C]."""
        return tf.reshape(kernel, [self.sections, -1, kernel.shape[-1]])

    def _small_product(self, pixels, channels, kernel):
        """The product of factors and kernel, the smaller product first.

        pixels [B*S, N, R], channels [B*S, D, R], kernel [S, D, C] -> [B, N, C], the sum over
        sections of pixels channels^T kernel.
        """
        sections, dim, filters = kernel.shape
        size, rank = sizes(pixels)[1:]
        channels = tf.reshape(channels, [-1, sections, dim, rank])
        small = tf.einsum("bsdr,sdc->bsrc", channels, kernel)
        small = tf.reshape(small, [-1, sections * rank, filters])
        if sections > 1:
            pixels = tf.transpose(tf.reshape(pixels, [-1, sections, size, rank]), [0, 2, 1, 3])
            pixels = tf.reshape(pixels, [-1, size, sections * rank])
        return tf.matmul(pixels, small)

    def _kernel(self, bread, training, *, gated):
        """The kernel [channels in, channels out] of a bread; `gated`: times the gate.

        Gating this small matrix spares the gradient of the gate a copy of what the branch gives.
        """
        kernel = bread.normalized_kernel(training)[0, 0]
        return tf.cast(self.gate, kernel.dtype) * kernel if gated else kernel

    def _next_kernel(self, training):
        """The kernel of the bread that follows the ham."""
        return self._kernel(self.upper_bread, training, gated=self.norm is None)

    def _upper(self, x, labels, training):
        """What follows the first bread behind the ham, up to the gated branch: [B, H, W, C]."""
        return (
            x
            if self.norm is None
            else tf.cast(self.gate, x.dtype) * self.norm(x, labels, training=training)
        )

    def _shortcut(self, x):
        return x

    def get_config(self):
        kind = type(self).__name__
        norm, bases = getattr(self, "norm", None), getattr(self, _BASES[self.hams[0]], None)
        # Without classes none is made: what would make it, a wrapper of gin's maybe, says nothing.
        norm_constructor = self.norm_constructor if self.num_classes else BatchNorm
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "norm": parts.name_of(norm_constructor, f"{kind}: norm", norm, given=("num_classes",)),
            "dim": self.dim,
            "rank": self.rank,
            "num_steps": self.num_steps,
            "eval_steps": self.eval_steps,
            "sections": self.sections,
            "decomposition": parts.name_of(self.decomposition, f"{kind}: decomposition"),
            "solve": parts.name_of(self.solve, f"{kind}: solve"),
            "bases": parts.name_of(
                self.bases_constructor, f"{kind}: bases", bases, given=("shape", "draw")
            ),
        }


@registered
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


@registered
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
        check_map(self, input_shape)
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
        self.bases = self._part(self._dim // 2, "bases")
        self.channel_bases = self._part(input_shape[1] * input_shape[2], "channel_bases")

    def initial_channel_bases(self, keys):
        """As `initial_bases`, which is now for the half over space, for the half over channels: [B,
        S, H*W, R].
        """
        # A draw of its own: the two halves' bases would otherwise begin with the same numbers.
        return self.channel_bases(stateless.fold_each(keys, 1))

    def initial(self, keys):
        return {**super().initial(keys), "channels": self.initial_channel_bases(keys)}

    def _shortcut(self, x):
        return tf.cast(self.shortcut_gate, x.dtype) * x
