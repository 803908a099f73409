"""A generator as a TensorFlow SavedModel that needs none of this code.

    model = tf.saved_model.load("exported/saved_model")
    model.signatures["seed"](seed=tf.constant([7]), label=tf.constant([3]), psi=tf.constant(1.0),
                             truncation=tf.constant(float("inf")))["images"]

Four signatures take a seed or noise, and a label or a class's name:

    seed, seed_name, z, z_name

each with any batch, `psi` and (of seeds) `truncation`, and give `images` uint8 [B, S, S, 3] and
`pixels` float32 in [-1, 1]. What `sampling.Sampler` refuses is an `InvalidArgumentError`.
"""

import tensorflow as tf

from hamgan import normalization, stateless
from hamgan.layers import layers_of

# The number of the sample whose initial bases images from noise have.
KEY_OF_NOISE = 0


def bake_moments(generator, batch_norm, seed):
    """Puts what batch norm has its moments from into the generator's moving averages.

    Args:
      generator: a `Generator`.
      batch_norm: `sampling.MovingAverages` or `StandingStatistics` of a sampler of it.
      seed: of the samples.
    """
    layers = layers_of(generator, normalization.BatchNorm)
    with batch_norm.applied(tf.constant(seed)):
        moments = [[m.numpy() for m in layer.inference_moments(None)] for layer in layers]
    for layer, (mean, variance) in zip(layers, moments, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)


class ExportedGenerator(tf.Module):
    """A generator's functions and variables, without its layers.

    Args:
      generator: a `hamgan.networks.Generator`, its batch-norm moments baked in.
      class_names: the names of the classes, by label.
      seed: as in `sampling.Sampler`: image s is its sample s.
      about: what the file says of itself, a text.
    """

    def __init__(self, generator, *, class_names, seed=0, about=""):
        super().__init__()
        # Not the layers: whoever loads the file needn't know their classes.
        self.held = [variable.value for variable in generator.variables]
        self.about = tf.Variable(about, trainable=False)
        self.class_names = tf.Variable(class_names, trainable=False)
        self.labels_of_names = tf.lookup.StaticHashTable(
            # Of classes that share a name the first one counts.
            tf.lookup.KeyValueTensorInitializer(
                list(dict.fromkeys(class_names)),
                [class_names.index(name) for name in dict.fromkeys(class_names)],
                tf.string,
                tf.int64,
            ),
            default_value=-1,
        )
        self._seed = seed
        object.__setattr__(self, "_call", _inference_of(generator))
        self._latent_dim = generator.latent_dim
        self._num_classes = generator.num_classes

    def _images(self, z, label, keys):
        label = _checked(
            tf.cast(label, tf.int32),
            lambda label: (label >= 0) & (label < self._num_classes),
            f"label must be in 0 to {self._num_classes - 1}, or name a class",
        )
        pixels = self._call(z, label, keys)
        images = tf.cast(tf.clip_by_value(tf.round((pixels + 1) * 127.5), 0, 255), tf.uint8)
        return {"images": images, "pixels": pixels}

    def _of_seed(self, seed, label, psi, truncation):
        parent = stateless.key(self._seed, stateless.EVALUATION)
        seed = _checked(
            seed, lambda seed: (seed >= 0) & (seed < 2**31), "seed must be in 0 to 2147483647"
        )
        seed = tf.cast(_as_many(seed, label, "seed"), tf.int32)
        truncation = _checked(
            truncation, lambda bound: bound > 0, "truncation must be positive (inf: of all noise)"
        )
        z, _, keys = stateless.generator_inputs(
            parent, seed, latent_dim=self._latent_dim, num_classes=self._num_classes
        )
        noise = stateless.example_keys(stateless.fold(parent, stateless.NOISE), seed)
        within = stateless.truncated_normal([self._latent_dim], noise, truncation)
        z = tf.where(tf.math.is_inf(truncation), z, within)
        return self._images(_checked_psi(psi) * z, label, keys)

    def _of_noise(self, z, label, psi):
        z = _checked(z, tf.math.is_finite, "z must be finite")
        z = _as_many(z, label, "z")
        keys = keys_of_noise(self._seed, tf.shape(z)[0])
        return self._images(_checked_psi(psi) * z, label, keys)

    def signatures(self):
        """{name: concrete function} for `tf.saved_model.save`."""
        seed = tf.TensorSpec([None], tf.int64, "seed")
        z = tf.TensorSpec([None, self._latent_dim], tf.float32, "z")
        label = tf.TensorSpec([None], tf.int64, "label")
        name = tf.TensorSpec([None], tf.string, "name")
        psi = tf.TensorSpec([], tf.float32, "psi")
        truncation = tf.TensorSpec([], tf.float32, "truncation")

        @tf.function(input_signature=[seed, label, psi, truncation])
        def of_seed(seed, label, psi, truncation):
            return self._of_seed(seed, label, psi, truncation)

        @tf.function(input_signature=[seed, name, psi, truncation])
        def of_seed_name(seed, name, psi, truncation):
            return self._of_seed(seed, self.labels_of_names.lookup(name), psi, truncation)

        @tf.function(input_signature=[z, label, psi])
        def of_z(z, label, psi):
            return self._of_noise(z, label, psi)

        @tf.function(input_signature=[z, name, psi])
        def of_z_name(z, name, psi):
            return self._of_noise(z, self.labels_of_names.lookup(name), psi)

        functions = {"seed": of_seed, "seed_name": of_seed_name, "z": of_z, "z_name": of_z_name}
        return {name: function.get_concrete_function() for name, function in functions.items()}


def _checked(value, holds, rule):
    """A tensor; the error says the rule and the values that don't hold."""
    fine = holds(value)
    bad = tf.boolean_mask(tf.reshape(value, [-1]), ~tf.reshape(fine, [-1]))
    check = tf.debugging.Assert(tf.reduce_all(fine), [f"{rule}, got", bad])
    with tf.control_dependencies([check]):
        return tf.identity(value)


def _checked_psi(psi):
    return _checked(
        psi, lambda psi: tf.math.is_finite(psi) & (psi >= 0), "psi must be finite and at least 0"
    )


def _as_many(value, label, name):
    """A tensor [B, ...] with as many rows as labels: one of either isn't repeated."""
    counts = [tf.shape(value)[0], tf.shape(label)[0]]
    check = tf.debugging.Assert(
        tf.equal(*counts),
        [f"{name} and label (or name) must have the same number of rows, got", counts],
    )
    with tf.control_dependencies([check]):
        return tf.identity(value)


def _inference_of(generator):
    def call(z, label, keys):
        return generator(z, label, training=False, keys=keys)

    return call


def keys_of_noise(seed, count):
    """The keys [count, 2] of images from noise: always the same."""
    parent = stateless.fold(stateless.key(seed, stateless.EVALUATION), stateless.GENERATOR_BASES)
    return stateless.example_keys(parent, tf.fill([count], KEY_OF_NOISE))


def save(path, generator, *, class_names, seed=0, about=""):
    """Writes the SavedModel; arguments as of `ExportedGenerator`."""
    exported = ExportedGenerator(generator, class_names=class_names, seed=seed, about=about)
    signatures = exported.signatures()
    tf.saved_model.save(
        exported,
        path,
        signatures={**signatures, "serving_default": signatures["seed"]},
    )
