"""flax_model.msgpack, as the Flax classes of transformers 4 wrote it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from made_models import BERT, VOCAB, WIDTH, bert_for_pretraining, state, torch_model, write_folder

from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError


def flax_tree(arrays: dict[str, np.ndarray]) -> dict:
    """torch names and arrays as FlaxBertForPreTraining has them; by hand, not by our table."""
    flat = {}
    for name, array in arrays.items():
        *module, leaf = name.split(".")
        if leaf == "weight":
            leaf = "scale" if "norm" in module[-1].lower() else "embedding" if "_embeddings" in module[-1] else "kernel"
        flat[(*module, leaf)] = jnp.asarray(array.T if leaf == "kernel" else array)
    return traverse_util.unflatten_dict(flat)


def write(folder: pathlib.Path, tree: dict, settings: dict | None = None) -> pathlib.Path:
    folder.mkdir()
    (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(tree))
    config = settings or (BERT | {"model_type": "bert", "type_vocab_size": 2})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bert_tree() -> dict:
    return flax_tree(state(bert_for_pretraining()))


def test_it_is_the_model_that_the_torch_file_is(tmp_path: pathlib.Path):
    expected = load(write_folder(tmp_path / "torch"))
    for number, tree in enumerate((bert_tree(), {"params": bert_tree()})):
        loaded = load(write(tmp_path / f"flax{number}", tree))
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
        assert loaded.config == expected.config
        assert loaded.groups == ("pooler", "mlm", "nsp")


def test_an_encoder_alone_and_a_decoder_that_repeats_the_table(tmp_path: pathlib.Path):
    alone = bert_tree()["bert"]
    assert load(write(tmp_path / "alone", alone)).groups == ("pooler",)
    tree = bert_tree()
    table = tree["bert"]["embeddings"]["word_embeddings"]["embedding"]
    tree["cls"]["predictions"]["decoder"] = {"kernel": table.T}
    assert load(write(tmp_path / "tied", tree)).groups == ("pooler", "mlm", "nsp")
    tree["cls"]["predictions"]["decoder"] = {"kernel": table.T + 1}
    with pytest.raises(WeightsError, match="cls/predictions/decoder/kernel differs from what a tied decoder repeats"):
        load(write(tmp_path / "untied", tree))


def test_a_file_of_a_terabyte_is_not_read(tmp_path: pathlib.Path):
    folder = write(tmp_path / "huge", bert_tree())
    with (folder / "flax_model.msgpack").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(
        WeightsError, match=r"has 1,099,511,627,776 bytes, and what the configuration describes [\d,]+ at most"
    ):
        load(folder)


def test_a_decoder_of_its_own(tmp_path: pathlib.Path):
    tree = bert_tree()
    table = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    tree["cls"]["predictions"]["decoder"] = {"kernel": table.T}
    settings = BERT | {"model_type": "bert", "type_vocab_size": 2, "tie_word_embeddings": False}
    loaded = load(write(tmp_path / "untied", tree, settings))
    np.testing.assert_array_equal(loaded.params["mlm"]["decoder"]["embedding"][:VOCAB], table)
    np.testing.assert_array_equal(loaded.params["mlm"]["bias"][:VOCAB], tree["cls"]["predictions"]["bias"])


def test_another_family(tmp_path: pathlib.Path):
    model = torch_model("RobertaForMaskedLM", "roberta")
    loaded = load(
        write(tmp_path / "flax", flax_tree(state(model)), json.loads(model.config.to_json_string(use_diff=False)))
    )
    expected = load(write_folder(tmp_path / "torch", model))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


def unknown_name(tree: dict) -> bytes:
    return serialization.to_bytes(tree | {"stranger": np.zeros(3, np.float32)})


def other_shape(tree: dict) -> bytes:
    tree["bert"]["pooler"]["dense"]["bias"] = np.zeros(31, np.float32)
    return serialization.to_bytes(tree)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unknown_name, "1 unexpected (stranger)"),
        (other_shape, "bert/pooler/dense/bias is [31] there"),
        (lambda tree: serialization.to_bytes(tree)[:-1000], "is damaged"),
        (lambda tree: b"", "is damaged"),
        (lambda tree: b"\x93\x01\x02\x03", "holds no tree of arrays"),
        (lambda tree: b"\xdf\xff\xff\xff\xff", "is damaged"),
        (lambda tree: b"\x81\x01\x02", "holds no tree of arrays"),
        (lambda tree: b"\x81\xa1a" * 400 + b"\x01", "holds no tree of arrays"),
        (lambda tree: b"\x81\xa1a" * 100_000 + b"\x01", "is damaged"),
        (lambda tree: serialization.to_bytes({"a": "text"}), "a is no array"),
        (lambda tree: serialization.to_bytes({"a": np.arange(3)}), "a is no array"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: pathlib.Path, make, message: str):
    folder = write(tmp_path / "bad", {})
    (folder / "flax_model.msgpack").write_bytes(make(bert_tree()))
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert "flax_model.msgpack" in str(caught.value)
    assert "\n" not in str(caught.value)
