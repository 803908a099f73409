"""What gin files may say: kinds and ranges of values, what reaches something, what a run's folder
may name, and how a configuration is kept.
"""

import importlib
import inspect
import pathlib

import gin
import pytest
import tensorflow as tf

from hamgan import arguments, context, decomposition, experiment, labels
from hamgan.cli import configuration, segment_common
from hamgan.evaluation import protocol as protocols
from hamgan.evaluation import scores, settings
from hamgan.loop import Schedule
from hamgan.run.folder import Folder
from hamgan.segmentation import experiment as segmentation

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"{ROOT}/configs/digits.gin"


@pytest.fixture(autouse=True)
def cleared():
    gin.clear_config()
    yield
    gin.clear_config()


def load(*params, files=(DIGITS,), **kwargs):
    gin.clear_config()
    return configuration.load_experiment(gin_files=files, gin_params=params, **kwargs)


@pytest.mark.parametrize(
    "param, message",
    [
        ("networks.Generator.context = 'Hamburger'", "constructor like @context.Hamburger"),
        ("networks.Generator.context = @losses.hinge_generator()", "a constructor like"),
        ("networks.Generator.norm = @losses.R1", "R1"),
        ("networks.Generator.width = 2.5", "must be at least 1, got 2.5"),
        ("networks.Generator.width = True", "got True"),
        ("networks.Generator.image_size = 33", "must be one of 32, 64"),
        ("WIDTH = '4'", r"width \(which is %WIDTH\) must be at least 1, got '4'"),
        ("protocol.Protocol.batch_norm = 'standing'", "constructor like @sampling.Standing"),
        ("protocol.Protocol.num_samples = 1.5", "whole number"),
        ("protocol.Protocol.quantize = 1", "must be True or False, got 1"),
        ("protocol.Protocol.resize = 'bicubic'", "a function like @protocol"),
        ("protocol.Protocol.scores = @scores.standard", "a list or tuple"),
        ("protocol.Protocol.scores = ('fid',)", r"scores\[0\] must be a function, got 'fid'"),
        ("protocol.Protocol.seed = -1", r"must be in \[0, 2\*\*63\), got -1"),
        ("protocol.Protocol.truncation = 0", "must be positive, got 0"),
        ("trainer.Trainer.generator_learning_rate = -1.0", "must not be negative, got -1.0"),
        ("trainer.Trainer.generator_learning_rate = 1e999", "got inf"),
        ("trainer.Trainer.generator_learning_rate = '1e-4'", "got '1e-4'"),
        ("trainer.Trainer.generator_learning_rate = @schedules.LinearDecay", r"LinearDecay\(\)"),
        ("trainer.Trainer.beta_1 = 1.0", r"must be in \[0, 1\), got 1.0"),
        ("trainer.Trainer.regularizers = [@regularization.R1]", r"like @regularization.R1\(\)"),
        ("trainer.Trainer.augment = @augmentation.DiffAugment", r"DiffAugment\(\), or None"),
        ("trainer.Trainer.seed = 9223372036854775808", "seed must be in"),
        ("trainer.Trainer.seed = 1e17", "seed must be in"),
        ("loop.Schedule.save_every = 2.5", "save_every must be at least 1, got 2.5"),
        ("loop.Schedule.max_to_keep = 2.5", "or None"),
        ("loop.Schedule.num_steps = None", "got None"),
        ("loop.Schedule.on_collapse = 'stop'", "function like @loop.stop"),
        ("experiment.Experiment.schedule = @loop.Schedule", r"an object like @loop.Schedule\(\)"),
        ("experiment.Experiment.schedule = @protocol.Protocol()", "an object like"),
        ("experiment.Experiment.precision = 'mixed_float16'", "None or one of 'float32', 'mixed_b"),
        (
            "networks.Generator.dtype = 'mixed_float16'",
            "None or one of 'float32', 'mixed_bfloat16'",
        ),
        ("D/context.Hamburger.dtype = 'float16'", "None or one of 'float32', 'mixed_bfloat16'"),
        ("normalization.BatchNorm.momentum = 1.5", r"must be in \[0, 1\], got 1.5"),
        ("data.ImageDataset.name = 5", "a text in quotes"),
        ("data.ImageDataset.flip = 'yes'", "True or False"),
        ("features.FeatureNetwork.size = 0", "at least 1, got 0"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_built(param, message):
    name = param.split(" =")[0].split(".")[-1].lower()
    with pytest.raises(ValueError, match=message) as error:
        load(param)
    assert name in str(error.value).lower()


def test_whole_numbers_in_scientific_notation_are_whole():
    loaded = load(
        "loop.Schedule.num_steps = 1e6",
        "loop.Schedule.max_to_keep = 2.0",
        "protocol.Protocol.num_samples = 1e2",
        "WIDTH = 4e0",
    )
    found = loaded.schedule.num_steps, loaded.schedule.max_to_keep, loaded.protocol.num_samples
    assert found == (1_000_000, 2, 100)
    assert {type(value) for value in found} == {int}
    assert repr(gin.query_parameter("%WIDTH")) == "4"
    assert repr(Schedule(save_every=2e3).save_every) == "2000"


def test_seeds_have_their_full_width():
    load("trainer.Trainer.seed = 9223372036854775807")
    assert gin.query_parameter("trainer.Trainer.seed") == 2**63 - 1


def modules():
    names = [*configuration.trust.MODULES, "evaluation.features", "evaluation.protocol"]
    return [importlib.import_module(f"hamgan.{name}") for name in [*names, "evaluation.scores"]]


# What code hands over, not a gin file.
HANDED_OVER = {
    *("strategy", "generator", "discriminator", "sampler", "dataset", "trainer", "evaluator"),
    *("shape", "draw", "kwargs", "images", "labels", "features", "logits", "real", "size", "grid"),
}


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_each_argument_of_a_constructor_has_its_kind(module):
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and (value.__module__ == module.__name__ or module.__name__.count(".") == 1)
        and value.__module__.startswith("hamgan.")
        and not issubclass(value, Exception)
        and not hasattr(value, "_fields")  # what functions give
    ]
    keyword_only = {
        (value.__name__, name)
        for value in classes
        if hasattr(value, "ARGUMENTS")
        for name, parameter in inspect.signature(value).parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY and name not in HANDED_OVER
    }
    known = {(v.__name__, name) for v in classes for name in arguments.kinds_of(v)}
    assert keyword_only <= known


def test_tables_name_only_what_is_there():
    tables = 0
    for module in modules():
        for value in vars(module).values():
            if callable(value) and "ARGUMENTS" in getattr(value, "__dict__", ()):
                assert set(value.ARGUMENTS) <= set(inspect.signature(value).parameters)
                tables += 1
    assert tables > 12


def test_a_part_of_ones_own_takes_what_it_likes(tmp_path, monkeypatch):
    (tmp_path / "my_part.py").write_text(
        "def twice(images, keys, *, by=2):\n    return images * by\n"
    )
    (tmp_path / "mine.gin").write_text(
        f"from __gin__ import dynamic_registration\ninclude '{DIGITS}'\nimport my_part\n"
        "from hamgan import trainer\ntrainer.Trainer.augment = @my_part.twice\n"
        "my_part.twice.by = 2.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    load(files=[f"{tmp_path}/mine.gin"])
    assert gin.query_parameter("trainer.Trainer.augment").configurable.wrapped.__name__ == "twice"
    assert gin.query_parameter("my_part.twice.by") == 2.5


def test_scores_through_gin():
    found = load("protocol.Protocol.scores = (@scores.standard, @scores.infinity)").protocol.scores
    assert [inspect.unwrap(score) for score in found] == [scores.standard, scores.infinity]
    with pytest.raises(ValueError, match=r"must have scores.standard among them.*\['infinity'\]"):
        load("protocol.Protocol.scores = (@scores.infinity,)")


@pytest.mark.parametrize(
    "params, message",
    [
        (
            ["context.Hamburger.rank = 4"],
            "context.Hamburger.rank has no effect: D/context.Hamburger.rank = 8, "
            "G/context.Hamburger.rank = 8 are set.*G/context.Hamburger.rank = 4",
        ),
        (["H/context.Hamburger.rank = 4"], "scopes that are used are D/context.Hamburger, G/"),
        (["context.HamburgerV2.rank = 4"], "nothing in this configuration uses context.Hamb"),
        (["decomposition.cd.beta = 0.5"], "nothing in this configuration uses decomposition.cd"),
        (
            ["networks.Generator.context = None", "G/context.Hamburger.rank = 4"],
            "G/context.Hamburger.rank has no effect",
        ),
        (
            [
                "experiment.Experiment.precision = 'float32'",
                "networks.Generator.dtype = 'mixed_bfloat16'",
            ],
            "has no effect beside experiment.Experiment.precision = 'float32'",
        ),
    ],
)
def test_what_reaches_nothing_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        load(*params)


@pytest.mark.parametrize(
    "params",
    [
        ["context.Hamburger.num_steps = 4"],
        ["G/context.Hamburger.rank = 4", "D/context.Hamburger.rank = 4"],
        ["G/normalization.BatchNorm.momentum = 0.5"],
        ["context.Hamburger.decomposition = @decomposition.cd", "decomposition.cd.beta = 0.5"],
        ["networks.Generator.context = @context.Hamburger", "context.Hamburger.rank = 4"],
        ["BETA = 0.5", "trainer.Trainer.beta_2 = %BETA"],
        [
            "PART = @context.HamburgerV2",
            "networks.Generator.context = %PART",
            "context.HamburgerV2.rank = 1",
        ],
    ],
)
def test_what_reaches_something_is_taken(params):
    assert isinstance(load(*params), experiment.Experiment)


def test_a_file_whose_setting_has_no_effect_is_told(tmp_path, caplog):
    (tmp_path / "mine.gin").write_text(
        f"from __gin__ import dynamic_registration\ninclude '{DIGITS}'\n"
        "from hamgan import context\ncontext.Hamburger.rank = 4\n"
        "context.Hamburger.num_steps = 4\n"
    )
    load(files=[f"{tmp_path}/mine.gin"])
    (record,) = caplog.records
    assert "mine.gin: context.Hamburger.rank has no effect: D/context" in record.getMessage()
    caplog.clear()
    (tmp_path / "mine.gin").rename(tmp_path / "config.gin")  # as a run's own, with all its defaults
    load(files=[f"{tmp_path}/config.gin"])
    assert not caplog.records


# The folder of a run


def write_run(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "config.gin").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The text of a configuration as training keeps it."""
    folder = tmp_path_factory.mktemp("saved")
    load()
    configuration.settle_configuration(str(folder))
    return (folder / "config.gin").read_text()


@pytest.mark.parametrize(
    "more, message",
    [
        ("import os\n", "imports 'os'"),
        ("import os.path\n", "imports 'os.path'"),
        ("from subprocess import run\n", "imports 'subprocess.run'"),
        ("import evil_module as hamgan\n", "imports 'evil_module'"),
        ("from hamgan.run import records\n", "imports 'hamgan.run.records'"),
        ("import hamgan_evil\n", "imports 'hamgan_evil'"),
        ("include '/etc/passwd'\n", "includes '/etc/passwd'"),
    ],
)
def test_folder_of_a_run_imports_no_other_code(tmp_path, saved, more, message, monkeypatch):
    imported = []
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.append(name))
    with pytest.raises(ValueError, match=message):
        load(files=(), model_dir=write_run(tmp_path / "run", more + saved))
    assert imported == []


@pytest.mark.parametrize(
    "binding",
    [
        "trainer.Trainer.seed = @loop.os.getpid()",
        "trainer.Trainer.augment = @networks.keras.saving.load_model",
        "networks.tf.io.gfile.remove.path = 'x'",
        "trainer.Trainer.seed = @loop.train()",
        "trainer.Trainer.fake_labels = @loop.records.write_whole",
    ],
)
def test_folder_of_a_run_names_only_parts(tmp_path, saved, binding):
    with pytest.raises(ValueError, match="may name the parts of hamgan only.*--trust_module="):
        load(files=(), model_dir=write_run(tmp_path / "run", saved + binding + "\n"))


def test_code_of_ones_own_is_trusted_by_name(tmp_path, saved, monkeypatch):
    (tmp_path / "my_labels.py").write_text("def ones(keys, real_labels):\n    return real_labels\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    dynamic = "from __gin__ import dynamic_registration\n"
    assert saved.startswith(dynamic)
    text = saved.replace(dynamic, dynamic + "import my_labels\n")
    text += "trainer.Trainer.fake_labels = @my_labels.ones\n"
    run = write_run(tmp_path / "run", text)
    with pytest.raises(ValueError, match="imports 'my_labels'.*--trust_module=my_labels"):
        load(files=(), model_dir=run)
    load(files=(), model_dir=run, trusted_modules=["my_labels"])
    assert gin.query_parameter("trainer.Trainer.fake_labels").selector.endswith("ones")


def histogram(first):
    return (first, *(0.1 + i / 7 for i in range(999)))


def long_run(folder, first):
    path = folder / f"weights{first}.gin"
    path.write_text(
        f"from __gin__ import dynamic_registration\ninclude '{DIGITS}'\n"
        "from hamgan import labels\nfrom hamgan import trainer\n"
        f"labels.Weighted.weights = {histogram(first)}\n"
        "trainer.Trainer.fake_labels = @labels.Weighted()\n"
    )
    return str(path)


def test_long_values_are_kept_whole(tmp_path):
    run = str(tmp_path / "run")
    load(files=[long_run(tmp_path, 0.25)])
    configuration.settle_configuration(run)
    load(files=(), model_dir=run)
    assert gin.query_parameter("labels.Weighted.weights") == histogram(0.25)
    configuration.settle_configuration(run)
    load(files=[long_run(tmp_path, 0.75)])
    with pytest.raises(ValueError, match=r"labels.Weighted.weights = \(0.25.*there, \(0.75"):
        configuration.settle_configuration(run)
    assert labels.Weighted(weights=histogram(0.75)).weights == histogram(0.75)


def test_wrapped_text_of_old_runs_compares_equal(tmp_path):
    run = tmp_path / "run"
    load(files=[long_run(tmp_path, 0.25)])
    configuration.settle_configuration(str(run))
    path = pathlib.Path(Folder(str(run)).config)
    lines = path.read_text().splitlines()
    wrapped = [
        line.replace(" = ", " = \\\n    ").replace(", ", ",\n     ")
        if "Weighted.w" in line
        else line
        for line in lines
    ]
    assert len(wrapped[[i for i, x in enumerate(lines) if "Weighted.w" in x][0]].splitlines()) > 900
    path.write_text("\n".join(wrapped) + "\n")
    load(files=(), model_dir=str(run))
    configuration.settle_configuration(str(run))
    assert path.read_text().splitlines() == lines


def test_damaged_configuration_is_no_other_configuration(tmp_path):
    run = write_run(tmp_path / "run", "labels.Weighted.weights = \\\nloop.Schedule.num_steps = 4\n")
    load()
    with pytest.raises(ValueError, match="configuration of this run can't be read"):
        configuration.settle_configuration(run)


@pytest.mark.parametrize(
    "param, shown",
    [
        ("networks.Generator.dtype = 'mixed_bfloat16'", r"\(not set\) there, 'mixed_bfloat16'"),
        ("networks.Generator.name = 'g'", r"\(not set\) there, 'g'"),
        ("trainer.Trainer.beta_1 = 0.25", r"\(not set\) there, 0.25"),
    ],
)
def test_settings_of_one_side_are_differences(tmp_path, param, shown):
    load()
    configuration.settle_configuration(str(tmp_path))
    load(param)
    with pytest.raises(ValueError, match=f"{param.split(' =')[0]} = {shown} asked for"):
        configuration.settle_configuration(str(tmp_path))
    load("networks.Generator.dtype = None", "trainer.Trainer.beta_1 = 0")
    configuration.settle_configuration(str(tmp_path))


# Files


def test_include_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "inner.gin").write_text("include 'innermost.gin'\n")
    (folder / "more" / "innermost.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom hamgan import loop\n"
        "loop.Schedule.num_steps = 77\n"
    )
    (folder / "mine.gin").write_text("include 'configs/digits.gin'\ninclude 'more/inner.gin'\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(files=["../mine/mine.gin"]).schedule.num_steps == 77
    (folder / "mine.gin").write_text("include 'gone.gin'\n")
    with pytest.raises(ValueError, match="mine.gin includes 'gone.gin', which isn't there: looked"):
        load(files=["../mine/mine.gin"])


def test_no_error_is_logged_for_a_file_that_is_found(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    load(files=["configs/digits.gin"])
    assert not caplog.records


def test_mistakes_in_a_file_are_found_where_they_are(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text(f"include '{DIGITS}'\n\nloop.Schedule.num_steps = = 3\n")
    with pytest.raises(ValueError, match=r"can't be read.*mine.gin"):
        load(files=[str(path)])


# Arguments


def test_values_of_constructors_are_checked_by_the_same_tables():
    with pytest.raises(ValueError, match="Schedule: save_every must be at least 1, got 2.5"):
        Schedule(save_every=2.5)
    with pytest.raises(ValueError, match="Protocol: quantize must be True or False, got 'yes'"):
        protocols.Protocol(quantize="yes")
    with pytest.raises(ValueError, match="Protocol: num_samples must be at least 2, got True"):
        protocols.Protocol(num_samples=True)
    with pytest.raises(ValueError, match=r"Experiment: schedule must be an object, got 'long'"):
        experiment.Experiment(schedule="long")


def test_a_function_may_be_an_object_that_is_called():
    kind = arguments.function("@a.b")
    assert kind.convert(tf.nn.relu) is tf.nn.relu
    with pytest.raises(ValueError):
        kind.convert(Schedule)


def settings_with(*params, **kwargs):
    """Digest of the generator's settings, as it stands in the key of an evaluation."""
    small = ("networks.Generator.width = 4", "networks.Generator.image_size = 32")
    return settings.digest_of(load(*small, *params, **kwargs).generator())


def test_functions_by_reference_are_known_by_name_and_by_their_bindings():
    """A number's key holds what gin gives a decomposition, and what it leaves as it is."""
    default = settings_with()
    ham = "context.Hamburger.decomposition = "
    assert settings_with(ham + "@decomposition.nmf") == default
    assert settings_with("context.Hamburger.solve = @decomposition.one_step") == default
    cd = ham + "@decomposition.cd"
    others = [
        default,
        settings_with(cd),
        settings_with(cd, "decomposition.cd.temperature = 0.5"),
        settings_with(cd, "decomposition.cd.temperature = 0.25"),
        settings_with(cd, "HEAT = 0.125", "decomposition.cd.temperature = %HEAT"),
        settings_with(ham + "@hot/decomposition.cd", "hot/decomposition.cd.temperature = 0.4"),
        settings_with("HAM = @decomposition.vq", ham + "%HAM"),
        settings_with("context.Hamburger.solve = @decomposition.last_steps"),
        settings_with(
            "context.Hamburger.solve = @decomposition.last_steps",
            "decomposition.last_steps.count = 3",
        ),
    ]
    assert len(set(others)) == len(others)
    # What another reading leaves behind doesn't count.
    assert settings_with(cd) == others[1]
    assert (
        settings_with(ham + "@hot/decomposition.cd", "decomposition.cd.temperature = 0.5")
        == (others[2])
    )


def test_networks_with_functions_by_reference_are_saved_with_their_bindings():
    params = ("context.Hamburger.decomposition = @decomposition.cd", "decomposition.cd.beta = 0.5")
    layer = load(*params).generator().context
    copy = context.Hamburger.from_config(layer.get_config())
    assert copy.decomposition.func is decomposition.cd
    assert copy.decomposition.keywords == {"beta": 0.5}


def test_decomposition_of_ones_own_has_its_own_number(tmp_path, monkeypatch):
    (tmp_path / "my_hams.py").write_text(
        "from hamgan import decomposition\n"
        "def first(x, bases, *, num_steps, solve, scale=1.0):\n"
        "    return decomposition.nmf(x, bases, num_steps=num_steps, solve=solve)\n"
        "second = first\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\nimport my_hams\n"
        f"include '{DIGITS}'\nfrom hamgan import context\n"
        "context.Hamburger.decomposition = @my_hams.first\n"
    )
    found = settings_with(files=[own])
    assert found != settings_with()
    assert found == settings_with(files=[own])
    scaled = tmp_path / "scaled.gin"
    scaled.write_text(own.read_text() + "my_hams.first.scale = 2.0\n")
    assert settings_with(files=[scaled]) != found
    layer = load(files=[own]).generator().context
    with pytest.raises(ValueError, match="can be saved only by its name"):
        layer.get_config()


SEGMENTATION = dict(root=segmentation.SegmentationExperiment, header=segment_common.HEADER)


def test_another_kind_of_configuration_is_told_with_its_command(tmp_path):
    with pytest.raises(ValueError, match="segmentation/digits.gin is a .*use scripts/segment.py"):
        load(files=["segmentation/digits"])
    # Neither the command's header nor what goes with the other kind is in the way.
    with pytest.raises(ValueError, match="of segmentation: use scripts/train.py .hamgan-train"):
        load("trainer.Trainer.batch_size = 8", **SEGMENTATION)
    with pytest.raises(ValueError, match="of a sweep, .* of a GAN: use scripts/sweep.py --sweep"):
        load(files=["sweeps/digits_rank"])
    with pytest.raises(ValueError, match="digits.gin is a configuration of a GAN, .*of a sweep"):
        configuration.load_sweep("configs/digits.gin")
    (tmp_path / "mine.gin").write_text("WIDTH = 2\n")
    with pytest.raises(ValueError, match="must be a configuration of a GAN, and sets nothing of"):
        load(files=[str(tmp_path / "mine.gin")])


def test_sweeps_are_found_by_name_and_listed():
    assert configuration.load_sweep("digits_rank").name == "digits_rank"
    with pytest.raises(ValueError) as told:
        configuration.load_sweep("digits_rnk")
    assert "There is no --sweep=digits_rnk." in str(told.value)
    assert "configs/sweeps/digits_rank.gin" in str(told.value)
    assert "configs/digits.gin" not in str(told.value)
