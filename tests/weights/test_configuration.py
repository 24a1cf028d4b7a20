"""config.json -> ModelConfig and back: what is refused, what is kept."""

import json
import pathlib

import pytest
from made_models import SETTINGS, torch_config

from jaxbert.weights.configuration import ARCHITECTURES, read_configuration, read_json, write_configuration
from jaxbert.weights.names import WeightsError

BERT = torch_config("bert").to_dict()


@pytest.mark.parametrize("family", SETTINGS)
def test_out_is_what_came_in(family: str):
    architecture = next(name for name, (its, _) in ARCHITECTURES.items() if its == family)
    values = json.loads(json.dumps(torch_config(family, architectures=[architecture]).to_dict()))
    found = read_configuration(values, "config.json")
    assert found.architecture == architecture
    written = write_configuration(found.layout, architecture, found.extra)
    ignored = {"dtype", "transformers_version", "torch_dtype"}
    assert {k: v for k, v in written.items() if k not in ignored} == {
        k: v for k, v in values.items() if k not in ignored
    }


def test_sizes_of_each_family_are_understood():
    bert = read_configuration(BERT, "c").layout
    sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "max_position_embeddings")
    assert [getattr(bert.config, name) for name in sizes] == [32, 2, 4, 48, 131, 24]
    roberta = read_configuration(torch_config("roberta").to_dict(), "c").layout
    assert (roberta.config.max_position_embeddings, roberta.unused_positions) == (22, 2)
    distilbert = read_configuration(torch_config("distilbert").to_dict(), "c").layout.config
    assert (distilbert.type_vocab_size, distilbert.hidden_size, distilbert.num_layers) == (0, 32, 2)
    electra = read_configuration(torch_config("electra").to_dict(), "c").layout.config
    assert (electra.embedding_size, electra.embedding_width) == (20, 20)
    assert (
        read_configuration(torch_config("electra", embedding_size=32).to_dict(), "c").layout.config.embedding_size
        is None
    )


def test_activations_by_all_their_names():
    for name, expected in {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    }.items():
        assert read_configuration(BERT | {"hidden_act": name}, "c").layout.config.activation == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu' is no activation"),
        ({"hidden_act": ["gelu"]}, "is no activation"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is another computation"),
        ({"is_decoder": True}, "is_decoder True is another computation"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not one of bert, roberta"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"architectures": "BertModel"}, "architectures is no list"),
        ({"hidden_size": 0}, "hidden_size 0 is no whole number"),
        ({"hidden_size": "32"}, "hidden_size '32' is no whole number"),
        ({"hidden_size": True}, "is no whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is no whole number from 1 to 1024"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 32"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob 1.0 is no number below 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan is no number"),
        ({"num_labels": -1, "id2label": None}, "num_labels -1"),
        ({"model_type": "x" * 100_000}, "xxx... (100002 characters) is not one of"),
        ({"hidden_size": [7] * 100_000}, "... (300000 characters) is no whole number"),
    ],
)
def test_what_cannot_be_computed_is_refused(change: dict, message: str):
    with pytest.raises(WeightsError) as caught:
        read_configuration(BERT | change, "FOLDER/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("FOLDER/config.json: ")
    assert "\n" not in str(caught.value)


def test_a_size_that_is_missing_is_refused_and_a_rate_is_not():
    without = {key: value for key, value in BERT.items() if key != "vocab_size"}
    with pytest.raises(WeightsError, match="vocab_size is missing"):
        read_configuration(without, "c")
    old = {
        key: value for key, value in BERT.items() if key not in ("layer_norm_eps", "model_type", "initializer_range")
    }
    assert read_configuration(old, "c").layout.config.layer_norm_epsilon == 1e-12


def test_unknown_keys_are_kept():
    assert read_configuration(BERT | {"team": "a"}, "c").extra["team"] == "a"


def test_an_architecture_of_another_family_is_not_written():
    layout = read_configuration(BERT, "c").layout
    with pytest.raises(WeightsError, match=r"'RobertaModel' is none of bert's: choose one of BertForMaskedLM"):
        write_configuration(layout, "RobertaModel")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000])
def test_files_that_are_no_configuration(tmp_path: pathlib.Path, content: bytes):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
