"""Published PyTorch weights of HamNet, Light-Ham and their ImageNet backbones: what they are of,
and where they go.

Names and shapes tell the backbone with its widths and depth, the version of the Hamburger and its
widths, classes, and NMF from the other decompositions. They don't tell output stride, rank, number
of updates, sections, groups of group norm, nor CD from VQ or their temperature; a recording of the
network (`hamnet_*.npz`, ...) tells most of these.
"""

from hamgan.segmentation.published.assignment import Assignment, assign, named_variables, plan
from hamgan.segmentation.published.naming import (
    hamburger_name,
    names,
    ours,
    published_name,
    state_dict,
    theirs,
    van_block_name,
)
from hamgan.segmentation.published.parts import Options, Part, decomposition_part, network_part
from hamgan.segmentation.published.weights import (
    HAMNET,
    IMAGENET,
    MMSEGMENTATION,
    RESNET,
    VAN,
    Description,
    Weights,
    describe,
    excerpt,
    load_weights,
)

__all__ = [
    "HAMNET",
    "IMAGENET",
    "MMSEGMENTATION",
    "RESNET",
    "VAN",
    "Assignment",
    "Description",
    "Options",
    "Part",
    "Weights",
    "assign",
    "decomposition_part",
    "describe",
    "excerpt",
    "hamburger_name",
    "load_weights",
    "named_variables",
    "names",
    "network_part",
    "ours",
    "plan",
    "published_name",
    "state_dict",
    "theirs",
    "van_block_name",
]
