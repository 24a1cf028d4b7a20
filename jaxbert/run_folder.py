"""A run's folder: whose run it is, and what it was run with."""

import contextlib
import dataclasses
import errno
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbert import command_line
from jaxbert.config import Config, ConfigError
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.train.checkpoint_record import RECORDS
from jaxbert.train.processes import say

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
# May change as long as there is a long phase, whose rows are there: `_check_same_switch` says how.
LONG_STEPS = "train.long_phase.num_steps"


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
    """Write the resolved configuration, the versions of everything and the rows' fingerprint to WORKDIR/config.json.

    `began_with` are the versions of the run's first start, where they are other ones.
    """
    command_line.save(config, workdir / CONFIG, **_began_with(workdir), rows=rows)


def _began_with(workdir: Path) -> dict[str, Any]:
    """The versions with which the run in the folder began, as config.json keeps them where they are no longer those that are here.

    Says in a line where it goes on with another jax.
    """
    if not (workdir / CONFIG).exists() or not is_begun(workdir):
        return {}
    record, here = command_line.read_record(workdir / CONFIG), command_line.versions()
    began = record.get("began_with", record.get("versions", here))
    other = [name for name in ("jax", "jaxlib") if began.get(name) != here.get(name)]
    if other:
        then, now = (", ".join(f"{name} {versions.get(name)}" for name in other) for versions in (began, here))
        say(
            f"{workdir} began with {then} and goes on with {now}: its numbers may differ in the last bits from those of one version"
        )
    return {"began_with": began} if "began_with" in record or began != here else {}


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
    _check_same_switch(before, config, workdir)


def _check_same_switch(before: Config, config: Config, workdir: Path) -> None:
    """Raise `ConfigError` where steps that were trained at one length would now be steps at the other one.

    What is still ahead may change: before the switch to the long phase, that is the switch itself.
    """
    old, new = _switch(before), _switch(config)
    trained = max((int(path.stem) for path in (workdir / RECORDS).glob("*.json") if path.stem.isdigit()), default=0)
    steps = config.train.num_steps
    # Fewer steps than were trained are refused by whoever restores them.
    if old == new or trained <= min(old, new) or trained > steps:
        return
    way = f"set {LONG_STEPS} to {steps - old}" if steps > old else f"leave train.num_steps at {before.train.num_steps}"
    raise ConfigError(
        f"{workdir} holds a run of {trained:,} steps, and with train.num_steps {steps} and {LONG_STEPS} "
        f"{config.train.long_phase.num_steps} the long phase begins at step {new:,} instead of {old:,}: {way}, or choose another "
        "--workdir"
    )


def _switch(config: Config) -> int:
    """The step at which the long phase begins."""
    return config.train.num_steps - config.train.long_phase.num_steps


# What a fine-tuning run may go on with in another way, as FREE.
FREE_IN_FINETUNING = (
    "name workdir mesh distributed checkpoint tracking train.log_every train.prefetch train.max_nonfinite_steps "
    "train.accumulation_steps compare_untrained check_data data.test data.streaming seeds search trials lora.export"
).split()


# What a run has as soon as it has trained. Several seeds, trials of a search, and comparisons are runs in folders of their own.
_CHECKPOINTS, _METRICS = f"{RECORDS}/*.json", "metrics.jsonl"
_OF_SEVERAL = [f"{folder}/{file}" for folder in ("seed-*", "trial-*") for file in (_CHECKPOINTS, _METRICS)]
_OF_COMPARISONS = [f"{folder}untrained/{file}" for folder in ("", "seed-*/") for file in (_CHECKPOINTS, _METRICS)]


class Start(NamedTuple):
    """What a fine-tuning run starts from."""

    name: str
    """A path or a name, or in words that it starts anew."""
    step: int | None = None
    """Of the newest checkpoint, where it is a run."""
    checkpoint: str | None = None
    """What tells that checkpoint from any other."""


def save_finetuning(config: FinetuneConfig, workdir: Path, examples: str, start: Start) -> None:
    """Write the configuration, the versions of everything, the examples' fingerprint, and what it starts from, to WORKDIR/config.json."""
    command_line.save(
        config,
        workdir / CONFIG,
        **_began_with(workdir),
        examples=examples,
        started_from=start.name,
        started_from_step=start.step,
        started_from_checkpoint=start.checkpoint,
    )


def is_pretraining(folder: Path) -> bool:
    """Whether the folder is one of pretraining; fine-tuned models are in folders of the same kind."""
    return (folder / CONFIG).is_file() and "examples" not in command_line.read_record(folder / CONFIG)


def is_begun(workdir: Path) -> bool:
    """Whether anything was trained in a folder of fine-tuning: a start that was refused leaves its config.json and no more."""
    return _any(workdir, [_CHECKPOINTS, _METRICS, *_OF_SEVERAL, *_OF_COMPARISONS])


def goes_on(workdir: Path) -> bool:
    """Whether a fine-tuning goes on from what it has trained, and not from what it started from: of a comparison alone it does not."""
    return _any(workdir, [_CHECKPOINTS, *_OF_SEVERAL])


def started_from(workdir: Path) -> Start | None:
    """What the fine-tuning run in the folder started from; None where nothing was trained. Older ones say the name alone."""
    if not (workdir / CONFIG).exists() or not is_begun(workdir):
        return None
    record = command_line.read_record(workdir / CONFIG)
    name = record.get("started_from")
    return Start(name, record.get("started_from_step"), record.get("started_from_checkpoint")) if name else None


def check_same_finetuning(config: FinetuneConfig, examples: str, workdir: Path) -> None:
    """Raise `ConfigError` when the folder holds a run with other settings or other examples. Writes nothing."""
    if not (workdir / CONFIG).exists():
        return
    record = command_line.read_record(workdir / CONFIG)
    # A start that was refused binds nobody; one of pretraining may have rows and no checkpoint yet.
    if "examples" in record and not is_begun(workdir):
        return
    # How many seeds or trials may change; whether the folder is one run's or has folders of several may not.
    kind = _kind(record["config"].get("seeds", 1), record["config"].get("search"))
    if kind != _kind(config.seeds, config.search):
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


def _any(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether there is such a file, with something in it."""
    return any(path.stat().st_size > 0 for pattern in patterns for path in folder.glob(pattern))


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
        if name in FREE or (name in OPEN and OPEN[name] in (old, new)) or (name == LONG_STEPS and old and new):
            continue
        if dataclasses.is_dataclass(old):
            yield from _differences(old, new, name + ".")
        elif old != new:
            yield name, old, new
