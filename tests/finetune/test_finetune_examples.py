"""What a run reads: train, dev and test, their labels, and what is odd about them."""

import collections
import dataclasses
import io
import json
import os
import pathlib
import sys
import threading
import tracemalloc

import pytest
from made_runs import write_table

from jaxbert.config import ModelConfig, VocabularyConfig
from jaxbert.data.records import ExamplesError
from jaxbert.finetune import builtin
from jaxbert.finetune.check import describe
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    SimilarityConfig,
    SpanConfig,
    TaggingConfig,
    TaskConfig,
)
from jaxbert.finetune.examples import Examples, over_tables, read_all, training_features
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import Encoder
from jaxbert.text.wordpiece import train_tokenizer

TRAIN = [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")]
DEV = [("five", "a"), ("six", "b")]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    tokenizer = train_tokenizer(["one two three 0123456789"] * 5, VocabularyConfig(size=160, min_frequency=1))
    return Encoder(ModelConfig(vocab_size=tokenizer.get_vocab_size()), "bert", tokenizer, 64)


def read(folder: pathlib.Path, train=TRAIN, dev=DEV, task: ClassificationConfig | None = None, **settings) -> Examples:
    """Read tables of these rows."""
    settings = {"dev": (write_table(folder / "dev.tsv", dev),)} | settings if dev else settings
    config = ExamplesConfig(train=(write_table(folder / "train.tsv", train),), **settings)
    return read_all(make_task(task or ClassificationConfig()), config)


def test_clean_files_have_no_warnings(tmp_path: pathlib.Path):
    examples = read(tmp_path)
    assert [example.text for example in examples.train] == ["one", "two", "three", "four"]
    assert [example.text for example in examples.dev] == ["five", "six"]
    assert examples.labels == ("a", "b")
    assert examples.warnings == ()
    assert examples.test == []


def test_what_is_odd_is_said_in_one_line_each(tmp_path: pathlib.Path):
    dev = [("one", "a"), ("six", "c"), ("two", "d"), ("seven", "a")]
    path = tmp_path / "train.tsv"
    write_table(path, TRAIN)
    path.write_text(path.read_text() + "five\n\tb\n")
    config = ExamplesConfig((str(path),), (write_table(tmp_path / "dev.tsv", dev),), bad_rows="skip")
    task = make_task(ClassificationConfig(labels=tuple("abcde")))
    skipped, only_dev, unlearnt, again = read_all(task, config).warnings
    assert skipped == (
        f"2 rows are left out: {path}:6: has 1 columns where there should be 2 (text, label); {path}:7: text is empty"
    )
    assert only_dev == "labels that dev has and train has not, so that they cannot be learnt: c, d"
    assert unlearnt == "labels without an example in train: e"
    assert again == "2 of 4 texts in dev are in train too: what is measured on them is no test"


def test_a_listed_type_without_an_entity_is_said(tmp_path: pathlib.Path):
    """Its labels are tags, and what is listed are their types."""
    (tmp_path / "a.conll").write_text("ada\tB-PER\nleft\tO\n\neve\tB-PER\n", encoding="utf8")
    config = ExamplesConfig((str(tmp_path / "a.conll"),), (str(tmp_path / "a.conll"),))
    examples = read_all(make_task(TaggingConfig(labels=("PER", "LOC"))), config)
    assert examples.labels == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert "labels without an example in train: LOC" in examples.warnings


def test_a_row_of_a_program_may_lack_a_column_that_others_have():
    rows = [{"text": "one", "label": "a"}, {"text": "two"}, {"text": "three", "label": "b"}]
    tables = {"train": rows, "dev": rows}
    config = over_tables(ExamplesConfig(bad_rows="skip"), tables)
    examples = read_all(make_task(ClassificationConfig()), config, tables)
    assert [one.text for one in examples.train] == ["one", "three"]
    with pytest.raises(ExamplesError, match=r"^train:2: has no 'label' \(--data.bad-rows skip"):
        read_all(make_task(ClassificationConfig()), dataclasses.replace(config, bad_rows="stop"), tables)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_first_record_without_the_column_is_skipped_where_others_have_it(tmp_path: pathlib.Path, streaming: bool):
    path = tmp_path / "train.jsonl"
    rows = [{"txt": "zero", "label": "a"}, {"text": "one", "label": "a"}, {"label": "b"}, {"text": "two", "label": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    config = ExamplesConfig((str(path),), (str(path),), bad_rows="skip", streaming=streaming)
    task = make_task(ClassificationConfig())
    examples = read_all(task, config)
    assert [one.text for one in examples.train] == ["one", "two"]
    assert [warning for warning in examples.warnings if "left out" in warning] == [
        f"4 rows are left out: {path}:3: has no 'text'; {path}:1: has no 'text'; {path}:3: has no 'text'"
    ]
    with pytest.raises(
        ExamplesError, match=r"train.jsonl:1: has no column 'text': set task.text to one of 'txt', 'label'"
    ):
        read_all(task, dataclasses.replace(config, bad_rows="stop"))
    # Where no record has it, the name is wrong and not the rows.
    with pytest.raises(ExamplesError, match=r"train.jsonl:1: has no column 'sentence': set task.text to one of"):
        read_all(make_task(ClassificationConfig(text="sentence")), config)


def test_the_built_in_set_is_fair(monkeypatch: pytest.MonkeyPatch):
    """A document is one row, of a package that it does not name, and no package has more than its share of rows."""
    documents = [(f"builtin:numpy.f{n}", f"NumPy adds {n} to jnp arrays.") for n in range(1000)]
    documents += [("builtin:json.dumps", "word " * 100), ("builtin:jax.numpy.add", "As jax.numpy does.")]
    monkeypatch.setattr(builtin, "builtin_documents", lambda: iter(documents))
    rows = [record.values for record in builtin.builtin_records()]
    counts = collections.Counter(row["label"] for row in rows)
    assert counts == {"numpy": 900, "python": 1, "jax": 1}
    assert len({row["text"] for row in rows}) == len(rows)
    assert {row["text"] for row in rows if row["label"] != "numpy"} == {" ".join(["word"] * 60), "As it.it does."}
    assert all(
        row["text"].startswith("it adds ") and row["text"].endswith(" to it arrays.")
        for row in rows
        if row["label"] == "numpy"
    )
    # The order is no package's own.
    assert [row["label"] for row in rows].index("jax") < 901
    monkeypatch.setattr(builtin, "builtin_documents", lambda: reversed(documents))
    assert [record.values for record in builtin.builtin_records()] == rows


def test_a_bad_row_stops_where_rows_are_not_to_be_skipped(tmp_path: pathlib.Path):
    with pytest.raises(ExamplesError, match=r"train.tsv:3: label is ' ', and no class \(--data.bad-rows skip"):
        read(tmp_path, train=[("one", "a"), ("two", " ")])


def test_a_label_that_only_test_has_is_named_with_its_row(tmp_path: pathlib.Path):
    """Those of train and dev are the task's, and a test set may come later."""
    path = write_table(tmp_path / "test.tsv", [("seven", "a"), ("eight", "c"), ("nine", "b")])
    with pytest.raises(ExamplesError, match=r"test.tsv:3: label 'c' is none of the task's \(a, b\), which are"):
        read(tmp_path, test=(path,))
    examples = read(tmp_path, test=(path,), bad_rows="skip")
    assert [example.text for example in examples.test] == ["seven", "nine"]
    assert examples.warnings[0].startswith("1 rows are left out")
    assert len(read(tmp_path, test=(path,), task=ClassificationConfig(labels=("a", "b", "c"))).test) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_odd_examples_are_counted(tmp_path: pathlib.Path, streaming: bool):
    """In train, dev and test together: an entity within a word is one that no tags can say."""
    good, odd = '{"text": "Ada saw", "entities": [[0, 3, "X"]]}\n', '{"text": "Ada saw", "entities": [[0, 2, "X"]]}\n'
    for name, rows in (("train", good + odd + odd), ("dev", good), ("test", odd)):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    train, dev, test = ((str(tmp_path / f"{name}.jsonl"),) for name in ("train", "dev", "test"))
    found = read_all(make_task(TaggingConfig()), ExamplesConfig(train, dev, test, streaming=streaming))
    assert [warning for warning in found.warnings if "whole words" in warning] == [
        "3 examples have an entity that is no run of whole words, or overlaps another one: it counts as right, and cannot "
        "be found"
    ]


def test_many_labels_are_not_all_listed(tmp_path: pathlib.Path):
    (warning,) = read(tmp_path, dev=[(f"text {n}", f"x{n}") for n in range(8)]).warnings
    assert warning.endswith(": x0, x1, x2, x3, x4 and 3 more")


def test_dev_is_held_out_by_content_where_there_is_none(tmp_path: pathlib.Path):
    rows = [(f"text {n % 200}", "ab"[n % 2]) for n in range(400)]
    one = read(tmp_path, train=rows, dev=[], dev_share=0.3)
    sides = [{example.text for example in side} for side in (one.train, one.dev)]
    # Equal texts are on the same side.
    assert not sides[0] & sides[1]
    assert one.warnings == ()
    # 200 texts: 30 % of them, and 4 standard deviations.
    assert abs(len(sides[1]) - 60) < 4 * (200 * 0.3 * 0.7) ** 0.5
    other = read(tmp_path, train=rows[::-1], dev=[], dev_share=0.3)
    assert {example.text for example in other.dev} == sides[1]


def test_another_dev_is_another_run(tmp_path: pathlib.Path):
    prints = {read(tmp_path, dev=dev).fingerprint for dev in ([("five", "a")], [("five", "b")], [("six", "a")])}
    assert len(prints) == 3


def test_only_the_first_examples(tmp_path: pathlib.Path):
    assert [example.text for example in read(tmp_path, max_train_examples=3).train] == ["one", "two", "three"]
    assert len(read(tmp_path, max_train_examples=100).train) == 4


def test_nothing_to_train_or_evaluate_on(tmp_path: pathlib.Path):
    with pytest.raises(ExamplesError, match=r"^data.train has no example: check its files$"):
        read(tmp_path, dev=[], dev_share=1.0)
    with pytest.raises(ExamplesError, match=r"data.dev_share \(1e-09\) takes none of the few examples of data.train"):
        read(tmp_path, dev=[], dev_share=1e-9)
    with pytest.raises(
        ExamplesError, match=r"^data.dev has no example, and 1 rows are left out \(.*dev.tsv:2: label is ' '"
    ):
        read(tmp_path, dev=[("five", " ")], bad_rows="skip")


CHANGED = [
    [("one", "a"), ("two", "b"), ("three", "a"), ("four", "a")],
    [("one", "a"), ("two", "b"), ("three", "a"), ("fours", "b")],
    [("two", "b"), ("one", "a"), ("three", "a"), ("four", "b")],
    TRAIN[:3],
    [*TRAIN, ("five", "b")],
]


@pytest.mark.parametrize("rows", CHANGED)
def test_the_fingerprint_is_that_of_texts_labels_and_order(tmp_path: pathlib.Path, rows: list[tuple[str, str]]):
    assert read(tmp_path).fingerprint == read(tmp_path).fingerprint
    assert read(tmp_path, train=rows).fingerprint != read(tmp_path).fingerprint


def test_the_fingerprint_sees_numbers_too(tmp_path: pathlib.Path):
    task, dev = ClassificationConfig(target="regression"), [("five", "3")]
    was, now = (read(tmp_path, [("one", number), ("two", "2")], dev, task).fingerprint for number in ("1", "1.5"))
    assert was != now


def test_the_labels_are_those_of_the_training_rows(tmp_path: pathlib.Path):
    """As task.labels says: a test set that is given later must not change the head."""
    assert read(tmp_path, test=(write_table(tmp_path / "test.tsv", [("x", "c")]),), bad_rows="skip").labels == (
        "a",
        "b",
    )


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("most", [None, 30])
def test_a_stream_has_the_examples_that_memory_has(tmp_path: pathlib.Path, held_out: bool, most: int | None):
    rows = [(f"text {n} is {'ab'[n % 2]}", "ab"[n % 2]) for n in range(60)]
    settings = {"train": [*rows, ("\t", "a"), rows[3]], "dev": [] if held_out else [*DEV, rows[0]]}
    settings |= {"max_train_examples": most, "bad_rows": "skip", "dev_share": 0.3}
    kept, streamed = (read(tmp_path, streaming=streaming, **settings) for streaming in (False, True))
    assert isinstance(kept.train, list)
    assert not isinstance(streamed.train, list)
    # It can be gone through again and again.
    for _ in range(2):
        assert list(streamed.train) == kept.train
    assert len(streamed.train) == len(kept.train) == (most or len(kept.train))
    assert (streamed.dev, streamed.labels, streamed.fingerprint) == (kept.dev, kept.labels, kept.fingerprint)
    assert streamed.warnings == kept.warnings
    assert any("rows are left out" in warning for warning in kept.warnings)


def test_a_file_that_changes_under_a_stream_is_an_error(tmp_path: pathlib.Path):
    examples = read(tmp_path, streaming=True)
    write_table(tmp_path / "train.tsv", TRAIN[:3])
    with pytest.raises(ExamplesError, match="had 4 examples, and 3 when it was read again"):
        list(examples.train)


def test_what_is_read_of_a_stream_is_what_is_read_of_memory(tmp_path: pathlib.Path, encoder: Encoder):
    rows = [(f"one two three {n}", "ab"[n % 2]) for n in range(2500)]
    task = make_task(ClassificationConfig(class_weights="balanced"))
    found = []
    for streaming in (False, True):
        examples = read(tmp_path, train=rows, streaming=streaming)
        bound = task.bind(examples.labels, examples.train, encoder)
        found.append(training_features(bound, examples.train, tmp_path))
    for kept, streamed in zip(*found, strict=True):
        assert (kept.example, kept.values) == (streamed.example, streamed.values)
        assert kept.input_ids == streamed.input_ids.tolist()


def test_the_memory_of_a_stream_does_not_grow(tmp_path: pathlib.Path, encoder: Encoder):
    def peak(rows: int) -> int:
        train = [(f"one two three {n}", "ab"[n % 2]) for n in range(rows)]
        path = write_table(tmp_path / "train.tsv", train)
        del train
        config = ExamplesConfig((path,), (write_table(tmp_path / "dev.tsv", DEV),), streaming=True)
        task = make_task(ClassificationConfig())
        tracemalloc.start()
        examples = read_all(task, config)
        features = training_features(task.bind(examples.labels, examples.train, encoder), examples.train, tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(features) == rows
        return found

    few = peak(2000)
    # In memory, five times as many rows take four times as much.
    assert peak(10000) < 1.3 * few


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_program(tmp_path: pathlib.Path, streaming: bool):
    task = make_task(ClassificationConfig())
    tables = {
        name: [{"text": text, "label": label} for text, label in rows]
        for name, rows in (("train", TRAIN), ("dev", DEV))
    }
    config = over_tables(ExamplesConfig(streaming=streaming), tables)
    found, files = read_all(task, config, tables), read(tmp_path)
    assert list(found.train) == files.train
    assert (found.dev, found.labels, found.fingerprint) == (files.dev, files.labels, files.fingerprint)
    with pytest.raises(ExamplesError, match=r"^train:2: text is empty"):
        read_all(task, config, tables | {"train": [tables["train"][0], {"text": "", "label": "a"}]})
    # As from the config.json of such a run.
    with pytest.raises(
        ExamplesError, match=r"data.train is memory, the rows of a program: call finetune\(config, tables\)"
    ):
        read_all(task, config)
    with pytest.raises(ExamplesError, match="tables has 'validation': there are train, dev and test"):
        over_tables(config, {"validation": []})


def test_a_pipe_and_standard_input(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    files, task = read(tmp_path), make_task(ClassificationConfig())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    table = (tmp_path / "train.tsv").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(table,))
    writer.start()
    config = ExamplesConfig((str(pipe),), (str(tmp_path / "dev.tsv"),), format="tsv")
    assert read_all(task, config).fingerprint == files.fingerprint
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(table)))
    assert read_all(task, dataclasses.replace(config, train=("-",))).fingerprint == files.fingerprint
    with pytest.raises(ExamplesError, match="its form is not known by its suffix"):
        read_all(task, dataclasses.replace(config, train=("-",), format="auto"))


def test_the_share_that_is_cut_is_said(tmp_path: pathlib.Path, encoder: Encoder):
    """A text that fits to the token is not cut."""
    short = encoder._replace(max_length=5)
    rows = [("one two three", "a"), ("one two three one", "b"), ("one", "a"), ("two one two three", "b")]
    for streaming in (False, True):
        examples = read(tmp_path, train=rows, streaming=streaming)
        task = make_task(ClassificationConfig())
        bound = task.bind(examples.labels, examples.train, short)
        lines = describe(task, bound, examples, short)
        found = next(line for line in lines if "are cut" in line)
        assert "2 examples (50.0%) are cut to data.max_length (5)" in found
        # Lengths are those of the texts, with [CLS] and [SEP], whatever is read of them.
        assert found.startswith("  lengths: 50 % up to 6, 90 % up to 6, 99 % up to 6, 100 % up to 6;")
        assert lines[0] == "train: 4 examples in 4 sequences; 20 tokens before data.max_length cuts any"
        assert lines[2:4] == ["  a: 2 (50.0%)", "  b: 2 (50.0%)"]


def described(task: TaskConfig, path: pathlib.Path, encoder: Encoder) -> list[str]:
    """What is said of the training file, which dev is too."""
    made = make_task(task)
    examples = read_all(made, ExamplesConfig((str(path),), (str(path),)))
    bound = made.bind(examples.labels, examples.train, encoder)
    return describe(made, bound, dataclasses.replace(examples, dev=[]), encoder)


def test_lengths_of_what_is_read_in_windows_are_its_own(tmp_path: pathlib.Path, encoder: Encoder):
    short, path = encoder._replace(max_length=10), tmp_path / "train.conll"
    path.write_text("one\tB-A\n" + "two\tO\n" * 11 + "\nthree\tO\n")
    lines = described(TaggingConfig(), path, short)
    at = next(n for n, line in enumerate(lines) if line.startswith("train: 2 examples in "))
    assert int(lines[at].split(" in ")[1].split()[0]) > 2
    assert lines[at].endswith(" sequences; 17 tokens before data.max_length cuts any")
    assert lines[at + 1] == (
        "  lengths: 50 % up to 14, 90 % up to 14, 99 % up to 14, 100 % up to 14; "
        "0 examples (0.0%) are cut to data.max_length (10), 1 examples (50.0%) are read in windows of 10"
    )
    assert any("more windows" in line for line in lines)

    context = "one two " * 6
    asked = [{"id": f"{n}", "question": "three", "answers": [{"text": "one", "answer_start": 0}]} for n in range(2)]
    paragraphs = [{"context": context, "qas": asked[:1]}, {"context": "one two", "qas": asked[1:]}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    lines = described(SpanConfig(stride=2), path, short)
    at = next(n for n, line in enumerate(lines) if line.startswith("train: 2 examples in "))
    # [CLS] three [SEP] and twelve words or two, and [SEP].
    assert lines[at + 1].startswith("  lengths: 50 % up to 16, 90 % up to 16, 99 % up to 16, 100 % up to 16; ")
    assert lines[at + 1].endswith("1 examples (50.0%) are read in windows of 10")


def test_rows_that_cannot_be_measured_are_bad_rows_of_dev(tmp_path: pathlib.Path):
    path = tmp_path / "dev.jsonl"
    rows = [{"anchor": "a", "positive": "b", "score": 1.0}, {"anchor": "c", "positive": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    config = ExamplesConfig((str(path),), (str(path),), bad_rows="skip")
    task = make_task(SimilarityConfig(score="score"))
    examples = read_all(task, config)
    assert (len(examples.train), len(examples.dev)) == (2, 1)
    assert f"1 rows are left out: {path}:2: has no 'score'" in examples.warnings
    with pytest.raises(ExamplesError, match=r"dev.jsonl:2: has no 'score' \(--data.bad-rows skip"):
        read_all(task, dataclasses.replace(config, bad_rows="stop"))


def test_each_file_has_columns_of_its_own(tmp_path: pathlib.Path):
    """Of two files of one glob, the second of which has none of what is asked for."""
    for name, column in (("a", "text"), ("b", "sentence")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{column}": "{name}", "label": "x"}}\n' * 2, encoding="utf8")
    dev = write_table(tmp_path / "dev.tsv", DEV)
    with pytest.raises(
        ExamplesError, match=r"b.jsonl:1: has no column 'text': set task.text to one of 'sentence', 'label'"
    ):
        read_all(
            make_task(ClassificationConfig()), ExamplesConfig((str(tmp_path / "?.jsonl"),), (dev,), bad_rows="skip")
        )


def test_a_later_row_that_is_bad_for_another_reason_has_the_column(tmp_path: pathlib.Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"text": "", "label": "y"}\n', encoding="utf8")
    dev = write_table(tmp_path / "dev.tsv", DEV)
    with pytest.raises(
        ExamplesError, match=r"^data.train has no example, and 2 rows are left out \(.*a.jsonl:2: text is empty"
    ):
        read_all(make_task(ClassificationConfig()), ExamplesConfig((str(path),), (dev,), bad_rows="skip"))


def test_texts_of_train_in_test_are_warned_about(tmp_path: pathlib.Path):
    examples = read(tmp_path, test=(write_table(tmp_path / "test.tsv", [("one", "a"), ("nine", "b")]),))
    assert examples.warnings == ("1 of 2 texts in test are in train too: what is measured on them is no test",)
