"""The name table, against every transformers class it names, and the names that follow from it."""

import numpy as np
import pytest
import torch
import transformers
from made_models import LABELS, named_parameters, torch_config

from jaxbert.config import ModelConfig
from jaxbert.weights.configuration import ARCHITECTURES, read_configuration
from jaxbert.weights.names import DECODER, TABLE, Parameter, flax_name, parameters, shown, tensorflow_name

SMALL = ModelConfig(vocab_size=131, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48)
BERT_HEADS = ("encoder", "pooler", "mlm", "nsp")


# transformers has no class for relations.
THEIRS = [name for name in ARCHITECTURES if not name.endswith("ForRelationClassification")]


@pytest.mark.parametrize("architecture", THEIRS)
def test_names_and_shapes_are_those_of_the_torch_class(architecture: str):
    family, groups = ARCHITECTURES[architecture]
    # A question answering head with other than two labels is none.
    labels = 2 if architecture.endswith("QuestionAnswering") else LABELS
    settings = torch_config(family, num_labels=labels)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(settings)
    layout = read_configuration(settings.to_dict() | {"architectures": [architecture]}, "config").layout
    assert layout.labels == labels
    expected = {name: tuple(parameter.shape) for name, parameter in named_parameters(model).items()}
    ours = {p.torch: p.torch_shape for p in layout.parameters(("encoder", *groups))}
    if architecture.endswith("Model"):
        ours = {name.split(".", 1)[1]: shape for name, shape in ours.items()}
    assert ours == expected


def names_of(config: ModelConfig = SMALL, groups=BERT_HEADS) -> dict[str, Parameter]:
    return {parameter.path: parameter for parameter in parameters(config, "bert", groups)}


def test_names_in_google_checkpoints():
    found = {path: tensorflow_name(parameter) for path, parameter in names_of().items()}
    layer = "bert/encoder/layer_1"
    expected = {
        "encoder/embeddings/word/embedding": ("bert/embeddings/word_embeddings", False),
        "encoder/embeddings/position/embedding": ("bert/embeddings/position_embeddings", False),
        "encoder/embeddings/token_type/embedding": ("bert/embeddings/token_type_embeddings", False),
        "encoder/embeddings/layer_norm/scale": ("bert/embeddings/LayerNorm/gamma", False),
        "encoder/embeddings/layer_norm/bias": ("bert/embeddings/LayerNorm/beta", False),
        "encoder/layers_1/attention/query/kernel": (f"{layer}/attention/self/query/kernel", True),
        "encoder/layers_1/attention/query/bias": (f"{layer}/attention/self/query/bias", False),
        "encoder/layers_1/attention/output/kernel": (f"{layer}/attention/output/dense/kernel", True),
        "encoder/layers_1/attention/layer_norm/scale": (f"{layer}/attention/output/LayerNorm/gamma", False),
        "encoder/layers_1/feed_forward/intermediate/kernel": (f"{layer}/intermediate/dense/kernel", True),
        "encoder/layers_1/feed_forward/output/bias": (f"{layer}/output/dense/bias", False),
        "encoder/layers_1/feed_forward/layer_norm/bias": (f"{layer}/output/LayerNorm/beta", False),
        "pooler/dense/kernel": ("bert/pooler/dense/kernel", True),
        "mlm/dense/kernel": ("cls/predictions/transform/dense/kernel", True),
        "mlm/layer_norm/scale": ("cls/predictions/transform/LayerNorm/gamma", False),
        "mlm/bias": ("cls/predictions/output_bias", False),
        "nsp/dense/kernel": ("cls/seq_relationship/output_weights", False),
        "nsp/dense/bias": ("cls/seq_relationship/output_bias", False),
    }
    assert expected.items() <= found.items()
    assert len(set(found.values())) == len(found)


def test_names_in_flax_trees():
    found = {path: flax_name(parameter) for path, parameter in names_of().items()}
    layer = "bert/encoder/layer/1"
    expected = {
        "encoder/embeddings/word/embedding": ("bert/embeddings/word_embeddings/embedding", False),
        "encoder/embeddings/layer_norm/scale": ("bert/embeddings/LayerNorm/scale", False),
        "encoder/layers_1/attention/query/kernel": (f"{layer}/attention/self/query/kernel", True),
        "encoder/layers_1/attention/layer_norm/bias": (f"{layer}/attention/output/LayerNorm/bias", False),
        "encoder/layers_1/feed_forward/output/kernel": (f"{layer}/output/dense/kernel", True),
        "pooler/dense/bias": ("bert/pooler/dense/bias", False),
        "mlm/bias": ("cls/predictions/bias", False),
        "nsp/dense/kernel": ("cls/seq_relationship/kernel", True),
    }
    assert expected.items() <= found.items()


def test_layouts_turn_back_into_themselves():
    rng = np.random.default_rng(0)
    for path, parameter in names_of().items():
        array = rng.standard_normal(parameter.torch_shape)
        ours = parameter.from_torch(array)
        assert ours.shape == parameter.shape, path
        np.testing.assert_array_equal(parameter.to_torch(ours), array, err_msg=path)


def test_heads_lie_on_axes_of_their_own():
    query = names_of()["encoder/layers_0/attention/query/kernel"]
    weight = np.arange(32 * 32).reshape(32, 32)
    # torch: [outputs, inputs]; output 8 is the first of the second head of 8.
    np.testing.assert_array_equal(query.from_torch(weight)[:, 1, 0], weight[8])
    output = names_of()["encoder/layers_0/attention/output/kernel"]
    np.testing.assert_array_equal(output.from_torch(weight)[1, 0], weight[:, 8])


def test_every_module_stands_in_the_table_once():
    modules = [row.module for row in TABLE]
    assert len(set(modules)) == len(modules)
    assert DECODER.keys() == {base for row in TABLE for base in row.names}


def test_what_a_file_says_is_shown_on_one_line():
    assert shown("encoder.größe.词") == "encoder.größe.词"
    assert shown("a\nb\x1b[2J\ud800\u2028") == r"a\nb\x1b[2J\ud800\u2028"
    assert shown("a" * 130) == "a" * 120 + "... (130 characters)"
    assert shown([1, "\n"]) == r"[1, '\n']"
