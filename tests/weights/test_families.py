"""The families that share the encoder: hidden states equal torch's, and tensors come out byte-equal."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import transformers
from made_models import VOCAB, batch, our_hidden, torch_model, torch_outputs, write_folder

from jaxbert.model.heads import MlmHead
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError

# Class, family, settings, heads that come with it.
CASES = {
    "roberta": ("RobertaForMaskedLM", "roberta", {}, ("mlm",)),
    "xlm-roberta": ("XLMRobertaModel", "xlm-roberta", {}, ("pooler",)),
    "roberta, two token types": ("RobertaModel", "roberta", {"type_vocab_size": 2}, ("pooler",)),
    "distilbert": ("DistilBertForMaskedLM", "distilbert", {}, ("mlm",)),
    "electra": ("ElectraForPreTraining", "electra", {}, ("discriminator",)),
    "electra generator": ("ElectraForMaskedLM", "electra", {}, ("mlm",)),
    "electra as wide as its embeddings": ("ElectraModel", "electra", {"embedding_size": 32}, ()),
    "bert classifier": ("BertForSequenceClassification", "bert", {}, ("pooler", "sequence")),
    "bert tagger": ("BertForTokenClassification", "bert", {}, ("token",)),
    "distilbert classifier": ("DistilBertForSequenceClassification", "distilbert", {}, ("sequence",)),
}
# These also run the model: the others differ from them in their heads' names.
COMPUTED = [name for name in CASES if "classifier" not in name and "tagger" not in name and "wide" not in name]


def made(name: str, tmp_path: pathlib.Path):
    architecture, family, settings, _ = CASES[name]
    model = torch_model(architecture, family, **settings)
    return model, write_folder(tmp_path / "in", model)


@pytest.mark.parametrize("name", COMPUTED)
def test_hidden_states_and_mlm_logits_equal_torch(tmp_path: pathlib.Path, name: str):
    model, folder = made(name, tmp_path)
    loaded = load(folder, scan_layers=True)
    settings = model.config
    inputs = batch(token_types=loaded.config.type_vocab_size or 1, pad=settings.pad_token_id)
    if settings.model_type == "distilbert":
        del inputs["token_type_ids"]
    base = getattr(model, model.base_model_prefix, model)
    real = inputs["attention_mask"] == 1
    expected = torch_outputs(base, inputs).last_hidden_state.numpy()[real]
    hidden = our_hidden(loaded, inputs)
    assert expected.std() > 0.1
    np.testing.assert_allclose(np.asarray(hidden)[real], expected, rtol=0, atol=1e-5)
    if "mlm" in loaded.groups:
        table = loaded.params["encoder"]["embeddings"]["word"]["embedding"]
        logits = MlmHead(loaded.config).apply({"params": loaded.params["mlm"]}, hidden, table)
        expected = torch_outputs(model, inputs).logits.numpy()[real]
        np.testing.assert_allclose(np.asarray(logits)[..., :VOCAB][real], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_in_and_out_again_is_byte_equal(tmp_path: pathlib.Path, name: str):
    architecture, family, _, heads = CASES[name]
    _, folder = made(name, tmp_path)
    loaded = load(folder)
    assert (loaded.family, loaded.architecture, loaded.groups) == (family, architecture, heads)
    target = save(tmp_path / "out", **loaded.export_arguments())
    before, after = (safetensors.numpy.load_file(f / "model.safetensors") for f in (folder, target))
    assert {k: v.tobytes() for k, v in after.items()} == {k: v.tobytes() for k, v in before.items()}
    _, info = getattr(transformers, architecture).from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


ACTIVE = ("BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM", "ElectraForMaskedLM")


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
@pytest.mark.parametrize("architecture", ACTIVE)
def test_mlm_heads_have_the_activation_that_torchs_have(tmp_path: pathlib.Path, architecture: str, activation: str):
    """Those of RoBERTa and ELECTRA have the exact GELU, whatever the encoder has."""
    family = architecture.removesuffix("ForMaskedLM").lower()
    key = "activation" if family == "distilbert" else "hidden_act"
    model = torch_model(architecture, family, **{key: activation})
    loaded = load(write_folder(tmp_path / "in", model))
    inputs = batch(token_types=loaded.config.type_vocab_size or 1, pad=model.config.pad_token_id)
    if family == "distilbert":
        del inputs["token_type_ids"]
    table = loaded.params["encoder"]["embeddings"]["word"]["embedding"]
    logits = MlmHead(loaded.config).apply({"params": loaded.params["mlm"]}, our_hidden(loaded, inputs), table)
    real = inputs["attention_mask"] == 1
    expected = torch_outputs(model, inputs).logits.numpy()[real]
    np.testing.assert_allclose(np.asarray(logits)[..., :VOCAB][real], expected, rtol=0, atol=1e-5)
    again = load(save(tmp_path / "out", **loaded.export_arguments()))
    assert again.config == loaded.config


def test_a_head_that_a_family_has_not_is_not_written(tmp_path: pathlib.Path):
    loaded = load(write_folder(tmp_path / "in", torch_model("RobertaForMaskedLM", "roberta", hidden_act="relu")))
    other = dataclasses.replace(loaded.config, mlm_activation="relu")
    with pytest.raises(WeightsError, match="has the activation relu and RobertaForMaskedLM would have gelu"):
        save(tmp_path / "out", **loaded.export_arguments() | {"config": other})


@pytest.mark.parametrize(
    "changed", [{"summary_type": "mean"}, {"summary_activation": "tanh"}, {"summary_use_proj": False}]
)
def test_electras_choices_are_summarised_in_one_way(tmp_path: pathlib.Path, changed: dict):
    model = torch_model("ElectraForMultipleChoice", "electra")
    folder = write_folder(tmp_path / "in", model)
    assert "choice" in load(folder).groups
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(WeightsError, match="is another computation"):
        load(folder)
