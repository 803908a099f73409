"""What `sample` does when its flags are read."""

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from hamgan import choices, distribution, grids, pictures, sampling
from hamgan.drawing import choice, films, interpolation, neighbourhood, outputs
from hamgan.evaluation import embedding, settings
from hamgan.run import checkpoints, class_names, contents, records
from hamgan.run.folder import Folder

# Rows or columns of a sheet beyond which nobody can see it.
_SHEET_COLUMNS = 64
# Seeds and labels of all images are held in memory.
_MOST = 10**7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of the command, by their names.

    Attributes: as the flags of `hamgan.cli.sample`.
    """

    model_dir: str
    output: str | None = None
    data_dir: str | None = None
    checkpoint: str | None = None
    classes: list[str] | None = None
    per_class: int | None = None
    seeds: list[str] | None = None
    count: int | None = None
    seed: int = 0
    weights: str | None = None
    batch_norm: str | None = None
    truncation: list[str] | None = None
    psi: list[str] | None = None
    batch_size: int = 16
    format: str | None = None
    interpolate: str | None = None
    steps: int = 8
    frames_per_second: int = 16
    nearest: int | None = None
    accelerator: str = "auto"
    tpu: str = "local"

    @property
    def path(self):
        return self.output or Folder(self.model_dir).samples

    @functools.cached_property
    def kind(self):
        """What is written: one of `outputs.FORMATS`, or 'film'."""
        if self.interpolate and self.path.endswith(films.ENDINGS):
            return "film"
        return self.format or outputs.format_of(self.path)

    @functools.cached_property
    def sweep(self):
        """[(row's name, truncation, psi)] of a sheet of several; one of them, unnamed, else."""
        truncations = _numbers("truncation", self.truncation) or [None]
        psis = _numbers("psi", self.psi) or [1.0]
        for value in truncations:
            sampling.check_truncation(value)
        for value in psis:
            sampling.check_psi(value)
        if len(truncations) > 1 and len(psis) > 1:
            raise ValueError("Only one of --truncation and --psi can have several values.")
        if len(truncations) > 1:
            return [(f"within {value:g}", value, psis[0]) for value in truncations]
        if len(psis) > 1:
            return [(f"psi {value:g}", truncations[0], value) for value in psis]
        return [(None, truncations[0], psis[0])]

    @functools.cached_property
    def numbers(self):
        """The seeds asked for; None: one after the other."""
        return None if self.seeds is None else choice.seeds(self.seeds)

    def check(self):
        """ValueError for what can't be, before anything is built."""
        kind, several = self.kind, len(self.sweep) > 1
        if kind in ("png", "npz") and (self.path.endswith("/") or tf.io.gfile.isdir(self.path)):
            raise ValueError(f"--format={kind} is one file, but --output={self.path} is a folder.")
        _ = self.numbers
        given = [n for n in ("per_class", "seeds", "count") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"Give one of --{' and --'.join(given)}: each says which seeds.")
        if self.count and (self.classes or several or self.interpolate):
            raise ValueError(
                "--count draws each image's class by its seed: it goes with none of --classes, "
                "--interpolate and several values of --truncation or --psi."
            )
        sheets = [n for n in ("interpolate", "nearest") if getattr(self, n)]
        sheets += ["truncation or psi of several values"] * several
        if len(sheets) > 1:
            raise ValueError(f"--{' and --'.join(sheets)} can't go together.")
        if sheets and kind not in ("png", "film"):
            films_too = " (or .gif or .mp4, a film)" if self.interpolate else ""
            raise ValueError(
                f"With --{sheets[0]} the --output must end in .png{films_too}, got {self.path!r}."
            )
        if kind == "film":
            films.check(self.path)


def _numbers(name, texts):
    """Flags of several numbers: ['0.5', '1'] -> [0.5, 1.0]."""
    if texts is not None and not texts:
        raise ValueError(f"--{name} must be numbers, got none.")
    try:
        return [float(text) for text in texts or []]
    except ValueError:
        raise ValueError(f"--{name} must be numbers, got {','.join(texts)!r}.") from None


class Drawing:
    """A request, with the generator that it is asked of.

    Args:
      request: a `Request`.
      experiment: the run's `Experiment`.
      changed: in words, which settings aren't the run's; None: none.
    """

    def __init__(self, request, experiment, *, changed=None):
        weights = request.weights or experiment.protocol.weights
        self.request = request = dataclasses.replace(request, weights=weights)
        self.experiment = experiment
        self._changed = changed
        self.checkpoint = checkpoints.find(request.model_dir, request.checkpoint)
        self.strategy = distribution.create_strategy(
            request.accelerator, request.tpu, across_hosts=False
        )
        with self.strategy.scope():
            self.generator = experiment.generator()
        self.names = class_names.read(request.model_dir, self.generator.num_classes)
        self.classes, self.columns = self._chosen()
        sampling.restore(self.generator, self.checkpoint, weights=request.weights)

    def _chosen(self):
        """(labels, the seeds of each class's row [classes][columns]); checked."""
        request = self.request
        count = self.generator.num_classes
        classes = (
            choice.classes(request.classes, self.names)
            if request.classes is not None
            else grids.grid_classes(count).tolist()
        )
        columns = request.count or len(request.numbers or []) or request.per_class or 10
        if request.numbers is not None:
            rows = [request.numbers] * len(classes)
        elif request.interpolate == "seeds":
            rows = [list(range(request.per_class or 4))] * len(classes)
        else:  # one after the other, a row's end to the next row's begin
            rows = [range(i * columns, (i + 1) * columns) for i in range(len(classes))]
        images = request.count or len(classes) * columns
        if images > _MOST:
            raise ValueError(f"At most {_MOST:,} images are drawn at a time, got {images:,}.")
        if request.kind == "png" and not request.interpolate:
            outputs.check_picture(
                images * len(request.sweep) * (1 + (request.nearest or 0)),
                self.generator.image_size,
            )
        return classes, rows

    @functools.cached_property
    def batch_norm(self):
        """Where batch norm has its moments from, by the flag's names."""
        return self.request.batch_norm or choices.BATCH_NORM_OF[self.request.weights]

    def sampler(self, truncation, psi):
        """A sampler of this request."""
        replicas = self.strategy.num_replicas_in_sync
        return sampling.Sampler(
            self.generator,
            strategy=self.strategy,
            batch_size=self.request.batch_size * replicas,
            seed=self.request.seed,
            truncation=truncation,
            psi=psi,
        )

    def applied(self, sampler):
        """The context within which the sampler has the moments asked for."""
        batch_norm = choice.batch_norm_named(self.batch_norm, sampler)
        return batch_norm.applied(tf.constant(self.request.seed))

    def about(self, truncation, psi):
        """What decides an image beside class and seed, for records."""
        found = {
            "checkpoint": contents.digest(self.checkpoint),
            "step": contents.step_in(self.checkpoint),
            "generator": settings.digest_of(self.generator),
            "weights": choices.WEIGHTS[self.request.weights],
            "batch_norm": self.batch_norm,
            "truncation": truncation,
            "psi": psi,
            "seed": self.request.seed,
        }
        if self.batch_norm == "batch":  # images are then of their batch
            found["batch_size"] = self.request.batch_size
        return found | ({"changed": self._changed} if self._changed else {})

    def wanted(self, truncation, psi):
        """The `outputs.Wanted` of classes and seeds."""
        if self.request.count:
            seeds, labels = np.arange(self.request.count), None
        else:
            seeds = np.concatenate([np.asarray(row, np.int64) for row in self.columns])
            labels = np.repeat(self.classes, [len(row) for row in self.columns])
        about = self.about(truncation, psi)
        return outputs.Wanted(seeds, labels, names=self.names, about=about)


def check_place(request):
    """ValueError where the output can't be written, before anything is drawn."""
    # A folder of files is made where it isn't there; one file, or a data set, is in a folder.
    folder = request.path if request.kind == "folder" else os.path.dirname(request.path.rstrip("/"))
    if not records.can_write(folder or "."):
        raise ValueError(f"{folder or '.'} can't be written to: choose another --output.")


def run(request, experiment, *, changed=None):
    """Draws what is asked for, and says what it was."""
    drawing = Drawing(request, experiment, changed=changed)
    check_place(request)
    ((_, truncation, psi), *others) = request.sweep
    sampler = drawing.sampler(truncation, psi)
    if others:
        done = _draw_sweep(drawing)
    elif request.interpolate:
        done = _draw_interpolation(drawing, sampler)
    elif request.nearest:
        done = _draw_nearest(drawing, sampler, drawing.wanted(truncation, psi))
    else:
        done = _draw_samples(drawing, sampler, drawing.wanted(truncation, psi))
    print(f"{done} of {drawing.checkpoint}: {request.path}")
    if not request.count:
        names = [f"{drawing.names[label]} (#{label})" for label in drawing.classes]
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        print(f"Classes: {', '.join(names[:12])}{more}")


def _draw_samples(drawing, sampler, wanted):
    request = drawing.request
    writers = {
        "folder": outputs.write_folder,
        "npz": outputs.write_npz,
        "tfds": outputs.write_tfds,
    }
    with drawing.applied(sampler):
        if request.kind in writers:
            writers[request.kind](request.path, sampler, wanted)
        else:
            images, labels = outputs.draw_all(sampler, wanted)
            _save_grid(drawing, images, labels)
    return f"{len(wanted):,} samples"


def _save_grid(drawing, images, labels):
    names = [drawing.names[c] for c in drawing.classes]
    columns = len(drawing.columns[0])
    if drawing.request.count:  # rows of any classes, filled up with white
        columns = min(len(images), int(np.ceil(np.sqrt(len(images)))))
        blank = np.full([-len(images) % columns, *images.shape[1:]], 255, np.uint8)
        images, names = np.concatenate([images, blank]), None
    pictures.save_grid(drawing.request.path, images, columns=columns, row_labels=names)


def _draw_sweep(drawing):
    """One row for each value of truncation or psi, the same samples in each."""
    rows, columns = [], sum(len(row) for row in drawing.columns)
    if columns > _SHEET_COLUMNS:
        raise ValueError(
            f"A sheet has at most {_SHEET_COLUMNS} samples in a row, got {columns}: name fewer "
            "--classes, or a smaller --per_class."
        )
    for _, truncation, psi in drawing.request.sweep:
        sampler = drawing.sampler(truncation, psi)
        with drawing.applied(sampler):
            rows.append(outputs.draw_all(sampler, drawing.wanted(truncation, psi))[0])
    pictures.save_grid(
        drawing.request.path,
        np.concatenate(rows),
        columns=columns,
        row_labels=[name for name, _, _ in drawing.request.sweep],
    )
    return f"{columns:,} samples with {len(rows)} truncations"


def _draw_interpolation(drawing, sampler):
    request = drawing.request
    seeds = list(drawing.columns[0])
    if request.numbers is None and request.interpolate == "classes":
        seeds = list(range(request.per_class or 1))
    by_class = request.interpolate == "seeds"
    paths, ends = (
        (len(drawing.classes), len(seeds)) if by_class else (len(seeds), len(drawing.classes))
    )
    interpolation.check_ends(request.interpolate, ends)  # moments take their time
    # A film shows one image of each way at a time.
    at_once = 1 if request.kind == "film" else (ends - 1) * request.steps + 1
    outputs.check_picture(paths * at_once, drawing.generator.image_size)
    with drawing.applied(sampler):
        images = interpolation.between(
            sampler,
            way=request.interpolate,
            classes=drawing.classes,
            seeds=seeds,
            steps=request.steps,
        )
    if request.kind == "film":
        films.write(request.path, images, frames_per_second=request.frames_per_second)
    else:
        names = (
            [drawing.names[c] for c in drawing.classes]
            if by_class
            else [f"seed {seed}" for seed in seeds]
        )
        flat = images.reshape(-1, *images.shape[2:])
        pictures.save_grid(request.path, flat, columns=images.shape[1], row_labels=names)
    return f"{images.shape[0]} ways of {images.shape[1]} images between {request.interpolate}"


def _draw_nearest(drawing, sampler, wanted):
    """Rows of a sample and its nearest training images."""
    request, experiment = drawing.request, drawing.experiment
    dataset = experiment.dataset(data_dir=request.data_dir)
    neighbourhood.check_count(request.nearest, dataset)  # before any sample is drawn
    embed = embedding.Embedder(
        strategy=drawing.strategy, protocol=experiment.protocol, data_dir=request.data_dir
    )
    with drawing.applied(sampler):
        images, labels = outputs.draw_all(sampler, wanted)
    images = images.astype(np.float32) / 127.5 - 1
    distances, found = neighbourhood.nearest_training_images(
        images, embed=embed, dataset=dataset, k=request.nearest
    )
    table = np.concatenate([images[:, None], found], axis=1)
    pictures.save_grid(
        request.path,
        table.reshape(-1, *images.shape[1:]),
        columns=table.shape[1],
        row_labels=[
            f"{drawing.names[label]}, seed {seed}: {distance:.3g}"
            for label, seed, distance in zip(labels, wanted.seeds, distances[:, 0], strict=True)
        ],
    )
    return f"{len(images):,} samples beside their {request.nearest} nearest training images"
