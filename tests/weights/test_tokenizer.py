"""The tokenizer beside weights: whether it fits them, and how it is opened and copied."""

import json
import pathlib

import pytest
import transformers
from made_models import torch_config
from tokenizers import ByteLevelBPETokenizer

from jaxbert.text.wordpiece import SPECIAL
from jaxbert.weights.names import WeightsError
from jaxbert.weights.tokenizer import copy_tokenizer, find_tokenizer, open_tokenizer

TEXTS = ["The cat sat on the mat.", " a <mask> runs, <mask>!", "naïve café 机器学习 🙂\t  two  spaces", ""]


def vocabulary(folder: pathlib.Path, *pieces: str) -> pathlib.Path:
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *pieces]) + "\n")
    return folder


def test_more_tokens_than_embeddings_are_refused(tmp_path: pathlib.Path):
    vocabulary(tmp_path, "a", "b", "c")
    size = len(SPECIAL) + 3
    assert find_tokenizer(tmp_path, size) == tmp_path
    with pytest.raises(WeightsError, match=rf"vocab.txt: has {size} tokens and the model {size - 1} embeddings"):
        find_tokenizer(tmp_path, size - 1)
    copied = tmp_path / "copy"
    copy_tokenizer(tmp_path, copied, 16)
    with pytest.raises(WeightsError, match=rf"tokenizer.json: has {size} tokens"):
        find_tokenizer(copied, size - 1)
    (copied / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(WeightsError, match="is no tokenizer"):
        find_tokenizer(copied, size)


def test_every_vocabulary_that_is_copied_is_checked(tmp_path: pathlib.Path):
    copy_tokenizer(vocabulary(tmp_path, "a"), tmp_path / "copy", 16)
    size = len(SPECIAL) + 1
    assert find_tokenizer(tmp_path / "copy", size) == tmp_path / "copy"
    vocabulary(tmp_path / "copy", "a", "b")
    with pytest.raises(WeightsError, match=rf"vocab.txt: has {size + 1} tokens and the model {size} embeddings"):
        find_tokenizer(tmp_path / "copy", size)


def test_a_folder_without_a_tokenizer(tmp_path: pathlib.Path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert find_tokenizer(tmp_path, 5) is None
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        copy_tokenizer(tmp_path, tmp_path, 16)


@pytest.mark.parametrize(("pieces", "expected"), [(["hello"], ["hello"]), (["Hello", "hello"], ["Hello"])])
def test_a_vocab_txt_alone_becomes_a_tokenizer_folder(tmp_path: pathlib.Path, pieces: list[str], expected: list[str]):
    copy_tokenizer(vocabulary(tmp_path, *pieces), tmp_path / "copy", 16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert tokenizer.tokenize("Hello") == expected
    assert tokenizer.model_max_length == 16


@pytest.fixture
def merges_only(tmp_path: pathlib.Path) -> pathlib.Path:
    """RoBERTa's tokenizer as it was published: vocab.json and merges.txt, and nothing else."""
    folder = tmp_path / "merges"
    folder.mkdir()
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS * 5, vocab_size=300, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    (folder / "config.json").write_text(torch_config("roberta").to_json_string(use_diff=False))
    return folder


@pytest.mark.parametrize("settings", [None, {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}])
def test_merges_alone_are_the_tokenizer_that_transformers_makes_of_them(merges_only: pathlib.Path, settings):
    if settings:
        (merges_only / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(merges_only)
    ours = open_tokenizer(merges_only)
    for text in TEXTS:
        # As it was before version 5, the space before a mask is the mask's.
        expected = theirs(text.replace(" <mask>", "<mask>"), TEXTS[0])["input_ids"]
        assert ours.encode(text, TEXTS[0]).ids == expected


def test_parts_of_a_tokenizer_are_refused(merges_only: pathlib.Path):
    (merges_only / "added_tokens.json").write_text('{"<new>": 300}')
    with pytest.raises(WeightsError, match=r"has an added_tokens.json, whose tokens need a tokenizer.json: take"):
        open_tokenizer(merges_only)
    (merges_only / "added_tokens.json").unlink()
    vocabulary_json = merges_only / "vocab.json"
    pieces = json.loads(vocabulary_json.read_text())
    vocabulary_json.write_text(json.dumps({k: v for k, v in pieces.items() if k != "<mask>"}))
    with pytest.raises(WeightsError, match=r"vocab.json: has no <mask>: not a RoBERTa vocabulary"):
        open_tokenizer(merges_only)
    vocabulary_json.write_text(json.dumps(pieces))
    merges = (merges_only / "merges.txt").read_text()
    (merges_only / "merges.txt").write_text(merges[: len(merges) // 4].rsplit("\n", 1)[0])
    with pytest.raises(
        WeightsError, match=r"merges.txt: \d+ of the \d+ pieces in vocab.json are made by no line of it"
    ):
        open_tokenizer(merges_only)
    (merges_only / "merges.txt").write_text("x y\n")
    with pytest.raises(WeightsError, match=r"vocab.json: is no byte-level BPE together with merges.txt"):
        open_tokenizer(merges_only)
    for name in ("merges.txt", "vocab.json"):
        with (merges_only / name).open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(WeightsError, match=rf"{name}: 1099511627776 bytes are no"):
            open_tokenizer(merges_only)
        (merges_only / name).write_text("{}")
    (merges_only / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"merges.txt: no such file"):
        open_tokenizer(merges_only)
    with pytest.raises(WeightsError, match=r"vocab.json: has no merges.txt beside it"):
        find_tokenizer(merges_only, 300)


def test_a_vocabulary_of_a_terabyte_is_not_read(tmp_path: pathlib.Path):
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(2**40)
    for call in (lambda: find_tokenizer(tmp_path, 5), lambda: open_tokenizer(tmp_path)):
        with pytest.raises(WeightsError, match=r"vocab.txt: 1099511627776 bytes are no"):
            call()


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_what_a_configuration_says_of_splitting_is_true_or_false(tmp_path: pathlib.Path, name: str):
    vocabulary(tmp_path, "hello", "Hello")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: "yes"}))
    with pytest.raises(WeightsError, match=rf"tokenizer_config.json: {name} is 'yes', and neither true nor false"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: None}))
    assert open_tokenizer(tmp_path).encode("Hello").tokens[1] == "Hello"
