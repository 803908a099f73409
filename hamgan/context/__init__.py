"""Layers that mix the whole image: one call signature,
`(x, labels=None, training=False, keys=None)`.

[B, H, W, C] -> [B, H, W, C], the identity at the start of training (gate 0). `num_classes` in every
constructor is the number of classes of the normalisation inside (the generator's modules); None: no
normalisation (the discriminator's).

Hamburger, HamburgerV2, HamburgerV2Plus: Geng et al. 2021. SelfAttention: Zhang et al. 2019 (SAGAN).
SparseAttention: Daras et al. 2020 ("Your Local GAN"). What a ham starts from is a part of its own:
RandomBases, FixedBases, LearnedBases, WarmStartBases.

A module with an attribute `hams`, the names of its decompositions, takes two more arguments in its
call, `initial` and `return_hams`: see `Hamburger.call`.
"""

from hamgan.context.attention import SelfAttention, SparseAttention, sparse_masks
from hamgan.context.bases import FixedBases, LearnedBases, RandomBases, WarmStartBases
from hamgan.context.hamburger import Hamburger, HamburgerV2, HamburgerV2Plus

__all__ = [
    "FixedBases",
    "Hamburger",
    "HamburgerV2",
    "HamburgerV2Plus",
    "LearnedBases",
    "RandomBases",
    "SelfAttention",
    "SparseAttention",
    "WarmStartBases",
    "sparse_masks",
]
