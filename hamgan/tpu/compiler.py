"""Compiles an XLA program for a TPU that isn't there. Runs in an environment with jax and libtpu.

    python compiler.py PROGRAM.hlo --topology=v5e:2x4 --replicas=8

prints one line of JSON: sizes in memory, FLOPs, bytes, all-reduces, instructions, loops, seconds;
or what is wrong. It imports nothing of this project and no TensorFlow: jax, libtpu and TensorFlow's
pins don't share an environment.
"""

import argparse
import itertools
import json
import os
import re
import time

_ENVIRONMENT = {
    # There is no machine whose metadata could be asked for.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
    # libtpu wants to be alone with a machine's chips; a compilation takes none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)")
# What computes and moves nothing, or is told by the instruction that began it.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_CALLED = re.compile(
    r"\b(?:body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|\bbranch_computations=\{([^}]*)\}"
)


def account(program):
    """Bytes, instructions and loops of a compiled program.

    The compiler's "bytes accessed" are of all operations, wherever their tensors are. Those that
    its layouts place in memory space 1 are in the core's fast memory, VMEM. In 'hbm_bytes' an
    instruction's operands and results count if they are elsewhere.

    Args:
      program: the text of the compiled module.

    Returns:
      {'hbm_bytes': read from and written to HBM; 'instructions': that the core begins, one after
      another; 'loops'}. Each loop's round counts once.
    """
    computations, entry = _computations(program)
    total = instructions = loops = 0
    waiting, seen = [entry], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in computations:
            continue
        seen.add(name)
        sizes = {}
        for line in computations[name]:
            found = _INSTRUCTION.match(line)
            if not found:
                continue
            shape, operation, operands = _parts(found[2])
            sizes[found[1]] = _sizes(shape)
            for one, several in _CALLED.findall(line):
                waiting += [one] if one else re.findall(r"[\w.-]+", several)
            loops += operation == "while"
            if operation in _FREE or operation.endswith("-done") or operation == "while":
                continue
            instructions += 1
            if operation in ("copy-start", "slice-start"):
                # Its result repeats the operand and goes on with where that goes to.
                source = sizes.get(operands[0], [(0, False)])[0]
                target = sizes[found[1]][0 if operation == "copy-start" else 1]
                moved = [target, (target[0], source[1])]
            else:
                moved = sizes[found[1]] + [part for one in operands for part in sizes.get(one, [])]
            total += sum(size for size, fast in moved if not fast)
    return {"hbm_bytes": total, "instructions": instructions, "loops": loops}


def _computations(program):
    """({name: lines}, the name of the entry) of a module's text."""
    found, entry = {}, None
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = re.match(r"(ENTRY )?%?([\w.-]+)", line)
            lines = found.setdefault(name[2], [])
            entry = name[2] if name[1] else entry
        elif found:
            lines.append(line)
    return found, entry


def _parts(text):
    """(shape, operation, [operand]) of an instruction's text after its name."""
    depths = itertools.accumulate((letter == "(") - (letter == ")") for letter in text)
    spaces = (i for i, depth in enumerate(depths) if text[i] == " " and not depth)
    end = next(spaces, len(text))
    operation, _, rest = text[end:].strip().partition("(")
    return text[:end], operation, re.findall(r"%([\w.-]+)", rest.partition("), ")[0])


def _sizes(shape):
    """[(bytes, whether in fast memory)] of the arrays in a shape."""
    found = []
    for _, bits, sides, layout in _SHAPE.findall(shape):
        size = int(bits or 8) / 8
        for side in sides.split(",") if sides else []:
            size *= int(side)
        found.append((int(size), "S(1)" in layout))
    return found


def compile_program(hlo, *, topology, replicas):
    """What a program takes on one core of a TPU.

    Args:
      hlo: a serialised `HloModuleProto`.
      topology: as libtpu takes it, 'v5e:2x4'.
      replicas: how many cores run the program.

    Returns:
      {'arguments', 'outputs', 'aliased', 'temporaries', 'code': bytes of HBM; 'flops', 'bytes': of
      a step by the compiler's account; what `account` says; 'all_reduces'; 'seconds': of
      compiling}. All but the first count a loop's round once.
    """
    os.environ.update(_ENVIRONMENT)
    import numpy as np
    from jax.experimental import topologies
    from jax.extend import mlir
    from jax.extend.mlir import ir
    from jax.interpreters.mlir import make_ir_context
    from jaxlib import xla_client

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    # Where a chip has two cores that TensorFlow sees as one, the first of each.
    if len(devices) == 2 * replicas:
        devices = [device for device in devices if device.core_on_chip == 0]
    if len(devices) < replicas:
        raise ValueError(f"{topology} has {len(devices)} cores, but {replicas} are asked for.")
    bytecode = mlir.hlo_to_stablehlo(hlo)
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    assignment = np.arange(replicas).reshape(replicas, 1)
    options.device_assignment = xla_client.DeviceAssignment.create(assignment)
    start = time.monotonic()
    with make_ir_context():
        # The one operation of TensorFlow's that this door doesn't know; it says: don't touch.
        text = re.sub(
            r"\bmhlo\.copy\b", "stablehlo.optimization_barrier", str(ir.Module.parse(bytecode))
        )
        module = ir.Module.parse(text)
        devices = tuple(list(devices)[:replicas])
        program = devices[0].client.compile(module, xla_client.DeviceList(devices), options)
    seconds = time.monotonic() - start
    memory, costs = program.get_compiled_memory_stats(), program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    compiled = "\n".join(part.to_string() for part in program.hlo_modules())
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        **account(compiled),
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled)),
        "seconds": round(seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--replicas", type=int, required=True)
    flags = parser.parse_args()
    with open(flags.program, "rb") as file:
        hlo = file.read()
    try:
        answer = compile_program(hlo, topology=flags.topology, replicas=flags.replicas)
    except Exception as error:  # whatever the compiler raises is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("compiled: " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
