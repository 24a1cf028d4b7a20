"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases and the console. None of them can stop a training."""

import importlib
import json
import logging
import math
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax

from jaxbert.config import TrackingConfig
from jaxbert.train.console import ConsoleTracker

Split = Literal["train", "heldout"]


class Tracker(Protocol):
    """Takes the metrics of a run; steps only grow."""

    def log(self, step: int, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Metrics after `step` steps: means since the last line ("train") or over the held-out rows ("heldout")."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class Trackers:
    """A group of trackers. One that raises is warned of once, by name, and dropped; the others go on."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Pass the metrics to every tracker that still works."""
        for tracker in tuple(self._trackers):
            try:
                tracker.log(step, metrics, split)
            except Exception as error:
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                logging.warning("%s failed at step %d and is left out from here on: %s", name, step, _one_line(error))

    def close(self) -> None:
        """Close every tracker that still works."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                logging.warning("%s failed to close: %s", type(tracker).__name__, _one_line(error))
        self._trackers = []


class JsonlTracker:
    """One JSON object a line: step, split, time (seconds since 1970), then the metrics by name.

    A number that is not finite is written as null, since JSON has no name for it. A resumed run drops the lines beyond
    `resume_step`, and a line that a crash cut short, so that the file reads as one run.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int = 0):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _trim(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Append one line, and hand it to the operating system."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": step, "split": split, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """TensorBoard events, with tags "train/loss" and so on; a resumed run hides the events beyond `resume_step`."""

    def __init__(self, directory: str | os.PathLike[str], resume_step: int = 0):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=resume_step + 1)

    def log(self, step: int, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write out the events."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run under `directory`; a resumed run goes on in the same one. WANDB_MODE=offline works."""

    def __init__(self, project: str, name: str, directory: str | os.PathLike[str], config: Mapping[str, Any]):
        init = importlib.import_module("wandb").init
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        identity = directory / "wandb_run_id.txt"
        if not identity.exists():
            identity.write_text(secrets.token_hex(8))
        self._run = init(
            project=project,
            name=name,
            dir=os.fspath(directory),
            id=identity.read_text().strip(),
            resume="allow",
            config=dict(config),
        )
        # W&B's own counter never goes back, and a resumed run does: the axis is a metric of ours.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Log all metrics at once, as "train/loss" and so on, over "step"."""
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in metrics.items()}})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


def make_trackers(
    config: TrackingConfig,
    workdir: str | os.PathLike[str],
    *,
    name: str,
    num_steps: int,
    resume_step: int = 0,
    run_config: Mapping[str, Any] | None = None,
    headline: Sequence[str] = (),
) -> Trackers:
    """The trackers that `config` asks for, in process 0; none in the others. One that cannot start is warned of and left out.

    `headline`: measures of the task, 0 to 1, that the console shows beside the loss.
    """
    if jax.process_index() != 0:
        return Trackers([])
    workdir = pathlib.Path(workdir)
    makers: dict[type[Tracker], Callable[[], Tracker]] = {
        JsonlTracker: lambda: JsonlTracker(workdir / "metrics.jsonl", resume_step)
    }
    if config.wandb:
        makers[WandbTracker] = lambda: WandbTracker(config.wandb_project, name, workdir, run_config or {})
    if config.tensorboard:
        makers[TensorBoardTracker] = lambda: TensorBoardTracker(workdir / "tensorboard", resume_step)
    makers[ConsoleTracker] = lambda: ConsoleTracker(num_steps, resume_step, headline=headline)
    return Trackers(list(_started(makers)))


def _started(makers: Mapping[type[Tracker], Callable[[], Tracker]]) -> Iterator[Tracker]:
    for kind, make in makers.items():
        try:
            yield make()
        except Exception as error:
            logging.warning("%s failed to start and is left out: %s", kind.__name__, _one_line(error))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where its tracker was left out, and so there is no file."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _trim(path: pathlib.Path, last_step: int) -> None:
    """Keep the whole lines up to `last_step`, in one move."""
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _belongs(line, last_step))
    if kept != content:
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(kept)
        os.replace(partial, path)


def _belongs(line: bytes, last_step: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(entry, dict) and entry.get("step", math.inf) <= last_step


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
