import json

import pytest
from PIL import Image

from hamgan.cli import compare
from hamgan.run import records


def make_run(folder, fids, rate):
    for step, fid in fids.items():
        records.append(folder / "metrics.jsonl", {"kind": "evaluation", "step": step, "fid": fid})
        records.append(
            folder / "metrics.jsonl", {"kind": "train", "step": step, "images_per_second": rate}
        )
    return str(folder)


@pytest.fixture
def rows(tmp_path):
    first = [
        make_run(tmp_path / f"a{i}", {0: 100.0, 10: value}, 50.0)
        for i, value in enumerate((8.0, 12.0))
    ]
    second = [
        make_run(tmp_path / f"b{i}", {0: 90.0, 10: value, 20: 1.0}, 20.0)
        for i, value in enumerate((5.0,))
    ]
    return [compare.summarize("a", first), compare.summarize("b", second)]


def test_summary_is_over_seeds_at_the_last_common_step(rows):
    assert rows[0]["steps"] == [0, 10]
    assert rows[0]["fid_mean"] == 10.0
    assert rows[0]["fid_std"] == pytest.approx(8**0.5)
    assert (rows[0]["fid_min"], rows[0]["seeds"], rows[0]["images_per_second"]) == (8.0, 2, 50.0)
    assert rows[1]["fid_mean"] == 1.0 and rows[1]["fid_std"] == 0.0


def test_table_has_the_best_first(rows):
    lines = compare.table(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["b", "a"]
    assert "10.00 | 2.83 | 8.00 | 2 | 10 | 50" in lines[3]


def test_figure_is_a_picture(rows, tmp_path):
    compare.draw(str(tmp_path / "figure.png"), rows)
    assert Image.open(tmp_path / "figure.png").size == (960, 600)
    json.dumps(rows)


def test_failing_run_is_an_error_with_its_output(tmp_path):
    with pytest.raises(ValueError, match="(?s)train.py.*ended with status.*configs/nothing.gin"):
        compare.train_one("configs/nothing.gin", 0, output_dir=str(tmp_path), data_dir="nowhere")
