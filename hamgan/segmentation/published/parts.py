"""The network that weights are of, as constructors with their settings."""

import dataclasses
import functools
import re
from collections.abc import Callable

from hamgan import context
from hamgan import decomposition as decompositions
from hamgan.segmentation import hamburger as hamburgers
from hamgan.segmentation import heads, layers, resnet, van
from hamgan.segmentation.published.weights import (
    HAMNET,
    IMAGENET,
    MMSEGMENTATION,
    PREFIXES,
    VAN,
    describe,
)
from hamgan.segmentation.segmenter import Segmenter

# PyTorch's momentum is what the batch weighs, 3e-4 in HamNet and 0.1 elsewhere.
_HAMNET_MOMENTUM = 1 - 3e-4


@dataclasses.dataclass(frozen=True)
class Part:
    """A constructor (or function) with its settings, from which networks and gin files are made.

    Attributes:
      target: class or function.
      settings: {parameter: value}, values plain, classes and functions, or `Part`s.
    """

    target: Callable
    settings: dict = dataclasses.field(default_factory=dict)

    def constructor(self):
        """`target` with its settings, and theirs, filled in."""
        filled = {
            name: value.constructor() if isinstance(value, Part) else value
            for name, value in self.settings.items()
        }
        return functools.partial(self.target, **filled) if filled else self.target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What names and shapes don't tell; None: what is published.

    Attributes:
      output_stride: of the backbone, 8, 16 or 32: 8 of HamNet and HamHead, 32 of Light-Ham.
      ham: 'cd' or 'vq' where names tell that it isn't NMF: 'cd'.
      inverse_temperature: t of the softmax of CD and VQ: 100, the code's default (published
        settings are 1, 10 and 100). NMF has 1.
      beta: ridge of CD: 0.1.
      rank: R: 512 in V2+; 16 where MMSegmentation's head has 256 channels throughout; else 64.
      sections: S: 1.
      hams: of HamNet's Hamburger, see `hamburger.Hamburger`: ('space',).
      steps, eval_steps: K in training and outside: 6 and 7.
      groups: of group norm: 32.
      drop_path: of VAN: that of the published size of these widths and depths, else 0.1.
      dropout: of the heads: 0.1.
    """

    output_stride: int | None = None
    ham: str | None = None
    inverse_temperature: float | None = None
    beta: float | None = None
    rank: int | None = None
    sections: int | None = None
    hams: tuple | None = None
    steps: int | None = None
    eval_steps: int | None = None
    groups: int | None = None
    drop_path: float | None = None
    dropout: float | None = None

    def filled(self):
        """Themselves with the published values that don't depend on the network."""
        published = dict(
            inverse_temperature=100.0,
            beta=0.1,
            sections=1,
            hams=("space",),
            steps=6,
            eval_steps=7,
            groups=32,
            dropout=0.1,
        )
        missing = {name: value for name, value in published.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


def network_part(weights, options=None):
    """The `Part` that builds the network of weights: a `Segmenter`, or a backbone alone.

    Args:
      weights: `Weights`.
      options: `Options`.

    Raises:
      ValueError: names that the network needs are missing, or sizes don't fit.
    """
    options = (options or Options()).filled()
    described = describe(weights)
    backbone = (_van_part if described.backbone == VAN else _resnet_part)(
        weights, described, options
    )
    if described.family == IMAGENET:
        return backbone
    settings = dict(num_classes=described.classes, backbone=backbone)
    if described.family == HAMNET:
        settings["head"] = _hamnet_head_part(weights, described, options)
        settings["auxiliary"] = None
    else:
        settings["head"] = _mm_head_part(weights, described, options)
        settings["auxiliary"] = (
            _auxiliary_part(weights, options) if described.has_auxiliary else None
        )
    settings["align_corners"] = described.family == HAMNET
    return Part(Segmenter, settings)


def _batch_norm(described):
    hamnet = described.family == HAMNET
    return Part(layers.BatchNorm, dict(momentum=_HAMNET_MOMENTUM if hamnet else 0.9))


def _resnet_part(weights, described, options):
    first = PREFIXES[described.family] if described.family != IMAGENET else ""
    blocks = []
    for k in range(4):
        layer = f"backbone.{k + 4}" if described.family == HAMNET else f"{first}layer{k + 1}"
        blocks.append(_count(weights, rf"{re.escape(layer)}\.(\d+)\."))
    depth = {value: key for key, value in resnet.DEPTHS.items()}.get(tuple(blocks))
    if depth is None:
        raise ValueError(
            f"{weights.path}: a ResNet must have {sorted(resnet.DEPTHS.values())} blocks, got "
            f"{tuple(blocks)}."
        )
    stem, layer_1 = _resnet_names(weights, described)
    mm = described.family == MMSEGMENTATION or any(name.startswith("stem.") for name in stem)
    return Part(
        resnet.ResNet,
        dict(
            depth=depth,
            output_stride=options.output_stride or 8,
            multi_grid=(1, 1, 1) if mm else (1, 2, 4),
            width=weights.shape(layer_1)[0],
            stem=tuple(weights.shape(name)[0] for name in stem),
            norm=_batch_norm(described),
        ),
    )


def _resnet_names(weights, described):
    """Names of the stem's kernels, and of the first block's first."""
    if described.family == HAMNET:
        stem, layer_1 = "backbone.0", "backbone.4"
    elif described.family == MMSEGMENTATION:
        stem, layer_1 = "backbone.stem", "backbone.layer1"
    else:
        stem, layer_1 = "stem" if weights.first(r"stem\.") else "conv1", "layer1"
    return [f"{stem}.{i}.weight" for i in (0, 3, 6)], f"{layer_1}.0.conv1.weight"


def _count(weights, pattern):
    """One more than the highest number that a pattern finds in names."""
    found = [int(match[1]) for name in weights.arrays if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _van_part(weights, described, options):
    first = PREFIXES[described.family]
    widths, depths, ratios = [], [], []
    for k in range(1, 5):
        widths.append(weights.shape(f"{first}patch_embed{k}.proj.weight")[0])
        depths.append(_count(weights, rf"{re.escape(first)}block{k}\.(\d+)\."))
        ratios.append(weights.shape(f"{first}block{k}.0.mlp.fc1.weight")[0] // widths[-1])
    sizes = {(each["widths"], each["depths"]): each["drop_path"] for each in van.SIZES.values()}
    drop_path = options.drop_path
    if drop_path is None:
        drop_path = sizes.get((tuple(widths), tuple(depths)), 0.1)
    default = 8 if described.version == "ham" else 32
    strides = {8: (4, 2, 1, 1), 16: (4, 2, 2, 1), 32: (4, 2, 2, 2)}
    stride = options.output_stride or default
    if stride not in strides:
        raise ValueError(f"output_stride must be one of {list(strides)}, got {stride}.")
    return Part(
        van.VAN,
        dict(
            widths=tuple(widths),
            depths=tuple(depths),
            mlp_ratios=tuple(ratios),
            strides=strides[stride],
            drop_path=drop_path,
            norm=_batch_norm(described),
        ),
    )


def decomposition_part(is_nmf, options):
    """The `Part` of the decomposition.

    Args:
      is_nmf: whether the names are those of NMF.
      options: `Options`, filled.

    Raises:
      ValueError: `options.ham` is another than the names tell.
    """
    if is_nmf:
        if options.ham not in (None, "nmf"):
            raise ValueError(
                f"The names are those of NMF (a ReLU behind the lower bread), got ham "
                f"{options.ham!r}."
            )
        return Part(decompositions.nmf)
    ham = options.ham or "cd"
    if ham not in ("cd", "vq"):
        raise ValueError(f"The names aren't those of NMF: ham must be cd or vq, got {ham!r}.")
    settings = dict(temperature=1 / options.inverse_temperature)
    if ham == "cd":
        settings |= dict(beta=options.beta, normalize=False)
    return Part(getattr(decompositions, ham), settings)


def _hamnet_head_part(weights, described, options):
    lower = "hamburger.lower_bread.0" if described.is_nmf else "hamburger.lower_bread"
    norm = _batch_norm(described)
    ham_channels = weights.shape(f"{lower}.weight")[0]
    hams, sections = tuple(options.hams), options.sections
    if described.online_bases is not None:
        sections = described.online_bases[0]
    if ham_channels % (len(hams) * sections):
        raise ValueError(
            f"{weights.path}: {len(hams)} hams of {sections} sections can't share the "
            f"{ham_channels} channels of the lower bread evenly."
        )
    settings = dict(
        norm=norm,
        hams=hams,
        dim=ham_channels // (len(hams) * sections),
        sections=sections,
        rank=_rank(described, options, 512 if described.version == "V2+" else 64),
        num_steps=options.steps,
        eval_steps=options.eval_steps,
        decomposition=decomposition_part(described.is_nmf, options),
    )
    if described.online_bases is not None:
        settings["bases"] = context.WarmStartBases
    constructor = hamburgers.Hamburger
    if described.version != "V1":
        constructor = {"V2": hamburgers.HamburgerV2, "V2+": hamburgers.HamburgerV2Plus}[
            described.version
        ]
        settings["cheese_factor"] = _quotient(
            weights, ham_channels, weights.shape("hamburger.cheese.conv.weight")[0]
        )
    return Part(
        heads.HamNetHead,
        dict(
            channels=weights.shape("squeeze.conv.weight")[0],
            align_channels=weights.shape("align.conv.weight")[0],
            dropout=options.dropout,
            norm=norm,
            hamburger=Part(constructor, settings),
        ),
    )


def _rank(described, options, default):
    if described.online_bases is not None:
        return described.online_bases[2]
    return options.rank or default


def _quotient(weights, channels, cheese):
    if channels % cheese:
        raise ValueError(
            f"{weights.path}: the hams' {channels} channels must be a multiple of the cheese's "
            f"{cheese}."
        )
    return channels // cheese


def _mm_head_part(weights, described, options):
    light = described.version == "light"
    inner = "decode_head.hamburger" if light else "decode_head"
    norm = Part(layers.GroupNorm, dict(groups=options.groups))
    dim = weights.shape(f"{inner}.ham_in.conv.weight")[0]
    channels = weights.shape("decode_head.align.conv.weight")[0]
    # Of the published sizes only those with 256 channels in the Hamburger have a rank of 16.
    rank = options.rank or (16 if dim == channels == 256 else 64)
    return Part(
        heads.LightHamHead if light else heads.HamHead,
        dict(
            channels=weights.shape("decode_head.squeeze.conv.weight")[0],
            align_channels=channels,
            concat_input="decode_head.conv_cat.conv.weight" in weights.arrays,
            dropout=options.dropout,
            norm=norm,
            hamburger=Part(
                hamburgers.Hamburger,
                dict(
                    norm=norm,
                    dim=dim,
                    rank=rank,
                    num_steps=options.steps,
                    eval_steps=options.eval_steps,
                    decomposition=decomposition_part(True, options),
                    solve=decompositions.unrolled,
                ),
            ),
        ),
    )


def _auxiliary_part(weights, options):
    return Part(
        heads.FCNHead,
        dict(
            channels=weights.shape("auxiliary_head.convs.0.conv.weight")[0],
            dropout=options.dropout,
            norm=Part(layers.GroupNorm, dict(groups=options.groups)),
        ),
    )
