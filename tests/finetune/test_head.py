"""Which head a run starts with: whose is kept, in what order, and what is said of one that cannot serve."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from made_runs import LABELS

from jaxbert.config import ModelConfig
from jaxbert.finetune.config import (
    ChoiceConfig,
    ClassificationConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    RelationConfig,
    SimilarityConfig,
    SpanConfig,
    TaggingConfig,
    TaskConfig,
)
from jaxbert.finetune.head import find_head
from jaxbert.finetune.source import Source
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import BoundTask, Encoder
from jaxbert.text.wordpiece import SPECIAL, bert_tokenizer
from jaxbert.weights.names import Family

WIDTH = 8
TOKENIZER = bert_tokenizer({piece: n for n, piece in enumerate([*SPECIAL, *"abcdefghij@#[]e12"])}, True)
MODEL = ModelConfig(
    vocab_size=TOKENIZER.get_vocab_size(), hidden_size=WIDTH, num_layers=1, num_heads=2, intermediate_size=8, max_position_embeddings=64
)  # fmt: skip
SINGLE = {"problem_type": "single_label_classification"}


def bound(settings: TaskConfig, labels: tuple[str, ...], family: Family = "bert") -> BoundTask[Any, Any]:
    return make_task(settings).bind(labels, [], Encoder(MODEL, family, TOKENIZER, 64))


def dense(outputs: int, inputs: int = WIDTH) -> dict[str, np.ndarray]:
    """A layer whose every output has its number in all of its parameters."""
    bias = np.arange(outputs, dtype=np.float32)
    return {"kernel": np.tile(bias, (inputs, 1)), "bias": bias}


def source(
    heads: Mapping[str, Any], labels: tuple[str, ...], extra: Mapping[str, Any] | None = None, **changes: Any
) -> Source:
    params = {"encoder": {}, "pooler": {}}
    found = Source("m", MODEL, "bert", TOKENIZER, pathlib.Path(), params, extra or {}, {}, 0, heads, labels)
    return dataclasses.replace(found, **changes)


def head(task: BoundTask[Any, Any], one: Source, **train: Any):
    return find_head(FinetuneConfig(name="a", workdir="a", train=FinetuneTrainConfig(**train)), one, task)


@pytest.mark.parametrize(
    ("settings", "labels", "group", "theirs", "inputs"),
    [
        (ClassificationConfig(), LABELS, "sequence", (LABELS[1], LABELS[2], LABELS[0]), WIDTH),
        (TaggingConfig(), ("O", "B-A", "I-A"), "token", ("I-A", "O", "B-A"), WIDTH),
        (RelationConfig(), ("Other", "R(e1,e2)", "R(e2,e1)"), "relation", ("R(e2,e1)", "Other", "R(e1,e2)"), 2 * WIDTH),
    ],
)
def test_outputs_come_in_the_order_of_the_tasks_labels(settings, labels, group, theirs, inputs):
    found = head(bound(settings, labels), source({group: {"dense": dense(3, inputs)}}, theirs))
    assert found.why_new == ""
    expected = [theirs.index(label) for label in labels]
    np.testing.assert_array_equal(found.params[group]["dense"]["bias"], expected)
    np.testing.assert_array_equal(found.params[group]["dense"]["kernel"], np.tile(expected, (inputs, 1)))


def test_a_hidden_layer_stays_as_it_is():
    hidden = dense(WIDTH)
    one = source({"sequence": {"hidden": hidden, "dense": dense(3)}}, LABELS[::-1], family="roberta")
    found = head(bound(ClassificationConfig(), LABELS, "roberta"), one)
    assert found.params["sequence"]["hidden"] is hidden
    np.testing.assert_array_equal(found.params["sequence"]["dense"]["bias"], [2, 1, 0])


@pytest.mark.parametrize(
    ("settings", "labels", "group", "outputs", "theirs"),
    [
        # What transformers wrote may have any names for these.
        (SpanConfig(), ("LABEL_0", "LABEL_1"), "span", 2, ("NEGATIVE", "POSITIVE")),
        (ChoiceConfig(), ("0", "1", "2"), "choice", 1, ("LABEL_0", "LABEL_1")),
        (ClassificationConfig(target="regression"), ("number",), "sequence", 1, ("LABEL_0",)),
    ],
)
def test_names_say_nothing_of_spans_choices_and_numbers(settings, labels, group, outputs, theirs):
    one = source({group: {"dense": dense(outputs)}}, theirs)
    found = head(bound(settings, labels), one)
    assert found.why_new == ""
    np.testing.assert_array_equal(found.params[group]["dense"]["bias"], np.arange(outputs))


CLASSES = (ClassificationConfig(), LABELS)


@pytest.mark.parametrize(
    ("task", "theirs", "changes", "train", "why"),
    [
        (CLASSES, ("bad", "fine", "best"), {}, {}, "its labels are not the task's (it has best; the task has good)"),
        (
            CLASSES,
            ("bad", "fine", "good", "good"),
            {},
            {},
            "its labels are not the task's (one of them is there twice)",
        ),
        (
            CLASSES,
            ("LABEL_0", "LABEL_1", "LABEL_2"),
            {},
            {},
            "its labels have no names: where they are the task's, name",
        ),
        (CLASSES, LABELS, {}, {"reinit_head": True}, "train.reinit_head asks for it"),
        (CLASSES, LABELS, {}, {"reinit_layers": 1}, "train.reinit_layers has blocks under it start anew"),
        (CLASSES, LABELS, {"params": {"encoder": {}}}, {}, "it came without the pooler under it"),
        (
            (ClassificationConfig(target="multi-label"), LABELS),
            LABELS,
            {"extra": SINGLE},
            {},
            "it is of a single label classification, and the task is a multi label classification",
        ),
        (
            (ClassificationConfig(target="regression"), ("number",)),
            LABELS,
            {},
            {},
            "it has other sizes than the task's",
        ),
    ],
)
def test_what_cannot_serve_and_why(task, theirs, changes, train, why):
    one = source({"sequence": {"dense": dense(len(theirs))}}, theirs, **changes)
    found = head(bound(*task), one, **train)
    assert found.params == {}
    assert found.why_new.startswith(why)


@pytest.mark.parametrize(
    ("task", "heads", "changes"),
    [
        (CLASSES, {}, {}),
        (CLASSES, {"token": {"dense": dense(3)}}, {}),
        ((SimilarityConfig(), ()), {"sequence": {"dense": dense(3)}}, {}),
        # The one that starts without its pretraining.
        (CLASSES, {"sequence": {"dense": dense(3)}}, {"params": None}),
    ],
)
def test_nothing_is_said_where_there_is_no_head_of_the_task(task, heads, changes):
    assert head(bound(*task), source(heads, LABELS, **changes)) == ({}, "")
