"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases and the console. None of them can stop a training."""

import importlib
import json
import logging
import math
import os
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import jax

from jaxbert.config import TrackingConfig, UserError
from jaxbert.train.console import ConsoleTracker

Split = Literal["train", "heldout"]


class TrackingError(UserError):
    """A tracker that was asked for and is not there."""


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
                logging.warning(
                    "%s failed at step %d and is left out from here on: %s: %s",
                    type(tracker).__name__,
                    step,
                    type(error).__name__,
                    error,
                )

    def close(self) -> None:
        """Close every tracker that still works."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                logging.warning("%s failed to close: %s: %s", type(tracker).__name__, type(error).__name__, error)
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
    """A Weights & Biases run under `directory`; a resumed run goes on in the same one. WANDB_MODE=offline works.

    Raises TrackingError where the package is missing.
    """

    def __init__(self, project: str, name: str, directory: str | os.PathLike[str], config: Mapping[str, Any]):
        try:
            # A folder of W&B's own runs, named wandb, imports as an empty package.
            init = importlib.import_module("wandb").init
        except (ImportError, AttributeError) as error:
            raise TrackingError(
                "tracking.wandb is on, but wandb is not installed: pip install 'jaxbert[wandb]', or turn it off"
            ) from error
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
    """The trackers that `config` asks for, in process 0; none in the others. Raises TrackingError.

    `headline`: measures of the task, 0 to 1, that the console shows beside the loss.
    """
    if jax.process_index() != 0:
        return Trackers([])
    workdir = pathlib.Path(workdir)
    trackers: list[Tracker] = []
    # First, because it is the one that may not be there.
    if config.wandb:
        trackers.append(WandbTracker(config.wandb_project, name, workdir, run_config or {}))
    trackers.append(JsonlTracker(workdir / "metrics.jsonl", resume_step))
    if config.tensorboard:
        trackers.append(TensorBoardTracker(workdir / "tensorboard", resume_step))
    trackers.append(ConsoleTracker(num_steps, resume_step, headline=headline))
    return Trackers(trackers)


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
