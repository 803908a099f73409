"""What flags may say, for those who must know it before TensorFlow is there."""

# What to compute on; see `hamgan.distribution`.
ACCELERATORS = ("auto", "cpu", "gpu", "tpu")

# Where checkpoints hold the generator's weights, and their exponential moving average.
WEIGHTS = {"raw": "generator", "ema": "generator_ema"}
