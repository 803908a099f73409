"""What a configuration is of: a GAN, a segmentation, a sweep; each has commands of its own."""

from hamgan.cli.configuration import lookup, trust

# By the class that a configuration fills: what it is of, and the commands that take it. Names, so
# that a command imports its own kind alone.
KINDS = {
    "hamgan.experiment.Experiment": ("a GAN", "scripts/train.py (hamgan-train) and its like"),
    "hamgan.segmentation.experiment.SegmentationExperiment": (
        "segmentation",
        "scripts/segment.py (hamgan-segment)",
    ),
    "hamgan.sweeps.definition.Sweep": ("a sweep", "scripts/sweep.py --sweep (hamgan-sweep)"),
}


def name_of(root):
    """The name in KINDS of a class."""
    return f"{trust.module_of(root)}.{root.__name__}"


def check_kind(files, root):
    """ValueError if what was parsed is of something else than `root`, whose commands are named."""
    found = _found()
    if name_of(root) in found or not found:
        return
    kind, commands = KINDS[found[0]]
    raise ValueError(
        f"{', '.join(files)} is a configuration of {kind}, and this command takes one of "
        f"{KINDS[name_of(root)][0]}: use {commands}."
    )


def check_there(files, root):
    """ValueError if nothing that was parsed sets anything of `root`."""
    if name_of(root) not in _found():
        raise ValueError(
            f"{', '.join(files)} must be a configuration of {KINDS[name_of(root)][0]}, and sets "
            f"nothing of {name_of(root)}: include a shipped one in it."
        )


def _found():
    """The names in KINDS of all that was parsed."""
    targets = [lookup.configurable(selector) for _, selector in lookup.bindings_of_gin()]
    names = {name_of(target) for target in targets if hasattr(target, "__name__")}
    return [name for name in KINDS if name in names]
