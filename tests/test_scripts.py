"""The scripts as a user runs them, in processes of their own."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import children
import forked
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import digits, digits_features

ROOT = pathlib.Path(__file__).parent.parent
PARAMS = {
    "WIDTH": 1,
    "networks.Generator.latent_dim": 8,
    "trainer.Trainer.batch_size": 8,
    # Their average has tests of its own.
    "trainer.Trainer.ema_decay": None,
    "protocol.Protocol.weights": "'raw'",
    "protocol.Protocol.batch_norm": "@sampling.MovingAverages",
    "loop.Schedule.num_steps": 40,
    "loop.Schedule.steps_per_loop": 5,
    "loop.Schedule.save_every": 10,
    "loop.Schedule.sample_every": 20,
    "loop.Schedule.evaluate_every": 40,
    "protocol.Protocol.num_samples": 60,
    "protocol.Protocol.batch_size": 32,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    digits.prepare(folder)
    _, accuracy = digits_features.build(folder)
    assert accuracy > 0.95
    return folder


def command(script, model_dir, data_dir, *arguments, params=()):
    return [
        sys.executable,
        str(ROOT / "scripts" / script),
        f"--model_dir={model_dir}",
        f"--data_dir={data_dir}",
        "--accelerator=cpu",
        *arguments,
        *(f"--gin_param={name}={value}" for name, value in dict(params).items()),
    ]


def training(model_dir, data_dir, **kwargs):
    return command(
        "train.py",
        model_dir,
        data_dir,
        "--gin_file=configs/digits.gin",
        params={**PARAMS, **kwargs},
    )


def run(arguments, *, fails=False):
    result = forked.run(arguments)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def read_checkpoint(path):
    reader = tf.train.load_checkpoint(str(path))
    names = [
        n
        for n in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in n and "save_counter" not in n
    ]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    model_dir = tmp_path_factory.mktemp("run") / "model"
    return model_dir, run(training(model_dir, data_dir))


def names_of(record, prefix=""):
    """The names of a record's fields, those of nested objects with dots."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.slow
def test_every_field_of_a_record_is_documented(finished):
    model_dir, _ = finished
    documented = re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text())
    patterns = [re.sub("NETWORK|METRIC|LAYER|HAM", ".+", re.escape(name)) for name in documented]
    records = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "evaluation"} <= {record["kind"] for record in records}
    unknown = {
        f"{record['kind']}: {name}"
        for record in records
        for name in names_of(record)
        if not any(re.fullmatch(pattern, name) for pattern in patterns)
    }
    assert not unknown


@pytest.mark.slow
def test_training_leaves_everything_the_readme_promises(finished):
    model_dir, output = finished
    for name in (
        "samples.png",
        "real.png",
        "report.html",
        "metrics.jsonl",
        "config.gin",
        "checkpoints/ckpt-40.index",
    ):
        assert (model_dir / name).stat().st_size > 0, name
    assert list(model_dir.glob("events.out.tfevents.*"))
    assert f"Report: {model_dir}/report.html" in output
    assert "step/s" in output and "FID=" in output
    records = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    assert [r["step"] for r in evaluations] == [0, 40]
    assert evaluations[-1]["num_samples"] == 60
    assert evaluations[-1]["reference"]["count"] == 1497


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_as_if_nothing_had_happened(finished, data_dir, tmp_path):
    whole, _ = finished
    process = forked.Script(training(tmp_path, data_dir))
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoints" / "ckpt-10.index").exists():
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "checkpoints" / "ckpt-40.index").exists()
    # Without --gin_file: the configuration is the one that the run has kept.
    output = run(command("train.py", tmp_path, data_dir))
    assert "Going on from" in output
    expected, got = (
        read_checkpoint(whole / "checkpoints" / "ckpt-40"),
        read_checkpoint(tmp_path / "checkpoints" / "ckpt-40"),
    )
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.slow
def test_terminated_training_saves_and_exits_with_0(data_dir, tmp_path):
    arguments = training(
        tmp_path, data_dir, **{"loop.Schedule.num_steps": 10**6, "loop.Schedule.save_every": 10**6}
    )
    process = forked.Script([*arguments, "--mode=train"])
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    returncode, (output, errors) = process.wait(300), process.read()
    assert returncode == 0, output + errors
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in records if r["kind"] == "train"]
    assert (records[-1]["event"], records[-1]["step"]) == ("stopped", steps[-1])
    assert (tmp_path / "checkpoints" / f"ckpt-{steps[-1]}.index").exists()
    assert "The same command goes on from there" in output


@pytest.mark.slow
def test_dry_run_shows_the_run_and_leaves_nothing(data_dir, tmp_path):
    output = run([*training(tmp_path / "model", data_dir), "--dry_run"])
    assert not (tmp_path / "model").exists()
    for text in (
        "trainer.Trainer.batch_size = 8",
        "trainer.Trainer.beta_2 = 0.999",
        "block_1/conv_1/kernel",
    ):
        assert text in output
    assert re.search(r"Memory of a replica, together: [\d.e-]+ GiB", output)
    assert Image.open(re.search("First batch: (.*)", output)[1]).width > 10 * 32


@pytest.mark.slow
def test_resume_is_proven_on_a_set_up_of_ones_own(data_dir, tmp_path):
    arguments = command(
        "check_resume.py",
        tmp_path,
        data_dir,
        "--gin_file=configs/digits.gin",
        "--steps=3",
        params=PARAMS,
    )
    output = run(arguments)
    assert "OK: a resumed run is the same run" in output
    for part in (
        "generator",
        "discriminator",
        "generator_optimizer",
        "discriminator_optimizer",
        "step",
    ):
        assert re.search(rf"^{part} +\d+ variables  equal bit for bit", output, flags=re.MULTILINE)


@pytest.mark.slow
def test_evaluate_scores_the_checkpoint_that_is_named(finished, data_dir):
    model_dir, _ = finished
    output = run(
        command(
            "evaluate.py",
            model_dir,
            data_dir,
            "--checkpoint=ckpt-20",
            params={"protocol.Protocol.seed": 5},
        )
    )
    record = json.loads((model_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["checkpoint"].endswith("ckpt-20") and record["step"] == 20 and record["seed"] == 5
    assert f"FID {record['fid']:.3f}" in output


def kept_evaluations(model_dir, step):
    """The files of finished evaluations of a step."""
    paths = (model_dir / "evaluation").rglob("*-seed*.json")
    return [path for path in paths if json.loads(path.read_text())["step"] == step]


@pytest.mark.slow
def test_evaluation_repeats_what_training_measured(finished, data_dir):
    model_dir, _ = finished
    (kept,) = kept_evaluations(model_dir, 40)
    in_training = json.loads(kept.read_text())
    kept.unlink()
    run(command("train.py", model_dir, data_dir, "--mode=evaluate"))
    record = json.loads(kept.read_text())
    assert record["step"] == 40 and record["time"] > in_training["time"]
    assert record["fid"] == pytest.approx(in_training["fid"], rel=1e-4)


def evaluations(model_dir, kind="evaluation"):
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.slow
def test_killed_evaluation_goes_on_where_it_was(finished, data_dir, tmp_path):
    model_dir, _ = finished
    params = {"protocol.Protocol.num_samples": 13_000}
    evaluating = command(
        "evaluate.py", model_dir, data_dir, "--checkpoint=ckpt-30", "--keep_features", params=params
    )
    process = forked.Script(evaluating)
    while not (kept := list((model_dir / "evaluation").rglob("*-seed0-*/*.npz"))):
        assert process.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not kept_evaluations(model_dir, 30)
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    run(evaluating)
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps
    record = evaluations(model_dir)[-1]
    assert (record["step"], record["num_samples"]) == (30, 13_000)


@pytest.mark.slow
def test_list_repeats_and_hosts_from_the_command_line(finished, data_dir):
    model_dir, _ = finished
    arguments = [
        "--checkpoint=ckpt-20",
        f"--checkpoint={model_dir}/checkpoints/ckpt-30",
        "--repeats=2",
    ]
    params = {"protocol.Protocol.num_samples": 70, "protocol.Protocol.name": "'seventy'"}
    share = command("evaluate.py", model_dir, data_dir, *arguments, "--num_shards=2", params=params)
    first = forked.Script([*share, "--shard_index=0"])
    assert "host 0 writes the records" in run([*share, "--shard_index=1"])
    assert first.wait(timeout=600) == 0
    found = [record for record in evaluations(model_dir) if record["protocol"]["name"] == "seventy"]
    assert [(record["step"], record["seed"]) for record in found] == [
        (20, 0),
        (20, 1),
        (30, 0),
        (30, 1),
    ]
    assert [record["step"] for record in evaluations(model_dir, "aggregate")] == [20, 30]
    # Alone, and told by TF_CONFIG which host it is: nothing is left to do, and no line is written
    # twice.
    config = {
        "cluster": {"chief": ["a:1"], "worker": ["b:1"]},
        "task": {"type": "chief", "index": 0},
    }
    alone = command("evaluate.py", model_dir, data_dir, *arguments, params=params)
    before = (model_dir / "metrics.jsonl").read_text()
    again = forked.run(alone, env={**os.environ, "TF_CONFIG": json.dumps(config)})
    assert again.returncode == 0, again.stderr
    assert "mean of 2 seeds" in again.stdout
    assert (model_dir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_watching_from_the_command_line_ends_with_training(finished, data_dir):
    model_dir, _ = finished
    run(command("evaluate.py", model_dir, data_dir, "--watch"))
    steps = [
        record["step"]
        for record in evaluations(model_dir)
        if record["num_samples"] == 60 and record["seed"] == 0
    ]
    assert sorted(steps) == [0, 10, 20, 30, 40]


@pytest.mark.slow
def test_reference_is_built_without_a_run_and_shown(data_dir):
    params = {"protocol.Protocol.reference_split": "'test'"}

    def reference(*arguments, **kwargs):
        flags = [
            f"--data_dir={data_dir}",
            "--accelerator=cpu",
            "--gin_file=configs/digits.gin",
            *arguments,
        ]
        params_ = [f"--gin_param={name}={value}" for name, value in params.items()]
        return run(
            [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *flags, *params_], **kwargs
        )

    assert "Build it with --build_reference" in reference("--show", fails=True)
    built = reference("--build_reference")
    assert "split: test" in built and "count: 300" in built
    assert "count: 300" in reference("--show")
    (folder,) = (pathlib.Path(data_dir) / "reference_features").glob("digits-test-*")
    assert "count: 300" in reference("--show", f"--reference={folder}")
    assert "--model_dir is needed" in reference(fails=True)


@pytest.mark.slow
def test_samples_have_the_moments_asked_for(finished, data_dir, tmp_path):
    model_dir, _ = finished
    images = {}
    for name in ("moving_averages", "standing_statistics", "batch"):
        output = f"{tmp_path}/{name}.npz"
        run(
            command(
                "sample.py",
                model_dir,
                data_dir,
                "--per_class=4",
                f"--batch_norm={name}",
                "--batch_size=40",
                f"--output={output}",
            )
        )
        images[name] = np.load(output)["images"].astype(np.float32)
    run(
        command(
            "sample.py",
            model_dir,
            data_dir,
            "--per_class=4",
            "--batch_size=40",
            f"--output={tmp_path}/default.npz",
        )
    )
    np.testing.assert_array_equal(
        np.load(tmp_path / "default.npz")["images"], images["moving_averages"]
    )
    # After 40 steps the moving averages are far from what the weights give; 40 samples are near to
    # 4,096.
    far = np.abs(images["moving_averages"] - images["standing_statistics"]).mean()
    assert np.abs(images["batch"] - images["standing_statistics"]).mean() < far / 2


@pytest.mark.slow
def test_averaged_weights_have_moments_of_their_own(data_dir, tmp_path):
    averaged = {
        "trainer.Trainer.ema_decay": 0.5,
        "protocol.Protocol.weights": "'ema'",
        "loop.Schedule.num_steps": 20,
    }
    run(training(tmp_path / "run", data_dir, **averaged))
    images = {}
    for name in ("", "--batch_norm=standing_statistics", "--batch_norm=moving_averages"):
        output = f"--output={tmp_path}/samples.npz"
        run(
            command(
                "sample.py",
                tmp_path / "run",
                data_dir,
                "--weights=ema",
                output,
                *filter(None, [name]),
            )
        )
        images[name] = np.load(tmp_path / "samples.npz")["images"].astype(np.float32)
    np.testing.assert_array_equal(images[""], images["--batch_norm=standing_statistics"])
    assert np.abs(images[""] - images["--batch_norm=moving_averages"]).mean() > 1


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_as_one(finished, data_dir, tmp_path):
    steps = {"loop.Schedule.num_steps": 4, "loop.Schedule.evaluate_every": 2}
    hosts = []
    for index, config in enumerate(children.cluster()):
        # One of them has kept the reference's features, the other must compute them.
        folder = data_dir if index else shutil.copytree(data_dir, tmp_path / "data")
        shutil.rmtree(tmp_path / "data" / "reference_features", ignore_errors=True)
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        hosts.append(forked.Script(training(tmp_path / "two", folder, **steps), env=environment))
    deadline = time.monotonic() + 500
    # One that dies would leave the other waiting.
    while any(host.poll() is None for host in hosts) and not any(host.poll() for host in hosts):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    codes = [host.poll() for host in hosts]
    for host in hosts:
        host.kill()
        host.wait()
    outputs = ["".join(host.read()) for host in hosts]
    assert codes == [0, 0], outputs
    assert "report.html" in outputs[0] and "report.html" not in outputs[1]
    run(training(tmp_path / "one", data_dir, **{**steps, "loop.Schedule.num_steps": 1}))
    found, (expected, _) = evaluations(tmp_path / "two"), evaluations(tmp_path / "one")
    assert [record["step"] for record in found] == [0, 2, 4]
    np.testing.assert_allclose(found[0]["fid"], expected["fid"], rtol=1e-3)


@pytest.mark.slow
def test_truncated_data_is_one_readable_message(data_dir, tmp_path):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    (file,) = folder.glob("digits/*/digits-train.tfrecord*")
    file.write_bytes(file.read_bytes()[:100_000])
    output = run(training(tmp_path / "model", folder), fails=True)
    assert re.search(
        r"ERROR: .*digits-train.tfrecord.* must hold 1497 records, but ends within record", output
    )
    assert "Traceback" not in output


@pytest.mark.slow
def test_sample_draws_the_classes_asked_for(finished, data_dir, tmp_path):
    model_dir, _ = finished
    for name in ("a.npz", "b.npz"):
        run(
            command(
                "sample.py",
                model_dir,
                data_dir,
                "--classes=3,7",
                "--per_class=4",
                f"--output={tmp_path}/{name}",
            )
        )
    first, second = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    np.testing.assert_array_equal(first["labels"], [3] * 4 + [7] * 4)
    assert first["images"].shape == (8, 32, 32, 3) and first["images"].dtype == np.uint8
    np.testing.assert_array_equal(first["images"], second["images"])
    run(command("sample.py", model_dir, data_dir, f"--output={tmp_path}/grid.png"))
    width, height = Image.open(tmp_path / "grid.png").size
    assert width > 10 * 32 and height > 10 * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--classes=10"], "Label 10 is outside the classes of this generator, 0 to 9"),
        (["--checkpoint=ckpt-7"], "No checkpoint ckpt-7; .* holds: ckpt-"),
        (["--output=grid.gif"], "--output must end in .png"),
        (["--weights=ema"], "ckpt-40 holds no generator_ema/ variables"),
        (["--truncation=0"], "truncation must be positive"),
        (["stray"], "Arguments without a flag name"),
    ],
)
def test_wrong_use_of_sample_is_one_readable_message(finished, data_dir, arguments, message):
    model_dir, _ = finished
    output = run(command("sample.py", model_dir, data_dir, *arguments), fails=True)
    assert re.search(message, output)
    assert "Traceback" not in output


def test_missing_dataset_says_which_command_prepares_it(tmp_path):
    output = run(training(tmp_path / "model", tmp_path / "nothing"), fails=True)
    assert "data_prep/digits.py --data_dir=" in output
    assert "Traceback" not in output
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_part_without_its_numbers_is_one_readable_message(tmp_path, data_dir):
    rate = {"trainer.Trainer.generator_learning_rate": "@schedules.LinearDecay()"}
    output = run(training(tmp_path / "model", data_dir, **rate), fails=True)
    assert "ERROR: The configuration lacks something" in output and "'initial' and 'end'" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_evaluating_nothing_says_to_train_first(tmp_path, data_dir):
    output = run(
        command("evaluate.py", tmp_path, data_dir, "--gin_file=configs/digits.gin"), fails=True
    )
    assert "No checkpoint in" in output and "Train first" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags",
    [
        ("train.py", ["--model_dir", "--gin_param", "--mode"]),
        (
            "evaluate.py",
            ["--model_dir", "--gin_param", "--checkpoint", "--protocol", "--build_reference"],
        ),
        ("sample.py", ["--model_dir", "--gin_param", "--classes"]),
        ("sweep.py", ["--sweep", "--workers", "--emit", "digits_dim_rank"]),
        ("check_resume.py", ["--gin_file", "--steps", "--tolerance"]),
    ],
)
def test_help_teaches(script, flags):
    output = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert f"python scripts/{script} --" in output
    assert [flag for flag in flags if flag not in output] == []


@pytest.mark.slow
def test_self_test_passes_on_the_digits_and_fails_on_other_pixels(data_dir, tmp_path):
    arguments = [
        sys.executable,
        str(ROOT / "scripts" / "evaluate.py"),
        "--selftest",
        "--gin_file=configs/digits.gin",
    ]
    arguments += ["--accelerator=cpu", f"--data_dir={data_dir}"]
    output = run(arguments)
    assert output.count(": ok (") == 3 and "FAILED" not in output
    # Half of the range of pixels, as a set-up that forgets to scale would have.
    (tmp_path / "half.py").write_text(
        "from hamgan.evaluation.features import FeatureNetwork\n\n"
        "class Half(FeatureNetwork):\n    def outputs(self, images):\n        return "
        "super().outputs(images / 2)\n"
    )
    (tmp_path / "half.gin").write_text(
        "from __gin__ import dynamic_registration\ninclude 'configs/digits.gin'\nimport half\n"
        "from hamgan.evaluation import protocol\nprotocol.Protocol.features = @half.Half\n"
        "half.Half.handle = '{data_dir}/digits_features'\nhalf.Half.size = 32\n"
    )
    result = subprocess.run(
        [*arguments[:3], f"--gin_file={tmp_path}/half.gin", *arguments[4:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert result.returncode != 0
    assert "Inception Score of 1,497 real images of digits, split train: FAILED (" in result.stdout
