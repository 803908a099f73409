"""What a sweep is, its shipped files, and what they are for machines elsewhere."""

import dataclasses
import math
import pathlib
import statistics
import subprocess

import gin
import pytest

from hamgan.benchmarks import measure
from hamgan.cli import configuration, launch_tpu, sweep, sweep_kinds
from hamgan.run import records
from hamgan.sweeps import Axis, Sweep, costs, definition, emit, results, study

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "configs" / "sweeps").glob("*.gin"))
RANK = dict(name="rank", bindings=["G/context.Hamburger.rank"])


@pytest.fixture(autouse=True)
def cleared():
    yield
    gin.clear_config()


def shipped(name):
    return configuration.load_sweep(f"configs/sweeps/{name}")


def test_points_of_a_grid():
    axes = [
        Axis(**RANK, values=[2, 4], tied={"G/context.Hamburger.dim": 8, "D/x.Y.rank": 0.5}),
        Axis(name="how", choices={"a": ["u.V.w = 1", "configs/sagan.gin"], "b": []}),
    ]
    made = Sweep(gin_files=["configs/digits.gin"], gin_params=["x.Y.z = 3"], axes=axes)
    points = list(made.grid())
    assert [p.name for p in points] == ["rank=2,how=a", "rank=2,how=b", "rank=4,how=a"] + [
        "rank=4,how=b"
    ]
    assert points[2].gin_files == ("configs/digits.gin", "configs/sagan.gin")
    assert points[2].gin_params == (
        "x.Y.z = 3",
        "G/context.Hamburger.rank = 4",
        "G/context.Hamburger.dim = 32",
        "D/x.Y.rank = 2",
        "u.V.w = 1",
    )
    assert points[3].folder(7) == "rank=4,how=b,seed=7"
    assert (made.num_points(), made.num_trials()) == (4, 12)
    assert list(made.point({"rank": 2, "how": "b"}).gin_files) == ["configs/digits.gin"]


def test_protocol_is_read_last():
    made = Sweep(gin_files=["a.gin"], axes=[Axis(**RANK, values=[1])], protocol="paper")
    (point,) = made.grid()
    assert point.gin_files == ("a.gin", "configs/protocols/paper.gin")


@pytest.mark.parametrize(
    "value, label, text",
    [
        ("@decomposition.cd", "cd", "@decomposition.cd"),
        ("ema", "ema", "'ema'"),
        (0.001, "0.001", "0.001"),
        ("a/b c", "a_b_c", "'a/b c'"),
        (None, "None", "None"),
    ],
)
def test_values_as_folders_and_gin_have_them(value, label, text):
    assert (definition.label(value), definition.as_gin(value)) == (label, text)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(**RANK), "one of values, choices, and low with high"),
        (dict(**RANK, values=[1], low=1, high=2), "one of values, choices, and low with high"),
        (dict(**RANK, low=1), "one of values, choices, and low with high"),
        (dict(**RANK, low=3, high=2), "low must be below high, got 3 and 2"),
        (dict(**RANK, values=[]), "must be there, and differ in name"),
        (dict(**RANK, values=["a", "a"]), "must be there, and differ in name"),
        (dict(**RANK, values=["@x.a", "@y.a"]), "must be there, and differ in name"),
        (dict(**RANK, values=["a"], tied={"x.Y.z": 2}), "tied needs numbers"),
        (dict(name="rank", values=[1]), "must say what takes its value"),
        (dict(**RANK, choices={"a": []}), "must say what takes its value"),
        (dict(name="seed", bindings=["x.Y.z"], values=[1]), "a word other than 'seed'"),
        (dict(name="a=b", bindings=["x.Y.z"], values=[1]), "name must be a word"),
    ],
)
def test_wrong_axes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Axis(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(axes=[]), "axes must be there"),
        (dict(axes=[Axis(**RANK, values=[1])] * 2), "differ in name"),
        (dict(seeds=[]), "seeds must be there"),
        (dict(seeds=[1, 1]), "seeds must be there, and differ"),
        (dict(sampler="tpe"), "points must say how many tpe draws"),
        (dict(points=3), "points must be None"),
        (dict(axes=[Axis(**RANK, low=1, high=2)]), r"ranges of \['rank'\]"),
        (dict(objectives=["macs"]), "must begin with a score"),
        (dict(objectives=["fid", "prize"]), "objectives must be a list"),
        (dict(objectives=["fid", "macs"], pruner="median"), "pruner must be None"),
        (dict(sampler="best"), "sampler must be one of"),
        (dict(details={"IoU": "class_iou/1"}), "details must be lists of fields by title"),
        (dict(details={"IoU": [1]}), "details must be lists of fields by title"),
        (dict(details=["class_iou/1"]), "details must be lists of fields by title"),
        (dict(objectives=["mean_iou"], protocol="paper"), "protocol must be None, got 'paper'"),
        (dict(objectives=["mean_iou", "memory_bytes"]), "without 'memory_bytes'"),
        (
            dict(
                axes=[
                    Axis(**RANK, values=[1]),
                    Axis(name="other", bindings=RANK["bindings"], values=[1]),
                ]
            ),
            "must belong to one axis, got twice",
        ),
    ],
)
def test_wrong_sweeps_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sweep(**{"axes": [Axis(**RANK, values=[1, 2])], **options})


def test_choices_that_set_what_another_axis_sets_are_refused():
    axes = [Axis(**RANK, values=[1]), Axis(name="how", choices={"a": [f"{RANK['bindings'][0]}=2"]})]
    with pytest.raises(ValueError, match="must belong to one axis, got twice"):
        list(Sweep(axes=axes).grid())


def test_what_grows_is_the_same_sweep():
    def made(values, **options):
        return Sweep(axes=[Axis(**RANK, values=values)], **options).as_json()

    before = made([1, 2], seeds=[0])
    assert definition.differences(before, made([1, 2, 3], seeds=[0, 1])) == []
    assert definition.differences(before, made([2, 3], seeds=[0])) == [
        "rank: values = [2, 3], but [1, 2] there"
    ]
    assert definition.differences(before, made([1, 2], seeds=[0], gin_params=["x.y = 1"])) == [
        "gin_params = ['x.y = 1'], but [] there"
    ]


def test_settings_of_gin_files_are_compared(tmp_path):
    made = Sweep(axes=[Axis(**RANK, values=[1])], name="s")
    found = study.open_study(made, storage=None, output_dir=str(tmp_path))
    found.set_user_attr(study.POINT + "rank=1", {"settings": {"a.b": "1", "c.d": "2"}})
    study.check_settings(found, {"rank=1": {"a.b": "1", "c.d": "2"}, "rank=2": {"a.b": "5"}})
    with pytest.raises(ValueError, match=r"rank=1:\n  a.b = 3, but 1 there\n  c.d = \(not set\), "):
        study.check_settings(found, {"rank=1": {"a.b": "3"}})


# Results


def row(name, scores):
    runs = [
        results.Run(
            seed=seed,
            folder=name,
            step=1,
            score=score,
            curve={1: score},
            step_seconds=1.0,
            memory_gib=None,
            protocol="",
            details={},
            state="complete",
        )
        for seed, score in scores.items()
    ]
    return results.Row(name=name, values={}, runs=runs, facts={"macs": len(name)})


def test_differences_are_paired_by_seed():
    one, other = row("a", {0: 10.0, 1: 30.0, 2: 20.0}), row("b", {0: 9.0, 1: 27.0, 2: 18.0, 3: 0})
    found = results.difference(one, other)
    # Differences 1, 3, 2: mean 2, standard error 1 / sqrt(3), t of two degrees 4.3027.
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.exceeds_noise is False
    # Less than what seeds do by themselves, yet beyond the noise: in each seed it is the same.
    closer = results.difference(row("a", {0: 10.0, 1: 30.1}), row("b", {0: 9.0, 1: 29.0}))
    assert closer.exceeds_noise is True
    assert results.difference(one, row("c", {4: 1.0})) is None
    single = results.difference(one, row("c", {0: 1.0}))
    assert (single.mean, single.low, single.exceeds_noise) == (9.0, None, None)


def test_noise_is_pooled():
    rows = [row("a", {0: 1.0, 1: 3.0, 2: 5.0}), row("b", {0: 1.0, 1: 2.0}), row("c", {0: 7.0})]
    expected = (2 * statistics.variance([1, 3, 5]) + statistics.variance([1, 2])) / 3
    assert results.noise(rows) == pytest.approx(math.sqrt(expected))
    assert results.noise(rows[2:]) is None


def test_details_are_means_of_fields_of_the_last_evaluation(tmp_path):
    iou = {"cat": 0.25, "dog": 0.75, "cow": None}
    train = {"kind": "train", "step": 4, "images_per_second": 8.0}
    for seed, pets in enumerate((iou, {"cat": 0.5, "dog": 0.5, "cow": 0.5})):
        path = tmp_path / f"seed{seed}" / "metrics.jsonl"
        path.parent.mkdir()
        records.append(path, train)
        for step, classes in ((2, {"cat": 0.0, "dog": 0.0}), (4, pets)):
            evaluation = {"kind": "evaluation", "step": step, "mean_iou": 0.5, "class_iou": classes}
            records.append(path, {**evaluation, "loss/network": 3.0})
    details = {
        "pets": ["class_iou/cat", "class_iou/dog"],
        "cows": ["class_iou/cow"],
        "loss": ["loss/network"],
        "horses": ["class_iou/horse"],
    }
    made = Sweep(axes=[Axis(**RANK, values=[1])], objectives=["mean_iou"], details=details)
    assert made.of_segmentation and made.better == "higher"
    runs = [
        results.read_run(str(tmp_path / f"seed{seed}"), made, {"steps": 4}, seed=seed)
        for seed in range(2)
    ]
    assert runs[0].details == {"pets": 0.5, "loss": 3.0} and runs[1].details["cows"] == 0.5
    found = results.Row(name="a", values={"rank": 1}, runs=runs, facts={})
    header, (line,) = results.table(made, [found])
    told = dict(zip(header, line, strict=True))
    assert [told[title] for title in details] == [0.5, 0.5, 3.0, None]
    assert told["mean_iou_mean"] == 0.5
    # What is shown doesn't make another sweep.
    assert (
        definition.differences(made.as_json(), dataclasses.replace(made, details={}).as_json())
        == []
    )


@pytest.mark.slow
def test_a_segmentation_point_is_counted():
    """V2 and V2+ against a head of nothing: their bread and their products."""
    counted = {}
    for name in ("none", "v2_nmf", "v2_plus_nmf", "attention"):
        point = shipped("digits_heads.gin").point({"head": name})
        jobs = [(point.gin_files, point.gin_params)]
        (counted[name],) = sweep.build_job(
            kind="segmentation", points=jobs, replicas=1, data_dir=None
        )
    none, ham = counted["none"], counted["v2_nmf"]
    assert (none["module_parameters"], none["module_macs"], none["steps"]) == (0, 0, 2500)
    for name, found in counted.items():
        assert found["parameters"] - none["parameters"] == found["module_parameters"], name
        whole = found["macs"] - none["macs"]
        assert whole == pytest.approx(found["module_macs"], rel=0.02), name
    pixels = (512 // 4) ** 2
    # Two breads of 64x64 on each pixel, and six updates with a product of 64x8 at least.
    assert ham["module_macs"] > pixels * (64 * 64 + 6 * 64 * 8)
    # Scores of all pairs.
    assert counted["attention"]["module_macs"] > pixels**2 * 8


def test_pareto_front_has_what_nothing_beats_in_both():
    rows = [row("a", {0: 5.0}), row("bb", {0: 6.0}), row("ccc", {0: 3.0}), row("dddd", {})]
    assert [r.name for r in results.pareto(rows, "macs")] == ["a", "ccc"]
    assert [r.name for r in results.pareto(rows, "macs", better="higher")] == ["a", "bb"]


# Shipped sweeps


def test_each_shipped_sweep_is_there_for_the_digits_too():
    large = [name for name in SHIPPED if not name.startswith("digits")]
    assert set(large) == {
        "rank.gin",
        "dim_rank.gin",
        "steps.gin",
        "gradients.gin",
        "bases.gin",
        "temperature.gin",
        "modules.gin",
    }
    assert {f"digits_{name}" for name in large} <= set(SHIPPED)
    for name in SHIPPED:
        header = (ROOT / "configs" / "sweeps" / name).read_text().split("from __gin__")[0]
        assert "Hardware:" in header and f"--sweep=configs/sweeps/{name}" in header
        assert name.startswith("digits") or "Hours:" in header


@pytest.mark.parametrize("name", SHIPPED)
def test_every_point_of_a_shipped_sweep_can_be_read(name):
    seen = set()
    kind = sweep_kinds.KINDS[sweep_kinds.name_of(shipped(name))]
    for point in shipped(name).grid():
        _, settings = kind.load(point.gin_files, point.gin_params)
        # Points differ by more than their names.
        seen.add(tuple(sorted(settings.items())))
    assert len(seen) == shipped(name).num_points() >= 3


def test_the_sweep_in_the_documentation_is_one(tmp_path):
    text = (ROOT / "docs" / "sweeps.md").read_text()
    (example,) = [part for part in text.split("```") if "from hamgan import sweeps" in part]
    (tmp_path / "mine.gin").write_text(example)
    made = configuration.load_sweep(str(tmp_path / "mine.gin"))
    assert (made.name, made.num_points(), made.num_trials()) == ("mine", 6, 18)
    for point in made.grid():
        configuration.load_point(gin_files=point.gin_files, gin_params=point.gin_params)


def facts(name, *, values, params=(), replicas=1):
    """What the command finds of a point before it trains it."""
    point = shipped(name).point(values)
    jobs = [(point.gin_files, [*point.gin_params, *params])]
    (found,) = sweep.build_job(kind="gan", points=jobs, replicas=replicas, data_dir=None)
    return found


def test_a_point_is_counted():
    counted = {}
    for dim in (8, 32):
        point = shipped("digits_dim_rank.gin").point({"dim": dim, "rank": 4})
        made, _ = configuration.load_point(gin_files=point.gin_files, gin_params=point.gin_params)
        trainer = costs.build(made)
        counted[dim] = costs.count(trainer, memory=False)
    small, large = counted[8], counted[32]
    # Where the modules stand G and D have 16 channels: in each two 1x1 convolutions, 16 -> d -> 16.
    per_dim = 2 * (16 + 16)
    assert large["module_parameters"] - small["module_parameters"] == (32 - 8) * per_dim
    assert large["parameters"] - small["parameters"] == (32 - 8) * per_dim
    # One pixel takes a multiply-add of each weight, and the decomposition more.
    pixels = 32 * 32 + 16 * 16
    assert large["module_macs"] - small["module_macs"] > (32 - 8) * (16 + 16) * pixels
    # Fusing or not, both counts are of the same modules.
    whole = large["macs"] - small["macs"]
    assert whole == pytest.approx(large["module_macs"] - small["module_macs"], rel=0.05)
    assert large["memory_bytes"] > small["memory_bytes"] > 0


@pytest.mark.slow
def test_the_job_tells_all_that_trials_need():
    found = facts("digits_dim_rank.gin", values={"dim": 8, "rank": 2})
    assert (found["steps"], found["batch_size"]) == (400, 32)
    assert found["settings"]["G/context.Hamburger.dim"] == "8"
    assert {*results.COST_COLUMNS} <= found.keys() and found["module_memory_bytes"] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(values={"dim": 8, "rank": 16}), "rank must not exceed d"),
        (
            dict(values={"dim": 8, "rank": 2}, replicas=3),
            r"Batch size \(32\) must be divisible by the number of replicas \(3\)",
        ),
        (dict(values={"dim": 8, "rank": 0}), "rank must be at least 1, got 0"),
        (
            dict(values={"dim": 8, "rank": 2}, params=["networks.Generator.wdith = 2"]),
            "wdith",
        ),
    ],
)
def test_what_cannot_be_built_is_found(options, message):
    found = facts("digits_dim_rank.gin", **options)
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["error"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith(("digits", "bases"))])
def test_every_point_of_a_shipped_sweep_can_be_built(name):
    # ImageNet's others have the digits' settings at sizes that take minutes each. Its networks are
    # made narrow, which leaves the hams' own sizes as they are.
    params = () if name.startswith("digits") else ("WIDTH = 8", "NUM_CLASSES = 10")
    points = [
        dataclasses.replace(point, gin_params=(*point.gin_params, *params))
        for point in shipped(name).grid()
    ]
    kind = sweep_kinds.name_of(shipped(name))
    found = sweep.build(points, kind=kind, replicas=1, data_dir=None, progress=False)
    assert list(found) == [point.name for point in points]
    assert all(facts["parameters"] > 0 for facts in found.values())


def test_many_points_are_built_by_several_processes(monkeypatch):
    asked = []

    def in_child(job, arguments, *, environment):
        assert (job, arguments["replicas"], arguments["data_dir"]) == (sweep.build_job, 2, "there")
        asked.append(len(arguments["points"]))
        yield from ({"parameters": params} for _, params in arguments["points"])

    monkeypatch.setattr(measure, "in_child", in_child)
    points = list(shipped("digits_rank.gin").grid())
    points = [
        dataclasses.replace(points[0], gin_params=(f"seed = {number}",), values={"seed": number})
        for number in range(45)
    ]
    found = sweep.build(points, kind="gan", replicas=2, data_dir="there", progress=False)
    assert [facts["parameters"] for facts in found.values()] == [
        list(point.gin_params) for point in points
    ]
    assert len(asked) == 3 and max(asked) <= 20


# Elsewhere

FLAGS = {
    "sweep": "configs/sweeps/dim_rank.gin",
    "gin_param": [],
    "output_dir": "/shared/d r",
    "data_dir": "/shared/data",
    "storage": None,
    "accelerator": "gpu",
    "workers": 8,
}


def test_an_array_job_is_a_script_whose_tasks_join_the_study(tmp_path):
    text = emit.text("slurm", shipped("dim_rank.gin"), flags=FLAGS)
    assert "#SBATCH --array=0-7" in text and "#SBATCH --requeue" in text
    script = tmp_path / "job.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)
    (command,) = [line for line in text.splitlines() if line.startswith("exec")]
    assert "'--output_dir=/shared/d r'" in command
    assert "'--storage=/shared/d r/study.journal'" in command and "--workers=1" in command
    with pytest.raises(ValueError, match="is for one machine"):
        flags = {**FLAGS, "storage": "sqlite:///study.db"}
        emit.text("slurm", shipped("dim_rank.gin"), flags=flags)


def test_commands_for_tpus_are_understood_by_the_launcher():
    import shlex

    made = shipped("dim_rank.gin")
    text = emit.text("tpu", made, flags={**FLAGS, "output_dir": "gs://bucket/sweep"})
    commands = [line for line in text.splitlines() if line.startswith("python")]
    assert len(commands) == 3 * 27
    parsed = [launch_tpu.parser().parse_args(shlex.split(line)[2:]) for line in commands]
    training = [flags for flags in parsed if flags.command == "train"]
    assert len({flags.model_dir for flags in training}) == 27
    assert len({flags.name for flags in training}) == 27
    assert training[0].model_dir == "gs://bucket/sweep/dim=64,rank=8,seed=0"
    assert "G/context.Hamburger.rank = 8" in training[0].gin_param
    with pytest.raises(ValueError, match="one gin file a point"):
        made = Sweep(gin_files=["a.gin", "b.gin"], axes=[Axis(**RANK, values=[1])], name="x")
        emit.text("tpu", made, flags=FLAGS)
    with pytest.raises(ValueError, match="the points of a grid only"):
        made = Sweep(axes=[Axis(**RANK, values=[1])], sampler="random", points=3, name="x")
        emit.text("tpu", made, flags=FLAGS)
