"""The published networks as plain functions of their weights, for the tests of what is around them.

Written from the published layouts, in the precision of the weights, without `hamgan`: losses,
optimizers and whole-image tests can be held against recordings without the project's networks.
Weights have PyTorch's names and shapes.
"""

import numpy as np
import tensorflow as tf


class Weights:
    """{published name: array} as variables, with the layers that they belong to.

    Attributes:
      training: batch norm takes the batch's moments.
      variables: {name: variable}, of all that is trained.
    """

    def __init__(self, arrays, *, dtype=tf.float64):
        self.training = False
        self.variables, self.moments = {}, {}
        for name, value in arrays.items():
            if name.endswith(("running_mean", "running_var")):
                self.moments[name] = tf.constant(value, dtype)
            elif not name.endswith("num_batches_tracked"):
                self.variables[name] = tf.Variable(value, dtype=dtype)

    def has(self, name):
        return name in self.variables

    def blocks(self, prefix):
        """Numbers that follow a prefix in names."""
        numbers = {n[len(prefix) :].split(".")[0] for n in self.variables if n.startswith(prefix)}
        return sorted(int(number) for number in numbers)

    def conv(self, x, name, *, stride=1, padding=0, dilation=1):
        weight = self.variables[f"{name}.weight"]  # [out, in, k, k]
        x = tf.pad(x, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        if weight.shape[1] == 1 and x.shape[-1] > 1:
            kernel = tf.transpose(weight, [2, 3, 0, 1])
            x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID", dilations=[dilation] * 2)
        else:
            kernel = tf.transpose(weight, [2, 3, 1, 0])
            x = tf.nn.convolution(x, kernel, strides=stride, padding="VALID", dilations=dilation)
        bias = f"{name}.bias"
        return x + self.variables[bias] if self.has(bias) else x

    def batch_norm(self, x, name):
        if self.training:
            mean, variance = tf.nn.moments(x, [0, 1, 2])
        else:
            mean, variance = (self.moments[f"{name}.running_{m}"] for m in ("mean", "var"))
        return self._scaled((x - mean) / tf.sqrt(variance + 1e-5), name)

    def group_norm(self, x, name, groups):
        batch, height, width, channels = x.shape
        grouped = tf.reshape(x, [batch, height, width, groups, channels // groups])
        mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
        grouped = (grouped - mean) / tf.sqrt(variance + 1e-5)
        return self._scaled(tf.reshape(grouped, x.shape), name)

    def layer_norm(self, x, name):
        mean, variance = tf.nn.moments(x, [3], keepdims=True)
        return self._scaled((x - mean) / tf.sqrt(variance + 1e-6), name)

    def _scaled(self, x, name):
        return x * self.variables[f"{name}.weight"] + self.variables[f"{name}.bias"]


def nmf(x, bases, steps, *, one_step):
    """[B, h, w, D], bases [B, D, R] -> [B, h, w, D]; `one_step`: only the last update is
    differentiated.
    """
    rows = tf.reshape(x, [x.shape[0], -1, x.shape[-1]])  # [B, N, D]
    held = tf.stop_gradient(rows) if one_step else rows
    bases = tf.cast(bases, x.dtype)
    coef = tf.nn.softmax(held @ bases)

    def updated(coef, rows):
        gram = tf.matmul(bases, bases, transpose_a=True)
        return coef * (rows @ bases) / (coef @ gram + 1e-6)

    for _ in range(steps):
        coef = updated(coef, held)
        gram = tf.matmul(coef, coef, transpose_a=True)
        bases = bases * tf.matmul(held, coef, transpose_a=True) / (bases @ gram + 1e-6)
    if one_step:
        bases, coef = tf.stop_gradient(bases), tf.stop_gradient(coef)
    coef = updated(coef, rows)
    return tf.reshape(tf.matmul(coef, bases, transpose_b=True), x.shape)


def van_features(w, x):
    """Four feature maps of the published VAN."""
    features = []
    for stage in range(1, 5):
        embed = f"backbone.patch_embed{stage}"
        size = w.variables[f"{embed}.proj.weight"].shape[-1]
        stride = 4 if stage == 1 else 2
        x = w.conv(x, f"{embed}.proj", stride=stride, padding=size // 2)
        x = w.batch_norm(x, f"{embed}.norm")
        for block in w.blocks(f"backbone.block{stage}."):
            x = _van_block(w, x, f"backbone.block{stage}.{block}")
        x = w.layer_norm(x, f"backbone.norm{stage}")
        features.append(x)
    return features


def _van_block(w, x, name):
    gating = f"{name}.attn.spatial_gating_unit"
    y = w.batch_norm(x, f"{name}.norm1")
    u = tf.nn.gelu(w.conv(y, f"{name}.attn.proj_1"))
    v = w.conv(
        w.conv(u, f"{gating}.conv0", padding=2), f"{gating}.conv_spatial", padding=9, dilation=3
    )
    y = y + w.conv(u * w.conv(v, f"{gating}.conv1"), f"{name}.attn.proj_2")
    x = x + w.variables[f"{name}.layer_scale_1"] * y
    y = w.conv(w.batch_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
    y = tf.nn.gelu(w.conv(y, f"{name}.mlp.dwconv.dwconv", padding=1))
    return x + w.variables[f"{name}.layer_scale_2"] * w.conv(y, f"{name}.mlp.fc2")


def light_ham(w, x, bases, steps, groups, resize):
    """Logits [B, h / 8, w / 8, C] of VAN with LightHamHead; `resize`: (x, size) -> x."""
    _, *features = van_features(w, x)
    size = features[0].shape[1:3]
    x = tf.concat([features[0], *[resize(f, size) for f in features[1:]]], axis=-1)
    head = "decode_head"
    x = tf.nn.relu(w.group_norm(w.conv(x, f"{head}.squeeze.conv"), f"{head}.squeeze.gn", groups))
    y = tf.nn.relu(w.conv(x, f"{head}.hamburger.ham_in.conv"))
    y = w.conv(nmf(y, bases, steps, one_step=False), f"{head}.hamburger.ham_out.conv")
    x = tf.nn.relu(x + w.group_norm(y, f"{head}.hamburger.ham_out.gn", groups))
    x = tf.nn.relu(w.group_norm(w.conv(x, f"{head}.align.conv"), f"{head}.align.gn", groups))
    return w.conv(x, f"{head}.conv_seg")


def hamnet_os8(w, x, bases, steps):
    """Logits [B, h / 8, w / 8, C] of HamNet V2 with NMF on a ResNet at output stride 8."""
    for conv, norm, stride in (("0.0", "0.1", 2), ("0.3", "0.4", 1), ("0.6", "1", 1)):
        x = w.conv(x, f"backbone.{conv}", stride=stride, padding=1)
        x = tf.nn.relu(w.batch_norm(x, f"backbone.{norm}"))
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    for layer, stride, first, dilations in (
        (4, 1, 1, [1]),
        (5, 2, 1, [1]),
        (6, 1, 1, [2]),
        (7, 1, 2, [8, 16]),
    ):
        for block in w.blocks(f"backbone.{layer}."):
            dilation = first if block == 0 else dilations[min(block, len(dilations)) - 1]
            name = f"backbone.{layer}.{block}"
            x = _bottleneck(w, x, name, 1 if block else stride, dilation)
    x = tf.nn.relu(w.batch_norm(w.conv(x, "squeeze.conv", padding=1), "squeeze.bn"))
    y = tf.nn.relu(w.conv(x, "hamburger.lower_bread.0"))
    y = w.conv(nmf(y, bases, steps, one_step=True), "hamburger.cheese.conv")
    y = tf.nn.relu(w.batch_norm(y, "hamburger.cheese.bn"))
    x = tf.nn.relu(x + w.conv(y, "hamburger.upper_bread"))
    x = tf.nn.relu(w.batch_norm(w.conv(x, "align.conv", padding=1), "align.bn"))
    return w.conv(x, "fc.1")


def _bottleneck(w, x, name, stride, dilation):
    y = tf.nn.relu(w.batch_norm(w.conv(x, f"{name}.conv1"), f"{name}.bn1"))
    y = w.conv(y, f"{name}.conv2", stride=stride, padding=dilation, dilation=dilation)
    y = tf.nn.relu(w.batch_norm(y, f"{name}.bn2"))
    y = w.batch_norm(w.conv(y, f"{name}.conv3"), f"{name}.bn3")
    if w.has(f"{name}.downsample.0.weight"):
        x = w.conv(x, f"{name}.downsample.0", stride=stride)
        x = w.batch_norm(x, f"{name}.downsample.1")
    return tf.nn.relu(x + y)


def weights(recording, **options):
    """The `w/` arrays of a recording."""
    return Weights({k[2:]: np.asarray(v) for k, v in recording.items() if k[:2] == "w/"}, **options)
