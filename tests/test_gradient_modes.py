"""How gradients pass through the updates of a decomposition (paper, section 3.3 and Propositions 1
and 2).

The contraction that can be solved exactly is z <- F(z, x) = z A^T + x C^T, whose rows approach x
C^T (I - A^T)^-1. A "decomposition" on it runs K updates and then, like every ham, a last one that
is differentiable.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, assert_modes_agree, numerical_gradient

from hamgan import decomposition
from hamgan.decomposition import implicit, last_steps, one_step, unrolled

ROWS, SIZE = 4, 6
RATE = 0.8  # spectral norm of A: how much closer an update leads to the fixed point, at least


def matrices(norm=RATE, seed=0):
    """A [SIZE, SIZE] of this spectral norm, not symmetric, and C [SIZE, SIZE]."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(SIZE, SIZE))
    return norm * a / np.linalg.norm(a, 2), rng.normal(size=(SIZE, SIZE))


def vectors(seed=1):
    """x, an initial z and an upstream gradient g, [ROWS, SIZE]."""
    return np.random.default_rng(seed).normal(size=(3, ROWS, SIZE))


def contraction(x, initial, *, num_steps, solve, a, c):
    def update(x, state):
        (z,) = state
        return (tf.matmul(z, a, transpose_b=True) + tf.matmul(x, c, transpose_b=True),)

    (z,) = update(x, solve(update, x, (initial,), num_steps))
    return z


def run(solve, *, num_steps, a, c, wanted="dx"):
    """z, or the gradient with respect to x or the initial z."""
    x, initial, g = map(tf.constant, vectors())
    with tf.GradientTape() as tape:
        tape.watch([x, initial])
        z = contraction(
            x, initial, num_steps=num_steps, solve=solve, a=tf.constant(a), c=tf.constant(c)
        )
    if wanted == "z":
        return z.numpy()
    gradient = tape.gradient(z, {"dx": x, "dinitial": initial}[wanted], g)
    return None if gradient is None else gradient.numpy()


def exact_gradient(a, c):
    """dz/dx at the fixed point, applied to g: (I - A^T)^-1, then C^T, on columns."""
    _, _, g = vectors()
    return (c.T @ np.linalg.solve(np.eye(SIZE) - a.T, g.T)).T


def neumann(a, c, terms):
    """The first `terms` of the series of `exact_gradient`: sum over i of C^T (A^T)^i g."""
    _, _, g = vectors()
    total, power = np.zeros_like(g), g
    for _ in range(terms):
        total, power = total + power @ c, power @ a
    return total


# Proposition 1: the updates approach one fixed point, and the nearer the faster


@pytest.mark.parametrize("solve", [one_step, unrolled, last_steps, implicit])
def test_updates_approach_the_only_fixed_point(solve):
    a, c = matrices()
    x, initial, _ = vectors()
    fixed_point = np.linalg.solve(np.eye(SIZE) - a, c @ x.T).T
    first = np.linalg.norm(initial - fixed_point)
    for num_steps in (0, 3, 10, 30, 100):
        z = run(solve, num_steps=num_steps, a=a, c=c, wanted="z")
        assert np.linalg.norm(z - fixed_point) <= RATE ** (num_steps + 1) * first + 1e-12


# Proposition 2: what is left of backpropagation through all updates when they are many


def test_gradient_of_the_initial_state_vanishes():
    a, c = matrices()
    _, _, g = vectors()
    norms = []
    for num_steps in (0, 5, 20, 80):
        gradient = run(unrolled, num_steps=num_steps, a=a, c=c, wanted="dinitial")
        norms.append(np.linalg.norm(gradient))
        assert norms[-1] <= RATE ** (num_steps + 1) * np.linalg.norm(g)
    assert norms[0] > 0.1 and norms[-1] < 1e-6


def test_unrolled_gradient_approaches_the_implicit_one():
    a, c = matrices()
    exact = exact_gradient(a, c)
    bound = np.linalg.norm(c, 2) * np.linalg.norm(vectors()[2]) / (1 - RATE)
    for num_steps in (0, 5, 20, 200):
        error = np.linalg.norm(run(unrolled, num_steps=num_steps, a=a, c=c) - exact)
        assert error <= RATE ** (num_steps + 1) * bound + 1e-10
    assert_close(
        run(functools.partial(implicit, adjoint_steps=200), num_steps=200, a=a, c=c), exact, 1e-10
    )


def test_implicit_gradient_of_a_nonlinear_contraction():
    a, c = matrices()
    x, initial, g = vectors()

    def step(z, x):
        return np.tanh(z @ a.T + x @ c.T)

    def fixed_point(x):
        z = initial
        for _ in range(300):
            z = step(z, x)
        return z

    def update(x, state):
        return (
            tf.tanh(tf.matmul(state[0], a, transpose_b=True) + tf.matmul(x, c, transpose_b=True)),
        )

    # Implicit function theorem, row by row: dz/dx = (I - S A)^-1 S C with S = diag(1 - z^2).
    solved = fixed_point(x)
    expected = np.zeros_like(x)
    for row in range(ROWS):
        slope = np.diag(1 - solved[row] ** 2)
        expected[row] = c.T @ slope @ np.linalg.solve(np.eye(SIZE) - a.T @ slope, g[row])
    assert_close(expected, numerical_gradient(lambda x: np.sum(g * fixed_point(x)), x), 1e-7)

    for solve in (unrolled, functools.partial(implicit, adjoint_steps=150)):
        constant = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(constant)
            (z,) = solve(update, constant, (tf.constant(initial),), 150)
        assert_close(z, solved, 1e-10)
        assert_close(tape.gradient(z, constant, tf.constant(g)), expected, 1e-8)


# The one-step gradient is the first term of the implicit gradient's Neumann series


@pytest.mark.parametrize("num_steps", [0, 1, 6, 50])
def test_one_step_gradient_is_the_first_term(num_steps):
    a, c = matrices()
    assert_close(run(one_step, num_steps=num_steps, a=a, c=c), neumann(a, c, 1), 1e-13)
    assert run(one_step, num_steps=num_steps, a=a, c=c, wanted="dinitial") is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_differentiable_step_adds_a_term(count):
    # 1 term is the last step's own, as for the one-step gradient.
    a, c = matrices()
    expected = neumann(a, c, count + 1)
    assert_close(
        run(functools.partial(last_steps, count=count), num_steps=6, a=a, c=c), expected, 1e-13
    )
    assert_close(
        run(functools.partial(implicit, adjoint_steps=count - 1), num_steps=6, a=a, c=c),
        expected,
        1e-13,
    )
    assert_close(run(unrolled, num_steps=count, a=a, c=c), expected, 1e-13)


def test_the_series_sums_to_the_implicit_gradient():
    a, c = matrices()
    exact = exact_gradient(a, c)
    errors = [np.linalg.norm(neumann(a, c, terms) - exact) for terms in (1, 2, 10, 200)]
    assert errors[0] > 0.1 * np.linalg.norm(exact)
    assert errors[-1] < 1e-10
    # The one-step gradient is off by at most RATE / (1 - RATE) times its own bound.
    g = vectors()[2]
    assert errors[0] <= RATE / (1 - RATE) * np.linalg.norm(c, 2) * np.linalg.norm(g)


def test_one_step_gradient_stays_bounded_where_the_others_do_not():
    _, c = matrices()
    g = vectors()[2]
    bound = np.linalg.norm(c, 2) * np.linalg.norm(g)
    norms = {"one_step": [], "unrolled": [], "implicit": []}
    for rate in (0.5, 0.9, 0.99, 0.999):
        a = rate * np.eye(SIZE)
        for name, solve in (("one_step", one_step), ("unrolled", unrolled)):
            norms[name].append(np.linalg.norm(run(solve, num_steps=200, a=a, c=c)))
        norms["implicit"].append(np.linalg.norm(exact_gradient(a, c)))
    np.testing.assert_allclose(norms["one_step"], norms["one_step"][0])
    assert norms["one_step"][0] <= bound
    # (I - A)^-1 = I / (1 - rate).
    np.testing.assert_allclose(
        norms["implicit"], norms["one_step"] / (1 - np.array([0.5, 0.9, 0.99, 0.999]))
    )
    np.testing.assert_allclose(norms["unrolled"][:2], norms["implicit"][:2], rtol=1e-6)
    assert norms["unrolled"][3] > 150 * norms["one_step"][3]


def test_unrolled_gradient_explodes_where_updates_expand():
    _, c = matrices()
    a = 1.5 * np.eye(SIZE)
    first, last = (np.linalg.norm(run(unrolled, num_steps=k, a=a, c=c)) for k in (6, 60))
    assert last > 1e9 * first
    first, last = (np.linalg.norm(run(one_step, num_steps=k, a=a, c=c)) for k in (6, 60))
    assert last == pytest.approx(first)


# The decompositions themselves

B, N, D, R, K = 2, 30, 8, 3, 6

HAMS = {
    "nmf": decomposition.nmf,
    "cd": functools.partial(decomposition.cd, temperature=0.3),
    "vq": functools.partial(decomposition.vq, temperature=0.3),
}
SOLVES = {
    "one_step": one_step,
    "last_steps": last_steps,
    "implicit": functools.partial(implicit, adjoint_steps=2),
    "unrolled": unrolled,
}
with_hams = pytest.mark.parametrize("name", HAMS)


def ham_problem(name, dtype=np.float64):
    """x [B, N, D], initial bases [B, D, R], dy [B, N, D]."""
    rng = np.random.default_rng(0)
    draw = rng.uniform if name == "nmf" else rng.normal
    arrays = rng.normal(size=(B, N, D)), draw(size=(B, D, R)), rng.normal(size=(B, N, D))
    return [tf.constant(each.astype(dtype)) for each in arrays]


def value_and_gradients(x, bases, dy, **kwargs):
    name = kwargs.pop("name")
    with tf.GradientTape() as tape:
        tape.watch([x, bases])
        y = HAMS[name](x, bases, **kwargs).product()
    return y, *tape.gradient(y, [x, bases], dy)


def gradient(name, **kwargs):
    return value_and_gradients(*ham_problem(name), name=name, **kwargs)[1].numpy()


def distance(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@with_hams
def test_value_does_not_depend_on_the_mode(name):
    results = [
        value_and_gradients(*ham_problem(name), name=name, num_steps=K, solve=s)
        for s in SOLVES.values()
    ]
    for y, _, _ in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
    # But the gradient does, and reaches the initial bases through all steps alone.
    for i, (_, dx, dbases) in enumerate(results):
        assert (dbases is not None) == (list(SOLVES)[i] == "unrolled")
        assert all(distance(dx.numpy(), other.numpy()) > 1e-3 for _, other, _ in results[:i])


@with_hams
def test_unrolled_gradient_is_the_functions_own(name):
    x, bases, dy = ham_problem(name)
    length = np.linalg.norm(x, axis=2, keepdims=True)

    def loss(x, bases):
        if name == "vq":
            # Its last choice is made at constant length, so the gradient isn't the function's own
            # in that direction: rows keep their length here, as they do for vectors tangential to
            # them.
            x = x / np.linalg.norm(x, axis=2, keepdims=True) * length
        found = HAMS[name](tf.constant(x), tf.constant(bases), num_steps=2, solve=unrolled)
        return np.sum(dy * found.product())

    _, dx, dbases = value_and_gradients(x, bases, dy, name=name, num_steps=2, solve=unrolled)
    if name == "vq":
        direction = x / length
        dx = dx - tf.reduce_sum(dx * direction, axis=2, keepdims=True) * direction
    rows = np.ix_([0, 1], [0, 17], range(D))
    small = x.numpy()[rows]

    def of_rows(part):
        changed = x.numpy().copy()
        changed[rows] = part
        return loss(changed, bases)

    assert_close(dx.numpy()[rows], numerical_gradient(of_rows, small), 1e-6)
    assert_close(dbases, numerical_gradient(lambda bases: loss(x, bases), bases), 1e-6)


@with_hams
def test_last_steps_are_between_one_step_and_all(name):
    all_steps = gradient(name, num_steps=K, solve=unrolled)
    for count in (K, K + 1):
        same = gradient(name, num_steps=K, solve=functools.partial(last_steps, count=count))
        assert_close(same, all_steps, 1e-13)
    errors = [distance(gradient(name, num_steps=K), all_steps)]
    errors += [
        distance(
            gradient(name, num_steps=K, solve=functools.partial(last_steps, count=c)), all_steps
        )
        for c in (2, 5)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


@with_hams
def test_implicit_gradient_approaches_the_unrolled_one_at_the_fixed_point(name):
    many = 150
    all_steps = gradient(name, num_steps=many, solve=unrolled)
    errors = [distance(gradient(name, num_steps=many), all_steps)]
    for adjoint_steps in (0, 6, 60):
        solve = functools.partial(implicit, adjoint_steps=adjoint_steps)
        errors.append(distance(gradient(name, num_steps=many, solve=solve), all_steps))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] > 0.5 and errors[3] < 0.15


@pytest.mark.parametrize("solve", SOLVES)
@with_hams
def test_modes_of_execution_agree(name, solve):
    def both(*args):
        return value_and_gradients(*args, name=name, num_steps=2, solve=SOLVES[solve])[:2]

    assert_modes_agree(both, *ham_problem(name, np.float32), tolerance=1e-4)


@pytest.mark.parametrize("solve", SOLVES)
def test_gradients_inside_of_a_loop_on_the_device(solve):
    # As the training loop takes them; neither batch nor number of rows is known here.
    def dx(*args):
        return value_and_gradients(*args, name="nmf", num_steps=3, solve=SOLVES[solve])[1]

    shapes = [None, None, D], [None, D, R], [None, N, D]

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes])
    def twice(x, bases, dy):
        total = tf.zeros_like(x)
        for _ in tf.range(2):
            total += dx(x, bases, dy)
        return total

    arrays = ham_problem("nmf", np.float32)
    assert_close(twice(*arrays), 2 * dx(*arrays), 1e-4)


def backward_ops(name, solve, num_steps):
    """How many operations the gradient adds to the graph of the result: what is kept for it grows
    alike.
    """
    x, bases, dy = ham_problem(name)

    def count(function):
        graph = tf.function(function).get_concrete_function(x, bases, dy).graph
        return sum(1 for op in graph.get_operations() if op.type != "Const")

    arguments = dict(num_steps=num_steps, solve=solve)
    forward = count(lambda x, bases, dy: HAMS[name](x, bases, **arguments))
    return (
        count(lambda x, bases, dy: value_and_gradients(x, bases, dy, name=name, **arguments)[1])
        - forward
    )


@pytest.mark.parametrize(
    ("solve", "grows"),
    [("one_step", False), ("last_steps", False), ("implicit", False), ("unrolled", True)],
)
@with_hams
def test_work_of_the_gradient_grows_with_the_steps_through_which_it_passes(name, solve, grows):
    few, many = (backward_ops(name, SOLVES[solve], num_steps) for num_steps in (4, 12))
    assert few > 0
    assert (many > 2 * few) if grows else (many == few)


@pytest.mark.parametrize("solve", SOLVES)
def test_no_steps(solve):
    for name in HAMS:
        x, bases, dy = ham_problem(name)
        y, dx, _ = value_and_gradients(x, bases, dy, name=name, num_steps=0, solve=SOLVES[solve])
        np.testing.assert_array_equal(y, HAMS[name](x, bases, num_steps=0).product())
        assert np.all(np.isfinite(dx))


# What learned bases ask


@pytest.mark.parametrize(
    ("solve", "num_steps", "reaches"),
    [
        (one_step, 6, False),
        (one_step, 0, False),
        (implicit, 6, False),
        (last_steps, 6, False),
        (last_steps, 1, True),
        (functools.partial(last_steps, count=6), 6, True),
        (unrolled, 6, True),
        (unrolled, 0, True),
    ],
)
def test_which_modes_reach_the_initial_state(solve, num_steps, reaches):
    assert decomposition.reaches_initial_state(solve, num_steps) is reaches
    assert (
        tf.function(lambda: decomposition.reaches_initial_state(solve, num_steps))().numpy()
        == reaches
    )


# Errors


@pytest.mark.parametrize("count", [0, -1])
def test_count_must_be_positive(count):
    with pytest.raises(ValueError, match=f"last_steps: count must be positive, got {count}"):
        run(functools.partial(last_steps, count=count), num_steps=1, a=np.eye(SIZE), c=np.eye(SIZE))


def test_adjoint_steps_must_not_be_negative():
    with pytest.raises(ValueError, match="implicit: adjoint_steps must not be negative, got -1"):
        run(
            functools.partial(implicit, adjoint_steps=-1),
            num_steps=1,
            a=np.eye(SIZE),
            c=np.eye(SIZE),
        )
