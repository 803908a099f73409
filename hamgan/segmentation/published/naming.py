"""What our variables are called in published weights, and how arrays lie there."""

import re

import numpy as np

from hamgan.segmentation.published.weights import (
    HAMNET,
    IMAGENET,
    MMSEGMENTATION,
    PREFIXES,
    VAN,
    describe,
)

_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


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
            first, found = PREFIXES[described.family], _van_name(inner, weight)
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
