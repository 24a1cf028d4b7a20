"""The model as a whole: initialisation, size, scan and remat, padding and packing, dropout, types, padded vocabulary."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util

import jaxbert.model.attention
import jaxbert.model.encoder
from jaxbert.config import ModelConfig
from jaxbert.model.bert import BertEncoder, BertForPreTraining
from jaxbert.model.encoder import activation, layer_norm
from jaxbert.model.heads import MlmHead

DRY = ModelConfig(
    vocab_size=100,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.2,
)
WET = dataclasses.replace(DRY, hidden_dropout=0.1, attention_dropout=0.1)
ONE_LAYER = dataclasses.replace(DRY, num_layers=1)
LENGTHS = (12, 7, 4)


def make_batch(columns=12, padding_rows=0):
    """Rows of 12, 7 and 4 tokens; what lies in the padding (ids, segments, positions) is drawn anew for each shape."""
    generator = np.random.default_rng(columns)
    batch = {
        "input_ids": generator.integers(0, 100, (3 + padding_rows, columns)),
        "token_type_ids": generator.integers(0, 2, (3 + padding_rows, columns)),
        "sequence_ids": np.zeros((3 + padding_rows, columns), int),
        "position_ids": generator.integers(0, 32, (3 + padding_rows, columns)),
    }
    real = np.random.default_rng(0)
    for row, length in enumerate(LENGTHS):
        batch["input_ids"][row, :length] = real.integers(5, 100, length)
        batch["token_type_ids"][row, :length] = np.arange(length) >= length // 2
        batch["sequence_ids"][row, :length] = 1
        batch["position_ids"][row, :length] = np.arange(length)
    return batch


def packed_batch():
    """The three rows of `make_batch` one behind the other in one row, and a token of padding."""
    batch, packed = make_batch(), {}
    for name, values in batch.items():
        pieces = [
            values[row, :length] * (row + 1 if name == "sequence_ids" else 1) for row, length in enumerate(LENGTHS)
        ]
        packed[name] = np.concatenate([*pieces, [0]])[None]
    return packed


@functools.cache
def parameters(config=DRY):
    """Parameters of `config`, those of a scanned model stacked from the others."""
    if config.scan_layers:
        params = dict(parameters(dataclasses.replace(config, scan_layers=False)))
        encoder = dict(params["encoder"])
        blocks = [encoder.pop(f"layers_{number}") for number in range(config.num_layers)]
        return {**params, "encoder": encoder | {"layers": jax.tree.map(lambda *x: np.stack(x), *blocks)}}
    one = jnp.zeros((1, 1), jnp.int32)
    return jax.tree.map(
        np.asarray, nn.unbox(jax.jit(BertForPreTraining(config).init)(jax.random.key(1), one, one, one))
    )["params"]


@functools.cache
def results(config=DRY, columns=12, padding_rows=0, seed=None):
    """Logits, and the gradient of a loss that reads every logit of every real token and sequence."""
    batch = make_batch(columns, padding_rows)
    real = jnp.asarray(batch["sequence_ids"] == 1)

    def loss(params):
        rngs = None if seed is None else {"dropout": jax.random.key(seed)}
        out = BertForPreTraining(config).apply({"params": params}, **batch, deterministic=seed is None, rngs=rngs)
        # Sums over 100 logits of a fixed direction: a mean or a plain sum would leave most gradients at 0.
        direction = jnp.cos(jnp.arange(100.0))
        tokens = jnp.where(real, jnp.tanh(jax.nn.softmax(out.mlm_logits_BxPxV)[..., :100] @ direction), 0.0)
        sequences = jnp.where(real[:, :1], jnp.sin(out.nsp_logits_BxSx2[:, 0]), 0.0)
        return 10 * jnp.sum(tokens) + jnp.sum(sequences[:, 0]), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(parameters(dataclasses.replace(config, remat=False)))
    return jax.tree.map(np.asarray, out), jax.tree.map(np.asarray, gradients)


def assert_same(left, right, tolerance):
    left, right = (traverse_util.flatten_dict(tree, sep="/") for tree in (left, right))
    assert left.keys() == right.keys()
    for path, expected in right.items():
        # Gradients here reach 12, of which float32 has seven digits.
        np.testing.assert_allclose(left[path], expected, rtol=1e-6, atol=tolerance, err_msg=path)


def unstacked(params):
    """A scanned model's tree in the form of the other."""
    encoder = dict(params["encoder"])
    layers = encoder.pop("layers")
    blocks = {f"layers_{number}": jax.tree.map(lambda x, n=number: x[n], layers) for number in range(DRY.num_layers)}
    return {**params, "encoder": encoder | blocks}


def test_initial_parameters_are_berts():
    """google-research/bert: truncated normal of 0.02, cut at two deviations; biases 0, LayerNorm scales 1."""
    config = dataclasses.replace(ONE_LAYER, hidden_size=64, initializer_range=0.02)
    named = traverse_util.flatten_dict(parameters(config), sep="/")
    for path, values in named.items():
        kind = path.rsplit("/", 1)[-1]
        assert kind in ("kernel", "embedding", "bias", "scale"), path
        if kind in ("bias", "scale"):
            assert (values == (kind == "scale")).all(), path
            continue
        assert np.abs(values).max() <= 0.04 * (1 + 1e-6), path
        # The deviation of a normal that is cut at two deviations is 0.8796 of the whole one's.
        error = 0.02 / math.sqrt(values.size)
        assert abs(values.mean()) < 5 * error, path
        assert abs(values.std() - 0.8796 * 0.02) < 5 * error, path
    flat = [values.ravel()[:60] for path, values in named.items() if path.endswith(("kernel", "embedding"))]
    assert len({values.tobytes() for values in flat}) == len(flat)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (
            {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096, "scan_layers": True},
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        ),
    ],
)
def test_published_sizes_have_as_many_parameters_as_transformers(ours, theirs):
    """At the real size, by shapes alone; ours has 70 rows of padding in the table and in the bias."""
    config, one = ModelConfig(vocab_size=30522, **ours), jnp.zeros((1, 1), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(BertForPreTraining(config).init, jax.random.key(0), one, one, one))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    with torch.device("meta"):
        peer = transformers.BertForPreTraining(transformers.BertConfig(**theirs))
    assert config.padded_vocab_size == 30592
    assert count - 70 * (config.hidden_size + 1) == peer.num_parameters()


def test_layer_norm_has_berts_epsilon_and_statistics_in_float32():
    norm = layer_norm(DRY, None)
    x = np.array([[[1e-5, -1e-5] * 16]], np.float32)
    variables = nn.unbox(norm.init(jax.random.key(0), x))
    # An epsilon of 1e-6 would make this 0.01.
    np.testing.assert_allclose(norm.apply(variables, x), 1e5 * x / math.sqrt(1 + 1e-2), rtol=1e-4)
    half = jnp.asarray(256 + 2.0 * np.random.default_rng(0).integers(-8, 9, (1, 1, 32)), jnp.bfloat16)
    out = layer_norm(dataclasses.replace(DRY, dtype="bfloat16"), None).apply(variables, half)
    exact = np.asarray(half, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    assert out.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 digits; a sum in bfloat16 is off by whole units of 256.
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8, atol=2**-9)


def test_scanned_blocks_equal_blocks_one_after_the_other():
    out, gradients = results()
    scanned, scanned_gradients = results(dataclasses.replace(DRY, scan_layers=True))
    for ours, expected in zip(scanned, out, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    assert_same(unstacked(scanned_gradients), gradients, 1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_recomputes_with_the_same_dropout(scan_layers):
    config = dataclasses.replace(WET, scan_layers=scan_layers)
    _, gradients = results(config, seed=0)
    _, recomputed = results(dataclasses.replace(config, remat=True), seed=0)
    assert_same(recomputed, gradients, 1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_is_there(scan_layers):
    for remat in (False, True):
        config = dataclasses.replace(DRY, scan_layers=scan_layers, remat=remat)
        program = jax.make_jaxpr(lambda p, c=config: BertForPreTraining(c).apply({"params": p}, **make_batch()))
        assert ("remat" in str(program(parameters(dataclasses.replace(config, remat=False))))) == remat


def test_padding_changes_neither_outputs_nor_gradients():
    """More columns and a row of padding alone, with other rubbish in them; softmax over no key must not be NaN."""
    out, gradients = results()
    padded, padded_gradients = results(columns=16, padding_rows=1)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            padded.mlm_logits_BxPxV[row, :length, :100], out.mlm_logits_BxPxV[row, :length, :100], rtol=0, atol=1e-5
        )
    np.testing.assert_allclose(padded.nsp_logits_BxSx2[:3], out.nsp_logits_BxSx2, rtol=0, atol=1e-5)
    assert all(np.isfinite(values).all() for values in padded)
    assert_same(padded_gradients, gradients, 1e-5)
    weak = [
        path
        for path, values in traverse_util.flatten_dict(gradients, sep="/").items()
        if np.abs(values).max() < 1e-3 and not path.endswith("key/bias")
    ]
    assert not weak, "gradients too small to compare"


def test_packed_sequences_have_the_outputs_of_rows_of_their_own():
    """`tests/train/test_step.py` has the gradients."""
    packed, starts = packed_batch(), np.cumsum((0, *LENGTHS[:-1]))
    apply = jax.jit(
        lambda params, batch, cls: BertForPreTraining(DRY).apply({"params": params}, **batch, cls_positions=cls)
    )
    together, (out, _) = apply(parameters(), packed, starts[None]), results()
    for row, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
        np.testing.assert_allclose(
            together.mlm_logits_BxPxV[0, start : start + length, :100],
            out.mlm_logits_BxPxV[row, :length, :100],
            rtol=0,
            atol=1e-5,
        )
        np.testing.assert_allclose(together.nsp_logits_BxSx2[0, row], out.nsp_logits_BxSx2[row, 0], rtol=0, atol=1e-5)


def test_padding_of_the_vocabulary_is_never_predicted_and_never_trained():
    out, gradients = results()
    assert out.mlm_logits_BxPxV.shape == (3, 12, 128)
    assert (out.mlm_logits_BxPxV[..., 100:] < -1e8).all()
    assert not np.asarray(jax.nn.softmax(out.mlm_logits_BxPxV))[..., 100:].any()
    table = gradients["encoder"]["embeddings"]["word"]["embedding"]
    assert not table[100:].any()
    assert not gradients["mlm"]["bias"][100:].any()
    # The decoder's part: ids 0 to 4 are in no real token.
    assert table[:100].any(axis=1).all()


def test_a_decoder_of_its_own_leaves_the_word_table_to_the_input():
    config = dataclasses.replace(DRY, tie_word_embeddings=False)
    _, gradients = results(config)
    shared = traverse_util.flatten_dict(parameters(), sep="/")
    assert traverse_util.flatten_dict(gradients, sep="/").keys() - shared.keys() == {"mlm/decoder/embedding"}
    word, decoder = gradients["encoder"]["embeddings"]["word"]["embedding"], gradients["mlm"]["decoder"]["embedding"]
    assert word.shape == decoder.shape
    read = np.unique(make_batch()["input_ids"][make_batch()["sequence_ids"] == 1])
    assert np.flatnonzero(word.any(axis=1)).tolist() == read.tolist()
    assert np.flatnonzero(decoder.any(axis=1)).tolist() == list(range(100))


def test_mlm_head_sees_the_masked_positions_alone():
    """No array of the program holds anything over the vocabulary for every position of a row."""
    batch, positions = make_batch(), np.array([[3, 11], [1, 0], [2, 3]])
    config = ONE_LAYER
    apply = functools.partial(BertForPreTraining(config).apply, **batch, mlm_positions=positions)
    compiled = jax.jit(apply)
    text = compiled.lower({"params": parameters(config)}).as_text()
    assert "tensor<6x128xf32>" in text
    assert "tensor<36x128xf32>" not in text
    assert "tensor<3x12x128xf32>" not in text
    out = compiled({"params": parameters(config)})
    everywhere, _ = results(config)
    expected = np.take_along_axis(everywhere.mlm_logits_BxPxV, positions[..., None], axis=1)
    np.testing.assert_allclose(out.mlm_logits_BxPxV, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("takes_some", [("explicit",), ()])
@pytest.mark.parametrize("options", [{}, {"remat": True}, {"scan_layers": True}])
def test_last_block_at_some_positions_has_the_outputs_and_gradients_of_all(monkeypatch, takes_some, options):
    monkeypatch.setattr(jaxbert.model.encoder, "TAKES_SOME_QUERIES", takes_some)
    config, batch = dataclasses.replace(DRY, **options), packed_batch()
    positions = np.array([[20, 3, 0, 12, 13, 3]])

    def loss(params, chosen):
        apply = functools.partial(BertEncoder(config).apply, {"params": params["encoder"]}, *batch.values())
        hidden = apply(positions) if chosen else jnp.take_along_axis(apply(), positions[..., None], axis=1)
        return jnp.sum(jnp.sin(3 * hidden)), hidden

    params = parameters(dataclasses.replace(config, remat=False))
    some, all_of_them = (jax.jit(jax.grad(lambda p, c=c: loss(p, c), has_aux=True))(params) for c in (True, False))
    np.testing.assert_allclose(some[1], all_of_them[1], rtol=0, atol=1e-5)
    assert_same(some[0], all_of_them[0], 1e-4)


def test_last_block_computes_no_position_that_is_not_read():
    batch, positions = make_batch(), np.array([[3, 11], [1, 0], [2, 3]])
    apply = functools.partial(BertForPreTraining(ONE_LAYER).apply, **batch, mlm_positions=positions)
    text = jax.jit(apply).lower({"params": parameters(ONE_LAYER)}).as_text()
    # Two predictions and a [CLS] in each of three rows, at the width of the feed-forward layer.
    assert "tensor<9x64xf32>" in text
    assert "tensor<36x64xf32>" not in text


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_dropout_is_where_bert_has_it(monkeypatch, scan_layers):
    """Embeddings, attention probabilities, and the output of both sublayers of each block."""
    sites = []

    def record(x, rate, key):
        if rate > 0 and key is not None:
            sites.append((rate, x.shape))
        return x

    monkeypatch.setattr(jaxbert.model.encoder, "dropout", record)
    monkeypatch.setattr(jaxbert.model.attention, "dropout", record)
    config = dataclasses.replace(WET, hidden_dropout=0.25, attention_dropout=0.5, scan_layers=scan_layers)
    batch = make_batch()

    def trace(deterministic):
        sites.clear()
        rngs = {"dropout": jax.random.key(0)}
        run = functools.partial(BertEncoder(config).apply, deterministic=deterministic, rngs=rngs)
        jax.eval_shape(run, {"params": parameters(config)["encoder"]}, **batch)
        return list(sites)

    hidden, attention = (0.25, (3, 12, 32)), (0.5, (3, 4, 12, 12))
    block = [attention, hidden, hidden]
    # linen may trace a scanned block more than once.
    assert set(trace(False)) == {hidden, attention}
    if not scan_layers:
        assert trace(False) == [hidden, *block, *block]
    assert trace(True) == []


def test_each_dropout_rate_acts_alone_and_by_its_key():
    batch, params = make_batch(), parameters(ONE_LAYER)

    def run(config, deterministic, seed):
        rngs = {"dropout": jax.random.key(seed)}
        out = BertForPreTraining(config).apply({"params": params}, **batch, deterministic=deterministic, rngs=rngs)
        return out.nsp_logits_BxSx2

    run = jax.jit(run, static_argnums=(0, 1))
    dry = np.asarray(run(ONE_LAYER, False, 0))
    for rates in ({"hidden_dropout": 0.1}, {"attention_dropout": 0.1}):
        config = dataclasses.replace(ONE_LAYER, **rates)
        first, again, other = (np.asarray(run(config, False, seed)) for seed in (0, 0, 1))
        assert np.abs(first - dry).max() > 1e-3, rates
        assert np.abs(first - other).max() > 1e-3, rates
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(run(config, True, 0), dry)


def test_bfloat16_keeps_parameters_and_gradients_in_float32():
    config = dataclasses.replace(DRY, dtype="bfloat16")
    batch, one = make_batch(), jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(jax.eval_shape(BertForPreTraining(config).init, jax.random.key(0), one, one, one))["params"]
    hidden = jax.eval_shape(functools.partial(BertEncoder(config).apply, **batch), {"params": params["encoder"]})
    assert hidden.dtype == jnp.bfloat16

    def loss(params):
        out = BertForPreTraining(config).apply({"params": params}, **batch)
        assert [values.dtype for values in out] == [jnp.float32] * 2
        return jnp.sum(out.mlm_logits_BxPxV) + jnp.sum(out.nsp_logits_BxSx2)

    for tree in (params, jax.eval_shape(jax.grad(loss), params)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}


def test_in_bfloat16_no_product_reads_the_logits_gradient_in_float32():
    """It is the largest array of the step. What is lost are the digits that bfloat16 does not have."""
    generator = np.random.default_rng(0)
    hidden, weights = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in ((2, 3, 32), (2, 3, 128)))
    table = jnp.asarray(0.1 * generator.normal(size=(128, 32)), jnp.float32)

    def gradients(dtype):
        head = MlmHead(dataclasses.replace(DRY, dtype=dtype))
        variables = head.init(jax.random.key(0), hidden, table)
        read = jax.grad(lambda *x: jnp.sum(jnp.tanh(head.apply(variables, *x)) * weights), argnums=(0, 1))
        return jax.tree.map(np.asarray, read(hidden, table)), jax.jit(read).lower(hidden, table).as_text()

    (wide, _), (narrow, text) = gradients("float32"), gradients("bfloat16")
    products = [line.split("->")[0] for line in text.splitlines() if "dot_general" in line]
    # Some CPUs read it transposed.
    types = [type for operands in products for type in re.findall(r"<(?:6x128|128x6)x(\w+)>", operands)]
    assert types == ["bf16"] * 2
    for ours, reference in zip(narrow, wide, strict=True):
        assert ours.dtype == np.float32
        assert np.linalg.norm(ours - reference) < 2e-2 * np.linalg.norm(reference)


def test_gelu_is_exact_and_tanh_is_the_approximation():
    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    np.testing.assert_allclose(activation("gelu")(x), exact, rtol=0, atol=1e-6)
    slope = jax.vmap(jax.grad(activation("gelu")))(x)
    density = np.exp(-(x.astype(float) ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(
        slope, exact / np.where(x == 0, 1, x) * (x != 0) + 0.5 * (x == 0) + x * density, atol=2e-6
    )
    tanh = np.asarray(activation("gelu_tanh")(x))
    assert 1e-4 < np.abs(tanh - exact).max() < 1e-3
    half = jnp.asarray(x, jnp.bfloat16)
    rounded = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in np.asarray(half, float)])
    assert activation("gelu")(half).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(activation("gelu")(half), float), rounded, rtol=2**-8, atol=1e-6)
