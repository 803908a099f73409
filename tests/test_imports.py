"""The order of the rooms: who may import whom (see README, map of the code)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "hamgan").rglob("*.py"))

# From the bottom up: a module may import modules of earlier lines, and of its own line unless it is
# alone there.
LAYERS = [
    {
        "stateless",
        "run",
        "tfgan",
        "distribution",
        "schedules",
        "spectral",
        "normalization",
        "layers",
        "watching",
    },
    {
        "decomposition",
        "losses",
        "augmentation",
        "labels",
        "guard",
        "data",
        "pictures",
        "signals",
        "profiling",
        "collapse",
    },
    {"context", "regularization"},
    {"networks", "microbatches"},
    {"step"},
    {"published", "inspection"},
    {"trainer", "sampling"},
    {"grids"},
    {"evaluation"},
    {"loop", "preview"},
    {"segmentation"},
    {"experiment", "benchmarks", "checks", "training", "importing"},
    {"cli"},
]


def imported(path):
    """The names that a file imports, with what it takes from packages: {'hamgan.data', 'numpy',
    ...}.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path):
    return path.relative_to(ROOT / "hamgan").parts[0].removesuffix(".py")


def rooms_of(names):
    return {name.split(".")[1] for name in names if name.startswith("hamgan.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    if path.name == "__init__.py":
        # A package's door shows what is in its own room.
        assert rooms_of(imported(path)) <= {path.parent.name}
        return
    index = next(i for i, layer in enumerate(LAYERS) if room(path) in layer)
    allowed = set().union(*LAYERS[:index], LAYERS[index])
    assert rooms_of(imported(path)) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_knows_neither_gin_nor_flags(path):
    roots = {name.split(".")[0] for name in imported(path)}
    if room(path) != "cli":
        assert "absl" not in roots
    if path.relative_to(ROOT) != pathlib.Path("hamgan/cli/configuration.py"):
        assert "gin" not in roots
    assert not roots & {"scripts", "data_prep", "cli"}


def test_only_one_module_imports_tensorflow_gan():
    users = [
        p.name
        for p in MODULES
        if "tensorflow_gan" in p.read_text() and any("tensorflow_gan" in n for n in imported(p))
    ]
    assert users == [] or users == ["tfgan.py"]
    assert "tensorflow_gan" in (ROOT / "hamgan" / "tfgan.py").read_text()


@pytest.mark.parametrize(
    "name", ["data/dataset.py", "distribution.py", "run/checkpoints.py", "evaluation/metrics.py"]
)
def test_some_rooms_import_no_network_code(name):
    assert not rooms_of(imported(ROOT / "hamgan" / name)) & {
        "networks",
        "context",
        "trainer",
        "spectral",
    }


@pytest.mark.parametrize("name", ["metrics.py", "manifold.py", "uncertainty.py"])
def test_metrics_need_no_tensorflow(name):
    names = imported(ROOT / "hamgan" / "evaluation" / name)
    assert not {n.split(".")[0] for n in names} & {"tensorflow", "keras"}
    assert rooms_of(names) <= {"evaluation"}
