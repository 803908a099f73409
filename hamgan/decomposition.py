"""Matrix decompositions that give a feature map its global context ("hams"), and how gradients pass through them.

Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021, section 3.

A decomposition is a function `(x, bases, *, num_steps, solve) -> y`. The paper's X [D, N] stands here transposed,
as channels-last feature maps lie in memory:
    x: [B, N, D]   bases: [B, D, R]   coef: [B, N, R]   y = coef bases^T: [B, N, D]
Products of size R x R are taken first, so nothing of size N x N or D x N x R is ever formed.

Adding one: write such a function, and name it in a gin file (`context.Hamburger.decomposition = @mine.function`). Its
attribute `draw_bases`, a function of `hamgan.stateless`, gives its initial bases; without it they are N(0, 1).

A `solve` function (`one_step` here) runs the update K times and decides what the gradient sees of it.
"""

import tensorflow as tf

from hamgan import stateless

EPSILON = 1e-6


def one_step(update, x, state, num_steps):
    """Runs `num_steps` updates without gradient: the paper's one-step gradient (section 3.3).

    The decomposition then takes one last, differentiable step of its own. Memory doesn't grow with `num_steps`: the
    gradient is stopped on the way in, so nothing in between is kept.

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


def _reconstruct(bases, coef):
    return tf.matmul(coef, bases, transpose_b=True)  # [B, N, R] [B, R, D] -> [B, N, D]


def _update_nmf_coef(x, bases, coef):
    numerator = tf.matmul(x, bases)  # [B, N, R]
    denominator = tf.matmul(coef, tf.matmul(bases, bases, transpose_a=True))  # [B, N, R] [B, R, R]
    return coef * numerator / (denominator + EPSILON)


def _update_nmf_bases(x, bases, coef):
    numerator = tf.matmul(x, coef, transpose_a=True)  # [B, D, R]
    denominator = tf.matmul(bases, tf.matmul(coef, coef, transpose_a=True))  # [B, D, R] [B, R, R]
    return bases * numerator / (denominator + EPSILON)


def _update_nmf(x, state):
    bases, coef = state
    coef = _update_nmf_coef(x, bases, coef)
    return _update_nmf_bases(x, bases, coef), coef


def nmf(x, bases, *, num_steps, solve=one_step):
    """Non-negative matrix factorisation by multiplicative updates (section 3.2, Lee and Seung 2001).

    Args:
      x: [B, N, D] float32; negative entries are set to 0 first.
      bases: [B, D, R] non-negative initial bases, drawn from U(0, 1) where nothing else is said.
      num_steps: updates before the last one, K.
      solve: how the K updates are run and differentiated, e.g. `one_step`.

    Returns:
      [B, N, D], the product of non-negative factors.
    """
    x = tf.nn.relu(x)
    coef = tf.nn.softmax(tf.matmul(x, bases), axis=-1)
    bases, coef = solve(_update_nmf, x, (bases, coef), num_steps)
    coef = _update_nmf_coef(x, bases, coef)
    return _reconstruct(bases, coef)


nmf.draw_bases = stateless.uniform
