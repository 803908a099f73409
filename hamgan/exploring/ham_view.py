"""What a ham found in one image: its codes as maps, and the image without each of its bases."""

import dataclasses
import io

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib import figure as mpl_figure

from hamgan import decomposition, inspection, pictures
from hamgan.run import records


@dataclasses.dataclass(frozen=True)
class View:
    """One image, as a network's ham sees it.

    Attributes:
      image: [S, S, 3] in [-1, 1].
      codes: [S', H, W, R] float32, what each pixel has of each base; S' sections.
      bases: [S', D, R] float32.
      without: [S' * R, ...], the network's output with one base switched off: images [S, S, 3], or
        logits [1].
      by_steps: {K: output}.
      by_seed: {seed: output}, of other initial bases.
      output: the network's own.
    """

    image: np.ndarray
    codes: np.ndarray
    bases: np.ndarray
    without: np.ndarray
    by_steps: dict
    by_seed: dict
    output: np.ndarray

    def effects(self):
        """[S' * R], the mean absolute change of the output by each base."""
        change = np.abs(self.without - self.output)
        return change.reshape(len(change), -1).mean(axis=1)

    def codes_at(self, row, column):
        """[S' * R], the codes of a pixel of the map, as shares of the largest one there is."""
        codes = self.codes[:, row, column].reshape(-1)
        return codes / max(np.abs(self.codes).max(), 1e-12)


def view(network, inputs, label, *, keys, steps=range(8), seeds=4):
    """Looks at the ham over space of a network, for one example.

    Args:
      network: a `Generator` or `Discriminator` with a Hamburger.
      inputs: z [1, latent_dim], or an image [1, S, S, 3].
      label: its class.
      keys: [1, 2] of the initial bases.
      steps: the K to try.
      seeds: how many other draws of initial bases.

    Returns:
      A `View`.

    Raises:
      ValueError: the network has no Hamburger, or its decomposition gives no factors.
    """
    layer = inspection.hamburger_of(network)
    labels = np.array([label], np.int32)

    def run(keys=keys, **more):
        return network(inputs, labels, training=False, keys=keys, **more)

    output, seen = run(return_context=True)
    found = seen.hams["space"]
    if not isinstance(found, decomposition.Factors):
        raise ValueError(
            f"{layer.decomposition} gives no factors, so there are no codes or bases to look at."
        )
    height, width = seen.before.shape[1:3]
    sections, rank = layer.sections, found.bases.shape[-1]
    without = []
    for base in range(sections * rank):
        with layer.without(*divmod(base, rank)):
            without.append(run().numpy()[0])
    by_steps = {}
    before = layer.eval_steps
    try:
        for count in steps:
            layer.eval_steps = count
            by_steps[count] = run().numpy()[0]
    finally:
        layer.eval_steps = before
    others = {seed: np.asarray(keys) + [[0, seed]] for seed in range(1, seeds + 1)}
    is_image = len(np.shape(inputs)) == 4
    return View(
        image=np.asarray(inputs if is_image else output)[0],
        codes=found.coef.numpy().reshape(sections, height, width, rank),
        bases=found.bases.numpy(),
        without=np.stack(without),
        by_steps=by_steps,
        by_seed={
            seed: run(keys=np.asarray(of, np.int32)).numpy()[0] for seed, of in others.items()
        },
        output=output.numpy()[0],
    )


def of_sample(generator, discriminator, z, label, *, keys, network):
    """The view of one sample: in the generator, or in the discriminator that sees it.

    Args:
      generator, discriminator: the networks; the discriminator is asked for where it is looked at.
      z: noise [1, latent_dim].
      label: its class.
      keys: of the bases, [1, 2].
      network: 'generator' or 'discriminator'.
    """
    if network == "generator":
        return view(generator, z, label, keys=keys)
    images = generator(z, np.array([label], np.int32), training=False, keys=keys)
    return view(discriminator, images, label, keys=keys)


def draw(found, path, **settings):
    """Draws a view into one PNG file, local or remote; the rest as of `png`."""
    records.write_whole(path, png(found, **settings))


def png(found, *, pixels=(), most=16, title=None):
    """A view as one picture.

    Rows: the codes of the bases with the greatest effect, as maps; the image without each of them;
    for each chosen pixel its codes; the image by K, and by other initial bases.

    Args:
      found: a `View`.
      pixels: (row, column) of the map, to show the codes of.
      most: bases at most.
      title: a line above, or None.

    Returns:
      A PNG file's bytes.

    Raises:
      ValueError: a pixel is outside of the map.
    """
    height, width = found.codes.shape[1:3]
    for row, column in pixels:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"Pixels are [row, column] within the map of {height}x{width}, got {row}, {column}."
            )
    effects = found.effects()
    chosen = np.argsort(-effects, kind="stable")[:most]
    columns = 1 + max(len(chosen), len(found.by_steps), len(found.by_seed))
    with matplotlib.rc_context({"font.size": 7}):
        figure = mpl_figure.Figure(
            figsize=(1.1 * columns + 1, 1.35 * 4 + 1.4 * len(pixels) + 0.5),
            layout="constrained",
            dpi=110,
        )
        grid = figure.subplots(4 + len(pixels), columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        maps = np.moveaxis(found.codes, 3, 1).reshape(-1, height, width)
        _show(grid[0, 0], found.image, "image")
        for axes, base in zip(grid[0, 1:], chosen, strict=False):
            axes.imshow(maps[base], cmap="viridis", interpolation="nearest")
            axes.set_title(f"codes of base {base}")
            for row, column in pixels:
                axes.plot(column, row, "r+", markersize=5)
        outputs = {f"without {base}": found.without[base] for base in chosen}
        rows = {
            "as it is": outputs,
            "by K": {f"K = {k}": of for k, of in found.by_steps.items()},
            "by bases": {f"bases {seed}": of for seed, of in found.by_seed.items()},
        }
        for line, (name, row) in zip(grid[1:4], rows.items(), strict=True):
            _show(line[0], found.output, name)
            for axes, (label, output) in zip(line[1:], row.items(), strict=False):
                _show(axes, output, f"{label}\n{np.abs(output - found.output).mean():.2g}")
        for line, pixel in zip(grid[4:], pixels, strict=True):
            spec = line[0].get_gridspec()
            axes = figure.add_subplot(spec[4 + list(pixels).index(pixel), :])
            codes = found.codes_at(*pixel)
            axes.bar(np.arange(len(codes)), codes, color="#08519c")
            axes.set_title(f"codes of pixel {pixel[0]}, {pixel[1]} by base", loc="left")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _show(axes, output, label):
    if output.ndim == 3:
        axes.imshow(pictures.to_uint8(output))
    else:
        axes.text(0.5, 0.5, f"{float(tf.squeeze(output)):.3f}", ha="center")
    axes.set_title(label)


def numbers(found, pixels=()):
    """The view's numbers in a form for JSON."""
    return {
        "effects": found.effects().tolist(),
        "by_steps": {str(k): _change(of, found) for k, of in found.by_steps.items()},
        "by_bases": {str(seed): _change(of, found) for seed, of in found.by_seed.items()},
        "codes": [
            {"pixel": list(pixel), "codes": found.codes_at(*pixel).tolist()} for pixel in pixels
        ],
    }


def _change(output, found):
    return float(np.abs(output - found.output).mean())
