"""What is computed for a batch of sequences, and how sequences get there and their answers back."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxbert.config import ModelConfig, Pooling
from jaxbert.model.bert import BertForMaskedLM, BertForNextSentencePrediction
from jaxbert.model.classifiers import BertForSentenceEmbedding
from jaxbert.predict.batches import Batch, Item, make_batches

# Batches of so many tokens stay in a CPU's caches; accelerators want more to do at a time.
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 2048, 32768


class Inputs(NamedTuple):
    """The arrays of a batch, in the order in which the modules take them."""

    input_ids: Int[Array, "B L"]
    token_type_ids: Int[Array, "B L"]
    sequence_ids: Int[Array, "B L"]
    position_ids: Int[Array, "B L"]
    positions: Int[Array, "B S"]


Program = Callable[[Any, Inputs], tuple[Array, ...]]
"""(parameters, batch) -> arrays [B, S, ...]. Compiled once for each shape of a batch, for all predictors of equal settings."""


class Runner:
    """The model on all devices of this process, which share each batch. `tokens_per_batch` is as in `Predictor`."""

    def __init__(self, params: Any, max_length: int, tokens_per_batch: int | None = None):
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._devices = mesh.size
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._max_length = max_length
        default = _TOKENS_ON_CPU if jax.default_backend() == "cpu" else _TOKENS_ELSEWHERE * self._devices
        self._tokens_per_batch = tokens_per_batch or default

    def run(self, program: Program, items: Sequence[Item]) -> list[np.ndarray]:
        """What a program, one of those below, says of each item, in their order: arrays [n, ...]."""
        if not items:
            integer: Any = jax.ShapeDtypeStruct((1, 1), np.dtype(np.int32))
            one = Inputs(*(integer for _ in Inputs._fields))
            shapes = jax.eval_shape(program, self._params, one)
            return [np.zeros((0, *shape.shape[2:]), shape.dtype) for shape in shapes]
        found: list[list[np.ndarray]] = []
        order: list[np.ndarray] = []
        waiting: tuple[Batch, tuple[jax.Array, ...]] | None = None

        def collect() -> None:
            if waiting is not None:
                batch, outputs = waiting
                order.append(batch.items)
                found.append([np.asarray(output)[batch.rows, batch.slots] for output in outputs])

        for batch in make_batches(items, self._max_length, self._tokens_per_batch, self._devices):
            started = batch, program(self._params, Inputs(**jax.device_put(batch.arrays, self._rows)))
            # The batch before is read, and the next one made, while the devices are at this one.
            collect()
            waiting = started
        collect()
        back = np.argsort(np.concatenate(order))
        return [np.concatenate(parts)[back] for parts in zip(*found, strict=True)]


@functools.cache
def top_tokens(config: ModelConfig, k: int) -> Program:
    """Probabilities and ids of the k likeliest tokens at each slot's position, [B, S, k]."""

    @jax.jit
    def program(params: Any, rows: Inputs) -> tuple[Array, ...]:
        logits_BxSxV: Any = BertForMaskedLM(config).apply({"params": params}, *rows)
        return tuple(jax.lax.top_k(jax.nn.softmax(logits_BxSxV), k))

    return program


@functools.cache
def is_next(config: ModelConfig) -> Program:
    """The probability of a true next sentence at each slot, [B, S]."""

    @jax.jit
    def program(params: Any, rows: Inputs) -> tuple[Array, ...]:
        logits_BxSx2: Any = BertForNextSentencePrediction(config).apply({"params": params}, *rows)
        return (jax.nn.softmax(logits_BxSx2)[..., 0],)

    return program


@functools.cache
def pooled(config: ModelConfig, pooling: Pooling) -> Program:
    """The vector of each slot, float32 [B, S, D]."""

    @jax.jit
    def program(params: Any, rows: Inputs) -> tuple[Array, ...]:
        vectors_BxSxD: Any = BertForSentenceEmbedding(config, pooling).apply({"params": params}, *rows)
        return (vectors_BxSxD,)

    return program
