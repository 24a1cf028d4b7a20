"""Batches by step: any at once, each process its own part, the last held-out one filled."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from made_rows import NO_LABEL, PAD, VOCABULARY, MemoryRows, text_rows

from jaxbert.config import MaskingConfig, UserError
from jaxbert.data import masking, order
from jaxbert.data.pretraining import BatchError, PretrainingBatches
from jaxbert.text.rows import RowLayout, Rows, RowWriter

NUM_ROWS, LENGTH, SLOTS, PREDICTIONS, BATCH = 37, 64, 2, 12, 8
ROWS = MemoryRows(text_rows(NUM_ROWS, LENGTH, SLOTS))


class Recorder(MemoryRows):
    """Rows that remember which of them were read."""

    def __init__(self):
        super().__init__(ROWS.fields)
        self.read_rows: list[list[int]] = []

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.read_rows.append(indices.tolist())
        return super().read(indices)


def batches(rows=ROWS, batch_size: int = BATCH, seed: int = 3, **options) -> PretrainingBatches:
    return PretrainingBatches(rows, MaskingConfig(), PREDICTIONS, batch_size, seed, **options)


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_batch_is_what_was_promised():
    expected = {
        **dict.fromkeys(("input_ids", "token_type_ids", "sequence_ids", "position_ids"), ((BATCH, LENGTH), np.int32)),
        **dict.fromkeys(("mlm_positions", "mlm_labels"), ((BATCH, PREDICTIONS), np.int32)),
        "mlm_weights": ((BATCH, PREDICTIONS), np.float32),
        **dict.fromkeys(("cls_positions", "nsp_labels"), ((BATCH, SLOTS), np.int32)),
        "nsp_weights": ((BATCH, SLOTS), np.float32),
    }
    dataset = batches().dataset(0, 2)
    specs = {name: (tuple(spec.shape), spec.dtype.as_numpy_dtype) for name, spec in dataset.element_spec.items()}
    assert specs == expected
    for batch in [*dataset.as_numpy_iterator(), batches().batch(0)]:
        assert {name: (value.shape, value.dtype.type) for name, value in batch.items()} == expected


def test_any_batch_at_once_is_that_of_a_sequential_run():
    num_steps = 12  # two and a half epochs
    sequential = list(batches().dataset(0, num_steps).as_numpy_iterator())
    assert len(sequential) == num_steps
    source = batches()
    for step in (11, 0, 4, 5, 9):
        assert_equal(source.batch(step), sequential[step])
    for threads in (1, 3):
        resumed = source.dataset(7, num_steps, threads=threads).as_numpy_iterator()
        for found, expected in zip(resumed, sequential[7:], strict=True):
            assert_equal(found, expected)


def test_an_epoch_has_every_row_once_in_another_order_with_other_masks():
    recorder = Recorder()
    source = batches(recorder, batch_size=1)
    epochs = [[source.batch(step) for step in range(first, first + NUM_ROWS)] for first in (0, NUM_ROWS)]
    read = [row for (row,) in recorder.read_rows[1:]]
    orders = read[:NUM_ROWS], read[NUM_ROWS:]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(NUM_ROWS))
    by_row = [dict(zip(rows, made, strict=True)) for rows, made in zip(orders, epochs, strict=True)]
    for row in range(NUM_ROWS):
        assert not np.array_equal(by_row[0][row]["mlm_positions"], by_row[1][row]["mlm_positions"])


def test_a_seed_decides_order_and_masks():
    first = batches(seed=1).batch(0)
    assert_equal(batches(seed=1).batch(0), first)
    assert not np.array_equal(batches(seed=2).batch(0)["sequence_ids"], first["sequence_ids"])


@pytest.mark.parametrize("evaluation", [True, False])
def test_the_parts_of_all_processes_are_the_global_batch(evaluation: bool):
    for step in (0, 4):
        whole = batches(evaluation=evaluation).batch(step)
        for count in (2, 4):
            parts = [
                batches(evaluation=evaluation, process_index=i, process_count=count).batch(step) for i in range(count)
            ]
            assert all(len(part["input_ids"]) == BATCH // count for part in parts)
            assert_equal(joined(parts), whole)


def test_a_process_reads_its_own_rows_alone():
    recorder = Recorder()
    batches(recorder, process_index=1, process_count=4).batch(2)
    _, rows = order.row_indices(2 * BATCH + 2, 2, NUM_ROWS, seed=3)
    assert recorder.read_rows[1:] == [rows.tolist()]


def test_number_of_batches():
    assert batches().num_batches == 5
    assert batches(batch_size=37).num_batches == 1
    assert batches(evaluation=True, batch_size=36).num_batches == 2


def test_an_evaluation_has_every_row_once_and_fills_the_last_batch():
    source = batches(evaluation=True)
    found = list(source.dataset(0, source.num_batches).as_numpy_iterator())
    assert len(found) == 5
    whole = joined(found)
    # The sequences' lengths tell the rows apart.
    totals = (whole["sequence_ids"] > 0).sum(axis=1).tolist()
    expected = ROWS.fields["lengths"].sum(axis=(1, 2)).tolist()
    assert sorted(totals) == sorted([*expected, 0, 0, 0])
    assert totals[NUM_ROWS:] == [0, 0, 0]
    for name, values in whole.items():
        assert not values[NUM_ROWS:].any() or name == "input_ids", name
    assert (whole["input_ids"][NUM_ROWS:] == PAD).all()
    # The rows do not depend on how they are cut into batches, and are masked as in epoch 0 of training.
    single = batches(evaluation=True, batch_size=1)
    assert_equal(joined([single.batch(step) for step in range(NUM_ROWS)]), {n: v[:NUM_ROWS] for n, v in whole.items()})
    training = Recorder()
    trained = batches(training, batch_size=1).batch(0)
    place = evaluation_order().index(training.read_rows[1][0])
    assert_equal(trained, {name: values[place : place + 1] for name, values in whole.items()})


def evaluation_order(seed: int = 3) -> list[int]:
    """The rows that an evaluation reads, in its order."""
    recorder = Recorder()
    single = batches(recorder, batch_size=1, seed=seed, evaluation=True)
    for step in range(NUM_ROWS):
        single.batch(step)
    return [row for (row,) in recorder.read_rows[1:]]


def test_the_first_batches_of_an_evaluation_are_a_sample_of_all_rows():
    found = evaluation_order()
    assert sorted(found) == list(range(NUM_ROWS))
    # The rows of a source lie side by side: of any third of the store, the first two batches of 8 hold some.
    thirds = np.bincount(np.array(found[:16]) * 3 // NUM_ROWS, minlength=3)
    assert thirds.min() >= 3
    # Runs with other seeds, and runs that go on, are measured on the same ones.
    assert found == evaluation_order(seed=4)


def test_padding_is_the_vocabularys():
    manifest = {"vocabulary": VOCABULARY | {"pad_id": 299}}
    last = batches(MemoryRows(ROWS.fields, manifest), evaluation=True).batch(4)
    assert (last["input_ids"][5:] == 299).all()
    assert not last["sequence_ids"][5:].any()


def test_a_process_may_hold_filling_alone():
    parts = [batches(evaluation=True, process_index=i, process_count=4).batch(4) for i in range(4)]
    assert [int((part["sequence_ids"].any(axis=1)).sum()) for part in parts] == [2, 2, 1, 0]
    assert not parts[3]["mlm_weights"].any()


def test_rows_without_pairs_have_no_next_sentence_labels():
    fields = ROWS.fields | {"nsp_labels": np.full((NUM_ROWS, SLOTS), NO_LABEL, np.uint8)}
    batch = batches(MemoryRows(fields)).batch(0)
    assert not batch["nsp_labels"].any()
    assert not batch["nsp_weights"].any()
    assert batch["mlm_weights"].any()


def test_from_a_store_on_disk(tmp_path: pathlib.Path):
    layout = RowLayout(LENGTH, SLOTS, VOCABULARY["size"])
    records = np.zeros(NUM_ROWS, layout.dtype)
    for name, values in ROWS.fields.items():
        records[name] = values
    writer = RowWriter(tmp_path, layout, PAD, shard_bytes=10 * layout.dtype.itemsize)
    writer.write(records)
    writer.finish(vocabulary=VOCABULARY)
    assert_equal(batches(Rows.open(tmp_path)).batch(3), batches().batch(3))


def test_equal_settings_are_compiled_once():
    batches().batch(0)
    before = masking.compiled.cache_info()
    batches(seed=8).batch(0)
    after = masking.compiled.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


def test_one_thread_for_each_core_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    options = batches().dataset(0, 1).options()
    assert options.threading.private_threadpool_size == 1
    assert batches().dataset(0, 1, threads=5).options().threading.private_threadpool_size == 5


def test_a_range_may_be_empty():
    assert list(batches().dataset(4, 4).as_numpy_iterator()) == []
    assert isinstance(batches().dataset(0, 1), tf.data.Dataset)


def test_flags_meant_for_jax_do_not_end_the_process(repository: pathlib.Path):
    code = (
        "import os, test_pretraining\n"
        "assert test_pretraining.batches().batch(0)['mlm_weights'].any()\n"
        "assert os.environ['XLA_FLAGS'] == '--xla_a_flag_of_next_year=true'\n"
    )
    environment = os.environ | {
        "XLA_FLAGS": "--xla_a_flag_of_next_year=true",
        "PYTHONPATH": os.pathsep.join([str(repository), str(pathlib.Path(__file__).parent)]),
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: batches(MemoryRows({"input_ids": np.zeros((0, 4))})), "the row store is empty"),
        (lambda: batches(process_count=3), "a global batch of 8 rows .* 3 processes"),
        (lambda: batches(batch_size=0), "a global batch of 0 rows"),
        (lambda: batches(process_index=4, process_count=4), "process 4 of 4 does not exist"),
        (lambda: batches().batch(-1), "there are no steps -1 to 0"),
        (lambda: batches().dataset(5, 3), "there are no steps 5 to 3"),
        (lambda: batches(evaluation=True).batch(5), "step 5 does not exist: an evaluation has 5 batches"),
        (lambda: batches(evaluation=True).dataset(0, 9), "step 8 does not exist"),
    ],
)
def test_errors_are_one_line(make, text: str):
    with pytest.raises(BatchError, match=text) as caught:
        make()
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
