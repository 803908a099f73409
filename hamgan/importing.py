"""The import of a published checkpoint as a run's folder: what is told, decided, written, verified.

`hamgan.published` knows the checkpoints; here they become runs.
"""

import dataclasses
import functools
import os

import tensorflow as tf

from hamgan import arrays as named_arrays
from hamgan import choices, context, networks, published
from hamgan.run import checkpoints, class_names, contents, records
from hamgan.run.folder import Folder

KINDS = ("generator", "discriminator")
HAMBURGERS = {"hamburger_v1": context.Hamburger, "hamburger_v2": context.HamburgerV2}
ATTENTIONS = {"sagan": context.SelfAttention, "ylg": context.SparseAttention}
REPLAYS = {"generator": published.replay_generator, "discriminator": published.replay_discriminator}
OUTPUTS = {"generator": "images", "discriminator": "logits"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What names and shapes of a checkpoint don't tell, as given by flags.

    Attributes:
      ham, rank, sections, steps, attention: lists of one value for both networks or a pair, as
        strings; attention may be None.
      gin_files: of all other settings.
      verify: the record to replay, or None.
    """

    ham: list
    rank: list
    sections: list
    steps: list
    attention: list | None
    gin_files: list
    verify: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A network's context module.

    Attributes:
      constructor: class of `hamgan.context`, None for none.
      settings: {parameter: value as gin writes it}.
      note: on what was decided how.
    """

    constructor: type | None = None
    settings: dict = dataclasses.field(default_factory=dict)
    note: str = ""

    def __str__(self):
        name = self.constructor.__name__ if self.constructor else "no module"
        settings = "".join(f", {key} {value}" for key, value in self.settings.items())
        return name + settings + (f" ({self.note})" if self.note else "")


def hamburger(kind, network, told):
    """The `Module` of a network with a Hamburger, from the checkpoint and the flags.

    Without a record to compare with, a rank above d counts as a mistake: the default is that of
    published widths.
    """
    ham = _of_pair("ham", told.ham, kind, _one_of(choices.PUBLISHED_HAMS))
    rank = _of_pair("rank", told.rank, kind, _at_least(1))
    sections = _of_pair("sections", told.sections, kind, _at_least(1))
    steps = _of_pair("steps", told.steps, kind, _at_least(0))
    channels = network.ham_channels
    if channels % sections:
        raise ValueError(
            f"--sections must divide the {channels} channels of the {kind}'s lower bread, got "
            f"{sections}."
        )
    dim = channels // sections
    if rank > dim and not told.verify:
        raise ValueError(
            f"--rank must not be above d, in the {kind} {channels} channels / {sections} sections "
            f"= {dim}, got {rank}. "
            "(The default, 32,16, is that of width 64.)"
        )
    settings = dict(
        dim=dim,
        rank=rank,
        sections=sections,
        num_steps=steps,
        decomposition=f"@decomposition.{ham}",
    )
    return Module(
        constructor=HAMBURGERS[network.module],
        settings={"norm": "@normalization.BatchNorm", **settings},
    )


def _of_pair(name, values, kind, convert):
    """A flag's value for one of the networks."""
    if len(values) not in (1, 2):
        raise ValueError(
            f"--{name} must be one value, or the generator's and the discriminator's with a comma "
            "between, got "
            f"{len(values)} values: {','.join(values)}."
        )
    converted = [convert(name, value.strip()) for value in values]
    return converted[KINDS.index(kind) % len(converted)]


def _at_least(minimum):
    def convert(name, value):
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < minimum:
            raise ValueError(
                f"--{name} must be a whole number of at least {minimum}, got {value!r}."
            )
        return number

    return convert


def _one_of(choices):
    def convert(name, value):
        if value not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {value!r}.")
        return value

    return convert


def attention(kind, network, checkpoint, arrays, told):
    """The `Module` of a network with attention, from the flags or, where they say nothing, from the
    record.

    Args:
      kind: 'generator' or 'discriminator'.
      network: its `published.Network`.
      checkpoint: the `published.Checkpoint`.
      arrays: the record, or None.
      told: the `Told`.
    """
    settings = dict(dim=network.dim, value_dim=network.value_dim)
    if told.attention:
        name, note = _of_pair("attention", told.attention, kind, _one_of(ATTENTIONS)), ""
    elif not network.may_be_sparse:
        name, note = "sagan", "not ylg, whose eight heads can't share these channels"
    elif arrays is None:
        name, note = (
            "sagan",
            "ASSUMED: ylg has the same variables. --verify finds out, --attention=ylg decides",
        )
    else:
        errors = {
            name: _error_with(
                functools.partial(constructor, **settings), kind, network, checkpoint, arrays
            )
            for name, constructor in ATTENTIONS.items()
        }
        name = min(errors, key=errors.get)
        note = "by the record: " + ", ".join(
            f"error {error:.1e} as {name}" for name, error in errors.items()
        )
    return Module(constructor=ATTENTIONS[name], settings=settings, note=note)


def _error_with(module, kind, network, checkpoint, arrays):
    """How far a network is from the record with this module."""
    sizes = dict(
        image_size=published.IMAGE_SIZE, num_classes=network.num_classes, width=network.width
    )
    if kind == "generator":
        built = networks.Generator(**sizes, latent_dim=network.latent_dim, context=module)
    else:
        built = networks.Discriminator(**sizes, context=module)
    variables = contents.network_variables(kind, built)
    published.assign(checkpoint, published.plan(checkpoint, variables), variables)
    return REPLAYS[kind](built, arrays)[OUTPUTS[kind]]


def configuration_text(described, modules, gin_files):
    """The gin file of an import, as text."""
    generator, discriminator = (described[kind] for kind in KINDS)
    files = gin_files or ["configs/imagenet128.gin"]
    lines = [
        "from __gin__ import dynamic_registration",
        *(f"include {path!r}" for path in files),
        *(
            f"from hamgan import {name}"
            for name in ("context", "decomposition", "networks", "normalization")
        ),
        f"IMAGE_SIZE = {published.IMAGE_SIZE}",
        f"NUM_CLASSES = {generator.num_classes}",
        f"WIDTH = {generator.width}",
        f"networks.Generator.latent_dim = {generator.latent_dim}",
    ]
    if discriminator.width != generator.width:
        lines.append(f"networks.Discriminator.width = {discriminator.width}")
    for kind, module in modules.items():
        scoped = (
            f"{kind[0].upper()}/context.{module.constructor.__name__}"
            if module.constructor
            else None
        )
        lines.append(f"networks.{kind.capitalize()}.context = {'@' + scoped if scoped else None}")
        lines += [f"{scoped}.{name} = {value}" for name, value in module.settings.items()]
    return "\n".join(lines) + "\n"


def names_of_classes(experiment, data_dir):
    """The data set's names of the classes, None where it isn't prepared or isn't of these classes;
    and a note.
    """
    try:
        names = experiment.dataset(data_dir=data_dir).class_names
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        return (
            None,
            f'their numbers. {reason}. Another data set: --gin_param="data.ImageDataset.name = '
            "'NAME'\"",
        )
    return names, f"{len(names)}, from the data set"


def write(trainer, experiment, names, *, model_dir, settle):
    """Writes configuration, checkpoint and class names; returns the checkpoint's path and the files
    that are new.
    """
    before = _files(model_dir)
    settle(model_dir)
    folder = Folder(model_dir).checkpoints
    saved = checkpoints.Checkpoints(
        folder, trainer.variables(), max_to_keep=experiment.schedule.max_to_keep
    )
    path = saved.save()
    if names:
        class_names.write(model_dir, names)
    return path, _files(model_dir) - before


def _files(folder):
    if not tf.io.gfile.exists(folder):
        return set()
    return {os.path.join(at, name) for at, _, names in tf.io.gfile.walk(folder) for name in names}


def verify(experiment, path, arrays, *, record, tolerance, gradient_tolerance):
    """Replays a record through the networks of a checkpoint.

    Raises:
      ValueError: an error is above its tolerance; all are listed.
    """
    errors = {}
    for kind in KINDS:
        network = getattr(experiment, kind)()
        contents.restore(path, contents.network_variables(kind, network), partial=True)
        errors |= REPLAYS[kind](network, arrays)
    limits = {name: gradient_tolerance if name.endswith("_grad") else tolerance for name in errors}
    # An error that isn't a number isn't below anything.
    bad = [name for name, error in errors.items() if not error <= limits[name]]
    print(f"Replayed {record}; largest difference over the largest recorded value:")
    for name in ("images", "logits", "z_grad", "img_grad"):
        print(
            f"  {name:<9} {errors[name]:.2e}  {'ABOVE' if name in bad else 'within'} "
            f"{limits[name]:g}",
            flush=True,
        )
    if bad:
        raise ValueError(
            f"The networks don't reproduce {record}: "
            + ", ".join(f"{name} {errors[name]:.2e} (tolerance {limits[name]:g})" for name in bad)
            + ". Nothing was left of the import. Are --ham, --rank, --sections, --steps "
            "and --attention those of the record?"
        )


def report(assignments, described, modules, variables, *, checkpoint, model_dir):
    """Prints where each variable went and what the checkpoint is of."""
    for assignment in assignments:
        print(assignment)
    theirs = {assignment.published for assignment in assignments} - {None}
    print(
        f"{len(theirs)} variables of {checkpoint} accounted for, {len(variables)} of "
        f"{model_dir} set"
    )
    for kind, network in described.items():
        print(f"{kind}: width {network.width}, {network.num_classes} classes, {modules[kind]}")


def _modules(checkpoint, described, arrays, told):
    """{kind: `Module`} of both networks."""
    modules = {
        kind: hamburger(kind, network, told)
        for kind, network in described.items()
        if network.module in HAMBURGERS
    }
    if arrays is not None:
        sizes = {
            kind: [module.settings[name] for name in ("sections", "dim", "rank")]
            for kind, module in modules.items()
        }
        published.check_arrays(arrays, described, bases=sizes)
    for kind, network in described.items():
        if network.module == "attention":
            modules[kind] = attention(kind, network, checkpoint, arrays, told)
        elif network.module is None:
            modules[kind] = Module()
    return modules


def _record(path):
    try:
        return named_arrays.load(path)
    except ValueError as error:
        raise ValueError(f"--verify: {error}") from error


def run(
    prefix,
    *,
    told,
    model_dir,
    data_dir,
    load_experiment,
    settle,
    create_strategy,
    tolerance=1e-4,
    gradient_tolerance=2e-2,
):
    """Imports a checkpoint, and verifies the import where a record is given.

    Args:
      prefix: of the TF1 checkpoint.
      told: the `Told`.
      model_dir, data_dir: the run's folder, which is made, and that of the data sets.
      load_experiment: function (text of a gin file) -> `Experiment`.
      settle: function (model_dir) that keeps the configuration there.
      create_strategy: function () -> strategy, called when the checkpoint has been read.
      tolerance, gradient_tolerance: largest errors of a record's outputs and gradients.

    Raises:
      ValueError: model_dir has checkpoints; what is told doesn't fit; the record isn't reproduced:
        nothing is left then.
    """
    if there := checkpoints.available(model_dir):
        raise ValueError(
            f"{model_dir} has checkpoints already ({', '.join(there)}). Choose another --model_dir."
        )
    checkpoint = published.Checkpoint(prefix)
    described = published.describe(checkpoint)
    arrays = _record(told.verify) if told.verify else None
    modules = _modules(checkpoint, described, arrays, told)
    experiment = load_experiment(configuration_text(described, modules, told.gin_files))
    trainer = experiment.trainer(
        strategy=create_strategy(),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    variables = trainer.variables()
    assignments = published.plan(checkpoint, variables, beta_2=trainer.generator_optimizer.beta_2)
    published.assign(checkpoint, assignments, variables)
    report(assignments, described, modules, variables, checkpoint=prefix, model_dir=model_dir)

    names, note = names_of_classes(experiment, data_dir)
    print(f"class names: {note}")
    path, files = write(trainer, experiment, names, model_dir=model_dir, settle=settle)
    if arrays is not None:
        limits = dict(tolerance=tolerance, gradient_tolerance=gradient_tolerance)
        try:
            verify(experiment, path, arrays, record=told.verify, **limits)
        except ValueError:
            for file in files:
                tf.io.gfile.remove(file)
            raise
    step = int(trainer.step.numpy())
    record = {"kind": "event", "step": step, "event": "imported", "checkpoint": checkpoint.path}
    records.append(Folder(model_dir).metrics, record)
    print(f"Checkpoint: {path}")
