"""Fine-tuned models that transformers wrote: what the Predictor says of texts is what torch computes."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import torch
import transformers
from made_predictors import SENTENCES, write_model

from jaxbert.predict.predictor import Predictor
from jaxbert.predict.stream import PredictOptions, predict
from jaxbert.predict.texts import PredictError
from jaxbert.weights.load import load

CLASSES = {"id2label": {0: "bad", 1: "good", 2: "so so"}}
TEXTS = [*SENTENCES[:40], " ".join(SENTENCES[:12])]


def predictor(folder: pathlib.Path, **options) -> Predictor:
    return load(folder).predictor(**options)


@pytest.mark.filterwarnings("ignore:.*were cut")
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_classes_of_texts_and_pairs_are_torchs(tmp_path: pathlib.Path, family: str):
    architecture = {"bert": "BertForSequenceClassification", "roberta": "RobertaForSequenceClassification"}[family]
    folder = write_model(tmp_path, family, architecture, **CLASSES)
    pipeline = transformers.pipeline("text-classification", str(folder), top_k=None)
    ours = predictor(folder, task="classify")
    pairs = list(zip(SENTENCES[:9], SENTENCES[9:18], strict=True))
    for texts, theirs in (
        (TEXTS, pipeline(TEXTS, truncation=True)),
        (pairs, pipeline([{"text": a, "text_pair": b} for a, b in pairs], truncation=True)),
    ):
        for one, expected in zip(ours.classify(texts), theirs, strict=True):
            scores = {answer["label"]: answer["score"] for answer in expected}
            assert one["scores"] == pytest.approx(scores, abs=1e-5)
            assert one["label"] == max(scores, key=lambda label: scores[label])
            assert one["score"] == one["scores"][one["label"]]
    assert ours.classify("a cat") == ours.classify(["a cat"])[0]
    assert ours.classify([]) == []


def test_several_classes_and_numbers(tmp_path: pathlib.Path):
    several = write_model(
        tmp_path / "several",
        "bert",
        "BertForSequenceClassification",
        problem_type="multi_label_classification",
        **CLASSES,
    )
    theirs = transformers.pipeline("text-classification", str(several), top_k=None)(["a big dog"])[0]
    one = predictor(several).classify("a big dog")
    assert one["scores"] == pytest.approx({answer["label"]: answer["score"] for answer in theirs}, abs=1e-5)
    assert one["labels"] == [label for label, score in one["scores"].items() if score >= 0.5]
    number = write_model(tmp_path / "number", "bert", "BertForSequenceClassification", num_labels=1)
    model = transformers.BertForSequenceClassification.from_pretrained(number).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(number)("a big dog", return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**inputs).logits[0, 0])
    assert predictor(number).classify("a big dog") == {"number": pytest.approx(expected, abs=1e-5)}


def test_words_have_the_tag_of_their_first_piece(tmp_path: pathlib.Path):
    folder = write_model(
        tmp_path,
        "bert",
        "BertForTokenClassification",
        id2label=dict(enumerate("NVDX")),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    text = "the catalogue runs 机器 é́ 🙂 there."
    inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        scores = torch.softmax(model(**inputs).logits[0], -1).numpy()
    found = predictor(folder, task="tag").tag(text)
    assert [one["word"] for one in found][:5] == ["the", "catalogue", "runs", "机", "器"]
    for one in found:
        assert text[one["start"] : one["end"]] == one["word"]
        place = next(n for n, (start, end) in enumerate(offsets) if start <= one["start"] < end)
        assert one["entity_group"] == "NVDX"[scores[place].argmax()]
        assert one["score"] == pytest.approx(scores[place].max(), abs=1e-5)


def test_entities_are_the_best_legal_tags(tmp_path: pathlib.Path):
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    folder = write_model(tmp_path, "bert", "BertForTokenClassification", id2label=dict(enumerate(names)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    text = "the cat sat"
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1]
    scores = torch.log_softmax(logits, -1).numpy()
    assert len(scores) == 3

    def legal(path: tuple[str, ...]) -> bool:
        steps = zip(("O", *path), path, strict=False)
        return all(not after.startswith("I-") or before[2:] == after[2:] for before, after in steps)

    paths = [path for path in itertools.product(names, repeat=3) if legal(path)]
    best = max(paths, key=lambda path: sum(scores[n, names.index(tag)] for n, tag in enumerate(path)))
    found = predictor(folder, task="tag").tag(text)
    covered = [text[one["start"] : one["end"]].split() for one in found]
    assert sum(map(len, covered)) == sum(tag != "O" for tag in best)
    assert [one["entity_group"] for one in found] == [tag[2:] for tag in best if tag.startswith("B-")]


@pytest.mark.parametrize("names", [("O", "I-PER"), ("I-PER", "O")])
def test_a_tagger_in_iob1(tmp_path: pathlib.Path, names: tuple[str, ...]):
    """Its entities begin with I-; without O there is nothing that the other words could be."""
    write_model(tmp_path / "a", "bert", "BertForTokenClassification", id2label=dict(enumerate(names)))
    tagger = predictor(tmp_path / "a", task="tag")
    assert tagger.labels == names
    found = [one for text in SENTENCES[:20] for one in tagger.tag(text)]
    assert found
    assert {one["entity_group"] for one in found} == {"PER"}
    assert all(0.5 < one["score"] <= 1 for one in found)
    write_model(tmp_path / "b", "bert", "BertForTokenClassification", id2label=dict(enumerate(["I-LOC", "I-PER"])))
    with pytest.raises(PredictError, match=r"its labels are entities' \(I-LOC, ...\) and none is O"):
        predictor(tmp_path / "b", task="tag").tag("a cat")


def test_labels_are_those_of_classifiers(tmp_path: pathlib.Path):
    assert predictor(write_model(tmp_path, "bert", "BertForMaskedLM")).labels == ()


def test_answers_are_the_best_spans_over_all_windows(tmp_path: pathlib.Path):
    folder = write_model(tmp_path, "bert", "BertForQuestionAnswering")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    question, context = "where sat the cat", " ".join(SENTENCES[:30])
    # A model that reads 96 tokens: as the Predictor cuts them.
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=96,
        stride=22,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best = None
    assert len(windows["input_ids"]) > 2
    for n, ids in enumerate(windows["input_ids"]):
        types = torch.tensor([windows["token_type_ids"][n]])
        with torch.no_grad():
            output = model(torch.tensor([ids]), token_type_ids=types)
        start, end = output.start_logits[0].numpy(), output.end_logits[0].numpy()
        inside = [i for i, part in enumerate(windows.sequence_ids(n)) if part == 1]
        for i, j in itertools.product(inside, inside):
            if i <= j < i + 30 and (best is None or start[i] + end[j] > best[0]):
                best = start[i] + end[j], windows["offset_mapping"][n][i][0], windows["offset_mapping"][n][j][1]
    assert best is not None
    ours = predictor(folder, task="answer")
    [found] = ours.answer(question, context)
    assert (found["start"], found["end"]) == best[1:]
    assert found["answer"] == context[best[1] : best[2]]
    several = ours.answer(question, context, top_k=4)
    assert several[0] == found
    assert [one["score"] for one in several] == sorted((one["score"] for one in several), reverse=True)
    assert len(several) == 4


def test_what_cannot_be_served(tmp_path: pathlib.Path):
    tagger = predictor(write_model(tmp_path / "tagger", "bert", "BertForTokenClassification"))
    answerer = predictor(write_model(tmp_path / "answerer", "bert", "BertForQuestionAnswering"))
    faults = [
        (lambda: tagger.classify("a"), "classify needs the head 'sequence', and its heads are: token"),
        (lambda: tagger.tag([3]), "text 0 is of the type int"),  # pyright: ignore[reportArgumentType]
        (lambda: tagger.relate("a"), "relate needs the head 'relation'"),
        (lambda: answerer.answer("a", ["b"]), "takes a question and a context, or two lists of the same length"),  # pyright: ignore
        (lambda: answerer.answer("a", "b", top_k=0), "top_k 0: at least 1"),
    ]
    for call, text in faults:
        with pytest.raises(PredictError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert tagger.tag("") == []
    assert answerer.answer([], []) == []


def test_the_command(tmp_path: pathlib.Path):
    folder = write_model(tmp_path / "model", "bert", "BertForSequenceClassification", **CLASSES)
    (tmp_path / "in").write_text("a cat\na cat\ta dog\na\tb\tc\n")
    out = tmp_path / "out"
    options = PredictOptions(str(folder), "classify", str(tmp_path / "in"), str(out), bad_lines="report")
    assert predict(options) == 3
    one, pair, bad = (json.loads(line) for line in out.read_text().splitlines())
    ours = predictor(folder)
    np.testing.assert_allclose(one["score"], ours.classify("a cat")["score"], atol=1e-6)
    np.testing.assert_allclose(pair["score"], ours.classify(("a cat", "a dog"))["score"], atol=1e-6)
    assert bad["error"] == "it has 2 tabs: put one between the two texts"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_choices_are_torchs(tmp_path: pathlib.Path, family: str):
    architecture = {"bert": "BertForMultipleChoice", "roberta": "RobertaForMultipleChoice"}[family]
    folder = write_model(tmp_path, family, architecture)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    contexts, choices = SENTENCES[:6], [SENTENCES[n : n + 2 + n % 3] for n in range(10, 16)]
    ours = predictor(folder, task="choose")
    for question in (None, "then"):
        found = ours.choose(contexts, choices, None if question is None else [question] * 6)
        for context, some, one in zip(contexts, choices, found, strict=True):
            seconds = some if question is None else [f"{question} {choice}" for choice in some]
            inputs = tokenizer([context] * len(some), seconds, return_tensors="pt", padding=True)
            with torch.no_grad():
                logits = model(**{name: values[None] for name, values in inputs.items()}).logits[0]
            np.testing.assert_allclose(one["scores"], torch.softmax(logits, -1), atol=1e-5)
            assert one["choice"] == int(logits.argmax())
            assert one["score"] == max(one["scores"])
    assert ours.choose("a cat", ["a dog", "it sees"]) == ours.choose(["a cat"], [["a dog", "it sees"]])[0]
    for wrong, text in (
        (lambda: ours.choose("a", ["b"]), "text 0 has fewer than two choices"),
        (lambda: ours.choose("a", "bc"), "takes a context and a list of choices"),
        (lambda: ours.choose(["a"], [["b", "c"], ["d", "e"]]), "two lists of the same length"),
        (lambda: ours.choose("a", ["b", 3]), "text 1 is of the type int"),  # pyright: ignore
    ):
        with pytest.raises(PredictError, match=text):
            wrong()
    (tmp_path / "in").write_text("a cat\ta dog\tit sees\na cat\ta dog\n")
    options = PredictOptions(str(folder), "choose", str(tmp_path / "in"), str(tmp_path / "out"), bad_lines="report")
    assert predict(options) == 2
    one, bad = (json.loads(line) for line in (tmp_path / "out").read_text().splitlines())
    assert one["choices"] == ["a dog", "it sees"]
    assert one["choice"] == ours.choose("a cat", ["a dog", "it sees"])["choice"]
    assert bad["error"] == "it has 1 tabs: put one between its texts"


@pytest.mark.parametrize("task", ["classify", "choose"])
def test_what_is_cut_is_said(tmp_path: pathlib.Path, task: str):
    architecture = {"classify": "BertForSequenceClassification", "choose": "BertForMultipleChoice"}[task]
    folder = write_model(tmp_path, "bert", architecture)
    ours, long = predictor(folder, task=task), "cat " * 500
    arguments = [["a cat", long]] if task == "classify" else [["a cat", long], [["sat", "ran"], ["sat", "ran"]]]
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than .* tokens and were cut$"):
        getattr(ours, task)(*arguments)
    assert ours.num_truncated == 1
    with pytest.raises(PredictError, match="reads no windows"):
        predictor(folder, task=task, long_texts="window")


def test_models_that_say_two_things_are_refused(tmp_path: pathlib.Path):
    names = {"id2label": {0: "A", 1: "A", 2: "B"}, "label2id": {"A": 1, "B": 2}}
    twice = write_model(tmp_path / "twice", "bert", "BertForSequenceClassification", **names)
    with pytest.raises(PredictError, match="two of its classes are named 'A'"):
        predictor(twice).classify("a cat")
    numbers = write_model(
        tmp_path / "numbers", "bert", "BertForSequenceClassification", problem_type="regression", num_labels=3
    )
    with pytest.raises(PredictError, match="gives 3 numbers"):
        predictor(numbers).classify("a cat")


def test_weights_that_are_no_numbers_are_refused(tmp_path: pathlib.Path):
    loaded = load(write_model(tmp_path, "bert", "BertForSequenceClassification"))
    loaded.params["sequence"]["dense"]["bias"][0] = np.nan
    with pytest.raises(PredictError, match="sequence/dense/bias is not finite"):
        loaded.predictor()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda one: one.classify([("a", "b", "c")]), "is 3 texts: a pair has two"),
        (lambda one: one.embed("a", prompt=5), "prompt is 5"),
    ],
)
def test_arguments_of_another_kind(tmp_path: pathlib.Path, call, text: str):
    folder = write_model(tmp_path, "bert", "BertForSequenceClassification")
    with pytest.raises(PredictError, match=text):
        call(predictor(folder))
    for options in ({"task": ["embed"]}, {"max_length": True}, {"tokens_per_batch": "5"}):
        with pytest.raises(PredictError):
            predictor(folder, **options)


def test_the_task_is_the_models_own_where_none_is_named(tmp_path: pathlib.Path):
    folder = write_model(tmp_path / "model", "bert", "BertForSequenceClassification", **CLASSES)
    (tmp_path / "texts").write_text("a cat\n")
    options = {"model": str(folder), "input": str(tmp_path / "texts"), "output": str(tmp_path / "out")}
    predict(PredictOptions(**options))
    assert "label" in json.loads((tmp_path / "out").read_text())
    with pytest.raises(PredictError, match="--top-k is for --task fill-mask and answer: leave it out for classify"):
        predict(PredictOptions(**options, top_k=3))
