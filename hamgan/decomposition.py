"""Matrix decompositions that give a feature map its global context ("hams"), and how gradients pass
through them.

Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021, section 3.

A decomposition is a function `(x, bases, *, num_steps, solve) -> Factors`. The paper's X [D, N]
stands here transposed, as channels-last feature maps lie in memory:
    x: [B, N, D]   bases: [B, D, R]   coef: [B, N, R]   y = coef bases^T: [B, N, D]
Products of size R x R are taken first, so nothing of size N x N or D x N x R is ever formed. Nor is
y, as large as x: a layer that maps it linearly maps the few bases instead.

Adding one: write such a function, and name it in a gin file
(`context.Hamburger.decomposition = @mine.function`). Its attribute `draw_bases`, a function of
`hamgan.stateless`, gives its initial bases; without it they are N(0, 1). One that has no factors
returns y itself, which the layer takes as an `Approximation`.

A `solve` function (`one_step` and others below) runs the update K times and decides what the
gradient sees of it: `(update, x, state, num_steps) -> state`. The state is a tuple of tensors, the
bases first.
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from hamgan import arguments, stateless
from hamgan.parts import registered

EPSILON = 1e-6
# Where squares of entries, summed over rows, would leave float32.
_LARGE = 2.0**40


def _check_positive(function, **values):
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{function}: {name} must be positive, got {value}.")


# What a decomposition gives


class Factors(NamedTuple):
    """What a decomposition made of a matrix: x is about coef bases^T.

    Attributes:
      x: [B, N, D], what was decomposed (NMF: without negative entries).
      bases: [B, D, R].
      coef: [B, N, R].
    """

    x: tf.Tensor
    bases: tf.Tensor
    coef: tf.Tensor

    def product(self):
        """What the factors stand for, coef bases^T: [B, N, D]."""
        return tf.matmul(self.coef, self.bases, transpose_b=True)

    def residual(self):
        """|x - y| / |x| in the Frobenius norm, the mean over the B matrices (0 for one of zeros).

        A float32 scalar, constant for the gradient and good to about 1e-3: y isn't formed, but the
        parts of |x|^2 - 2 <x, y> + |y|^2.
        """
        x, bases, coef = map(tf.stop_gradient, self)
        scale, of_bases = _scale(x), _scale(bases)
        x, bases, coef = x / scale, bases / of_bases, coef * (of_bases / scale)
        square = tf.einsum("bnd,bnd->b", x, x)
        mixed = tf.reduce_sum(coef * tf.matmul(x, bases), axis=[1, 2])
        grams = _gram(bases) * _gram(coef)  # [B, R, R]
        difference = square - 2 * mixed + tf.reduce_sum(grams, axis=[1, 2])
        return _mean_ratio(tf.maximum(difference, 0.0), square)


class Approximation(NamedTuple):
    """The same of a decomposition that gives the product alone.

    Attributes:
      x: [B, N, D], what was decomposed.
      y: [B, N, D].
    """

    x: tf.Tensor
    y: tf.Tensor

    def product(self):
        """As `Factors.product`."""
        return self.y

    def residual(self):
        """As `Factors.residual`, to float32's precision."""
        scale = _scale(self.x)
        square, difference = (
            tf.reduce_sum(tf.square(z / scale), axis=[1, 2]) for z in (self.x, self.x - self.y)
        )
        return tf.stop_gradient(_mean_ratio(difference, square))


def _gram(factor):
    return tf.matmul(factor, factor, transpose_a=True)  # [B, R, R]


def _mean_ratio(difference, square):
    return tf.reduce_mean(tf.sqrt(difference / tf.where(square == 0, tf.ones_like(square), square)))


def _scale(x, axis=(1, 2)):
    """What x [B, N, D] is divided by so that its squares can be summed over `axis`: powers of 2.

    1 where no entry is above 2^40, and for what isn't finite; else the largest is between 2^32 and
    2^40 then. Dividing by a power of 2 is exact, and entries so large are far beyond every epsilon
    here.
    """
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(x)), axis=axis, keepdims=True)
    ratio, scale = largest / _LARGE, tf.ones_like(largest)
    # Comparisons, since no two devices round a logarithm alike; one power in eight, since each
    # costs operations in every ham.
    for exponent in (64, 32, 16, 8):
        is_above = ratio > scale * tf.constant(2.0 ** (exponent - 8), x.dtype)
        scale = tf.where(is_above, scale * tf.constant(2.0**exponent, x.dtype), scale)
    return tf.where(tf.math.is_finite(ratio), scale, tf.ones_like(ratio))


# How the updates are run and differentiated


@registered
def one_step(update, x, state, num_steps):
    """Runs `num_steps` updates without gradient: the paper's one-step gradient (section 3.3).

    The decomposition then takes one last, differentiable step of its own. Memory doesn't grow with
    `num_steps`: the gradient is stopped on the way in, so nothing in between is kept.

    Args:
      update: function (x, state) -> state, one iteration of the solver.
      x: [B, N, D] float.
      state: tuple of tensors, the initial (bases, coef).
      num_steps: Python integer K >= 0.

    Returns:
      The state after K updates, constant for the gradient.
    """
    x = tf.stop_gradient(x)
    state = tuple(tf.stop_gradient(part) for part in state)
    for _ in range(num_steps):
        state = update(x, state)
    return state


@registered
def unrolled(update, x, state, num_steps):
    """Runs `num_steps` updates, all of them differentiable: backpropagation through time, the
    paper's counter-example.

    The gradient is exact and reaches the initial state too; its memory and time grow with
    `num_steps`. Args and returns as in `one_step`.
    """
    for _ in range(num_steps):
        state = update(x, state)
    return state


@arguments.take(count=arguments.whole(1))
@registered
def last_steps(update, x, state, num_steps, *, count=1):
    """Runs `num_steps` updates, of which the last `count` are differentiable: truncated
    backpropagation through time.

    Args:
      update, x, state, num_steps: as in `one_step`.
      count: differentiable updates. With `count` >= `num_steps` it is `unrolled`.

    Raises:
      ValueError: `count` isn't positive (0 would be `one_step`).
    """
    _check_positive("last_steps", count=count)
    if count < num_steps:
        state = one_step(update, x, state, num_steps - count)
    return unrolled(update, x, state, min(count, num_steps))


@arguments.take(adjoint_steps=arguments.whole(0))
@registered
def implicit(update, x, state, num_steps, *, adjoint_steps=6):
    """Runs `num_steps` updates, and differentiates the fixed point that they approach (the paper's
    Proposition 2).

    At a fixed point z = F(z, x), and a gradient g with respect to z becomes (dF/dx)^T l with l =
    (dF/dz)^T l + g. This adjoint equation is itself solved by iteration, l = g, (dF/dz)^T l + g,
    ..., which converges where F contracts. Far
    from a fixed point it need not: keep `adjoint_steps` small when `num_steps` is. Memory grows
    with neither, and the gradient doesn't see the initial state.

    Args:
      update, x, state, num_steps: as in `one_step`.
      adjoint_steps: iterations of the adjoint equation, each as dear as the gradient of one update.
        With m of them the gradient is that of m + 1 differentiable updates at the fixed point.

    Raises:
      ValueError: `adjoint_steps` is negative.
    """
    if adjoint_steps < 0:
        raise ValueError(f"implicit: adjoint_steps must not be negative, got {adjoint_steps}.")
    solution = one_step(update, x, state, num_steps)

    @tf.custom_gradient
    def at_fixed_point(x):
        def backward(*gradients):
            # One linearisation of F serves every step; its products with vectors are all that is
            # needed.
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch([x, solution])
                updated = update(x, solution)
            pull_back = functools.partial(tape.gradient, updated, unconnected_gradients="zero")
            adjoint = gradients
            for _ in range(adjoint_steps):
                adjoint = [
                    part + g
                    for part, g in zip(pull_back(solution, adjoint), gradients, strict=True)
                ]
            return pull_back(x, adjoint)

        return solution, backward

    return at_fixed_point(x)


def reaches_initial_state(solve, num_steps):
    """Whether a gradient passes through `solve` to the initial state, so that initial bases can be
    learned.
    """
    initial = tf.ones([])
    with tf.GradientTape() as tape:
        tape.watch(initial)
        (solution,) = solve(lambda x, state: state, tf.ones([]), (initial,), num_steps)
    return tape.gradient(solution, initial) is not None


# What the decompositions share


def draw_bases_of(decomposition):
    """The function of `hamgan.stateless` that draws initial bases for a decomposition, or a
    `partial` of one.
    """
    while isinstance(decomposition, functools.partial) and not hasattr(decomposition, "draw_bases"):
        decomposition = decomposition.func
    return getattr(decomposition, "draw_bases", stateless.normal)


def normalize_bases(bases):
    """Bases [..., D, R] with columns of length 1 (columns below 1e-6 are divided by that)."""
    return tf.math.l2_normalize(bases, axis=-2, epsilon=EPSILON**2)


# Non-negative matrix factorisation


def _update_nmf_coef(x, bases, coef):
    numerator = tf.matmul(x, bases)  # [B, N, R]
    denominator = tf.matmul(coef, _gram(bases))  # [B, N, R] [B, R, R]
    return coef * numerator / (denominator + EPSILON)


def _update_nmf_bases(x, bases, coef):
    numerator = tf.matmul(x, coef, transpose_a=True)  # [B, D, R]
    denominator = tf.matmul(bases, _gram(coef))  # [B, D, R] [B, R, R]
    return bases * numerator / (denominator + EPSILON)


def _update_nmf(x, state):
    bases, coef = state
    coef = _update_nmf_coef(x, bases, coef)
    return _update_nmf_bases(x, bases, coef), coef


@registered
def nmf(
    x,
    bases,
    *,
    num_steps,
    solve=one_step,
    temperature=1.0,
    normalize=False,
    rectify=True,
):
    """Non-negative matrix factorisation by multiplicative updates (section 3.2, Lee and Seung
    2001).

    Args:
      x: [B, N, D] float32; negative entries are set to 0 first, where `rectify`.
      bases: [B, D, R] initial bases, drawn from U(0, 1) where nothing else is said. Of negative
        entries, which learned bases may come to have, the absolute value is taken.
      num_steps: updates before the last one, K.
      solve: how the K updates are run and differentiated, e.g. `one_step`.
      temperature: of the softmax that gives the initial coefficients.
      normalize: scale the initial bases to length 1, as the published segmentation code does.
      rectify: False for x that isn't negative, the output of a ReLU as in the published
        segmentation code: there the gradient of zeros is stopped by that ReLU, not here.

    Returns:
      `Factors`, of which none is negative.

    Raises:
      ValueError: the temperature isn't positive.
    """
    _check_positive("nmf", temperature=temperature)
    scale = _scale(x)
    # In this order only one tensor of the size of x is kept for the gradient.
    x = x * (1 / scale)
    x = tf.nn.relu(x) if rectify else x
    bases = tf.abs(bases)
    if normalize:
        bases = normalize_bases(bases)
    coef = tf.nn.softmax(tf.matmul(x, bases) * (1 / temperature), axis=-1)
    bases, coef = solve(_update_nmf, x, (bases, coef), num_steps)
    coef = _update_nmf_coef(x, bases, coef)
    return Factors(x * scale, bases, coef * scale)


nmf.draw_bases = stateless.uniform


# Vector quantisation and concept decomposition: soft k-means by cosine similarity


def _squared_length(x):
    """(squares, scale), each [B, N, 1]: the rows' lengths are scale * sqrt(squares)."""
    # Not the sum of a square: without XLA that would be one more tensor of the size of x.
    return tf.einsum("bnd,bnd->bn", x, x)[..., None]  # [B, N, 1]


def _soft_means(x, bases, *, temperature):
    """Means of the rows of x, weighted by a softmax of their cosines with bases of length 1."""
    # The length of a row of x scales its logits: a normalised copy of x would be one more tensor of
    # its size.
    inverse_length = tf.math.rsqrt(tf.maximum(_squared_length(x), EPSILON**2))
    coef = tf.nn.softmax(tf.matmul(x, bases) * (inverse_length / temperature), axis=-1)  # [B, N, R]
    total = tf.reduce_sum(coef, axis=1, keepdims=True)  # [B, 1, R]
    # Dividing the small product, [B, D, R], is dividing coef.
    return tf.matmul(x, coef, transpose_a=True) / (EPSILON + total)


def _update_vq(x, state, *, temperature):
    (bases,) = state
    return (_soft_means(x, normalize_bases(bases), temperature=temperature),)


def _update_cd(x, state, *, temperature):
    (bases,) = state
    return (normalize_bases(_soft_means(x, bases, temperature=temperature)),)


@arguments.take(temperature=arguments.number(above=0))
@registered
def vq(x, bases, *, num_steps, solve=one_step, temperature=0.01):
    """Vector quantisation: each row of x becomes a soft choice among R centres (section 3.2; Gray
    and Neuhoff 1998).

    Args:
      x: [B, N, D] float32.
      bases: [B, D, R] initial centres, N(0, 1) where nothing else is said; their length doesn't
        matter.
      num_steps: updates of the centres, K.
      solve: how they are run and differentiated, e.g. `one_step`.
      temperature: of the softmax over centres.

    Returns:
      `Factors`. The gradient of the last choice with respect to x is taken at constant length of
      the rows.

    Raises:
      ValueError: the temperature isn't positive.
    """
    _check_positive("vq", temperature=temperature)
    update = functools.partial(_update_vq, temperature=temperature)
    (bases,) = solve(update, x, (normalize_bases(bases),), num_steps)
    length = tf.sqrt(_squared_length(tf.stop_gradient(x)))
    logits = tf.matmul(x, normalize_bases(bases)) * (1 / temperature / (EPSILON + length))
    return Factors(x, bases, tf.nn.softmax(logits, axis=-1))


vq.draw_bases = stateless.normal


@arguments.take(temperature=arguments.number(above=0), beta=arguments.number(above=0))
@registered
def cd(x, bases, *, num_steps, solve=one_step, temperature=0.01, beta=0.01, normalize=True):
    """Concept decomposition: spherical k-means, then ridge regression on the concepts (Dhillon and
    Modha 2001).

    Args:
      x: [B, N, D] float32.
      bases: [B, D, R] initial concepts, N(0, 1) where nothing else is said; their length doesn't
        matter.
      num_steps: updates of the concepts, K.
      solve: how they are run and differentiated, e.g. `one_step`.
      temperature: of the softmax over concepts.
      beta: weight of the ridge, added to the diagonal of bases^T bases. The published segmentation
        code has 0.1.
      normalize: scale the initial concepts to length 1; False: they are of this length already.

    Returns:
      `Factors` with coef = x bases (bases^T bases + beta I)^-1.

    Raises:
      ValueError: temperature or beta isn't positive.
    """
    _check_positive("cd", temperature=temperature, beta=beta)
    update = functools.partial(_update_cd, temperature=temperature)
    bases = normalize_bases(bases) if normalize else bases
    (bases,) = solve(update, x, (bases,), num_steps)
    ridge = _gram(bases) + beta * tf.eye(
        bases.shape[-1], dtype=bases.dtype
    )  # [B, R, R], positive definite
    inverse = tf.linalg.cholesky_solve(
        tf.linalg.cholesky(ridge), tf.linalg.matrix_transpose(bases)
    )  # [B, R, D]
    return Factors(x, bases, tf.matmul(x, inverse, transpose_b=True))


cd.draw_bases = stateless.normal
