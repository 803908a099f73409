"""The end of a sweep: sweep.html, sweep.csv and sweep.png."""

import io
import os
import urllib.parse
import warnings

import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import hamgan
from hamgan.evaluation import charts, markup
from hamgan.evaluation import page as pages
from hamgan.run import records
from hamgan.run.folder import Folder
from hamgan.sweeps import figures, results
from hamgan.sweeps.segmentation_costs import SIDE

_MILLION, _GIB = 1e6, 2**30
_NOT_KNOWN = "–"
# What costs are, in words.
_COUNTED_OF_GANS = (
    "Parameters are the trained ones of both networks, multiply-adds those of one image's forward "
    "pass through both, as XLA's program has them; memory is the estimate for a training step, the "
    "module's the measured peak of a training pass of 16 images"
)
_COUNTED_OF_SEGMENTATION = (
    "Parameters are the trained ones of the network, multiply-adds those of inference on one image "
    f"of {SIDE}x{SIDE} pixels, as XLA's program has them; the module is what stands in the head "
    "for the Hamburger"
)


def importances(study, sweep):
    """{parameter: importance}, Optuna's own, for the score; empty where there is too little.

    fANOVA's, shares of the variance: a grid is to be understood as a whole, not its best points
    alone, which is what Optuna's default looks at. What never varied has none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target = None if len(sweep.objectives) == 1 else (lambda trial: trial.values[0])
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=target
            )
        except (ValueError, RuntimeError, ImportError):
            return {}
    return {name: float(value) for name, value in found.items()}


def drawings(sweep, study, rows):
    """[(title, function that draws on axes)] of what the rows can show."""
    if not any(row.mean is not None for row in rows):
        return []
    main = {1: ("Score by value", figures.curve), 2: ("Score by values", figures.heat_map)}
    title, draw = main.get(len(sweep.axes), ("Parallel coordinates", figures.parallel))
    found = [(title, lambda axes: draw(axes, sweep, rows))]
    for cost, words in (
        ("step_seconds", "seconds a step, measured"),
        ("macs", "multiply-adds of an image"),
    ):
        if any(row.costs().get(cost) is not None for row in rows):
            found.append(
                (
                    f"Score against {words}",
                    lambda axes, cost=cost, words=words: figures.pareto(
                        axes, sweep, rows, cost, words
                    ),
                )
            )
    if important := importances(study, sweep):
        found.append(("Importance of parameters", lambda axes: figures.importance(axes, important)))
    found.append(("Score over steps", lambda axes: figures.over_steps(axes, sweep, rows)))
    return found


def write(sweep, study, rows, output_dir):
    """Writes the three files.

    Args:
      sweep: the `Sweep`.
      study: its study.
      rows: what `results.collect` gives.
      output_dir: the sweep's folder.

    Returns:
      Their paths.
    """
    drawn = drawings(sweep, study, rows)
    paths = [os.path.join(output_dir, f"sweep.{ending}") for ending in ("html", "csv", "png")]
    records.write_whole(paths[0], html(sweep, study, rows, drawn).encode())
    records.write_whole(paths[1], results.as_csv(sweep, rows).encode())
    if drawn:
        records.write_whole(paths[2], _picture(drawn))
    return paths if drawn else paths[:2]


def _picture(drawn):
    lines = -(-len(drawn) // 2)
    figure = Figure(figsize=(12, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    colours = dict(zip(charts.LINE_COLOURS, ("tab:blue", "tab:gray", "tab:green"), strict=False))
    for index, (title, draw) in enumerate(drawn, start=1):
        axes = figure.add_subplot(lines, 2, index)
        draw(axes)
        axes.set_title(title)
        _recolour(axes, colours)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _recolour(axes, colours):
    """Gives lines the colours of a picture in place of those that stand for a page's."""
    others = ("tab:orange", "tab:red", "tab:purple")
    table = {**dict(zip(charts.LINE_COLOURS[3:], others, strict=False)), **colours}
    for line in axes.get_lines():
        line.set_color(table.get(line.get_color(), line.get_color()))
    for shape in [*axes.patches, *axes.collections]:
        shape.set_facecolor(table[charts.LINE_COLOURS[0]])
    if legend := axes.get_legend():
        for mine, theirs in zip(legend.get_lines(), axes.get_lines(), strict=False):
            mine.set_color(theirs.get_color())


# Words


def _number(value, scale=1.0, digits=4):
    return _NOT_KNOWN if value is None else f"{value / scale:.{digits}g}"


def _against(row, best):
    """(difference to the best point, whether it exceeds the noise), in words."""
    if row is best:
        return "best", ""
    found = results.difference(row, best)
    if found is None:
        return _NOT_KNOWN, ""
    if found.low is None:
        return f"{found.mean:+.4g}", "one seed"
    words = f"{found.mean:+.4g} [{found.low:.4g}, {found.high:.4g}]"
    return words, "yes" if found.exceeds_noise else "no"


def _columns(sweep, rows):
    """(header, lines) for reading."""
    header = [
        *(axis.name for axis in sweep.axes),
        f"{markup.name(sweep.score)} mean",
        "std",
        "seeds",
        "to the best [95 %]",
        "beyond noise",
        *sweep.details,
        "parameters (M)",
        "multiply-adds (M)",
        "memory (GiB)",
        "module's parameters (k)",
        "module's multiply-adds (M)",
        "module's memory (MiB)",
        "s a step",
        "process (GiB)",
    ]
    lines = []
    for row in rows:
        cost = row.costs()
        lines.append(
            [
                *(str(row.values[axis.name]) for axis in sweep.axes),
                _number(row.mean),
                _number(row.std, digits=3),
                str(len(row.scores())),
                *_against(row, rows[0]),
                *(_number(row.detail(title)) for title in sweep.details),
                _number(cost["parameters"], _MILLION),
                _number(cost["macs"], _MILLION),
                _number(cost["memory_bytes"], _GIB, 3),
                _number(cost["module_parameters"], 1e3),
                _number(cost["module_macs"], _MILLION),
                _number(cost["module_memory_bytes"], 2**20, 3),
                _number(cost["step_seconds"], digits=3),
                _number(cost["host_gib"], digits=3),
            ]
        )
    if sweep.of_segmentation:  # whose memory isn't estimated
        keep = [i for i, name in enumerate(header) if name not in _ESTIMATED]
        header, *lines = [[line[i] for i in keep] for line in (header, *lines)]
    return header, lines


_ESTIMATED = ("memory (GiB)", "module's memory (MiB)")


def as_text(sweep, rows):
    """The table in Markdown, without the costs of memory."""
    header, lines = _columns(sweep, rows)
    count = len(sweep.axes) + 5 + len(sweep.details)
    keep = [*range(count), header.index("multiply-adds (M)"), header.index("s a step")]
    lines = [[line[i] for i in keep] for line in [header, ["---"] * len(header), *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html(sweep, study, rows, drawn):
    """The page."""
    parts = [
        ("Points", _table(sweep, rows) + _notes(sweep, rows)),
        ("Figures", _gallery(drawn)),
        ("Failed", _failed(study)),
        ("Pruned", _list(results.pruned(study), "None was ended early.")),
        ("Settings", _settings(sweep)),
    ]
    body = "\n".join(
        f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" for heading, content in parts
    )
    complete = sum(len(row.scores()) for row in rows)
    title = f"Sweep {study.study_name}"
    return pages.PAGE.format(
        title=markup.escape(title),
        subtitle=markup.escape(
            f"{len(rows)} of {sweep.num_points()} points, {complete} complete trainings"
        ),
        body=body,
        version=markup.escape(hamgan.__version__),
        style=pages.STYLE,
        script=pages.SCRIPT,
    )


def _gallery(drawn):
    found = []
    for title, draw in drawn:
        with charts.themed():
            figure = Figure(figsize=(5.2, 3.4), layout="constrained")
            draw(figure.add_subplot())
            found.append(charts.as_figure(figure, title))
    return charts.gallery(found) or markup.missing("No training has ended yet.")


def _table(sweep, rows):
    if not rows:
        return markup.missing("No trial has begun yet.")
    header, lines = _columns(sweep, rows)
    first = len(sweep.axes)

    def cells(tag, texts):
        return "".join(
            f"<{tag}{' class=n' if index >= first else ''}>{markup.escape(text)}</{tag}>"
            for index, text in enumerate(texts)
        )

    body = "\n".join(
        f"<tr>{cells('td', line)}<td>{_links(row)}</td></tr>"
        for row, line in zip(rows, lines, strict=True)
    )
    head = f"<thead><tr>{cells('th', header)}<th>runs</th></tr></thead>"
    return f'<div class="wide whole"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _links(row):
    links = []
    for run in row.runs:
        name = os.path.basename(run.folder)
        words = f"seed {run.seed}" + ("" if run.state == "complete" else f" ({run.state})")
        score = f": {run.score:.4g}" if run.score is not None else ""
        report = urllib.parse.quote(Folder(name).report)
        links.append(f'<a href="{report}">{markup.escape(words + score)}</a>')
    return ", ".join(links)


def _notes(sweep, rows):
    sentences = [
        f"{markup.name(sweep.score)} at the last step; {sweep.better} is better. Mean and standard "
        "deviation (n - 1) are over seeds. Differences to the best point are paired by seed, with "
        "Student's 95 % interval; beyond noise: it leaves 0 out. The best was chosen by the same "
        "numbers, and intervals aren't widened for their number: small differences are to be "
        "measured again with more seeds."
    ]
    if pooled := results.noise(rows):
        sentences.append(f"Standard deviation over seeds, pooled over points: {pooled:.4g}.")
    words = {run.protocol for row in rows for run in row.runs if run.protocol}
    sentences += [f"Protocol: {text}" for text in sorted(words)]
    sentences.append(
        f"{_COUNTED_OF_SEGMENTATION if sweep.of_segmentation else _COUNTED_OF_GANS}; the process's "
        "memory is its measured peak; seconds a step are the median of the training's calls."
    )
    return "".join(f'<p class="note">{markup.escape(text)}</p>' for text in sentences)


def _list(texts, otherwise):
    if not texts:
        return markup.missing(otherwise)
    return f"<ul>{''.join(f'<li>{markup.escape(text)}</li>' for text in texts)}</ul>"


def _failed(study):
    found = results.failures(study)
    if not found:
        return markup.missing("None has failed.")
    return markup.table(("training", "reason"), found)


def _settings(sweep):
    lines = [(name, str(value)) for name, value in sweep.as_json().items() if name != "axes"]
    for axis in sweep.axes:
        lines += [
            (f"{axis.name}: {setting}", ", ".join(map(str, axis.options())) or _range(axis))
            for setting in (*axis.bindings, *axis.tied, *(["choices"] if axis.choices else []))
        ]
    return markup.table(("setting", "value"), lines)


def _range(axis):
    return f"{axis.low} to {axis.high}{', logarithmic' if axis.log else ''}"
