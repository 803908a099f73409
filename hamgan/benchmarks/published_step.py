"""The published training step, operation by operation as its graph composes it: what `step`'s
times are compared with.

Nothing here shares code with the project's networks: convolutions stand in their plain form, after
upsampling and before pooling; every call divides its kernels by their spectral norm; batch norm is
moments and a normalisation; each variable has an Adam update of its own; the update of the
discriminator and that of the generator are two programs. Values are those of the published
checkpoint (`tests/test_published.py`). 128x128, NMF in both networks, hinge loss.
"""

import tensorflow as tf

_UP = (16, 8, 4, 2, 1)  # channels of the generator's blocks, in widths
_DOWN = (2, 4, 8, 16)  # of the discriminator's, after the first
_ROUNDS = 6  # K
_EPSILON = 1e-6


class Network:
    """Variables by name, as in the project's networks, made when they are first asked for.

    Args:
      width: channels of the first (discriminator) or last (generator) block.
      num_classes: classes.

    Attributes:
      variables: {"block_1/conv_1/kernel": variable, ...}.
    """

    def __init__(self, *, width, num_classes):
        self.width, self.num_classes = width, num_classes
        self.variables = {}

    @property
    def trainable_variables(self):
        return [variable for variable in self.variables.values() if variable.trainable]

    def _variable(self, name, initial, trainable=True):
        if name not in self.variables:
            self.variables[name] = tf.Variable(initial(), trainable=trainable)
        return self.variables[name]

    def _zeros(self, name, shape):
        return self._variable(name, lambda: tf.zeros(shape))

    def _normalised_kernel(self, name, shape, *, update, least=1.0, transpose=False):
        """The kernel over its spectral norm, or over `least` if that is more."""
        draw = tf.initializers.VarianceScaling(1.0, "fan_avg", "uniform")
        kernel = self._variable(f"{name}/kernel", lambda: draw(shape))
        matrix = tf.reshape(kernel, [-1, shape[-1]])
        matrix = tf.transpose(matrix) if transpose else matrix
        rows = int(matrix.shape[0])
        stored = self._variable(f"{name}/u", lambda: tf.random.normal([rows, 1]), trainable=False)
        v = tf.math.l2_normalize(tf.matmul(matrix, stored, transpose_a=True))
        u = tf.math.l2_normalize(tf.matmul(matrix, v))
        u, v = tf.stop_gradient(u), tf.stop_gradient(v)
        sigma = tf.matmul(tf.matmul(u, matrix, transpose_a=True), v)
        if update:
            stored.assign(u)
        matrix /= tf.maximum(sigma, least)
        return tf.reshape(tf.transpose(matrix) if transpose else matrix, shape)

    def _convolution(self, name, x, channels, *, update, size=3):
        shape = [size, size, x.shape[-1], channels]
        kernel = self._normalised_kernel(name, shape, update=update)
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.nn.bias_add(y, self._zeros(f"{name}/bias", [channels]))

    def _linear(self, name, x, outputs, *, update):
        kernel = self._normalised_kernel(name, [x.shape[-1], outputs], update=update)
        return tf.nn.bias_add(tf.matmul(x, kernel), self._zeros(f"{name}/bias", [outputs]))

    def _bread(self, name, x, channels, *, update):
        shape = [1, 1, x.shape[-1], channels]
        kernel = self._normalised_kernel(name, shape, update=update, least=0.0)
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def _ham(self, x, bases, *, d, update):
        """Lower bread, NMF, upper bread: [B, H, W, C] -> [B, H, W, C]."""
        y = tf.nn.relu(self._bread("context/lower_bread", x, d, update=update))
        _, height, width, channels = x.shape
        space = tf.reshape(y, [-1, height * width, d])  # [B, N, D]
        if bases is None:
            bases = tf.random.uniform([tf.shape(x)[0], d, d // 8])
        coefficients = tf.nn.softmax(tf.matmul(space, bases))
        for _ in range(_ROUNDS):
            coefficients = _coefficients(space, bases, coefficients)
            numerator = tf.matmul(space, coefficients, transpose_a=True)
            gram = tf.matmul(coefficients, coefficients, transpose_a=True)
            bases *= numerator / (tf.matmul(bases, gram) + _EPSILON)
        bases, coefficients = tf.stop_gradient(bases), tf.stop_gradient(coefficients)
        coefficients = _coefficients(space, bases, coefficients)
        y = tf.matmul(coefficients, bases, transpose_b=True)
        y = tf.reshape(y, [-1, height, width, d])
        return self._bread("context/upper_bread", y, channels, update=update)

    def _gated(self, x, y):
        return x + self._zeros("context/gate", []) * y


def _coefficients(space, bases, coefficients):
    numerator = tf.matmul(space, bases)
    gram = tf.matmul(bases, bases, transpose_a=True)
    return coefficients * numerator / (tf.matmul(coefficients, gram) + _EPSILON)


class Generator(Network):
    """`generator(z [B, 128], labels [B], training=...)` -> images [B, 128, 128, 3]; `bases` [B, d,
    r] instead of drawn ones.
    """

    def __call__(self, z, labels, *, training, bases=None):
        x = self._linear("dense", z, 16 * 16 * self.width, update=training)
        x = tf.reshape(x, [-1, 4, 4, 16 * self.width])
        for index, widths in enumerate(_UP, 1):
            x = self._block(f"block_{index}", x, widths * self.width, labels, training)
            if index == 3:
                y = self._ham(x, bases, d=4 * self.width, update=training)
                x = self._gated(x, self._norm("context/norm", y, labels, training))
        x = tf.nn.relu(self._norm("norm", x, None, training))
        return tf.tanh(self._convolution("to_rgb", x, 3, update=training))

    def _block(self, name, x, channels, labels, training):
        y = tf.nn.relu(self._norm(f"{name}/norm_1", x, labels, training))
        y = self._convolution(f"{name}/conv_1", _doubled(y), channels, update=training)
        y = tf.nn.relu(self._norm(f"{name}/norm_2", y, labels, training))
        y = self._convolution(f"{name}/conv_2", y, channels, update=training)
        shortcut = f"{name}/shortcut"
        return y + self._convolution(shortcut, _doubled(x), channels, update=training, size=1)

    def _norm(self, name, x, labels, training):
        shape = [x.shape[-1]] if labels is None else [self.num_classes, x.shape[-1]]
        gamma = self._variable(f"{name}/gamma", lambda: tf.ones(shape))
        beta = self._zeros(f"{name}/beta", shape)
        if labels is not None:
            gamma, beta = (
                tf.gather(value, labels)[:, tf.newaxis, tf.newaxis] for value in (gamma, beta)
            )
        averages = [
            self._variable(f"{name}/{kind}", lambda make=make: make([x.shape[-1]]), trainable=False)
            for kind, make in (("moving_mean", tf.zeros), ("moving_variance", tf.ones))
        ]
        moments = averages
        if training:
            moments = tf.nn.moments(x, [0, 1, 2])
            for average, moment in zip(averages, moments, strict=True):
                average.assign_sub((average - moment) * 0.001)
        return tf.nn.batch_normalization(x, *moments, beta, gamma, 1e-3)


class Discriminator(Network):
    """`discriminator(images [B, 128, 128, 3], labels [B])` -> logits [B, 1]; `bases` as above. u
    moves in every call.
    """

    def __call__(self, images, labels, *, bases=None):
        x = self._convolution("block_1/conv_1", images, self.width, update=True)
        x = self._convolution("block_1/conv_2", tf.nn.relu(x), self.width, update=True)
        y = self._convolution("block_1/shortcut", _halved(images), self.width, update=True, size=1)
        x = _halved(x) + y
        for index, widths in enumerate(_DOWN, 2):
            name, channels = f"block_{index}", widths * self.width
            y = self._residual(name, x, channels)
            x = self._convolution(f"{name}/shortcut", x, channels, update=True, size=1)
            x = _halved(y) + _halved(x)
            if index == 2:
                x = self._gated(x, self._ham(x, bases, d=2 * self.width, update=True))
        x += self._residual("block_6", x, 16 * self.width)
        x = tf.reduce_sum(tf.nn.relu(x), [1, 2])
        logits = self._linear("dense", x, 1, update=True)
        shape = [self.num_classes, x.shape[-1]]
        embedding = self._normalised_kernel("embedding", shape, update=True, transpose=True)
        products = x * tf.nn.embedding_lookup(embedding, labels)
        return logits + tf.reduce_sum(products, 1, keepdims=True)

    def _residual(self, name, x, channels):
        y = self._convolution(f"{name}/conv_1", tf.nn.relu(x), channels, update=True)
        return self._convolution(f"{name}/conv_2", tf.nn.relu(y), channels, update=True)


def _doubled(x):
    return tf.repeat(tf.repeat(x, 2, 1), 2, 2)


def _halved(x):
    return tf.nn.avg_pool2d(x, 2, 2, "SAME")


class Adam:
    """beta1 0, beta2 0.999, epsilon 1e-8; a kernel for each variable."""

    def __init__(self, variables, learning_rate):
        self._variables, self._learning_rate = variables, learning_rate
        self._slots = [
            [tf.Variable(tf.zeros_like(variable)) for _ in range(2)] for variable in variables
        ]
        self._powers = [tf.Variable(0.0), tf.Variable(0.999)]

    def apply(self, gradients):
        """Moves the variables, in their order, by their gradients."""
        first, second = self._powers
        for variable, gradient, (m, v) in zip(self._variables, gradients, self._slots, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=first,
                beta2_power=second,
                lr=self._learning_rate,
                beta1=0.0,
                beta2=0.999,
                epsilon=1e-8,
                grad=tf.convert_to_tensor(gradient),
            )
        first.assign(first * 0.0)
        second.assign(second * 0.999)


class Step:
    """Both updates of a batch.

    Args:
      width, num_classes: as of a `Network`.
      images: float32 [B, 128, 128, 3].
      labels: int32 [B].
    """

    def __init__(self, images, labels, *, width, num_classes):
        self.generator = Generator(width=width, num_classes=num_classes)
        self.discriminator = Discriminator(width=width, num_classes=num_classes)
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        # Once, so that all variables are there.
        self.discriminator(self.generator(*self._noise(1), training=False), [0])
        self._generator_adam = Adam(self.generator.trainable_variables, 1e-4)
        self._discriminator_adam = Adam(self.discriminator.trainable_variables, 4e-4)

    def _noise(self, count):
        labels = tf.random.uniform([count], 0, self.generator.num_classes, tf.int32)
        return tf.random.normal([count, 128]), labels

    def discriminator_update(self):
        """The hinge loss."""
        z, labels = self._noise(len(self._images))
        fake = self.generator(z, labels, training=True)
        with tf.GradientTape() as tape:
            real_logits = self.discriminator(self._images, self._labels)
            fake_logits = self.discriminator(fake, labels)
            loss = tf.reduce_mean(tf.nn.relu(1 - real_logits))
            loss += tf.reduce_mean(tf.nn.relu(1 + fake_logits))
        variables = self.discriminator.trainable_variables
        self._discriminator_adam.apply(tape.gradient(loss, variables))
        return loss

    def generator_update(self):
        """The hinge loss."""
        z, labels = self._noise(len(self._images))
        variables = self.generator.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            fake = self.generator(z, labels, training=True)
            loss = -tf.reduce_mean(self.discriminator(fake, labels))
        self._generator_adam.apply(tape.gradient(loss, variables))
        return loss
