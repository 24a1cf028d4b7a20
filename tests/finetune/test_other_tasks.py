"""Tagging, relations, spans, choices and vectors from a file of a few lines to a report, and to a folder that transformers loads."""

import json
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers
from made_runs import learn

from jaxbert.finetune.config import (
    ChoiceConfig,
    ExamplesConfig,
    RelationConfig,
    SimilarityConfig,
    SpanConfig,
    TaggingConfig,
)
from jaxbert.finetune.examples import read_all
from jaxbert.finetune.run import FinetuneResult
from jaxbert.model.classifiers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForRelationClassification,
    BertForTokenClassification,
)
from jaxbert.predict.texts import PredictError
from jaxbert.tasks.registry import make_task
from jaxbert.weights.load import Loaded, load
from jaxbert.weights.tokenizer import open_tokenizer

NAMES = ["ada", "lee", "max", "eve"]
PLACES = ["rome", "oslo", "lima", "cork"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder without runs/, so that the encoder is a new one."""
    monkeypatch.chdir(tmp_path)


def reported(result: FinetuneResult, metric: str) -> dict:
    """The report, after a look at what is always in it."""
    assert result.model is not None
    page = (result.workdir / "report.md").read_text(encoding="utf8")
    content = json.loads((result.workdir / "report.json").read_text(encoding="utf8"))
    assert page.startswith("# tiny\n")
    assert content["metric"] == metric
    assert content["measures"]["dev"] == pytest.approx(dict(result.dev))
    assert f"| {metric.replace('_', ' ')} | {result.dev[metric]:.4f} |" in page
    assert any("in dev are in train too" in warning for warning in content["warnings"])
    assert (result.workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    return content


def inputs_of(loaded: Loaded, *texts: str | tuple[str, str]) -> dict[str, np.ndarray]:
    assert loaded.tokenizer is not None
    tokenizer = open_tokenizer(loaded.tokenizer)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([one.ids for one in encodings]),
        "token_type_ids": np.array([one.type_ids for one in encodings]),
        "attention_mask": np.array([one.attention_mask for one in encodings]),
    }


def peer_of(result: FinetuneResult, inputs: dict[str, np.ndarray]):
    """The exported folder in torch, and what it says."""
    (name,) = json.loads((result.model / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, name).from_pretrained(result.model, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model.eval(), model(**{key: torch.tensor(values) for key, values in inputs.items()})


def write_sentences(path: pathlib.Path) -> None:
    lines = [f"{name}\tB-PER\nsaw\tO\nnew\tB-LOC\n{place}\tI-LOC\n" for name in NAMES for place in PLACES]
    path.write_text("\n".join(lines), encoding="utf8")


def test_tagging(tmp_path: pathlib.Path):
    write_sentences(tmp_path / "train.conll")
    result = learn(TaggingConfig(), tmp_path / "train.conll", epochs=16)
    assert result.dev["f1"] > 0.95
    assert result.dev["strict_f1"] == result.dev["f1"]
    content = reported(result, "f1")
    readings = [f"Whole entities, by type ({reading})" for reading in ("conlleval", "strict")]
    assert [table["title"] for table in content["tables"]] == [*readings, "Words, by tag"]
    assert content["confusion"]["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

    loaded = load(result.model)
    assert loaded.groups == ("token",)
    inputs = inputs_of(loaded, "ada saw new rome", "max saw new lima and new oslo")
    peer, expected = peer_of(result, inputs)
    assert isinstance(peer, transformers.BertForTokenClassification)
    assert list(peer.config.id2label.values()) == content["confusion"]["labels"]
    found = jax.jit(BertForTokenClassification(loaded.config, loaded.labels).apply)(
        {"params": loaded.params}, *inputs.values()
    )
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[real], expected.logits[real], rtol=0, atol=1e-5)
    assert peer.config.id2label[int(found[0, 1].argmax())] == "B-PER"
    # As a pipeline, with the tokenizer beside it.
    pipeline = transformers.pipeline("token-classification", str(result.model), aggregation_strategy="simple")
    entities = [(one["entity_group"], one["start"], one["end"]) for one in pipeline("lee saw new cork")]
    assert ("PER", 0, 3) in entities


def test_relations(tmp_path: pathlib.Path):
    rows = ["label\ttext"]
    for place in PLACES:
        for name in NAMES:
            rows.append(f"Born(e1,e2)\t<e1> {name} </e1> was born in <e2> {place} </e2> .")
            rows.append(f"Born(e2,e1)\tof <e1> {place} </e1> is <e2> {name} </e2> .")
            rows.append(f"Other\t<e1> {name} </e1> or <e2> {place} </e2> ?")
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf8")
    result = learn(RelationConfig(), tmp_path / "train.tsv", epochs=6)
    assert result.dev["macro_f1"] > 0.95
    content = reported(result, "macro_f1")
    assert content["confusion"]["labels"] == ["Born(e1,e2)", "Born(e2,e1)", "Other"]
    assert [row[0] for row in content["tables"][0]["rows"]] == ["Born"]

    loaded = load(result.model)
    assert loaded.groups == ("relation",)
    assert (loaded.architecture, loaded.labels) == ("BertForRelationClassification", 3)
    assert loaded.extra["entity_markers"] == ["@", "#"]
    texts = ["@ eve @ was born in # oslo # .", "of @ rome @ is # max # .", "@ lee @ or # cork # ?"]
    inputs = inputs_of(loaded, *texts)
    vocabulary = open_tokenizer(loaded.tokenizer).get_vocab()
    starts = [[ids.index(vocabulary[marker]) for marker in "@#"] for ids in inputs["input_ids"].tolist()]
    logits = jax.jit(BertForRelationClassification(loaded.config, loaded.labels).apply)(
        {"params": loaded.params}, *inputs.values(), None, np.array(starts)[:, None]
    )
    assert logits[:, 0].argmax(-1).tolist() == [0, 1, 2]

    # Entities that are marked, and the same ones by their places.
    predictor = loaded.predictor()
    tagged = ["<e1>eve</e1> was born in <e2>oslo</e2> .", "of <e1>rome</e1> is <e2>max</e2> ."]
    plain, places = ["eve was born in oslo .", "of rome is max ."], [((0, 3), (16, 20)), ((3, 7), (11, 14))]
    found = predictor.relate(tagged)
    assert [one["label"] for one in found] == ["Born(e1,e2)", "Born(e2,e1)"]
    assert predictor.relate(plain, places) == found
    assert predictor.relate(plain[1], places[1]) == predictor.relate(tagged[1])
    for call, text in (
        (lambda: predictor.relate("a b"), "has no <e1>: mark its entities as <e1>..</e1> and <e2>..</e2>, or give their spans"),
        (lambda: predictor.relate("a b", ((0, 1), (0, 2))), r"its spans \(\(0, 1\), \(0, 2\)\) overlap, or are not in its text"),
        (lambda: predictor.relate(plain, places[:1]), "relate takes spans for every text: 1 for 2 texts"),
    ):  # fmt: skip
        with pytest.raises(PredictError, match=text):
            call()


def write_questions(path: pathlib.Path) -> None:
    paragraphs = []
    for n, (name, place) in enumerate((name, place) for name in NAMES for place in PLACES):
        context = f"Once {name} lived in {place}."
        questions = [("Who lived?", name), ("Where?", place)]
        answers = [
            {
                "id": f"{n}-{one}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)}],
            }
            for one, (question, text) in enumerate(questions)
        ]
        paragraphs.append({"context": context, "qas": answers})
    content = {"version": "1.1", "data": [{"title": "people", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), encoding="utf8")


def test_spans(tmp_path: pathlib.Path):
    write_questions(tmp_path / "train.json")
    task = SpanConfig(stride=8, max_question_length=16, max_answer_length=8)
    result = learn(task, tmp_path / "train.json", epochs=12)
    assert result.dev["f1"] > 0.9
    content = reported(result, "f1")
    assert content["confusion"] is None
    assert result.dev["exact_match"] <= result.dev["f1"]

    loaded = load(result.model)
    assert loaded.groups == ("span",)
    inputs = inputs_of(loaded, ("Who lived?", "Once eve lived in oslo."), ("Where?", "Once max lived in lima, max."))
    peer, expected = peer_of(result, inputs)
    assert isinstance(peer, transformers.BertForQuestionAnswering)
    start, end = jax.jit(BertForQuestionAnswering(loaded.config).apply)({"params": loaded.params}, *inputs.values())
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(start[real], expected.start_logits[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(end[real], expected.end_logits[real], rtol=0, atol=1e-5)


def test_choices(tmp_path: pathlib.Path):
    """Of four people the one that the context names."""
    rows = []
    for n, name in enumerate(NAMES):
        for place in PLACES:
            others = [other for other in NAMES if other != name]
            choices = [*others[: n % 4], name, *others[n % 4 :]]
            rows.append({"sent1": f"{name} lived in {place}", "choices": choices, "label": n % 4})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    result = learn(ChoiceConfig(question=None, choices=("choices",)), tmp_path / "train.jsonl", epochs=40)
    assert result.dev["accuracy"] > 0.9
    content = reported(result, "accuracy")
    assert content["measures"]["dev"]["loss"] < 0.7

    loaded = load(result.model)
    assert loaded.groups == ("pooler", "choice")
    inputs = inputs_of(loaded, *(("eve lived in oslo", name) for name in NAMES))
    peer, expected = peer_of(result, {name: values[None] for name, values in inputs.items()})
    assert isinstance(peer, transformers.BertForMultipleChoice)
    logits = jax.jit(BertForMultipleChoice(loaded.config).apply)({"params": loaded.params}, *inputs.values())
    np.testing.assert_allclose(logits[:, 0], expected.logits[0], rtol=0, atol=1e-5)
    assert loaded.predictor("choose").choose("eve lived in oslo", NAMES)["choice"] == NAMES.index("eve")


@pytest.mark.parametrize("target", ["pairs", "dropout"])
def test_vectors(tmp_path: pathlib.Path, target: str):
    pairs = [(f"who lived in {place} , {name} ?", f"{name} was in {place}") for name in NAMES for place in PLACES]
    lines = ["anchor\tpositive", *("\t".join(pair) for pair in pairs)]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    settings = SimilarityConfig(target=target)  # pyright: ignore[reportArgumentType]
    result = learn(settings, tmp_path / "train.tsv", 20 if target == "pairs" else 2, dropout=0.1)
    if target == "pairs":
        assert result.dev["mrr"] > 0.9
    reported(result, "mrr")

    texts = [text for pair in pairs for text in pair]
    vectors = load(result.model).predictor("embed").embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors[::2] @ vectors[1::2].T
    ranks = (cosines >= np.diag(cosines)[:, None]).sum(1)
    assert np.mean(1 / ranks) == pytest.approx(result.dev["mrr"], abs=1e-6)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(result.model), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, theirs, rtol=0, atol=1e-5)


def test_spans_with_the_defaults_on_a_new_small_encoder(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """Its 128 positions leave no room for a stride of 128: what is used instead is said on the screen and in the report."""
    write_questions(tmp_path / "train.json")
    result = learn(SpanConfig(), tmp_path / "train.json", epochs=1, max_length=384)
    expected = [
        "task.stride is 128, which leaves no room in sequences of 128 tokens: it is 30",
        "data.max_length is 384, and the model has 128 positions: sequences are no longer than that",
    ]
    warnings = json.loads((result.workdir / "report.json").read_text(encoding="utf8"))["warnings"]
    assert warnings[-2:] == expected
    screen = capsys.readouterr().out
    assert all(f"warning: {warning}\n" in screen for warning in expected)


def test_tags_with_examples_are_not_said_to_have_none(tmp_path: pathlib.Path):
    write_sentences(tmp_path / "train.conll")
    lines = "eve\tB-PER\nleft\tO\n\nacme\tB-ORG\n"
    (tmp_path / "dev.conll").write_text(lines, encoding="utf8")
    files = ExamplesConfig(train=(str(tmp_path / "train.conll"),), dev=(str(tmp_path / "dev.conll"),))
    assert read_all(make_task(TaggingConfig()), files).warnings == (
        "labels that dev has and train has not, so that they cannot be learnt: ORG",
    )
