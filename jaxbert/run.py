"""A pretraining run from raw text to a report: what `train.py` and a notebook call.

Nothing is decided here that a room below decides; this file is the order in which they are asked.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbert import run_folder
from jaxbert.config import Config, ModelConfig, Phase, UserError
from jaxbert.data.pretraining import PretrainingBatches
from jaxbert.report import Baselines
from jaxbert.results import Finished
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.text.prepare import Prepared, prepare
from jaxbert.text.rows import Rows
from jaxbert.text.units import Split
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.evaluate import evaluate
from jaxbert.train.flops import model_flops, peak_flops
from jaxbert.train.loop import FitResult
from jaxbert.train.processes import barrier, initialize, process_0_first, say
from jaxbert.train.session import Session
from jaxbert.train.sharding import process_slice
from jaxbert.train.state import TrainState
from jaxbert.train.step import make_eval_step
from jaxbert.validation import validate

# The arrays of one batch, by name.
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """Where a run stands when `pretrain` returns."""

    workdir: Path
    step: int
    finished: bool
    """False: a signal ended the run early; the same call goes on from its checkpoint."""
    metrics: Mapping[str, float]
    """The last held-out evaluation; empty where there was none."""
    baselines: Baselines | None
    """What guessing reaches on the same rows; None for a run that is not finished."""


def pretrain(config: Config) -> PretrainResult:
    """Prepare the rows, train, evaluate, save and report, or go on with the run that `config.workdir` holds.

    Raises `UserError` with a text of one line for what the user can mend: `ConfigError` for contradictions in the
    configuration or with the run in the folder, and each room's own errors for text, rows, checkpoints and trackers.
    """
    started = time.monotonic()
    initialize(config.mesh, config.distributed)
    validate(config, jax.device_count())
    workdir = Path(config.workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(run_folder.locked(workdir))
        return _pretrain(config, workdir, started)


def _pretrain(config: Config, workdir: Path, started: float) -> PretrainResult:
    run_folder.check_same_run(config, workdir)
    prepared = _prepare_on_every_host(config)
    run_folder.check_same_rows(prepared.report["fingerprint"], workdir)
    config = _resolved(config, prepared)
    barrier("jaxbert_checked")
    if jax.process_index() == 0:
        run_folder.save(config, workdir, prepared.report["fingerprint"])
    run = _Run(config, prepared)
    starts = [phase.first_step for phase in run.phases]
    with Checkpoints(workdir, config.checkpoint, phase_starts=starts) as checkpoints:
        outcome = run.train(checkpoints)
    if outcome.interrupted:
        say(f"stopped at step {outcome.step:,}; the same command goes on from there")
        return PretrainResult(workdir, outcome.step, False, outcome.evaluation or {}, None)
    finished = Finished(config, prepared, run.rows, run.session.num_parameters, outcome)
    model = finished.export()
    say(f"model for transformers: {model}")
    seconds = time.monotonic() - started
    baselines = finished.report(run.heldout(run.phases[-1], whole_batches=True), seconds)
    say(f"report: {workdir / 'report.md'}   curves: {workdir / 'curves.png'}   in {seconds:.0f} s")
    # No process returns before the folder has all that it promises.
    barrier("jaxbert_written")
    return PretrainResult(workdir, outcome.step, True, outcome.evaluation or {}, baselines)


class _Run:
    """The parts of a run, built once from its configuration and its rows."""

    def __init__(self, config: Config, prepared: Prepared):
        self.config, self.prepared = config, prepared
        self.session = Session(config, config.train, PretrainingTask(config.model, config.train.alpha))
        self.phases = config.phases()
        self.rows = {place: Rows.open(folder) for place, folder in prepared.stores.items()}
        _check_equal_rows(self.rows)

    def train(self, checkpoints: Checkpoints) -> FitResult:
        """Restore or create the state, and train it to the end or to a signal."""
        session = self.session
        state = session.start(checkpoints)
        eval_step = make_eval_step(session.task, session.shardings, session.mesh)

        def evaluate_heldout(state: TrainState, should_stop: Callable[[], bool]) -> dict[str, float] | None:
            batches = self.heldout(self._phase_before(int(state.step)))
            return evaluate(
                eval_step,
                state,
                batches,
                session.put,
                loss_weights=session.task.loss_weights,
                should_stop=should_stop,
            )

        return session.fit(state, self._batches, evaluate_heldout, checkpoints, derive=self._utilisation)

    def _batches(self, first_step: int, last_step: int) -> Iterator[Arrays]:
        """This process's part of the batches of these steps, phase after phase."""
        for phase in self.phases:
            first, last = max(first_step, phase.first_step), min(last_step, phase.last_step)
            if first < last:
                source = self._source("train", phase, *process_slice(self.session.mesh))
                steps = source.dataset(first - phase.first_step, last - phase.first_step)
                yield from cast(Iterator[Arrays], steps.as_numpy_iterator())

    def heldout(self, phase: Phase, whole_batches: bool = False) -> Iterator[Arrays]:
        """The held-out batches at a phase's length: this process's part of each, or all of it."""
        index, count = (0, 1) if whole_batches else process_slice(self.session.mesh)
        source = self._source("heldout", phase, index, count)
        limit = self.config.train.evaluate_batches
        batches = source.num_batches if limit == 0 else min(limit, source.num_batches)
        yield from cast(Iterator[Arrays], source.dataset(0, batches).as_numpy_iterator())

    def _source(self, split: Split, phase: Phase, index: int, count: int) -> PretrainingBatches:
        return PretrainingBatches(
            self.rows[split, phase.max_length],
            self.config.masking,
            phase.max_predictions,
            phase.batch_size,
            self.config.seed,
            evaluation=split == "heldout",
            process_index=index,
            process_count=count,
        )

    def _phase_before(self, step: int) -> Phase:
        """The phase that the last of `step` steps was in."""
        return next(phase for phase in self.phases if step <= phase.last_step)

    def _utilisation(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Model-FLOPs utilisation over real tokens, where the devices' peak is known; never of float32 compute."""
        peak = peak_flops(jax.devices()[0].device_kind, self.config.model.dtype)
        if peak is None or "tokens_per_second" not in metrics:
            return {}
        manifest = self.rows["train", self._phase_before(step).max_length].manifest
        tokens_per_sequence = manifest["num_tokens"] / manifest["num_sequences"]
        per_token = model_flops(
            self.config.model,
            tokens=1,
            attended_length=tokens_per_sequence,
            predictions=self.config.masking.share,
            sequences=1 / tokens_per_sequence,
        )
        return {"mfu": per_token * metrics["tokens_per_second"] / (peak * jax.device_count())}


def _prepare_on_every_host(config: Config) -> Prepared:
    """Rows for this process; preparation is deterministic, so that hosts which share no files have the same ones."""
    return process_0_first(lambda: prepare(config, on_progress=say), "jaxbert_prepared")


def _check_equal_rows(rows: Mapping[tuple[Split, int], Rows]) -> None:
    if jax.process_count() == 1:
        return
    digests = [shard["sha256"] for place in sorted(rows) for shard in rows[place].manifest["shards"]]
    words = np.array([int(digest[:8], 16) for digest in digests], np.uint32)
    try:
        multihost_utils.assert_equal(words)
    except AssertionError as error:
        raise UserError("the hosts of this run hold different rows: copy one host's data.rows to all") from error


def _resolved(config: Config, prepared: Prepared) -> Config:
    """The configuration with what the tokenizer and the devices decide filled in."""
    size = prepared.vocabulary.size
    if config.model.vocab_size not in (None, size):
        raise UserError(
            f"model.vocab_size ({config.model.vocab_size}) is not the tokenizer's size ({size}): leave it at None"
        )
    model: ModelConfig = dataclasses.replace(config.model, vocab_size=size)
    if model.dtype == "auto":
        model = dataclasses.replace(model, dtype="float32" if jax.default_backend() == "cpu" else "bfloat16")
    return dataclasses.replace(config, model=model)
