"""What a program gains on a CPU by keeping the memory that XLA frees (jaxbert/allocator.py): a pretraining step, in processes of both kinds.

    python benchmarks/allocator.py [--model base|mini|...] [--batch N] [--length N] [--rounds N]

The peer is the same step under glibc's own rules. Processes of either kind take turns; pages are those that the kernel gave in a step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from measure import Measurement, parser, show
from train_step import SIZES, VOCABULARY, jaxbert_side, make_batch

from jaxbert.allocator import keep_freed_memory
from jaxbert.config import ModelConfig

_STEPS = 10


def measure_here(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step of this process, and pages of one."""
    side = jaxbert_side(
        ModelConfig(vocab_size=VOCABULARY, **SIZES[options.model]), make_batch(options.batch, options.length)
    )
    for _ in range(2):
        side()
    pages, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(_STEPS):
        start = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - start)
    given = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    return {"seconds": statistics.median(seconds), "pages": given / _STEPS}


def measure_in_a_process(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """The same, in a process that keeps its memory ("kept") or does not ("plain")."""
    command = [sys.executable, __file__, "--model", options.model, "--batch", str(options.batch)]
    command += ["--length", str(options.length), "--process", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure processes of both kinds in turn."""
    options = parser(__doc__)
    options.add_argument("--model", choices=SIZES, default="mini")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--length", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5, help="processes of each kind")
    options.add_argument("--process", choices=["kept", "plain"], help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.process:
        if options.process == "kept" and not keep_freed_memory():
            raise SystemExit("this C library keeps no memory on demand: there is nothing to measure")
        print(json.dumps(measure_here(options)))
        return
    found = {"kept": [], "plain": []}
    for _ in range(1 if options.quick else options.rounds):
        for kind, measured in found.items():
            measured.append(measure_in_a_process(kind, options))
    tokens = int(make_batch(options.batch, options.length)["sequence_ids"].sum())
    medians = {
        kind: {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for kind, measured in found.items()
    }
    name = f"{options.model}, {options.batch} x {options.length}, float32"
    kept, plain = medians["kept"], medians["plain"]
    show(
        [
            Measurement(name, tokens / kept["seconds"], tokens / plain["seconds"], "real tokens/s"),
            Measurement(f"{name}: pages given in a step", kept["pages"], plain["pages"], "pages"),
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
