"""Google's checkpoints, as tf.compat.v1 writes them."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
from made_models import BERT, bert_for_pretraining, state, write_folder

from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError


def google_name(name: str) -> tuple[str, bool]:
    """A torch name as google-research/bert has it, and whether its array is transposed there; by hand, not by our table."""
    heads = {
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    }
    if name in heads:
        return heads[name], False
    path = name.replace("layer.", "layer_").replace(".", "/")
    if "LayerNorm" in name:
        return path.replace("/weight", "/gamma").replace("/bias", "/beta"), False
    if "_embeddings" in name:
        return path.replace("/weight", ""), False
    return path.replace("/weight", "/kernel"), path.endswith("/weight")


@pytest.fixture(scope="module")
def google_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint as run_pretraining.py leaves one: with Adam's slots and the step."""
    folder = tmp_path_factory.mktemp("google")
    graph = tf.Graph()
    with graph.as_default():
        for name, array in state(bert_for_pretraining()).items():
            google, transposed = google_name(name)
            variable = tf.compat.v1.get_variable(
                google, initializer=array.T if transposed else array, use_resource=False
            )
            for slot in ("adam_m", "adam_v"):
                tf.compat.v1.get_variable(f"{google}/{slot}", initializer=np.zeros(variable.shape, np.float32))
        tf.compat.v1.get_variable("global_step", initializer=np.int64(7), trainable=False)
        with tf.compat.v1.Session(graph=graph) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(folder / "bert_model.ckpt"), write_meta_graph=False)
    settings = {k: v for k, v in BERT.items() if k not in ("num_labels", "attn_implementation")}
    rest = {"hidden_act": "gelu", "type_vocab_size": 2, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
    (folder / "bert_config.json").write_text(json.dumps(settings | rest | {"initializer_range": 0.02}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    return folder


def test_it_is_the_model_that_the_torch_file_is(google_folder: pathlib.Path, tmp_path: pathlib.Path):
    loaded, expected = load(google_folder), load(write_folder(tmp_path / "torch"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.config == expected.config
    assert loaded.tokenizer == google_folder
    assert (loaded.fresh, loaded.unread) == ((), ())
    assert load(google_folder / "bert_model.ckpt", heads=()).groups == ()


def copied(google_folder: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(google_folder, folder))


def change_config(folder: pathlib.Path, **change) -> None:
    path = folder / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def cut(folder: pathlib.Path, pattern: str) -> None:
    file = next(folder.glob(pattern))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_data(folder: pathlib.Path) -> None:
    next(folder.glob("*.data-*")).unlink()


def no_config(folder: pathlib.Path) -> None:
    (folder / "bert_config.json").unlink()


def two(folder: pathlib.Path) -> None:
    shutil.copy(folder / "bert_model.ckpt.index", folder / "model.ckpt-9.index")


def linked(folder: pathlib.Path) -> None:
    file = next(folder.glob("*.data-*"))
    file.rename(folder.parent / "data")
    file.symlink_to(folder.parent / "data")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            functools.partial(change_config, hidden_size=64),
            "of another shape (bert/embeddings/word_embeddings is [131, 32]",
        ),
        (functools.partial(cut, pattern="*.index"), "is damaged"),
        (functools.partial(cut, pattern="*.data-*"), "is damaged"),
        (no_data, "no .data-* file"),
        (no_config, "has no bert_config.json"),
        (two, "several weight files"),
        (linked, "is a link out of its folder"),
    ],
)
def test_bad_checkpoints_are_refused_in_one_line(
    google_folder: pathlib.Path, tmp_path: pathlib.Path, damage, message: str
):
    folder = copied(google_folder, tmp_path / "bad")
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
