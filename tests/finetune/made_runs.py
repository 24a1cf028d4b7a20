"""Small fine-tuning runs: made-up reviews in which one word decides the class, and any task from a file of a few lines."""

import pathlib
import random

from jaxbert.config import OptimizerConfig, TrackingConfig
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    TaskConfig,
)
from jaxbert.finetune.run import FinetuneResult, finetune

WORDS = {"bad": ("awful", "dull"), "fine": ("fair", "usual"), "good": ("lovely", "great")}
NOUNS = "film book play song meal trip game show".split()
LABELS = tuple(WORDS)


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts and their labels, each text once."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        label = draw.choice(LABELS)
        word = draw.choice(WORDS[label])
        found[f"{word} {draw.choice(NOUNS)} {draw.randint(1, 99)} of {seed}, {word}"] = label
    return list(found.items())


def write_table(path: pathlib.Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf8")
    return str(path)


def small(folder: pathlib.Path, workdir: pathlib.Path, **changes) -> FinetuneConfig:
    """A run of a few seconds on the tables in a folder, from a new encoder with dropout."""
    settings = {
        "name": "small",
        "workdir": str(workdir),
        "task": ClassificationConfig(),
        "data": ExamplesConfig(train=(str(folder / "train.tsv"),), dev=(str(folder / "dev.tsv"),), max_length=128),
        "optimizer": OptimizerConfig(peak_learning_rate=5e-3, warmup_share=0.1, epsilon=1e-8),
        "train": FinetuneTrainConfig(epochs=5, batch_size=16, log_every=1),
        "tracking": TrackingConfig(tensorboard=False),
    }
    return FinetuneConfig(**(settings | changes))


def learn(
    task: TaskConfig,
    path: pathlib.Path,
    epochs: float,
    columns: tuple[str, ...] = (),
    max_length: int = 64,
    dropout: float = 0.0,
    model: str | None = None,
) -> FinetuneResult:
    """Dev is what was learnt from: can it be learnt at all?"""
    return finetune(
        FinetuneConfig(
            name="tiny",
            workdir=str(path.parent / "run"),
            task=task,
            model=model,
            dropout=dropout,
            data=ExamplesConfig(train=(str(path),), dev=(str(path),), columns=columns, max_length=max_length),
            optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_share=0.1, epsilon=1e-8),
            train=FinetuneTrainConfig(epochs=epochs, batch_size=16, evaluations=1 / epochs, log_every=4),
        )
    )
