"""The order of the rooms, as docs/architecture.md has it: who may import whom."""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "hamgan").rglob("*.py"))

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def floors(text):
    """The floors of an architecture's text, from the ground up: [{'stateless', ...}, ...]."""
    block = re.search(r"^```floors\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block, "docs/architecture.md has no block ```floors."
    return [set(line.split(":", 1)[1].split()) for line in block[1].splitlines() if line]


def faults(floors, rooms):
    """What is wrong with floors for these rooms: rooms without a floor or with two, floors' rooms
    that aren't there.
    """
    named = collections.Counter(name for floor in floors for name in floor)
    return {
        "on no floor": sorted(rooms - set(named)),
        "on two floors": sorted(name for name, count in named.items() if count > 1),
        "not there": sorted(set(named) - rooms),
    }


# A module may import modules of earlier floors, and of its own.
LAYERS = floors(ARCHITECTURE.read_text())


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


def test_each_room_is_on_one_floor():
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert len(rooms) > 20
    assert not any(faults(LAYERS, rooms).values()), faults(LAYERS, rooms)


def test_faults_of_floors_are_found():
    text = "```floors\nground: a b\nroof: b gone\n```\n"
    assert floors(text) == [{"a", "b"}, {"b", "gone"}]
    assert faults(floors(text), {"a", "b", "new"}) == {
        "on no floor": ["new"],
        "on two floors": ["b"],
        "not there": ["gone"],
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    if path.name == "__init__.py":
        # A package's door shows what is in its own room.
        assert rooms_of(imported(path)) <= {path.parent.name, room(path)}
        return
    index = next(i for i, layer in enumerate(LAYERS) if room(path) in layer)
    allowed = set().union(*LAYERS[:index], LAYERS[index])
    assert rooms_of(imported(path)) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_knows_neither_gin_nor_flags(path):
    roots = {name.split(".")[0] for name in imported(path)}
    if room(path) != "cli":
        assert "absl" not in roots
    if path.parent != ROOT / "hamgan" / "cli" / "configuration":
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


def test_nothing_that_trains_or_evaluates_imports_tf_gan():
    users = {str(p.relative_to(ROOT / "hamgan")) for p in MODULES if "hamgan.tfgan" in imported(p)}
    assert users == {"benchmarks/fid.py"}


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
