import functools
import json
import pathlib
import re
import subprocess
import sys

import benchmark_jobs
import numpy_reference as reference
import pytest
import tensorflow as tf
from helpers import array, assert_close, build, weights
from PIL import Image

from hamgan.benchmarks import context, context_modules, context_report, measure
from hamgan.cli import benchmark_parts
from hamgan.spectral import SpectralConv2D

ROOT = pathlib.Path(__file__).parent.parent
SMALL = context_modules.Shape(
    name="small", batch=2, height=4, width=4, channels=64, rank=3, num_classes=5
)


# Multiply-adds


def test_macs_of_products_by_hand():
    a, b = tf.TensorSpec([3, 4, 5]), tf.TensorSpec([3, 5, 6])
    assert measure.count_macs(tf.matmul, a, b) == 3 * 4 * 5 * 6
    assert measure.count_macs(functools.partial(tf.einsum, "bij,bjk->ik"), a, b) == 3 * 4 * 5 * 6
    assert measure.count_macs(lambda a: a * a + 1, a) == 0
    assert (
        measure.count_macs(lambda a: tf.matmul(a, a, transpose_b=True) @ a, a) == 2 * 3 * 4 * 4 * 5
    )


@pytest.mark.parametrize("size", [1, 3])
def test_macs_of_a_convolution_by_hand(size):
    layer = SpectralConv2D(7, size)
    layer.build((2, 5, 6, 4))
    per_weight_of_the_norm = 2  # W^T u and W v
    kernel = size * size * 4 * 7
    expected = 2 * 5 * 6 * kernel + per_weight_of_the_norm * kernel
    assert measure.count_macs(layer, tf.TensorSpec([2, 5, 6, 4])) == expected


def test_macs_of_the_gradient_of_a_1x1_convolution_are_twice_its_own():
    x, kernel = tf.TensorSpec([2, 5, 6, 4]), tf.TensorSpec([1, 1, 4, 7])

    def both(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return y, tape.gradient(y, [x, kernel])

    assert measure.count_macs(both, x, kernel) == 3 * 2 * 5 * 6 * 4 * 7


def test_macs_of_grouped_convolutions():
    x = tf.TensorSpec([2, 5, 6, 4])
    depthwise = functools.partial(tf.nn.depthwise_conv2d, strides=[1, 1, 1, 1], padding="SAME")
    assert measure.count_macs(depthwise, x, tf.TensorSpec([3, 3, 4, 1])) == 2 * 5 * 6 * 4 * 9


def test_macs_in_a_loop_are_refused():
    def looped(x):
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y @ x), (0, x))

    with pytest.raises(ValueError, match="is a loop with matrix products in it"):
        measure.count_macs(looped, tf.TensorSpec([4, 4]))


# The modules


def counts(*cases):
    """What `count_job` counts, of each case."""
    records = list(context.count_job(cases=[case.as_json() for case in cases]))
    assert not any("error" in record for record in records), str(records)
    return records


@pytest.mark.parametrize(
    "module, num_steps",
    [
        *((module, 2) for module in context_modules.MODULES),
        ("v1_nmf", 0),
        ("v1_cd", 0),
        ("v1_vq", 0),
    ],
)
def test_counted_macs_equal_the_formula(module, num_steps):
    case = context_modules.Case(module=module, shape=SMALL, num_steps=num_steps)
    (record,) = counts(case)
    assert record["macs"] == record["formula"] > 0
    assert 2 < record["macs_training"] / record["macs"] < 3 + 1e-9 or module.startswith("v")
    assert record["macs_training"] > 1.5 * record["macs"]


def published_order(case, macs):
    """The paper's hams form their n x d product, then convolve it."""
    s, c = case.shape, case.shape.channels
    return macs - s.rank * c * (c + s.pixels) + s.pixels * c * (s.rank + c)


@pytest.mark.parametrize("module", context_modules.PUBLISHED)
def test_paper_shape_has_the_papers_macs(module):
    parameters, macs = context_modules.PUBLISHED[module][:2]
    case = context_modules.Case(module=module, shape=context_modules.SHAPES["paper"])
    (record,) = counts(case)
    counted = published_order(case, record["macs"]) if module.startswith("v1") else record["macs"]
    assert counted == pytest.approx(macs, rel=0.01)
    assert record["macs"] <= counted
    # The paper's million is 2^20.
    assert record["parameters"] / 2**20 == pytest.approx(parameters / 1e6, abs=0.011)


def test_work_grows_as_promised():
    counted = {}
    for module in ("self_attention", "v1_nmf"):
        cases = context.scaling_cases([module], sides=(32, 64), channels=16, rank=2)
        small, large = (record["macs"] for record in counts(*cases))
        counted[module] = large / small
    assert 15 < counted["self_attention"] < 16 and 3.9 < counted["v1_nmf"] <= 4


def macs_of_training(solve, num_steps):
    case = context_modules.Case(module="v1_nmf", shape=SMALL, solve=solve, num_steps=num_steps)
    (record,) = counts(case)
    return record["macs_training"] - record["macs"]


def test_work_of_the_backward_pass_grows_with_k_only_where_unrolled():
    assert macs_of_training("one_step", 2) == macs_of_training("one_step", 8)
    assert macs_of_training("implicit", 2) == macs_of_training("implicit", 8)
    two, five, eight = (macs_of_training("unrolled", num_steps) for num_steps in (2, 5, 8))
    assert eight - five == five - two > 0


def attention_inputs(layer, x):
    w = weights(layer)
    convs = [
        reference.sn_conv(reference.under(w, name), x, exact=True) for name in ("theta", "phi", "g")
    ]
    return [y.reshape(len(x), -1, y.shape[-1]) for y in convs]


def attention_output(layer, x, y):
    w = weights(layer)
    y = y.reshape(*x.shape[:3], -1)
    return x + w["gate"] * reference.sn_conv(reference.under(w, "attn"), y, exact=True)


def test_full_attention_equals_numpy():
    x = array(2, 4, 6, 8)
    layer = build(context_modules.FullAttention(dim=3, value_dim=5), None, 4, 6, 8)
    queries, keys, values = attention_inputs(layer, x)
    y = reference.softmax(queries @ keys.transpose(0, 2, 1)) @ values
    assert_close(layer(tf.constant(x)), attention_output(layer, x, y), 1e-5)


def test_double_attention_equals_numpy():
    x = array(2, 4, 6, 8)
    layer = build(context_modules.DoubleAttention(dim=3, value_dim=5), None, 4, 6, 8)
    queries, keys, values = attention_inputs(layer, x)
    over_pixels = reference.softmax(keys.transpose(0, 2, 1))  # [B, c, N]
    y = reference.softmax(queries) @ (over_pixels @ values)
    assert_close(layer(tf.constant(x)), attention_output(layer, x, y), 1e-5)


# Rounds of timing


def test_calls_take_turns_and_a_failing_one_leaves_the_others():
    called = []

    def fake(name, seconds):
        def call():
            called.append(name)
            if seconds is None:
                raise ValueError("too large")
            return seconds

        return call

    calls = {"a": fake("a", 1.0), "bad": fake("bad", None), "b": fake("b", 0.02)}
    records = list(measure.interleaved_seconds(calls, repeats=2, shortest=0.05))
    assert [name for name, value in records if value is None] == ["a", "bad", "b"]
    ((failed, error),) = [r for r in records if isinstance(r[1], Exception)]
    assert failed == "bad" and str(error) == "too large"
    assert records[-4:] == [("a", 1.0), ("b", pytest.approx(0.02))] * 2
    # 0.05 s take three calls of 0.02 s.
    assert called[-8:] == ["a", "b", "b", "b"] * 2 and called.count("bad") == 1


# Processes and memory


@pytest.fixture
def findable(monkeypatch):
    """Lets child processes import what lies beside this file."""
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent))


@pytest.mark.slow
@pytest.mark.parametrize(
    "job, arguments, yielded, message",
    [
        (benchmark_jobs.fail, {"values": [1, {"two": 2.5}]}, [1, {"two": 2.5}], "that was all"),
        (benchmark_jobs.be_killed, {}, [1], "SIGKILL, which the system sends when memory runs out"),
    ],
)
def test_child_gives_what_it_has_and_then_its_error(findable, job, arguments, yielded, message):
    got = []
    with pytest.raises(measure.ChildError, match=message):
        for value in measure.in_child(job, arguments):
            got.append(value)
    assert got == yielded


@pytest.mark.skipif(
    measure.resident_memory() is None, reason="without Linux's /proc memory isn't measured"
)
@pytest.mark.slow
def test_child_sees_a_peak_that_is_gone_and_ends_itself_before_it_takes_too_much(findable):
    got = []
    sizes = {"peak": 300 * 10**6, "too_much": 1900 * 10**6}
    with pytest.raises(measure.ChildError, match="out of memory: more than 2.0 GB"):
        for value in measure.in_child(
            benchmark_jobs.take_memory,
            sizes,
            environment=measure.MEMORY_ENVIRONMENT,
            memory_limit=2 * 10**9,
        ):
            got.append(value)
    (peak,) = got
    assert 290e6 < peak < 400e6


def test_errors_in_one_line():
    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")
    assert measure.first_line(exhausted) == "out of memory: OOM when allocating"
    assert measure.first_line(MemoryError()) == "out of memory"
    assert measure.first_line(ValueError("a rule\nmore")) == "a rule"
    assert measure.first_line(tf.errors.InternalError(None, None, "why")) == "InternalError: why"


# Everything together


def scripted(memory_errors=(), dies_at=()):
    """A `run` for `measure_cases` that measures nothing: counts and times by the index, with errors
    where asked for.
    """
    deaths = list(dies_at)

    def run(job, arguments, *, environment=None):
        if job is context.count_job:
            for index, _ in enumerate(arguments["cases"]):
                yield {"case": index, "parameters": 1, "macs": 2, "macs_training": 3, "formula": 2}
        elif job is context.memory_job:
            assert environment == measure.MEMORY_ENVIRONMENT
            if (arguments["case"]["module"], arguments["mode"]) in memory_errors:
                raise measure.ChildError("out of memory: more than 1.0 GB")
            yield {"bytes": 5}
        else:
            for index, _ in enumerate(arguments["cases"]):
                yield {"case": index}
            for _ in range(arguments["repeats"]):
                for index, (case, mode) in enumerate(arguments["cases"]):
                    yield {"case": index, "seconds": float(len(mode))}
                    if (case["module"], mode) in deaths:
                        deaths.remove((case["module"], mode))
                        raise measure.ChildError("The process ended with signal SIGKILL")

    return run


def test_what_fails_leaves_the_others_standing():
    cases = [
        context_modules.Case(module=module, shape=SMALL)
        for module in ("self_attention", "v1_nmf", "v1_cd")
    ]
    run = scripted(memory_errors=[("self_attention", "training")], dies_at=[("v1_nmf", "training")])
    attention, nmf, cd = context.measure_cases(cases, repeats=3, run=run, progress=False)
    assert attention["memory"] == {"forward": 5} and attention["seconds"] == {"forward": 7}
    assert attention["errors"] == {"training memory": "out of memory: more than 1.0 GB"}
    assert nmf["seconds"] == {"forward": 7} and nmf["memory"] == {"forward": 5, "training": 5}
    assert nmf["errors"] == {"training time": "The process ended with signal SIGKILL"}
    assert cd["errors"] == {} and cd["all_seconds"] == {"forward": [7.0] * 3, "training": [8.0] * 3}
    table = context_report.cost_table([attention, nmf, cd])
    assert "Self-attention, n x n, training memory: out of memory: more than 1.0 GB" in table
    assert "Hamburger V1, NMF, training time: The process ended with signal SIGKILL" in table


def test_process_that_dies_at_once_ends_the_timing():
    def run(job, arguments, *, environment=None):
        raise measure.ChildError("no TensorFlow")
        yield

    (row,) = context.measure_cases(
        [context_modules.Case(module="v1_nmf", shape=SMALL)], run=run, progress=False
    )
    assert row["seconds"] == {} and "macs" not in row
    assert row["errors"] == {
        name: "no TensorFlow" for name in ("counts", "forward memory", "training memory")
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the script makes of a small shape, in this process: (terminal, JSON, picture)."""
    folder = tmp_path_factory.mktemp("benchmark")
    shape = context_modules.Shape(name="4x6x64", height=4, width=6, channels=64, rank=8)
    patch = pytest.MonkeyPatch()
    patch.setattr(
        context,
        "scaling_cases",
        functools.partial(context.scaling_cases, sides=(8, 16), channels=64, rank=2),
    )
    few = dict(shape=SMALL, steps=(1, 3), solves=("one_step", "unrolled"))
    patch.setattr(context, "steps_cases", functools.partial(context.steps_cases, **few))
    patch.setattr(context, "SCALING_MODULES", ("self_attention", "v1_nmf"))
    lines = []
    patch.setattr("builtins.print", lambda text, **kwargs: lines.append(text))
    benchmark_parts.benchmark_context(
        shapes=[shape],
        modules=["self_attention", "ylg", "v1_nmf"],
        sweeps=["scaling", "steps"],
        repeats=2,
        accelerator="cpu",
        jit=False,
        output=str(folder),
        run=benchmark_jobs.in_process,
    )
    patch.undo()
    return (
        "\n".join(lines),
        json.loads((folder / "context.json").read_text()),
        folder / "context.png",
    )


@pytest.mark.slow
def test_json_is_complete(measured):
    _, result, _ = measured
    assert (
        result["device"].startswith("CPU")
        and result["tensorflow"] == tf.__version__
        and result["jit"] is False
    )
    (shape,) = result["shapes"]
    attention, ylg, nmf = shape["rows"]
    for row in (attention, nmf):
        assert row["errors"] == {} and row["macs"] == row["formula"]
        assert set(row["seconds"]) == set(row["memory"]) == {"forward", "training"}
        assert all(len(values) == 2 for values in row["all_seconds"].values())
    # The others stand when one refuses the shape, and its row says why.
    assert "macs" not in ylg and ylg["seconds"] == ylg["memory"] == {}
    assert ylg["errors"]["counts"] == "SparseAttention: the image must be square, got 4x6."
    assert len(result["scaling"]) == len(result["steps"]) == 2 * 2
    assert set(result["exponents"]) == {"self_attention", "v1_nmf"}
    assert (
        result["exponents"]["v1_nmf"]["macs"]
        < 1.01
        < 1.3
        < result["exponents"]["self_attention"]["macs"]
    )
    for row in result["steps"]:
        assert set(row["seconds"]) == {"forward", "backward"} and set(row["memory"]) == {"training"}


@pytest.mark.slow
def test_terminal_has_every_row(measured):
    text, result, _ = measured
    # In the table of the shape and in that of growth.
    for title, count in (
        ("Self-attention, n x n", 2),
        ("Hamburger V1, NMF", 2),
        ("Sparse attention, YLG", 1),
    ):
        assert len(re.findall(f"^{re.escape(title)}  ", text, re.MULTILINE)) == count
    assert (
        "Sparse attention, YLG, counts: SparseAttention: the image must be square, got 4x6." in text
    )
    assert len(re.findall(r"^(one_step|unrolled) +[13] ", text, re.MULTILINE)) == 4
    parameters = context_report.with_unit(result["shapes"][0]["rows"][2]["parameters"], ("", "k"))
    assert re.search(rf"^Hamburger V1, NMF +{re.escape(parameters)} ", text, re.MULTILINE)


@pytest.mark.slow
def test_picture_has_a_row_of_panels_for_each_part(measured):
    _, result, path = measured
    width, height = Image.open(path).size
    assert width > 1000 and height > 800
    context_report.draw({**result, "scaling": [], "steps": []}, path.with_name("one.png"))
    assert Image.open(path.with_name("one.png")).size[1] < height / 2
    with pytest.raises(ValueError, match="result has no rows"):
        context_report.draw({"shapes": [], "scaling": [], "steps": []}, path)


# Tables


def test_numbers_with_units():
    units = ("", "k", "M", "G")
    assert [
        context_report.with_unit(v, units) for v in (0, 7, 999.6, 17_581_473_792, 9_998, 5e12)
    ] == [
        "0",
        "7.00",
        "1.00k",
        "17.6G",
        "10.0k",
        "5000G",
    ]
    assert context_report.with_unit(None, units) == "-"


def test_ratios_to_self_attention():
    def row(module, memory, seconds):
        empty = {"shape": {}, "num_steps": 6, "solve": "one_step", "errors": {}}
        return {"module": module, "title": module, "memory": memory, "seconds": seconds, **empty}

    rows = [
        row("self_attention", {"forward": 100e6, "training": 300e6}, {"forward": 2.0}),
        row("v1_nmf", {"forward": 5e6, "training": 10e6}, {"forward": 0.1, "training": 0.2}),
    ]
    line = context_report.cost_table(rows, published=True).splitlines()[4]
    assert line.startswith("v1_nmf") and line.rstrip().endswith("20.0x / 30.0x      20.0x")
    assert "17.6G" in context_report.cost_table(rows, published=True)
    assert "17.6G" not in context_report.cost_table(rows)


def test_exponent_of_a_power_law():
    sizes = [16, 64, 256, 1024]
    assert context_report.exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    # Only the largest count.
    assert context_report.exponent(sizes, [1e9, *(n**2 for n in sizes[1:])]) == pytest.approx(2)
    assert context_report.exponent(sizes, [1, 64, None, 1024]) == pytest.approx(1)
    assert context_report.exponent(sizes, [1, 64, None, None]) is None


# Flags


def test_shapes_by_name_and_by_size():
    assert benchmark_parts.parse_shapes(["all"]) == list(context_modules.SHAPES.values())
    custom, discriminator = benchmark_parts.parse_shapes(["4x64x32x128", "discriminator"])
    assert custom.input == (4, 64, 32, 128) and custom.rank == 16 and discriminator.rank == 16
    assert (
        benchmark_parts.parse_shapes(["8x8x4"])[0].input == (1, 8, 8, 4)
        and benchmark_parts.parse_shapes(["8x8x4"])[0].rank == 1
    )
    assert benchmark_parts.parse_shapes(["none"]) == []
    generator = context_modules.SHAPES["generator"]
    assert (
        generator.input[1:] == (32, 32, 256)
        and generator.rank == 32
        and generator.num_classes == 1000
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: benchmark_parts.parse_shapes(["papr"]), "--shape must be .*paper.*; got 'papr'"),
        (
            lambda: benchmark_parts.parse_shapes(["0x4x4x8"]),
            "Shape: batch must be at least 1, got 0",
        ),
        (
            lambda: context_modules.check_modules(["v1_nfm"]),
            "modules must be some of .*v1_nmf.*; got 'v1_nfm'",
        ),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_command_must_be_named():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "contxt"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert (
        "Say what to measure, one of: context, step, scaling, start, sample, overhead, fid, input, "
        "segmentation; got ['contxt']" in result.stdout + result.stderr
    )
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_script_measures_in_processes_of_their_own(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "context", "--shape=8x8x16"]
    command += [
        "--modules=v1_nmf",
        "--sweeps=none",
        "--repeats=2",
        "--accelerator=cpu",
        f"--output={tmp_path}",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "8x8x16: 1x8x8x16, r=2, K=6" in result.stdout and "100%" in result.stderr
    (row,) = json.loads((tmp_path / "context.json").read_text())["shapes"][0]["rows"]
    assert row["errors"] == {} and set(row["seconds"]) == {"forward", "training"}
    assert Image.open(tmp_path / "context.png").size[0] > 1000
