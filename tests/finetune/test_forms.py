"""Forms of the tasks beside the plain one, from a file to what the folder says: pairs, several classes, numbers, Chinese, RoBERTa's kind."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from made_runs import learn
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

import jaxbert
from jaxbert.finetune.config import ClassificationConfig, TaggingConfig

NOUNS = "film book play song".split()
KINDS = {"dull": "slow", "lovely": "kind", "grim": "dark"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder without runs/, so that the encoder is a new one."""
    monkeypatch.chdir(tmp_path)


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    return path


def torch_logits(model: pathlib.Path, texts: Sequence) -> np.ndarray:
    peer, info = transformers.AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        return peer.eval()(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits.numpy()


def test_the_class_of_a_pair(tmp_path: pathlib.Path):
    """The word that decides is there in both halves, and that of the second counts."""
    rows = [
        {"one": f"a {first} {noun}", "two": f"that {second} {noun} {n}", "label": KINDS[second]}
        for first in KINDS
        for second in KINDS
        for n, noun in enumerate(NOUNS)
    ]
    task = ClassificationConfig(text="one", text_pair="two")
    result = learn(task, write_rows(tmp_path / "train.jsonl", rows), epochs=40)
    assert result.dev["accuracy"] > 0.9
    pairs = [(row["one"], row["two"]) for row in rows]
    found = jaxbert.load(result.model).predictor().classify(pairs)
    assert np.mean([one["label"] == row["label"] for one, row in zip(found, rows, strict=True)]) == pytest.approx(
        result.dev["accuracy"]
    )
    theirs = np.exp(torch_logits(result.model, pairs))
    theirs /= theirs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([list(one["scores"].values()) for one in found], theirs, rtol=0, atol=1e-5)


def test_any_number_of_classes(tmp_path: pathlib.Path):
    rows = []
    for n in range(2 ** len(KINDS)):
        words = [word for bit, word in enumerate(KINDS) if n >> bit & 1]
        rows += [{"text": " ".join([noun, *words]), "label": [KINDS[word] for word in words]} for noun in NOUNS]
    path = write_rows(tmp_path / "train.jsonl", rows)
    result = learn(ClassificationConfig(target="multi-label"), path, epochs=60)
    assert result.dev["macro_f1"] > 0.9
    texts = [row["text"] for row in rows]
    found = jaxbert.load(result.model).predictor().classify(texts)
    right = [set(one["labels"]) == set(row["label"]) for one, row in zip(found, rows, strict=True)]
    assert np.mean(right) > 0.8
    # "film" alone has no class.
    assert any(not one["labels"] for one in found)
    theirs = 1 / (1 + np.exp(-torch_logits(result.model, texts)))
    np.testing.assert_allclose([list(one["scores"].values()) for one in found], theirs, rtol=0, atol=1e-5)
    config = transformers.AutoConfig.from_pretrained(result.model)
    assert config.problem_type == "multi_label_classification"


def test_a_number(tmp_path: pathlib.Path):
    rows = [
        {"text": f"{noun} {' '.join(['very'] * count)} {word}", "label": count * sign}
        for noun in NOUNS
        for count in range(4)
        for word, sign in (("lovely", 1.5), ("dull", -1.5))
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    result = learn(ClassificationConfig(target="regression"), path, epochs=40)
    assert result.dev["pearson"] > 0.9
    texts = [row["text"] for row in rows]
    found = [one["number"] for one in jaxbert.load(result.model).predictor().classify(texts)]
    np.testing.assert_allclose(found, torch_logits(result.model, texts)[:, 0], rtol=0, atol=1e-5)
    gold = [row["label"] for row in rows]
    assert np.mean(np.square(np.subtract(found, gold))) == pytest.approx(result.dev["mse"], rel=1e-4)


PEOPLE, CITIES = ["王小明", "李娜", "张伟伟"], ["北京", "上海市", "台北"]


def chinese(person: str, city: str, before: str = "") -> dict:
    text = f"{before}{person}昨天到了{city}。"
    start, place = text.index(person), text.index(city)
    spans = [[start, start + len(person), "人"], [place, place + len(city), "地"]]
    return {"text": text, "entities": spans}


def test_chinese_entities_with_their_places(tmp_path: pathlib.Path):
    """Offsets are in characters, whatever stands before: emoji beyond the first plane, combining marks, what no vocabulary has."""
    starts = ("", "👍🏽👨‍👩‍👧", "e\u0301 cafe\u0301 ", "\u3000听说")
    rows = [chinese(person, city, before) for person in PEOPLE for city in CITIES for before in starts]
    result = learn(TaggingConfig(), write_rows(tmp_path / "train.jsonl", rows), epochs=30)
    assert result.dev["f1"] > 0.95
    tagger = jaxbert.load(result.model).predictor("tag")
    for before in starts:
        row = chinese("李娜", "上海市", before)
        found = [(one["start"], one["end"], one["entity_group"]) for one in tagger.tag(row["text"])]
        assert found == [tuple(span) for span in row["entities"]]
        assert [one["word"] for one in tagger.tag(row["text"])] == ["李娜", "上海市"]


def test_chinese_labels(tmp_path: pathlib.Path):
    rows = [
        {"text": f"{noun}{word}", "label": label}
        for noun in ("电影", "书", "歌", "戏")
        for word, label in (("很好", "褒"), ("太差", "贬"))
    ]
    result = learn(ClassificationConfig(), write_rows(tmp_path / "train.jsonl", rows), epochs=40)
    found = jaxbert.load(result.model).predictor().classify("电影很好")
    assert (found["label"], set(found["scores"])) == ("褒", {"褒", "贬"})
    assert "褒" in (result.workdir / "report.md").read_text(encoding="utf8")


def write_roberta(folder: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
    """A small encoder of random weights with a byte-level tokenizer."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, specials, strict=True)))
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


def test_models_of_robertas_kind(tmp_path: pathlib.Path):
    """Byte-level tokens, positions from 2 on, one segment, and a head of two layers without a pooler."""
    rows = [{"text": f"the {word} {noun}", "label": label} for noun in NOUNS for word, label in KINDS.items()]
    texts = [row["text"] for row in rows]
    model = write_roberta(tmp_path / "model", texts)
    path = write_rows(tmp_path / "train.jsonl", rows)
    result = learn(ClassificationConfig(), path, epochs=40, model=str(model))
    assert result.dev["accuracy"] > 0.9
    classes = json.loads((result.model / "config.json").read_text())["architectures"]
    assert classes == ["RobertaForSequenceClassification"]
    theirs = np.exp(torch_logits(result.model, texts))
    theirs /= theirs.sum(axis=1, keepdims=True)
    found = jaxbert.load(result.model).predictor().classify(texts)
    np.testing.assert_allclose([list(one["scores"].values()) for one in found], theirs, rtol=0, atol=1e-5)
