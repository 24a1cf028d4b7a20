"""Vocabularies: learning is exact and repeatable, the saved folder encodes as transformers does, bad files have an error."""

import hashlib
import json
import logging
import os
import pathlib
import pydoc_data.topics
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxbert.config import VocabularyConfig
from jaxbert.text.vocabulary import (
    Vocabulary,
    VocabularyError,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

STRINGS = [
    "",
    " \t\n ",
    "The quick brown fox, isn't it? It's unaffable!",
    "UPPER lower MiXeD 3.14 1,000.50 a_b e-mail@example.com #tag $5 <b> ^x^ `y`",
    "今天天气很好。我用 Python 3.11 写程序，価格は１２３円です「はい」",
    "ひらがな カタカナ 한국어 텍스트 ภาษาไทย हिन्दी",
    "naïve café Ångström ÀÉÎÕÜ ßẞ ıİ œ ﬁ ǅ Ǆ ŉ",
    "e\u0301 a\u0308\u0323 n\u0303o \u0301lone \u1e69 s\u0323\u0307",
    "😀 👩‍👩‍👧 🇨🇳 ❤️ ☃ 👍🏽 text😀text",
    "a\x00b\x01c\x7fd\x85e\ufffdf\u200bg\u200dh\ufeffi\u2028j\u2029k\u00adl\x1cm\rn\x0bo",
    "\u00a0nbsp\u2003em\u3000ideographic\u202f",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c ـــ",
    "[CLS] a [SEP] [MASK] b[MASK]c [PAD] [UNK] [unused5] [mask] [ MASK ] ##ing",
    "\U00020000\U0002a6df 㐀 豈 \ue000 \U000e0001 \u0378",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101 + " " + "好" * 300,
    "—–…“”‘’«»¿¡§¶•°±×÷€£¥",
]
TEXT = [text for _, text in sorted(pydoc_data.topics.topics.items())][:25]


def train(size: int, texts: list[str] = TEXT, **settings) -> Tokenizer:
    return train_tokenizer(iter(texts), VocabularyConfig(size=size, **settings))


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def learnt(request) -> Tokenizer:
    return train(2500, TEXT + STRINGS * 3, lowercase=request.param)


def assert_encodes_alike(ours: Tokenizer, theirs) -> None:
    generator = random.Random(0)
    characters = "".join(STRINGS)
    texts = STRINGS + ["".join(generator.choices(characters, k=60)) for _ in range(50)]
    # transformers takes an empty second text for none.
    for first, second in zip(texts, [text or "x" for text in texts[1:]] + ["x"], strict=True):
        single, pair = ours.encode(first), ours.encode(first, second)
        assert single.ids == theirs(first)["input_ids"], first
        expected = theirs(first, second, return_token_type_ids=True)
        assert pair.ids == expected["input_ids"], (first, second)
        assert pair.type_ids == expected["token_type_ids"]
        assert ours.encode(first, add_special_tokens=False).ids == theirs(first, add_special_tokens=False)["input_ids"]


# Learning


def test_reserved_ids(learnt: Tokenizer):
    pieces = pieces_of(learnt)
    assert pieces[:104] == ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert list(learnt.get_added_tokens_decoder()) == [0, 100, 101, 102, 103]
    vocabulary = Vocabulary.of(learnt)
    assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id) == (0, 100, 101)
    assert (vocabulary.sep_id, vocabulary.mask_id) == (102, 103)
    assert vocabulary.special_ids == tuple(range(104))
    assert vocabulary.size == len(pieces) == 2500
    assert vocabulary.lowercase == (learnt.encode("A").tokens == ["[CLS]", "a", "[SEP]"])


def test_order_of_the_pieces(learnt: Tokenizer):
    pieces = pieces_of(learnt)[104:]
    characters = [piece for piece in pieces if len(piece) == 1]
    continuing = [piece for piece in pieces if len(piece) == 3 and piece.startswith("##")]
    assert characters == sorted(characters)
    assert pieces[: len(characters)] == characters
    assert pieces[len(characters) :][: len(continuing)] == continuing == sorted(continuing)
    assert {"a", "好", "。", "😀", "["} <= set(characters)
    assert {"##a", "##😀"} <= set(continuing)
    assert not {"##好", "##。", "##[", "##]"} & set(continuing)


def test_words_of_known_characters_are_never_unknown(learnt: Tokenizer):
    assert 100 not in learnt.encode("zzqqjjxx qz9z好z").ids


def test_size_is_exact_or_said_to_be_smaller(caplog: pytest.LogCaptureFixture):
    for size in (300, 1000, 1001):
        assert train(size).get_vocab_size() == size
    assert not caplog.records
    small = train(1000, ["a few words, a few words"])
    assert small.get_vocab_size() == 104 + 9 + 8 + 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "126 pieces, not data.vocabulary.size (1000)" in record.getMessage()


def test_too_many_characters_for_the_size(caplog: pytest.LogCaptureFixture):
    text = "".join(chr(0x4E00 + i) * (1000 - i) for i in range(500))
    tokenizer = train(204, [text])
    assert pieces_of(tokenizer)[104:] == [chr(0x4E00 + i) for i in range(100)]
    assert "no room for 400 of 500 characters" in caplog.text


def test_min_frequency_and_alphabet_limit():
    text = ["aaaa bb ab ccc ddd e 好好 中"]
    assert pieces_of(train(200, text, min_frequency=3))[104:] == [*"abcd", "##a", "##b", "##c", "##d"]
    assert "e" in pieces_of(train(200, text, min_frequency=1))
    # b, c and d are seen three times each: the order of the characters decides.
    assert pieces_of(train(200, text, alphabet_limit=3, min_frequency=3))[104:] == [*"abc", "##a", "##b", "##c"]


def test_sample_is_a_prefix_and_the_rest_is_not_read():
    read = []

    def texts() -> Iterator[str]:
        for letter in "abcdefgh":
            read.append(letter)
            yield (letter + " ") * 400_000

    pieces = pieces_of(train_tokenizer(texts(), VocabularyConfig(size=1000, sample_megabytes=1)))
    assert {"a", "b"} <= set(pieces)
    assert not {"c", "d"} & set(pieces)
    assert read == ["a", "b"]


def test_runs_without_space_cost_no_quadratic_time():
    generator = random.Random(0)
    genome = "".join(generator.choices("acgt", k=2_000_000))
    tokenizer = train(1000, [genome, "some words here", "some words there"])
    assert "words" in pieces_of(tokenizer)
    assert "##acgt" not in pieces_of(tokenizer)


def test_long_texts_are_read_whole():
    tokenizer = train(300, ["x " * 300_000 + "q q"])
    assert "q" in pieces_of(tokenizer)


def test_nothing_to_learn_from():
    for texts in ([], ["", " \n"], ["\x00\x01"]):
        with pytest.raises(VocabularyError, match=r"^no character is seen data\.vocabulary\.min_frequency"):
            train(1000, texts)


SCRIPT = """
import pydoc_data.topics, sys
from jaxbert.config import VocabularyConfig
from jaxbert.text.vocabulary import save_tokenizer, train_tokenizer
texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
texts += [chr(code) * 2 + " x" + chr(code) for code in range(0xC0, 0x600)]
save_tokenizer(train_tokenizer(texts, VocabularyConfig(size=3000, lowercase=False, alphabet_limit=300)), sys.argv[1], 128)
assert "transformers" not in sys.modules
"""


def test_learning_is_the_same_in_every_process(tmp_path: pathlib.Path, repository: pathlib.Path):
    hashes = []
    for threads in ("1", "2", "5"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        environment["PYTHONPATH"] = str(repository)
        folder = tmp_path / threads
        subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], env=environment, check=True)
        hashes.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()})
    assert hashes[0] == hashes[1] == hashes[2]
    assert set(hashes[0]) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}


# Folders


def test_saved_folder_encodes_as_transformers_does(learnt: Tokenizer, tmp_path: pathlib.Path):
    from transformers import AutoTokenizer

    save_tokenizer(learnt, tmp_path, 128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "BertTokenizer"
    assert theirs.model_max_length == 128
    assert (theirs.pad_token_id, theirs.mask_token_id, len(theirs)) == (0, 103, 2500)
    assert_encodes_alike(learnt, theirs)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["do_lower_case"] == learnt.normalizer.lowercase


def test_saved_folder_loads_again(learnt: Tokenizer, tmp_path: pathlib.Path):
    save_tokenizer(learnt, tmp_path / "first", 128)
    again = load_tokenizer(tmp_path / "first")
    assert fingerprint(again) == fingerprint(learnt)
    save_tokenizer(again, tmp_path / "second", 128)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    # vocab.txt alone, and with its tokenizer_config.json
    lowercase = learnt.normalizer.lowercase
    assert fingerprint(load_tokenizer(str(tmp_path / "first/vocab.txt"), lowercase)) == fingerprint(learnt)
    assert fingerprint(load_tokenizer(tmp_path / "first/vocab.txt", not lowercase)) != fingerprint(learnt)
    (tmp_path / "first/tokenizer.json").unlink()
    assert fingerprint(load_tokenizer(tmp_path / "first", not lowercase)) == fingerprint(learnt)


@pytest.mark.parametrize(
    ("name", "lowercase"), [("uncased", True), ("cased", False), ("chinese", True), ("chinese", False)]
)
def test_real_vocabularies(shared_data: pathlib.Path, tmp_path: pathlib.Path, name: str, lowercase: bool):
    from transformers import AutoTokenizer, BertTokenizer

    file = shared_data / f"vocab/bert-base-{name}-vocab.txt"
    ours = load_tokenizer(file, lowercase)
    theirs = BertTokenizer(vocab=str(file), do_lower_case=lowercase)
    assert ours.get_vocab_size() == len(theirs) == {"uncased": 30522, "cased": 28996, "chinese": 21128}[name]
    assert_encodes_alike(ours, theirs)
    save_tokenizer(ours, tmp_path, 512)
    assert_encodes_alike(ours, AutoTokenizer.from_pretrained(tmp_path))
    assert (tmp_path / "vocab.txt").read_bytes() == file.read_bytes()
    vocabulary = Vocabulary.of(ours)
    assert set(vocabulary.special_ids) == {
        i for i, piece in enumerate(pieces_of(ours)) if piece.startswith("[") and len(piece) > 1
    }


def test_truncation_and_padding_are_taken_out(learnt: Tokenizer, tmp_path: pathlib.Path):
    tokenizer = Tokenizer.from_str(learnt.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=10)
    assert fingerprint(tokenizer) == fingerprint(learnt)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("a b c d e f").ids) == 8
    save_tokenizer(tokenizer, tmp_path / "saved", 128)
    assert (tmp_path / "saved/tokenizer.json").read_text() == Tokenizer.from_str(learnt.to_str()).to_str(pretty=True)
    assert tokenizer.truncation is not None


def test_fingerprint_tells_tokenizers_apart():
    prints = [fingerprint(train(size, lowercase=lowercase)) for size in (300, 301) for lowercase in (True, False)]
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint(train(300))


# Other kinds of tokenizer


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT[:10], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def test_byte_level_bpe(tmp_path: pathlib.Path):
    from transformers import AutoTokenizer

    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    vocabulary = Vocabulary.of(ours)
    assert (vocabulary.cls_id, vocabulary.pad_id, vocabulary.sep_id, vocabulary.unk_id, vocabulary.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert vocabulary.special_ids == (0, 1, 2, 3, 4)
    assert not vocabulary.lowercase
    table = vocabulary.continuation_table()
    for index, piece in enumerate(pieces_of(ours)):
        assert table[index] == (index > 4 and not piece.startswith("Ġ"))
    save_tokenizer(ours, tmp_path / "saved", 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert_encodes_alike(ours, theirs)
    assert theirs.mask_token_id == 4
    assert not (tmp_path / "saved/vocab.txt").exists()


def test_changed_wordpiece_keeps_its_own_rules(learnt: Tokenizer, tmp_path: pathlib.Path):
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_str(learnt.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[ENTITY]"])
    save_tokenizer(tokenizer, tmp_path, 64)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert_encodes_alike(tokenizer, theirs)
    assert theirs("[ENTITY]")["input_ids"] == [101, 2500, 102]
    assert Vocabulary.of(load_tokenizer(tmp_path)).special_ids == (*range(104), 2500)


def with_pieces(model: str, pre_tokenizer=None) -> Vocabulary:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁a", "b", "▁", "##c"]
    if model == "Unigram":
        tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    elif model == "WordLevel":
        tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    else:
        tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="[UNK]"))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return Vocabulary.of(tokenizer)


def test_continuation_table(learnt: Tokenizer):
    table = Vocabulary.of(learnt).continuation_table()
    assert table.dtype == np.bool_
    assert table.shape == (2500,)
    assert table.tolist() == [piece.startswith("##") for piece in pieces_of(learnt)]
    tokens = learnt.encode("unaffable words")
    assert [bool(table[i]) for i in tokens.ids] == [token.startswith("##") for token in tokens.tokens]

    metaspace = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Metaspace()])
    for model in ("Unigram", "BPE"):
        continuing = np.flatnonzero(with_pieces(model, metaspace).continuation_table())
        assert continuing.tolist() == [6, 8]
    assert not with_pieces("WordLevel").continuation_table().any()
    with pytest.raises(VocabularyError, match="does not show which pieces continue a word"):
        with_pieces("BPE").continuation_table()


# Errors

HEAD = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file or folder"),
        ("none.json", None, "no such file or folder"),
        ("vocab.txt", "", "the file is empty"),
        ("vocab.txt", "a\nb\n", r"no line has \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ("vocab.txt", HEAD.replace("[MASK]", "x"), r"no line has \[MASK\]"),
        ("vocab.txt", HEAD + "a\nb\na\n", "line 8 repeats 'a' of line 6"),
        ("vocab.txt", HEAD + "\na\n", "line 6 is blank"),
        ("vocab.txt", b"[PAD]\n\xff\n", "not UTF-8 at byte 6"),
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "", "not JSON"),
        ("tokenizer.json", "[]", "not a JSON object"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Other"}}', "not a tokenizer"),
        (
            "tokenizer.json",
            Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})).to_str(),
            r"no \[MASK\] or <mask>",
        ),
    ],
)
def test_errors_are_one_line_that_names_the_file(tmp_path: pathlib.Path, name: str, content, message: str):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VocabularyError, match=message) as caught:
        load_tokenizer(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_folder_without_a_tokenizer(tmp_path: pathlib.Path):
    with pytest.raises(VocabularyError, match=r"has no tokenizer\.json, vocab\.txt or vocab\.json"):
        load_tokenizer(tmp_path)


def test_carriage_returns_are_no_part_of_a_piece(tmp_path: pathlib.Path):
    (tmp_path / "vocab.txt").write_bytes((HEAD + "a\n").replace("\n", "\r\n").encode())
    assert load_tokenizer(tmp_path / "vocab.txt").encode("a").ids == [2, 5, 3]
