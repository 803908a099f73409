"""Pictures of one checkpoint, as the controls say."""

import collections
import contextlib
import functools
import io
import os
import threading

import numpy as np
import tensorflow as tf
from PIL import Image

from hamgan import choices, inspection, pictures, sampling
from hamgan.drawing import choice, interpolation
from hamgan.exploring import ham_view
from hamgan.run import contents
from hamgan.serving import controls

# Looks whose programs and moments are kept.
_MOST_LOOKS = 8
# Requests that may wait for their turn; each holds a thread of the server.
_MOST_WAITING = 8


class Busy(RuntimeError):
    """More pictures are asked for than can be drawn in a while."""


class Studio:
    """Draws pictures of a checkpoint, one at a time, for any number of threads.

    All that is read from files is read when it is made; pictures are functions of what controls
    say, and equal to what `scripts/sample.py` draws with the same batch size on the same device.

    Args:
      experiment: the run's `Experiment`.
      checkpoint: its path.
      names: of the classes, by label.
      strategy: what to compute on.
      weights: which of `choices.WEIGHTS` to begin with; None: what the run is scored by.
      batch_size: images that a device makes at a time.
      seed: of the noise, as --seed of `scripts/sample.py`.

    Attributes:
      offer: the `controls.Offer`.
      about: {name: value} for the head of the page.

    Raises:
      ValueError: the checkpoint is of another configuration, or has no such weights.
    """

    def __init__(
        self, experiment, checkpoint, *, names, strategy, weights=None, batch_size=16, seed=0
    ):
        self._strategy = strategy
        self._batch_size = batch_size * strategy.num_replicas_in_sync
        self._seed = seed
        self._looks = collections.OrderedDict()
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        first = weights or experiment.protocol.weights
        held = contents.owners(checkpoint)
        others = (w for w, prefix in choices.WEIGHTS.items() if w != first and prefix in held)
        self._generators = {}
        with strategy.scope():
            for name in (first, *others):
                self._generators[name] = experiment.generator()
                sampling.restore(self._generators[name], checkpoint, weights=name)
            self._discriminator = None
            if "discriminator" in held:
                self._discriminator = experiment.discriminator()
                variables = contents.network_variables("discriminator", self._discriminator)
                contents.restore(checkpoint, variables, partial=True)
        self.offer = controls.Offer(
            names=tuple(names),
            weights=tuple(self._generators),
            networks=tuple(
                kind
                for kind, network in zip(
                    controls.NETWORKS,
                    (self._generators[first], self._discriminator),
                    strict=True,
                )
                if network is not None and _has_ham(network)
            ),
        )
        self.about = {
            # Not its path: where a run is on this machine is nobody's business.
            "checkpoint": os.path.basename(checkpoint),
            "step": int(contents.step_in(checkpoint)),
            "image_size": int(self._generators[first].image_size),
        }

    def images(self, asked):
        """uint8 [count, S, S, 3] of `controls.Images`."""
        seeds = np.arange(asked.seed, asked.seed + asked.count)
        labels = np.full(asked.count, asked.label)
        with self._turn(asked.look) as sampler:
            return _to_uint8(np.concatenate([i for i, _ in sampler.numbered(seeds, labels)]))

    def way(self, asked):
        """uint8 [steps + 1, S, S, 3] of a `controls.Way`."""
        seeds, classes = [asked.seed], [asked.label]
        (seeds if asked.way == "seeds" else classes).append(asked.end)
        with self._turn(asked.look) as sampler:
            found = interpolation.between(
                sampler, way=asked.way, classes=classes, seeds=seeds, steps=asked.steps
            )
            return _to_uint8(found[0])

    def ham(self, asked):
        """The picture of a `controls.Ham`, a PNG file's bytes.

        Raises:
          controls.Refused: a pixel is outside of the map, or the ham has no factors.
        """
        generator = self._generators[asked.look.weights]
        device = tf.device(self._strategy.extended.worker_devices[0])
        with self._turn(asked.look) as sampler, device:
            z, _, keys = sampler.inputs(tf.constant([asked.seed]))
            try:
                found = ham_view.of_sample(
                    generator,
                    self._discriminator,
                    z,
                    asked.label,
                    keys=keys,
                    network=asked.network,
                )
                title = f"{asked.network}, {self.offer.names[asked.label]}, seed {asked.seed}"
                return ham_view.png(found, pixels=asked.pixels, title=title)
            except ValueError as error:
                raise controls.Refused(str(error)) from error

    @contextlib.contextmanager
    def _turn(self, look):
        """The sampler of a look, within its moments of batch norm, while nobody else draws."""
        if not self._waiting.acquire(blocking=False):
            raise Busy("Many pictures are being drawn: try again in a while.")
        try:
            with self._lock:
                sampler, applied = self._prepared(look)
                with applied():
                    yield sampler
        finally:
            self._waiting.release()

    def _prepared(self, look):
        """(sampler, context of its moments) of a look; moments are computed once for each."""
        if look not in self._looks:
            sampler = sampling.Sampler(
                self._generators[look.weights],
                strategy=self._strategy,
                batch_size=self._batch_size,
                seed=self._seed,
                truncation=look.truncation,
                psi=look.psi,
            )
            batch_norm = choice.batch_norm_named(look.batch_norm, sampler)
            seed = tf.constant(self._seed)
            applied = functools.partial(batch_norm.applied, seed)
            if look.batch_norm == "standing_statistics":
                batch_norm.compute(seed)
                applied = batch_norm.as_computed
            self._looks[look] = sampler, applied
        self._looks.move_to_end(look)
        while len(self._looks) > _MOST_LOOKS:
            self._looks.popitem(last=False)
        return self._looks[look]


def _has_ham(network):
    try:
        inspection.hamburger_of(network)
    except ValueError:
        return False
    return True


def _to_uint8(images):
    try:
        return pictures.to_uint8(images)
    except ValueError as error:
        raise controls.Refused(str(error)) from error


def row(images):
    """Images uint8 [N, S, S, 3] side by side in rows of at most nine, white where none is left, as
    a PNG file's bytes.
    """
    count, height, width, channels = images.shape
    columns = min(count, 9)
    blank = np.full([-count % columns, height, width, channels], 255, np.uint8)
    table = np.concatenate([images, blank]).reshape(-1, columns, height, width, channels)
    whole = table.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, format="PNG")
    return buffer.getvalue()
