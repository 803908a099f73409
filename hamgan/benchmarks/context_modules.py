"""The context modules whose cost is measured: shapes, layers, and multiply-adds by formula."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from hamgan import context, decomposition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Where a module stands.

    Attributes:
      name: what tables call it.
      batch, height, width, channels: of the module's input [B, H, W, C]; d = C.
      rank: r of the hams.
      num_classes: of the generator's batch norm inside the hams; None: none.
    """

    name: str
    batch: int = 1
    height: int
    width: int
    channels: int
    rank: int
    num_classes: int | None = None

    def __post_init__(self):
        for name in ("batch", "height", "width", "channels", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"Shape: {name} must be at least 1, got {getattr(self, name)}.")

    @property
    def pixels(self):
        return self.height * self.width

    @property
    def input(self):
        return (self.batch, self.height, self.width, self.channels)

    def __str__(self):
        return f"{'x'.join(str(size) for size in self.input)}, r={self.rank}"


SHAPES = {
    # The paper's table doesn't name its input; this one has its numbers of multiply-adds.
    "paper": Shape(name="paper", height=128, width=128, channels=512, rank=64),
    "generator": Shape(
        name="generator", batch=16, height=32, width=32, channels=256, rank=32, num_classes=1000
    ),
    "discriminator": Shape(
        name="discriminator", batch=16, height=32, width=32, channels=128, rank=16
    ),
}

# Geng et al. 2021, on a GPU: parameters, multiply-adds, bytes in inference and in training, seconds
# likewise.
PUBLISHED = {
    "self_attention": (1.00e6, 292e9, 2148e6, 5253e6, 82.2e-3, 242.0e-3),
    "double_attention": (1.01e6, 25.7e9, 165e6, 326e6, 8.0e-3, 22.9e-3),
    "v1_cd": (0.50e6, 16.2e9, 102e6, 162e6, 13.0e-3, 20.0e-3),
    "v1_nmf": (0.50e6, 17.6e9, 98e6, 202e6, 7.7e-3, 15.6e-3),
}

SOLVES = {
    "one_step": decomposition.one_step,
    "implicit": decomposition.implicit,
    "unrolled": decomposition.unrolled,
}
MODES = ("forward", "training")


# The modules that only a comparison of costs needs


class FullAttention(context.SelfAttention):
    """Self-attention as in the paper's table of costs: every pixel attends to every pixel, without
    SAGAN's pooling.
    """

    def call(self, x, labels=None, training=False, keys=None):
        """Args: x [B, H, W, C]; labels and keys have no effect."""
        del labels, keys
        batch, height, width = tf.shape(x)[0], *x.shape[1:3]

        def as_rows(y):
            return tf.reshape(y, [batch, height * width, y.shape[-1]])  # [B, N, c]

        queries, keys, values = (
            as_rows(conv(x, training=training)) for conv in (self.theta, self.phi, self.g)
        )
        y = self._attend(queries, keys, values)
        y = tf.reshape(y, [batch, height, width, y.shape[-1]])
        return x + tf.cast(self.gate, x.dtype) * self.attn(y, training=training)


class DoubleAttention(FullAttention):
    """A2-Net's double attention (Chen et al. 2018): values are gathered into `dim` features, then
    distributed again.

    The softmax is over pixels where features are gathered, over features where they are
    distributed. Arguments as in `SelfAttention`.
    """

    def _attend(self, queries, keys, values):
        gathered = tf.matmul(
            tf.nn.softmax(keys, axis=1), values, transpose_a=True
        )  # [B, N, c] [B, N, v] -> [B, c, v]
        return tf.matmul(tf.nn.softmax(queries, axis=-1), gathered)  # [B, N, v]


# What the modules are, and how many multiply-adds they should have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A row of the table.

    Attributes:
      title: for people.
      layer: constructor, called with a `Case`.
      macs: function of a `Case`, multiply-adds of a forward pass by formula.
    """

    title: str
    layer: Callable
    macs: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A module at a shape; K and the gradient of its decomposition, where it has one."""

    module: str
    shape: Shape
    num_steps: int = 6
    solve: str = "one_step"

    def as_json(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain):
        return cls(**{**plain, "shape": Shape(**plain["shape"])})


def _spectral_norm_macs(inputs, outputs):
    # W^T u and W v.
    return 2 * inputs * outputs


def _conv_macs(shape, inputs, outputs):
    return shape.batch * shape.pixels * inputs * outputs + _spectral_norm_macs(inputs, outputs)


def _nmf_macs(n, d, r, steps):
    coef = n * d * r + d * r * r + n * r * r
    bases = n * d * r + n * r * r + d * r * r
    return n * d * r + steps * (coef + bases) + coef


def _cd_macs(n, d, r, steps):
    return steps * (n * d + 2 * n * d * r) + d * r * r + n * d * r


def _vq_macs(n, d, r, steps):
    return steps * (n * d + 2 * n * d * r) + n * d + n * d * r


def _low_rank_macs(shape, size, dim, outputs):
    # The factors, [size, R] and [dim, R], and the next kernel, [dim, outputs]: the two smaller ones
    # first.
    return shape.batch * shape.rank * outputs * (dim + size) + _spectral_norm_macs(dim, outputs)


def _v1_macs(case, ham):
    shape, c = case.shape, case.shape.channels
    decomposed = shape.batch * ham(shape.pixels, c, shape.rank, case.num_steps)
    return _conv_macs(shape, c, c) + decomposed + _low_rank_macs(shape, shape.pixels, c, c)


def _v2_macs(case, ham):
    return _v1_macs(case, ham) + _conv_macs(case.shape, case.shape.channels, case.shape.channels)


def _v2plus_macs(case, ham):
    shape, c = case.shape, case.shape.channels
    dual = [(shape.pixels, c // 2), (c // 2, shape.pixels)]
    hams = shape.batch * sum(ham(n, d, shape.rank, case.num_steps) for n, d in dual)
    return 2 * _conv_macs(shape, c, c) + hams + 2 * _low_rank_macs(shape, shape.pixels, c // 2, c)


def _attention_macs(case, *, dim, value_dim, keys):
    shape, c, n = case.shape, case.shape.channels, case.shape.pixels
    breads = sum(
        _conv_macs(shape, *sizes) for sizes in ((c, dim), (c, dim), (c, value_dim), (value_dim, c))
    )
    return breads + shape.batch * n * keys * (dim + value_dim)


def _ham(title, kind, function, macs, ham_macs):
    def layer(case):
        return kind(
            num_classes=case.shape.num_classes,
            rank=case.shape.rank,
            num_steps=case.num_steps,
            decomposition=function,
            solve=SOLVES[case.solve],
        )

    return Module(title=title, layer=layer, macs=lambda case: macs(case, ham_macs))


def _attention(title, kind, *, full, keys):
    """`full`: dim and value_dim are C; else the published C / 8 and C / 2. keys: function of the
    number of pixels.
    """

    def sizes(case):
        c = case.shape.channels
        return dict(dim=c, value_dim=c) if full else dict(dim=c // 8, value_dim=c // 2)

    return Module(
        title=title,
        layer=lambda case: kind(**(sizes(case) if full else {})),
        macs=lambda case: _attention_macs(case, **sizes(case), keys=keys(case)),
    )


MODULES = {
    "self_attention": _attention(
        "Self-attention, n x n", FullAttention, full=True, keys=lambda case: case.shape.pixels
    ),
    "sagan": _attention(
        "Self-attention, SAGAN",
        context.SelfAttention,
        full=False,
        keys=lambda case: case.shape.pixels // 4,
    ),
    "ylg": _attention(
        "Sparse attention, YLG",
        context.SparseAttention,
        full=False,
        keys=lambda case: case.shape.pixels // 4,
    ),
    "double_attention": _attention(
        "Double attention, A2", DoubleAttention, full=True, keys=lambda case: case.shape.channels
    ),
}
for _version, _kind, _macs in (
    ("V1", context.Hamburger, _v1_macs),
    ("V2", context.HamburgerV2, _v2_macs),
    ("V2+", context.HamburgerV2Plus, _v2plus_macs),
):
    for _name, _ham_macs in (("nmf", _nmf_macs), ("cd", _cd_macs), ("vq", _vq_macs)):
        MODULES[f"{_version.lower().replace('+', 'plus')}_{_name}"] = _ham(
            f"Hamburger {_version}, {_name.upper()}",
            _kind,
            getattr(decomposition, _name),
            _macs,
            _ham_macs,
        )


def check_modules(names):
    """Raises: ValueError: a name isn't one of MODULES."""
    for name in names:
        if name not in MODULES:
            raise ValueError(f"modules must be some of {', '.join(MODULES)}; got {name!r}.")
