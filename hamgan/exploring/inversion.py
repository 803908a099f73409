"""Which noise and class embedding give a real image back (inversion).

Gradient descent by Adam within Lookahead (Zhang et al. 2019), from several starts, on pixels and
the discriminator's features.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tqdm

# Lookahead's constants as published: every 5 steps the slow weights go half of the way.
_SYNC_EVERY = 5
_SLOW_STEP = 0.5


class Found(NamedTuple):
    """What an inversion found for N images.

    Attributes:
      z: [N, latent_dim] of the best start.
      shares: [N, num_classes], the mixture of the classes' embeddings.
      images: [N, S, S, 3] in [-1, 1], what they give.
      strip: [N, stages, S, S, 3], the best start's image at `steps`.
      steps: [stages], of the strip.
      pixel_error: [N], root of the mean squared difference of pixels, in [-1, 1].
      feature_error: [N], |f(x) - f(image)| / |f(image)|; NaN without a discriminator.
      losses: [N, starts], of the ends of all starts.
    """

    z: np.ndarray
    shares: np.ndarray
    images: np.ndarray
    strip: np.ndarray
    steps: np.ndarray
    pixel_error: np.ndarray
    feature_error: np.ndarray
    losses: np.ndarray


def invert(
    generator,
    images,
    *,
    keys,
    labels=None,
    discriminator=None,
    feature_weight=1.0,
    starts=4,
    steps=300,
    learning_rate=0.05,
    stages=8,
    seed=0,
    progress=True,
):
    """Looks for noise and class embedding of images.

    Args:
      generator: a `Generator`, in inference.
      images: [N, S, S, 3] in [-1, 1].
      keys: [N, 2] of the initial bases, which stay as they are.
      labels: [N], the classes to begin with; None: the mean of all classes.
      discriminator: whose features, before its context module or at its end, are compared too;
        None: pixels alone.
      feature_weight: of the features' loss, beside 1 for pixels.
      starts: from as many draws of noise, the best of which counts.
      steps: of Adam.
      learning_rate: of Adam.
      stages: images of the strip.
      seed: of the noise that it begins with.
      progress: draw a bar.

    Raises:
      ValueError: images of another size, or a number is out of range.
    """
    size = generator.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be [N, {size}, {size}, 3], as the generator's are, got "
            f"{list(images.shape)}."
        )
    for name, value in dict(starts=starts, steps=steps, stages=stages).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    search = _Search(
        generator,
        np.repeat(images, starts, axis=0),
        keys=np.repeat(keys, starts, axis=0),
        labels=None if labels is None else np.repeat(labels, starts),
        discriminator=discriminator,
        feature_weight=feature_weight,
        learning_rate=learning_rate,
        seed=seed,
    )
    shown = np.unique(np.linspace(0, steps, stages).round().astype(int))
    strip = []
    for step in tqdm.trange(steps + 1, desc="inversion", disable=not progress, leave=False):
        if step in shown:
            strip.append(search.images().numpy())
        if step < steps:
            search.step()
            if (step + 1) % _SYNC_EVERY == 0 or step + 1 == steps:
                search.synchronise()
    return search.found(np.stack(strip, axis=1), shown, starts)


class _Search:
    """The state of an inversion: variables, their slow copies, Adam; rows are image x start."""

    def __init__(
        self,
        generator,
        images,
        *,
        keys,
        labels,
        discriminator,
        feature_weight,
        learning_rate,
        seed,
    ):
        count, classes = len(images), generator.num_classes
        rng = np.random.default_rng(seed)
        z = rng.normal(size=[count, generator.latent_dim]).astype(np.float32)
        shares = np.full([count, classes], 1 / classes, np.float32)
        if labels is not None:
            shares = np.eye(classes, dtype=np.float32)[labels]
        self._generator = generator
        self._discriminator = discriminator
        self._feature_weight = feature_weight if discriminator is not None else 0.0
        self._targets = tf.constant(images)
        self._keys = tf.constant(keys)
        self._fast = [keras.Variable(z), keras.Variable(shares)]
        self._slow = [tf.Variable(z), tf.Variable(shares)]
        self._adam = keras.optimizers.Adam(learning_rate)
        self._adam.build(self._fast)
        self._target_features = self._features(self._targets)

    def _features(self, images):
        """[B, ...] of the discriminator, or None."""
        if self._discriminator is None:
            return None
        labels = tf.zeros([len(self._keys)], tf.int32)  # features don't know the class
        logits, seen = self._discriminator(images, labels, keys=self._keys, return_context=True)
        return tf.cast(logits if seen is None else seen.before, tf.float32)

    @tf.function(autograph=False)
    def images(self):
        """What the variables give now."""
        z, shares = (tf.convert_to_tensor(variable) for variable in self._fast)
        # One class has no shares: its labels are zeros.
        return self._generator(
            z, shares if shares.shape[1] > 1 else shares[:, 0] * 0, keys=self._keys
        )

    def _losses(self, images):
        """(pixels' [B], features' [B]): mean squares, the features' beside those of the target."""
        axes = [1, 2, 3]
        pixels = tf.reduce_mean(tf.square(images - self._targets), axis=axes)
        if self._discriminator is None:
            return pixels, tf.fill(tf.shape(pixels), float("nan"))
        wanted = self._target_features
        axes = list(range(1, wanted.shape.rank))
        squares = tf.reduce_sum(tf.square(self._features(images) - wanted), axis=axes)
        return pixels, squares / (tf.reduce_sum(tf.square(wanted), axis=axes) + 1e-12)

    @tf.function(autograph=False)
    def step(self):
        """One step of Adam."""
        with tf.GradientTape() as tape:
            pixels, features = self._losses(self.images())
            total = pixels
            if self._discriminator is not None:
                total += self._feature_weight * features
            total = tf.reduce_sum(total)  # each row its own problem
        self._adam.apply(tape.gradient(total, [v.value for v in self._fast]), self._fast)

    def synchronise(self):
        """Lookahead: the slow weights go towards the fast ones, which begin there anew."""
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.assign_add(_SLOW_STEP * (fast.value - slow))
            fast.assign(slow)

    def found(self, strip, steps, starts):
        """`Found`, of each image's best start."""
        pixels, features = (loss.numpy() for loss in self._losses(self.images()))
        losses = pixels + self._feature_weight * np.nan_to_num(features)
        losses = losses.reshape(-1, starts)
        best = np.arange(len(losses)) * starts + losses.argmin(axis=1)
        z, shares = (variable.numpy()[best] for variable in self._fast)
        return Found(
            z=z,
            shares=shares,
            images=strip[best, -1],
            strip=strip[best],
            steps=steps,
            pixel_error=np.sqrt(pixels[best]),
            feature_error=np.sqrt(features[best]),
            losses=losses,
        )
