"""Tensors -> tree and back: which names and shapes are refused, what is made new, and in which layout it comes."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util
from made_models import bert_for_pretraining, state, torch_model

from jaxbert.model.bert import BertForPreTraining
from jaxbert.weights.assemble import Request, Tensor, assemble
from jaxbert.weights.configuration import read_configuration
from jaxbert.weights.disassemble import disassemble
from jaxbert.weights.names import WeightsError
from jaxbert.weights.tree import Layout, from_tree, tree_shapes


def tensors_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: Tensor(name, array.shape, lambda array=array: array) for name, array in arrays.items()}


def bert_arrays() -> dict[str, np.ndarray]:
    return state(bert_for_pretraining())


def layout(scan_layers: bool = False) -> Layout:
    return read_configuration(bert_for_pretraining().config.to_dict(), "config", scan_layers).layout


def taken(arrays: dict[str, np.ndarray], the_layout: Layout | None = None, **request):
    return assemble(tensors_of(arrays), the_layout or layout(), Request(**request), "FILE")


def flat(params) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(params, sep="/")


def assert_same(found, expected) -> None:
    assert flat(found).keys() == flat(expected).keys()
    for path, array in flat(expected).items():
        np.testing.assert_array_equal(flat(found)[path], array, err_msg=path)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_tree_is_the_one_that_the_model_makes(scan_layers: bool):
    the_layout = layout(scan_layers)
    model = BertForPreTraining(the_layout.config)
    one = np.zeros((1, 1), np.int32)
    expected = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), one, one, one))["params"]
    params = taken(bert_arrays(), the_layout).params
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_shapes_of_the_tree_are_known_without_the_model(scan_layers: bool):
    plain = layout(scan_layers).config
    for config in (
        plain,
        dataclasses.replace(plain, tie_word_embeddings=False, embedding_size=20, type_vocab_size=0, pad_vocab_to=7),
    ):
        one = np.zeros((1, 1), np.int32)
        model = BertForPreTraining(config)
        expected = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), one, one, one))["params"]
        found = tree_shapes(Layout(config), ("encoder", "pooler", "mlm", "nsp"))
        assert found == {path: leaf.shape for path, leaf in flat(expected).items()}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_in_and_out_again_is_byte_equal(scan_layers: bool):
    arrays, the_layout = bert_arrays(), layout(scan_layers)
    out = disassemble(taken(arrays, the_layout).params, the_layout, ("pooler", "mlm", "nsp"))
    assert out.keys() == arrays.keys()
    for name, array in arrays.items():
        assert out[name].tobytes() == array.tobytes(), name
        assert out[name].shape == array.shape, name


def test_padding_of_the_vocabulary_is_added_and_taken_off():
    arrays, the_layout = bert_arrays(), layout()
    params = taken(arrays).params
    table, bias = params["encoder"]["embeddings"]["word"]["embedding"], params["mlm"]["bias"]
    assert table.shape == (256, 32)
    assert bias.shape == (256,)
    assert not table[131:].any()
    assert not bias[131:].any()
    ours = from_tree(params, the_layout.config)
    np.testing.assert_array_equal(ours["mlm/bias"], arrays["cls.predictions.bias"])


def test_forms_of_the_same_names_are_taken_alike():
    arrays = bert_arrays()
    expected = taken(arrays).params
    bare = {name.removeprefix("bert."): array for name, array in arrays.items()}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in bare.items()
    }
    word = arrays["bert.embeddings.word_embeddings.weight"]
    twice = arrays | {
        "cls.predictions.decoder.weight": word,
        "cls.predictions.decoder.bias": arrays["cls.predictions.bias"],
        "bert.embeddings.position_ids": np.arange(24)[None],
    }
    only_decoder = {k: v for k, v in twice.items() if k != "cls.predictions.bias"}
    for form in (bare, old, twice, only_decoder):
        assert_same(taken(form).params, expected)


def test_a_decoder_that_differs_is_refused_where_it_should_be_tied():
    arrays = bert_arrays()
    arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"] + 1e-7
    with pytest.raises(
        WeightsError, match=r"^FILE: cls.predictions.decoder.weight differs .* tie_word_embeddings .* heads=\(\)"
    ):
        taken(arrays)
    arrays["cls.predictions.decoder.weight"] = np.zeros((5, 32), np.float32)
    with pytest.raises(WeightsError, match="differs from what a tied decoder repeats"):
        taken(arrays)
    alone = taken(arrays, heads=("pooler",))
    assert alone.params.keys() == {"encoder", "pooler"}
    assert "cls.predictions.decoder.weight" in alone.unread


def test_missing_unexpected_and_misshapen_names_are_refused_together():
    arrays = bert_arrays()
    del arrays["bert.encoder.layer.1.output.dense.weight"]
    arrays["bert.encoder.layer.7.output.dense.weight"] = np.zeros((2, 2), np.float32)
    arrays["bert.pooler.dense.bias"] = np.zeros(31, np.float32)
    with pytest.raises(WeightsError) as caught:
        taken(arrays)
    text = str(caught.value)
    assert "\n" not in text
    assert "1 missing (bert.encoder.layer.1.output.dense.weight)" in text
    assert "1 unexpected (bert.encoder.layer.7.output.dense.weight)" in text
    assert "1 of another shape (bert.pooler.dense.bias is [31] there and [32] by the configuration)" in text
    assert "allow_missing=" in text
    assert "allow_unexpected=" in text


def test_many_names_are_counted_and_the_first_named():
    arrays = {name: a for name, a in bert_arrays().items() if ".layer.1." not in name}
    with pytest.raises(WeightsError, match=r"16 missing \(bert\.\S+, bert\.\S+, bert\.\S+ and 13 more\)"):
        taken(arrays)


def test_nothing_is_read_before_all_is_known_to_fit():
    tensors = tensors_of(bert_arrays())

    def read():
        raise AssertionError("read too early")

    tensors = {name: dataclasses.replace(tensor, read=read) for name, tensor in tensors.items()}
    tensors["stranger"] = Tensor("stranger", (1,), read)
    with pytest.raises(WeightsError, match="stranger"):
        assemble(tensors, layout(), Request(), "FILE")


def test_allowed_names_are_made_new_or_left():
    arrays = bert_arrays()
    del arrays["bert.encoder.layer.1.output.LayerNorm.weight"]
    arrays["probe.weight"] = np.zeros(3, np.float32)
    found = taken(arrays, allow_missing=("*.layer.1.*.LayerNorm.*",), allow_unexpected=("probe.*",))
    assert found.fresh == ("encoder/layers_1/feed_forward/layer_norm/scale",)
    assert found.unread == ("probe.weight",)
    np.testing.assert_array_equal(found.params["encoder"]["layers_1"]["feed_forward"]["layer_norm"]["scale"], 1.0)


def test_a_head_that_is_asked_for_and_missing_needs_fresh():
    arrays = {name: array for name, array in bert_arrays().items() if not name.startswith("cls.")}
    assert taken(arrays, dataclasses.replace(layout(), required=())).params.keys() == {"encoder", "pooler"}
    with pytest.raises(WeightsError, match=r"missing .*fresh=\('mlm', 'nsp'\)"):
        taken(arrays, dataclasses.replace(layout(), required=("mlm", "nsp")))
    found = taken(arrays, fresh=("mlm", "nsp"))
    heads = {f"mlm/{x}" for x in ("bias", "dense/kernel", "dense/bias", "layer_norm/scale", "layer_norm/bias")}
    assert set(found.fresh) == heads | {"nsp/dense/kernel", "nsp/dense/bias"}
    kernel = found.params["mlm"]["dense"]["kernel"]
    # A truncated normal of 0.02, cut at two of them.
    assert 0.015 < kernel.std() < 0.025
    assert np.abs(kernel).max() < 0.046
    np.testing.assert_array_equal(found.params["mlm"]["layer_norm"]["scale"], 1.0)
    np.testing.assert_array_equal(found.params["nsp"]["dense"]["bias"], 0.0)
    assert_same(taken(arrays, fresh=("mlm", "nsp")).params, found.params)
    other = taken(arrays, fresh=("mlm", "nsp"), seed=1).params
    assert not np.array_equal(other["mlm"]["dense"]["kernel"], kernel)


def test_half_a_head_is_no_case_for_fresh():
    arrays = bert_arrays()
    del arrays["cls.seq_relationship.bias"]
    with pytest.raises(WeightsError, match="1 missing"):
        taken(arrays, fresh=("nsp",))


def test_a_head_that_nobody_wants_is_left_and_said():
    found = taken(bert_arrays(), heads=("mlm",))
    assert found.params.keys() == {"encoder", "mlm"}
    assert "cls.seq_relationship.weight" in found.unread


def test_an_unknown_head_is_refused():
    with pytest.raises(WeightsError, match=r"no head 'cls'.*pooler, mlm"):
        taken(bert_arrays(), heads=("cls",))


def test_one_parameter_under_two_names_is_refused():
    arrays = bert_arrays()
    arrays["bert.embeddings.LayerNorm.gamma"] = arrays["bert.embeddings.LayerNorm.weight"]
    with pytest.raises(WeightsError, match="there twice"):
        taken(arrays)


def test_an_export_refuses_what_is_missing_misshapen_or_not_finite():
    the_layout, params = layout(), taken(bert_arrays()).params
    with pytest.raises(WeightsError, match="have no mlm/dense/kernel"):
        disassemble({"encoder": params["encoder"]}, the_layout, ("mlm",))
    wider = dataclasses.replace(the_layout, config=dataclasses.replace(the_layout.config, intermediate_size=50))
    with pytest.raises(WeightsError, match=r"kernel is \[32, 48\] and the configuration says \[32, 50\]"):
        disassemble(params, wider, ())
    params["encoder"]["layers_0"]["attention"]["key"]["bias"][1, 2] = np.nan
    with pytest.raises(WeightsError, match="layers_0/attention/key/bias is not finite"):
        disassemble(params, the_layout, ())


def test_rows_that_no_token_uses_are_carried():
    model = torch_model("RobertaForMaskedLM", "roberta")
    the_layout = read_configuration(model.config.to_dict(), "config").layout
    arrays = state(model)
    found = taken(arrays, the_layout)
    name = "roberta.embeddings.position_embeddings.weight"
    position = found.params["encoder"]["embeddings"]["position"]["embedding"]
    np.testing.assert_array_equal(position, arrays[name][2:])
    out = disassemble(found.params, the_layout, ("mlm",), found.carried)
    assert {k: v.tobytes() for k, v in out.items()} == {k: v.tobytes() for k, v in arrays.items()}
    assert not disassemble(found.params, the_layout, ())[name][:2].any()


def test_names_of_a_file_are_shown_on_one_line():
    with pytest.raises(WeightsError, match=r"1 unexpected \(a\\nb\\x1b\[2J") as caught:
        taken(bert_arrays() | {"a\nb\x1b[2J" + "c" * 10**5: np.zeros(1, np.float32)})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_encoder_cannot_be_made_new():
    heads = {name: array for name, array in bert_arrays().items() if name.startswith("cls.")}
    with pytest.raises(WeightsError, match="name weights that hold an encoder") as caught:
        taken(heads, heads=("mlm",))
    assert "fresh=" not in str(caught.value)
