"""Plans: chips and shapes, the arithmetic of a plan, and steps given to the TPU's own compiler."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from hamgan import (
    augmentation,
    context,
    decomposition,
    devices,
    experiment,
    networks,
    regularization,
    stateless,
)
from hamgan import trainer as trainers
from hamgan.cli import tpu_plan
from hamgan.tpu import chips, compiler, plan, program

_ham = functools.partial(context.Hamburger, rank=2, num_steps=2)
MODULES = {
    "none": None,
    "nmf": functools.partial(context.Hamburger, rank=2, num_steps=1),
    "cd": functools.partial(_ham, decomposition=decomposition.cd, bases=context.FixedBases),
    "vq": functools.partial(_ham, decomposition=decomposition.vq, solve=decomposition.implicit),
    "learned": functools.partial(
        _ham, bases=context.LearnedBases, solve=decomposition.unrolled, sections=2
    ),
    "warm start": functools.partial(
        _ham, bases=context.WarmStartBases, solve=decomposition.last_steps
    ),
    "v2": functools.partial(context.HamburgerV2, dim=4, rank=2, num_steps=1),
    "v2plus": functools.partial(context.HamburgerV2Plus, dim=4, rank=2, num_steps=1),
    "attention": context.SelfAttention,
    "sparse": functools.partial(context.SparseAttention, dim=8, value_dim=8),
}
# In one step: a compilation takes more than a minute, and one of many parts hardly more.
PARTS = dict(
    regularizers=(regularization.R1(), regularization.Consistency()),
    augment=augmentation.DiffAugment(),
    ema_decay=0.9,
    precision="mixed_bfloat16",
)


def small(module="none", precision=None, **parts):
    """A tiny experiment, 32x32 images, with a context module in both networks."""
    sizes = dict(image_size=32, num_classes=3, width=2, context=MODULES[module])
    sizes["context_resolution"] = 16
    return experiment.Experiment(
        generator=functools.partial(networks.Generator, latent_dim=8, **sizes),
        discriminator=functools.partial(networks.Discriminator, **sizes),
        trainer=functools.partial(trainers.Trainer, batch_size=16, **parts),
        precision=precision,
    )


@pytest.mark.parametrize(
    "text, chip, replicas, hosts, topology",
    [
        ("v2-8", "v2", 8, 1, "v2:2x2"),
        ("v3-8", "v3", 8, 1, "v3:2x2"),
        ("v3-32", "v3", 32, 4, "v3:4x4"),
        ("v4-8", "v4", 4, 1, "v4:2x2x1"),
        ("v5litepod-1", "v5e", 1, 1, "v5e:1x1"),
        ("v5litepod-8", "v5e", 8, 1, "v5e:2x4"),
        ("v5litepod-16", "v5e", 16, 2, "v5e:4x4"),
        ("v5p-8", "v5p", 4, 1, "v5p:2x2x1"),
        ("v6e-8", "v6e", 8, 1, "v6e:2x4"),
    ],
)
def test_machines_by_type_and_topology(text, chip, replicas, hosts, topology):
    machine = chips.from_type(text)
    assert (machine.chip.name, machine.replicas, machine.hosts) == (chip, replicas, hosts)
    assert machine.topology == topology and machine.accelerator_type == text
    again = chips.from_topology(topology)
    assert (again.chips, again.accelerator_type) == (machine.chips, text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("v9:2x2", "begin with a chip, one of v2, .* got 'v9:2x2'"),
        ("v5e", "must be v5e:AxB.* got 'v5e'"),
        ("v5e:2x2x1", "must be v5e:AxB"),
        ("v5p:2x2", "must be v5p:AxBxC"),
        ("v5e:0x2", "must be v5e:AxB"),
    ],
)
def test_wrong_topologies_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        chips.from_topology(text)


def test_every_chip_has_a_price_for_each_chip_and_hour():
    table = chips.prices()
    assert table["date"] and "tpu/pricing" in table["source"]
    assert set(table["on_demand"]) == set(chips.CHIPS)
    made = {"on_demand": {"v5e": 1.5}, "date": "", "source": ""}
    assert chips.dollars_per_hour(chips.from_topology("v5e:2x4"), table=made) == 12.0
    assert chips.dollars_per_hour(chips.from_topology("v5e:2x4"), tier="spot", table=made) is None
    with pytest.raises(ValueError, match="tier must be one of .* got 'cheap'"):
        chips.dollars_per_hour(chips.from_topology("v5e:2x4"), tier="cheap", table=made)


COMPILED = dict(arguments=int(1e9), outputs=int(6e8), aliased=int(5e8), temporaries=int(2e9))
COMPILED |= dict(code=int(1e8), flops=197e9, bytes=8.19e9, all_reduces=3, seconds=1.0)
COMPILED |= dict(hbm_bytes=1.638e9, instructions=1234, loops=2)


def test_plan_is_the_roofline_of_a_core():
    machine = chips.from_topology("v5e:2x4")
    made = plan.Plan(machine=machine, batch_size=64, compiled=COMPILED, image_size=128)
    # 197 GFLOP take 1 ms of 197 TFLOP/s, 8.19 GB take 10 ms of 819 GB/s: memory it is.
    assert made.step_seconds == pytest.approx(0.010)
    assert made.least_seconds == pytest.approx(0.002)
    assert made.images_per_second == pytest.approx(6400)
    assert made.used == int(3.2e9) and made.available == 16e9 and made.fits
    table = {"date": "2000-01", "source": "made", "on_demand": {"v5e": 2.0}}
    text = "\n".join(made.lines(steps=360_000, table=table))
    # 360,000 steps of 10 ms are an hour, 8 chips at $2 are $16 an hour.
    assert "1.0 hours for 360,000 steps, $16 (on_demand, prices of 2000-01" in text
    assert plan.FORMULA in text and text.count("ESTIMATE") == 3
    # 6400 images of 128 x 128 x 3 bytes.
    assert "6,400 images/s, 315 MB/s decoded" in text
    assert "1,234 instructions" in text and "loops, of which one round is counted: 2\n" in text
    assert "loops" not in "\n".join(
        dataclasses.replace(made, compiled=COMPILED | {"loops": 0}).lines(steps=1, table=table)
    )


def test_rounds_of_a_step_are_counted():
    """The compiler counts a loop's round once."""
    machine = chips.from_topology("v5e:2x4")
    made = plan.Plan(machine=machine, batch_size=64, compiled=COMPILED, microbatches=4)
    assert made.step_seconds == pytest.approx(0.040)
    assert made.least_seconds == pytest.approx(0.008)
    text = "\n".join(made.lines(steps=1))
    assert "788.0 GFLOP, 32.76 GB read and written, 6.55 GB of them in HBM" in text
    assert "FLOPs, bytes and instructions are 4 times its account" in text
    assert "4,936 instructions" in text


PROGRAM = """HloModule made

%body.1 (p: f32[4]) -> f32[4] {
  %p.1 = f32[1000]{0:T(128)} parameter(0)
  ROOT %add.1 = f32[1000]{0:T(128)S(1)} add(%p.1, %p.1), metadata={op_name="f(%p)"}
}

%fused.1 (p: f32[4]) -> f32[4] {
  %p.2 = f32[1000000]{0:T(128)} parameter(0)
  ROOT %neg.1 = f32[1000000]{0:T(128)} negate(%p.2)
}

ENTRY %main (a: bf16[4,100]) -> f32[4] {
  %a = bf16[4,100]{1,0:T(8,128)(2,1)} parameter(0)
  %copy-start.1 = (bf16[4,100]{1,0:S(1)}, bf16[4,100]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = bf16[4,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((bf16[4,100]{1,0}), bf16[1,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a)
  %slice-done.1 = bf16[1,100]{1,0:S(1)} slice-done(%slice-start.1)
  %fusion.1 = (f32[50]{0:T(128)}, pred[8]{0:S(1)}) fusion(%copy-done.1, %a), calls=%fused.1
  %part = f32[50]{0:T(128)} get-tuple-element(%fusion.1), index=0
  ROOT %while.1 = f32[1000]{0} while(%part), condition=%nothing, body=%body.1
}
"""


def test_account_of_a_compiled_program():
    # Copied: 800 bytes; a slice of them: 200; the fusion reads 800 and writes 200; a round of the
    # loop reads 4,000 twice.
    moved = 800 + 200 + 800 + 200 + 2 * 4000
    # A copy, a slice, the fusion and the sum in the loop.
    assert compiler.account(PROGRAM) == {"hbm_bytes": moved, "instructions": 4, "loops": 1}


def test_chips_of_two_cores_share_memory_and_peaks():
    machine = chips.from_topology("v3:2x2")
    compiled = {**COMPILED, "temporaries": int(15e9), "bytes": 4.5e9}
    made = plan.Plan(machine=machine, batch_size=8, compiled=compiled)
    assert made.available == 16e9 and not made.fits
    assert made.step_seconds == pytest.approx(0.010)
    assert "DOESN'T FIT" in "\n".join(made.lines(steps=1))


def lines(size):
    return 3e8 + 1.7e7 * size


def tiles(size):
    """As memory is padded, with a jump where something goes elsewhere."""
    return -(-size // 128) * 2e9 + 5e9 * (size > 700)


def refused(size):
    """As the compiler says no number of what is far too large."""
    return lines(size) if lines(size) < 1.1e10 else math.inf


@pytest.mark.parametrize("memory", [lines, tiles, refused])
@pytest.mark.parametrize("limit", [1e8, 4e8, 4.4e8, 2e9, 7.7e9, 1e10, 1e12])
@pytest.mark.parametrize("start", [8, 64, 1024])
def test_the_largest_batch_is_the_largest_that_fits(memory, limit, start):
    tried = []

    def needs(size):
        tried.append(size)
        return memory(size)

    largest = plan.largest_batch(needs, limit=limit, start=start, step=8, most=4000)
    assert largest == max([0, *(size for size in range(8, 4001, 8) if memory(size) <= limit)])
    assert all(size % 8 == 0 for size in tried) and len(tried) == len(set(tried))
    if memory is lines and largest > 0:
        assert len(tried) <= 6
    assert len(tried) <= 14


def test_a_batch_that_replicas_cannot_share_begins_nothing():
    with pytest.raises(ValueError, match="multiple of step"):
        plan.largest_batch(lines, limit=1e9, start=12, step=8)


def fake_compiler(path, answer):
    """A Python that prints an answer and counts its calls in a file beside it."""
    path.write_text(
        f"#!{sys.executable}\nimport pathlib\n"
        f"count = pathlib.Path({str(path)!r} + '.count')\n"
        "count.write_text(count.read_text() + 'x' if count.exists() else 'x')\n"
        f"print('compiled: ' + {json.dumps(answer)!r})\n"
    )
    path.chmod(0o755)
    return path


def test_a_program_is_compiled_once(tmp_path):
    python = fake_compiler(tmp_path / "python", COMPILED)
    for topology in ("v5e:2x2", "v5e:2x2", "v6e:2x2"):
        machine = chips.from_topology(topology)
        answer = plan.compile_for(b"hlo", machine, python=python, cache=tmp_path / "cache")
        assert answer == COMPILED
    assert (tmp_path / "python.count").read_text() == "xx"


def test_what_does_not_compile_is_named_by_layer(tmp_path):
    error = "XlaRuntimeError: no f64: generator_1/block_1_1/norm_1_1/mul in fusion"
    python = fake_compiler(tmp_path / "python", {"error": error})
    machine = chips.from_topology("v5e:1x1")
    with pytest.raises(ValueError, match=r"v5e:1x1 can't run this step: generator_1/block_1_1/no"):
        plan.compile_for(b"hlo", machine, python=python, cache=tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "error, how_much",
    [
        (
            "JaxRuntimeError: RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on "
            "HBM, the total memory required for HLO temporaries (40.26G) exceeds available HBM "
            "(15.75G). HLO module: jit_f.\nSee https://openxla.org/",
            "total memory required for HLO temporaries (40.26G) exceeds available HBM (15.75G)",
        ),
        (
            "XlaRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of "
            "memory in memory space hbm. Used 21.95G of 15.48G hbm.\n Exceeded hbm capacity",
            "Used 21.95G of 15.48G hbm",
        ),
    ],
)
def test_a_step_larger_than_the_memory_is_an_answer(tmp_path, error, how_much):
    """It isn't an error: the plan says so, and bisection goes on with less."""
    python = fake_compiler(tmp_path / "python", {"error": error})
    machine = chips.from_topology("v5e:2x4")
    for _ in range(2):
        answer = plan.compile_for(b"hlo", machine, python=python, cache=tmp_path)
    assert (tmp_path / "python.count").read_text() == "x"
    made = plan.Plan(machine=machine, batch_size=64, compiled=answer)
    assert not made.fits and made.refused == how_much
    assert made.lines(steps=1) == [
        "v5e:2x4 (v5litepod-8), 8 replicas, batch 64: 8 a core",
        f"HBM of a core: DOESN'T FIT: {how_much}",
    ]
    assert tpu_plan.row(("a = 1",), tpu_plan.summary(made)).startswith(
        f"| a = 1 | NO | {how_much} | - |"
    )


def test_a_program_too_large_for_another_memory_does_not_compile(tmp_path):
    error = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem."
    python = fake_compiler(tmp_path / "python", {"error": error})
    with pytest.raises(ValueError, match="can't run this step: RESOURCE_EXHAUSTED"):
        plan.compile_for(b"", chips.from_topology("v5e:1x1"), python=python, cache=tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "isn't a table of prices in JSON"),
        ("[]", "must have date, on_demand, source"),
        ('{"date": "", "source": "", "on_demand": []}', "on_demand must have a price for each"),
        ('{"date": "", "source": "", "on_demand": {"v4": "3"}}', r"of v4 \(on_demand\) .* got '3'"),
        ('{"date": "", "source": "", "on_demand": {}, "spot": {"v4": -1}}', r"v4 \(spot\).*got -1"),
        ('{"date": "", "source": "", "on_demand": {"v4": NaN}}', "got nan"),
    ],
)
def test_wrong_tables_of_prices_are_refused(tmp_path, text, message):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ValueError, match=rf"prices\.json.*{message}"):
        chips.prices(tmp_path / "prices.json")


def test_an_environment_without_jax_is_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("HAMGAN_PLAN_PYTHON", raising=False)
    with pytest.raises(ValueError, match=r"has no jax and libtpu. .*pip install jax=="):
        plan.python_of_compiler(folder=tmp_path)


def test_sweeps_are_all_combinations():
    found = tpu_plan.points(["a.rank=8,16", "b.modules=@X,(1, 2)"])
    assert found == [
        ("a.rank = 8", "b.modules = @X"),
        ("a.rank = 8", "b.modules = (1, 2)"),
        ("a.rank = 16", "b.modules = @X"),
        ("a.rank = 16", "b.modules = (1, 2)"),
    ]
    assert tpu_plan.points(["a=((1, 2), (3, 4)), 5", "b='x,y',[[1, 2], [3]],{'k': 1, 'l': 2}"]) == [
        ("a = ((1, 2), (3, 4))", "b = 'x,y'"),
        ("a = ((1, 2), (3, 4))", "b = [[1, 2], [3]]"),
        ("a = ((1, 2), (3, 4))", "b = {'k': 1, 'l': 2}"),
        ("a = 5", "b = 'x,y'"),
        ("a = 5", "b = [[1, 2], [3]]"),
        ("a = 5", "b = {'k': 1, 'l': 2}"),
    ]


@pytest.mark.parametrize(
    "text", ["rank", "=1,2", "a=", "a= ", "a=1,,2", "a=(4,8", "a=4),8", "a='x"]
)
def test_sweeps_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="must be NAME=VALUE"):
        tpu_plan.points([text])


@pytest.mark.slow
def test_replicas_on_paper_are_summed():
    lowered = program.lower(small(), replicas=2)
    # Each trainable variable's gradient, and two moments of each batch norm in three passes.
    assert lowered.hlo.count(b"all-reduce") > 20
    assert (lowered.batch_size, lowered.image_size, lowered.discriminator_steps) == (16, 32, 1)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_microbatches_have_an_xla_form(replicas):
    """A loop, with no more products of matrices for four parts than for two."""
    two, four = (
        program.lower(small(microbatches=count), replicas=replicas).hlo for count in (2, 4)
    )
    assert b"while" in two
    assert four.count(b"convolution") == two.count(b"convolution")


def test_a_batch_that_replicas_cannot_share_is_refused():
    with pytest.raises(ValueError, match="divisible by the number of replicas"):
        program.lower(small(), replicas=3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        program.PlannedStrategy(0)


def gradients_of(case):
    """The program of a context module's gradients, of four examples, on a TPU.

    It takes the compiler seconds, and a whole step more than a minute.
    """
    layer = MODULES[case]()
    layer.build((None, 16, 16, 8))

    @tf.function(jit_compile=True, autograph=False)
    def gradients(x, key):
        keys = stateless.example_keys(key, tf.range(4))
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, keys=keys, training=True) ** 2)
        watched = [x, *layer.trainable_variables]
        return tape.gradient(loss, watched, unconnected_gradients="zero")

    shapes = tf.TensorSpec([4, 16, 16, 8]), tf.TensorSpec([2], tf.int32)
    with devices.planned("TPU"):
        return gradients.experimental_get_compiler_ir(*shapes)(stage="hlo_serialized")


with_modules = pytest.mark.parametrize("case", [case for case in MODULES if case != "none"])


@pytest.mark.slow
@with_modules
def test_context_modules_have_no_loop(case):
    """Rounds of a loop are done one after another: examples must not be such rounds."""
    assert b"while" not in gradients_of(case)


@pytest.mark.slow
def test_the_steps_parts_have_no_loop():
    assert b"while" not in program.lower(small(**PARTS), replicas=2).hlo


@pytest.fixture(scope="module")
def compiler_python():
    try:
        return plan.python_of_compiler(make=os.environ.get("HAMGAN_MAKE_PLAN") == "1")
    except ValueError as error:
        pytest.skip(f"HAMGAN_MAKE_PLAN=1 makes it: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
@with_modules
def test_context_modules_compile_for_tpus(case, topology, compiler_python, tmp_path):
    machine = chips.from_topology(topology)
    compiled = plan.compile_for(gradients_of(case), machine, python=compiler_python, cache=tmp_path)
    assert compiled["flops"] > 1e5 and compiled["temporaries"] > 0 and compiled["loops"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("parts, loops", [(PARTS, 0), (dict(microbatches=2), 2)])
def test_steps_compile_for_tpus(parts, loops, compiler_python, tmp_path):
    made = plan.make_plan(
        small(**parts),
        chips.from_topology("v5e:2x2"),
        python=compiler_python,
        cache=tmp_path,
    )
    assert made.compiled["flops"] > 1e6 and made.compiled["bytes"] > 1e6 and made.fits
    assert made.compiled["all_reduces"] > 0
    # Of microbatches: the discriminator's and the generator's.
    assert made.compiled["loops"] == loops


@pytest.mark.slow
def test_the_command_prints_a_plan(compiler_python, tmp_path):
    words = ["scripts/tpu_plan.py", "--gin_file=configs/digits.gin", "--topology=v6e:1x1"]
    settings = ("WIDTH = 1", "trainer.Trainer.batch_size = 8", "G/context.Hamburger.num_steps = 1")
    words += [f"--gin_param={setting}" for setting in settings]
    done = subprocess.run(
        [sys.executable, *words, f"--cache={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "HAMGAN_PLAN_PYTHON": str(compiler_python), "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    assert "v6e:1x1 (v6e-1), 1 replicas, batch 8" in done.stdout
    assert ": fits" in done.stdout and "ESTIMATE" in done.stdout
    assert " 0 all-reduces" in done.stdout
