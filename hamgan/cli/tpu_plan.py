"""Compiles a training's step for a TPU that isn't there, and says what it takes.

    python scripts/tpu_plan.py --gin_file=configs/hamgan_strong.gin --topology=v5e:2x4

Memory of a core, FLOPs and bytes are those of the real TPU compiler; times, hours and dollars are
estimates from published peaks and the table hamgan/tpu/prices.json. The compiler has an environment
of its own (jax and libtpu), which is made at first; $HAMGAN_PLAN_PYTHON names another. A full-size
step takes 200 to 460 seconds on two cores; what was compiled is kept in ~/.cache/hamgan.

--sweep="G/context.Hamburger.rank=8,16" plans each value, more of them each combination.
"""

import io
import itertools
import json
import math
import re
import subprocess
import sys
import tokenize

from absl import flags
from tqdm import tqdm

from hamgan.cli import common, lazily

with lazily.imports():
    from hamgan.cli import configuration
    from hamgan.tpu import chips, plan

FLAGS = flags.FLAGS
_MARK = "plan: "
_COLUMNS = ("fits", "HBM", "GFLOP", "GB", "GB in HBM", "ms*", "images/s*")


def points(sweeps):
    """The combinations of 'NAME=A,B' texts, each a tuple of bindings. Values are gin's; commas in
    brackets and strings belong to them.

    Raises:
      ValueError: a text of another form.
    """
    axes = []
    for text in sweeps:
        name, equals, values = map(str.strip, text.partition("="))
        values = _split(values)
        if not (name and equals and all(values)):
            raise ValueError(f"--sweep must be NAME=VALUE,VALUE,..., got {text!r}.")
        axes.append([f"{name} = {value}" for value in values])
    return list(itertools.product(*axes))


def _split(text):
    """The parts of a text between commas that stand in no bracket and no string; [''] of one in
    which these don't close.
    """
    starts, depth = [0], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
            if token.type == tokenize.ERRORTOKEN and token.string in "'\"" or depth < 0:
                return [""]
            if token.string == "," and not depth:
                starts.append(token.end[1])
    except tokenize.TokenError:
        return [""]
    ends = [start - 1 for start in starts[1:]] + [len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def row(bindings, answer):
    """A line of the sweep's table."""
    if "error" in answer:
        return f"| {'; '.join(bindings)} | {answer['error'].splitlines()[0][:100]} |"
    cells = [str(answer[column]) for column in _COLUMNS]
    return f"| {'; '.join(bindings)} | {' | '.join(cells)} |"


def summary(made):
    """The numbers of a `plan.Plan` by the table's columns."""
    if made.refused:
        return dict.fromkeys(_COLUMNS, "-") | {"fits": "NO", "HBM": made.refused}
    return dict(
        zip(
            _COLUMNS,
            (
                "yes" if made.fits else "NO",
                f"{made.used / 1e9:.2f} GB",
                round(made.counted("flops") / 1e9, 1),
                round(made.counted("bytes") / 1e9, 2),
                round(made.counted("hbm_bytes") / 1e9, 2),
                round(made.step_seconds * 1e3, 2),
                round(made.images_per_second),
            ),
            strict=True,
        )
    )


def sweep(combinations):
    """Plans each combination in a process of its own and prints the table.

    Raises:
      ValueError: none of them could be planned.
    """
    own, rest = [], iter(sys.argv[1:])
    for word in rest:
        if re.fullmatch("--?sweep", word):
            next(rest, None)
        elif not re.match("--?sweep=", word):
            own.append(word)
    answers = []
    for bindings in tqdm(combinations, unit="plan"):
        answers.append(_answer([*own, *(f"--gin_param={binding}" for binding in bindings)]))
    print(f"| settings | {' | '.join(_COLUMNS)} |")
    print("|---" * (len(_COLUMNS) + 1) + "|")
    print("\n".join(map(row, combinations, answers)))
    print(f"* estimates. {plan.FORMULA}")
    if all("error" in answer for answer in answers):
        raise ValueError(
            f"None of {len(answers)} settings could be planned; the last one: "
            f"{answers[-1]['error']}"
        )


def _answer(flags_of_point):
    """The `summary` of a plan by a process of its own, or {'error': why there is none}."""
    words = [sys.executable, "-m", "hamgan.cli.tpu_plan", *flags_of_point, "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    if found := re.search(rf"^{_MARK}(.*)$", done.stdout, re.MULTILINE):
        return json.loads(found[1])
    if said := re.search(r"^(?:ERROR|FATAL Flags parsing error): *(.*)$", done.stderr, re.M):
        return {"error": said[1]}
    lines = done.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"exit status {done.returncode}"}


def main():
    machine = chips.from_topology(FLAGS.topology)
    if FLAGS.sweep:
        sweep(points(FLAGS.sweep))
        return
    experiment = configuration.load_experiment(**common.configuration_flags())
    python = plan.python_of_compiler(make=FLAGS.make_environment)
    arguments = dict(python=python, cache=FLAGS.cache)
    made = plan.make_plan(experiment, machine, batch_size=FLAGS.batch_size, **arguments)
    if FLAGS.json:
        print(_MARK + json.dumps(summary(made) | made.compiled))
        return
    print("\n".join(made.lines(steps=experiment.schedule.num_steps, tier=FLAGS.tier)))
    if FLAGS.largest_batch:

        def needs(size):
            # Tracing takes a minute at full size, and the first one is there.
            tried = made
            if size != made.batch_size:
                tried = plan.make_plan(experiment, machine, batch_size=size, **arguments)
            said = tried.refused or f"{tried.used / 1e9:.2f} GB"
            print(f"batch {size}: {said}: {'fits' if tried.fits else 'too much'}", flush=True)
            return math.inf if tried.refused else tried.used

        largest = plan.largest_batch(
            needs, limit=made.limit, start=made.batch_size, step=machine.replicas
        )
        print(f"largest batch that fits: {largest} ({largest // machine.replicas} a core)")


def define_flags():
    """Defines the flags of the command."""
    common.define_flags(model_dir_required=False)
    flags.DEFINE_string("topology", "v5e:2x4", "Chip and shape: v5e:2x4, v5p:2x2x1, v6e:2x2, ...")
    flags.DEFINE_integer("batch_size", None, "Over all replicas; default: the experiment's.")
    flags.DEFINE_enum("tier", "on_demand", chips.TIERS, "Which prices.")
    flags.DEFINE_bool("largest_batch", False, "Look for it: about five compilations.")
    flags.DEFINE_multi_string("sweep", [], "NAME=VALUE,VALUE,...: a gin setting. May be repeated.")
    flags.DEFINE_bool("json", False, "Print numbers as one line of JSON.")
    flags.DEFINE_bool("make_environment", True, "Make jax's and libtpu's environment if need be.")
    flags.DEFINE_string("cache", None, "Folder of what was compiled; default: ~/.cache/hamgan.")


def run():
    """The command."""
    define_flags()
    common.show_in_help(sys.modules[__name__], common)
    common.run(main)


if __name__ == "__main__":  # as a sweep starts it
    run()
