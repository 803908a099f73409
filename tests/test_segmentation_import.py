"""Import of published segmentation weights: inference, both sides' names, the script."""

import functools
import json
import pathlib
import subprocess
import sys

import gin
import keras
import numpy as np
import pytest
import segmentation_golden
import tensorflow as tf
from absl import flags
from test_segmentation_models import WHOLE

from hamgan import context, decomposition
from hamgan.cli import common, segment, segment_import
from hamgan.run import checkpoints, contents
from hamgan.segmentation import (
    hamburger,
    heads,
    importing,
    layers,
    published,
    recordings,
    resnet,
    segmenter,
    van,
)

ROOT = pathlib.Path(__file__).parent.parent


def call(*arguments, fails=False):
    """Runs the script; returns what it printed."""
    command = [sys.executable, str(ROOT / "scripts" / "segment.py"), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def arguments_of(weights, model_dir, *more):
    return [f"--weights={weights}", f"--model_dir={model_dir}", "--accelerator=cpu", *more]


@pytest.fixture(scope="module")
def script_flags():
    """The script's flags, which other tests in this process must not find required or defined."""
    before = set(flags.FLAGS)
    if "model_dir" not in before:
        common.define_flags()
    segment_import.define_flags()
    yield flags.FLAGS
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture
def run_import(script_flags, capsys):
    """A function that imports weights in this process, and returns what was printed."""

    def reset():
        by_module = script_flags.flags_by_module_dict()
        for flag in by_module["hamgan.cli.common"] + by_module["hamgan.cli.segment_import"]:
            flag.unparse()
        gin.clear_config()

    def run(*arguments):
        reset()
        script_flags(["script", *arguments_of(*arguments)])
        segment_import.main()
        return capsys.readouterr().out

    yield run
    reset()


# Made networks


def made_network(head, backbone=None, classes=3, **settings):
    """A tiny network with random weights and running moments."""
    keras.utils.set_random_seed(0)
    backbone = backbone or functools.partial(
        resnet.ResNet, width=1, stem=(1, 1, 2), output_stride=16
    )
    built = segmenter.Segmenter(num_classes=classes, backbone=backbone, head=head, **settings)
    rng = np.random.default_rng(0)
    for variable in built.variables:
        name = variable.path.split("/")[-1]
        if name in ("gamma", "moving_variance", "coef_ham", "coef_shortcut"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name != "bases":
            variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    return built


def state_dict(built, described, **options):
    return published.state_dict(published.named_variables(built), described, **options)


def made_recording(built, meta, size, batch=2):
    """A recording of what the network does now, for `recordings`; HamNet's."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=[batch, *size, 3]).astype(np.float32)
    keys = tf.constant(rng.integers(0, 1000, [batch, 2]), tf.int32)
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch(images)
        found = built(images, keys=keys)
        logits = built.enlarged(found.logits, size)
        dy = rng.normal(size=logits.shape).astype(np.float32)
        total = tf.reduce_sum(logits * dy)
    squeezed = found.features["squeeze"].shape
    burger = built.head.hamburger
    initial = burger.initial(keys, size=squeezed[1] * squeezed[2])
    bases = [each.numpy().reshape(-1, *each.shape[2:]) for each in initial.values()]
    names = ["bases"] if len(bases) == 1 else ["bases_1", "bases_2"]
    first = functools.partial(np.moveaxis, source=-1, destination=1)
    arrays = {f"eval/{name}": value for name, value in zip(names, bases, strict=True)}
    arrays |= {
        "meta": np.array([batch, 3, *size, *meta], np.int32),
        "x": first(x),
        "dy": first(dy),
        "eval/pred": first(logits.numpy()),
        "eval/dx": first(tape.gradient(total, images).numpy()),
    }
    return arrays


def burger_of(constructor, ham="nmf", **settings):
    function = decomposition.nmf
    if ham != "nmf":
        function = functools.partial(getattr(decomposition, ham), temperature=0.1)
        extra = dict(beta=0.1, normalize=False) if ham == "cd" else {}
        function = functools.partial(function, **extra)
    settings = dict(dim=6, rank=2, num_steps=3, eval_steps=4, decomposition=function) | settings
    return functools.partial(constructor, **settings)


def hamnet_description(version, is_nmf=True, **settings):
    return published.Description(
        family=published.HAMNET,
        backbone=published.RESNET,
        version=version,
        is_nmf=is_nmf,
        classes=3,
        **settings,
    )


MADE = {
    "V1 of channels": ("V1", burger_of(hamburger.Hamburger, hams=("channels",))),
    "V1 of sections": ("V1", burger_of(hamburger.Hamburger, sections=2)),
    "V2 by VQ": ("V2", burger_of(hamburger.HamburgerV2, "vq")),
    "V2+": ("V2+", burger_of(hamburger.HamburgerV2Plus)),
    "V2+ of sections": (
        "V2+",
        burger_of(hamburger.HamburgerV2Plus, sections=3, cheese_factor=3),
    ),
    "dual V2+ by CD": (
        "V2+",
        burger_of(
            hamburger.HamburgerV2Plus, "cd", hams=hamburger.HAMS, sections=2, cheese_factor=4
        ),
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_settings_follow_from_names_shapes_and_a_recording(case):
    version, burger = MADE[case]
    is_nmf = "by" not in case.split()
    head = functools.partial(heads.HamNetHead, channels=5, align_channels=4, hamburger=burger)
    built = made_network(head)
    weights = published.Weights("made", state_dict(built, hamnet_description(version, is_nmf)))
    arrays = made_recording(built, [16, 5, 6, 2, 3, 4, 3, 50], (49, 33))
    described = published.describe(weights)
    assert (described.version, described.is_nmf, described.classes) == (version, is_nmf, 3)

    options, tried = recordings.fit(weights, arrays, published.Options())
    assert len(tried) == (0 if is_nmf else 6)
    again = published.network_part(weights, options).constructor()()
    original, found = built.head.hamburger, again.head.hamburger
    assert type(found) is type(original)
    for name in ("hams", "dim", "rank", "sections", "num_steps", "eval_steps"):
        assert getattr(found, name) == getattr(original, name)
    variables = published.named_variables(again)
    published.assign(weights, published.plan(weights, variables), variables)
    errors = recordings.replay(again, arrays)
    assert max(errors.values()) < 1e-4
    # Everything came through, and nothing else is there.
    assert {name: variable.shape for name, variable in variables.items()} == {
        name: variable.shape for name, variable in published.named_variables(built).items()
    }


def test_running_bases_are_imported():
    burger = burger_of(hamburger.Hamburger, "cd", sections=2, bases=context.WarmStartBases)
    built = made_network(
        functools.partial(heads.HamNetHead, channels=5, align_channels=4, hamburger=burger)
    )
    arrays = state_dict(built, hamnet_description("V1", False, online_bases=(2, 6, 2)))
    assert arrays["hamburger.ham.bases"].shape == (2, 6, 2)
    weights = published.Weights("made", arrays)
    again = published.network_part(weights).constructor()()
    variables = published.named_variables(again)
    published.assign(weights, published.plan(weights, variables), variables)
    bases = again.head.hamburger.bases
    assert isinstance(bases, context.WarmStartBases)
    np.testing.assert_array_equal(bases.bases, arrays["hamburger.ham.bases"])
    assert (again.head.hamburger.sections, again.head.hamburger.rank) == (2, 2)


@pytest.mark.parametrize("stem", ["conv1", "stem"])
def test_imagenet_resnet(stem):
    part = functools.partial(resnet.ResNet, depth=101, width=1, stem=(1, 2, 3))
    built = made_network(
        functools.partial(heads.HamNetHead, channels=2, align_channels=2), backbone=part
    )
    described = published.Description(family=published.IMAGENET, backbone=published.RESNET)
    variables = {
        name: variable
        for name, variable in published.named_variables(built).items()
        if name.startswith("backbone/")
    }
    arrays = published.state_dict(variables, described, has_stem_names=stem == "stem")
    assert f"{stem}.0.weight" in arrays and "layer3.22.bn3.running_var" in arrays
    assert ("bn1.weight" in arrays) == (stem == "conv1")
    arrays |= {"fc.weight": np.zeros([10, 32]), "fc.bias": np.zeros(10)}
    arrays["layer1.0.bn1.num_batches_tracked"] = np.array(0)
    weights = published.Weights("made", arrays)
    part = published.network_part(weights)
    assert part.target is resnet.ResNet
    assert part.settings["stem"] == (1, 2, 3) and part.settings["depth"] == 101
    assert part.settings["multi_grid"] == ((1, 2, 4) if stem == "conv1" else (1, 1, 1))
    backbone = part.constructor()(name="backbone")
    backbone.build((None, None, None, 3))
    variables = published.named_variables(backbone)
    assignments = published.plan(weights, variables)
    assert {a.published for a in assignments if a.ours is None} == {
        "fc.weight",
        "fc.bias",
        "layer1.0.bn1.num_batches_tracked",
    }
    published.assign(weights, assignments, variables)
    x = tf.constant(np.random.default_rng(0).normal(size=[1, 33, 33, 3]), tf.float32)
    if stem == "conv1":
        for one, other in zip(backbone(x), built.backbone(x), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("concat", [True, False])
def test_hamnet_of_mmsegmentation(concat):
    norm = functools.partial(layers.GroupNorm, groups=2)
    burger = functools.partial(
        hamburger.Hamburger, norm=norm, dim=6, rank=2, solve=decomposition.unrolled
    )
    part = functools.partial(
        resnet.ResNet, depth=101, multi_grid=(1, 1, 1), width=1, stem=(1, 1, 2)
    )
    built = made_network(
        functools.partial(
            heads.HamHead,
            channels=4,
            align_channels=2,
            concat_input=concat,
            norm=norm,
            hamburger=burger,
        ),
        part,
        auxiliary=functools.partial(heads.FCNHead, channels=2, norm=norm),
        align_corners=False,
    )
    described = published.Description(
        family=published.MMSEGMENTATION, backbone=published.RESNET, version="ham"
    )
    arrays = state_dict(built, described)
    names = "backbone.stem.7.running_mean backbone.layer3.22.conv3.weight decode_head.ham_in.conv"
    assert {*names.split()[:2], names.split()[2] + ".bias"} <= arrays.keys()
    assert ("decode_head.conv_cat.gn.weight" in arrays) == concat
    weights = published.Weights("made", arrays)
    again = published.network_part(weights, published.Options(groups=2, rank=2)).constructor()()
    variables = published.named_variables(again)
    published.assign(weights, published.plan(weights, variables), variables)
    x = tf.constant(np.random.default_rng(0).normal(size=[2, 48, 32, 3]), tf.float32)
    keys = tf.constant([[1, 2], [3, 4]])
    np.testing.assert_allclose(again(x, keys=keys).logits, built(x, keys=keys).logits, atol=1e-4)
    assert again.auxiliary is not None and not again.align_corners
    assert again.head.hamburger.solve is decomposition.unrolled


def test_published_sizes_of_van():
    for size, settings in van.SIZES.items():
        with keras.StatelessScope(initialize_variables=False):
            backbone = van.VAN(**settings, name="backbone")
            backbone.build((None, None, None, 3))
            shapes = {variable.path: tuple(variable.shape) for variable in backbone.variables}
        keras.utils.clear_session(free_memory=False)
        described = published.Description(family=published.IMAGENET, backbone=published.VAN)
        arrays = {}
        for name, shape in shapes.items():
            there = published.published_name(name, described)
            # Strides of 0: nothing of this size is held.
            value = np.broadcast_to(np.float32(0), shape)
            arrays[there] = published.theirs(there, value)
        arrays["head.weight"] = np.zeros([1, 1])
        part = published.network_part(published.Weights(size, arrays))
        for name, value in settings.items():
            assert part.settings[name] == value


# Errors


def light_weights():
    path = str(segmentation_golden.FOLDER / "light_ham.npz")
    segmentation_golden.load("light_ham")
    return published.load_weights(path)


def test_both_sides_of_a_mismatch_are_listed():
    weights = light_weights()
    built = published.network_part(weights, published.Options(groups=8)).constructor()()
    variables = published.named_variables(built)
    arrays = dict(weights.arrays)
    arrays["backbone.extra.weight"] = np.zeros([2])
    del arrays["decode_head.align.gn.bias"]
    arrays["decode_head.conv_seg.bias"] = np.zeros([9])
    with pytest.raises(ValueError) as error:
        published.plan(published.Weights("made.npz", arrays), variables)
    text = str(error.value)
    assert "backbone.extra.weight [2]: only in the file" in text
    assert "head/align/norm/beta [16]: not in the file, where it is decode_head.align.gn.bias" in (
        text
    )
    assert "decode_head.conv_seg.bias [9]: as [9] it doesn't fit head/classifier/bias, [7]" in text


def test_weights_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="isn't of HamNet .* It has 1 names: conv.weight"):
        published.describe(published.Weights("x", {"conv.weight": np.zeros(1)}))
    with pytest.raises(ValueError, match="There is no file"):
        published.load_weights(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "empty.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="has no keys w/<name>"):
        published.load_weights(str(tmp_path / "empty.npz"))
    (tmp_path / "broken.npz").write_bytes(b"PK no")
    with pytest.raises(ValueError, match="can't be read as an .npz file"):
        published.load_weights(str(tmp_path / "broken.npz"))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("hamnet_os8_v2_nmf", dict(ham="cd"), "The names are those of NMF"),
        ("hamnet_os16_v1_cd", dict(ham="nmf"), "The names aren't those of NMF"),
        ("hamnet_os16_v1_cd", dict(sections=3), "can't share the 20 channels"),
        ("light_ham", dict(output_stride=5), "output_stride must be one of"),
    ],
)
def test_options_that_do_not_fit(names, options, message):
    segmentation_golden.load(names)
    weights = published.load_weights(str(segmentation_golden.FOLDER / f"{names}.npz"))
    with pytest.raises(ValueError, match=message):
        published.network_part(weights, published.Options(**options))


def test_recordings_that_do_not_fit():
    arrays = segmentation_golden.load("light_ham")
    weights = light_weights()
    with pytest.raises(ValueError, match="rank must be 4, as in the recording, got 5"):
        recordings.options_of(weights, arrays, published.Options(rank=5))
    with pytest.raises(ValueError, match="must have eval/bases"):
        without = {k: v for k, v in arrays.items() if k != "eval/bases"}
        recordings.options_of(weights, without, published.Options())
    with pytest.raises(ValueError, match="A recording must have x, meta"):
        recordings.is_of_hamnet({"x": arrays["x"]})
    hamnet = segmentation_golden.load("hamnet_os8_v2_nmf")
    with pytest.raises(ValueError, match="of HamNet, the weights are of MMSegmentation"):
        recordings.options_of(weights, hamnet, published.Options())


# PyTorch's files


@pytest.mark.parametrize("key", ["net", "state_dict", None])
def test_pytorch_checkpoint(key, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra")
    arrays = light_weights().arrays
    state = {f"module.{name}": torch.from_numpy(value) for name, value in arrays.items()}
    content = state if key is None else {key: state, "step": 7, "best_mIoU": 0.5}
    torch.save(content, tmp_path / "final.pth")
    found = published.load_weights(str(tmp_path / "final.pth")).arrays
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as a PyTorch checkpoint"):
        published.load_weights(str(tmp_path / "broken.pth"))
    torch.save({"lr": 1.0}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        published.load_weights(str(tmp_path / "other.pth"))


class Executed:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_nothing_in_a_pytorch_checkpoint_is_executed(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra")
    monkeypatch.chdir(tmp_path)
    torch.save({"net": Executed()}, "bad.pth")
    with pytest.raises(ValueError, match="can't be read as a PyTorch checkpoint"):
        published.load_weights("bad.pth")
    assert not (tmp_path / "executed").exists()


def test_pytorch_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "final.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install hamgan\[torch\]"):
        published.load_weights(str(tmp_path / "final.pth"))


# The script


def rebuilt(model_dir):
    """(network of a run's folder with its weights, checkpoint's path).

    Gin keeps the settings: functions are given theirs when they are called.
    """
    gin.clear_config()
    gin.parse_config_file(str(model_dir / "config.gin"))
    built = gin.get_configurable(segmenter.Segmenter)()
    path = checkpoints.find(str(model_dir))
    variables = {
        f"network/{name}": value for name, value in published.named_variables(built).items()
    }
    contents.restore(path, {"step": tf.Variable(0, dtype=tf.int64), **variables})
    return built, path


@pytest.mark.parametrize("name", WHOLE)
def test_script_reproduces_a_recording(name, run_import, tmp_path):
    file = segmentation_golden.FOLDER / f"{name}.npz"
    output = run_import(file, tmp_path / "run", f"--verify={file}")
    arrays = segmentation_golden.load(name)
    count = sum(key.startswith("w/") for key in arrays)
    assert f"{count} arrays of {file} accounted for, {count} of them used" in output
    assert "ABOVE" not in output and "image_gradient" in output
    # The folder alone gives the network back.
    built, path = rebuilt(tmp_path / "run")
    assert max(recordings.replay(built, arrays).values()) < 1e-4
    assert pathlib.Path(path).name == "ckpt-0"
    (record,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(record)["event"] == "imported"
    with pytest.raises(ValueError, match="has checkpoints already"):
        run_import(file, tmp_path / "run")


def test_wrong_recording_is_a_failure_and_leaves_nothing(run_import, tmp_path):
    arrays = segmentation_golden.load("hamhead_os8")
    arrays["eval/dx"] = arrays["eval/dx"] + 2e-4 * np.abs(arrays["eval/dx"]).max()
    np.savez(tmp_path / "other.npz", **arrays)
    weights = segmentation_golden.FOLDER / "hamhead_os8.npz"
    option, folder = f"--verify={tmp_path / 'other.npz'}", tmp_path / "run"
    # A process of its own: how it ends is what callers see.
    output = call("import", *arguments_of(weights, folder, option), fails=True)
    assert "doesn't reproduce" in output and "image_gradient 2.0" in output
    assert not list(folder.rglob("ckpt*")) and not (folder / "config.gin").exists()
    run_import(weights, folder, option, "--gradient_tolerance=3e-4")
    assert list(folder.rglob("ckpt-0.index"))


def test_script_imports_a_backbone_alone(run_import, tmp_path):
    arrays = {
        name.removeprefix("backbone."): value
        for name, value in light_weights().arrays.items()
        if name.startswith("backbone.")
    }
    keyed = {f"w/{name}": value for name, value in arrays.items()}
    np.savez(tmp_path / "van.npz", **keyed, **{"w/head.weight": np.zeros([2, 32])})
    output = run_import(tmp_path / "van.npz", tmp_path / "run")
    assert "head.weight [2, 32] -> (not needed): ImageNet's classifier" in output
    held = contents.load(checkpoints.find(str(tmp_path / "run")))
    assert len(held) == len(arrays) + 1
    assert {name.split("/")[1] for name in held if name != "step"} == {"backbone"}
    kernel = held["network/backbone/stage_1/embed/kernel"]
    np.testing.assert_array_equal(kernel, arrays["patch_embed1.proj.weight"].transpose(2, 3, 1, 0))


def test_script_says_which_commands_there_are():
    names = ", ".join(segment.COMMANDS)
    assert f"must be one of {names}, got 'imprt'" in call("imprt", fails=True)


def test_configuration_refuses_two_values_of_one_setting():
    norms = [published.Part(layers.GroupNorm, dict(groups=groups)) for groups in (8, 16)]
    head = published.Part(heads.HamHead, dict(norm=norms[0]))
    auxiliary = published.Part(heads.FCNHead, dict(norm=norms[1]))
    part = published.Part(segmenter.Segmenter, dict(head=head, auxiliary=auxiliary))
    with pytest.raises(ValueError, match="layers.GroupNorm.groups must be one value, got 8 and 16"):
        importing.configuration(part)
