"""The commands of README and docs, as text and as what the scripts' own flags make of them.

Run as a program it takes commands from standard input, a JSON list of lists of words, and prints
what is wrong with each, a JSON list of texts, empty where all is well. A process of its own, since
scripts define flags of the same names.
"""

import json
import os
import pathlib
import re
import runpy
import shlex
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
)
# What stands for a run whose gin files a command doesn't name.
DEFAULT_GIN_FILE = "configs/digits.gin"
DEFAULT_SEGMENTATION = "configs/segmentation/digits.gin"


def code(path):
    """The lines of a page's code blocks, indented by four or fenced, continued ones joined."""
    lines, fenced = [], False
    for line in path.read_text().replace("\\\n", "").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            lines.append(line)
        elif line.startswith("    "):
            lines.append(line[4:])
    return lines


def commands(path):
    """A page's commands: [['python', 'scripts/train.py', '--mode=train'], ...]."""
    starts = re.compile(r"(python|make|pip|ruff|mypy|source|scripts/\w+\.sh)\b")
    return [shlex.split(line, comments=True) for line in code(path) if starts.match(line)]


def bindings(path):
    """A page's gin bindings, each a list: those that stand above it in its block, which it may
    need, and the binding itself, a text like 'trainer.Trainer.seed = 1'.
    """
    binding = re.compile(r"^([A-Z_]+|[\w/]*\w+\.\w[\w.]*) = ")
    found, above = [], []
    for line in code(path):
        # A sweep's file is read as a whole: tests/test_sweep_definition.py.
        if "sweeps." in line:
            continue
        above = [*above, line.split(" #")[0].strip()] if binding.match(line) else []
        found += [above] if above else []
    params = [line for line in code(path) if line.startswith("--gin_param")]
    return found + [[shlex.split(line)[0].removeprefix("--gin_param=")] for line in params]


def parse(words):
    """Has a script's own flags parse its command, and gin its configuration; runs nothing.

    Raises:
      Exception: whatever is wrong with the command.
    """
    import gin
    from absl import app, flags

    from hamgan.cli import common, configuration, segment_common

    known = set(flags.FLAGS)
    parsed = []
    run, app.run = app.run, lambda main, **kwargs: parsed.append(flags.FLAGS(sys.argv))
    sys.argv = list(words)
    segments = words[0] == "scripts/segment.py"
    sys.path.insert(0, str(ROOT / os.path.dirname(words[0])))
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        if len(parsed) != 1:
            raise ValueError(f"{words[0]} has parsed its flags {len(parsed)} times, not once.")
        if "sweep" in flags.FLAGS and "output_dir" in flags.FLAGS:
            configuration.load_sweep(flags.FLAGS.sweep, gin_params=flags.FLAGS.gin_param)
        elif {"gin_file", "gin_param"} <= set(flags.FLAGS):
            if not flags.FLAGS.gin_file:
                flags.FLAGS.gin_file = [DEFAULT_SEGMENTATION if segments else DEFAULT_GIN_FILE]
            gin.clear_config()
            if segments:
                segment_common.load()
                return
            protocol = flags.FLAGS.protocol if "protocol" in flags.FLAGS else None
            configuration.load_experiment(**common.configuration_flags(), protocol=protocol)
    finally:
        app.run = run
        sys.path.pop(0)
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)


def main():
    found = []
    # What scripts print must not get into the answer.
    output, sys.stdout = sys.stdout, sys.stderr
    for words in json.load(sys.stdin):
        try:
            parse(words)
            found.append("")
        except (Exception, SystemExit) as error:
            found.append(f"{type(error).__name__}: {error}")
    json.dump(found, output)


if __name__ == "__main__":
    main()
