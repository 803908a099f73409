"""Compiles an XLA program for a TPU that isn't there. Runs in an environment with jax and libtpu.

    python compiler.py PROGRAM.hlo --topology=v5e:2x4 --replicas=8

prints one line of JSON: sizes in memory, FLOPs, bytes, all-reduces, seconds; or what is wrong. It
imports nothing of this project and no TensorFlow: jax, libtpu and TensorFlow's pins don't share an
environment.
"""

import argparse
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


def compile_program(hlo, *, topology, replicas):
    """What a program takes on one core of a TPU.

    Args:
      hlo: a serialised `HloModuleProto`.
      topology: as libtpu takes it, 'v5e:2x4'.
      replicas: how many cores run the program.

    Returns:
      {'arguments', 'outputs', 'aliased', 'temporaries', 'code': bytes of HBM; 'flops', 'bytes': of
      a step; 'all_reduces'; 'seconds': of compiling}.
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
