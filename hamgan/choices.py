"""What flags may say, for those who must know it before TensorFlow is there."""

# What to compute on; see `hamgan.distribution`.
ACCELERATORS = ("auto", "cpu", "gpu", "tpu")

# Between two signs of life of a trial of a sweep.
HEARTBEAT_SECONDS = 60

# Where checkpoints hold the generator's weights, and their exponential moving average.
WEIGHTS = {"raw": "generator", "ema": "generator_ema"}

# Where batch norm has its moments from; see `hamgan.drawing.choice`.
BATCH_NORMS = ("moving_averages", "standing_statistics", "batch")
# And where nothing is said: training's moments belong to the weights that it had.
BATCH_NORM_OF = {"raw": "moving_averages", "ema": "standing_statistics"}

# The most pixels (width times height) of an image that is decoded, which takes some 10 bytes for
# each; see `hamgan.data.photos`.
MAX_PIXELS = 150_000_000

# Layouts of segmentation's sources: `data_prep/segmentation.py`.
SEGMENTATION_SOURCES = ("voc2012", "pascal_context", "ade20k", "folder")

# The most that a prepared file holds.
SHARD_MB, SEGMENTATION_SHARD_MB = 200, 64

# What the published code's networks may have; see `hamgan.importing`.
PUBLISHED_HAMS = ("nmf", "cd")
PUBLISHED_ATTENTIONS = ("sagan", "ylg")
