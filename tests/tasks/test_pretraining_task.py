"""The pretraining task: its sums and weights against numpy, what weight 0 leaves out, alpha.

`tests/train/test_step.py` has the golden metrics of one step, packed rows, and gradients without targets.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxbert.config import ModelConfig
from jaxbert.model.bert import BertForPreTraining
from jaxbert.tasks.pretraining import PretrainingTask

MODEL = ModelConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=8,
    initializer_range=0.5,
)
TASK = PretrainingTask(MODEL)
ROWS, LENGTH, PREDICTIONS, SEQUENCES = 4, 8, 3, 2


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(TASK.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def forward(params):
    """Sums and weights as numpy, of a batch and a dropout key."""
    run = jax.jit(TASK.forward)
    return lambda batch, key=None: jax.tree.map(np.asarray, run(params, batch, key))


@pytest.fixture
def batch():
    """Rows of two sequences, with ragged targets; one sequence has no NSP label, and weights differ from 1."""
    generator = np.random.default_rng(0)
    mlm_weights = np.array([[1, 1, 1], [1, 0.5, 0], [0, 0, 0], [1, 1, 0]], np.float32)
    return {
        "input_ids": generator.integers(5, 50, (ROWS, LENGTH)),
        "token_type_ids": generator.integers(0, 2, (ROWS, LENGTH)),
        "sequence_ids": np.tile([1, 1, 1, 1, 2, 2, 2, 0], (ROWS, 1)),
        "position_ids": np.tile([0, 1, 2, 3, 0, 1, 2, 0], (ROWS, 1)),
        "mlm_positions": generator.integers(1, 7, (ROWS, PREDICTIONS)),
        "mlm_labels": generator.integers(5, 50, (ROWS, PREDICTIONS)),
        "mlm_weights": mlm_weights,
        "cls_positions": np.tile([0, 4], (ROWS, 1)),
        "nsp_labels": generator.integers(0, 2, (ROWS, SEQUENCES)),
        "nsp_weights": np.array([[1, 1], [1, 0], [1, 1], [1, 1]], np.float32),
    }


def by_hand(logits, labels, weights):
    """(loss sum, accuracy sum, weight) in float64."""
    logits = np.asarray(logits, np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (losses * weights).sum(), ((logits.argmax(-1) == labels) * weights).sum(), weights.sum()


def test_terms_are_weighted_sums_and_their_weights(params, forward, batch):
    inputs = [batch[name] for name in ("input_ids", "token_type_ids", "sequence_ids", "position_ids")]
    logits = jax.jit(BertForPreTraining(MODEL).apply)(
        {"params": params}, *inputs, batch["mlm_positions"], batch["cls_positions"]
    )
    sums = forward(batch)
    assert set(sums) == {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    for head, values in zip(("mlm", "nsp"), logits, strict=True):
        loss, accuracy, weight = by_hand(values, batch[f"{head}_labels"], batch[f"{head}_weights"])
        assert sums[f"{head}_loss"] == pytest.approx((loss, weight), rel=1e-5)
        assert sums[f"{head}_accuracy"] == pytest.approx((accuracy, weight), rel=1e-6)
    # From the data alone, before anything is computed.
    assert {name: float(weight) for name, weight in TASK.weights(batch).items()} == {"mlm_loss": 6.5, "nsp_loss": 7.0}
    assert (sums["mlm_loss"][1], sums["nsp_loss"][1]) == (6.5, 7.0)


def test_targets_without_weight_count_for_nothing(forward, batch):
    """A sequence without an NSP label, an unused slot, a row without maskable tokens: their labels do not matter."""
    other = dict(batch)
    for head, classes in (("mlm", 50), ("nsp", 2)):
        labels = batch[f"{head}_labels"]
        other[f"{head}_labels"] = np.where(batch[f"{head}_weights"] > 0, labels, (labels + 1) % classes)
    changed = jax.tree.leaves(jax.tree.map(np.array_equal, other, batch))
    assert changed.count(False) == 2
    jax.tree.map(np.testing.assert_array_equal, forward(other), forward(batch))


@pytest.mark.parametrize("padding", [False, True])
def test_batch_without_targets_gives_zeros(forward, batch, padding):
    """Also where there is not even a token to attend to."""
    empty = batch | {name: np.zeros_like(batch[name]) for name in ("mlm_weights", "nsp_weights")}
    if padding:
        empty |= {"sequence_ids": np.zeros_like(batch["sequence_ids"])}
    assert [float(value) for value in jax.tree.leaves(forward(empty))] == [0.0] * 8


def test_alpha_weighs_the_nsp_loss_alone():
    assert PretrainingTask(MODEL).loss_weights == {"mlm_loss": 1.0, "nsp_loss": 1.0}
    assert PretrainingTask(MODEL, alpha=0.25).loss_weights == {"mlm_loss": 1.0, "nsp_loss": 0.25}


def test_dropout_needs_a_key_and_is_fixed_by_it(forward, batch):
    dry, first, again, other = (forward(batch, key)["mlm_loss"][0] for key in (None, *map(jax.random.key, (0, 0, 1))))
    assert first == again
    assert len({float(dry), float(first), float(other)}) == 3


def test_parameters_depend_on_the_key_and_carry_axis_names(params):
    boxes = jax.tree.leaves(
        jax.eval_shape(TASK.init, jax.random.key(0)), is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    assert all(isinstance(box, nn.Partitioned) for box in boxes)
    again = nn.unbox(jax.jit(PretrainingTask(dataclasses.replace(MODEL)).init)(jax.random.key(1)))
    table, other = (tree["encoder"]["embeddings"]["word"]["embedding"] for tree in (params, again))
    assert np.abs(table - other).max() > 0.1


def test_parameters_are_made_on_machines_that_have_not_the_kernel():
    """They do not depend on it; nor could a kernel for blocks of tokens take the one that they are made with."""
    key = jax.random.key(0)
    explicit = PretrainingTask(MODEL).init(key)
    for backend in ("tpu_flash", "gpu_flash", "cudnn"):
        model = dataclasses.replace(MODEL, attention_backend=backend, attention_dropout=0.0)
        jax.tree.map(np.testing.assert_array_equal, PretrainingTask(model).init(key), explicit)
