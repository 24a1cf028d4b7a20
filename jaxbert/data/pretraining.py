"""The pretraining input: batches of masked rows, addressed by step.

There is no iterator state: example e of a run is row `order.row_indices(e, ...)`, masked with the key of (seed, epoch,
row), so the batch of any step can be made at once, in any process.
"""

import os
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from jaxbert.config import MaskingConfig, UserError
from jaxbert.data import hashing, masking, order


class BatchError(UserError):
    """Batches that cannot be made; its text is one line."""


class RowSource(Protocol):
    """What is needed of a row store; `jaxbert.text.rows.Rows` is one."""

    manifest: dict[str, Any]

    def __len__(self) -> int: ...

    def read(self, indices: Int64[np.ndarray, " n"]) -> dict[str, np.ndarray]: ...


# Of the order of held-out rows: runs with other seeds are measured on the same ones.
_EVALUATION_SEED = 0
_FIELDS = ("input_ids", "word_starts", "lengths", "nsp_labels")


class PretrainingBatches:
    """Masked batches of a row store; a batch is a dict of

    input_ids, token_type_ids, sequence_ids, position_ids   int32 [B, L]   sequence_ids: 0 padding, 1 .. S
    mlm_positions, mlm_labels int32, mlm_weights float32    [B, P]         unused: position 0, label 0, weight 0
    cls_positions, nsp_labels int32, nsp_weights float32    [B, S]         unused: position 0, label 0, weight 0

    where B is this process's part of the global batch: process i of n holds the i-th of n contiguous slices.

    With evaluation=True every row comes once, masked as in epoch 0; the last batch is filled with rows of padding that weigh
    nothing, and there are num_batches batches. The order is the same in every evaluation of every run, and not the stored one, in
    which source follows source: the first batches are a sample of all.
    """

    def __init__(
        self,
        rows: RowSource,
        masking_config: MaskingConfig,
        max_predictions: int,
        batch_size: int,
        seed: int,
        evaluation: bool = False,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """batch_size is the global one, max_predictions that of a row.

        Raises BatchError when the batch cannot be shared evenly by the processes, or there are no rows.
        """
        if len(rows) == 0:
            raise BatchError("the row store is empty: there is no row to make batches of")
        if batch_size < 1 or batch_size % process_count:
            raise BatchError(
                f"a global batch of {batch_size} rows cannot be shared evenly by {process_count} processes"
            )
        if not 0 <= process_index < process_count:
            raise BatchError(f"process {process_index} of {process_count} does not exist")
        self.num_rows: int = len(rows)
        self.batch_size = batch_size
        self.num_batches: int = -(-self.num_rows // batch_size)
        """Batches until every row was seen once; in training the last of them may reach into the next epoch."""
        self._rows, self._seed, self._evaluation = rows, seed, evaluation
        self._slice_size = batch_size // process_count
        self._slice_start = process_index * self._slice_size
        sample = rows.read(np.zeros(1, np.int64))
        self._fields = {name: (sample[name].dtype, sample[name].shape[1:]) for name in _FIELDS}
        self._shape = masking.BatchShape(
            rows=self._slice_size,
            length=sample["input_ids"].shape[1],
            sequences=sample["lengths"].shape[1],
            predictions=max_predictions,
        )
        specials = masking.Specials.of(rows.manifest["vocabulary"])
        self._mask = masking.compiled(self._shape, masking_config, specials)
        self._make = tf.function(self._batch, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's slice of the global batch of `step`. Raises BatchError for a step that does not exist."""
        self._check(step, step + 1)
        # Where TensorFlow sees an accelerator: that one is JAX's.
        with tf.device("CPU:0"):
            made = self._make(tf.constant(step, tf.int64))
        return {name: value.numpy() for name, value in made.items()}

    def dataset(
        self, first_step: int, last_step: int, threads: int = 0, prefetch: int = 2
    ) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
        """The batches of first_step .. last_step - 1, in order.

        threads: those that make batches, one batch each at a time; 0: one for each core, at most 8. prefetch: batches
        that are kept ready. Raises BatchError for steps that do not exist.
        """
        self._check(first_step, last_step)
        threads = threads or min(8, _num_cores())
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = threads
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        # There is nothing to rewrite in this graph, and looking takes longer than a hundred batches.
        options.experimental_optimization.apply_default_optimizations = False
        dataset = tf.data.Dataset.range(first_step, last_step)
        # With one thread a parallel map would only add a hand-over.
        dataset = dataset.map(self._make, num_parallel_calls=threads) if threads > 1 else dataset.map(self._make)
        return dataset.prefetch(prefetch).with_options(options)

    def _check(self, first_step: int, last_step: int) -> None:
        if first_step < 0 or last_step < first_step:
            raise BatchError(f"there are no steps {first_step} to {last_step}")
        if self._evaluation and last_step > self.num_batches:
            raise BatchError(f"step {last_step - 1} does not exist: an evaluation has {self.num_batches} batches")

    def _read(self, step: np.ndarray) -> tuple[np.ndarray, ...]:
        """(keys, *fields) of this process's rows of a step."""
        first = int(step) * self.batch_size + self._slice_start
        count = self._slice_size
        real = min(max(self.num_rows - first, 0), count) if self._evaluation else count
        seed = _EVALUATION_SEED if self._evaluation else self._seed
        epochs, rows = order.row_indices(first, real, self.num_rows, seed)
        raw = self._rows.read(rows)
        keys = hashing.keys(self._seed, hashing.Use.MASKS, epochs, rows)
        if real == count:
            return keys, *(raw[name] for name in _FIELDS)
        # Zeros, and so sequences of no token, which weigh nothing.
        filler = {name: np.zeros((count - real, *shape), dtype) for name, (dtype, shape) in self._fields.items()}
        filler["input_ids"][:] = self._rows.manifest["vocabulary"]["pad_id"]
        filled = (np.concatenate([raw[name], filler[name]]) for name in _FIELDS)
        return np.concatenate([keys, np.zeros(count - real, np.uint64)]), *filled

    def _batch(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        dtypes = [tf.uint64] + [tf.as_dtype(dtype) for dtype, _ in self._fields.values()]
        keys_B, *tensors = tf.numpy_function(self._read, [step], dtypes, stateful=False)
        keys_B.set_shape([self._slice_size])
        raw: dict[str, tf.Tensor] = {}
        for (name, (_, shape)), tensor in zip(self._fields.items(), tensors, strict=True):
            tensor.set_shape([self._slice_size, *shape])
            raw[name] = tensor
        return self._mask(raw, keys_B)


def _num_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
