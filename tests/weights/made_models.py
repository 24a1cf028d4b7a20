"""Random torch models of every family, small, and what they compute."""

import functools
import pathlib

import jax
import numpy as np
import torch
import transformers

from jaxbert.model.bert import BertEncoder, BertForPreTraining
from jaxbert.weights.load import Loaded

VOCAB, WIDTH, HEADS, LAYERS, MLP, POSITIONS, LABELS = 131, 32, 4, 2, 48, 24, 3
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
    "max_position_embeddings": POSITIONS,
    "num_labels": LABELS,
    "attn_implementation": "eager",
}
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": MLP,
    "max_position_embeddings": POSITIONS,
    "num_labels": LABELS,
    "attn_implementation": "eager",
}
SETTINGS = {
    "bert": BERT,
    "roberta": BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": DISTILBERT,
    "electra": BERT | {"embedding_size": 20},
}


def torch_config(family: str, **settings):
    return transformers.CONFIG_MAPPING[family](**(SETTINGS[family] | settings))


def torch_model(architecture: str, family: str = "bert", **settings) -> transformers.PreTrainedModel:
    """A model of random weights, with biases and scales that would show a mix-up."""
    # On tensors of this size threads only wait for one another.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(torch_config(family, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@functools.cache
def bert_for_pretraining() -> transformers.PreTrainedModel:
    return torch_model("BertForPreTraining")


def write_folder(folder: pathlib.Path, model: transformers.PreTrainedModel | None = None, **options) -> pathlib.Path:
    """The model as transformers saves it."""
    (model or bert_for_pretraining()).save_pretrained(folder, **options)
    return folder


def named_parameters(model: transformers.PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Parameters by name, without the decoders that repeat one."""
    tied = model._tied_weights_keys or {}
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if name not in tied}


def state(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """The values of `named_parameters`."""
    return {name: parameter.detach().numpy().copy() for name, parameter in named_parameters(model).items()}


def batch(rows: int = 3, length: int = 16, token_types: int = 2, pad: int = 0) -> dict[str, np.ndarray]:
    """input_ids, token_type_ids and attention_mask; all rows but the first are padded."""
    rng = np.random.default_rng(0)
    real = np.arange(length)[None, :] < np.array([length, 11, 5])[:rows, None]
    return {
        "input_ids": np.where(real, rng.integers(3, VOCAB, (rows, length)), pad),
        "token_type_ids": np.where(real, rng.integers(0, token_types, (rows, length)), 0),
        "attention_mask": real.astype(np.int64),
    }


def torch_outputs(model: transformers.PreTrainedModel, inputs: dict[str, np.ndarray]):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()})


def our_hidden(loaded: Loaded, inputs: dict[str, np.ndarray]) -> jax.Array:
    """Hidden states of the last block."""
    model = BertEncoder(loaded.config)
    types = inputs.get("token_type_ids", np.zeros_like(inputs["input_ids"]))
    run = jax.jit(lambda params, *x: model.apply({"params": params}, *x))
    return run(loaded.params["encoder"], inputs["input_ids"], types, inputs["attention_mask"])


def our_logits(loaded: Loaded, inputs: dict[str, np.ndarray]):
    """Both heads' logits at every position."""
    model = BertForPreTraining(loaded.config)
    run = jax.jit(lambda params, *x: model.apply({"params": params}, *x))
    return run(loaded.params, inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"])
