"""A run's folder: whose run it is, and what it was run with."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxbert import command_line
from jaxbert.config import Config, ConfigError

CONFIG = "config.json"
# What a run may go on with in another way: its length, where it runs, what it writes and how often. All else decides
# which numbers come out, so that a run with other values is another run.
FREE = (
    "name workdir mesh distributed checkpoint tracking data.workers data.rows train.num_steps train.log_every "
    "train.evaluate_every train.evaluate_batches train.prefetch train.max_nonfinite_steps train.accumulation_steps"
).split()
# Values that stand for "whatever the tokenizer and the devices say".
OPEN = (None, "auto")


def save(config: Config, workdir: Path) -> None:
    """Write the resolved configuration and the versions of everything to WORKDIR/config.json."""
    command_line.save(config, workdir / CONFIG)


def check_same_run(config: Config, workdir: Path) -> None:
    """Raise `ConfigError`, naming each field, when the folder holds a run with other settings. Writes nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir {workdir} is a file: name a folder")
    if not (workdir / CONFIG).exists():
        return
    before = command_line.load(workdir / CONFIG)
    other = [f"{name} was {old!r} and is {new!r}" for name, old, new in _differences(before, config)]
    if other:
        raise ConfigError(
            f"{workdir} holds a run with other settings ({'; '.join(other)}): choose another --workdir, or remove it"
        )


def _differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(before):
        name, old, new = prefix + field.name, getattr(before, field.name), getattr(now, field.name)
        if name in FREE or old in OPEN or new in OPEN:
            continue
        if dataclasses.is_dataclass(old):
            yield from _differences(old, new, name + ".")
        elif old != new:
            yield name, old, new
