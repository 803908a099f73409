"""The report: HTML that needs nothing from outside, with the run's numbers, pictures and curves."""

import base64
import html.parser
import io
import json
import re
import uuid

import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hamgan import pictures
from hamgan.evaluation import report, terminal
from hamgan.run import records

_VOID = {"meta", "img", "input", "br", "hr", "link"}


class _Page(html.parser.HTMLParser):
    """Every element of a page, with its text; fails where tags don't nest."""

    def __init__(self, text):
        super().__init__()
        self.elements = []  # [tag, attributes, text of it and of all within]
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        return [
            (attrs, text)
            for name, attrs, text in self.elements
            if name == tag
            and all(attrs.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def text(self):
        ((_, text),) = self.all("body")
        return text

    def cards(self):
        """{name: (value, note)} of the headline numbers."""
        parts = [[text for _, text in self.all("div", class_=c)] for c in ("name", "value", "note")]
        return {name: (value, note) for name, value, note in zip(*parts, strict=True)}

    def rows(self):
        """The tables' rows, as lists of texts."""
        rows = []
        for tag, _, text in self.elements:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(text)
        return rows


def _page(model_dir, **options):
    path = report.write_report(model_dir, **options)
    with tf.io.gfile.GFile(path, "rb") as file:
        return _Page(file.read().decode())


def _evaluation(step, fid, **others):
    return {
        "kind": "evaluation",
        "step": step,
        "time": 1.7e9 + step,
        "fid": fid,
        "num_samples": 1000,
        "seed": 7,
        "checkpoint": f"checkpoints/ckpt-{step}",
        "features": {"handle": "digits_features", "digest": "abc"},
        "reference": {"dataset": "digits", "split": "train"},
        **others,
    }


def _train(step, **others):
    return {
        "kind": "train",
        "step": step,
        "time": 1.7e9 + step,
        "loss/discriminator": 1.0 + 1 / (1 + step),
        "loss/generator": -0.5,
        "logits/real": 0.75,
        "logits/fake": -0.25,
        "images_per_second": 100.0 + step,
        **others,
    }


def _write(model_dir, *lines):
    for line in lines:
        records.append(f"{model_dir}/metrics.jsonl", line)


def _write_grid(path, seed=0, **options):
    images = np.random.default_rng(seed).uniform(-1, 1, [4, 16, 16, 3])
    pictures.save_grid(path, images, columns=2, scale=1, **options)


def _whole_run(model_dir):
    """A folder that holds everything a report can show."""
    for step in (0, 100, 200):
        _write(model_dir, _train(step))
        scores = {"inception_score": 1.0 + step, "kid": 0.5 - step / 1000, "kid_stderr": 0.01}
        _write(model_dir, _evaluation(step, 400.0 / (1 + step), **scores))
        _write_grid(f"{model_dir}/samples/step-{step:08d}.png", seed=step)
    _write(model_dir, {"kind": "event", "step": 100, "event": "resumed", "checkpoint": "ckpt-100"})
    _write_grid(f"{model_dir}/samples.png", seed=1000)
    _write_grid(f"{model_dir}/real.png", seed=1001)
    with tf.io.gfile.GFile(f"{model_dir}/config.gin", "wb") as file:
        file.write(b"networks.Generator.width = 16\n")


def _curve(page, title, number=0):
    """The points (x, y) of a chart's curve in the drawing; y grows downwards."""
    paths = []
    inside = False
    for tag, attrs, _ in page.elements:
        if tag == "svg":
            inside = attrs["aria-label"] == title
        # The legend shows a short piece of each line too.
        inside = inside and "legend" not in attrs.get("id", "")
        colour = f"fill: none; stroke: var(--c{number})"
        if inside and tag == "path" and attrs.get("style", "").startswith(colour):
            paths.append(re.findall(r"[ML] (\S+) (\S+)", attrs["d"]))
    assert len(paths) == 1
    return np.array(paths[0], float)


def test_the_page_is_self_contained(tmp_path):
    _whole_run(tmp_path)
    path = report.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert path == str(tmp_path / "report.html")
    assert "http:" not in text and "https:" not in text and "@import" not in text

    page = _Page(text)
    for tag, attrs, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert tag != "script" or "src" not in attrs
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            if name in attrs:
                assert attrs[name].startswith(("data:image/", "#"))
        for target in re.findall(r"url\(([^)]*)\)", " ".join(map(str, attrs.values()))):
            assert target.startswith("#")


def test_references_inside_the_page_are_unique_and_lead_somewhere(tmp_path):
    _whole_run(tmp_path)
    page = _page(tmp_path)
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set()
    for _, attrs, _ in page.elements:
        values = " ".join(str(value) for key, value in attrs.items() if key != "content")
        used |= set(re.findall(r"url\(#([^)]*)\)", values))
        used |= {attrs["href"][1:]} if "href" in attrs else set()
    assert used and used <= set(ids)


def test_the_pictures_are_those_of_the_folder(tmp_path):
    _whole_run(tmp_path)
    found = {}
    for attrs, _ in _page(tmp_path).all("img"):
        kind, data = attrs["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        data = base64.b64decode(data, validate=True)
        assert Image.open(io.BytesIO(data)).size == (int(attrs["width"]), int(attrs["height"]))
        found[attrs["alt"]] = data
    files = {
        "Generated images in a grid": "samples.png",
        "Real images in a grid": "real.png",
        "Samples at step 0": "samples/step-00000000.png",
        "Samples at step 100": "samples/step-00000100.png",
        "Samples at step 200": "samples/step-00000200.png",
    }
    assert found == {alt: (tmp_path / name).read_bytes() for alt, name in files.items()}


def test_many_samples_become_an_even_choice_with_the_first_and_the_last(tmp_path):
    _write(tmp_path, _train(1))
    for step in range(0, 3100, 100):
        _write_grid(tmp_path / "samples" / f"step-{step:08d}.png")
    (tmp_path / "samples" / "step-00000050.png.123.tmp").write_bytes(b"half")
    page = _page(tmp_path)
    steps = [int(attrs["alt"].removeprefix("Samples at step ")) for attrs, _ in page.all("img")]
    assert len(steps) == 20 and steps == sorted(steps)
    assert steps[0] == 0 and steps[-1] == 3000
    assert set(np.diff(steps)) == {100, 200}
    # Without JavaScript a handful is shown, and the slider stays out of sight.
    stills = page.all("figure", class_="still")
    assert [text for _, text in (stills[0], stills[-1])] == ["Step 0", "Step 3,000"]
    assert len(stills) == 5
    assert "hidden" in page.all("div", class_="controls")[0][0]
    assert page.all("input", type="range")[0][0]["max"] == "19"


def test_a_large_picture_is_embedded_small(tmp_path):
    _write(tmp_path, _train(1))
    noise = np.random.default_rng(0).integers(0, 256, [16, 400, 400, 3], dtype=np.uint8)
    pictures.save_grid(tmp_path / "samples.png", noise, columns=4)
    assert (tmp_path / "samples.png").stat().st_size > 5_000_000
    report.write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    ((attrs, _),) = _Page((tmp_path / "report.html").read_text()).all("img")
    assert attrs["src"].startswith("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",", 1)[1])))
    assert picture.size == (int(attrs["width"]), int(attrs["height"]))


def test_headline_numbers(tmp_path):
    for step, fid in ((0, 512.25), (100, 20.5), (200, 24.125)):
        _write(tmp_path, _train(step), _evaluation(step, fid, kid=0.5, kid_stderr=0.0625))
    page = _page(tmp_path)
    cards = page.cards()
    assert cards["FID, last"] == ("24.12", "step 200, from 512.2 at step 0")
    assert cards["FID, best"] == ("20.5", "step 100")
    assert cards["KID"] == ("0.5", "± 0.0625 (standard error), step 200")
    assert cards["Steps"][0] == "200"
    assert cards["Images per second"][0] == "200"  # the median of 100, 200 and 300
    assert "Inception score" not in cards
    rows = page.rows()
    assert ["Generated samples", "1000"] in rows
    assert ["Seed", "7"] in rows
    assert ["Checkpoint", "checkpoints/ckpt-200"] in rows
    assert ["Checkpoint, best FID", "checkpoints/ckpt-100"] in rows
    assert ["Features", "handle digits_features, digest abc"] in rows
    assert ["Reference", "dataset digits, split train"] in rows


def test_numbers_of_different_protocols_are_not_compared(tmp_path):
    _write(tmp_path, _evaluation(0, 90.0), _evaluation(100, 5.0))
    validation = {"reference": {"dataset": "digits", "split": "test"}}
    _write(tmp_path, _evaluation(0, 80.0, **validation), _evaluation(200, 9.0, **validation))
    page = _page(tmp_path)
    assert page.cards()["FID, best"] == ("9", "step 200")
    assert page.cards()["FID, last"] == ("9", "step 200, from 80 at step 0")
    assert len(_curve(page, "FID (lower is better)", 0)) == 2
    assert len(_curve(page, "FID (lower is better)", 1)) == 2
    labels = [text for _, text in page.all("text")]
    assert "Reference split train" in labels and "Reference split test" in labels


def test_curves_pass_through_the_recorded_points(tmp_path):
    values = [1.5, -0.5, 2.5, 0.0]
    for step, value in zip((10, 20, 40, 50), values, strict=True):
        _write(tmp_path, _train(step, **{"loss/generator": value}))
    points = _curve(_page(tmp_path), "Losses", number=1)
    x, y = (points - points[0]).T
    assert x / x[-1] == pytest.approx([0, 0.25, 0.75, 1], abs=1e-4)
    assert y / y[1] == pytest.approx((np.array(values) - 1.5) / -2.0, abs=1e-4)
    assert y[1] > 0


def test_a_number_of_many_scales_gets_a_logarithmic_axis(tmp_path):
    for step, fid in ((0, 400.0), (10, 40.0), (20, 4.0)):
        _write(tmp_path, _evaluation(step, fid, kid=fid - 5.0, inception_score=fid))
    page = _page(tmp_path)
    _, y = _curve(page, "FID (lower is better)").T
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], rel=1e-3)
    # A KID may be negative, which has no logarithm.
    _, y = _curve(page, "KID (lower is better)").T
    assert y[1] - y[0] == pytest.approx(10 * (y[2] - y[1]), rel=1e-3)
    captions = [text for _, text in page.all("figcaption")]
    assert "FID (lower is better), logarithmic" in captions
    assert "KID (lower is better)" in captions


def test_a_long_run_keeps_its_mean_but_not_every_point(tmp_path):
    lines = [json.dumps(_train(step, **{"loss/generator": step % 2})) for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = _page(tmp_path)
    points = _curve(page, "Losses", number=1)
    assert 100 < len(points) < 250
    # Means of pairs 0, 1 all lie on one level; the band around them spans the extremes.
    assert np.ptp(points[:, 1]) < 10
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_discriminator_outputs_and_other_scalars_have_curves(tmp_path):
    for step in range(3):
        _write(tmp_path, _train(step, gate=0.1 * step, rate=0.5))
    page = _page(tmp_path)
    assert len(_curve(page, "Discriminator outputs", 0)) == 3
    assert len(_curve(page, "Discriminator outputs", 1)) == 3
    assert len(_curve(page, "Weight of the context module")) == 3
    assert "Constant: Rate 0.5." in page.text()


def test_evaluations_are_tabled_with_all_their_numbers(tmp_path):
    _write(tmp_path, _evaluation(100, 20.5, precision=0.75, accuracy=0.875))
    _write(tmp_path, _evaluation(0, 512.25, precision=float("nan")))
    rows = _page(tmp_path).rows()
    header = next(row for row in rows if row[:2] == ["Step", "FID"])
    assert sorted(header[2:]) == ["Accuracy", "Precision"]
    table = rows[rows.index(header) + 1 :][:2]
    assert [dict(zip(header, row, strict=True)) for row in table] == [
        {"Step": "0", "FID": "512.2", "Precision": "not finite", "Accuracy": "–"},
        {"Step": "100", "FID": "20.5", "Precision": "0.75", "Accuracy": "0.875"},
    ]


def test_numbers_that_were_not_finite_leave_gaps(tmp_path):
    for step, fid in ((0, 9.0), (10, float("nan")), (20, 8.0)):
        _write(tmp_path, _evaluation(step, fid), _train(step, **{"loss/generator": fid}))
    _write(tmp_path, _evaluation(30, float("inf")))
    page = _page(tmp_path)
    assert page.cards()["FID, last"][0] == "not finite"
    assert page.cards()["FID, best"] == ("8", "step 20")
    assert len(_curve(page, "FID (lower is better)")) == 2


def test_events_are_listed(tmp_path):
    event = {"kind": "event", "step": 1200, "time": 0, "event": "resumed", "checkpoint": "ckpt-7"}
    _write(tmp_path, event)
    row = ["1,200", "1970-01-01 00:00 UTC", "resumed", "checkpoint = ckpt-7"]
    assert row in _page(tmp_path).rows()


def test_later_lines_win_after_a_resume(tmp_path):
    for step in (100, 200, 300):
        _write(tmp_path, _train(step), _evaluation(step, 1.0))
    _write(tmp_path, _train(200), _evaluation(200, 3.5), _evaluation(300, 4.5))
    page = _page(tmp_path)
    # Steps behind the point of resumption haven't been trained again yet.
    assert page.cards()["Steps"][0] == "200"
    assert len(_curve(page, "Losses")) == 2
    assert [row for row in page.rows() if row[0] in ("100", "200", "300")] == [
        ["100", "1"],
        ["200", "3.5"],
        ["300", "4.5"],
    ]


def test_what_was_rolled_back_counts_no_more(tmp_path):
    _write(tmp_path, _evaluation(100, 3.5), _evaluation(200, 90.0))
    _write(tmp_path, {"kind": "event", "step": 250, "event": "rolled back", "to": 100})
    assert _page(tmp_path).cards()["FID, last"] == ("3.5", "step 100")


def test_numbers_of_one_group_share_a_chart(tmp_path):
    layers = [f"sigma/generator/layer{i}" for i in range(9)]
    for step in range(3):
        sigmas = {name: 1.0 + i + step for i, name in enumerate(layers)}
        _write(
            tmp_path,
            _train(
                step, **sigmas, **{"gate/generator": 0.1 * step, "gate/discriminator": 0.2 * step}
            ),
        )
    page = _page(tmp_path)
    assert len(_curve(page, "Weight of the context module", 1)) == 3
    sigma = "Largest singular value, generator: mean of 9, smallest to largest"
    mean = _curve(page, sigma)[:, 1]
    top, bottom = _band(page, sigma)
    # From 1 + 0 to 9 + 2 around means of 5, 6 and 7.
    assert (bottom - mean[0]) / (mean[0] - mean[2]) == pytest.approx(2, rel=1e-2)
    assert (mean[2] - top) / (mean[0] - mean[2]) == pytest.approx(2, rel=1e-2)


def test_a_killed_run_can_be_reported(tmp_path):
    _write(tmp_path, _train(100), _evaluation(100, 3.5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "evaluation", "step": 200, "fid": 1.2')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-00000100.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    page = _page(tmp_path)
    assert page.cards()["FID, last"] == ("3.5", "step 100")
    assert page.all("img") == []


@pytest.mark.parametrize("content", ["", '{"kind": "tr'])
def test_what_is_missing_is_said(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    page = _page(tmp_path)
    assert page.cards() == {}
    missing = " ".join(text for _, text in page.all("p", class_="missing"))
    for word in ("No evaluation", "No training step", "No event", "samples.png", "real.png"):
        assert word in missing
    assert "samples/step-*.png" in missing and "config.gin" in missing
    assert page.all("img") == [] and page.all("svg") == []


def test_a_folder_without_metrics_is_no_model_dir(tmp_path):
    with pytest.raises(
        ValueError, match="model_dir must be the folder .*train.py.*no metrics.jsonl"
    ):
        report.write_report(tmp_path / "nowhere")


def test_text_from_the_run_is_escaped(tmp_path):
    nasty = "<script>alert('&amp;')</script> \"$x^{$\" <b>"
    config = f"experiment.names = [{nasty!r}]  # <i>"
    (tmp_path / "config.gin").write_text(config)
    _write(tmp_path, _train(0, **{nasty: 1.5}), _train(1, **{nasty: 2.5, f"loss/{nasty}": 1.5}))
    features = {"features": nasty, "reference": {nasty: nasty}}
    _write(tmp_path, _evaluation(0, 5.0, **features), _evaluation(1, 4.0, **{nasty: 0.5}))
    _write(tmp_path, {"kind": "event", "step": 1, "event": nasty, nasty: nasty})
    page = _page(tmp_path, title=nasty)
    assert page.all("title") == [({}, nasty)] and page.all("h1") == [({}, nasty)]
    assert config in [text for _, text in page.all("pre")]
    assert nasty in [text for _, text in page.all("text")]
    assert page.text().count(nasty) >= 10
    assert len(page.all("script")) == 1 and not page.all("b") and not page.all("i")


def test_commands_name_the_folder(tmp_path):
    folder = tmp_path / "my run"
    _write(folder, _train(1))
    commands = _page(folder).all("pre")[-1][1]
    assert f"python scripts/evaluate.py --model_dir='{folder}'" in commands
    assert f"python scripts/sample.py --model_dir='{folder}'" in commands
    assert f"python scripts/train.py --gin_file='{folder}/config.gin'" in commands


def test_a_remote_folder_gives_the_same_page(tmp_path):
    remote = f"ram://{uuid.uuid4()}"
    _whole_run(remote)
    _whole_run(tmp_path)
    here, there = _page(tmp_path, title="run"), _page(remote, title="run")
    assert there.cards() == here.cards()
    assert [attrs["src"] for attrs, _ in there.all("img")] == [
        attrs["src"] for attrs, _ in here.all("img")
    ]


def test_the_same_folder_gives_the_same_page_and_matplotlib_stays_as_it_was(tmp_path):
    _whole_run(tmp_path)
    before = dict(matplotlib.rcParams)
    first = open(report.write_report(tmp_path), "rb").read()
    assert open(report.write_report(tmp_path), "rb").read() == first
    assert dict(matplotlib.rcParams) == before


def _band(page, title):
    """The heights (top, bottom) that the band of a chart spans; y grows downwards."""
    inside, heights = False, {}
    for tag, attrs, _ in page.elements:
        if tag == "svg":
            inside = attrs["aria-label"] == title
        if inside and tag == "path" and "id" in attrs:
            heights["#" + attrs["id"]] = [
                float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", attrs["d"])
            ]
        if inside and tag == "use" and "fill-opacity" in attrs.get("style", ""):
            band = [float(attrs["y"]) + y for y in heights[attrs["href"]]]
            return min(band), max(band)
    raise AssertionError(f"no band in {title}")


def test_intervals_are_drawn_and_told(tmp_path):
    for step in (0, 100):
        _write(
            tmp_path,
            _evaluation(
                step,
                20.0,
                fid_interval=[19.0, 23.0],
                inception_score=5.0 - step / 100,
                inception_score_interval=[3.5, 5.5],
                kid=0.5,
                kid_stderr=0.125,
            ),
        )
    page = _page(tmp_path)
    assert page.cards()["FID, last"] == ("20", "[19, 23], step 100, from 20 at step 0")
    assert page.cards()["Inception score"] == ("4", "[3.5, 5.5], step 100")
    line = _curve(page, "FID (lower is better)")[0, 1]
    top, bottom = _band(page, "FID (lower is better)")
    assert (line - top) / (bottom - line) == pytest.approx(3, rel=1e-3)
    line = _curve(page, "KID (lower is better)")[0, 1]
    top, bottom = _band(page, "KID (lower is better)")
    assert line - top == pytest.approx(bottom - line, rel=1e-3) and bottom > top
    assert not any("interval" in cell.lower() for row in page.rows() for cell in row)


def test_a_single_evaluation_has_its_interval_too(tmp_path):
    _write(tmp_path, _evaluation(100, 20.0, fid_interval=[19.0, 23.0]))
    report.write_report(tmp_path)
    with_interval = (tmp_path / "report.html").read_text().count("LineCollection")
    assert with_interval == 1


def _aggregate(step, values, **others):
    fid = {
        "mean": np.mean(values),
        "std": np.std(values, ddof=1),
        "min": min(values),
        "values": values,
    }
    return {
        "kind": "aggregate",
        "step": step,
        "time": 2e9,
        "fid": fid["mean"],
        "scores": {"fid": fid},
        **others,
    }


def test_the_mean_of_repeats_is_the_headline(tmp_path):
    protocol = {"protocol": {"name": "val-50k", "fingerprint": "abc"}}
    for seed, fid in enumerate((9.0, 12.0, 15.0)):
        _write(tmp_path, _evaluation(100, fid, **protocol) | {"seed": seed})
    _write(tmp_path, _aggregate(100, [9.0, 12.0, 15.0], **protocol))
    # Of another step and another protocol: not this evaluation's.
    _write(
        tmp_path,
        _aggregate(50, [1.0, 2.0]),
        _aggregate(100, [3.0, 4.0], protocol={"name": "paper"}),
    )
    page = _page(tmp_path)
    assert list(page.cards())[0] == "FID, mean of 3"
    assert "FID, last" not in page.cards()
    assert page.cards()["FID, mean of 3"] == ("12", "± 3 (std), min 9, step 100")
    # Not 9, the luckiest seed of this checkpoint.
    assert page.cards()["FID, best mean of 3"] == ("12", "step 100")
    assert ["100", "val-50k", "FID", "12", "3", "9", "9, 12, 15"] in page.rows()
    assert ["100", "paper", "FID", "3.5", "0.7071", "3", "3, 4"] in page.rows()


def test_the_protocol_stands_in_words(tmp_path):
    _write(tmp_path, _evaluation(0, 9.0, labels="uniform", weights="raw", quantize=True))
    _write(tmp_path, _evaluation(1, 8.0, labels="uniform", weights="raw", quantize=True))
    ((_, text),) = _page(tmp_path).all("p", class_="protocol")
    assert text.startswith("1,000 generated images (labels uniform, raw weights, seed 7)")
    assert "rounded to 8 bits" in text and "features of digits_features (digest abc)" in text

    words = "Fifty thousand <samples> against the validation split."
    _write(
        tmp_path,
        _evaluation(2, 7.0, protocol={"name": "val-50k", "fingerprint": "f", "words": words}),
    )
    page = _page(tmp_path)
    assert [text for _, text in page.all("p", class_="protocol")] == [words]


def test_curves_of_named_protocols_bear_their_names(tmp_path):
    for name in ("paper", "val-50k"):
        for step in (0, 10):
            protocol = {"name": name, "fingerprint": name * 2, "words": "many words"}
            _write(tmp_path, _evaluation(step, 5.0 + step, protocol=protocol))
    labels = [text for _, text in _page(tmp_path).all("text")]
    assert {"Protocol paper", "Protocol val-50k"} <= set(labels) and not any(
        "paperpaper" in label for label in labels
    )


def test_nearest_neighbours_are_shown(tmp_path):
    _write(tmp_path, _evaluation(100, 9.0))
    for step in (100, 200):
        check = {
            "step": step,
            "dataset": "digits",
            "split": "train",
            "real": "held-out images",
            "generated_distance": 2.0,
            "real_distance": 4.0,
            "distance_ratio": step / 400,
            "closer_than_real": 0.25,
            "num_generated": 1000,
            "num_training": 1497,
            "num_real": 300,
        }
        records.write_whole(
            f"{tmp_path}/neighbours/step-{step:08d}.json", json.dumps(check).encode()
        )
        _write_grid(f"{tmp_path}/neighbours/step-{step:08d}.png", seed=step)
    page = _page(tmp_path)
    ((attrs, _),) = page.all("img", alt="Samples and their nearest training images")
    data = base64.b64decode(attrs["src"].split(",", 1)[1])
    assert data == (tmp_path / "neighbours" / "step-00000200.png").read_bytes()
    assert (
        "Each row: a sample, then the nearest of 1,497 images of digits, split train" in page.text()
    )
    assert "real images (held-out images)" in page.text()
    assert ["100", "2", "4", "0.25", "0.25"] in page.rows() and [
        "200",
        "2",
        "4",
        "0.5",
        "0.25",
    ] in page.rows()


def test_fields_nobody_knows_do_no_harm(tmp_path):
    strange = {
        "future": {"a": [1, {"b": None}]},
        "fid_interval": "wide",
        "protocol": ["x"],
        "kid_interval": [1, None],
    }
    _write(
        tmp_path,
        _evaluation(0, 9.0, kid=0.5, **strange),
        {"kind": "aggregate", "step": 0, "fid": 3.0, "scores": {"fid": {"mean": None}, "x": 1}},
    )
    _write(tmp_path, {"kind": "unheard of", "step": 0, "x": 1})
    page = _page(tmp_path)
    assert page.cards()["FID, last"][0] == "9"
    assert any("future" in cell.lower() for row in page.rows() for cell in row)
    assert "9" in terminal.table(records.read(tmp_path / "metrics.jsonl"))


def test_terminal_table_has_a_line_for_each_evaluation_and_mean():
    protocol = {"protocol": {"name": "val-50k"}}
    lines = terminal.table(
        [
            _train(5),
            _aggregate(200, [9.0, 12.0, 15.0], **protocol),
            _evaluation(
                200,
                14.5,
                fid_interval=[14.0, 15.0],
                inception_score=3.0,
                kid=0.5,
                kid_stderr=0.25,
                **protocol,
            ),
            _evaluation(100, float("nan")),
        ]
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["Step", "Protocol", "FID", "IS", "KID", "Samples", "Seed"],
        ["100", "–", "not", "finite", "–", "–", "1,000", "7"],
        ["200", "val-50k", "14.5", "[14,", "15]", "3", "0.5", "±", "0.25", "1,000", "7"],
        ["200", "val-50k", "12", "±", "3", "–", "–", "mean", "of", "3"],
    ]
    ends = {
        line.index(word) + len(word) for line, word in zip(lines[:2], ("Step", "100"), strict=True)
    }
    assert len(ends) == 1  # columns are flush
    assert terminal.table([_train(5)]) == ""
