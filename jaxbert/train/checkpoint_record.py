"""What makes a checkpoint count: a record with the size and sha256 of each of its files. Orbax verifies none of this.

WORKDIR/checkpoints/<step>/              what Orbax wrote
WORKDIR/checkpoints_sha256/<step>.json   the record
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

CHECKPOINTS, RECORDS = "checkpoints", "checkpoints_sha256"
HASHING_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Record:
    """What stands in checkpoints_sha256/<step>.json."""

    step: int
    files: Mapping[str, Mapping[str, Any]]
    """Path inside the step's folder -> {"bytes", "sha256"}."""
    evaluation: Mapping[str, float] | None = None
    """Held-out metrics at this step, by name; None where there was no evaluation."""
    window: Mapping[str, Any] | None = None
    """Sums of the training metrics since the last log line, so that a resumed run logs what an uninterrupted one does."""

    def measure(self, name: str) -> float | None:
        """A measure of the evaluation, where it is there and a finite number."""
        value = (self.evaluation or {}).get(name)
        return value if value is not None and math.isfinite(value) else None


def fault(workdir: str | os.PathLike[str], step: int) -> str | None:
    """Why the checkpoint of a step does not count; None where it is whole. Reads all of its files."""
    workdir = epath.Path(workdir)
    path = workdir / RECORDS / f"{step}.json"
    if not path.exists():
        return f"it has no {RECORDS}/{path.name}, so its save was never finished"
    try:
        record = parse_record(path.read_bytes())
    except ValueError as error:
        return f"{RECORDS}/{path.name} is damaged ({str(error).splitlines()[0]})"
    found = file_digests(workdir / CHECKPOINTS / f"{step}")
    for name, expected in record.files.items():
        if name not in found:
            return f"{name} is missing"
        if found[name]["bytes"] != expected["bytes"]:
            return f"{name} has {found[name]['bytes']} bytes instead of {expected['bytes']}"
        if found[name]["sha256"] != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def file_digests(directory: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Path inside the folder -> {"bytes", "sha256"} of every file; empty where there is no folder."""
    directory = epath.Path(directory)
    files = sorted(_walk(directory)) if directory.exists() else []
    with concurrent.futures.ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = pool.map(_digest, files)
        return {path.relative_to(directory).as_posix(): digest for path, digest in zip(files, digests, strict=True)}


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
    # epath globs no `**`, for the sake of object stores.
    for path in directory.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _digest(path: epath.Path) -> dict[str, Any]:
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            size += len(block)
    return {"bytes": size, "sha256": sha256.hexdigest()}


def format_record(record: Record) -> str:
    """The text of a record's file, which carries its own sha256."""
    content = dataclasses.asdict(record)
    return json.dumps({**content, "sha256": _record_digest(content)}, indent=1)


def parse_record(text: bytes) -> Record:
    """What `format_record` wrote. Raises ValueError for anything else."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("sha256", None) != _record_digest(content):
        raise ValueError("it does not match its own sha256")
    return Record(**content)


def _record_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
