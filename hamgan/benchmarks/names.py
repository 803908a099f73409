"""What can be measured, by name, for those who must know it before TensorFlow is there."""

# Context modules: `context_modules.MODULES`.
MODULES = (
    *("self_attention", "sagan", "ylg", "double_attention", "v1_nmf", "v1_cd", "v1_vq"),
    *("v2_nmf", "v2_cd", "v2_vq", "v2plus_nmf", "v2plus_cd", "v2plus_vq"),
)
# What a context module's cost grows with.
SWEEPS = ("scaling", "steps")
# Sizes of whole steps, and their networks by context module: `step.SIZES`, `step.MODULES` and
# `step.PUBLISHED`.
STEP_SIZES = ("full", "digits")
STEP_NETWORKS = (
    *("none", "hamburger", "hamburger_v2", "hamburger_v2plus", "self_attention"),
    "published",
)
