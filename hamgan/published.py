"""Checkpoints of the published TF1 code (HamGAN, SAGAN, YLG, no module): what they are of, and
where variables go.

Names and shapes tell widths, classes, the kind of module and the ham's channels. They don't tell
the decomposition, its rank, steps and sections, nor SAGAN's attention from YLG's, which has the
same variables.
"""

import dataclasses
import math
import re

import numpy as np
import tensorflow as tf

# The published networks have no other.
IMAGE_SIZE = 128

_PREFIXES = {"generator": "Generator/generator/", "discriminator": "Discriminator/discriminator/"}
_OPS = {"generator": "g_ops", "discriminator": "d_ops"}

# Scopes of layers in the published graph, and ours. Blocks count from 1 in both.
_LAYERS = {
    "generator": (
        (r"g_snh0/dense", r"dense"),
        (r"g_block(\d+)/cbn_0", r"block_\1/norm_1"),
        (r"g_block(\d+)/cbn_1", r"block_\1/norm_2"),
        (r"g_block(\d+)/snconv([12])/snconv\2", r"block_\1/conv_\2"),
        (r"g_block(\d+)/snconv3/snconv3", r"block_\1/shortcut"),
        (r"g_bn", r"norm"),
        (r"g_snconv_last/g_snconv_last", r"to_rgb"),
    ),
    "discriminator": (
        (r"d_(?:optimized_)?block(\d+)/sn_conv([12])/sn_conv\2", r"block_\1/conv_\2"),
        (r"d_(?:optimized_)?block(\d+)/sn_conv3/sn_conv3", r"block_\1/shortcut"),
        (r"d_sn_linear/dense", r"dense"),
        (r"d_embedding", r"embedding"),
    ),
}
# The same within g_ops and d_ops, for each kind of module.
_MODULES = {
    None: (),
    "hamburger_v1": (
        (r"sn_(lower_bread|upper_bread)", r"context/\1"),
        (r"upper_bread_bn", r"context/norm"),
    ),
    "hamburger_v2": (
        (r"sn_(lower_bread|cheese|upper_bread)", r"context/\1"),
        (r"cheese_bn", r"context/norm"),
    ),
    "attention": ((r"sn_conv_(theta|phi|g|attn)", r"context/\1"),),
}
_WEIGHTS = {
    name: name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
} | {
    "weights": "kernel",
    "embedding_map": "kernel",
}
_SLOTS = {"Adam": "momentum", "Adam_1": "velocity"}
_BETA_POWER = re.compile(r"(?:(?P<scope>.*)/)?beta(?P<beta>[12])_power(?:_(?P<number>\d+))?")
# TF-GAN's copies of global_step, there when replicas are synchronised.
_STEP_COPY = re.compile(r"dummy_global_step_(generator|discriminator)")
# What float32 holds in full precision; TF1's powers of beta end in 0.
_SMALLEST = float(np.finfo(np.float32).tiny)
_MAX_LINES = 40
# TensorFlow's reader has a Python error for each kind of damage: IndexError for a file that ends
# too early.
_READ_ERRORS = (
    tf.errors.OpError,
    ValueError,
    RuntimeError,
    LookupError,
    OSError,
    NotImplementedError,
)


class Checkpoint:
    """A TF1 checkpoint; variables are read when they are asked for.

    Args:
      path: its prefix, 'model.ckpt-1000'; 'model.ckpt-1000.index' or a folder (its newest one) will
        do too.

    Attributes:
      path: the prefix.
      shapes: {name: list of integers}.

    Raises:
      ValueError: it can't be read.
    """

    def __init__(self, path):
        self.path = path.removesuffix(".index")
        try:
            self._reader = tf.train.load_checkpoint(self.path)
            self.shapes = dict(self._reader.get_variable_to_shape_map())
        except _READ_ERRORS as error:
            raise ValueError(
                f"{self.path} can't be read as a checkpoint: {error}\nGive the prefix: that of "
                "model.ckpt-1000.index "
                "and model.ckpt-1000.data-00000-of-00001 is model.ckpt-1000."
            ) from error

    def value(self, name):
        """A variable as an array.

        Raises:
          ValueError: its bytes can't be read.
        """
        try:
            return np.asarray(self._reader.get_tensor(name))
        except _READ_ERRORS as error:
            raise ValueError(
                f"{name} can't be read from {self.path}; is a file of it missing or cut short? "
                f"{error}"
            ) from error


# What a checkpoint is of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What names and shapes tell of a network.

    Attributes:
      width: w, the base number of channels.
      num_classes: number of classes.
      module: 'hamburger_v1', 'hamburger_v2', 'attention' (SAGAN's or YLG's), or None.
      ham_channels: of a Hamburger, sections times d.
      dim: of attention, channels of queries and keys.
      value_dim: of attention, channels of values.
      latent_dim: of a generator, length of z.
    """

    width: int
    num_classes: int
    module: str | None = None
    ham_channels: int | None = None
    dim: int | None = None
    value_dim: int | None = None
    latent_dim: int | None = None

    @property
    def may_be_sparse(self):
        """Whether this can be YLG's attention: its eight heads share queries, keys and values
        evenly.
        """
        return self.module == "attention" and self.dim % 8 == 0 and self.value_dim % 8 == 0


def describe(checkpoint):
    """What a checkpoint is of.

    Returns:
      {'generator': Network, 'discriminator': Network}.

    Raises:
      ValueError: it isn't of the published code, or the networks don't have the same classes.
    """
    for kind, prefix in _PREFIXES.items():
        if not any(name.startswith(prefix) for name in checkpoint.shapes):
            raise ValueError(
                f"{checkpoint.path} isn't a checkpoint of the published code: that has its {kind} "
                f"under {prefix}. "
                f"Here are {_excerpt(checkpoint.shapes)}."
            )

    def size(*places, kind="generator"):
        return _size(checkpoint, [(_PREFIXES[kind] + name, axis) for name, axis in places])

    first_conv = "d_optimized_block1/sn_conv1/sn_conv1"
    generator = Network(
        width=size(("g_bn/gamma", 3), ("g_bn/beta", 3)),
        num_classes=size(("g_block1/cbn_0/gamma", 0), ("g_block1/cbn_0/beta", 0)),
        latent_dim=size(("g_snh0/dense/kernel", 0)),
        **_describe_module(checkpoint, "generator"),
    )
    discriminator = Network(
        width=size((f"{first_conv}/bias", 0), (f"{first_conv}/kernel", 3), kind="discriminator"),
        num_classes=size(("d_embedding/embedding_map", 0), kind="discriminator"),
        **_describe_module(checkpoint, "discriminator"),
    )
    if generator.num_classes != discriminator.num_classes:
        raise ValueError(
            f"{checkpoint.path}: both networks must have the same classes, got "
            f"{generator.num_classes} in the "
            f"generator's g_block1/cbn_0 and {discriminator.num_classes} in the discriminator's "
            "d_embedding."
        )
    return {"generator": generator, "discriminator": discriminator}


def _excerpt(names):
    names = sorted(names)
    return f"{len(names)} variables: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")


def _size(checkpoint, places):
    """The size that the first of some variables has along an axis; places are (name, axis)."""
    for name, axis in places:
        shape = checkpoint.shapes.get(name, [])
        if len(shape) > axis:
            return shape[axis]
    missing = " or ".join(f"{name} (of rank {axis + 1} or more)" for name, axis in places)
    scope = places[0][0].rsplit("/", 1)[0].split("/")[:2]
    there = [name for name in checkpoint.shapes if name.split("/")[:2] == scope]
    raise ValueError(
        f"{checkpoint.path} has no {missing}. Of this network it has {_excerpt(there)}."
    )


def _describe_module(checkpoint, kind):
    scope = f"{_PREFIXES[kind]}{_OPS[kind]}/"
    parts = {
        name[len(scope) :].split("/")[0] for name in checkpoint.shapes if name.startswith(scope)
    }

    def size(*places):
        return _size(checkpoint, [(f"{scope}{name}/weights", axis) for name, axis in places])

    if not parts:
        return {}
    if parts & {"sn_cheese", "cheese_bn"}:
        return dict(
            module="hamburger_v2", ham_channels=size(("sn_lower_bread", 3), ("sn_cheese", 2))
        )
    if parts & {"sn_lower_bread", "sn_upper_bread"}:
        return dict(
            module="hamburger_v1", ham_channels=size(("sn_lower_bread", 3), ("sn_upper_bread", 2))
        )
    if parts & {f"sn_conv_{name}" for name in ("theta", "phi", "g", "attn")}:
        dim = size(("sn_conv_theta", 3), ("sn_conv_phi", 3))
        return dict(
            module="attention", dim=dim, value_dim=size(("sn_conv_g", 3), ("sn_conv_attn", 2))
        )
    raise ValueError(
        f"{checkpoint.path}: {scope} must hold a Hamburger (sn_lower_bread, ...) or attention "
        "(sn_conv_theta, ...), "
        f"got {', '.join(sorted(parts))}."
    )


# Where each variable goes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One line of an import.

    Attributes:
      ours: name in our checkpoints; None: the variable isn't needed.
      published: name in the published checkpoint; None: it doesn't come from there.
      value: what a count becomes; None: the variable as it is, in our shape.
      shape: the variable's shape in the published checkpoint.
      note: what isn't plain from the names.
    """

    ours: str | None
    published: str | None
    value: int | None = None
    shape: list | None = None
    note: str = ""

    def __str__(self):
        source = f"{self.published} {self.shape}" if self.published else "(nothing)"
        result = f"{self.ours}" if self.ours else "(not needed)"
        note = ", ".join(str(part) for part in (self.value, self.note) if part not in (None, ""))
        return f"{source} -> {result}" + (f": {note}" if note else "")


def plan(checkpoint, variables, *, beta_2=0.999):
    """Where each variable of a checkpoint goes and where each of ours comes from.

    Args:
      checkpoint: the `Checkpoint`.
      variables: {name: tf.Variable} as `Trainer.variables` gives, or those of some of its parts,
        such as all that begin with 'generator/'.
      beta_2: of the run's Adam, for the number of its updates.

    Returns:
      List of `Assignment`, one for each variable of the checkpoint (of these parts) and one for
      each of ours that doesn't come from it: optimizer state where the checkpoint has none,
        learning rates.

    Raises:
      ValueError: a variable on either side is left over, or two differ in shape; all are listed.
    """
    modules = {kind: network.module for kind, network in describe(checkpoint).items()}
    parts = {name.split("/")[0] for name in variables}
    sources, lines = {}, []
    counts = {}
    for name in sorted(checkpoint.shapes):
        if name == "global_step" or _BETA_POWER.fullmatch(name) or _STEP_COPY.fullmatch(name):
            counts[name] = float(checkpoint.value(name))
            continue
        ours = _our_name(name, modules)
        if ours is None:
            lines.append(f"  {name} {checkpoint.shapes[name]}: only in the checkpoint")
        elif ours in sources:
            lines.append(f"  {name} {checkpoint.shapes[name]}: {ours} is {sources[ours]} already")
        elif ours.split("/")[0] in parts:
            sources[ours] = name

    assignments = _plan_counts(checkpoint, counts, sources, parts, beta_2)
    settled = {assignment.ours for assignment in assignments}
    for ours, variable in variables.items():
        if ours in settled or ours in sources:
            continue
        part = ours.split("/")[0]
        if ours.endswith("/learning_rate"):
            note = f"{float(variable.numpy()):g}, from the configuration"
        elif ours == "rollbacks":
            note = "none yet"
        elif part.endswith("_optimizer") and not _has_slots(sources, part):
            note = "fresh: the checkpoint has no Adam state of this network"
        else:
            lines.append(f"  {ours} {variable.shape.as_list()}: not in the checkpoint")
            continue
        assignments.append(Assignment(ours=ours, published=None, note=note))
    for ours, name in sources.items():
        shape = checkpoint.shapes[name]
        if ours not in variables:
            lines.append(f"  {name} {shape}: only in the checkpoint (it would be {ours})")
            continue
        wanted = variables[ours].shape.as_list()
        if _our_shape(ours, shape) != wanted:
            lines.append(f"  {name}: {shape} in the checkpoint, but {ours} is {wanted}")
        note = "" if shape == wanted else f"as {wanted}"
        assignments.append(Assignment(ours=ours, published=name, shape=shape, note=note))
    _refuse(checkpoint, lines)
    return sorted(assignments, key=lambda a: (a.published is None, a.published or "", a.ours or ""))


def _refuse(checkpoint, lines):
    """`ValueError` with lines that say what doesn't fit; none: nothing."""
    if lines:
        more = f"\n  and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
        raise ValueError(
            f"{checkpoint.path} doesn't fit the networks it seems to be of:\n"
            + "\n".join(lines[:_MAX_LINES])
            + more
        )


def assign(checkpoint, assignments, variables):
    """Puts a checkpoint's values into variables, as `plan` has it.

    Raises:
      ValueError: a value can't be read; the variables before it have been assigned.
    """
    for assignment in assignments:
        if not assignment.ours:
            continue
        variable = variables[assignment.ours]
        if assignment.value is not None:
            variable.assign(tf.cast(assignment.value, variable.dtype))
        elif assignment.published:
            value = checkpoint.value(assignment.published)
            variable.assign(tf.cast(value.reshape(variable.shape), variable.dtype))


def _our_name(name, modules):
    """Our name of a published variable, e.g. 'generator/block_1/conv_1/kernel', or None."""
    name, _, slot = name.rpartition("/") if name.rpartition("/")[2] in _SLOTS else (name, "", "")
    for kind, prefix in _PREFIXES.items():
        if not name.startswith(prefix):
            continue
        inner = _our_name_in_network(name[len(prefix) :], kind, modules[kind])
        if inner is None:
            return None
        if not slot:
            return f"{kind}/{inner}"
        if inner.endswith(("/u", "/moving_mean", "/moving_variance")):
            return None
        return f"{kind}_optimizer/adam/{inner.replace('/', '_')}_{_SLOTS[slot]}"
    return None


def _our_name_in_network(name, kind, module):
    ops = _OPS[kind] + "/"
    layers = _LAYERS[kind]
    if name.startswith(ops) and module is not None:
        name, layers = name[len(ops) :], _MODULES[module]
        if name == "sigma_ratio":
            return "context/gate"
    for pattern, ours in layers:
        match = re.match(rf"{pattern}/", name)
        if not match:
            continue
        layer, weight = match.expand(ours), name[match.end() :]
        # TF1's scopes put much between a layer and its u, and not always the same. Only the two
        # ends count.
        if weight.split("/")[-1] == "spectral_norm_u":
            return f"{layer}/u"
        return f"{layer}/{_WEIGHTS[weight]}" if weight in _WEIGHTS else None
    return None


def _our_shape(ours, shape):
    """Published scales and offsets, [rows, 1, 1, C], are [rows, C] here."""
    if (
        re.search(r"(gamma|beta)(_momentum|_velocity)?$", ours)
        and len(shape) == 4
        and shape[1:3] == [1, 1]
    ):
        return [shape[0], shape[3]]
    return shape


def _has_slots(sources, part):
    return any(ours.startswith(part + "/") for ours in sources)


# Counts: the step, and the updates of each Adam


def _plan_counts(checkpoint, counts, sources, parts, beta_2):
    """Assignments of the step and of the optimizers' iterations, with everything in `counts`
    accounted for.
    """
    assignments, used = [], set()
    step = int(counts["global_step"]) if "global_step" in counts else None

    def add(ours, published, value, note=""):
        shape = checkpoint.shapes[published] if published else None
        assignments.append(
            Assignment(ours=ours, published=published, value=value, shape=shape, note=note)
        )
        used.add(published)

    if "step" in parts:
        add(
            "step",
            None if step is None else "global_step",
            step or 0,
            "" if step is not None else "no global_step",
        )
    for kind in _PREFIXES:
        part = f"{kind}_optimizer"
        if part not in parts or not _has_slots(sources, part):
            continue
        ours = f"{part}/adam/iteration"
        name = _power_of(counts, kind)
        if name is None and step is None:
            raise ValueError(
                f"{checkpoint.path} has Adam slots of the {kind}, but neither beta2_power nor "
                "global_step, which would "
                "tell after how many updates. Its variables: " + _excerpt(checkpoint.shapes)
            )
        if name is None:
            add(ours, "global_step", step, "no beta2_power")
        else:
            value, note = _num_updates(checkpoint, name, counts[name], step, beta_2)
            add(ours, name, value, note)
    for name in counts:
        if name not in used:
            add(None, name, None, f"{counts[name]:g}")
    return assignments


def _power_of(counts, kind):
    """The name of beta2_power of a network's Adam, or None."""
    powers = {name: _BETA_POWER.fullmatch(name) for name in counts}
    powers = {name: match for name, match in powers.items() if match and match["beta"] == "2"}
    scoped = [name for name, match in powers.items() if kind in (match["scope"] or "").lower()]
    if scoped:
        return min(scoped)
    # Without a network's name they are numbered as they were made: TF-GAN makes the generator's
    # optimizer first.
    numbered = sorted(
        (int(match["number"] or 0), name)
        for name, match in powers.items()
        if not any(other in (match["scope"] or "").lower() for other in _PREFIXES)
    )
    if not numbered:
        return None
    return numbered[0][1] if kind == "generator" else numbered[-1][1]


def _num_updates(checkpoint, name, power, step, beta_2):
    """(updates that Adam has made, a note on it): TF1 keeps beta_2 to the power of updates + 1, in
    float32.
    """
    log_beta = math.log(np.float32(beta_2))
    if power < _SMALLEST:
        # Any number this high corrects the same: 1 - beta_2^t is 1.
        at_least = math.ceil(math.log(_SMALLEST) / log_beta) - 1
        if step is not None and step >= at_least:
            return step, f"from global_step; {name} is {power:g}"
        return at_least, f"at least; {name} is {power:g}"
    updates = math.log(power) / log_beta - 1
    # Each multiplication rounds by up to 2^-24 of the power.
    uncertainty = 0.5 + (updates + 1) * 2**-24 / -log_beta
    if not -uncertainty <= updates:
        raise ValueError(
            f"{checkpoint.path}: {name} must not be above beta_2 ({beta_2}), got {power:g}."
        )
    if step is not None and abs(updates - step) <= uncertainty:
        return step, f"{power:g}"
    return max(0, round(updates)), f"{power:g}"


# Verification


def check_arrays(arrays, described, *, bases):
    """Refuses a record that can't be replayed through these networks.

    Args:
      arrays: {name: array} as `replay_generator` and `replay_discriminator` take them.
      described: what `describe` gave.
      bases: {'generator': (sections, d, rank), ...} of the networks that have a Hamburger.

    Raises:
      ValueError: an array is missing, or its shape isn't the networks'.
    """
    batch = len(arrays["z"]) if "z" in arrays else 0
    image = [batch, IMAGE_SIZE, IMAGE_SIZE, 3]
    shapes = dict.fromkeys(("z", "z_grad"), [batch, described["generator"].latent_dim])
    shapes |= dict.fromkeys(("images", "real_images", "img_grad"), image)
    shapes |= {"labels": [batch], "logits": [batch, 1]}
    for kind, (sections, dim, rank) in bases.items():
        shapes[f"{kind[0]}_bases"] = [batch * sections, dim, rank]
    missing = shapes.keys() - arrays.keys()
    if missing:
        raise ValueError(
            f"The record must have {', '.join(sorted(shapes))}; {', '.join(sorted(missing))} "
            "missing, got "
            f"{', '.join(sorted(arrays))}."
        )
    for name, shape in shapes.items():
        if list(arrays[name].shape) != shape:
            means = " (batch * sections, d, rank)" if name.endswith("_bases") else ""
            raise ValueError(
                f"The record's {name} must be {shape}{means}, got {list(arrays[name].shape)}."
            )
    labels, classes = arrays["labels"], described["generator"].num_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"The record's labels must be in [0, {classes}), got {labels.min()} to {labels.max()}."
        )


def replay_generator(generator, arrays):
    """{name: error} of a generator against a record.

    Each error is the largest absolute difference over the largest absolute value of the recorded
    array. Inference mode: moving averages; power iterations are computed, not stored.

    Args:
      generator: a `hamgan.networks.Generator`.
      arrays: z [B, latent_dim], labels [B], g_bases [B*S, d, r] where there is a Hamburger, images,
        real_images [B, 128, 128, 3], z_grad [B, latent_dim] = d sum(images * real_images) / dz.
    """
    z = tf.constant(arrays["z"], tf.float32)
    initial = _initial(arrays, "g_bases")
    with tf.GradientTape() as tape:
        tape.watch(z)
        images = generator(z, _labels(arrays), training=False, initial=initial)
        total = tf.reduce_sum(images * tf.constant(arrays["real_images"], tf.float32))
    return {
        "images": largest_error(images, arrays["images"]),
        "z_grad": largest_error(tape.gradient(total, z), arrays["z_grad"]),
    }


def replay_discriminator(discriminator, arrays):
    """{name: error} of a discriminator against a record, as `replay_generator`.

    Args:
      discriminator: a `hamgan.networks.Discriminator`.
      arrays: real_images [B, 128, 128, 3], labels [B], d_bases [B*S, d, r] where there is a
        Hamburger, logits [B, 1], img_grad [B, 128, 128, 3] = d sum(logits) / d real_images.
    """
    images = tf.constant(arrays["real_images"], tf.float32)
    initial = _initial(arrays, "d_bases")
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = discriminator(images, _labels(arrays), training=False, initial=initial)
    return {
        "logits": largest_error(logits, arrays["logits"]),
        "img_grad": largest_error(tape.gradient(logits, images), arrays["img_grad"]),
    }


def largest_error(actual, expected):
    """The largest absolute difference over the largest absolute expected value (over 1 if that is
    0).
    """
    expected = np.asarray(expected, np.float64)
    difference = np.max(np.abs(np.asarray(actual, np.float64) - expected))
    return float(difference / (np.max(np.abs(expected)) or 1.0))


def _labels(arrays):
    return tf.constant(arrays["labels"], tf.int32)


def _initial(arrays, name):
    """What has a network's Hamburger start from the bases [B*S, d, r] of a record; other modules
    have none.
    """
    if name not in arrays:
        return None
    bases = arrays[name]
    given = tf.constant(bases.reshape(len(arrays["labels"]), -1, *bases.shape[1:]), tf.float32)
    return lambda keys: {"space": given}
