"""All checks of a run, each once, in the order of what they need."""

from hamgan.checks import evaluation, images, labels, machine

_SAMPLE_IMAGES, _QUICK_IMAGES = 512, 64
_DEVICES = "choose what is there, e.g. --accelerator=cpu"
_PREPARED = (
    "prepare the data set as the message says, or correct --data_dir and data.ImageDataset.name"
)


def examine(
    checkup,
    configuration,
    *,
    create_strategy,
    model_dir,
    data_dir,
    output=None,
    quick=False,
    evaluate=True,
    replicas=None,
    seconds=5.0,
    steps_per_second=None,
    progress=True,
):
    """Checks machine, data set and configuration of a run.

    Args:
      checkup: the `Checkup` that gets the outcomes.
      configuration: outcome whose value is the `Experiment`; without a value what needs it is
        skipped.
      create_strategy: function () -> strategy.
      model_dir: the run's folder; it is made.
      data_dir: folder of the data sets.
      output: where the picture is drawn; None: model_dir/doctor.png.
      quick: don't read all records.
      evaluate: whether the run will evaluate; if not, a missing feature network or too few real
        images are only warnings.
      replicas: of the machine the run is meant for; None: as many as here.
      seconds: for which the input's speed is measured; 0: not.
      steps_per_second: the device's, if known, to compare the input's speed with.
      progress: draw progress bars.
    """
    check = checkup.check
    folder = check("model_dir", machine.folder, path=model_dir, create=True)
    check("data_dir", machine.folder, path=data_dir, create=False, unwritable=evaluation.read_only)
    strategy = check("devices", machine.devices, create=create_strategy, remedy=_DEVICES)
    trainer = check(
        "batch",
        machine.batch,
        configuration,
        strategy,
        replicas=replicas,
        remedy=machine.BATCH_REMEDY,
    )
    check("disk", machine.disk, configuration, trainer, folder)
    network = check(
        "feature network", machine.features, configuration, data_dir=data_dir, required=evaluate
    )
    dataset = check("data set", images.present, configuration, data_dir=data_dir, remedy=_PREPARED)
    check("sizes", machine.sizes, trainer, dataset)
    _check_evaluation(check, configuration, dataset, network, required=evaluate)
    scans = _check_records(check, dataset, quick=quick, progress=progress)
    if output:
        check("picture", images.picture, dataset, scans, path=output)
    else:
        check("picture", images.picture_in, dataset, scans, folder)
    check(
        "input speed",
        machine.speed,
        dataset,
        trainer,
        seconds=seconds,
        steps_per_second=steps_per_second,
        progress=progress,
    )


def _check_evaluation(check, configuration, dataset, network, *, required):
    """What an evaluation would compare with."""
    count = check(
        "reference",
        evaluation.counts,
        configuration,
        dataset,
        required=required,
        remedy=evaluation.COUNTS_REMEDY,
    )
    if network.value is not None:
        check("features", evaluation.rank, configuration, network, count)
        check("network data", evaluation.trained_on, dataset, network)


def _check_records(check, dataset, *, quick, progress):
    """The data set's files and what is in them. Returns the outcome of reading the records."""
    check("ImageNet", images.imagenet, dataset)
    files = check("files", images.files, dataset)
    check("memory", machine.memory, dataset, files)
    scans = check("records", images.records, dataset, files, quick=quick, progress=progress)
    check("training labels", labels.check, dataset, scans, training=True, quick=quick)
    check("reference labels", labels.check, dataset, scans, training=False, quick=quick)
    number = _QUICK_IMAGES if quick else _SAMPLE_IMAGES
    check("images", images.sample, dataset, files, number=number, progress=progress)
    check("small images", images.small, dataset, files, number=number)
    return scans
