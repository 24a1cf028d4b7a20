"""The classifiers beside the torch classes of every family, on their own weights."""

import pathlib

import jax
import numpy as np
import pytest
from made_models import LABELS, batch, torch_model, torch_outputs, write_folder

from jaxbert.model.classifiers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from jaxbert.model.heads import CHOICE_HIDDEN_LAYERS, SEQUENCE_HIDDEN_LAYERS
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import load

PREFIXES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
}


def inputs_of(family: str) -> dict[str, np.ndarray]:
    inputs = batch(token_types=2 if family in ("bert", "electra") else 1, pad=1 if "roberta" in family else 0)
    if family == "distilbert":
        del inputs["token_type_ids"]
    return inputs


def compute(model, params, inputs: dict[str, np.ndarray]):
    types = inputs.get("token_type_ids", np.zeros_like(inputs["input_ids"]))
    return jax.jit(model.apply)({"params": params}, inputs["input_ids"], types, inputs["attention_mask"])


@pytest.mark.parametrize("family", SEQUENCE_HIDDEN_LAYERS)
def test_classes_of_sequences(family: str, tmp_path: pathlib.Path):
    peer = torch_model(f"{PREFIXES[family]}ForSequenceClassification", family)
    loaded, inputs = load(write_folder(tmp_path / "model", peer)), inputs_of(family)
    model = BertForSequenceClassification(loaded.config, loaded.labels, SEQUENCE_HIDDEN_LAYERS[family])
    found = compute(model, loaded.params, inputs)
    assert found.shape == (3, 1, LABELS)
    expected = torch_outputs(peer, inputs).logits
    assert expected.std() > 0.01
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", SEQUENCE_HIDDEN_LAYERS)
def test_classes_of_tokens_and_spans(family: str, tmp_path: pathlib.Path):
    inputs = inputs_of(family)
    real = inputs["attention_mask"].astype(bool)
    peer = torch_model(f"{PREFIXES[family]}ForTokenClassification", family)
    loaded = load(write_folder(tmp_path / "token", peer))
    found = compute(BertForTokenClassification(loaded.config, loaded.labels), loaded.params, inputs)
    np.testing.assert_allclose(found[real], torch_outputs(peer, inputs).logits[real], rtol=0, atol=1e-5)

    peer = torch_model(f"{PREFIXES[family]}ForQuestionAnswering", family, num_labels=2)
    loaded = load(write_folder(tmp_path / "span", peer))
    start, end = compute(BertForQuestionAnswering(loaded.config), loaded.params, inputs)
    expected = torch_outputs(peer, inputs)
    np.testing.assert_allclose(start[real], expected.start_logits[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(end[real], expected.end_logits[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", SEQUENCE_HIDDEN_LAYERS)
def test_choices(family: str, tmp_path: pathlib.Path):
    peer = torch_model(f"{PREFIXES[family]}ForMultipleChoice", family)
    loaded, inputs = load(write_folder(tmp_path / "model", peer)), inputs_of(family)
    model = BertForMultipleChoice(loaded.config, CHOICE_HIDDEN_LAYERS[family])
    found = compute(model, loaded.params, inputs)
    # One example with three choices.
    expected = torch_outputs(peer, {name: array[None] for name, array in inputs.items()}).logits
    assert expected.shape == (1, 3)
    assert expected.std() > 0.001
    np.testing.assert_allclose(found[:, 0], expected[0], rtol=0, atol=1e-5)
    save(tmp_path / "back", **loaded.export_arguments())
    back = load(tmp_path / "back")
    assert back.architecture == f"{PREFIXES[family]}ForMultipleChoice"
    jax.tree.map(np.testing.assert_array_equal, back.params, loaded.params)
