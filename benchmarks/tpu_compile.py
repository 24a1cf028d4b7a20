"""Compile the real BERT-base training step for TPU slices, without a TPU: memory per chip and collectives.

    pip install 'jax[tpu]' && python benchmarks/tpu_compile.py [--topology v5e:4x4] [--json FILE]

libtpu compiles for a topology that it is told of, on any Linux machine. The configuration is `configs/bert_base.py` (bfloat16, global
batch 256), at both of its lengths, with data parallelism, with the state in parts (fsdp), and with layers in parts (tensor).
"""

import argparse
import dataclasses
import importlib
import importlib.util
import math
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# There is no metadata server to ask, and the answer would not matter.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import numpy as np
from jax.experimental import topologies
from measure import Measurement, parser, show

from jaxbert.config import Config, MeshConfig, Phase
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.optimizer import make_optimizer, make_schedule
from jaxbert.train.sharding import batch_sharding, make_mesh
from jaxbert.train.state import abstract_state
from jaxbert.train.step import make_train_step

MESHES = {
    "data 16": MeshConfig(data=16),
    "data 4 x fsdp 4": MeshConfig(data=4, fsdp=4),
    "data 8 x tensor 2": MeshConfig(data=8, tensor=2),
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
VOCABULARY = 30522


def batch_shapes(phase: Phase, sharding: jax.sharding.NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of a phase without packing, as shapes on the mesh."""
    rows, length, predictions = phase.batch_size, phase.max_length, phase.max_predictions
    integers = dict.fromkeys(("input_ids", "token_type_ids", "sequence_ids", "position_ids"), length)
    integers |= {"mlm_positions": predictions, "mlm_labels": predictions, "cls_positions": 1, "nsp_labels": 1}
    columns = {name: (width, np.int32) for name, width in integers.items()}
    columns |= {"mlm_weights": (predictions, np.float32), "nsp_weights": (1, np.float32)}
    return {
        name: jax.ShapeDtypeStruct((rows, width), dtype, sharding=sharding) for name, (width, dtype) in columns.items()
    }


def compile_step(config: Config, phase: Phase, mesh_config: MeshConfig, devices: list) -> jax.stages.Compiled:
    """The step of `train.py` for these devices, which need not exist."""
    mesh = make_mesh(mesh_config, devices)
    model = dataclasses.replace(config.model, vocab_size=VOCABULARY)
    task, steps = PretrainingTask(model, config.train.alpha), config.train.num_steps
    optimizer = make_optimizer(config.optimizer, steps, jax.eval_shape(task.init, jax.random.key(0)))
    state = abstract_state(task, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    schedule = make_schedule(config.optimizer, steps)
    step: Any = make_train_step(task, optimizer, schedule, shardings, mesh, seed=config.seed)
    return step.lower(state, batch_shapes(phase, batch_sharding(mesh))).compile()


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Kind -> (how many, MB that they yield on a chip) in a compiled program's text."""
    sizes: dict[tuple[str, str], float] = {}
    for number, line in enumerate(text.splitlines()):
        found = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if found is None:
            continue
        shapes, kind, start = found.groups()
        # One that runs beside computations stands in each of the fusions that it is spread over, under one channel.
        channel = re.search(r"channel_id=(\d+)", line)
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if start and kind != "all-reduce":
            # What goes in stands before what comes out.
            arrays = arrays[len(arrays) // 2 :]
        size = sum(BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)
        sizes.setdefault((kind, channel[1] if channel else f"line {number}"), size)
    kinds = Counter(kind for kind, _ in sizes)
    return {
        kind: (kinds[kind], sum(size for (its, _), size in sizes.items() if its == kind) / 1e6)
        for kind in COLLECTIVES
        if kinds[kind]
    }


def measure(config: Config, phase: Phase, name: str, options: argparse.Namespace) -> list[Measurement]:
    """Memory of the state and of the step on a chip, and the number of collectives."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    started = time.perf_counter()
    compiled = compile_step(config, phase, MESHES[name], list(devices))
    seconds = time.perf_counter() - started
    text = compiled.as_text() or ""
    if options.hlo:
        (options.hlo / f"{name.replace(' ', '')}-{phase.max_length}.hlo").write_text(text, encoding="utf8")
    memory, moved = compiled.memory_analysis(), collectives(text)
    assert memory is not None
    title = f"{options.topology}, {name}, {phase.batch_size} x {phase.max_length}"
    listed = ", ".join(f"{count} {kind} ({size:,.0f} MB)" for kind, (count, size) in moved.items())
    print(f"{title}: {listed}; compiled in {seconds:.0f} s", flush=True)
    measurements = [
        Measurement(f"{title}: arguments (state, batch)", memory.argument_size_in_bytes / 1e6, None, "MB a chip"),
        Measurement(f"{title}: scratch", memory.temp_size_in_bytes / 1e6, None, "MB a chip"),
    ]
    for kind, (count, size) in moved.items():
        measurements.append(Measurement(f"{title}: {kind}", count, None, "operations"))
        measurements.append(Measurement(f"{title}: {kind}, result", size, None, "MB a chip"))
    return measurements


def main() -> None:
    """Compile for each mesh and length."""
    options = parser(__doc__)
    options.add_argument("--topology", default="v5e:4x4", help="16 chips of any TPU that libtpu knows")
    options.add_argument("--meshes", nargs="+", default=list(MESHES), choices=list(MESHES), metavar="MESH")
    options.add_argument("--hlo", type=Path, metavar="FOLDER", help="keep the compiled programs' text there")
    options = options.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("libtpu is not installed: pip install 'jax[tpu]'")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "configs"))
    config: Config = importlib.import_module("bert_base").get_config()
    measurements = []
    for phase in config.phases()[:1] if options.quick else config.phases():
        for name in options.meshes[:1] if options.quick else options.meshes:
            measurements += measure(config, phase, name, options)
    show(measurements, options.json)


if __name__ == "__main__":
    main()
