"""A page to play with a checkpoint: class, seed, truncation, weights, ways between, the ham.

    python scripts/serve.py --model_dir=runs/mine
    python scripts/serve.py --model_dir=runs/mine --checkpoint=best --port=0
    python scripts/serve.py --model_dir=runs/mine --weights=raw --batch_size=1

Needs the extra web (pip install 'hamgan[web]'). The page is for this machine alone unless --host
says otherwise, loads nothing from elsewhere, and reads no file: what it shows is of one checkpoint.

Its images are those of scripts/sample.py with the same class, seed, psi, truncation, weights and
batch norm; to the last bit with the same --batch_size on one device, and up to rounding otherwise.
"""

import dataclasses
import sys

from absl import flags

from hamgan import choices
from hamgan.cli import common, lazily

with lazily.imports():
    from hamgan import distribution
    from hamgan.cli import configuration
    from hamgan.run import checkpoints, class_names
    from hamgan.serving import studio, web

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of the command, by their names."""

    model_dir: str
    checkpoint: str | None = None
    weights: str | None = None
    seed: int = 0
    batch_size: int = 16
    host: str = "localhost"
    port: int = 7860
    accelerator: str = "auto"
    tpu: str = "local"


def main():
    names = [field.name for field in dataclasses.fields(Request)]
    request = Request(**{name: FLAGS[name].value for name in names})
    web.check()
    # A port that is taken is told before anything is built.
    with web.listen(request.host, request.port) as sock:
        experiment = configuration.load_experiment(**common.configuration_flags())
        drawn = load(request, experiment)
        print(
            f"{drawn.about['checkpoint']} of {request.model_dir}: "
            f"{web.address(request.host, sock)} (Ctrl+C ends it)",
            flush=True,
        )
        web.serve(drawn, request.host, sock)


def load(request, experiment):
    """The `studio.Studio` of a request."""
    path = checkpoints.find(request.model_dir, request.checkpoint)
    return studio.Studio(
        experiment,
        path,
        names=class_names.read(request.model_dir, experiment.generator().num_classes),
        strategy=distribution.create_strategy(request.accelerator, request.tpu, across_hosts=False),
        weights=request.weights,
        batch_size=request.batch_size,
        seed=request.seed,
    )


def define_flags():
    """Defines the flags of the command."""
    common.define_flags()
    common.define_checkpoint()
    flags.DEFINE_enum(
        "weights",
        None,
        [*choices.WEIGHTS],
        "What the page begins with; default: what the run is scored by.",
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise: another one gives other seeds' images.")
    flags.DEFINE_integer("batch_size", 16, "Images that a device makes at a time.", 1)
    flags.DEFINE_string(
        "host",
        "localhost",
        "Where browsers are answered; 0.0.0.0: anyone who reaches this machine.",
    )
    flags.DEFINE_integer("port", 7860, "Port; 0: any that is free.", 0, 65535)


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)
