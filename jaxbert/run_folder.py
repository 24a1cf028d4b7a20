"""A run's folder: whose run it is, and what it was run with."""

import contextlib
import dataclasses
import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxbert import command_line
from jaxbert.config import Config, ConfigError
from jaxbert.finetune.config import FinetuneConfig

CONFIG = "config.json"
LOCK = ".lock"
# What a run may go on with in another way: its length, where it runs, what it writes and how often. All else decides
# which numbers come out, so that a run with other values is another run.
FREE = (
    "name workdir mesh distributed checkpoint tracking data.workers data.rows train.num_steps train.log_every "
    "train.evaluate_every train.evaluate_batches train.prefetch train.max_nonfinite_steps train.accumulation_steps"
).split()
# Where these values stand for "whatever the tokenizer and the devices say".
OPEN: dict[str, str | None] = {"model.vocab_size": None, "model.dtype": "auto"}


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of the folder for as long as this one works in it; the lock ends with the process.

    Raises `ConfigError` when another run is in it. File systems without locks have none here either.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir {workdir} is a file: name a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"workdir {workdir}: another run is training in it: wait for it, or choose another"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise
        yield


def save(config: Config, workdir: Path, rows: str) -> None:
    """Write the resolved configuration, the versions of everything and the rows' fingerprint to WORKDIR/config.json."""
    command_line.save(config, workdir / CONFIG, rows=rows)


def check_same_rows(rows: str, workdir: Path) -> None:
    """Raise `ConfigError` when the run in the folder has learnt from rows of another fingerprint.

    The settings may be the same: a file was changed or came to match a glob, or, for the built-in corpus, a package did.
    """
    if not (workdir / CONFIG).exists():
        return
    before = command_line.read_record(workdir / CONFIG).get("rows")
    if before is not None and before != rows:
        raise ConfigError(
            f"{workdir} holds a run on other rows ({before[:12]}, now {rows[:12]}): the text behind data.text has changed since. "
            "Bring it back, or choose another --workdir"
        )


def check_same_run(config: Config, workdir: Path) -> None:
    """Raise `ConfigError`, naming each field, when the folder holds a run with other settings. Writes nothing."""
    if not (workdir / CONFIG).exists():
        return
    before = command_line.load(workdir / CONFIG)
    other = [f"{name} was {old!r} and is {new!r}" for name, old, new in _differences(before, config)]
    if other:
        raise ConfigError(
            f"{workdir} holds a run with other settings ({'; '.join(other)}): choose another --workdir, or remove it"
        )


# What a fine-tuning run may go on with in another way, as FREE.
FREE_IN_FINETUNING = (
    "name workdir mesh distributed checkpoint tracking train.log_every train.prefetch train.max_nonfinite_steps "
    "train.accumulation_steps compare_untrained check_data data.test data.streaming seeds search trials lora.export"
).split()


def save_finetuning(config: FinetuneConfig, workdir: Path, examples: str, source: str) -> None:
    """Write the configuration, the versions of everything, the examples' fingerprint, and what it starts from, to WORKDIR/config.json."""
    command_line.save(config, workdir / CONFIG, examples=examples, started_from=source)


def started_from(workdir: Path) -> str | None:
    """What the fine-tuning run in the folder started from; None where there is no run."""
    path = workdir / CONFIG
    return command_line.read_record(path).get("started_from") if path.exists() else None


def check_same_finetuning(config: FinetuneConfig, examples: str, workdir: Path) -> None:
    """Raise `ConfigError` when the folder holds a run with other settings or other examples. Writes nothing."""
    if not (workdir / CONFIG).exists():
        return
    record = command_line.read_record(workdir / CONFIG)
    # How many seeds or trials may change; whether the folder is one run's or has folders of several may not.
    kind = _kind(record["config"].get("seeds", 1), record["config"].get("search"))
    if kind != _kind(config.seeds, config.search) and not config.check_data:
        raise ConfigError(f"{workdir} holds {kind}: choose another --workdir")
    # A task of somebody's own has settings of its own: they are compared as what was written.
    before, now = (_flat(values) for values in (record["config"], json.loads(json.dumps(dataclasses.asdict(config)))))
    # A setting that came with a newer version was at its default.
    defaults = _flat(json.loads(json.dumps(dataclasses.asdict(FinetuneConfig(task=config.task)))))
    before = {name: value for name, value in defaults.items() if not name.startswith("task.")} | before
    names = [name for name in {**before, **now} if not any(f"{name}.".startswith(f"{f}.") for f in FREE_IN_FINETUNING)]
    other = [
        f"{name} was {before.get(name, 'not there')!r} and is {now.get(name, 'not there')!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if other:
        raise ConfigError(
            f"{workdir} holds a run with other settings ({'; '.join(other[:8])}): choose another --workdir, or remove it"
        )
    if record.get("examples") != examples:
        raise ConfigError(
            f"{workdir} holds a run on other examples: what data.train or data.dev names has changed since. Bring it back, or choose "
            "another --workdir"
        )


def _kind(seeds: int, search: str | None) -> str:
    return "a search" if search is not None else "runs of several seeds" if seeds > 1 else "a run of one seed"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(before):
        name, old, new = prefix + field.name, getattr(before, field.name), getattr(now, field.name)
        if name in FREE or (name in OPEN and OPEN[name] in (old, new)):
            continue
        if dataclasses.is_dataclass(old):
            yield from _differences(old, new, name + ".")
        elif old != new:
            yield name, old, new
