import pathlib

import gin
import made
import pytest
from absl import flags

from hamgan import context, networks, sampling
from hamgan.cli import common, configuration
from hamgan.evaluation import protocol

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.gin"))

# What makes any configuration small enough for a test.
SMALL = [
    "IMAGE_SIZE = 32",
    "NUM_CLASSES = 3",
    "WIDTH = 2",
    "networks.Generator.latent_dim = 8",
    "trainer.Trainer.batch_size = 4",
]

if "model_dir" not in flags.FLAGS:
    common.define_flags()


@pytest.fixture
def load(tmp_path):
    """A function that loads the experiment of some flags, as a script does."""

    def load(*arguments, params=(), protocol=None):
        flags.FLAGS.unparse_flags()
        for name in ("gin_file", "gin_param"):
            flags.FLAGS[name].unparse()
        flags.FLAGS(
            ["script", f"--model_dir={tmp_path}", *arguments, *(f"--gin_param={p}" for p in params)]
        )
        gin.clear_config()
        return configuration.load_experiment(**common.configuration_flags(), protocol=protocol)

    yield load
    gin.clear_config()


def build(experiment):
    """Builds what a training script builds, over made images."""
    dataset = made.MadeDataset(count=16)
    trainer = experiment.trainer(
        strategy=made.one_device(),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    return trainer, dataset


@pytest.mark.parametrize(
    "name",
    [n if n == "hamgan_strong.gin" else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS],
)
def test_every_configuration_parses_builds_and_takes_a_step(load, name):
    # Eight heads don't divide the channels of so narrow a net.
    heads = (
        ["context.SparseAttention.dim = 8", "context.SparseAttention.value_dim = 8"]
        if name == "ylg.gin"
        else []
    )
    trainer, dataset = build(load(f"--gin_file={ROOT}/configs/{name}", params=[*SMALL, *heads]))
    metrics = trainer.train_steps(trainer.batches(dataset), 1)
    assert metrics["first_bad_step"] == -1


@pytest.mark.parametrize(
    "name, batch_size, steps", [("hamgan_baby", 256, 2_000_000), ("hamgan_strong", 1024, 1_000_000)]
)
def test_published_settings(load, name, batch_size, steps):
    experiment = load(f"--gin_file=configs/{name}.gin")
    bound = gin.query_parameter
    assert bound("trainer.Trainer.batch_size") == batch_size
    assert experiment.schedule.num_steps == steps
    assert experiment.protocol.num_samples == 50_000
    assert bound("trainer.Trainer.discriminator_learning_rate") == 4e-4
    assert bound("trainer.Trainer.generator_learning_rate") == 1e-4
    assert (bound("G/context.Hamburger.rank"), bound("D/context.Hamburger.rank")) == (32, 16)
    assert bound("context.Hamburger.num_steps") == 6
    assert (bound("%WIDTH"), bound("%IMAGE_SIZE"), bound("%NUM_CLASSES")) == (64, 128, 1000)


def test_scopes_give_the_networks_different_hams(load):
    trainer, _ = build(
        load(
            f"--gin_file={ROOT}/configs/digits.gin",
            params=[*SMALL, "G/context.Hamburger.rank = 5", "D/context.Hamburger.rank = 3"],
        )
    )
    assert (trainer.generator.context.rank, trainer.discriminator.context.rank) == (5, 3)
    assert isinstance(trainer.generator.context, context.Hamburger)
    assert isinstance(trainer.generator, networks.Generator)


@pytest.mark.parametrize(
    "param, message",
    [
        ("trainer.Trainer.batchsize = 3", "batchsize"),
        (
            "context.Hamburger.rnk = 3",
            "context.Hamburger has no parameter 'rnk'; did you mean 'rank'",
        ),
        ("networks.Generatr.width = 3", "Generatr"),
        ("WIDHT = 3", "Nothing uses the macro 'WIDHT'; did you mean 'WIDTH'"),
        ("nowhere.Thing.width = 3", "nowhere"),
        ("trainer.Trainer.batch_size = ", "can't be read"),
        ("trainer.Trainer.batch_size = @nothing.Here", "nothing"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_built(load, param, message):
    with pytest.raises(ValueError, match=message):
        load(f"--gin_file={ROOT}/configs/digits.gin", params=[param])


def test_macro_that_is_no_longer_used_is_no_mistake(load, tmp_path):
    (tmp_path / "mine.gin").write_text(
        f"include '{ROOT}/configs/digits.gin'\nSIZE = 4\ntrainer.Trainer.batch_size = %SIZE\n"
    )
    experiment = load(f"--gin_file={tmp_path}/mine.gin", params=["trainer.Trainer.batch_size = 8"])
    trainer, _ = build(experiment)
    assert trainer.batch_size == 8


def test_no_configuration_says_which_there_are(load, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"No configuration: .*config.gin isn't there and no --gin_file.*configs/digits.gin",
    ):
        load()


def test_missing_gin_file_is_named(load):
    with pytest.raises(
        ValueError, match=r"There is no --gin_file=configs/digit.gin. Shipped: .*configs/digits.gin"
    ):
        load("--gin_file=configs/digit.gin")


def test_configuration_is_kept_and_rebuilds_the_networks(load, tmp_path):
    trainer, _ = build(
        load(
            f"--gin_file={ROOT}/configs/digits.gin", params=[*SMALL, "G/context.Hamburger.rank = 5"]
        )
    )
    configuration.settle_configuration(flags.FLAGS.model_dir)
    again, _ = build(load())
    assert again.generator.context.rank == 5
    assert {n: v.shape for n, v in again.variables().items()} == {
        n: v.shape for n, v in trainer.variables().items()
    }
    configuration.settle_configuration(flags.FLAGS.model_dir)


def test_other_settings_in_the_same_folder_are_refused_and_listed(load, tmp_path):
    build(load(f"--gin_file={ROOT}/configs/digits.gin", params=SMALL))
    configuration.settle_configuration(flags.FLAGS.model_dir)
    kept = (tmp_path / "config.gin").read_text()
    build(
        load(
            f"--gin_file={ROOT}/configs/digits.gin",
            params=[*SMALL, "trainer.Trainer.seed = 7", "G/context.Hamburger.rank = 5"],
        )
    )
    with pytest.raises(ValueError) as error:
        configuration.settle_configuration(flags.FLAGS.model_dir)
    assert "trainer.Trainer.seed = 0 there, 7 asked for" in str(error.value)
    assert "G/context.Hamburger.rank = 8 there, 5 asked for" in str(error.value)
    assert (tmp_path / "config.gin").read_text() == kept


def test_a_run_may_go_on_for_longer(load, tmp_path):
    build(load(f"--gin_file={ROOT}/configs/digits.gin", params=SMALL))
    configuration.settle_configuration(flags.FLAGS.model_dir)
    build(load(params=["loop.Schedule.num_steps = 12345", "protocol.Protocol.num_samples = 77"]))
    configuration.settle_configuration(flags.FLAGS.model_dir)
    experiment = load()
    assert (experiment.schedule.num_steps, experiment.protocol.num_samples) == (12345, 77)


def test_what_to_do_on_collapse_is_a_part(load):
    for name, goes_back in (("report", False), ("rollback", True)):
        experiment = load(
            f"--gin_file={ROOT}/configs/digits.gin",
            params=[f"loop.Schedule.on_collapse = @loop.{name}"],
        )
        assert experiment.schedule.on_collapse("FID") is goes_back


def test_settings_that_a_command_does_not_use_are_kept_all_the_same(load, tmp_path):
    # Building calls neither the feature network nor, before the first step, the decomposition.
    params = [*SMALL, "features.FeatureNetwork.size = 75", "decomposition.cd.beta = 0.5"]
    params.append("context.Hamburger.decomposition = @decomposition.cd")
    build(load(f"--gin_file={ROOT}/configs/digits.gin", params=params))
    configuration.settle_configuration(flags.FLAGS.model_dir)
    experiment = load()
    assert gin.query_parameter("features.FeatureNetwork.size") == 75
    assert gin.query_parameter("decomposition.cd.beta") == 0.5
    trainer, _ = build(experiment)
    assert trainer.generator.context.decomposition.__name__ == "cd"
    configuration.settle_configuration(flags.FLAGS.model_dir)


def test_defaults_that_only_one_command_has_noted_are_no_difference(load, tmp_path):
    build(load(f"--gin_file={ROOT}/configs/digits.gin", params=SMALL))
    configuration.settle_configuration(flags.FLAGS.model_dir)
    assert "features.FeatureNetwork.data_dir" not in (tmp_path / "config.gin").read_text()
    experiment = load(f"--gin_file={ROOT}/configs/digits.gin", params=SMALL)
    build(experiment)
    with pytest.raises(ValueError, match="No SavedModel"):
        experiment.protocol.features()  # now its defaults are noted too
    configuration.settle_configuration(flags.FLAGS.model_dir)
    build(
        load(
            f"--gin_file={ROOT}/configs/digits.gin",
            params=[*SMALL, "trainer.Trainer.epsilon = 1e-8"],
        )
    )
    configuration.settle_configuration(flags.FLAGS.model_dir)
    build(
        load(
            f"--gin_file={ROOT}/configs/digits.gin",
            params=[*SMALL, "features.FeatureNetwork.size = 75"],
        )
    )
    with pytest.raises(ValueError, match="features.FeatureNetwork.size = 32 there, 75 asked for"):
        configuration.settle_configuration(flags.FLAGS.model_dir)


# name: samples, repeats, reference (split, images, of them twice), 8 bits
PROTOCOLS = {
    "paper": (50_176, 5, ("validation", 50_000, 176), False),
    "val-50k": (50_000, 1, ("validation", 50_000, 0), True),
    "train-full": (50_000, 1, ("train", 1_281_167, 0), True),
}

OTHER_PROTOCOL = """
from __gin__ import dynamic_registration
include "configs/digits.gin"
from hamgan import sampling
from hamgan.evaluation import protocol

protocol.Protocol.name = "mine"
protocol.Protocol.num_samples = 77
protocol.Protocol.repeats = 7
protocol.Protocol.reference_split = "test"
protocol.Protocol.reference_count = 77
protocol.Protocol.reference_repeated = 7
protocol.Protocol.quantize = {quantize}
protocol.Protocol.resize = @protocol.half_pixel_bilinear
protocol.Protocol.labels = @protocol.balanced
protocol.Protocol.truncation = 0.5
protocol.Protocol.weights = "ema"
protocol.Protocol.batch_norm = @sampling.StandingStatistics
"""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_has_its_settings_whatever_the_run_has(load, tmp_path, name):
    assert {path.stem for path in (ROOT / "configs" / "protocols").glob("*.gin")} == set(PROTOCOLS)
    num_samples, repeats, real, quantize = PROTOCOLS[name]
    run = tmp_path / "run.gin"
    run.write_text(OTHER_PROTOCOL.format(quantize=not quantize))
    settings = load(f"--gin_file={run}", protocol=name).protocol
    assert (settings.name, settings.num_samples, settings.repeats) == (name, num_samples, repeats)
    assert (settings.reference_split, settings.reference_count, settings.reference_repeated) == real
    assert settings.quantize == quantize
    parts = settings.resize, settings.labels, settings.batch_norm
    assert [protocol.in_words(part) for part in parts] == [
        "tf1 bilinear",
        "uniform",
        "moving averages",
    ]
    assert (settings.truncation, settings.weights) == (None, "raw")


def test_protocol_of_ones_own_is_a_gin_file(load, tmp_path):
    (tmp_path / "mine.gin").write_text(OTHER_PROTOCOL.format(quantize=True))
    params = ["sampling.StandingStatistics.batches = 3", "protocol.Protocol.seed = 9"]
    settings = load(
        f"--gin_file={ROOT}/configs/digits.gin", params=params, protocol=str(tmp_path / "mine.gin")
    ).protocol
    assert (settings.name, settings.seed, settings.repeats) == ("mine", 9, 7)
    assert protocol.in_words(settings.labels) == "balanced"
    sampler = sampling.Sampler(made.Tiny(), strategy=made.one_device())
    assert settings.batch_norm(sampler).words == "standing statistics of 3 batches of 256"


def test_named_protocol_keeps_its_name_only_as_it_is(load):
    run, change = f"--gin_file={ROOT}/configs/digits.gin", "protocol.Protocol.num_samples = 9"
    with pytest.raises(
        ValueError, match="Protocol 'paper' with another num_samples is another protocol"
    ):
        load(run, params=[change], protocol="paper")
    settings = load(
        run, params=[change, "protocol.Protocol.name = 'mine'"], protocol="paper"
    ).protocol
    assert (settings.name, settings.num_samples) == ("mine", 9)
    assert load(run, params=["protocol.Protocol.seed = 9"], protocol="paper").protocol.seed == 9


def test_unknown_protocol_says_which_there_are(load):
    with pytest.raises(
        ValueError, match="--protocol must be one of paper, train-full, val-50k, or a gin file"
    ):
        load(f"--gin_file={ROOT}/configs/digits.gin", protocol="papr")


@pytest.mark.parametrize("name", ["paper", "val-50k", "train-full"])
def test_name_of_a_published_protocol_cannot_be_worn_by_other_values(load, tmp_path, name):
    bindings = f'protocol.Protocol.name = "{name}"'
    with pytest.raises(ValueError, match=f"the name '{name}' means .*num_samples"):
        load("--gin_file=configs/digits.gin", params=[bindings])
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        'include "configs/digits.gin"\n'
        f"from hamgan.evaluation import protocol\n{bindings}\n"
    )
    with pytest.raises(ValueError, match=f"the name '{name}' means .*num_samples"):
        load(f"--gin_file={tmp_path / 'mine.gin'}")
    load("--gin_file=configs/digits.gin")
    text = configuration.resolved_configuration(str(tmp_path))
    (tmp_path / "config.gin").write_text(f"{text}\n{bindings}\n")
    with pytest.raises(ValueError, match=f"the name '{name}' means .*num_samples"):
        load()
    # As the shipped file has it, gin's wrappers of its parts too.
    assert load("--gin_file=configs/digits.gin", protocol=name).protocol.name == name


def test_settings_of_a_run_are_the_same_text_from_file_and_from_its_own_folder(load, tmp_path):
    build(load("--gin_file=configs/digits.gin", params=SMALL))
    before = configuration.settings_of_run()
    configuration.settle_configuration(str(tmp_path))
    build(load())
    assert not [
        name
        for name in before.keys() | configuration.settings_of_run().keys()
        if configuration.setting_differs(name, before, configuration.settings_of_run())
    ]
    assert configuration.changed_settings(str(tmp_path)) is None
    assert not any(name.startswith(("loop.Schedule.", "protocol.")) for name in before)
    load(params=["G/context.Hamburger.eval_steps = 1"])
    changed = configuration.changed_settings(str(tmp_path))
    assert changed == "G/context.Hamburger.eval_steps = 1 (None in the run)"
