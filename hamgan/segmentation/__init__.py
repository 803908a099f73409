"""Segmentation: HamNet and Light-Ham, on the decompositions and context modules of the GANs."""
