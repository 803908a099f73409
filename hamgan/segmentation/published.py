"""Published PyTorch weights of HamNet, Light-Ham and their ImageNet backbones: what they are of,
and where they go.

Names and shapes tell the backbone with its widths and depth, the version of the Hamburger and its
widths, classes, and NMF from the other decompositions. They don't tell output stride, rank, number
of updates, sections, groups of group norm, nor CD from VQ or their temperature; a recording of the
network (`hamnet_*.npz`, ...) tells most of these.
"""

import collections
import dataclasses
import functools
import io
import re
import zipfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from hamgan import context
from hamgan import decomposition as decompositions
from hamgan.segmentation import hamburger as hamburgers
from hamgan.segmentation import heads, layers, resnet, van
from hamgan.segmentation.segmenter import Segmenter

# Where checkpoints keep their state dict.
_KEYS = ("net", "state_dict", "model")
_MAX_LINES = 40
# PyTorch's momentum is what the batch weighs, 3e-4 in HamNet and 0.1 elsewhere.
_HAMNET_MOMENTUM = 1 - 3e-4

_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The published families, by what their names begin with.
HAMNET, MMSEGMENTATION, IMAGENET = "HamNet", "MMSegmentation", "ImageNet"
RESNET, VAN = "resnet", "van"


# Files


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict.

    Attributes:
      path: the file.
      arrays: {name: array}.
    """

    path: str
    arrays: dict

    def shape(self, name):
        """The shape of an array, a list.

        Raises:
          ValueError: there is none of this name.
        """
        if name not in self.arrays:
            raise ValueError(f"{self.path} has no {name}; it has {excerpt(self.arrays)}.")
        return list(self.arrays[name].shape)

    def first(self, pattern):
        """The first name that matches a pattern from its beginning, None without one."""
        return next((name for name in sorted(self.arrays) if re.match(pattern, name)), None)


def load_weights(path):
    """The `Weights` of an .npz file with keys `w/<name>` or of a PyTorch checkpoint.

    A PyTorch checkpoint is read with `weights_only=True`: nothing in it is executed.

    Raises:
      ValueError: the file can't be read or holds no state dict, or PyTorch isn't installed.
    """
    if not tf.io.gfile.exists(path):
        raise ValueError(f"There is no file {path}.")
    if path.endswith(".npz"):
        arrays = load_arrays(path)
        arrays = {name[2:]: value for name, value in arrays.items() if name.startswith("w/")}
        if not arrays:
            raise ValueError(f"{path} has no keys w/<name>, which weights have.")
        return Weights(path, arrays)
    state = _load_torch(path)
    for key in _KEYS:
        if isinstance(state, collections.abc.Mapping) and isinstance(
            state.get(key), collections.abc.Mapping
        ):
            state = state[key]
            break
    arrays = {}
    for name, value in state.items() if isinstance(state, collections.abc.Mapping) else ():
        if hasattr(value, "detach"):
            # Networks that were trained by DataParallel.
            arrays[name.removeprefix("module.")] = value.detach().cpu().numpy()
    if not arrays:
        raise ValueError(f"{path} holds no state dict, neither at its top nor under {_KEYS}.")
    return Weights(path, arrays)


def _load_torch(path):
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is read by PyTorch, which isn't installed: pip install hamgan[torch]. Or give "
            "an .npz file with keys w/<name>."
        ) from error
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch has an error of its own for each kind of damage.
        raise ValueError(f"{path} can't be read as a PyTorch checkpoint: {error}") from error


def load_arrays(path):
    """{name: array} of an .npz file.

    Raises:
      ValueError: it can't be read.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read())) as arrays:
            return dict(arrays)
    except (
        ValueError,
        OSError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        tf.errors.OpError,
    ) as error:
        raise ValueError(f"{path} can't be read as an .npz file: {error}") from error


def excerpt(names):
    """The number of names and the first of them, as text."""
    names = sorted(names)
    return f"{len(names)} names: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")


# What weights are of


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What names tell.

    Attributes:
      family: HAMNET, MMSEGMENTATION or IMAGENET (a backbone alone).
      backbone: RESNET or VAN.
      version: of HamNet's Hamburger: 'V1', 'V2' or 'V2+'; of MMSegmentation's head: 'light' or
        'ham'; None of a backbone alone.
      is_nmf: whether a ReLU follows the lower bread; True of MMSegmentation.
      classes: number of classes; None of a backbone alone.
      has_auxiliary: whether there is an auxiliary head.
      online_bases: shape of running bases, None without.
    """

    family: str
    backbone: str
    version: str | None = None
    is_nmf: bool = True
    classes: int | None = None
    has_auxiliary: bool = False
    online_bases: tuple | None = None


def describe(weights):
    """The `Description` of weights.

    Raises:
      ValueError: they are of none of the published systems.
    """
    names = weights.arrays
    if "backbone.0.0.weight" in names:
        return _describe_hamnet(weights)
    if "decode_head.squeeze.conv.weight" in names:
        is_van = "backbone.patch_embed1.proj.weight" in names
        is_light = "decode_head.hamburger.ham_in.conv.weight" in names
        return Description(
            family=MMSEGMENTATION,
            backbone=VAN if is_van else RESNET,
            version="light" if is_light else "ham",
            classes=weights.shape("decode_head.conv_seg.weight")[0],
            has_auxiliary="auxiliary_head.conv_seg.weight" in names,
        )
    for first, backbone in (("patch_embed1.proj.weight", VAN), ("layer1.0.conv1.weight", RESNET)):
        if first in names:
            return Description(family=IMAGENET, backbone=backbone)
    raise ValueError(
        f"{weights.path} isn't of HamNet (backbone.0.0.weight), MMSegmentation's ham heads "
        "(decode_head.squeeze.conv.weight), nor an ImageNet backbone (layer1.0.conv1.weight, "
        f"patch_embed1.proj.weight). It has {excerpt(names)}."
    )


def _describe_hamnet(weights):
    names = weights.arrays
    if "hamburger.coef_ham" in names:
        version = "V2+"
    else:
        version = "V2" if "hamburger.cheese.conv.weight" in names else "V1"
    bases = names.get("hamburger.ham.bases")
    return Description(
        family=HAMNET,
        backbone=RESNET,
        version=version,
        is_nmf="hamburger.lower_bread.0.weight" in names,
        classes=weights.shape("fc.1.weight")[0],
        online_bases=None if bases is None else tuple(bases.shape),
    )


# The network of weights


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
    first = _PREFIXES[described.family] if described.family != IMAGENET else ""
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
    first = _PREFIXES[described.family]
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


# Names


_PREFIXES = {HAMNET: "backbone.", MMSEGMENTATION: "backbone.", IMAGENET: ""}
_STEM_CONVS, _STEM_NORMS = {"1": "0", "2": "3", "3": "6"}, {"1": "1", "2": "4", "3": "7"}


def published_name(name, described, *, has_stem_names=None):
    """The published name of one of our variables.

    Args:
      name: of the variable in its `Segmenter` or, of a backbone alone, 'backbone/...'.
      described: the `Description`.
      has_stem_names: of an ImageNet ResNet: whether its stem is called 'stem' (MMSegmentation's
        files) or 'conv1' (PyTorch-Encoding's).

    Raises:
      ValueError: a name that none of our networks has.
    """
    layer, _, weight = name.rpartition("/")
    room, _, inner = layer.partition("/")
    if room == "backbone":
        if described.backbone == VAN:
            first, found = _PREFIXES[described.family], _van_name(inner, weight)
        else:
            first, found = "", _resnet_name(inner, described.family, has_stem_names)
    else:
        first = ""
        if described.family == HAMNET:
            found = _hamnet_head_name(inner, weight, described)
        else:
            found = _mm_head_name(room, inner, described.version)
    if found is None:
        raise ValueError(f"No published network has a variable like {name}.")
    if weight in ("scale", "coef_ham", "coef_shortcut", "bases"):
        return first + found
    return f"{first}{found}.{_WEIGHTS[weight]}"


def _resnet_name(inner, family, has_stem_names):
    first = "" if family == IMAGENET else "backbone."
    if match := re.fullmatch(r"stem/part_(\d)/(conv|norm)", inner):
        index = (_STEM_CONVS if match[2] == "conv" else _STEM_NORMS)[match[1]]
        if family == MMSEGMENTATION or has_stem_names:
            return f"{first}stem.{index}"
        if index == "7":
            return "backbone.1" if family == HAMNET else "bn1"
        return f"backbone.0.{index}" if family == HAMNET else f"conv1.{index}"
    match = re.fullmatch(r"layer_(\d)_block_(\d+)/(.+)", inner)
    if match is None:
        return None
    layer, block = int(match[1]), int(match[2]) - 1
    layer = f"backbone.{layer + 3}" if family == HAMNET else f"{first}layer{layer}"
    kinds = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1"}
    part = kinds.get(match[3]) or match[3].replace("conv_", "conv").replace("norm_", "bn")
    return f"{layer}.{block}.{part}"


_VAN_PARTS = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "attention/proj_1": "attn.proj_1",
    "attention/proj_2": "attn.proj_2",
    "attention/gate/local": "attn.spatial_gating_unit.conv0",
    "attention/gate/wide": "attn.spatial_gating_unit.conv_spatial",
    "attention/gate/mix": "attn.spatial_gating_unit.conv1",
    "attention_scale": "layer_scale_1",
    "mlp_scale": "layer_scale_2",
    "mlp/fc_1": "mlp.fc1",
    "mlp/depthwise": "mlp.dwconv.dwconv",
    "mlp/fc_2": "mlp.fc2",
}


def _van_name(inner, weight):
    match = re.fullmatch(r"stage_(\d)/(?:block_(\d+)/)?(.+)", inner)
    if match is None:
        return None
    stage, block, part = match.groups()
    if block is not None:
        return f"block{stage}.{int(block) - 1}.{van_block_name(part)}"
    kinds = {
        "embed": f"patch_embed{stage}.proj",
        "embed_norm": f"patch_embed{stage}.norm",
        "norm": f"norm{stage}",
    }
    return kinds.get(part)


def van_block_name(part):
    """The published name of a layer within a `van.Block`, e.g. 'attn.proj_1' of
    'attention/proj_1'.
    """
    return _VAN_PARTS[part]


def _hamnet_head_name(inner, weight, described):
    if inner.startswith("hamburger"):
        part = inner.removeprefix("hamburger").lstrip("/")
        found = hamburger_name(part, weight, version=described.version, is_nmf=described.is_nmf)
        return f"hamburger.{found}"
    if inner == "classifier":
        return "fc.1"
    match = re.fullmatch(r"(squeeze|align)/(conv|norm)", inner)
    return f"{match[1]}.{'bn' if match[2] == 'norm' else 'conv'}" if match else None


def hamburger_name(part, weight, *, version, is_nmf):
    """The published name of a layer (of V2+'s factors and running bases: of the variable) within
    HamNet's Hamburger, e.g. 'cheese.bn' of 'norm'.

    Args:
      part: our layer's name.
      weight: the variable's.
      version: 'V1', 'V2' or 'V2+'.
      is_nmf: whether a ReLU follows the lower bread.
    """
    if not part:
        return weight
    first = version == "V1"
    return {
        "lower_bread": "lower_bread.0" if is_nmf else "lower_bread",
        "upper_bread": "upper_bread.0" if first else "upper_bread",
        "norm": "upper_bread.1" if first else "cheese.bn",
        "cheese": "cheese.conv",
        "bases": "ham.bases",
        "channel_bases": "ham.bases",
    }[part]


def _mm_head_name(room, inner, version):
    if inner == "classifier":
        return f"{'decode' if room == 'head' else 'auxiliary'}_head.conv_seg"
    if room == "auxiliary":
        match = re.fullmatch(r"conv/(conv|norm)", inner)
        return f"auxiliary_head.convs.0.{_GN[match[1]]}" if match else None
    if inner.startswith("hamburger/"):
        first = "decode_head.hamburger" if version == "light" else "decode_head"
        kinds = {
            "lower_bread": "ham_in.conv",
            "upper_bread": "ham_out.conv",
            "norm": "ham_out.gn",
        }
        part = inner.removeprefix("hamburger/")
        return f"{first}.{kinds[part]}" if part in kinds else None
    match = re.fullmatch(r"(squeeze|align|concat)/(conv|norm)", inner)
    if match is None:
        return None
    part = "conv_cat" if match[1] == "concat" else match[1]
    return f"decode_head.{part}.{_GN[match[2]]}"


_GN = {"conv": "conv", "norm": "gn"}


def names(weights, variables):
    """{our name: published name} of the variables of a network of these weights; every published
    name is there once.
    """
    described = describe(weights)
    stem = bool(weights.first(r"stem\."))
    return {name: published_name(name, described, has_stem_names=stem) for name in variables}


# Layouts


def ours(published, value, shape):
    """A published array in our layout.

    Args:
      published: its name.
      value: the array: kernels [C_out, C_in / groups, k, k].
      shape: our variable's.

    Returns:
      Array of this shape, or the array as it would be where it doesn't fit.
    """
    value = np.asarray(value)
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if _is_depthwise(published) else (2, 3, 1, 0))
    is_row = len(shape) == 2 and shape[0] == 1 and value.ndim == 1
    return value[None] if is_row else value


def theirs(published, value):
    """The inverse of `ours`: an array of our layout as it is published."""
    value = np.asarray(value)
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if _is_depthwise(published) else (3, 2, 0, 1))
    return value[0] if value.ndim == 2 else value


def _is_depthwise(published):
    return bool(re.search(r"(?:conv0|conv_spatial|dwconv)\.weight$", published))


def state_dict(variables, described, *, has_stem_names=None):
    """{published name: array} of a network of ours, the inverse of an import.

    Args:
      variables: {name: tf.Variable} as `named_variables` gives.
      described: `Description` of what is to be written.
      has_stem_names: as in `published_name`.
    """
    found = {}
    for name, variable in variables.items():
        there = published_name(name, described, has_stem_names=has_stem_names)
        found[there] = theirs(there, variable.numpy())
    return found


# Import


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One line of an import.

    Attributes:
      ours: our variable; None: the array isn't needed.
      published: the array; None: the variable keeps its value.
      shape: the array's.
      note: what isn't plain from the names.
    """

    ours: str | None
    published: str | None
    shape: list | None = None
    note: str = ""

    def __str__(self):
        source = f"{self.published} {self.shape}" if self.published else "(nothing)"
        return f"{source} -> {self.ours or '(not needed)'}" + (
            f": {self.note}" if self.note else ""
        )


def plan(weights, variables):
    """Where each array goes and where each of our variables comes from.

    Args:
      weights: `Weights`.
      variables: {name: tf.Variable} of the network, or 'backbone/...' of a backbone alone.

    Returns:
      List of `Assignment`, one for each array, in the order of their names.

    Raises:
      ValueError: a name on either side is left over, or two differ in shape; all are listed.
    """
    described = describe(weights)
    published = names(weights, variables)
    sources = {theirs_: ours_ for ours_, theirs_ in published.items()}
    lines, assignments = [], []
    for name in sorted(weights.arrays):
        shape = weights.shape(name)
        note = _not_needed(name, described)
        if name not in sources and note is None:
            lines.append(f"  {name} {shape}: only in the file")
        if name not in sources:
            assignments.append(Assignment(ours=None, published=name, shape=shape, note=note or ""))
            continue
        variable = variables[sources[name]]
        wanted = variable.shape.as_list()
        value = ours(name, weights.arrays[name], wanted)
        if list(value.shape) != wanted:
            lines.append(
                f"  {name} {shape}: as {list(value.shape)} it doesn't fit {sources[name]}, {wanted}"
            )
        assignments.append(Assignment(ours=sources[name], published=name, shape=shape))
    lines += [
        f"  {our_name} {variables[our_name].shape.as_list()}: not in the file, where it is {name}"
        for our_name, name in published.items()
        if name not in weights.arrays
    ]
    if lines:
        more = f"\n  and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
        raise ValueError(
            f"{weights.path} doesn't fit the network that it seems to be of ({described.family}, "
            f"{described.backbone}, {described.version or 'backbone alone'}):\n"
            + "\n".join(lines[:_MAX_LINES])
            + more
        )
    return assignments


def _not_needed(name, described):
    """Why an array isn't needed, None where it is."""
    if name.endswith(".num_batches_tracked"):
        return "a count that nothing uses"
    if described.family == IMAGENET and name.split(".")[0] in ("fc", "head"):
        return "ImageNet's classifier"
    return None


def assign(weights, assignments, variables):
    """Puts arrays into variables, as `plan` has it."""
    for assignment in assignments:
        if assignment.ours and assignment.published:
            variable = variables[assignment.ours]
            value = ours(
                assignment.published,
                weights.arrays[assignment.published],
                variable.shape.as_list(),
            )
            variable.assign(tf.cast(value, variable.dtype))


def named_variables(network):
    """{name: tf.Variable} of a `Segmenter`, or of a backbone alone under 'backbone/'."""
    variables = {}
    for variable in network.variables:
        name = variable.path
        if not isinstance(network, Segmenter):
            name = f"backbone/{name.removeprefix(network.name + '/')}"
        variables[name] = variable.value
    return variables
