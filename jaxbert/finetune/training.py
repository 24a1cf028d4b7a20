"""One training of a task from labelled examples: its parts, put together once, and its order."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
from jaxbert.finetune import lora
from jaxbert.finetune.config import FinetuneConfig, SimilarityConfig
from jaxbert.finetune.examples import Examples, training_features
from jaxbert.finetune.head import Head, find_head
from jaxbert.finetune.report import logged
from jaxbert.finetune.search import Hopeless
from jaxbert.finetune.source import Source
from jaxbert.tasks.task import BoundTask, Encoder, Task
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.evaluate import Totals
from jaxbert.train.freezing import Frozen
from jaxbert.train.loop import FitResult
from jaxbert.train.processes import say
from jaxbert.train.session import Session
from jaxbert.train.sharding import process_slice
from jaxbert.train.state import TrainState
from jaxbert.train.step import make_outputs_step
from jaxbert.weights.configuration import ARCHITECTURES, CLASS_PREFIX


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a training stands when it ends."""

    result: FitResult
    state: TrainState
    """Of the best checkpoint."""
    step: int
    best: Mapping[str, float]
    """Its measures on dev."""
    given_up: bool = False
    """It ended before its time because it was hopeless."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples that are held out, and what the model reads of them."""

    examples: Sequence[Any]
    features: Sequence[Feature]


class Training:
    """The parts of a run, built once."""

    def __init__(self, config: FinetuneConfig, task: Task[Any, Any], examples: Examples, source: Source):
        self.source: Source = source
        self.examples: Examples = examples
        encoder = encoder_of(config, source)
        _check_depth(config, encoder.config.num_layers)
        _check_dropout(config, encoder.config, source.name)
        self.bound: BoundTask[Any, Any] = task.bind(examples.labels, examples.train, encoder)
        _check_export(self.bound, source)
        self.model_config: ModelConfig = encoder.config
        check_measurable(config, self.bound, examples)
        train = training_features(self.bound, examples.train, Path(config.workdir))
        self.dev: Split = Split(examples.dev, self.bound.features(examples.dev))
        self.test: Split = Split(examples.test, self.bound.features(examples.test))
        rows_multiple = jax.device_count() // config.mesh.tensor * config.train.accumulation_steps
        # A test set that is given later must not change how training examples share rows.
        self.layout: Layout = layout_of(train, rows_multiple)
        self.batches: TrainingBatches = TrainingBatches(
            train, config.train.batch_size, self.layout, config.seed, self.bound.together
        )
        steps = _steps(config, self.batches.num_batches)
        self._num_steps = steps.num_steps
        self.head: Head = find_head(config, source, self.bound)
        self.warnings: list[str] = oddities(config, source, self.bound, self.head)
        for warning in self.warnings:
            say(f"warning: {warning}")
        if self.head.params:
            say(f"the head of {source.name} is kept")
        self.config: FinetuneConfig = dataclasses.replace(
            config, checkpoint=dataclasses.replace(config.checkpoint, every=steps.evaluate_every)
        )
        frozen = config.optimizer.freeze_embeddings or config.optimizer.freeze_layers > 0
        self.adapted: lora.AdaptedTask | None = lora.adapted(config, self.bound, source)
        task_of_step = self.adapted or (Frozen(self.bound, config.optimizer) if frozen else self.bound)
        self.session: Session = Session(self.config, steps, task_of_step, self.adapted and self.adapted.trained)
        outputs = self.adapted.outputs if self.adapted else self.bound.outputs
        self._outputs = make_outputs_step(outputs, self.session.shardings, self.session.mesh)

    def train(self, hopeless: Hopeless | None = None) -> Outcome:
        """Restore or create the state, and train it to the end, to a signal, or until it is hopeless."""
        given_up = False
        with Checkpoints(self.config.workdir, self.config.checkpoint, highest=self.bound.metric) as checkpoints:
            state = self.session.start(checkpoints, self.start())
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
                best = self._best_since()
                return best is not None and step - best >= patience * every

            headline = tuple(dict.fromkeys((self.bound.metric, "accuracy")))
            result = self.session.fit(state, self._batches, evaluate, checkpoints, enough=enough, headline=headline)
            if given_up:
                return Outcome(result, result.state, result.step, result.evaluation or {}, given_up=True)
            step = checkpoints.best_step()
            if result.interrupted or step is None or step == result.step:
                return Outcome(result, result.state, result.step, result.evaluation or {})
            record = checkpoints.record(step)
            best = (record.evaluation if record else None) or {}
            return Outcome(result, checkpoints.restore(step, self.session.abstract), step, best)

    def _best_since(self) -> int | None:
        """The step of the first evaluation that reached the best value so far; None where none was a number.

        Of equal checkpoints the newest is kept, so that a plateau would look like one improvement after another.
        """
        # Only process 0 is sure to see what it has just logged, and all must stop together.
        found = None
        if jax.process_index() == 0:
            found = first_best(logged(Path(self.config.workdir) / "metrics.jsonl", "heldout", self.bound.metric))
        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
        return None if step < 0 else step

    def _check_measure(self, state: TrainState) -> None:
        """Raise ConfigError where the best checkpoint cannot be chosen by the measure, before anything is trained."""
        few = self.dev.examples[:1]
        found = self.evaluate(state, Split(few, self.bound.features(few)))
        if found is None:
            return
        # The best checkpoint has the highest value, which of an error is the worst.
        lowest = {"loss", "mse", *self.bound.loss_weights}
        names = [name for name in found[0] if name not in lowest]
        if self.bound.metric not in names:
            what = "is the better the lower it is" if self.bound.metric in lowest else "is no measure of this task"
            raise ConfigError(f"task.metric {self.bound.metric!r} {what}: choose one of {', '.join(names)}")

    def start(self) -> Mapping[str, Any] | None:
        """The parameters to start with, None for new ones: those of the source that the task has, without blocks that start anew."""
        if self.source.params is None:
            return None
        shapes = jax.eval_shape(self.bound.init, jax.random.key(0))
        params = {name: dict(tree) for name, tree in self.source.params.items() if name in shapes}
        first = self.model_config.num_layers - self.config.train.reinit_layers
        for name in list(params["encoder"]):
            block = re.fullmatch(r"layers_(\d+)", name)
            if block and int(block[1]) >= first:
                del params["encoder"][name]
        return {**params, **self.head.params}

    def _batches(self, first_step: int, last_step: int) -> Iterator[Arrays]:
        return self.batches.batches(first_step, last_step, *process_slice(self.session.mesh))

    def evaluate(
        self, state: TrainState, split: Split, should_stop: Callable[[], bool] = lambda: False
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


def first_best(evaluations: Sequence[tuple[int, float]]) -> int | None:
    """The step of the first of these (step, value) with the highest value."""
    return max(evaluations, key=lambda one: one[1])[0] if evaluations else None


def check_measurable(config: FinetuneConfig, bound: BoundTask[Any, Any], examples: Examples) -> None:
    """Raise ExamplesError where dev or test lack what the task measures by."""
    dev_files = "data.dev" if config.data.dev else "data.train, of which dev is a share,"
    bound.check_measurable(examples.dev, dev_files)
    bound.check_measurable(examples.test, "data.test")


def encoder_of(config: FinetuneConfig, source: Source) -> Encoder:
    """What the task puts its head on."""
    model = source.configured(config)
    max_length = min(config.data.max_length, model.max_position_embeddings)
    return Encoder(model, source.family, source.tokenizer, max_length)


def oddities(config: FinetuneConfig, source: Source, bound: BoundTask[Any, Any], head: Head) -> list[str]:
    """What is odd about a run's settings with the model that it starts from, a line each."""
    asked, there = config.data.max_length, source.config.max_position_embeddings
    found = list(bound.warnings)
    if asked > there:
        found.append(
            f"data.max_length is {asked}, and the model has {there} positions: sequences are no longer than that"
        )
    if head.why_new:
        found.append(f"the head of {source.name} starts anew: {head.why_new}")
    return found


def _check_export(bound: BoundTask[Any, Any], source: Source) -> None:
    """Raise ConfigError, before anything is trained, for a head that no folder could be written for."""
    prefix = CLASS_PREFIX[source.family]
    if prefix + bound.architecture not in ARCHITECTURES:
        known = [name.removeprefix(prefix) for name, (family, _) in ARCHITECTURES.items() if family == source.family]
        raise ConfigError(
            f"{type(bound).__name__}.architecture is {bound.architecture!r}, and {source.family} has no such class: put the task on "
            f"one of {', '.join(known)}"
        )


def _check_depth(config: FinetuneConfig, num_layers: int) -> None:
    """Raise ConfigError where blocks are to be frozen or to start anew that there are not, or the same ones both."""
    frozen, anew = config.optimizer.freeze_layers, config.train.reinit_layers
    for name, count in (("optimizer.freeze_layers", frozen), ("train.reinit_layers", anew)):
        if count > num_layers:
            raise ConfigError(f"{name} is {count}, and the model has {num_layers} blocks: set it to at most that")
    if frozen + anew > num_layers:
        raise ConfigError(
            f"optimizer.freeze_layers ({frozen}) and train.reinit_layers ({anew}) meet in a model of {num_layers} blocks: what "
            "starts anew must be trained; lower one of them"
        )


def _check_dropout(config: FinetuneConfig, model: ModelConfig, name: str) -> None:
    """Raise ConfigError where a text is to be compared with itself under other dropout, and there is none."""
    alone = isinstance(config.task, SimilarityConfig) and config.task.target == "dropout"
    if alone and model.hidden_dropout == model.attention_dropout == 0:
        raise ConfigError(
            f'task.target is "dropout" and {name} has none: a text would be the same twice; set --dropout 0.1'
        )


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
