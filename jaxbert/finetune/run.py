"""A fine-tuning run from labelled files to a report: what `finetune.py` and a notebook call.

Nothing is decided here that a room below decides; this file is the order in which they are asked.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxbert import run_folder
from jaxbert.config import ConfigError, ModelConfig, TrainConfig
from jaxbert.data.examples import (
    Arrays,
    Layout,
    TrainingBatches,
    evaluation_batches,
    layout_of,
    part,
)
from jaxbert.data.features import Feature
from jaxbert.finetune import lora, report
from jaxbert.finetune.check import describe
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.examples import Examples, read_all, training_features
from jaxbert.finetune.result import FinetuneResult
from jaxbert.finetune.search import Hopeless, load_suggest, search
from jaxbert.finetune.seeds import finetune_seeds
from jaxbert.finetune.source import Source, find_source, start_of
from jaxbert.finetune.validation import validate
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import OF_A_TASK, TASK, BoundTask, Encoder, Task
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.evaluate import Totals
from jaxbert.train.freezing import Frozen
from jaxbert.train.loop import FitResult
from jaxbert.train.processes import barrier, initialize, say
from jaxbert.train.session import Session
from jaxbert.train.sharding import process_slice
from jaxbert.train.state import TrainState
from jaxbert.train.step import make_outputs_step
from jaxbert.weights.configuration import CLASS_PREFIX
from jaxbert.weights.model_card import model_card


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Read the examples, train, evaluate, save and report, or go on with the run that `config.workdir` holds.

    With `config.seeds` above 1 it is a `SeedsResult`.
    Raises `UserError` with a text of one line for what the user can mend.
    """
    initialize(config.mesh, config.distributed)
    validate(config, jax.device_count())
    workdir = Path(config.workdir)
    examples = read_all(make_task(config.task), config.data)
    for warning in () if config.check_data else examples.warnings:
        say(f"warning: {warning}")
    if config.check_data or (config.seeds == 1 and config.search is None):
        return _finetune_once(config, examples, run_folder.started_from(workdir))
    suggest = None if config.search is None else load_suggest(config.search)
    with _folder_of(config, examples):
        # What the newest run is may change between two of them.
        before = start_of(config, run_folder.started_from(workdir))
        if jax.process_index() == 0:
            run_folder.save_finetuning(config, workdir, examples.fingerprint, before)
        if suggest is None:
            return finetune_seeds(config, lambda one: _finetune_once(one, examples, before))

        def train(one: FinetuneConfig, hopeless: Hopeless) -> FinetuneResult:
            same = (one.task, one.data) == (config.task, config.data)
            return _finetune_once(one, examples if same else read_all(make_task(one.task), one.data), before, hopeless)

        return search(config, suggest, train)


@contextlib.contextmanager
def _folder_of(config: FinetuneConfig, examples: Examples) -> Iterator[None]:
    """The folder of a run, which is this run's own as long as it is entered."""
    workdir = Path(config.workdir)
    with run_folder.locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        run_folder.check_same_finetuning(config, examples.fingerprint, workdir)
        yield


def _finetune_once(
    config: FinetuneConfig, examples: Examples, before: str | None, hopeless: Hopeless | None = None
) -> FinetuneResult:
    """One run in its folder, which ends without a model where it is `hopeless`. `before`: as in `find_source`."""
    started = time.monotonic()
    workdir = Path(config.workdir)
    task = make_task(config.task)
    with _folder_of(config, examples):
        source = _on_process_0_first(lambda: find_source(config, map(task.text, examples.train), workdir, before))
        if config.check_data:
            encoder = _encoder(config, source)
            bound = task.bind(examples.labels, examples.train, encoder)
            say("\n".join(describe(task, bound, examples, encoder)))
            return FinetuneResult(workdir, None, 0, {}, {}, {}, bound.metric)
        if jax.process_index() == 0:
            run_folder.save_finetuning(config, workdir, examples.fingerprint, source.name)
        untrained: Mapping[str, float] = {}
        if config.compare_untrained and source.params is not None:
            say(f"without the pretraining of {source.name}:")
            alone = dataclasses.replace(config, workdir=str(workdir / "untrained"), name=f"{config.name}, untrained")
            outcome = _Run(alone, task, examples, dataclasses.replace(source, params=None)).train()
            if outcome.result.interrupted:
                return FinetuneResult(workdir, None, outcome.result.step, {}, {}, {}, "")
            untrained = outcome.best
        say(f"starting from {source.name}:")
        run = _Run(config, task, examples, source)
        outcome = run.train(hopeless)
        if outcome.result.interrupted or outcome.given_up:
            if not outcome.given_up:
                say(f"stopped at step {outcome.result.step:,}; the same command goes on from there")
            dev = outcome.result.evaluation or {}
            return FinetuneResult(workdir, None, outcome.result.step, dev, {}, untrained, run.bound.metric)
        return run.finish(outcome, untrained, started)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    result: FitResult
    state: TrainState
    """Of the best checkpoint."""
    step: int
    best: Mapping[str, float]
    """Its measures on dev."""
    given_up: bool = False
    """It ended before its time because it was hopeless."""


@dataclasses.dataclass(frozen=True)
class _Split:
    examples: Sequence[Any]
    features: Sequence[Feature]


class _Run:
    """The parts of a run, built once."""

    def __init__(self, config: FinetuneConfig, task: Task[Any, Any], examples: Examples, source: Source):
        self.source, self.examples = source, examples
        encoder = _encoder(config, source)
        self.bound: BoundTask[Any, Any] = task.bind(examples.labels, examples.train, encoder)
        self.model_config: ModelConfig = encoder.config
        train = training_features(self.bound, examples.train, Path(config.workdir))
        self.dev, self.test = (_Split(some, self.bound.features(some)) for some in (examples.dev, examples.test))
        rows_multiple = jax.device_count() // config.mesh.tensor * config.train.accumulation_steps
        # A test set that is given later must not change how training examples share rows.
        self.layout: Layout = layout_of(train, rows_multiple)
        self.batches = TrainingBatches(train, config.train.batch_size, self.layout, config.seed, self.bound.together)
        steps = _steps(config, self.batches.num_batches)
        self._num_steps = steps.num_steps
        self.config = dataclasses.replace(
            config, checkpoint=dataclasses.replace(config.checkpoint, every=steps.evaluate_every)
        )
        frozen = config.optimizer.freeze_embeddings or config.optimizer.freeze_layers > 0
        self.adapted = lora.adapted(config, self.bound, source)
        task_of_step = self.adapted or (Frozen(self.bound, config.optimizer) if frozen else self.bound)
        self.session = Session(self.config, steps, task_of_step, self.adapted and self.adapted.trained)
        outputs = self.adapted.outputs if self.adapted else self.bound.outputs
        self._outputs = make_outputs_step(outputs, self.session.shardings, self.session.mesh)

    def train(self, hopeless: Hopeless | None = None) -> _Outcome:
        """Restore or create the state, and train it to the end, to a signal, or until it is hopeless."""
        given_up = False
        with Checkpoints(self.config.workdir, self.config.checkpoint, highest=self.bound.metric) as checkpoints:
            state = self.session.start(checkpoints, self._start())
            self._check_measure(state)

            def evaluate(state: TrainState, should_stop: Callable[[], bool]) -> dict[str, float] | None:
                found = self.evaluate(state, self.dev, should_stop)
                return None if found is None else found[0]

            def enough(step: int) -> bool:
                nonlocal given_up
                every, patience = self.config.checkpoint.every, self.config.train.patience
                if hopeless is not None and step < self._num_steps:
                    checkpoints.wait()
                    record = checkpoints.record(step)
                    value = (
                        None if record is None or record.evaluation is None else record.evaluation[self.bound.metric]
                    )
                    given_up = hopeless(step // every, math.nan if value is None else value)
                    if given_up:
                        return True
                if patience is None:
                    return False
                checkpoints.wait()
                best = checkpoints.best_step()
                return best is not None and step - best >= patience * every

            headline = tuple(dict.fromkeys((self.bound.metric, "accuracy")))
            result = self.session.fit(state, self._batches, evaluate, checkpoints, enough=enough, headline=headline)
            if given_up:
                return _Outcome(result, result.state, result.step, result.evaluation or {}, given_up=True)
            step = checkpoints.best_step()
            if result.interrupted or step is None or step == result.step:
                return _Outcome(result, result.state, result.step, result.evaluation or {})
            record = checkpoints.record(step)
            best = (record.evaluation if record else None) or {}
            return _Outcome(result, checkpoints.restore(step, self.session.abstract), step, best)

    def _check_measure(self, state: TrainState) -> None:
        """Raise ConfigError where the best checkpoint cannot be chosen by the measure, before anything is trained."""
        few = self.dev.examples[:1]
        found = self.evaluate(state, _Split(few, self.bound.features(few)))
        if found is None:
            return
        # The best checkpoint has the highest value, which of an error is the worst.
        lowest = {"loss", "mse", *self.bound.loss_weights}
        names = [name for name in found[0] if name not in lowest]
        if self.bound.metric not in names:
            what = "is the better the lower it is" if self.bound.metric in lowest else "is no measure of this task"
            raise ConfigError(f"task.metric {self.bound.metric!r} {what}: choose one of {', '.join(names)}")

    def _start(self) -> Mapping[str, Any] | None:
        """The parameters to start with: those of the source that the task has, without the blocks that start anew."""
        if self.source.params is None:
            return None
        shapes = jax.eval_shape(self.bound.init, jax.random.key(0))
        params = {name: dict(tree) for name, tree in self.source.params.items() if name in shapes}
        first = self.model_config.num_layers - self.config.train.reinit_layers
        for name in list(params["encoder"]):
            block = re.fullmatch(r"layers_(\d+)", name)
            if block and int(block[1]) >= first:
                del params["encoder"][name]
        return params

    def _batches(self, first_step: int, last_step: int) -> Iterator[Arrays]:
        return self.batches.batches(first_step, last_step, *process_slice(self.session.mesh))

    def evaluate(
        self, state: TrainState, split: _Split, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], list[Any]] | None:
        """Measures, and a prediction for each example; None where `should_stop` said so between two batches."""
        totals = Totals()
        found: list[Mapping[str, np.ndarray]] = [{} for _ in split.features]
        mine = process_slice(self.session.mesh)
        layout = layout_of([*split.features, *self.dev.features], self.layout.rows_multiple)
        for placed in evaluation_batches(split.features, layout):
            if should_stop():
                return None
            sums, outputs = jax.device_get(self._outputs(state, self.session.put(part(placed.arrays, *mine))))
            totals.add(sums)
            for feature, values in placed.outputs_of(split.features, outputs):
                found[feature] = values
        predictions = self.bound.decode(split.examples, split.features, found)
        measures = self.bound.score(split.examples, predictions)
        return {**totals.means(self.bound.loss_weights), **measures}, predictions

    def finish(self, outcome: _Outcome, untrained: Mapping[str, float], started: float) -> FinetuneResult:
        """Export the best checkpoint, evaluate it once more on everything that is held out, and report."""
        workdir = Path(self.config.workdir)
        dev = self.evaluate(outcome.state, self.dev)
        test = self.evaluate(outcome.state, self.test) if self.test.features else None
        assert dev is not None
        model = self._export(outcome, dev[0], workdir / "model")
        if jax.process_index() == 0:
            splits = {"dev": (self.dev.examples, *dev)} | ({"test": (self.test.examples, *test)} if test else {})
            report.write(
                workdir,
                self.config.name,
                self.bound,
                splits,
                untrained=untrained,
                facts=self._facts(outcome, time.monotonic() - started),
                warnings=self.examples.warnings,
            )
        kind = "adapters for peft" if self.config.lora.export == "separate" else "model for transformers"
        say(f"{kind}: {model}")
        say(
            f"report: {workdir / 'report.md'}   curves: {workdir / 'curves.png'}   in {time.monotonic() - started:.0f} s"
        )
        measures = dev[0], test[0] if test else {}, untrained
        return FinetuneResult(workdir, model, outcome.step, *measures, self.bound.metric)

    def _facts(self, outcome: _Outcome, seconds: float) -> dict[str, str]:
        sizes = {"train": self.examples.train, "dev": self.examples.dev, "test": self.examples.test}
        return {
            "started from": self.source.name,
            "parameters": f"{self.session.num_parameters:,}",
            "examples": ", ".join(f"{len(split):,} {name}" for name, split in sizes.items() if split),
            "epochs": f"{self.config.train.epochs:g}",
            "steps": f"{outcome.result.step:,}, the best checkpoint is of step {outcome.step:,}",
            "batch": f"{self.config.train.batch_size} sequences in rows of {self.layout.row_length} tokens",
            "peak learning rate": f"{self.config.optimizer.peak_learning_rate:g}",
            "seed": f"{self.config.seed}",
            **({"low-rank adapters": self._adapters()} if self.adapted else {}),
            "time of this start": f"{seconds:.0f} s",
        }

    def _adapters(self) -> str:
        settings = self.config.lora
        return (
            f"rank {settings.rank}, alpha {settings.alpha:g}, on {', '.join(settings.targets)}; "
            f"{self.session.num_trained:,} parameters trained"
        )

    def _export(self, outcome: _Outcome, metrics: Mapping[str, float], folder: Path) -> Path:
        params = multihost_utils.process_allgather(outcome.state.params, tiled=True)
        if jax.process_index() != 0:
            return folder
        architecture = CLASS_PREFIX[self.source.family] + self.bound.architecture
        card = model_card(
            self.config.name,
            architecture,
            # A path is nobody's business.
            data=f"Fine-tuned from `{Path(self.source.name).name}` on "
            + ", ".join(f"`{Path(source).name}`" for source in self.config.data.train)
            + ".",
            steps=outcome.step,
            settings={
                "batch": self.config.train.batch_size,
                "peak learning rate": self.config.optimizer.peak_learning_rate,
                "epochs": self.config.train.epochs,
                "seed": self.config.seed,
                **({"low-rank adapters": self._adapters()} if self.adapted else {}),
            },
            metrics={f"dev {name}": value for name, value in metrics.items() if math.isfinite(value)},
            adapter=self.config.lora.export == "separate",
        )
        extra = {key: value for key, value in self.source.extra.items() if key not in OF_A_TASK}
        keep = {
            "config": self.model_config,
            "tokenizer": self.source.tokenizer_folder,
            "architecture": architecture,
            "card": card,
            "extra": extra | self.bound.configuration() | {TASK: dataclasses.asdict(self.config.task)},
            "labels": len(self.bound.labels),
            "unused_positions": self.source.unused_positions,
            "overwrite": True,
        }
        return lora.save(folder, self.config, self.adapted, self.source, params, keep, self.bound.embedder)


def _encoder(config: FinetuneConfig, source: Source) -> Encoder:
    model = source.with_dropout(config)
    # Longer sequences have no positions.
    max_length = min(config.data.max_length, model.max_position_embeddings)
    return Encoder(model, source.family, source.tokenizer, max_length)


def _steps(config: FinetuneConfig, in_epoch: int) -> TrainConfig:
    train = config.train
    return TrainConfig(
        num_steps=max(math.ceil(train.epochs * in_epoch), 1),
        batch_size=train.batch_size,
        accumulation_steps=train.accumulation_steps,
        max_nonfinite_steps=train.max_nonfinite_steps,
        log_every=train.log_every,
        evaluate_every=max(round(in_epoch / train.evaluations), 1),
        prefetch=train.prefetch,
    )


def _on_process_0_first(make: Callable[[], Source]) -> Source:
    if jax.process_index() == 0:
        found = make()
        barrier("jaxbert_source")
        return found
    barrier("jaxbert_source")
    return make()
