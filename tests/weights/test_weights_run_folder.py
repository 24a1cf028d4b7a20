"""A jaxbert run in: the newest whole checkpoint, in either layout, and nothing changed there."""

import dataclasses
import json
import pathlib
import time

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_models import MLP, POSITIONS, VOCAB, WIDTH

from jaxbert import command_line
from jaxbert.config import CheckpointConfig, Config, ModelConfig
from jaxbert.model.bert import BertForPreTraining
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import SPECIAL, bert_tokenizer
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.weights.huggingface import save
from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError

MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_layers=2,
    num_heads=4,
    intermediate_size=MLP,
    max_position_embeddings=POSITIONS,
    scan_layers=True,
)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    moments: dict


def params_of(step: int) -> dict:
    one = jnp.zeros((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(BertForPreTraining(MODEL).init, jax.random.key(0), one, one, one))["params"]
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with checkpoints of steps 3 and 6."""
    folder = tmp_path / "run"
    ran = dataclasses.replace(MODEL, dtype="bfloat16", attention_backend="cudnn", attention_dropout=0.0)
    command_line.save(Config(model=ran, workdir=str(folder)), folder / "config.json")
    with Checkpoints(folder, CheckpointConfig(every=3)) as checkpoints:
        for step in (3, 6):
            params = params_of(step)
            checkpoints.save(step, State(jnp.int32(step), params, jax.tree.map(jnp.ones_like, params)))
    return folder


def listing(folder: pathlib.Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def assert_same(found, expected) -> None:
    expected = jax.tree.map(np.array, expected)
    # What training does to padding's rows is nobody's business outside.
    expected["encoder"]["embeddings"]["word"]["embedding"][VOCAB:] = 0
    expected["mlm"]["bias"][VOCAB:] = 0
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_newest_checkpoint_is_read_and_nothing_written(run: pathlib.Path, tmp_path: pathlib.Path):
    before = listing(run)
    loaded = load(run)
    assert loaded.step == 6
    # How it computed is a matter of the machine that it ran on.
    assert loaded.config == dataclasses.replace(MODEL, attention_dropout=0.0)
    assert_same(loaded.params, params_of(6))
    assert listing(run) == before
    single = load(run, scan_layers=False, heads=("mlm",))
    assert single.params.keys() == {"encoder", "mlm"}
    assert not single.config.scan_layers
    kernel = params_of(6)["encoder"]["layers"]["attention"]["query"]["kernel"][1]
    np.testing.assert_array_equal(single.params["encoder"]["layers_1"]["attention"]["query"]["kernel"], kernel)
    again = load(save(tmp_path / "out", **loaded.export_arguments()), scan_layers=True)
    assert_same(again.params, params_of(6))


def test_a_damaged_checkpoint_is_passed_over(run: pathlib.Path):
    for step in (6, 3):
        assert load(run).step == step
        file = max(
            (run / "checkpoints" / str(step)).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
        )
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(
        WeightsError,
        match=r"no checkpoint that is whole \(6: .* does not match its sha256; 3: .* does not match its sha256",
    ) as caught:
        load(run)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_another_model_is_refused(run: pathlib.Path):
    command_line.save(Config(model=dataclasses.replace(MODEL, intermediate_size=50)), run / "config.json")
    with pytest.raises(WeightsError, match=r"in checkpoint 6, \S+ is \(.*\) and by config.json \(.*50"):
        load(run)
    (run / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"config.json: not a run's config.json"):
        load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "model.num_heads 0 is no whole number from 1 to"),
        ({"num_heads": 5}, "model.num_heads 5 does not divide model.hidden_size 32"),
        ({"num_layers": -1}, "model.num_layers -1 is no whole number from 1 to 1024"),
        ({"num_layers": 5000}, "model.num_layers 5000 is no whole number"),
        ({"num_layers": 1000}, "in checkpoint 6, encoder/layers/.* is .* and by config.json"),
        ({"num_layers": 1000, "scan_layers": False}, "in checkpoint 6, encoder/layers.* is .* and by config.json"),
        ({"vocab_size": 2**31 - 1}, "in checkpoint 6, .* and by config.json"),
        ({"hidden_size": 2**40}, "model.hidden_size 1099511627776 is no whole number"),
        ({"pad_vocab_to": 0}, "model.pad_vocab_to 0 is no whole number"),
        ({"embedding_size": 0}, "model.embedding_size 0 is no whole number"),
        ({"hidden_dropout": 1.5}, "model.hidden_dropout 1.5 is no number below 1"),
        ({"a\nb": 1}, r"model.a\\nb: there is no such field"),
    ],
)
def test_a_configuration_that_lies_is_refused_before_a_model_is_made(run: pathlib.Path, change: dict, message: str):
    path = run / "config.json"
    values = json.loads(path.read_text())
    values["config"]["model"] |= change
    path.write_text(json.dumps(values))
    start = time.monotonic()
    with pytest.raises(WeightsError, match=message) as caught:
        load(run)
    assert "\n" not in str(caught.value)
    # A model of so many layers is traced for a minute.
    assert time.monotonic() - start < 5


def test_its_tokenizer_is_found(run: pathlib.Path):
    assert load(run).tokenizer is None
    pieces = {piece: i for i, piece in enumerate(SPECIAL)}
    for name in ("abc", "def"):
        folder = run / "rows" / name / "tokenizer"
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": pieces}}))
        if name == "abc":
            assert load(run).tokenizer == folder
    # Of several, the one of the rows that the run says it learnt from.
    assert load(run).tokenizer is None
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": "def012345"}))
    assert load(run).tokenizer == folder


def test_an_export_says_what_the_padding_of_the_runs_tokenizer_is(run: pathlib.Path, tmp_path: pathlib.Path):
    pieces = {piece: i for i, piece in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    save_tokenizer(bert_tokenizer(pieces, lowercase=True), run / "rows" / "abc" / "tokenizer", POSITIONS)
    loaded = load(run)
    assert loaded.extra == {}
    folder = save(tmp_path / "exported", **loaded.export_arguments())
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1


def test_a_head_that_a_run_does_not_have(run: pathlib.Path):
    with pytest.raises(WeightsError, match=r"has no head 'sequence': it has encoder, .*fresh="):
        load(run, heads=("sequence",))


def test_a_new_head_over_a_run(run: pathlib.Path):
    loaded = load(run, fresh=("token",))
    assert loaded.fresh == ("token/dense/kernel", "token/dense/bias")
    kernel = loaded.params["token"]["dense"]["kernel"]
    assert kernel.std() > 0
    assert set(load(run).params) | {"token"} == set(loaded.params)
    with pytest.raises(WeightsError, match="there is no head 'tokens'"):
        load(run, fresh=("tokens",))
