"""What labelled data is like, before anything is trained: counts, labels, lengths, and the first examples as the model reads them."""

import collections
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxbert.data.features import Feature, cut_of, examples_of, lengths_of
from jaxbert.finetune.examples import Examples, training_features
from jaxbert.tasks.task import BoundTask, Encoder, Task

_PERCENTILES = (50, 90, 99, 100)
_FIRST, _LONGEST = 3, 60
_ANY_LENGTH = 10**6


def describe(
    task: Task[Any, Any], bound: BoundTask[Any, Any], examples: Examples, encoder: Encoder, warnings: Sequence[str] = ()
) -> list[str]:
    """Lines of text: warnings; for each split its size, labels, and lengths in tokens with the share that is cut or read in windows."""
    lines = [f"warning: {warning}" for warning in (*examples.warnings, *warnings)]
    # What is cut, or read in windows, has a length of its own all the same.
    uncut = task.bind(examples.labels, examples.train, encoder._replace(max_length=_ANY_LENGTH))
    for name, split in (("train", examples.train), ("dev", examples.dev), ("test", examples.test)):
        if split:
            lengths = lengths_of(training_features(uncut, split))
            lines += _split(name, task, split, training_features(bound, split), lengths, encoder, not bound.together)
    lines.append("the first examples, as the model reads them:")
    first = bound.features(list(itertools.islice(examples.train, _FIRST)))
    for _, group in itertools.groupby(first, key=lambda feature: feature.example):
        some = list(group)
        for feature in some if bound.together else some[:1]:
            lines += [f"  {line}" for line in _as_read(feature, encoder)]
        if len(some) > 1 and not bound.together:
            lines.append(f"    and {len(some) - 1} more windows")
    return lines


def _split(
    name: str,
    task: Task[Any, Any],
    split: Collection[Any],
    features: Sequence[Feature],
    lengths: Int[np.ndarray, " n"],
    encoder: Encoder,
    windows: bool,
) -> list[str]:
    sequences = np.unique(examples_of(features), return_counts=True)[1]
    shortened = {
        f"are cut to data.max_length ({encoder.max_length})": len(np.unique(examples_of(features)[cut_of(features)]))
    }
    if windows:
        shortened[f"are read in windows of {encoder.max_length}"] = int((sequences > 1).sum())
    shares = ", ".join(f"{count:,} examples ({count / len(split):.1%}) {what}" for what, count in shortened.items())
    found = ", ".join(f"{p} % up to {np.percentile(lengths, p, method='higher'):.0f}" for p in _PERCENTILES)
    lines = [
        f"{name}: {len(split):,} examples in {len(features):,} sequences; {lengths.sum():,} tokens before data.max_length cuts any",
        f"  lengths: {found}; {shares}",
    ]
    if without := task.unanswered(split):
        lines.append(f"  {without:,} ({without / len(split):.1%}) without an answer")
    counts = collections.Counter(label for example in split for label in task.labels_of(example))
    total = sum(counts.values())
    lines += [f"  {label}: {count:,} ({count / total:.1%})" for label, count in counts.most_common()]
    return lines


def _as_read(feature: Feature, encoder: Encoder) -> list[str]:
    tokens = [encoder.tokenizer.id_to_token(i) or "?" for i in feature.input_ids]
    shown = " ".join(tokens[:_LONGEST]) + (" ..." if len(tokens) > _LONGEST else "")
    targets = {**feature.values, **feature.positions}
    of_tokens = {name: list(numbers[:_LONGEST]) for name, numbers in feature.tokens.items()}
    return [shown, *(f"  {name}: {value}" for name, value in {**targets, **of_tokens}.items())]
