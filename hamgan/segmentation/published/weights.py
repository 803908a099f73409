"""State dicts of published weights: read, and described by their names and shapes."""

import collections
import dataclasses
import io
import re

import tensorflow as tf

from hamgan import arrays as named_arrays

# Where checkpoints keep their state dict.
_KEYS = ("net", "state_dict", "model")


# The published families, by what their names begin with.
HAMNET, MMSEGMENTATION, IMAGENET = "HamNet", "MMSegmentation", "ImageNet"


RESNET, VAN = "resnet", "van"
# What the names of their backbones begin with.
PREFIXES = {HAMNET: "backbone.", MMSEGMENTATION: "backbone.", IMAGENET: ""}


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
        arrays = named_arrays.load(path)
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


def excerpt(names):
    """The number of names and the first of them, as text."""
    names = sorted(names)
    return f"{len(names)} names: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")


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
