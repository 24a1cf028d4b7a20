"""Any system's checkpoint into any other's, the same numbers at the end of every way; and new tokens on the way."""

import copy
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from made_models import bert_for_pretraining, torch_model, write_folder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxbert.config import VocabularyConfig
from jaxbert.predict.texts import open_tokenizer
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer
from jaxbert.weights.convert import convert
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError

TABLE = 190
SENTENCES = ["the cat sat on the mat", "a big dog runs to the old house", "it was there and then it was gone"] * 20


def assert_same(one: pathlib.Path, other: pathlib.Path):
    a, b = load(one), load(other)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.config == b.config
    assert a.groups == b.groups


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    # Some rows of the table have no token.
    folder = write_folder(tmp_path_factory.mktemp("bert"), torch_model("BertForPreTraining", vocab_size=TABLE))
    save_tokenizer(train_tokenizer(SENTENCES, VocabularyConfig(size=TABLE - 3, min_frequency=1)), folder, 24)
    return folder


@pytest.mark.parametrize("through", ["tensorflow", "flax", "huggingface"])
def test_there_and_back(bert: pathlib.Path, tmp_path: pathlib.Path, through: str):
    there = convert(bert, tmp_path / "there", to=through)  # pyright: ignore[reportArgumentType]
    assert there.architecture == "BertForPreTraining"
    assert (there.fresh, there.unread, there.left_out) == ((), (), ())
    names = {path.name for path in (tmp_path / "there").iterdir()}
    expected = {
        "tensorflow": {"bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "bert_config.json", "vocab.txt"},
        "flax": {"flax_model.msgpack", "config.json", "tokenizer.json"},
        "huggingface": {"model.safetensors", "config.json", "tokenizer.json", "README.md"},
    }[through]
    assert expected <= names
    assert_same(bert, tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "back")
    assert_same(bert, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes()[8:] != b""
    transformers.BertForPreTraining.from_pretrained(tmp_path / "back")


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("roberta", "RobertaForMaskedLM"),
        ("xlm-roberta", "XLMRobertaModel"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("electra", "ElectraForMaskedLM"),
        ("bert", "BertModel"),
        ("bert", "BertForSequenceClassification"),
    ],
)
def test_other_families_through_flax(tmp_path: pathlib.Path, family: str, architecture: str):
    source = write_folder(tmp_path / "source", torch_model(architecture, family))
    assert convert(source, tmp_path / "flax", to="flax").architecture == architecture
    assert_same(source, tmp_path / "flax")
    carried = load(source).carried
    assert carried.keys() == load(tmp_path / "flax").carried.keys()
    for name, rows in carried.items():
        np.testing.assert_array_equal(load(tmp_path / "flax").carried[name], rows)


def test_a_smaller_class_leaves_heads_out_and_says_so(bert: pathlib.Path, tmp_path: pathlib.Path):
    converted = convert(bert, tmp_path / "lm", architecture="BertForMaskedLM")
    assert converted.left_out == ("pooler", "nsp")
    assert load(tmp_path / "lm").groups == ("mlm",)
    alone = convert(bert, tmp_path / "alone", fresh=("token",))
    assert (alone.architecture, alone.left_out) == ("BertForTokenClassification", ("pooler", "mlm", "nsp"))
    fresh = convert(bert, tmp_path / "new", architecture="BertForTokenClassification", fresh=("token",))
    assert fresh.fresh == ("token/dense/kernel", "token/dense/bias")
    transformers.BertForTokenClassification.from_pretrained(tmp_path / "new")


def test_what_a_system_has_no_names_for(bert: pathlib.Path, tmp_path: pathlib.Path):
    roberta = write_folder(tmp_path / "roberta", torch_model("RobertaForMaskedLM", "roberta"))
    bare = write_folder(tmp_path / "bare", bert_for_pretraining())
    faults = [
        (lambda: convert(roberta, tmp_path / "a", to="tensorflow"), "google-research/bert has no roberta models"),
        (lambda: convert(bare, tmp_path / "a", to="tensorflow"), r"has no vocab.txt beside it"),
        (lambda: convert(bert, tmp_path / "a", to="onnx"), "no system 'onnx'"),  # pyright: ignore[reportArgumentType]
        (lambda: convert(bert, tmp_path / "a", architecture="GPT2"), "no architecture 'GPT2'"),
        (
            lambda: convert(bert, tmp_path / "a", architecture="RobertaModel"),
            "is a bert model, and RobertaModel is none of bert's",
        ),
        (lambda: convert(bert, bare), "is there already: choose another folder, or overwrite"),
        (lambda: convert(bert, bare / "config.json", overwrite=True), "config.json: is a file"),
        (lambda: convert(bert, tmp_path, overwrite=True), "holds 'bare', which no export wrote"),
        (lambda: convert(bert, tmp_path / "a", pooling="sum"), "pooling is 'sum'"),  # pyright: ignore[reportArgumentType]
        (lambda: convert(bert, tmp_path / "a", pooling="cls", to="flax"), "leave it out for flax"),
        (
            lambda: convert(bert, tmp_path / "a", fresh=("token", "span")),
            "no class of bert's has the heads token, span",
        ),
        (
            lambda: convert(bert, tmp_path / "a", architecture="BertForQuestionAnswering"),
            r"no span/dense/kernel: load them with fresh=\('span',\)",
        ),
        (lambda: convert(bare, tmp_path / "a", extend_vocab=tmp_path / "words"), "came without a tokenizer"),
        (lambda: convert(bert, tmp_path / "a", extend_vocab=tmp_path / "words"), "words: cannot be read"),
    ]
    for call, text in faults:
        with pytest.raises(WeightsError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"roberta", "bare"}


def test_an_embedder_stays_one(bert: pathlib.Path, tmp_path: pathlib.Path):
    convert(bert, tmp_path / "embedder", architecture="BertModel", pooling="cls")
    convert(tmp_path / "embedder", tmp_path / "again")
    loaded = load(tmp_path / "again")
    assert loaded.embedder is not None
    assert (loaded.embedder.pooling, loaded.embedder.normalize) == ("cls", True)
    texts = ["the cat sat", "a dog"]
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(texts)
    np.testing.assert_allclose(loaded.predictor("embed").embed(texts), theirs, atol=1e-5)
    settings = tmp_path / "again" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"q": "query: "}, "default_prompt_name": ["q"]}))
    with pytest.raises(WeightsError, match=r"transformers.json: default_prompt_name \['q'\] is no name"):
        load(tmp_path / "again")


def test_an_embedder_whose_transformer_has_a_folder_of_its_own(bert: pathlib.Path, tmp_path: pathlib.Path):
    # As sentence-transformers wrote it before version 2.
    old = convert(bert, tmp_path / "old", architecture="BertModel", pooling="mean").folder
    expected = load(old).predictor("embed").embed(["the cat sat", "a dog"])
    (old / "0_Transformer").mkdir()
    for path in old.iterdir():
        if path.is_file() and path.name not in ("modules.json", "README.md"):
            path.rename(old / "0_Transformer" / path.name)
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    settings = old / "0_Transformer" / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 7, "do_lower_case": True}))
    loaded = load(old)
    assert loaded.embedder is not None
    assert (loaded.embedder.pooling, loaded.embedder.max_length, loaded.embedder.lowercase) == ("mean", 7, True)
    np.testing.assert_allclose(loaded.predictor("embed").embed(["The cat sat", "A dog"]), expected, atol=1e-6)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(old), device="cpu").encode(["the cat sat", "a dog"])
    np.testing.assert_allclose(expected, theirs, atol=1e-5)
    modules[0]["path"] = "../bert"
    (old / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match="is no name of a folder in it"):
        load(old)
    (old / "elsewhere").symlink_to(bert)
    modules[0]["path"] = "elsewhere"
    (old / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match="elsewhere: is a link out of its folder"):
        load(old)


def test_an_export_is_replaced_where_it_is(bert: pathlib.Path, tmp_path: pathlib.Path):
    source = convert(bert, tmp_path / "one").folder
    (tmp_path / "link").symlink_to(source)
    converted = convert(source, tmp_path / "link", architecture="BertForMaskedLM", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load(source).groups == ("mlm",)
    assert load(converted.folder).groups == ("mlm",)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "link"}
    modes = {path.stat().st_mode for path in source.iterdir()}
    assert len(modes) == 1


def test_a_card_says_what_is_known(bert: pathlib.Path, tmp_path: pathlib.Path):
    new = (convert(bert, tmp_path / "one").folder / "README.md").read_text()
    assert "converted with jaxbert" in new
    assert f"`{bert.name}`" in new
    own = "---\nlicense: mit\n---\n# Somebody's model\n"
    (tmp_path / "one" / "README.md").write_text(own)
    kept = (convert(tmp_path / "one", tmp_path / "two", architecture="BertModel").folder / "README.md").read_text()
    assert kept == own + "\nConverted with jaxbert to a Hugging Face folder for `BertModel`.\n"
    again = convert(tmp_path / "two", tmp_path / "three", architecture="BertModel").folder / "README.md"
    assert again.read_text() == kept


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: pathlib.Path, dtype: str):
    # A copy: the model is shared.
    model = copy.deepcopy(torch_model("BertForPreTraining")).to(getattr(torch, dtype))
    source = write_folder(tmp_path / "source", model)
    loaded = load(source)
    assert loaded.dtype == dtype
    assert loaded.params["pooler"]["dense"]["kernel"].dtype == np.float32
    convert(source, tmp_path / "target")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "target"))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == getattr(torch, dtype)
        assert torch.equal(after[name], tensor), name
    assert transformers.AutoConfig.from_pretrained(tmp_path / "target").dtype == getattr(torch, dtype)


def test_a_file_of_several_types_stays_one(tmp_path: pathlib.Path):
    source = write_folder(tmp_path / "source", torch_model("BertForMaskedLM", tie_word_embeddings=False))
    path = source / "model.safetensors"
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    before = {name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(load_file(path).items())}
    # Of the two biases of a decoder, the one that is not computed with.
    before["cls.predictions.bias"] = torch.ones(len(before["cls.predictions.bias"]), dtype=torch.float16)
    before["cls.predictions.decoder.bias"] = torch.zeros(len(before["cls.predictions.bias"]), dtype=torch.bfloat16)
    save_file(before, path)
    loaded = load(source)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"float32"}
    convert(source, tmp_path / "target")
    after = load_file(tmp_path / "target" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert transformers.AutoConfig.from_pretrained(tmp_path / "target").dtype == torch.float32
    save(tmp_path / "one", **(loaded.export_arguments() | {"dtype": "bfloat16"}))
    assert load(tmp_path / "one").dtype == "bfloat16"


def test_words_that_vocab_txt_cannot_say(bert: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "words").write_text("zebra\nnew york\n", encoding="utf8")
    with pytest.raises(WeightsError, match="'new york' is no single word to BERT's tokenizer"):
        convert(bert, tmp_path / "tf", to="tensorflow", extend_vocab=tmp_path / "words")
    (tmp_path / "words").write_text("zebra\n", encoding="utf8")
    convert(bert, tmp_path / "tf", to="tensorflow", extend_vocab=tmp_path / "words")
    assert "zebra" in open_tokenizer(tmp_path / "tf").encode("the zebra").tokens


WORDS = ["zebra", "Zebra", "cat", "cats", "new york", "covid-19", "深度学习", "学", "q7"]


def test_new_tokens_are_the_mean_of_their_pieces(bert: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "words").write_text("\n".join(WORDS) + "\n\n", encoding="utf8")
    converted = convert(bert, tmp_path / "extended", extend_vocab=tmp_path / "words")
    before, after = load(bert), load(tmp_path / "extended")
    old = transformers.AutoTokenizer.from_pretrained(bert)
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "extended")
    assert converted.known == ("cat",)
    assert set(converted.added) == set(WORDS) - {"cat"}
    tables = [loaded.params["encoder"]["embeddings"]["word"]["embedding"] for loaded in (before, after)]
    biases = [loaded.params["mlm"]["bias"] for loaded in (before, after)]
    size = len(old)
    assert after.config.vocab_size == max(TABLE, len(new))
    np.testing.assert_array_equal(tables[1][:size], tables[0][:size])
    seen = set()
    for word in converted.added:
        (index,) = new(word, add_special_tokens=False)["input_ids"]
        assert index >= size
        seen.add(index)
        pieces = [i for i in old(word, add_special_tokens=False)["input_ids"] if i != old.unk_token_id]
        for table, bias in (tables, biases):
            rows = table[pieces] if pieces else table[:size]
            np.testing.assert_allclose(bias[index], rows.mean(0), atol=1e-6)
    # Zebra is zebra to a tokenizer that lower-cases.
    assert len(seen) == len(converted.added) - 1
    text = "The zebra sat in New York, 用深度学习 and covid-19, the cat."
    pieces = new.tokenize(text)
    assert [piece for piece in pieces if piece.lower() in WORDS] == ["zebra", "new york", "深度学习", "covid-19", "cat"]
    # Text without new words is what it was.
    assert new(SENTENCES[1])["input_ids"] == old(SENTENCES[1])["input_ids"]
    # Every token of a text has a row, and the model computes.
    transformers.BertForPreTraining.from_pretrained(tmp_path / "extended")(**new(text, return_tensors="pt"))
    assert len(load(tmp_path / "extended").predictor("fill-mask").fill_mask("the zebra [MASK]")) == 5


@pytest.mark.parametrize("files", ["tokenizer.json", "merges.txt"])
def test_new_tokens_of_a_byte_level_tokenizer(tmp_path: pathlib.Path, files: str):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    model = torch_model("RobertaForMaskedLM", "roberta", vocab_size=tokenizer.get_vocab_size())
    source = write_folder(tmp_path / "source", model)
    if files == "tokenizer.json":
        save_tokenizer(tokenizer, source, 22)
    else:
        tokenizer.model.save(str(source))
    (tmp_path / "words").write_text("zebra\n机器\n", encoding="utf8")
    convert(source, tmp_path / "target", extend_vocab=tmp_path / "words")
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "target")
    pieces = new.tokenize("the zebra 用机器 sat")
    assert {"zebra", "机器"} <= {piece.strip() for piece in pieces}
    # No space is left over in front, and words that were tokens stay them.
    assert pieces[:2] == ["the", " zebra"]
    (tmp_path / "words").write_text("cat\n", encoding="utf8")
    assert convert(source, tmp_path / "same", extend_vocab=tmp_path / "words").known == ("cat",)
    assert load(tmp_path / "target").config.vocab_size == tokenizer.get_vocab_size() + 2


def test_the_command(bert: pathlib.Path, tmp_path: pathlib.Path, repository: pathlib.Path):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jaxbert", "convert", *map(str, arguments)]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    (tmp_path / "words").write_text("zebra\ncat\n", encoding="utf8")
    options = run("--help").stdout
    assert "--base" in options
    assert "discriminator" in options
    done = run(bert, tmp_path / "target", "--extend-vocab", tmp_path / "words", "--architecture", "BertForMaskedLM")
    assert done.returncode == 0, done.stderr
    assert "new token zebra: the mean of " in done.stdout
    assert "tokens already: cat" in done.stdout
    assert "left out: pooler, nsp" in done.stdout
    assert f"BertForMaskedLM in {tmp_path / 'target'}" in done.stdout
    again = run(bert, tmp_path / "target")
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "is there already" in again.stderr


def test_an_encoder_without_a_pooler(bert: pathlib.Path, tmp_path: pathlib.Path):
    """As sentence encoders are often stored; of RoBERTa and with a pooling too."""
    found = convert(bert, tmp_path / "bare", heads=())
    assert (found.architecture, load(found.folder).groups) == ("BertModel", ())
    assert convert(found.folder, tmp_path / "again").architecture == "BertModel"
    assert convert(found.folder, tmp_path / "flax", to="flax").architecture == "BertModel"
    embedder = load(convert(found.folder, tmp_path / "embedder", pooling="mean").folder).embedder
    assert embedder is not None
    assert (embedder.pooling, embedder.normalize) == ("mean", True)


def test_an_embedder_is_normalized_as_it_is_asked_for(bert: pathlib.Path, tmp_path: pathlib.Path):
    convert(bert, tmp_path / "one", architecture="BertModel", pooling="cls")
    for asked, expected in ((None, True), (False, False), (True, True)):
        convert(tmp_path / "one", tmp_path / f"{asked}", normalize=asked)
        embedder = load(tmp_path / f"{asked}").embedder
        assert embedder is not None
        assert (embedder.pooling, embedder.normalize) == ("cls", expected)
    with pytest.raises(WeightsError, match="is no embedder that normalize would be of"):
        convert(bert, tmp_path / "none", normalize=False)
