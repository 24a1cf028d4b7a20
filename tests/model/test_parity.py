"""BertForPreTraining against a randomly initialised torch one: logits, loss, and the gradient of every parameter."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util

from jaxbert.config import ModelConfig
from jaxbert.model.bert import BertForPreTraining

SMALL = ModelConfig(
    vocab_size=131,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    dtype="float32",
)
CASES = {
    "two layers": dataclasses.replace(SMALL, num_layers=2),
    "gelu_tanh, xla attention": dataclasses.replace(
        SMALL, activation="gelu_tanh", attention_backend="xla", attention_dropout=0.0
    ),
    "relu, three token types, one head": dataclasses.replace(SMALL, activation="relu", type_vocab_size=3, num_heads=1),
    # Scanned, because twelve blocks one after the other take half a minute to compile.
    "twelve scanned layers": dataclasses.replace(SMALL, num_layers=12, num_heads=2, scan_layers=True),
}
TORCH_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def torch_model(config: ModelConfig) -> transformers.BertForPreTraining:
    # On tensors of this size threads only wait for one another.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            hidden_act=TORCH_ACTIVATION[config.activation],
            attn_implementation="eager",
        )
    ).eval()
    # Through twelve layers, scales of 3 would blow up the rounding of the first one.
    gain = 3.0 if config.num_layers <= 2 else 1.0
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases of 0 and scales of 1 would hide a mix-up; wider weights make attention less uniform.
            parameter.mul_(gain).add_(torch.randn_like(parameter) * 0.1)
    return model


def our_tree(named: dict[str, np.ndarray], config: ModelConfig) -> dict:
    """Arrays by HF name (weights, or their gradients) as a tree of ours; the vocabulary is padded with zeros."""
    width, heads, size = config.hidden_size, config.num_heads, config.head_size
    padding = config.padded_vocab_size - config.vocab_size

    def dense(name: str, kernel_shape=None, bias_shape=None) -> dict:
        kernel, bias = named[f"{name}.weight"].T, named[f"{name}.bias"]
        return {"kernel": kernel.reshape(kernel_shape or kernel.shape), "bias": bias.reshape(bias_shape or bias.shape)}

    def norm(name: str) -> dict:
        return {"scale": named[f"{name}.weight"], "bias": named[f"{name}.bias"]}

    def block(i: int) -> dict:
        layer = f"bert.encoder.layer.{i}"
        projections = {
            part: dense(f"{layer}.attention.self.{part}", (width, heads, size), (heads, size))
            for part in ("query", "key", "value")
        }
        return {
            "attention": projections
            | {
                "output": dense(f"{layer}.attention.output.dense", (heads, size, width)),
                "layer_norm": norm(f"{layer}.attention.output.LayerNorm"),
            },
            "feed_forward": {
                "intermediate": dense(f"{layer}.intermediate.dense"),
                "output": dense(f"{layer}.output.dense"),
                "layer_norm": norm(f"{layer}.output.LayerNorm"),
            },
        }

    embeddings = "bert.embeddings"
    word = named[f"{embeddings}.word_embeddings.weight"]
    blocks = [block(i) for i in range(config.num_layers)]
    layers = (
        {"layers": jax.tree.map(lambda *x: np.stack(x), *blocks)}
        if config.scan_layers
        else {f"layers_{i}": x for i, x in enumerate(blocks)}
    )
    return {
        "encoder": {
            "embeddings": {
                "word": {"embedding": np.pad(word, ((0, padding), (0, 0)))},
                "position": {"embedding": named[f"{embeddings}.position_embeddings.weight"]},
                "token_type": {"embedding": named[f"{embeddings}.token_type_embeddings.weight"]},
                "layer_norm": norm(f"{embeddings}.LayerNorm"),
            },
            **layers,
        },
        "pooler": {"dense": dense("bert.pooler.dense")},
        "mlm": {
            "dense": dense("cls.predictions.transform.dense"),
            "layer_norm": norm("cls.predictions.transform.LayerNorm"),
            "bias": np.pad(named["cls.predictions.bias"], (0, padding)),
        },
        "nsp": {"dense": dense("cls.seq_relationship")},
    }


def make_batch(config: ModelConfig) -> dict[str, np.ndarray]:
    """Three rows of 16, the second and third padded; two positions to predict in each."""
    rng = np.random.default_rng(0)
    lengths = np.array([16, 11, 5])
    real = np.arange(16)[None, :] < lengths[:, None]
    return {
        "input_ids": np.where(real, rng.integers(1, config.vocab_size, (3, 16)), 0),
        "token_type_ids": np.where(real, rng.integers(0, config.type_vocab_size, (3, 16)), 0),
        "sequence_ids": real.astype(np.int32),
        "mlm_positions": np.array([[3, 15], [1, 10], [2, 4]]),
        "mlm_labels": rng.integers(1, config.vocab_size, (3, 2)),
        "nsp_labels": np.array([[0], [1], [1]]),
    }


def torch_results(model, batch):
    labels = np.full(batch["input_ids"].shape, -100)
    np.put_along_axis(labels, batch["mlm_positions"], batch["mlm_labels"], axis=1)
    out = model(
        input_ids=torch.from_numpy(batch["input_ids"]),
        token_type_ids=torch.from_numpy(batch["token_type_ids"]),
        attention_mask=torch.from_numpy(batch["sequence_ids"]),
        labels=torch.from_numpy(labels),
        next_sentence_label=torch.from_numpy(batch["nsp_labels"][:, 0]),
    )
    out.loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return out, gradients


def our_results(model, params, batch):
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["sequence_ids"])

    def loss(params):
        out = model.apply({"params": params}, *inputs, None, batch["mlm_positions"])
        mlm = jnp.take_along_axis(jax.nn.log_softmax(out.mlm_logits_BxPxV), batch["mlm_labels"][..., None], axis=-1)
        nsp = jnp.take_along_axis(jax.nn.log_softmax(out.nsp_logits_BxSx2), batch["nsp_labels"][..., None], axis=-1)
        return -mlm.mean() - nsp.mean(), model.apply({"params": params}, *inputs)

    (value, everywhere), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return everywhere, value, gradients


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_every_gradient_equal_torch(name):
    config = CASES[name]
    theirs, batch = torch_model(config), make_batch(config)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in theirs.named_parameters()}
    model = BertForPreTraining(config)
    params = our_tree(weights, config)
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["sequence_ids"])
    expected_tree = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected_tree)

    out, gradients = torch_results(theirs, batch)
    ours, loss, our_gradients = our_results(model, params, batch)

    real = batch["sequence_ids"] == 1
    np.testing.assert_allclose(
        ours.mlm_logits_BxPxV[..., : config.vocab_size][real],
        out.prediction_logits.detach().numpy()[real],
        rtol=0,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        ours.nsp_logits_BxSx2[:, 0], out.seq_relationship_logits.detach().numpy(), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    expected = traverse_util.flatten_dict(our_tree(gradients, config), sep="/")
    got = traverse_util.flatten_dict(our_gradients, sep="/")
    assert expected.keys() == got.keys()
    for path, gradient in expected.items():
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=1e-4, err_msg=path)
        if not path.endswith("key/bias"):  # Softmax does not see a shift of all its scores: this gradient is zero.
            assert np.abs(gradient).max() > 1e-3, f"{path}: too small a gradient to compare"
