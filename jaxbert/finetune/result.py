"""What `finetune` returns: of one run, of several seeds, of a search."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """Where a run stands when `finetune` returns."""

    workdir: Path
    model: Path | None
    """A Hugging Face folder of the best checkpoint; None for a run that is not finished."""
    step: int
    """Of the best checkpoint."""
    dev: Mapping[str, float]
    """Measures by name."""
    test: Mapping[str, float]
    """Empty where there is no data.test."""
    untrained: Mapping[str, float]
    """Measures on dev of the same model without its pretraining, where that was asked for."""
    metric: str
    """The measure of dev that the best checkpoint is chosen by."""
    untrained_diverged: str | None = dataclasses.field(default=None, kw_only=True)
    """Why the comparison without pretraining stopped; None where it did not, or was not asked for."""


class Untrained(NamedTuple):
    """What the same model comes to without its pretraining."""

    dev: Mapping[str, float] = {}
    """Its measures; empty where that was not asked for, or diverged."""
    diverged: str | None = None
    """Why it stopped."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A measure over several seeds."""

    mean: float
    sd: float | None
    """Sample standard deviation (over n - 1); None of a single seed."""
    count: int
    """Seeds."""


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One seed of several."""

    seed: int
    result: FinetuneResult | None
    """None where it stopped for losses that are not finite."""
    diverged: str | None
    """How it failed to learn; None where it did learn."""


@dataclasses.dataclass(frozen=True)
class SeedsResult(FinetuneResult):
    """Several seeds. Model and measures are those of the seed that is best on dev; `workdir` is the folder of all."""

    best_seed: int | None
    """None where no seed is finished."""
    seeds: Sequence[SeedRun]
    """In their order; empty where a signal ended the last of them."""
    spread: Mapping[str, Mapping[str, Spread]]
    """"dev", "test" and so on -> measure -> its mean over all finished seeds, those that diverged among them."""


@dataclasses.dataclass(frozen=True)
class SearchResult(FinetuneResult):
    """A search. Model and measures are those of the best trial; `workdir` is the folder of all."""

    best_trial: int | None
    """None where no trial came to its end with a measure, or a signal ended the search."""
    values: Mapping[str, Any]
    """What the best trial was given, by field."""
