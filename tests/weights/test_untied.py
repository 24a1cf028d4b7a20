"""A decoder that is a table of its own, not the word embeddings: in, computed, out, and with new tokens."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import transformers
from made_models import VOCAB, batch, named_parameters, our_hidden, torch_model, torch_outputs, write_folder

from jaxbert.model.heads import MlmHead
from jaxbert.text.wordpiece import SPECIAL
from jaxbert.weights.convert import convert
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import Loaded, load
from jaxbert.weights.names import WeightsError

CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
}


def untied(family: str) -> transformers.PreTrainedModel:
    model = torch_model(CLASSES[family], family, tie_word_embeddings=False)
    word, decoder = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert not np.array_equal(word.detach().numpy(), decoder.detach().numpy())
    return model


def our_mlm_logits(loaded: Loaded, inputs: dict[str, np.ndarray]) -> np.ndarray:
    table = loaded.params["encoder"]["embeddings"]["word"]["embedding"]
    logits = MlmHead(loaded.config).apply({"params": loaded.params["mlm"]}, our_hidden(loaded, inputs), table)
    return np.asarray(logits)[..., :VOCAB]


@pytest.mark.parametrize("family", CLASSES)
def test_logits_equal_torch_before_and_after(tmp_path: pathlib.Path, family: str):
    model = untied(family)
    loaded = load(write_folder(tmp_path / "in", model))
    assert not loaded.config.tie_word_embeddings
    inputs = batch(token_types=loaded.config.type_vocab_size or 1, pad=model.config.pad_token_id)
    if family == "distilbert":
        del inputs["token_type_ids"]
    real = inputs["attention_mask"] == 1
    expected = torch_outputs(model, inputs).logits.numpy()[real]
    np.testing.assert_allclose(our_mlm_logits(loaded, inputs)[real], expected, rtol=0, atol=1e-5)
    target = save(tmp_path / "out", **loaded.export_arguments())
    again, info = type(model).from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(torch_outputs(again.eval(), inputs).logits.numpy()[real], expected, rtol=0, atol=1e-5)
    before, after = (safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path / "in", target))
    assert before.keys() == after.keys()
    # Also the bias that transformers does not compute with.
    assert [name for name, array in before.items() if after[name].tobytes() != array.tobytes()] == []
    assert loaded.unread == ()


def test_the_configuration_says_whether_there_is_one(tmp_path: pathlib.Path):
    folder = write_folder(tmp_path / "in", untied("bert"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    with pytest.raises(
        WeightsError, match=r"differs from what a tied decoder repeats: set tie_word_embeddings to false"
    ):
        load(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": "no"}))
    with pytest.raises(WeightsError, match=r"config.json: tie_word_embeddings 'no' is neither true nor false"):
        load(folder)
    tied = write_folder(tmp_path / "tied", torch_model("BertForMaskedLM"))
    settings = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    missing = r"1 missing \(cls.predictions.decoder.weight\): set tie_word_embeddings to true .*, allow_missing="
    with pytest.raises(WeightsError, match=missing):
        load(tied)
    assert load(tied, allow_missing=("cls.predictions.decoder.weight",)).fresh == ("mlm/decoder/embedding",)
    assert load(tied, heads=()).groups == ()


@pytest.mark.parametrize("family", CLASSES)
def test_through_flax(tmp_path: pathlib.Path, family: str):
    source = write_folder(tmp_path / "source", untied(family))
    convert(source, tmp_path / "flax", to="flax")
    one, other = load(source), load(tmp_path / "flax")
    assert one.config == other.config
    np.testing.assert_array_equal(
        one.params["mlm"]["decoder"]["embedding"], other.params["mlm"]["decoder"]["embedding"]
    )
    np.testing.assert_array_equal(one.params["mlm"]["bias"], other.params["mlm"]["bias"])


def test_a_new_token_has_a_row_in_both_tables(tmp_path: pathlib.Path):
    source = write_folder(tmp_path / "source", untied("bert"))
    pieces = [*SPECIAL, *(f"{prefix}{letter}" for letter in "abcdefghij" for prefix in ("", "##"))]
    (source / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "words").write_text("bad\n")
    convert(source, tmp_path / "target", extend_vocab=tmp_path / "words")
    before, after = load(source).params, load(tmp_path / "target").params
    ids = [pieces.index(piece) for piece in ("b", "##a", "##d")]
    for one, other in (
        (before["mlm"]["decoder"]["embedding"], after["mlm"]["decoder"]["embedding"]),
        (before["encoder"]["embeddings"]["word"]["embedding"], after["encoder"]["embeddings"]["word"]["embedding"]),
    ):
        np.testing.assert_allclose(other[len(pieces)], one[ids].mean(0), atol=1e-6)


def test_google_has_none(tmp_path: pathlib.Path):
    source = write_folder(tmp_path / "source", untied("bert"))
    with pytest.raises(WeightsError, match="its decoder is a table of its own, which google-research/bert has not"):
        convert(source, tmp_path / "target", to="tensorflow")


def test_all_of_torchs_parameters_are_there(tmp_path: pathlib.Path):
    model = untied("bert")
    loaded = load(write_folder(tmp_path / "in", model))
    decoder = dict(named_parameters(model) | dict(model.named_parameters()))["cls.predictions.decoder.weight"]
    np.testing.assert_array_equal(loaded.params["mlm"]["decoder"]["embedding"][:VOCAB], decoder.detach().numpy())
    assert not loaded.params["mlm"]["decoder"]["embedding"][VOCAB:].any()
    retied = dataclasses.replace(loaded.config, tie_word_embeddings=True)
    with pytest.raises(WeightsError, match="the configuration has no mlm/decoder/embedding: export with the config"):
        save(tmp_path / "out", **(loaded.export_arguments() | {"config": retied}))
