"""The Hamburgers of the segmentation systems: those of `hamgan.context` without spectral norm and
gate, with a ReLU at the end.

HamNet has V1, V2 and V2+ with batch norm and the one-step gradient; MMSegmentation has V1 with
group norm, and differentiates through all updates (`decomposition.unrolled`). NMF takes what the
lower bread gives without its negative entries, CD and VQ take it as it is.

    |     | lower bread            | behind the hams                | output          |
    | V1  | 1x1, bias              | 1x1, norm                      | relu(x + .)     |
    | V2  | same                   | cheese: 1x1, norm, ReLU; 1x1   | relu(x + .)     |
    | V2+ | same, for several hams | same, cheese of C / f channels | relu(a x + b .) |
"""

import functools

import tensorflow as tf

from hamgan import context, stateless
from hamgan import decomposition as decompositions
from hamgan.context.bases import FixedBases
from hamgan.segmentation.layers import BatchNorm, Conv2D, fan_in_uniform, registered
from hamgan.shapes import check_map

HAMS = ("space", "channels")


@registered
class Hamburger(context.Hamburger):
    """Hamburger V1 for segmentation, [B, H, W, C] -> [B, H, W, C].

    Initial bases are drawn with columns of length 1, whatever the decomposition. Height and width
    may change from call to call; only bases with weights of a ham over channels are of one size.

    Args:
      norm: constructor of the norm behind the upper bread.
      hams: what rows of the decomposed matrices are numbered by: pixels ('space'), channels
        ('channels'), or one half of the lower bread's channels each (both: a dual ham).
      decomposition: function of `hamgan.decomposition`; `cd` with normalize=False, since bases
        have length 1.
      **kwargs: dim (channels of each section of each ham), rank, num_steps, eval_steps, sections,
        solve, bases: as in `context.Hamburger`.

    Raises:
      ValueError: other hams; in `build`, as `context.Hamburger`.
    """

    def __init__(
        self,
        *,
        norm=BatchNorm,
        hams=("space",),
        decomposition=decompositions.nmf,
        num_steps=6,
        eval_steps=7,
        **kwargs,
    ):
        super().__init__(
            norm=norm,
            decomposition=decomposition,
            num_steps=num_steps,
            eval_steps=eval_steps,
            **kwargs,
        )
        hams = tuple(hams)
        if not hams or hams != tuple(ham for ham in HAMS if ham in hams):
            raise ValueError(
                f"{type(self).__name__}: hams must be of {HAMS}, in this order, got {hams}."
            )
        self.hams = hams

    def build(self, input_shape):
        check_map(self, input_shape)
        self._dim = self.dim or input_shape[-1]
        self._rank = self.rank or max(1, self._dim // 8)
        ham_shape = (*input_shape[:-1], len(self.hams) * self.sections * self._dim)
        self.lower_bread = self._bread(ham_shape[-1], "lower_bread", input_shape, use_bias=True)
        self._build_ham(input_shape)
        self._build_upper(ham_shape, input_shape)

    def _bread(self, channels, name, input_shape, use_bias=False):
        bread = Conv2D(
            channels,
            1,
            use_bias=use_bias,
            bias_initializer=fan_in_uniform,
            name=name,
            dtype=self.dtype_policy,
        )
        bread.build(input_shape)
        return bread

    def _norm(self, shape):
        norm = self.norm_constructor(name="norm", dtype=self.dtype_policy)
        norm.build(shape)
        return norm

    def _draw(self):
        draw = super()._draw()
        return lambda shape, keys: decompositions.normalize_bases(draw(shape, keys))

    def _build_ham(self, input_shape):
        if "space" in self.hams:
            self.bases = self._part(self._dim, "bases")
        if "channels" not in self.hams:
            return
        if None not in input_shape[1:3]:
            size = input_shape[1] * input_shape[2]
        elif _has_weights(self.bases_constructor):
            raise ValueError(
                f"{type(self).__name__}: bases with weights of a ham over channels are of one "
                f"height and width, which must be known, got input shape {tuple(input_shape)}. "
                "Use RandomBases."
            )
        else:
            size = None
        self.channel_bases = self._part(size, "channel_bases")

    def initial(self, keys, size=None):
        """{ham: initial bases} of all `hams`, for maps of `size` pixels (None: of the size that the
        layer was built for).
        """
        initial = {}
        if "space" in self.hams:
            initial["space"] = self.bases(keys)
        if "channels" in self.hams:
            # A draw of its own: the two hams' bases would otherwise begin with the same numbers.
            keys = stateless.fold_each(keys, 1)
            part = self.channel_bases
            if size is None or _has_weights(part):
                initial["channels"] = part(keys)
            else:
                sections, _, rank = part.shape
                initial["channels"] = part.draw((sections, size, rank), keys)
        return initial

    def call(self, x, labels=None, training=False, keys=None, *, initial=None, return_hams=False):
        """As `context.Hamburger.call`; labels have no effect."""
        if initial is None:
            shape = tf.shape(x)
            size = shape[1] * shape[2] if None in x.shape[1:3] else x.shape[1] * x.shape[2]
            initial = functools.partial(self.initial, size=size)
        y, hams = super().call(x, labels, training, keys, initial=initial, return_hams=True)
        y = tf.nn.relu(y)
        return (y, hams) if return_hams else y

    def _next_kernel(self, training):
        return tf.convert_to_tensor(self.upper_bread.kernel)[0, 0]

    def _upper(self, x, labels, training):
        return self.norm(x, training=training)

    def get_config(self):
        config = super().get_config()
        del config["num_classes"]
        return {**config, "hams": self.hams}


def _has_weights(bases):
    """Whether initial bases, a part or its constructor, are of one size."""
    while isinstance(bases, functools.partial):
        bases = bases.func
    kind = bases if isinstance(bases, type) else type(bases)
    return issubclass(kind, FixedBases)


@registered
class HamburgerV2(Hamburger):
    """V2: a cheese between hams and upper bread, which has the norm.

    Args:
      cheese_factor: f, the hams' channels over the cheese's.
      **kwargs: as in `Hamburger`.

    Raises:
      ValueError: in `build`: the hams' channels aren't a multiple of f.
    """

    def __init__(self, *, cheese_factor=1, **kwargs):
        super().__init__(**kwargs)
        self.cheese_factor = cheese_factor

    def _build_upper(self, ham_shape, input_shape):
        if self.cheese_factor < 1 or ham_shape[-1] % self.cheese_factor:
            raise ValueError(
                f"{type(self).__name__}: cheese_factor must divide the hams' {ham_shape[-1]} "
                f"channels, got {self.cheese_factor}."
            )
        cheese_shape = (*input_shape[:-1], ham_shape[-1] // self.cheese_factor)
        self.cheese = self._bread(cheese_shape[-1], "cheese", ham_shape)
        self.norm = self._norm(cheese_shape)
        self.upper_bread = self._bread(input_shape[-1], "upper_bread", cheese_shape)

    def _next_kernel(self, training):
        return tf.convert_to_tensor(self.cheese.kernel)[0, 0]

    def _upper(self, x, labels, training):
        return self.upper_bread(tf.nn.relu(self.norm(x, training=training)))

    def get_config(self):
        return {**super().get_config(), "cheese_factor": self.cheese_factor}


@registered
class HamburgerV2Plus(HamburgerV2):
    """V2+: learned factors of shortcut (1 at the start) and hams (0), whose channels are S * dim
    each.

    The published checkpoints have one ham over space with one section, f = 1; the code's default is
    f = S, doubled for a dual ham.

    Args:
      zero_ham: start with the hams left out; else with a factor of 1.
      **kwargs: as in `HamburgerV2`.
    """

    def __init__(self, *, zero_ham=True, **kwargs):
        super().__init__(**kwargs)
        self.zero_ham = zero_ham

    def build(self, input_shape):
        super().build(input_shape)
        self.coef_shortcut = self.add_weight(
            name="coef_shortcut", shape=(1,), initializer="ones", autocast=False
        )
        start = "zeros" if self.zero_ham else "ones"
        self.coef_ham = self.add_weight(
            name="coef_ham", shape=(1,), initializer=start, autocast=False
        )

    def _upper(self, x, labels, training):
        return tf.cast(self.coef_ham, x.dtype) * super()._upper(x, labels, training)

    def _shortcut(self, x):
        return tf.cast(self.coef_shortcut, x.dtype) * x

    def get_config(self):
        return {**super().get_config(), "zero_ham": self.zero_ham}
