"""Contradictions between the fields of a fine-tuning configuration, found all at once and before anything is read."""

import math
from collections.abc import Iterator
from typing import get_args

from jaxbert.config import ComputeType, ConfigError, ModelConfig
from jaxbert.data.records import read_once
from jaxbert.finetune.config import (
    ChoiceConfig,
    ClassificationConfig,
    FinetuneAttention,
    FinetuneConfig,
    LoraConfig,
    LoraTarget,
    SimilarityConfig,
    SpanConfig,
    TaggingConfig,
)
from jaxbert.validation import attention, not_one_of, trackers


def validate(config: FinetuneConfig, num_devices: int | None = None) -> None:
    """Raise `ConfigError` with every contradiction between fields, one line each. Reads nothing.

    `num_devices`: all devices of the run, over all processes; None leaves the checks against the mesh out.
    """
    problems = [*_ranges(config), *_encoder(config), *_task(config), *_lora(config), *trackers(config.tracking)]
    if num_devices is not None:
        problems += _mesh(config, num_devices)
    if problems:
        raise ConfigError("\n".join(problems))


def _ranges(c: FinetuneConfig) -> Iterator[str]:
    o, t = c.optimizer, c.train
    shares = {
        "data.dev_share": c.data.dev_share,
        "dropout": c.dropout or 0.0,
        "optimizer.warmup_share": o.warmup_share or 0.0,
        "optimizer.layer_decay": o.layer_decay,
        "optimizer.final_learning_rate_share": o.final_learning_rate_share,
    }
    yield from (
        f"{name} is {value}: it is a share, from 0 to 1" for name, value in shares.items() if not 0 <= value <= 1
    )
    positive = {
        "data.max_length": c.data.max_length,
        "data.max_train_examples": c.data.max_train_examples,
        "optimizer.peak_learning_rate": o.peak_learning_rate,
        "optimizer.epsilon": o.epsilon,
        "seeds": c.seeds,
        "trials": c.trials,
        "train.epochs": t.epochs,
        "train.batch_size": t.batch_size,
        "train.accumulation_steps": t.accumulation_steps,
        "train.evaluations": t.evaluations,
        "train.patience": t.patience,
        "train.log_every": t.log_every,
        "train.max_nonfinite_steps": t.max_nonfinite_steps,
        "train.prefetch": t.prefetch,
        "checkpoint.keep_last": c.checkpoint.keep_last,
        "mesh.fsdp": c.mesh.fsdp,
        "mesh.tensor": c.mesh.tensor,
        "mesh.cpu_devices": c.mesh.cpu_devices,
    }
    above = [(name, value) for name, value in positive.items() if value is not None and not 0 < value < math.inf]
    yield from (f"{name} is {value}: it must be a number above 0" for name, value in above)
    least = {
        "optimizer.weight_decay": o.weight_decay,
        "optimizer.max_grad_norm": o.max_grad_norm,
        "optimizer.freeze_layers": o.freeze_layers,
        "optimizer.warmup_steps": o.warmup_steps,
        "train.reinit_layers": t.reinit_layers,
    }
    yield from (f"{name} is {value}: it must not be negative" for name, value in least.items() if not value >= 0)
    below = {"optimizer.beta1": o.beta1, "optimizer.beta2": o.beta2}
    yield from (
        f"{name} is {value}: it must be from 0 to below 1" for name, value in below.items() if not 0 <= value < 1
    )
    if not 0 <= c.seed < 2**32:
        yield f"seed is {c.seed}: it must be from 0 to below 2**32"
    elif c.seed + c.seeds > 2**32:
        yield f"seed ({c.seed}) and seeds ({c.seeds}): the last seed must be below 2**32"
    if c.search is not None and c.seeds > 1:
        yield f"seeds is {c.seeds} and search {c.search!r}: each trial has one seed; train the best configuration with more"
    if not c.workdir:
        yield "workdir is empty: name a folder"
    if not c.data.train:
        yield "data.train is empty: name a file, or builtin"
    if not c.data.dev and c.data.dev_share == 0:
        yield "data.dev_share is 0 and data.dev is empty: there is nothing to evaluate on"
    once = [source for source in (*c.data.train, *c.data.dev, *c.data.test) if read_once(source)]
    if len(set(once)) < len(once) or (once and (c.data.streaming or c.search is not None)):
        yield f"data: {once[0]} (standard input, or a pipe) can be read once: name a file where it is read again"
    if c.data.max_length < 8:
        yield f"data.max_length is {c.data.max_length}: a sequence needs at least 8 tokens"
    if len(set(c.data.columns)) != len(c.data.columns):
        yield "data.columns names a column twice"


def _encoder(c: FinetuneConfig) -> Iterator[str]:
    yield from not_one_of("dtype", c.dtype, ComputeType)
    yield from not_one_of("attention_backend", c.attention_backend, FinetuneAttention)
    # Of the model nothing is known yet; its own dropout is looked at with it.
    known = ModelConfig(dtype=c.dtype, attention_backend=c.attention_backend, attention_dropout=c.dropout or 0.0)
    yield from attention(known, dropout="dropout")


def _task(c: FinetuneConfig) -> Iterator[str]:
    task = c.task
    # Not every task names its labels; nor need one of somebody's own.
    labels = getattr(task, "labels", ())
    if len(set(labels)) != len(labels):
        yield "task.labels names a label twice"
    if isinstance(task, ClassificationConfig):
        if not 0 <= task.label_smoothing < 1:
            yield f"task.label_smoothing is {task.label_smoothing}: it is a share, from 0 to below 1"
        if not 0 < task.threshold < 1:
            yield f"task.threshold is {task.threshold}: it is a probability between 0 and 1"
        if task.target != "class" and task.class_weights != "none":
            yield f'task.class_weights "{task.class_weights}" is for a target of one class, and it is "{task.target}"'
        if task.target == "regression" and task.label_smoothing:
            yield f'task.label_smoothing {task.label_smoothing} is for classes, and task.target is "regression"'
        if task.target != "multi-label" and task.threshold != ClassificationConfig.threshold:
            yield f'task.threshold {task.threshold} is for a target of several classes, and it is "{task.target}"'
        if task.positive is not None and (task.target != "class" or len(labels) not in (0, 2)):
            classes = f"{len(labels)} classes in task.labels" if task.target == "class" else f'target "{task.target}"'
            yield f"task.positive {task.positive!r} is for a target of two classes: leave it out with {classes}"
    if isinstance(task, ChoiceConfig | SimilarityConfig) and c.train.accumulation_steps > 1:
        yield (
            f"train.accumulation_steps is {c.train.accumulation_steps}: {task.kind} compares sequences of a batch with one "
            "another, which must not be computed in parts: set it to 1, and lower train.batch_size"
        )
    if isinstance(task, ChoiceConfig):
        if not task.choices:
            yield "task.choices is empty: name the columns of the choices, or one column with a list of them"
        if len(set(task.choices)) != len(task.choices):
            yield "task.choices names a column twice"
    if isinstance(task, SimilarityConfig):
        if not 0 < task.temperature < math.inf:
            yield f"task.temperature is {task.temperature}: it must be a number above 0"
        if task.target == "dropout" and c.dropout == 0:
            yield 'task.target is "dropout" and dropout is 0: a text would be the same twice'
        if task.target == "dropout" and not c.data.dev:
            yield 'data.dev is empty, and task.target is "dropout": name a file of pairs, which tell how good vectors are'
    if isinstance(task, TaggingConfig) and task.scheme == "words" and task.tags is not None:
        yield f'task.tags "{task.tags}" is for entities, and task.scheme is "words", whose tags are its own'
    if isinstance(task, TaggingConfig):
        # What a file of Python sets is checked by nobody else.
        for name, known in (("scheme", ("iob2", "iob1", "bioes", "words")), ("tags", (None, "iob2", "bioes"))):
            if getattr(task, name) not in known:
                yield f"task.{name} is {getattr(task, name)!r}: choose one of {', '.join(filter(None, known))}"
    if isinstance(task, TaggingConfig) and task.word_column == task.tag_column:
        yield f"task.word_column and task.tag_column are both {task.word_column}"
    if isinstance(task, SpanConfig):
        for name in ("stride", "max_question_length", "max_answer_length", "n_best"):
            if getattr(task, name) < 1:
                yield f"task.{name} is {getattr(task, name)}: it must be at least 1"
        if task.stride + task.max_question_length + 3 >= c.data.max_length:
            yield (
                f"task.stride ({task.stride}) and task.max_question_length ({task.max_question_length}) leave no room in "
                f"data.max_length ({c.data.max_length}): raise it, or lower them"
            )


def _lora(c: FinetuneConfig) -> Iterator[str]:
    lora, known = c.lora, get_args(LoraTarget)
    if lora.rank is None:
        if lora.export != "merged":
            yield f'lora.export is "{lora.export}" and there are no adapters: set lora.rank'
        if lora.alpha != LoraConfig.alpha:
            yield f"lora.alpha is {lora.alpha} and there are no adapters: set lora.rank"
        if lora.targets != LoraConfig.targets:
            yield f"lora.targets are {', '.join(lora.targets)} and there are no adapters: set lora.rank"
        return
    if lora.rank < 1:
        yield f"lora.rank is {lora.rank}: it must be at least 1"
    if not 0 < lora.alpha < math.inf:
        yield f"lora.alpha is {lora.alpha}: it must be a number above 0"
    if not lora.targets or len(set(lora.targets)) != len(lora.targets):
        yield f"lora.targets {'names a projection twice' if lora.targets else 'is empty'}: choose of {', '.join(known)}"
    unknown = [target for target in lora.targets if target not in known]
    if unknown:
        yield f"lora.targets has {unknown[0]!r}: choose of {', '.join(known)}"
    # All of them say what becomes of the encoder's own parameters, which stay.
    others = {
        "optimizer.freeze_layers": c.optimizer.freeze_layers > 0,
        "optimizer.freeze_embeddings": c.optimizer.freeze_embeddings,
        "optimizer.layer_decay": c.optimizer.layer_decay != 1,
        "train.reinit_layers": c.train.reinit_layers > 0,
        "compare_untrained": c.compare_untrained,
    }
    yield from (
        f"{name} does not go with lora.rank, under which the encoder stays as it is: leave out one of them"
        for name, given in others.items()
        if given
    )


def _mesh(c: FinetuneConfig, num_devices: int) -> Iterator[str]:
    mesh = c.mesh
    fixed = mesh.fsdp * mesh.tensor
    if fixed < 1 or num_devices % fixed or (mesh.data != -1 and mesh.data * fixed != num_devices):
        yield (
            f"mesh.data ({mesh.data}) x mesh.fsdp ({mesh.fsdp}) x mesh.tensor ({mesh.tensor}) "
            f"does not make the number of devices ({num_devices})"
        )
