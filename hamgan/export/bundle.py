"""A folder with a trained network in the forms asked for, each compared with the original."""

import os

import tensorflow as tf

from hamgan import grids, pictures
from hamgan.evaluation import settings
from hamgan.export import card, check, onnx_graph, saved_model
from hamgan.run import contents, records
from hamgan.run.folder import Folder

FORMATS = {
    "saved_model": "TensorFlow SavedModel of the generator; needs none of hamgan",
    "keras": "generator.keras, discriminator.keras: for keras.models.load_model, with hamgan",
    "onnx": "generator.onnx: z and label to pixels, of any batch",
    "card": "README.md: model card; samples.png",
}


def check_formats(formats, output):
    """ValueError for what can't be written, before anything is built."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--formats must be of {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}."
        )
    if "onnx" in formats:
        onnx_graph.check()
    if tf.io.gfile.exists(output) and tf.io.gfile.listdir(output):
        raise ValueError(f"{output} isn't empty: nothing is written over. Choose another --output.")


class Bundle:
    """An export.

    Args:
      output: the folder, local, as people find it in the end.
      folder: what is written into, of `records.writing_folder(output)`.
      generator: with the checkpoint's weights.
      discriminator: likewise, or None.
      sampler: a `sampling.Sampler` of the generator.
      batch_norm: where batch norm has its moments from, as in `saved_model.bake_moments`.
      seed: of the noise, as in `sampling.Sampler`.
      class_names: by label.
      report: function of a line.
    """

    def __init__(
        self,
        output,
        *,
        folder,
        generator,
        discriminator,
        sampler,
        batch_norm,
        seed,
        class_names,
        report=print,
    ):
        self.output, self._folder = output, folder
        self._generator = generator
        self._discriminator = discriminator
        self._sampler = sampler
        self._seed = seed
        self._class_names = class_names
        self._report = report
        self._files = {}
        saved_model.bake_moments(generator, batch_norm, seed)

    def _path(self, name):
        return os.path.join(self._folder, name)

    def _named(self, name):
        """As people find it in the end."""
        return os.path.join(self.output, name)

    def write(self, formats, *, about):
        """Writes `FORMATS`, the card last; `about` is a text that the SavedModel keeps."""
        for name in [name for name in FORMATS if name in formats and name != "card"]:
            getattr(self, f"_write_{name}")(about)

    def _write_saved_model(self, about):
        path = self._path("saved_model")
        names = self._class_names
        saved_model.save(path, self._generator, class_names=names, seed=self._seed, about=about)
        difference = check.check_saved_model(path, self._sampler)
        self._files["saved_model"] = FORMATS["saved_model"]
        self._report(
            f"{self._named('saved_model')}: loaded where hamgan can't be imported, pixels differ "
            f"by {difference:.1e}."
        )

    def _write_keras(self, about):
        del about
        z, labels, keys = self._sampler.inputs(tf.range(4))
        images = self._generator(z, labels, training=False, keys=keys)
        networks = {"generator": (self._generator, z)}
        if self._discriminator is not None:
            networks["discriminator"] = (self._discriminator, images)
        for name, (network, inputs) in networks.items():
            path = self._path(f"{name}.keras")
            network.save(path)
            difference = check.check_keras(path, network, inputs, labels, keys)
            self._files[f"{name}.keras"] = "Keras model, which needs hamgan"
            self._report(
                f"{self._named(name)}.keras: keras.models.load_model, after import "
                f"hamgan.networks; loaded again, outputs differ by {difference:.1e}."
            )

    def _write_onnx(self, about):
        del about
        path = self._path("generator.onnx")
        onnx_graph.save(path, self._generator, seed=self._seed)
        difference = check.check_onnx(path, self._generator, seed=self._seed)
        self._files["generator.onnx"] = (
            "ONNX graph of z and label; its initial bases are constants, those of the "
            "SavedModel's signature z. Nothing is checked: z must be finite, label be in 0 to "
            f"{self._generator.num_classes - 1}, as many as z has rows"
        )
        compared = (
            "onnxruntime isn't installed, so it isn't compared"
            if difference is None
            else f"onnxruntime's pixels differ by {difference:.1e}"
        )
        self._report(f"{self._named('generator.onnx')}: {compared}.")

    def write_card(self, model_dir, checkpoint, *, weights, facts, licence, info=None):
        """Writes model card and samples.

        Args:
          model_dir: the run's folder, whose records have the scores.
          checkpoint: its path.
          weights: 'raw' or 'ema', which of its weights these are.
          facts: {name: text} of the network.
          licence: SPDX identifier of the weights' licence, or None.
          info: TFDS's description of the training images; None: they aren't here.
        """
        evaluations = card.evaluations_of(
            Folder(model_dir).metrics,
            checkpoint=contents.digest(checkpoint),
            weights=weights,
            generator=settings.digest_of(self._generator),
        )
        classes = grids.grid_classes(self._generator.num_classes)
        images, _ = self._sampler.sample(8 * len(classes), classes.repeat(8))
        pictures.save_grid(
            self._path("samples.png"),
            images,
            columns=8,
            row_labels=[self._class_names[c] for c in classes],
        )
        data = card.data_of(contents.read_identity(checkpoint), evaluations)
        text = card.card(
            title=Folder(model_dir).name,
            facts=facts,
            evaluations=evaluations,
            data=data,
            source=card.source_of(info, data),
            class_names=self._class_names,
            licence=licence,
            files=self._files,
        )
        records.write_whole(self._path("README.md"), text.encode())
        self._report(f"{self._named('README.md')}: model card.")
