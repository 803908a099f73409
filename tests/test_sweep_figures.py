"""What the page of a sweep draws, from rows that are made."""

import itertools
import re

import pytest
from matplotlib.figure import Figure

from hamgan.sweeps import Axis, Sweep, figures, page, results, study


def axis(name, values):
    return Axis(name=name, bindings=[f"x.Y.{name}"], values=values)


def made(*axes, **options):
    """A sweep, its study without trials, and a row a point, whose score is 10, 11, ..."""
    sweep = Sweep(axes=axes, name="made", seeds=(0, 1), **options)
    rows = []
    for index, point in enumerate(sweep.grid()):
        runs = [
            results.Run(
                seed=seed,
                folder=point.folder(seed),
                step=4,
                score=10.0 + index + seed,
                curve={2: 50.0, 4: 10.0 + index + seed},
                step_seconds=1.0 / (1 + index),
                memory_gib=0.5,
                protocol="as ever",
                details={},
                state="complete",
            )
            for seed in sweep.seeds
        ]
        facts = {"macs": 1000 * (index + 1), "parameters": 5}
        rows.append(results.Row(name=point.name, values=point.values, runs=runs, facts=facts))
    return sweep, rows


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_heat_map_has_mean_and_deviation_of_each_point_in_its_place(axes):
    sweep, rows = made(axis("dim", [8, 16]), axis("rank", [2, 4, 8]))
    figures.heat_map(axes, sweep, rows)
    found = {text.get_position(): text.get_text() for text in axes.texts}
    # Across is the second axis; the mean of s and s + 1, whose deviation is 0.71.
    places = itertools.product(range(2), range(3))
    assert found == {(x, y): f"{10.5 + 3 * y + x:.4g}\n± 0.71" for y, x in places}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "8"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "dim")


def test_curve_has_means_in_a_band_of_all_seeds(axes):
    sweep, rows = made(axis("rank", [2, 4, 8]))
    figures.curve(axes, sweep, rows)
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [2, 4, 8] and list(line.get_ydata()) == [10.5, 11.5, 12.5]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(2, 10.0), (2, 11.0), (8, 12.0), (8, 13.0)} <= corners


def test_parallel_coordinates_have_a_line_a_point(axes):
    sweep, rows = made(axis("dim", [8, 16]), axis("rank", [2, 4]), axis("how", ["@a.b", "@a.c"]))
    figures.parallel(axes, sweep, rows)
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 4]
    assert len(lines) == 8
    # The best, the first point, is drawn last: at the foot of every axis.
    assert list(lines[-1].get_ydata()) == [0, 0, 0, 0]
    assert list(lines[0].get_ydata()) == [1, 1, 1, 1]


def test_pareto_front_leaves_out_what_is_beaten(axes):
    sweep, rows = made(axis("rank", [2, 4, 8]))
    figures.pareto(axes, sweep, rows, "macs", "multiply-adds")
    dots, front = axes.get_lines()
    assert list(dots.get_xdata()) == [1000, 2000, 3000]
    # The first is the best and the cheapest.
    assert list(front.get_xdata()) == [1000] and list(front.get_ydata()) == [10.5]
    other = Figure().add_subplot()
    figures.pareto(other, sweep, rows, "step_seconds", "seconds")
    assert list(other.get_lines()[1].get_xdata()) == [1 / 3, 1 / 2, 1]


@pytest.mark.parametrize("count, title", [(1, "Score by value"), (2, "Score by values")])
def test_what_is_drawn_follows_the_number_of_axes(count, title, tmp_path):
    sweep, rows = made(*(axis(name, [1, 2]) for name in "ab"[:count]))
    found = study.open_study(sweep, storage=None, output_dir=str(tmp_path))
    assert page.drawings(sweep, found, rows)[0][0] == title


def test_importance_is_that_of_what_varies_the_score(tmp_path):
    sweep, _ = made(axis("rank", [2, 4, 8]), axis("dim", [16, 32]), axis("steps", [6]))
    found = study.open_study(sweep, storage=None, output_dir=str(tmp_path))
    study.enqueue(found, sweep)
    for _ in range(sweep.num_trials()):
        trial = found.ask()
        # The seed moves it a little, d and K not at all.
        found.tell(trial, trial.params["rank"] + 0.1 * trial.params["seed"])
    important = page.importances(found, sweep)
    assert list(important)[0] == "rank" and important["rank"] > 0.9
    assert important["steps"] == 0 and sum(important.values()) == pytest.approx(1)


def test_page_of_three_axes(tmp_path):
    sweep, rows = made(axis("dim", [8, 16]), axis("rank", [2, 4]), axis("how", ["@a.b", "@a.c"]))
    found = study.open_study(sweep, storage=None, output_dir=str(tmp_path))
    page.write(sweep, found, rows, str(tmp_path))
    html = (tmp_path / "sweep.html").read_text()
    assert "Parallel coordinates" in html and "Protocol: as ever" in html
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    means = re.findall(r"<td class=n>(1[\d.]+)</td><td class=n>0.707</td><td class=n>2</td>", body)
    assert means == [f"{10.5 + index:.4g}" for index in range(8)]
    # Seeds are paired, and the same difference in both is beyond noise.
    assert "+1 [1, 1]</td><td class=n>yes</td>" in body
    # A page loads nothing from elsewhere.
    assert not re.findall(r'(?:src|href)="https?:', html)


def test_page_without_a_score_says_so(tmp_path):
    sweep, _ = made(axis("rank", [1]))
    found = study.open_study(sweep, storage=None, output_dir=str(tmp_path))
    written = page.write(sweep, found, [], str(tmp_path))
    assert [path.rpartition(".")[2] for path in written] == ["html", "csv"]
    html = (tmp_path / "sweep.html").read_text()
    assert "No trial has begun yet." in html and "No training has ended yet." in html
