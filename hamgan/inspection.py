"""What a Hamburger does to the features of a trained network (Geng et al. 2021, figures 5 and 6).

Spectra of the feature matrices before and after, the error of the decomposition after each of its
updates, and feature maps before and after.
"""

import dataclasses
import io

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from hamgan import pictures, stateless
from hamgan.run import records


@dataclasses.dataclass(frozen=True)
class Ham:
    """One decomposition of a forward pass; B counts sections too.

    Attributes:
      x: [B, N, D] float32, what is decomposed: its input without what it ignores (NMF: the negative
        entries).
      y: [B, N, D] float32, the approximation of rank R.
      errors: [K + 1, B] float64, |x - y| / |x| in the Frobenius norm when the decomposition ends
        after 0 to K updates. A matrix of zeros has error 0.
      bases: [B, D, R] float32, the initial bases.
    """

    x: np.ndarray
    y: np.ndarray
    errors: np.ndarray
    bases: np.ndarray

    @property
    def rank(self):
        return self.bases.shape[-1]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A forward pass through a network, as its Hamburger saw it.

    Attributes:
      before, after: [B, H, W, C] float32, input and output of the Hamburger.
      hams: {'space': Ham}, and 'channels' in a Hamburger V2+: whether a pixel or a channel is a
        row.
      gate: how much of the ham is added.
    """

    before: np.ndarray
    after: np.ndarray
    hams: dict
    gate: float

    def matrices(self):
        """{name: [B, rows, columns]} of the matrices whose spectra are compared, in the order of
        the computation.
        """
        found = {"input of the Hamburger": _as_rows(self.before)}
        for name, ham in self.hams.items():
            over = f" over {name}" if len(self.hams) > 1 else ""
            found[f"input of the ham{over}"] = ham.x
            found[f"output of the ham{over}"] = ham.y
        return {**found, "output of the Hamburger": _as_rows(self.after)}

    def maps(self):
        """{name: [B, H, W, channels]} of the feature maps, in pairs of before and after."""
        batch, height, width, _ = self.before.shape
        pairs = {"input of the Hamburger": self.before, "output of the Hamburger": self.after}
        # [B * S, N, D] -> [B, H, W, S * D]
        for name, rows in (
            ("input of the ham", self.hams["space"].x),
            ("output of the ham", self.hams["space"].y),
        ):
            maps = rows.reshape(batch, -1, height, width, rows.shape[-1])
            pairs[name] = np.moveaxis(maps, 1, 3).reshape(batch, height, width, -1)
        return pairs


def _as_rows(maps):
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def inspect(network, *arguments, num_steps=None, **keywords):
    """Runs a network once, in inference, and looks at its Hamburger.

    Args:
      network: a Generator or Discriminator whose context module is a Hamburger (V1, V2 or V2+).
      arguments, keywords: of its call.
      num_steps: updates whose errors are computed; None: as many as the Hamburger runs in
        inference, K.

    Returns:
      (the network's output, `Inspection`).

    Raises:
      ValueError: the network has no Hamburger, or num_steps is negative.
    """
    layer = hamburger_of(network)
    if keywords.get("keys") is None:
        keywords["keys"] = stateless.fresh_keys(len(arguments[0]))
    output, seen = network(*arguments, training=False, return_context=True, **keywords)
    initial = layer.initial(keywords["keys"])
    maps = seen.before, seen.after
    return output, look(layer, maps, seen.hams, initial, num_steps=num_steps)


def look(layer, maps, found, initial, *, num_steps=None):
    """What a Hamburger did in a forward pass.

    Args:
      layer: the Hamburger.
      maps: its input and its output, each [B, H, W, C].
      found: {ham: `decomposition.Factors`} of that pass.
      initial: {ham: initial bases} of that pass.
      num_steps: as of `inspect`.

    Returns:
      The `Inspection`.

    Raises:
      ValueError: num_steps is negative.
    """
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"inspect: num_steps must not be negative, got {num_steps}.")
    if num_steps is None:
        num_steps = layer.num_steps if layer.eval_steps is None else layer.eval_steps
    # Rows of errors, one for each number of updates.
    errors = {name: [] for name in found}
    for steps in range(num_steps + 1):
        for name, ham in layer.decompose(maps[0], initial, num_steps=steps).items():
            errors[name].append(reconstruction_error(ham.x, ham.product()))
    hams = {
        name: Ham(
            x=ham.x.numpy(),
            y=ham.product().numpy(),
            errors=np.stack(errors[name]),
            bases=_of_matrices(initial[name]).numpy(),
        )
        for name, ham in found.items()
    }
    as_float = [np.asarray(tf.cast(each, tf.float32)) for each in maps]
    return Inspection(*as_float, hams, _gate_of(layer))


def _gate_of(layer):
    """How much of the hams is added: 1 in Hamburgers of segmentation but V2+, which learns it."""
    gate = getattr(layer, "gate", getattr(layer, "coef_ham", None))
    return 1.0 if gate is None else float(tf.squeeze(tf.convert_to_tensor(gate)).numpy())


def _of_matrices(bases):
    """[B, S, D, R] -> [B*S, D, R]."""
    return tf.reshape(bases, [-1, *bases.shape[2:]])


def hamburger_of(network):
    """The Hamburger of a network. Raises: ValueError: it has none."""
    layer = network.context
    if not hasattr(layer, "decomposition"):
        has = "no context module" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(
            f"This {type(network).__name__.lower()} has no Hamburger, but {has}: there is no "
            "decomposition to look at."
        )
    return layer


def reconstruction_error(x, y):
    """|x - y| / |x| of each matrix in the Frobenius norm, in float64: [B, N, D] twice -> [B]. 0
    where x is 0.
    """
    x, y = np.float64(x), np.float64(y)
    norm = np.linalg.norm(x, axis=(1, 2))
    return np.linalg.norm(x - y, axis=(1, 2)) / np.where(norm == 0, 1, norm)


def accumulative_ratio(matrices):
    """How much of a matrix its largest singular values hold.

    Args:
      matrices: [B, N, D].

    Returns:
      [B, min(N, D)] float64: entry i is the sum of squares of the i + 1 largest singular values,
        divided by that of
      all; the last one is 1. For a matrix of zeros all entries are 1.
    """
    squares = np.linalg.svd(np.float64(matrices), compute_uv=False) ** 2
    sums = np.cumsum(squares, axis=-1)
    total = sums[:, -1:]
    return np.where(total == 0, 1.0, sums / np.where(total == 0, 1, total))


def summary(inspection):
    """The inspection's numbers in a form for JSON.

    Returns:
      {'gate': number, 'rank': {ham: R}, 'accumulative_ratio': {matrix: curve},
        'reconstruction_error': {ham: curve}}.
      A curve is {'mean', 'low', 'high': list}, low and high the 10th and 90th percentile of the
        batch. Entry i of a
      ratio belongs to i + 1 singular values, entry k of an error to k updates. A ratio also has
      'values_for_90' and 'values_for_99', how many singular values hold that many percent.
    """
    ratios = {
        name: accumulative_ratio(matrices) for name, matrices in inspection.matrices().items()
    }
    return {
        "gate": inspection.gate,
        "rank": {name: ham.rank for name, ham in inspection.hams.items()},
        "accumulative_ratio": {
            name: {
                **_spread(ratio),
                # The first entry at or above the share, of the batch's mean; the mean ends at 1 up
                # to rounding.
                "values_for_90": int(np.searchsorted(ratio.mean(axis=0), 0.90)) + 1,
                "values_for_99": int(np.searchsorted(ratio.mean(axis=0), 0.99)) + 1,
            }
            for name, ratio in ratios.items()
        },
        "reconstruction_error": {
            name: _spread(ham.errors.T) for name, ham in inspection.hams.items()
        },
    }


def _spread(values):
    low, high = np.percentile(values, [10, 90], axis=0)
    return {"mean": values.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}


# Pictures

_COLOURS = ("#9a9a9a", "#08519c", "#b2182b", "#e08214", "#2ca25f", "#252525")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 9,
}


def draw_curves(numbers, path, *, title=None):
    """Draws accumulative ratios and reconstruction errors of a `summary` into a PNG file."""
    with matplotlib.rc_context(_STYLE):
        figure = mpl_figure.Figure(figsize=(11, 4.2), layout="constrained", dpi=110)
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for colour, (name, ratio) in zip(
            _COLOURS, numbers["accumulative_ratio"].items(), strict=False
        ):
            # Before and after may lie on each other: the one drawn later has gaps.
            style = "--" if name == "output of the Hamburger" else "-"
            _band(left, np.arange(1, len(ratio["mean"]) + 1), ratio, colour, name, linestyle=style)
        rank = max(numbers["rank"].values())
        left.axvline(rank, color="#888888", linewidth=0.8, linestyle=":")
        at_top = dict(xycoords=left.get_xaxis_transform(), textcoords="offset points", ha="center")
        left.annotate(f"r = {rank}", (rank, 1.0), (0, 3), color="#666666", **at_top)
        longest = max(len(ratio["mean"]) for ratio in numbers["accumulative_ratio"].values())
        left.set(xscale="log", xlim=(1, longest), ylim=(0, 1.02), xlabel="largest singular values")
        left.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        left.xaxis.set_major_locator(ticker.LogLocator(base=2, numticks=20))
        left.minorticks_off()
        left.set_title("Share of the sum of squares of all singular values", loc="left", fontsize=9)
        left.legend(frameon=False, loc="lower right")
        for colour, (name, error) in zip(
            _COLOURS[1:], numbers["reconstruction_error"].items(), strict=False
        ):
            _band(
                right, np.arange(len(error["mean"])), error, colour, f"ham over {name}", marker="o"
            )
        right.set(ylim=(0, None), xlabel="updates k")
        right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        right.set_title("Error of the decomposition, |X - Y| / |X|", loc="left", fontsize=9)
        if len(numbers["reconstruction_error"]) > 1:
            right.legend(frameon=False)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        _save(figure, path)


def _band(axes, x, curve, colour, label, **kwargs):
    axes.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, curve["mean"], color=colour, label=label, markersize=4, **kwargs)


def draw_maps(inspection, images, path, *, examples=3, channels=7, title=None):
    """Draws feature maps before and after the Hamburger, and before and after its ham, into a PNG
    file.

    Each pair shows the mean over channels, and the channels of the greatest variance before, in one
    scale for both.

    Args:
      inspection: an `Inspection`.
      images: [B, S, S, 3] in [-1, 1], drawn beside.
      path: the file, local or remote.
      examples: how many of the batch.
      channels: how many at most.
      title: a line above, or None.
    """
    maps = inspection.maps()
    names = list(maps)
    images = pictures.to_uint8(images[:examples])
    count = len(images)
    channels = min(channels, *(maps[name].shape[-1] for name in names))
    pairs = list(zip(names[::2], names[1::2], strict=True))
    # Over the batch, so that a column is one channel in all examples.
    chosen = [
        np.argsort(-maps[before].var(axis=(0, 1, 2)), kind="stable")[:channels]
        for before, _ in pairs
    ]
    with matplotlib.rc_context({"font.size": 8}):
        figure = mpl_figure.Figure(
            figsize=(1.05 * channels + 3.7, 4.3 * count + 0.6), layout="constrained", dpi=110
        )
        for example, part in enumerate(np.atleast_1d(figure.subfigures(count, 1, hspace=0.02))):
            grid = part.subplots(2 * len(pairs), channels + 2, squeeze=False)
            for axes in grid.flat:
                axes.axis("off")
            grid[0, 0].imshow(images[example])
            for index, pair in enumerate(pairs):
                rows = grid[2 * index : 2 * index + 2, 1:]
                _draw_pair(rows, [maps[name][example] for name in pair], pair, chosen[index])
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        _save(figure, path)


def _draw_pair(grid, pair, names, chosen):
    """Two rows of axes, [2, 1 + channels]: the mean, then the chosen channels, of each of a pair
    [H, W, C].
    """
    for column, channel in enumerate([None, *chosen]):
        parts = [maps.mean(axis=-1) if channel is None else maps[..., channel] for maps in pair]
        low, high = min(part.min() for part in parts), max(part.max() for part in parts)
        for axes, part in zip(grid[:, column], parts, strict=True):
            axes.imshow(part, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        grid[0, column].set_title("mean" if channel is None else f"channel {channel}", fontsize=7)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name.replace(" of", "\nof"), rotation=0, ha="right", va="center")


def _save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    records.write_whole(path, buffer.getvalue())
