"""From a checkpoint to a record: exactly N samples, their features, and the scores.

An evaluation is known by checkpoint, protocol and seed. Its features are kept in shards below
`work_dir` until it is finished, then its record: what is interrupted goes on, and what has been
done isn't done twice.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from hamgan import distribution, sampling
from hamgan.evaluation import embedding, finished, neighbours, reference, scoring, settings, shards
from hamgan.evaluation.protocol import Protocol, describe, in_words
from hamgan.run import contents, history, pins, records
from hamgan.run.identity import data_differences

# A checkpoint that is rewritten while it is read is read again, so often at most.
_READINGS = 10


class Gone(ValueError):
    """A checkpoint that was there isn't any more."""


class Evaluator:
    """Scores a generator against real images under one protocol.

    Args:
      generator: the networks' generator; its weights are those of the moment `evaluate` is called.
      strategy: the strategy in whose scope it was made.
      dataset: a `hamgan.data.ImageDataset`.
      protocol: a `Protocol`.
      data_dir: where reference features are kept (in work_dir, if it can only be read), and what
        '{data_dir}' in the network's handle stands for.
      work_dir: where unfinished work and finished records are kept, e.g. model_dir/evaluation;
        None: nowhere.
      share: the `shards.Share` of this host; None: all the work.
      keep_features: leave the samples' features in work_dir when their record is written.
      changed: in words, which settings of the generator aren't those of the run; None: none.
      progress: draw progress bars.

    Raises:
      ValueError: the data set has fewer images than the reference needs, or a part of the protocol
        can't be used.
    """

    def __init__(
        self,
        *,
        generator,
        strategy: tf.distribute.Strategy,
        dataset,
        protocol: Protocol,
        data_dir: str | None = None,
        work_dir: str | None = None,
        share: shards.Share | None = None,
        keep_features: bool = False,
        changed: str | None = None,
        progress: bool = True,
    ):
        self.protocol = protocol
        self.generator = generator
        self._strategy = strategy
        self._dataset = dataset
        self._data_dir = data_dir
        self._work_dir = work_dir
        self._share = share or shards.Share()
        self._keep_features = keep_features
        self._embedder = embedding.Embedder(
            strategy=strategy, protocol=protocol, data_dir=data_dir, progress=progress
        )
        self.network = self._embedder.network
        self._batch_size = self._embedder.batch_size
        self._sampler = sampling.Sampler(
            generator,
            strategy=strategy,
            batch_size=self._batch_size,
            truncation=protocol.truncation,
            labels=protocol.labels(dataset),
        )
        self._batch_norm = protocol.batch_norm(self._sampler)
        self._reference_fingerprint = reference.fingerprint(
            dataset, network=self.network, protocol=protocol
        )
        self.description = describe(
            protocol, batch_norm=self._batch_norm, reference=self._reference_fingerprint
        )
        self._generator_settings = {
            "digest": settings.digest_of(generator),
            "precision": generator.dtype_policy.name,
            **({"words": changed} if changed else {}),
        }
        self._measures = [in_words(function) for function in protocol.scores]
        self._reference: reference.Reference | None = None

    @tf.function(autograph=False)
    def _embed_generated(self, first, seed):
        def of_replica(first, seed):
            images, _ = self._sampler.of_replica(first, seed=seed)
            return self._embedder.outputs(images)

        outputs = self._strategy.run(of_replica, args=(first, seed))
        return {name: distribution.gather(self._strategy, value) for name, value in outputs.items()}

    def reference(self) -> reference.Reference | None:
        """The real images' features; built at the first use. None on hosts other than 0 that have
        had to build.
        """
        if self._reference is None:
            self._reference = self._embedder.reference(
                self._dataset,
                data_dir=self._data_dir,
                spare_dir=self._work_dir,
                share=self._share,
            )
        return self._reference

    def generated_outputs(
        self,
        *,
        seed: int | None = None,
        folder: str | None = None,
        about: dict[str, Any] | None = None,
    ) -> shards.Shards:
        """The features of the samples 0 to N - 1, as far as this host has to compute them.

        Args:
          seed: of the samples; None: the protocol's.
          folder: where they are kept, and what is there isn't computed again; None: in memory.
          about: what decides them, kept with them.

        Returns:
          `shards.Shards` of 'pool_3' [N, D] and 'logits' [N, C], float32.

        Raises:
          ValueError: features that aren't finite.
        """
        parts = shards.Shards(
            folder,
            count=self.protocol.num_samples,
            batch_size=self._batch_size,
            about=about,
        )
        work = [
            (part, first)
            for part in parts.missing(self._share)
            for first in range(*part, self._batch_size)
        ]
        if not work:
            return parts
        seed = tf.constant(self.protocol.seed if seed is None else seed)
        with self._batch_norm.applied(seed):
            done = []
            for part, first in self._embedder.bar(work, "samples", len(work)):
                done.append(
                    {
                        name: value.numpy()
                        for name, value in self._embed_generated(tf.constant(first), seed).items()
                    }
                )
                if first + self._batch_size >= part[1]:
                    rows = part[1] - part[0]
                    parts.write(
                        part,
                        {name: np.concatenate([d[name] for d in done])[:rows] for name in done[0]},
                    )
                    done = []
        return parts

    def restore(self, checkpoint: str) -> None:
        """Reads the protocol's weights, raw or their moving average; ValueError as
        `sampling.restore`.
        """
        sampling.restore(self.generator, checkpoint, weights=self.protocol.weights)

    def evaluate(
        self, *, checkpoint: str, step: int, seed: int | None = None, digest: str | None = None
    ) -> history.Record | None:
        """Scores the generator as it is.

        Args:
          checkpoint: the path its weights came from.
          step: the training step of these weights.
          seed: of the samples; None: the protocol's.
          digest: of the checkpoint when its weights were read; None: that of the file, which is
            theirs.

        Returns:
          The record, a dictionary for `records.append`: that of `work_dir` if this has been done
          before. None on hosts other than 0 of a share.

        Raises:
          ValueError: features that aren't finite; as `reference`; other hosts don't finish their
            part.
        """
        seed = self.protocol.seed if seed is None else seed
        digest = digest or contents.digest(checkpoint)
        about = self._about(digest, seed)
        folder = None
        if self._work_dir and digest:
            key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
            folder = os.path.join(self._protocol_folder(), f"{digest}-seed{seed}-{key}")
            found = finished.find(
                folder + ".json", self._measures, about
            ) or self._of_earlier_version(checkpoint, digest, seed)
            if found:
                # The same weights, by whatever name they were scored.
                return {**found, "checkpoint": checkpoint, "step": step}
        start = time.monotonic()
        try:
            found = self._scores(checkpoint, seed, folder, about)
        except (ValueError, tf.errors.OpError):
            # Another process that did the same work may have finished first, and removed the
            # features.
            if folder and (record := finished.find(folder + ".json", self._measures, about)):
                return record
            raise
        if found is None:
            return None
        record = self._record(
            found, checkpoint=checkpoint, step=step, seed=seed, digest=digest, start=start
        )
        if folder:
            here = {**about, "measures": tuple(self._measures)}

            def is_there(others):
                return any(finished.describes(other, here) for other in others)

            records.append(folder + ".json", record, unless=is_there)
            if not self._keep_features and tf.io.gfile.isdir(folder):
                tf.io.gfile.rmtree(folder)
        return record

    def _about(self, digest, seed):
        """All that decides the numbers of an evaluation."""
        return {
            "checkpoint_digest": digest,
            "seed": seed,
            "protocol": self.description["fingerprint"],
            "generator": self._generator_settings["digest"],
            "content": self._reference_fingerprint["content"],
        }

    def _protocol_folder(self):
        return os.path.join(
            self._work_dir, f"{self.description['name']}-{self.description['fingerprint']}"
        )

    def _of_earlier_version(self, checkpoint, digest, seed):
        """The record of a version that kept neither the generator's settings nor the data's digest:
        it counts for the run's own settings, if the data is older.
        """
        if "words" in self._generator_settings:
            return None
        name = f"{os.path.basename(checkpoint)}-{digest}-seed{seed}"
        found = finished.find(os.path.join(self._protocol_folder(), name) + ".json", self._measures)
        changed = self._dataset.last_change(self._reference_fingerprint["split"])
        return found if found and found["time"] > changed else None

    def _record(self, found, *, checkpoint, step, seed, digest, start):
        return {
            "kind": "evaluation",
            "step": step,
            "time": time.time(),
            "checkpoint": checkpoint,
            "checkpoint_digest": digest,
            **found,
            "measures": self._measures,
            "protocol": self.description,
            "num_samples": self.protocol.num_samples,
            "seed": seed,
            "quantize": self.protocol.quantize,
            "labels": in_words(self.protocol.labels),
            "batch_norm": self._batch_norm.words,
            "weights": self.protocol.weights,
            "features": self.network.identity(),
            "reference": self._reference_fingerprint,
            "generator": self._generator_settings,
            "seconds": round(time.monotonic() - start, 2),
        }

    def _scores(self, checkpoint, seed, folder, about):
        """The scores of the generator as it is; None on hosts other than 0."""
        real = self.reference()
        try:
            generated = self.generated_outputs(seed=seed, folder=folder, about=about)
        except shards.NotFinite as error:
            raise shards.NotFinite(
                f"{checkpoint}: {error}. The generator has diverged at this checkpoint."
            ) from error
        if self._share.index:
            return None
        generated.wait(self._share)
        found = scoring.scores(real, generated, self.protocol)
        num_features = real.features.shape[1]
        if words := scoring.too_few(num_features, self.protocol.num_samples, len(real.features)):
            found["caution"] = words
        return found

    def compare_with_training(
        self, model_dir: str, *, step: int, num_samples: int = 1000, num_training: int = 50_000
    ) -> dict[str, Any] | None:
        """Looks for the training images nearest to samples of the generator as it is, and keeps
        what it finds.

        With several hosts all must call it; one of them writes.

        Args:
          model_dir: the run's folder; see `neighbours.write`.
          step: the training step of the weights.
          num_samples: samples, the first ones of the protocol's seed.
          num_training: training images at most, the first ones; their features are kept like a
            reference's.

        Returns:
          As `neighbours.memorisation`; None on hosts that leave the writing to another one, and
          where there is one training image.
        """
        split = self._dataset.train_split
        if self._dataset.num_examples(split) < 2:
            return None  # no image has a neighbour
        training: Any = reference.load_or_build(
            self._dataset,
            network=self.network,
            embed=self._embedder,
            protocol=dataclasses.replace(
                self.protocol,
                name=None,  # these aren't its settings
                reference_split=split,
                reference_count=min(num_training, self._dataset.num_examples(split)),
                reference_repeated=0,
                reference_folder=None,
            ),
            batch_size=self._batch_size,
            cache_dir=self._data_dir,
            spare_dir=self._work_dir,
            progress=self._embedder.bar,
        )
        # With the training split as reference there are no images that the generator has never
        # seen.
        held_out = None
        if self._reference_fingerprint["split"] != split:
            real: Any = self.reference()
            held_out = real.features
        images, features = [], []
        with self._batch_norm.applied(tf.constant(self.protocol.seed)):
            for batch, _ in self._sampler.batches(num_samples):
                images.append(batch)
                features.append(self._embedder(batch)["pool_3"])
        if not distribution.is_chief(self._strategy):
            return None
        return neighbours.write(
            model_dir,
            step=step,
            images=np.concatenate(images),
            generated=np.concatenate(features),
            training=training.in_stored_order(),
            held_out=held_out,
            dataset=self._dataset,
            split=split,
        )

    def evaluate_checkpoint(
        self, checkpoint: str, *, repeats: int | None = None
    ) -> Iterator[history.Record]:
        """Scores exactly this checkpoint, as often as asked for.

        Args:
          checkpoint: its path. It can't be deleted by the trainer's rotation meanwhile.
          repeats: evaluations, each with the next seed; None: the protocol's number.

        Yields:
          The records, then with several repeats their `history.aggregate`. Nothing on hosts other
          than 0.

        Raises:
          ValueError: as `evaluate`; the checkpoint isn't there, or is of another configuration,
            or of a run on other images under the same name.
        """
        seeds = [self.protocol.seed + repeat for repeat in range(repeats or self.protocol.repeats)]
        with pins.pinned(checkpoint):
            found: list[history.Record] = []
            digest, step = self._read(checkpoint)
            while len(found) < len(seeds):
                record = self.evaluate(
                    checkpoint=checkpoint, step=step, seed=seeds[len(found)], digest=digest
                )
                if record is None:
                    return
                if contents.digest(checkpoint) != digest:
                    # Rewritten meanwhile, as after a rollback: the new weights are scored.
                    found = []
                    digest, step = self._read(checkpoint)
                    continue
                found.append(record)
                yield record
        if len(found) > 1:
            yield history.aggregate(found)

    def _read(self, checkpoint: str) -> tuple[str, int]:
        """Reads the weights; returns (digest of the checkpoint that they are of, its step)."""
        for _ in range(_READINGS):
            before = contents.digest(checkpoint)
            if before is None:
                raise Gone(f"{checkpoint} was deleted, or the run went back behind it.")
            try:
                self._check_data(checkpoint)
                with pins.being_read(checkpoint):
                    step = contents.step_in(checkpoint)
                    self.restore(checkpoint)
            except contents.Damaged:
                if contents.digest(checkpoint) == before:
                    raise
            if contents.digest(checkpoint) == before:
                return before, step
        raise ValueError(f"{checkpoint} was rewritten {_READINGS} times while it was read.")

    def _check_data(self, checkpoint):
        """Refuses other images than the run's under the same name and version."""
        of_run = contents.read_identity(checkpoint)
        if of_run is None or not of_run.data:
            return
        now = self._dataset.identity()
        same = all(of_run.data.get(name) == now[name] for name in ("name", "version"))
        if lines := data_differences(of_run.data, now) if same else ():
            raise ValueError(
                f"{checkpoint} was trained on other images than those that {self._dataset.name} "
                "holds now:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nPut the images of the run back, or give the new ones a name of their own."
            )
