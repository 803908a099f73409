"""The published HamGAN in float64 NumPy, written from the paper and its constants: what the tests
compare with.

Plain and literal on purpose: every sum is taken as the formula has it (upsample, then convolve;
convolve, then pool), with nothing fused, folded or reordered. Feature maps are [B, H, W, C]; a
matrix to decompose is the paper's X, [D, N]. Geng et al. 2021 (Hamburger, NMF); Miyato et al. 2018
(spectral normalisation); Zhang et al. 2019 (the networks).
"""

import numpy as np

NMF_EPSILON = 1e-6
L2_EPSILON = 1e-12
BATCH_NORM_EPSILON = 1e-3


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# Matrix decomposition


def nmf_factors(x, bases, num_steps):
    """Factors (bases [B, D, R], coef [B, N, R]) of relu(x), x [B, D, N], after `num_steps` updates
    of both.
    """
    x = relu(np.float64(x))
    bases = np.float64(bases)
    coef = softmax(x.transpose(0, 2, 1) @ bases)
    for _ in range(num_steps):
        coef = nmf_update_coef(x, bases, coef)
        numerator = x @ coef
        denominator = bases @ coef.transpose(0, 2, 1) @ coef
        bases = bases * (numerator / (denominator + NMF_EPSILON))
    return bases, coef


def nmf_update_coef(x, bases, coef):
    """One update of coef [B, N, R], for x [B, D, N] that isn't negative."""
    numerator = x.transpose(0, 2, 1) @ bases
    denominator = coef @ bases.transpose(0, 2, 1) @ bases
    return coef * (numerator / (denominator + NMF_EPSILON))


def nmf(x, bases, num_steps):
    """[B, D, N]: `num_steps` updates of both factors, one more of coef, and their product."""
    bases, coef = nmf_factors(x, bases, num_steps)
    coef = nmf_update_coef(relu(np.float64(x)), bases, coef)
    return bases @ coef.transpose(0, 2, 1)


def nmf_one_step_gradient(x, bases, num_steps, dy):
    """d sum(nmf(x) * dy) / dx, [B, D, N], with the factors after `num_steps` updates held constant.

    y = bases coef'^T with coef' = coef * (x^T bases) / denominator, which is linear in x.
    """
    bases, coef = nmf_factors(x, bases, num_steps)
    denominator = coef @ bases.transpose(0, 2, 1) @ bases + NMF_EPSILON
    dcoef = np.float64(dy).transpose(0, 2, 1) @ bases
    dx = bases @ (dcoef * coef / denominator).transpose(0, 2, 1)
    return dx * (np.float64(x) > 0)


# Spectral normalisation


def l2_normalize(x):
    return x / np.sqrt(np.maximum(np.sum(x**2), L2_EPSILON))


def power_iteration(matrix, u):
    """(u [rows, 1], v [columns, 1]) after one iteration."""
    v = l2_normalize(matrix.T @ u)
    u = l2_normalize(matrix @ v)
    return u, v


def normalizer(matrix, u, *, exact=False):
    """What a kernel is divided by, for its matrix [rows, columns] and the stored u."""
    u, v = power_iteration(np.float64(matrix), np.float64(u))
    sigma = (u.T @ matrix @ v)[0, 0]
    return sigma if exact else max(1.0, sigma)


def normalized_kernel(kernel, u, *, exact=False):
    """Of a convolution [h, w, in, out] or a dense layer [in, out]: the last axis makes the
    columns.
    """
    kernel = np.float64(kernel)
    return kernel / normalizer(kernel.reshape(-1, kernel.shape[-1]), u, exact=exact)


def normalized_embedding(table, u):
    """Of an embedding [classes, dim], whose transpose is the matrix that counts."""
    table = np.float64(table)
    return table / normalizer(table.T, u)


# Convolution and resampling


def conv2d(x, kernel, bias=0.0):
    """Zero padding that keeps the size; kernel [h, w, in, out] with odd h and w, not flipped."""
    x = np.float64(x)
    height, width = x.shape[1:3]
    pad_h, pad_w = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(x, [(0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)])
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            y += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return y + bias


def upsample(x):
    """Nearest neighbour, [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    y = np.zeros((b, 2 * h, 2 * w, c))
    for i in range(2):
        for j in range(2):
            y[:, i::2, j::2] = x
    return y


def average_pool(x):
    """Means of 2x2 blocks, [B, H, W, C] -> [B, H/2, W/2, C]."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]  # what is left of odd sides
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


# Layers of a {name: array} dictionary of weights


def under(weights, scope):
    """The entries under `scope`, by their names in it: {'scope/name': array} -> {'name': array}."""
    inner = {
        name[len(scope) + 1 :]: array
        for name, array in weights.items()
        if name.startswith(scope + "/")
    }
    if not inner:
        raise KeyError(f"no weights under {scope}/")
    return inner


def sn_conv(weights, x, *, exact=False):
    return conv2d(
        x, normalized_kernel(weights["kernel"], weights["u"], exact=exact), weights.get("bias", 0.0)
    )


def sn_dense(weights, x):
    return np.float64(x) @ normalized_kernel(weights["kernel"], weights["u"]) + weights.get(
        "bias", 0.0
    )


def moments(x):
    """Mean and biased variance of each channel, [C] each."""
    mean = np.mean(np.float64(x), axis=(0, 1, 2))
    return mean, np.mean((x - mean) ** 2, axis=(0, 1, 2))


def batch_norm(weights, x, labels=None, *, training=False):
    """gamma, beta: [1, C], or [classes, C] where `labels` choose the row."""
    x = np.float64(x)
    mean, variance = (
        moments(x) if training else (weights["moving_mean"], weights["moving_variance"])
    )
    rows = np.zeros(len(x), int) if labels is None else labels
    normalized = (x - mean) / np.sqrt(variance + BATCH_NORM_EPSILON)
    return (
        weights["gamma"][rows][:, None, None, :] * normalized
        + weights["beta"][rows][:, None, None, :]
    )


def hamburger(weights, x, bases, labels=None, *, num_steps=6, training=False):
    """Hamburger V1 with NMF. bases [B, S, D, R]: section s owns the channels s*D..(s+1)*D of the
    lower bread.
    """
    batch, height, width, _ = x.shape
    _, sections, dim, _ = bases.shape
    lower = sn_conv(under(weights, "lower_bread"), x, exact=True).reshape(
        batch, height * width, sections * dim
    )
    ham = np.zeros_like(lower)
    for b in range(batch):
        for s in range(sections):
            channels = slice(s * dim, (s + 1) * dim)
            matrix = lower[b, :, channels].T  # [D, N]
            ham[b, :, channels] = nmf(matrix[None], bases[b, s][None], num_steps)[0].T
    ham = ham.reshape(batch, height, width, sections * dim)
    y = sn_conv(under(weights, "upper_bread"), ham, exact=True)
    if "norm/gamma" in weights:
        y = batch_norm(under(weights, "norm"), y, labels, training=training)
    return x + weights["gate"] * y


def up_block(weights, x, labels, *, training=False):
    y = relu(batch_norm(under(weights, "norm_1"), x, labels, training=training))
    y = sn_conv(under(weights, "conv_1"), upsample(y))
    y = relu(batch_norm(under(weights, "norm_2"), y, labels, training=training))
    y = sn_conv(under(weights, "conv_2"), y)
    return y + sn_conv(under(weights, "shortcut"), upsample(x))


def first_down_block(weights, x):
    """The discriminator's first: no ReLU before the image, and the shortcut pools before it
    convolves.
    """
    y = relu(sn_conv(under(weights, "conv_1"), x))
    y = average_pool(sn_conv(under(weights, "conv_2"), y))
    return y + sn_conv(under(weights, "shortcut"), average_pool(x))


def down_block(weights, x):
    y = relu(sn_conv(under(weights, "conv_1"), relu(x)))
    y = average_pool(sn_conv(under(weights, "conv_2"), y))
    return y + average_pool(sn_conv(under(weights, "shortcut"), x))


def last_block(weights, x):
    """The discriminator's last: no downsampling, identity shortcut."""
    y = relu(sn_conv(under(weights, "conv_1"), relu(x)))
    return x + sn_conv(under(weights, "conv_2"), y)


# The networks. Their depth is that of the weights: blocks `block_1`, `block_2`, ...


def _num_blocks(weights):
    return len({name.split("/")[0] for name in weights if name.startswith("block_")})


def generator(
    weights, z, labels, bases=None, *, context_resolution=32, num_steps=6, training=False
):
    """Images [B, S, S, 3]. bases [B, sections, D, R] of the context module; None: there is no such
    module.
    """
    x = sn_dense(under(weights, "dense"), z)
    x = x.reshape(len(x), 4, 4, -1)
    for block in range(1, _num_blocks(weights) + 1):
        x = up_block(under(weights, f"block_{block}"), x, labels, training=training)
        if bases is not None and x.shape[1] == context_resolution:
            x = hamburger(
                under(weights, "context"), x, bases, labels, num_steps=num_steps, training=training
            )
    x = relu(batch_norm(under(weights, "norm"), x, training=training))
    return np.tanh(sn_conv(under(weights, "to_rgb"), x))


def discriminator(weights, images, labels, bases=None, *, context_resolution=32, num_steps=6):
    """Logits [B, 1]. bases as in `generator`."""
    x = np.float64(images)
    last = _num_blocks(weights)
    for block in range(1, last):
        apply = first_down_block if block == 1 else down_block
        x = apply(under(weights, f"block_{block}"), x)
        if bases is not None and x.shape[1] == context_resolution:
            x = hamburger(under(weights, "context"), x, bases, num_steps=num_steps)
    x = last_block(under(weights, f"block_{last}"), x)
    h = relu(x).sum(axis=(1, 2))
    embedding = under(weights, "embedding")
    projection = (h * normalized_embedding(embedding["kernel"], embedding["u"])[labels]).sum(
        axis=1, keepdims=True
    )
    return sn_dense(under(weights, "dense"), h) + projection
