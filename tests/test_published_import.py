"""Import of published checkpoints: the recorded one, and made ones of every kind against NumPy."""

import dataclasses
import functools
import inspect
import json
import pathlib
import re
import subprocess
import sys

import gin
import numpy as np
import numpy_reference as reference
import pytest
import tensorflow as tf
from absl import flags
from helpers import assert_close

from data_prep import digits
from hamgan import context, data, decomposition, networks, published, trainer
from hamgan.cli import common, configuration, import_checkpoint
from hamgan.run import checkpoints

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "published_v1_nmf"
MASKS = ROOT / "tests" / "golden" / "ylg_masks_32x32.npz"
STEP = 30


# Checkpoints as the published code writes them, from its names as the recorded checkpoint shows
# them.

SCOPES = {"generator": "Generator/generator", "discriminator": "Discriminator/discriminator"}


class Made:
    """Variables of a published checkpoint under both names.

    `variables` is {published name: (our name, published array)}; arrays are such that every one of
    them matters.
    """

    def __init__(
        self,
        *,
        widths=(1, 1),
        num_classes=3,
        modules=("v1", "v1"),
        ham_channels=(4, 4),
        adam=False,
        seed=0,
    ):
        self.rng = np.random.default_rng(seed)
        self.widths, self.num_classes, self.modules = widths, num_classes, modules
        self.variables = {}
        self._trained = []
        self._generator(widths[0], modules[0], ham_channels[0])
        self._discriminator(widths[1], modules[1], ham_channels[1])
        self.variables["global_step"] = ("step", np.int64(STEP))
        if adam:
            self._adam()

    def _add(self, kind, name, ours, value, trained=True):
        self.variables[f"{SCOPES[kind]}/{name}"] = (f"{kind}/{ours}", np.float32(value))
        if trained:
            self._trained.append((f"{SCOPES[kind]}/{name}", kind, ours))

    def _spectral(self, kind, scope, ours, shape, *, leaf="kernel", bias=True):
        # A Gaussian m x n matrix has a norm of about sqrt(m) + sqrt(n): some norms here are below
        # 1, some above.
        rows = int(np.prod(shape[:-1]))
        norm = (np.sqrt(rows) + np.sqrt(shape[-1])) / self.rng.uniform(0.7, 1.5)
        self._add(kind, f"{scope}/{leaf}", f"{ours}/kernel", self.rng.normal(size=shape) / norm)
        if bias:
            self._add(kind, f"{scope}/bias", f"{ours}/bias", 0.3 * self.rng.normal(size=shape[-1]))
        full = f"{SCOPES[kind]}/{scope}/{leaf}"
        inner = f"{scope}/{full}"
        if leaf == "embedding_map":
            inner, rows = scope, shape[1]
        u = self.rng.normal(size=[rows, 1])
        name = f"{inner}/spectral_normalize/spectral_norm/spectral_norm_u"
        self._add(kind, name, f"{ours}/u", u / np.linalg.norm(u), trained=False)

    def _norm(self, scope, ours, rows, channels):
        for name in ("gamma", "beta"):
            value = (name == "gamma") + 0.3 * self.rng.normal(size=[rows, 1, 1, channels])
            self._add("generator", f"{scope}/{name}", f"{ours}/{name}", value)
        mean, variance = 0.3 * self.rng.normal(size=channels), self.rng.uniform(0.5, 1.5, channels)
        self._add("generator", f"{scope}/moving_mean", f"{ours}/moving_mean", mean, trained=False)
        self._add(
            "generator",
            f"{scope}/moving_variance",
            f"{ours}/moving_variance",
            variance,
            trained=False,
        )

    def _module(self, kind, module, channels, ham_channels):
        ops = f"{kind[0]}_ops"

        def conv(name, ours, inputs, outputs):
            self._spectral(
                kind,
                f"{ops}/{name}",
                f"context/{ours}",
                [1, 1, inputs, outputs],
                leaf="weights",
                bias=False,
            )

        if module is None:
            return
        if module == "attention":
            for name in ("theta", "phi"):
                conv(f"sn_conv_{name}", name, channels, channels // 8)
            conv("sn_conv_g", "g", channels, channels // 2)
            conv("sn_conv_attn", "attn", channels // 2, channels)
        else:
            conv("sn_lower_bread", "lower_bread", channels, ham_channels)
            if module == "v2":
                conv("sn_cheese", "cheese", ham_channels, channels)
            conv(
                "sn_upper_bread",
                "upper_bread",
                channels if module == "v2" else ham_channels,
                channels,
            )
            if kind == "generator":
                name = "cheese_bn" if module == "v2" else "upper_bread_bn"
                self._norm(f"{ops}/{name}", "context/norm", self.num_classes, channels)
        self._add(kind, f"{ops}/sigma_ratio", "context/gate", 0.7 if kind == "generator" else -0.4)

    def _generator(self, width, module, ham_channels):
        add = functools.partial(self._spectral, "generator")
        add("g_snh0/dense", "dense", [128, 256 * width])
        channels = [16 * width, 16 * width, 8 * width, 4 * width, 2 * width, width]
        for number in range(1, 6):
            inputs, outputs = channels[number - 1 : number + 1]
            block = f"g_block{number}"
            self._norm(f"{block}/cbn_0", f"block_{number}/norm_1", self.num_classes, inputs)
            self._norm(f"{block}/cbn_1", f"block_{number}/norm_2", self.num_classes, outputs)
            add(f"{block}/snconv1/snconv1", f"block_{number}/conv_1", [3, 3, inputs, outputs])
            add(f"{block}/snconv2/snconv2", f"block_{number}/conv_2", [3, 3, outputs, outputs])
            add(f"{block}/snconv3/snconv3", f"block_{number}/shortcut", [1, 1, inputs, outputs])
        self._module("generator", module, 4 * width, ham_channels)
        self._norm("g_bn", "norm", 1, width)
        add("g_snconv_last/g_snconv_last", "to_rgb", [3, 3, width, 3])

    def _discriminator(self, width, module, ham_channels):
        add = functools.partial(self._spectral, "discriminator")
        channels = [3, width, 2 * width, 4 * width, 8 * width, 16 * width, 16 * width]
        for number in range(1, 7):
            inputs, outputs = channels[number - 1 : number + 1]
            block = "d_optimized_block1" if number == 1 else f"d_block{number}"
            add(f"{block}/sn_conv1/sn_conv1", f"block_{number}/conv_1", [3, 3, inputs, outputs])
            add(f"{block}/sn_conv2/sn_conv2", f"block_{number}/conv_2", [3, 3, outputs, outputs])
            if number < 6:
                add(
                    f"{block}/sn_conv3/sn_conv3",
                    f"block_{number}/shortcut",
                    [1, 1, inputs, outputs],
                )
        self._module("discriminator", module, 2 * width, ham_channels)
        add("d_sn_linear/dense", "dense", [16 * width, 1])
        add(
            "d_embedding",
            "embedding",
            [self.num_classes, 16 * width],
            leaf="embedding_map",
            bias=False,
        )

    def _adam(self):
        for name, kind, ours in self._trained:
            shape = self.variables[name][1].shape
            for slot, our_slot in (("Adam", "momentum"), ("Adam_1", "velocity")):
                value = np.float32(self.rng.uniform(0, 0.1, shape))
                our_name = f"{kind}_optimizer/adam/{ours.replace('/', '_')}_{our_slot}"
                self.variables[f"{name}/{slot}"] = (our_name, value)
        for suffix, kind in (("", "generator"), ("_1", "discriminator")):
            self.variables[f"beta1_power{suffix}"] = (None, np.float32(0))
            # TF1 multiplies once more than there were updates.
            power = np.float32(0.999) ** (STEP + 1)
            self.variables[f"beta2_power{suffix}"] = (
                f"{kind}_optimizer/adam/iteration",
                np.float32(power),
            )

    def expected(self):
        """{our name: array in our shape} of everything but the iterations."""
        named = {
            ours: array
            for ours, array in self.variables.values()
            if ours and not ours.endswith("iteration")
        }
        return {
            name: array[:, 0, 0] if "gamma" in name or "beta" in name else array
            for name, array in named.items()
        }

    def weights(self, kind):
        """{name within the network: array in our shape}."""
        return {
            name[len(kind) + 1 :]: v
            for name, v in self.expected().items()
            if name.startswith(kind + "/")
        }


def save(path, arrays):
    """Writes {name: array} as TF1's Saver does."""
    names, values = zip(*arrays.items(), strict=True)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(v) for v in values],
    )
    return str(path)


def save_made(folder, made, **changes):
    """Writes a made checkpoint; `changes` are {published name: array, or None to leave it out}."""
    arrays = {name: array for name, (_, array) in made.variables.items()} | changes
    return save(
        folder / f"model.ckpt-{STEP}",
        {name: array for name, array in arrays.items() if array is not None},
    )


def test_made_names_and_shapes_are_the_published_ones():
    made = Made(widths=(4, 4), num_classes=5, ham_channels=(16, 8), adam=True)
    info = json.loads((GOLDEN / "info.json").read_text())["variables"]
    assert {name: list(array.shape) for name, (_, array) in made.variables.items()} == {
        name.removesuffix(":0"): shape for name, (shape, _) in info.items()
    }


# Running the script


@pytest.fixture(scope="module")
def script_flags():
    """The script's flags, which other tests in this process must not find required or defined."""
    before = set(flags.FLAGS)
    if "model_dir" not in before:
        common.define_flags()
    import_checkpoint.define_flags()
    yield flags.FLAGS
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture
def run(script_flags, tmp_path, capsys):
    """A function that imports a checkpoint into tmp_path / 'run' in this process; returns what was
    printed.
    """

    def run(checkpoint, *arguments, model_dir=tmp_path / "run"):
        reset(script_flags)
        script_flags(
            [
                "script",
                f"--checkpoint={checkpoint}",
                f"--model_dir={model_dir}",
                "--accelerator=cpu",
            ]
            + ["--gin_param=trainer.Trainer.batch_size = 2", f"--data_dir={tmp_path}", *arguments]
        )
        gin.clear_config()
        import_checkpoint.main()
        return capsys.readouterr().out

    yield run
    reset(script_flags)
    gin.clear_config()


def reset(script_flags):
    by_module = script_flags.flags_by_module_dict()
    for flag in by_module["hamgan.cli.common"] + by_module["hamgan.cli.import_checkpoint"]:
        flag.unparse()


def command(script, *arguments):
    return [
        sys.executable,
        str(ROOT / "scripts" / script),
        "--accelerator=cpu",
        *map(str, arguments),
    ]


def call(*arguments, fails=False):
    result = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def read(path, name):
    """A variable of one of our checkpoints."""
    key = name.replace(".", "..").replace("/", ".S") + "/.ATTRIBUTES/VARIABLE_VALUE"
    return tf.train.load_checkpoint(str(path)).get_tensor(key)


def assert_holds(path, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(read(path, name), array, err_msg=name)


@pytest.fixture
def written(tmp_path):
    """The checkpoint that `run` writes."""
    return tmp_path / "run" / "checkpoints" / f"ckpt-{STEP}"


# The recorded checkpoint


def golden_copy(folder, **more):
    """The recorded checkpoint with more variables."""
    checkpoint = published.Checkpoint(str(GOLDEN / "model.ckpt-30"))
    return save(
        folder / "model.ckpt-30",
        {name: checkpoint.value(name) for name in checkpoint.shapes} | more,
    )


def test_script_reproduces_the_recorded_checkpoint(tmp_path):
    arguments = [
        f"--checkpoint={GOLDEN}/model.ckpt-30",
        "--rank=4,2",
        f"--verify={GOLDEN}/golden.npz",
    ]
    output = call(
        "import_checkpoint.py", f"--model_dir={tmp_path}/run", "--tolerance=2e-5", *arguments
    )
    errors = dict(line.split()[:2] for line in output.splitlines() if " within " in line)
    assert errors.keys() == {"images", "logits", "z_grad", "img_grad"}
    assert all(0 < float(error) < 2e-2 for error in errors.values())
    assert (
        "Generator/generator/g_block1/cbn_0/gamma [5, 1, 1, 64] -> generator/block_1/norm_1/gamma: "
        "as [5, 64]" in output
    )
    assert (
        "Discriminator/discriminator/d_ops/sigma_ratio [] -> discriminator/context/gate" in output
    )
    assert "generator: width 4, 5 classes, Hamburger" in output
    assert "ckpt-30" in output


def test_wrong_record_is_a_failure_and_leaves_nothing(run, tmp_path):
    with np.load(GOLDEN / "golden.npz") as arrays:
        arrays = dict(arrays)
    arrays["images"] = arrays["images"] + np.float32(2e-4)
    arrays["img_grad"] = arrays["img_grad"] * np.float32(1.03)
    np.savez(tmp_path / "other.npz", **arrays)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    arguments = ["--rank=4,2", f"--verify={tmp_path}/other.npz"]
    output = call(
        "import_checkpoint.py",
        f"--checkpoint={GOLDEN}/model.ckpt-30.index",
        f"--model_dir={tmp_path}/run",
        *arguments,
        fails=True,
    )
    assert re.search(
        r"ERROR: .* images \S+ \(tolerance 0.0001\), img_grad 2.9\S+ \(tolerance 0.02\)", output
    )
    assert [line.split()[0] for line in output.splitlines() if " ABOVE " in line] == [
        "images",
        "img_grad",
    ]
    assert "Traceback" not in output
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["notes.txt"]

    # Now that nothing is there, it may be tried again.
    more = ["--tolerance=1e-3", "--gradient_tolerance=0.1"]
    assert run(GOLDEN / "model.ckpt-30", *arguments, *more).count(" within ") == 4
    with pytest.raises(ValueError, match=r"has checkpoints already \(ckpt-30\)"):
        run(GOLDEN / "model.ckpt-30", *arguments, *more)


def test_adam_of_the_recorded_names_goes_on(run, written, tmp_path):
    info = json.loads((GOLDEN / "info.json").read_text())["variables"]
    rng = np.random.default_rng(0)
    slots = {
        name.removesuffix(":0"): rng.uniform(0, 0.1, shape).astype(np.float32)
        for name, (shape, _) in info.items()
        if name.removesuffix(":0").endswith(("/Adam", "/Adam_1"))
    }
    powers = dict(
        beta1_power=0.0, beta1_power_1=0.0, beta2_power=0.96946084, beta2_power_1=0.96946084
    )
    powers = {name: np.float32(value) for name, value in powers.items()}
    output = run(golden_copy(tmp_path, **slots, **powers), "--rank=4,2")
    assert "fresh" not in output
    for kind in SCOPES:
        assert read(written, f"{kind}_optimizer/adam/iteration") == 30
    name = "Generator/generator/g_block2/cbn_1/gamma"
    got = read(written, "generator_optimizer/adam/block_2_norm_2_gamma_velocity")
    np.testing.assert_array_equal(got, slots[name + "/Adam_1"][:, 0, 0])
    name = "Discriminator/discriminator/d_optimized_block1/sn_conv3/sn_conv3/kernel"
    got = read(written, "discriminator_optimizer/adam/block_1_shortcut_kernel_momentum")
    np.testing.assert_array_equal(got, slots[name + "/Adam"])
    assert read(written, "step") == 30
    # Without them, Adam starts anew, and the report says so.
    output = run(GOLDEN / "model.ckpt-30", "--rank=4,2", model_dir=tmp_path / "without")
    assert (
        "(nothing) -> generator_optimizer/adam/iteration: fresh: the checkpoint has no Adam state"
        in output
    )
    without = tmp_path / "without" / "checkpoints" / "ckpt-30"
    assert read(without, "generator_optimizer/adam/iteration") == 0
    assert read(without, "step") == 30


# Made checkpoints of every kind, against the networks of numpy_reference.py with a module from here


def numpy_ham(ham, x, bases, num_steps):
    """x [D, N], bases [D, R] as drawn."""
    if ham == "nmf":
        return reference.nmf(x[None], bases[None], num_steps)[0]

    def unit(matrix):
        return matrix / np.maximum(np.linalg.norm(matrix, axis=0), 1e-6)

    bases = unit(bases)
    for _ in range(num_steps):
        coef = reference.softmax(100 * unit(x).T @ bases)
        bases = unit(x @ (coef / (1e-6 + coef.sum(axis=0))))
    return bases @ np.linalg.inv(bases.T @ bases + 0.01 * np.eye(bases.shape[1])) @ bases.T @ x


def numpy_hamburger(weights, x, bases, labels=None, *, ham, num_steps, **_):
    """V1, or V2 where there is a cheese; bases [B, S, D, R]."""
    conv = functools.partial(reference.sn_conv, exact=True)
    matrices = conv(reference.under(weights, "lower_bread"), x).reshape(
        len(x), -1, bases.shape[1] * bases.shape[2]
    )
    for b, s in np.ndindex(bases.shape[:2]):
        channels = slice(s * bases.shape[2], (s + 1) * bases.shape[2])
        matrices[b, :, channels] = numpy_ham(
            ham, matrices[b, :, channels].T, bases[b, s], num_steps
        ).T
    y = matrices.reshape(*x.shape[:3], -1)
    is_v2 = "cheese/kernel" in weights
    y = conv(reference.under(weights, "cheese" if is_v2 else "upper_bread"), y)
    if "norm/gamma" in weights:
        y = reference.batch_norm(reference.under(weights, "norm"), y, labels)
    if is_v2:
        y = conv(reference.under(weights, "upper_bread"), reference.relu(y))
    return x + weights["gate"] * y


def numpy_attention(weights, x, bases, labels=None, *, masks, **_):
    """SAGAN's, or YLG's with the masks of its heads [heads, N, M]."""
    batch, height, width, channels = x.shape
    heads = 1 if masks is None else len(masks)

    def conv(name, x):
        return reference.sn_conv(reference.under(weights, name), x, exact=True)

    def pooled(x):
        return (
            x.reshape(batch, height // 2, 2, width // 2, 2, -1)
            .max(axis=(2, 4))
            .reshape(batch, -1, x.shape[-1])
        )

    theta = conv("theta", x).reshape(batch, height * width, -1)
    phi, g = pooled(conv("phi", x)), pooled(conv("g", x))
    y = np.zeros([batch, height * width, g.shape[2]])
    for head in range(heads):
        dims = slice(head * theta.shape[2] // heads, (head + 1) * theta.shape[2] // heads)
        values = slice(head * g.shape[2] // heads, (head + 1) * g.shape[2] // heads)
        scores = theta[..., dims] @ phi[..., dims].transpose(0, 2, 1)
        if masks is not None:
            scores = scores + (1 - masks[head]) * -1000.0
        y[..., head::heads] = reference.softmax(scores) @ g[..., values]
    return x + weights["gate"] * conv("attn", y.reshape(batch, height, width, -1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A made checkpoint and its settings, (generator's, discriminator's) each."""

    modules: tuple
    widths: tuple = (1, 1)
    num_classes: int = 3
    ham_channels: tuple = (4, 2)
    ham: tuple = ("nmf", "nmf")
    rank: tuple = (2, 1)
    sections: tuple = (1, 1)
    steps: tuple = (6, 6)
    masks: bool = False
    batch: int = 2
    adam: bool = False

    def made(self):
        return Made(
            widths=self.widths,
            num_classes=self.num_classes,
            modules=self.modules,
            ham_channels=self.ham_channels,
            adam=self.adam,
        )

    def flags(self):
        return [
            f"--{name}={','.join(map(str, getattr(self, name)))}"
            for name in ("ham", "rank", "sections", "steps")
        ]

    def bases(self, index, rng):
        """[B * S, d, R], None for a network without a Hamburger."""
        if self.modules[index] not in ("v1", "v2"):
            return None
        sections = self.sections[index]
        draw = rng.uniform if self.ham[index] == "nmf" else rng.normal
        dim = self.ham_channels[index] // sections
        return np.float32(draw(size=[self.batch * sections, dim, self.rank[index]]))

    def constructor(self, index):
        module = self.modules[index]
        if module is None:
            return None
        if module == "attention":
            return context.SparseAttention if self.masks else context.SelfAttention
        return functools.partial(
            context.HamburgerV2 if module == "v2" else context.Hamburger,
            dim=self.ham_channels[index] // self.sections[index],
            rank=self.rank[index],
            sections=self.sections[index],
            num_steps=self.steps[index],
            decomposition=getattr(decomposition, self.ham[index]),
        )

    def numpy_module(self, index):
        if self.modules[index] == "attention":
            masks = None
            if self.masks:
                with np.load(MASKS) as arrays:
                    masks = np.float64(arrays["masks"])
            return functools.partial(numpy_attention, masks=masks)
        return functools.partial(numpy_hamburger, ham=self.ham[index])

    def record(self, made, monkeypatch):
        """What `--verify` takes: images and logits from NumPy; gradients from our networks, put
        together here.

        (That gradients are the published ones is tested with the recorded checkpoint.)
        """
        rng = np.random.default_rng(1)
        labels = np.arange(self.batch) * 2 % self.num_classes
        arrays = {"z": np.float32(rng.normal(size=[self.batch, 128])), "labels": labels}
        arrays["real_images"] = np.float32(rng.uniform(-1, 1, [self.batch, 128, 128, 3]))
        given = {}
        for index, name in enumerate(("g_bases", "d_bases")):
            bases = self.bases(index, rng)
            if bases is not None:
                arrays[name] = bases
                given[name] = bases.reshape(self.batch, self.sections[index], *bases.shape[1:])
        numpy_inputs = {
            "generator": (arrays["z"], given.get("g_bases")),
            "discriminator": (arrays["real_images"], given.get("d_bases")),
        }
        for index, (kind, (inputs, bases)) in enumerate(numpy_inputs.items()):
            if self.modules[index] == "attention":
                bases = ()  # anything that says that there is a module
            monkeypatch.setattr(reference, "hamburger", self.numpy_module(index))
            outputs = getattr(reference, kind)(
                {name: np.float64(array) for name, array in made.weights(kind).items()},
                np.float64(inputs),
                labels,
                bases,
                num_steps=self.steps[index],
            )
            arrays["images" if kind == "generator" else "logits"] = outputs
        arrays["z_grad"], arrays["img_grad"] = self._gradients(made, arrays, given)
        return arrays

    def _gradients(self, made, arrays, given):
        sizes = dict(image_size=128, num_classes=self.num_classes)
        built = {
            "generator": networks.Generator(
                **sizes, width=self.widths[0], context=self.constructor(0)
            ),
            "discriminator": networks.Discriminator(
                **sizes, width=self.widths[1], context=self.constructor(1)
            ),
        }
        for kind, network in built.items():
            weights = made.weights(kind)
            assert weights.keys() == {variable.path for variable in network.variables}
            for variable in network.variables:
                variable.assign(weights[variable.path])
        z, images = tf.constant(arrays["z"]), tf.constant(arrays["real_images"])
        with tf.GradientTape() as tape:
            tape.watch(z)
            fakes = built["generator"](z, arrays["labels"], initial=_initial(given, "g_bases"))
            total = tf.reduce_sum(fakes * images)
        z_grad = tape.gradient(total, z)
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = built["discriminator"](
                images, arrays["labels"], initial=_initial(given, "d_bases")
            )
        return z_grad.numpy(), tape.gradient(logits, images).numpy()


def _initial(given, name):
    """A network's `initial`, where bases [B, S, d, r] are given."""
    return (lambda keys: {"space": tf.constant(given[name])}) if name in given else None


CASES = {
    "NMF": Case(modules=("v1", "v1"), ham_channels=(8, 6), sections=(2, 3), steps=(6, 3), batch=3),
    # A rank above d, which only a record makes believable.
    "V2 and none": Case(
        modules=("v2", None), widths=(1, 2), num_classes=7, ham_channels=(6, 0), rank=(7, 1)
    ),
    "V2 with CD": Case(
        modules=("v2", "v2"),
        widths=(2, 1),
        ham_channels=(12, 8),
        ham=("cd", "cd"),
        sections=(2, 2),
        rank=(3, 2),
        batch=1,
    ),
    "none and CD": Case(
        modules=(None, "v1"), ham=("nmf", "cd"), ham_channels=(0, 6), rank=(9, 3), num_classes=2
    ),
    "SAGAN": Case(modules=("attention", "attention"), widths=(2, 4), adam=True),
    "YLG": Case(modules=("attention", None), widths=(16, 1), num_classes=2, masks=True, batch=1),
    "YLG in both": Case(
        modules=("attention", "attention"), widths=(16, 32), num_classes=2, masks=True, batch=1
    ),
}


# They share their parts with the others but for masks, a net without a module, a rank above d.
SLOW = ["V2 and none", "none and CD", "YLG", "YLG in both"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_every_kind_is_imported_and_verified(
    name, run, script_flags, written, tmp_path, monkeypatch
):
    case = CASES[name]
    made = case.made()
    np.savez(tmp_path / "record.npz", **case.record(made, monkeypatch))
    output = run(save_made(tmp_path, made), *case.flags(), f"--verify={tmp_path}/record.npz")
    assert output.count(" within ") == 4
    assert_holds(written, made.expected())
    kinds = ("generator", "discriminator") if case.adam else ()
    assert [read(written, f"{kind}_optimizer/adam/iteration") for kind in kinds] == [STEP] * len(
        kinds
    )
    # The configuration that was written builds the same, and is what a run writes that goes on from
    # it.
    text = (tmp_path / "run" / "config.gin").read_text()
    going_on = go_on(script_flags)
    assert {name: array.shape for name, array in made.expected().items()}.items() <= {
        name: tuple(variable.shape) for name, variable in going_on.variables().items()
    }.items()
    for index, network in enumerate((going_on.generator, going_on.discriminator)):
        if case.modules[index] in ("v1", "v2"):
            module, ham = network.context, getattr(decomposition, case.ham[index])
            assert (module.rank, module.sections, module.num_steps) == (
                case.rank[index],
                case.sections[index],
                case.steps[index],
            )
            assert inspect.unwrap(module.decomposition) is ham
    assert (tmp_path / "run" / "config.gin").read_text() == text


def go_on(script_flags):
    """The trainer that scripts/train.py builds in the folder of the last import, from the
    configuration there.
    """
    script_flags.gin_file, script_flags.gin_param = [], []
    gin.clear_config()
    experiment = configuration.load_experiment(**common.configuration_flags())
    going_on = experiment.trainer(
        strategy=tf.distribute.OneDeviceStrategy("/cpu:0"),
        generator=experiment.generator,
        discriminator=experiment.discriminator,
    )
    configuration.settle_configuration(script_flags.model_dir)
    return going_on


def test_attention_without_a_record_is_that_of_the_flag(run, tmp_path):
    made = Made(widths=(16, 1), modules=("attention", "v1"), ham_channels=(0, 2))
    checkpoint = save_made(tmp_path, made)
    output = run(checkpoint, "--rank=1", "--attention=ylg")
    assert "generator: width 16, 3 classes, SparseAttention, dim 8, value_dim 32\n" in output
    assert (
        "networks.Generator.context = @G/context.SparseAttention"
        in (tmp_path / "run" / "config.gin").read_text()
    )
    output = run(checkpoint, "--rank=1", model_dir=tmp_path / "other")
    assert "SelfAttention, dim 8, value_dim 32 (ASSUMED: ylg has the same variables." in output


class Features(tf.Module):
    """The smallest feature network: mean colours of quarters."""

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    def __call__(self, images):
        pooled = tf.nn.avg_pool2d(images, 4, 4, "VALID")
        pooled = tf.reshape(pooled, [-1, 12])
        return {"pool_3": pooled, "logits": pooled[:, :5]}


@pytest.fixture
def imported_digits(run, tmp_path):
    """Imports a checkpoint of ten classes for training on digits; returns what `Made` holds."""
    digits.prepare(str(tmp_path))
    features = Features()
    tf.saved_model.save(features, str(tmp_path / "features"), signatures=features.__call__)
    made = Made(num_classes=10, widths=(1, 2), adam=True)
    params = [
        "data.ImageDataset.name = 'digits'",
        "data.ImageDataset.reference_split = 'test'",
        "features.FeatureNetwork.handle = '{data_dir}/features'",
        "features.FeatureNetwork.size = 8",
        "protocol.Protocol.num_samples = 16",
        "protocol.Protocol.batch_size = 16",
    ]
    run(save_made(tmp_path, made), "--rank=2,1", *(f"--gin_param={param}" for param in params))
    assert (tmp_path / "run" / "classes.txt").read_text().split() == list("0123456789")
    return made


@pytest.mark.slow
def test_training_goes_on_from_an_import(imported_digits, script_flags, tmp_path):
    going_on = go_on(script_flags)
    dataset = data.ImageDataset(
        name="digits", image_size=128, num_classes=10, reference_split="test", data_dir=tmp_path
    )
    checkpoints.Checkpoints(
        str(tmp_path / "run" / "checkpoints"), going_on.variables()
    ).restore_latest()
    metrics = going_on.train_steps(going_on.batches(dataset), 1)
    assert metrics["first_bad_step"] == -1

    # One step of Adam by hand: with beta_1 = 0 it moves a weight by -rate * gradient /
    # sqrt(velocity / (1 - beta_2^t)), where the velocity is mostly what was imported.
    before = imported_digits.expected()
    after = {name: variable.numpy() for name, variable in going_on.variables().items()}
    assert after["generator_optimizer/adam/iteration"] == after["step"] == STEP + 1
    name = "generator_optimizer/adam/block_2_conv_1_kernel"
    gradient, velocity = after[f"{name}_momentum"], after[f"{name}_velocity"]
    assert_close(velocity, 0.999 * before[f"{name}_velocity"] + 0.001 * gradient**2, 1e-5)
    move = -1e-4 * gradient / np.sqrt(velocity / (1 - 0.999 ** (STEP + 1)))
    name = "generator/block_2/conv_1/kernel"
    assert_close(after[name], before[name] + move, 1e-6)
    assert np.abs(move).max() > 5e-5 * np.abs(before[name]).max()


@pytest.mark.slow
def test_scripts_go_on_from_an_import(imported_digits, tmp_path):
    folders = [f"--model_dir={tmp_path}/run", f"--data_dir={tmp_path}"]
    output = call("train.py", *folders, f"--gin_param=loop.Schedule.num_steps = {STEP + 1}")
    assert "ckpt-30" in output and f"Checkpoint: {tmp_path}/run/checkpoints/ckpt-31" in output
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["event"] for line in lines if line["kind"] == "event"] == ["imported", "resumed"]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [STEP + 1]
    output = call("evaluate.py", *folders, "--checkpoint=ckpt-30")
    assert "ckpt-30: FID" in output
    call(
        "sample.py", *folders, "--classes=3,7", "--per_class=2", f"--output={tmp_path}/samples.npz"
    )
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["images"].shape == (4, 128, 128, 3)


# What is refused


@pytest.fixture(scope="module")
def variables():
    """{our name: variable} of what `Made()` holds."""
    ham = functools.partial(context.Hamburger, dim=4, rank=2)
    built = trainer.Trainer(
        strategy=tf.distribute.OneDeviceStrategy("/cpu:0"),
        generator=functools.partial(networks.Generator, width=1, num_classes=3, context=ham),
        discriminator=functools.partial(
            networks.Discriminator, width=1, num_classes=3, context=ham
        ),
        batch_size=2,
    )
    return built.variables()


@pytest.fixture
def plan(tmp_path, variables):
    """A function that plans the import of `Made(adam=...)` with changes: {our name: Assignment}."""

    def plan(*, adam=False, **changes):
        checkpoint = published.Checkpoint(save_made(tmp_path, Made(adam=adam), **changes))
        return {a.ours: a for a in published.plan(checkpoint, variables)}

    return plan


KERNEL = "Generator/generator/g_block3/snconv1/snconv1/kernel"


@pytest.mark.parametrize(
    "adam, changes, lines",
    [
        (
            False,
            {KERNEL: None},
            ["generator/block_3/conv_1/kernel [3, 3, 8, 4]: not in the checkpoint"],
        ),
        (
            False,
            {"Discriminator/discriminator/d_ops/sigma_ratio": None},
            ["discriminator/context/gate []: not in"],
        ),
        (
            False,
            {"Generator/generator/g_bn/beta": None},
            ["generator/norm/beta [1, 1]: not in the checkpoint"],
        ),
        (
            False,
            {"Generator/generator/g_block9/cbn_0/gamma": np.ones([3, 1, 1, 4], np.float32)},
            [
                "g_block9/cbn_0/gamma [3, 1, 1, 4]: only in the checkpoint (it would be "
                "generator/block_9/norm_1/gamma)"
            ],
        ),
        (
            False,
            {KERNEL + "/ExponentialMovingAverage": np.ones(1)},
            [KERNEL + "/ExponentialMovingAverage [1]: only in"],
        ),
        (False, {"something": np.ones(2)}, ["  something [2]: only in the checkpoint"]),
        (
            False,
            {KERNEL: np.ones([3, 3, 8, 5])},
            [KERNEL + ": [3, 3, 8, 5] in the checkpoint, but generator/block_3"],
        ),
        (False, {KERNEL: np.ones([8])}, [KERNEL + ": [8] in the"]),
        (
            True,
            {KERNEL + "/Adam_1": None},
            ["generator_optimizer/adam/block_3_conv_1_kernel_velocity [3, 3, 8, 4]: not"],
        ),
        (
            False,
            {
                KERNEL: None,
                "something": np.ones(2),
                "Generator/generator/g_bn/moving_mean": np.ones(7),
            },
            [
                "block_3/conv_1/kernel [3, 3, 8, 4]: not in",
                "something [2]: only in",
                "moving_mean: [7] in the checkpoint",
            ],
        ),
        (
            False,
            {"Discriminator/discriminator/d_sn_linear/dense/spectral_norm_u": np.ones([16, 1])},
            ["discriminator/dense/u is Discriminator/discriminator/d_sn_linear/dense/Disc"],
        ),
    ],
)
def test_leftovers_on_both_sides_are_listed(plan, adam, changes, lines):
    with pytest.raises(ValueError, match="doesn't fit the networks it seems to be of") as error:
        plan(adam=adam, **changes)
    for line in lines:
        assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1 + len(lines)


def test_scopes_around_u_do_not_matter(tmp_path, variables):
    arrays, moved = {}, 0
    for name, (_, array) in Made().variables.items():
        if name.endswith("/spectral_norm_u"):
            # <layer>/<network>/<layer>/kernel/... or, of the embedding, <layer>/...
            layer = re.match(r"(.+?)/(Generator|Discriminator|spectral_normalize)/", name)[1]
            name, moved = f"{layer}/Generator_1/other/spectral_norm_u", moved + 1
        arrays[name] = array
    assert moved == 40
    checkpoint = published.Checkpoint(save(tmp_path / "model.ckpt-30", arrays))
    planned = {a.ours for a in published.plan(checkpoint, variables) if a.published}
    assert planned == set(Made().expected())


# Counts


def power(updates, dtype=np.float32):
    """beta2_power after so many updates, as TF1 computes it."""
    value = beta = dtype(0.999)
    for _ in range(updates):
        value *= beta
    return value


@pytest.mark.parametrize(
    "changes, step, iterations",
    [
        ({}, 30, (30, 30)),
        ({"global_step": None}, 0, (30, 30)),
        ({"beta2_power": None, "beta2_power_1": None}, 30, (30, 30)),
        # Two updates of the discriminator for each of the generator.
        ({"beta2_power_1": power(60)}, 30, (30, 60)),
        (
            {"beta2_power": power(0), "beta2_power_1": power(0), "global_step": np.int64(0)},
            0,
            (0, 0),
        ),
        # Rounding adds up, but not so far that it looks like another step.
        (
            {
                "beta2_power": power(20_000),
                "beta2_power_1": power(20_000),
                "global_step": np.int64(20_000),
            },
            20_000,
            None,
        ),
        # The power has become 0.
        (
            {
                "beta2_power": np.float32(0),
                "beta2_power_1": np.float32(0),
                "global_step": np.int64(10**6),
            },
            10**6,
            None,
        ),
        # TPUEstimator's scopes.
        (
            {
                "beta2_power": None,
                "beta2_power_1": None,
                "generator_train/beta2_power": power(30),
                "discriminator_train/beta2_power": power(90),
            },
            30,
            (30, 90),
        ),
        ({"dummy_global_step_generator": np.int64(30)}, 30, (30, 30)),
    ],
)
def test_counts(plan, changes, step, iterations):
    planned = plan(adam=True, **changes)
    assert planned["step"].value == step
    got = tuple(planned[f"{kind}_optimizer/adam/iteration"].value for kind in SCOPES)
    assert got == (iterations or (step, step))


def test_power_of_0_without_a_step_corrects_nothing(plan):
    zero = np.float32(0)
    planned = plan(adam=True, beta2_power=zero, beta2_power_1=zero, global_step=None)
    iterations = planned["generator_optimizer/adam/iteration"].value
    assert 1 - 0.999**iterations == pytest.approx(1, abs=1e-15) and iterations < 10**6


def test_rounded_power_gives_nearly_the_count(plan):
    planned = plan(adam=True, beta2_power=power(20_000), global_step=None)
    assert planned["generator_optimizer/adam/iteration"].value == pytest.approx(20_000, abs=2)


def test_slots_without_a_count_are_refused(plan):
    with pytest.raises(
        ValueError, match="Adam slots of the generator, but neither beta2_power nor global_step"
    ):
        plan(adam=True, beta2_power=None, beta2_power_1=None, global_step=None)


def test_counts_without_slots_are_not_needed(plan):
    planned = plan(beta2_power=power(30))
    assert planned[None].published == "beta2_power"
    assert planned["generator_optimizer/adam/iteration"].published is None
    assert planned["step"].value == STEP


# Wrong use


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--rank=5,2"],
            r"--rank must not be above d, in the generator 4 channels / 1 sections = 4, got 5",
        ),
        (["--rank=2,1", "--sections=1,4"], None),
        (
            ["--rank=2", "--sections=1,4"],
            r"--rank must not be above d, in the discriminator 4 .* / 4 .* = 1, got 2",
        ),
        (
            ["--rank=1", "--sections=3"],
            r"--sections must divide the 4 channels of the generator's lower bread, got 3",
        ),
        (
            ["--rank=1,2,3"],
            r"--rank must be one value, or the generator's and .* got 3 values: 1,2,3",
        ),
        (["--rank="], r"--rank must be one value, .* got 0 values"),
        (["--rank=two"], r"--rank must be a whole number of at least 1, got 'two'"),
        (["--rank=0"], r"--rank must be a whole number of at least 1, got '0'"),
        (["--rank=1", "--steps=-1"], r"--steps must be a whole number of at least 0, got '-1'"),
        (["--rank=1", "--ham=nmf,vq"], r"--ham must be one of nmf, cd, got 'vq'"),
        (["--rank=1", "--verify=nothing.npz"], r"--verify: nothing.npz can't be read"),
        (
            ["--rank=1", "--gin_param=WIDTH = 2"],
            r"/kernel: \[3, 3, 1, 2\] in the checkpoint, but discriminator/block_2",
        ),
        (
            ["--rank=1", "--gin_param=trainer.Trainer.rate = 2"],
            r"doesn't have a parameter named 'rate'",
        ),
    ],
)
def test_wrong_flags_are_named(run, tmp_path, arguments, message):
    checkpoint = save_made(tmp_path, Made())
    if message is None:
        run(checkpoint, *arguments)
        return
    with pytest.raises(ValueError, match=message):
        run(checkpoint, *arguments)
    assert not (tmp_path / "run").exists()


def test_record_that_does_not_fit_is_refused_before_anything_is_written(run, tmp_path):
    with np.load(GOLDEN / "golden.npz") as arrays:
        arrays = dict(arrays)
    np.savez(
        tmp_path / "less.npz",
        **{name: array for name, array in arrays.items() if name not in ("z", "d_bases")},
    )
    np.savez(tmp_path / "labels.npz", **{**arrays, "labels": np.array([1, 5])})
    for name, rank, message in [
        (
            "golden",
            "4,4",
            r"d_bases must be \[2, 8, 4\] \(batch \* sections, d, rank\), got \[2, 8, 2\]",
        ),
        ("less", "4,2", r"must have .*; d_bases, z missing"),
        ("labels", "4,2", r"labels must be in \[0, 5\), got 1 to 5"),
    ]:
        path = (GOLDEN if name == "golden" else tmp_path) / f"{name}.npz"
        with pytest.raises(ValueError, match=message):
            run(GOLDEN / "model.ckpt-30", f"--rank={rank}", f"--verify={path}")
    assert not (tmp_path / "run").exists()


def test_unreadable_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="model.ckpt-7 can't be read as a checkpoint"):
        published.Checkpoint(str(tmp_path / "model.ckpt-7"))
    path = pathlib.Path(save_made(tmp_path, Made()))
    data, index = (path.with_name(path.name + end) for end in (".data-00000-of-00001", ".index"))
    data.write_bytes(data.read_bytes()[:1000])
    checkpoint = published.Checkpoint(str(path))
    with pytest.raises(ValueError, match="can't be read from .*missing or cut short"):
        for name in checkpoint.shapes:
            checkpoint.value(name)
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        published.Checkpoint(str(path))


def test_truncated_checkpoint_is_refused_before_anything_is_written(run, tmp_path):
    path = pathlib.Path(save_made(tmp_path, Made()))
    data = path.with_name(path.name + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="missing or cut short"):
        run(path, "--rank=2")
    data.unlink()
    with pytest.raises(ValueError, match="missing or cut short"):
        run(path, "--rank=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"model/kernel": np.ones(3)},
            r"isn't a checkpoint of the published code: .* generator under Generator/gen",
        ),
        (
            {"Generator/generator/a": np.ones(3)},
            "isn't a checkpoint of the published code: .* discriminator under Disc",
        ),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, arrays, message):
    checkpoint = published.Checkpoint(save(tmp_path / "model.ckpt-1", arrays))
    with pytest.raises(ValueError, match=message):
        published.describe(checkpoint)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"Discriminator/discriminator/d_embedding/embedding_map": np.ones([4, 16])},
            "3 in the .* and 4 in the",
        ),
        (
            {"Discriminator/discriminator/d_embedding/embedding_map": None},
            "has no .*/embedding_map .* it has 55 var",
        ),
        (
            {"Generator/generator/g_ops/odd/weights": np.ones(1)},
            "must hold a Hamburger .* or attention .*, got odd",
        ),
    ],
)
def test_undescribable_checkpoints_are_refused(tmp_path, changes, message):
    made = Made(modules=(None, None))
    with pytest.raises(ValueError, match=message):
        published.describe(published.Checkpoint(save_made(tmp_path, made, **changes)))


def test_networks_are_described_one_by_one(tmp_path):
    made = Made(widths=(2, 4), num_classes=9, modules=("v2", "attention"), ham_channels=(12, 0))
    described = published.describe(published.Checkpoint(save_made(tmp_path, made)))
    assert described["generator"] == published.Network(
        width=2, num_classes=9, module="hamburger_v2", ham_channels=12, latent_dim=128
    )
    assert described["discriminator"] == published.Network(
        width=4, num_classes=9, module="attention", dim=1, value_dim=4
    )
    assert not described["discriminator"].may_be_sparse
