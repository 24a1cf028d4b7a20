"""The only training loop. It sees the model and the data through what it is handed, and so serves every task."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxbert.config import CheckpointConfig, TrainConfig, UserError
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.prefetch import Fetched, Prefetch
from jaxbert.train.signals import StopSignals
from jaxbert.train.tracking import Tracker
from jaxbert.train.window import Window

Batch = Mapping[str, np.ndarray]
Evaluate = Callable[[Any, Callable[[], bool]], dict[str, float] | None]


class NonFiniteError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Where a run stands when `fit` returns."""

    state: Any
    step: int
    interrupted: bool
    """A signal ended the run before train.num_steps; its checkpoint is saved."""
    evaluation: Mapping[str, float] | None
    """The last held-out evaluation, by metric; None where there was none."""


def fit(
    *,
    state: Any,
    train_step: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    batches: Callable[[int, int], Iterator[Batch]],
    put: Callable[[Batch], Any],
    evaluate: Evaluate,
    loss_weights: Mapping[str, float],
    checkpoints: Checkpoints,
    tracker: Tracker,
    train: TrainConfig,
    checkpoint: CheckpointConfig,
    workdir: str | os.PathLike[str],
    derive: Callable[[int, Mapping[str, float]], Mapping[str, float]] = lambda step, metrics: {},
    enough: Callable[[int], bool] = lambda step: False,
) -> FitResult:
    """Train from `state.step` to `train.num_steps`, until `enough`, or until SIGTERM or SIGINT.

    Args:
      state: a TrainState (`step`, `nonfinite_steps`, `nonfinite_in_a_row` are read), fresh or restored; it is used up.
      train_step: (state, device batch) -> (state, metrics), as `jaxbert.train.step.make_train_step` makes it.
      batches: (first step, last step) -> this process's part of the batches of those steps, over all phases.
      put: brings a batch onto the devices; called in a thread.
      evaluate: (state, should_stop) -> held-out metrics with "loss", or None when should_stop said to stop.
      loss_weights: coefficient of each loss term in "loss".
      derive: (step, a line of training metrics) -> further metrics for that line, such as "mfu".
      enough: whether a step that was just evaluated is the last one; asked again by a run that resumes from it.
      workdir: where the batch is written that breaks the run.

    Raises NonFiniteError after `train.max_nonfinite_steps` skipped steps in a row, CheckpointError where a save failed, and
    whatever `batches` raises.
    """
    first_step = step = int(state.step)
    record = checkpoints.record(step)
    evaluation = record.evaluation if record else None
    evaluated_step = step if evaluation is not None else None
    window = Window(
        loss_weights,
        nonfinite_steps=int(state.nonfinite_steps),
        nonfinite_in_a_row=int(state.nonfinite_in_a_row),
        saved=record.window if record else None,
    )
    running: tuple[int, Any, Fetched] | None = None

    def report() -> None:
        """Read the metrics of the step that was started last, and log them where a line is due."""
        if running is None:
            return
        number, metrics, fetched = running
        window.add(jax.device_get(metrics), incoming.waited_seconds)
        if window.nonfinite_in_a_row >= train.max_nonfinite_steps:
            raise NonFiniteError(_write_batch(pathlib.Path(workdir), number - 1, fetched.host, train))
        if number % train.log_every == 0 or number == train.num_steps:
            line = window.line()
            tracker.log(number, {**line, **derive(number, line)}, "train")

    with StopSignals() as stop, Prefetch(batches(step, train.num_steps), put, train.prefetch) as incoming:
        while True:
            # The order: evaluate, save, next, step, report. The metrics of a step are read while the next one runs, so
            # that the devices never wait for the host; only before an evaluation, a save or the end they are read at once.
            ended = step == train.num_steps
            stopping = stop.agreed()
            evaluating = _due(step, train.evaluate_every, ended) and step != evaluated_step and not stopping
            saving = _due(step, checkpoint.every, ended)
            if evaluating or saving or stopping:
                report()
                running = None
            if evaluating:
                found = evaluate(state, stop.agreed)
                stopping = found is None
                if found is not None:
                    evaluation, evaluated_step = found, step
                    tracker.log(step, found, "heldout")
            # The checkpoint that a run resumed from lacks its evaluation where a signal had cut that short.
            if saving or stopping or (evaluating and step == first_step):
                own = evaluation if step == evaluated_step else None
                checkpoints.save(step, state, evaluation=own, window=window.to_json())
            if running is None:
                window.restart_clock(incoming.waited_seconds)
            finished = step == evaluated_step and not stopping and enough(step)
            if finished:
                checkpoints.save(step, state, evaluation=evaluation, window=window.to_json())
            if ended or stopping or finished:
                checkpoints.wait()
                return FitResult(state, step, interrupted=stopping, evaluation=evaluation)

            fetched = incoming.next(lambda: stop.requested)
            if fetched is None:
                continue

            state, metrics = train_step(state, fetched.device)
            step += 1

            report()
            running = step, metrics, fetched


def _due(step: int, every: int, ended: bool) -> bool:
    return ended or (step > 0 and step % every == 0)


def _write_batch(workdir: pathlib.Path, step: int, batch: Batch, train: TrainConfig) -> str:
    """Write the batch for a look, and say where; each process writes its own part."""
    part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / f"nonfinite_step_{step}{part}.npz"
    np.savez(path, allow_pickle=False, **batch)
    return (
        f"loss or gradient is not finite at step {step}, the last of {train.max_nonfinite_steps} in a row "
        f"(train.max_nonfinite_steps); its batch is in {path}: lower optimizer.peak_learning_rate, or look at the batch"
    )
