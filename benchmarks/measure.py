"""What every benchmark shares: its options, fair timing of two sides in turn, the table, and the JSON.

Run a benchmark from the repository root: `python benchmarks/train_step.py [--quick] [--json FILE]`.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

_PACKAGES = "jaxbert jax jaxlib flax optax numpy tensorflow-cpu tensorflow tokenizers transformers torch".split()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of a benchmark's table. `ours` and `peer` are in `unit`; the peer is None where there is none."""

    name: str
    ours: float
    peer: float | None
    unit: str
    at_least: float | None = None
    """What the project promises of `ratio` (or of `ours`, where there is no peer); None: nothing."""

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's."""
        return None if self.peer is None else self.ours / self.peer


def parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line: --quick and --json; the benchmark may add its own."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument("--quick", action="store_true", help="smaller and fewer measurements, to see that it works")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the measurements and the versions there")
    return options


def alternate(sides: Sequence[Callable[[], object]], rounds: int, warmup: int = 1) -> list[float]:
    """Median seconds of each side, measured in turn, so that a machine that slows down slows all of them."""
    for side in sides:
        for _ in range(warmup):
            side()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def _processor() -> str:
    """Of which processor, as Linux tells; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").split("\n\n")[0].splitlines()
    except OSError:
        return ""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return ""
    # Virtual ones hide their number in the name.
    return f" of {told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"


def versions() -> dict[str, str]:
    """The versions that were measured, Python's and the machine's included."""
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores{_processor()}",
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def show(measurements: Sequence[Measurement], json_file: Path | None) -> None:
    """Print the table and write the JSON file, if one is asked for."""
    width = max(len(m.name) for m in measurements)
    print(f"{'':{width}}  {'ours':>12}  {'peer':>12}  {'ratio':>7}  unit")
    for m in measurements:
        peer = "-" if m.peer is None else f"{m.peer:,.4g}"
        ratio = "-" if m.ratio is None else f"{m.ratio:.2f}"
        promise = "" if m.at_least is None else f"   (promised: {m.at_least:g})"
        print(f"{m.name:{width}}  {m.ours:>12,.4g}  {peer:>12}  {ratio:>7}  {m.unit}{promise}")
    if json_file:
        lines = [{**dataclasses.asdict(m), "ratio": m.ratio, "versions": versions()} for m in measurements]
        json_file.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf8")
