"""What becomes of the chosen tokens, and what else is in a batch."""

import numpy as np
import pytest
import tensorflow as tf
from made_rows import (
    CLS,
    MASK,
    NO_LABEL,
    SEP,
    SPECIAL,
    SPECIALS,
    TEXT_IDS,
    UNK,
    VOCABULARY,
    keys_of,
    masked,
    raw,
    text_rows,
    wild_rows,
)

from jaxbert.config import MaskingConfig
from jaxbert.data import masking

UNITS = ("token", "word", "span")


def before_and_after(rows: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The chosen tokens as they were and as the model sees them."""
    chosen = batch["mlm_weights"] > 0
    row, slot = np.nonzero(chosen)
    positions = batch["mlm_positions"][row, slot]
    return rows["input_ids"][row, positions].astype(int), batch["input_ids"][row, positions]


def assert_binomial(count: int, trials: int, share: float) -> None:
    """Beyond 5 standard deviations with a probability of 6e-7; all draws in these tests are fixed."""
    assert abs(count - trials * share) <= 5 * (trials * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("unit", UNITS)
def test_80_10_10(unit: str):
    rows = text_rows(1000, 128)
    was, becomes = before_and_after(rows, masked(rows, keys_of(1000), MaskingConfig(unit=unit), 20))
    assert len(was) > 15_000
    # A random token is the old one once in len(TEXT_IDS) times.
    same = 1 / len(TEXT_IDS)
    assert_binomial((becomes == MASK).sum(), len(was), 0.8)
    assert_binomial(((becomes != MASK) & (becomes != was)).sum(), len(was), 0.1 * (1 - same))
    assert_binomial((becomes == was).sum(), len(was), 0.1 + 0.1 * same)


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 0.0), (0.3, 0.7)])
def test_other_shares(mask_share: float, random_share: float):
    rows = text_rows(500, 128)
    config = MaskingConfig(mask_share=mask_share, random_share=random_share)
    was, becomes = before_and_after(rows, masked(rows, keys_of(500), config, 20))
    assert_binomial((becomes == MASK).sum(), len(was), mask_share)
    assert_binomial((becomes == was).sum(), len(was), 1 - mask_share - random_share * (1 - 1 / len(TEXT_IDS)))


def test_random_tokens_are_uniform_and_none_is_special():
    rows = text_rows(2000, 128)
    _, becomes = before_and_after(
        rows, masked(rows, keys_of(2000), MaskingConfig(mask_share=0.0, random_share=1.0), 20)
    )
    counts = np.bincount(becomes, minlength=VOCABULARY["size"])
    assert len(counts) == VOCABULARY["size"]
    assert counts[sorted(SPECIAL)].sum() == 0
    expected = len(becomes) / len(TEXT_IDS)
    # 293 counts of about 120, each beyond 6 standard deviations with a probability of about 1e-8.
    assert np.abs(counts[TEXT_IDS] - expected).max() < 6 * expected**0.5


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("slots", [1, 3])
def test_only_the_chosen_change_and_no_special_token_is_chosen(unit: str, slots: int):
    rows = wild_rows(400, 60, slots, seed=7)
    batch = masked(rows, keys_of(400), MaskingConfig(unit=unit, share=0.4), 20)
    was, becomes = before_and_after(rows, batch)
    assert UNK in rows["input_ids"]
    assert not np.isin(was, sorted(SPECIAL)).any()
    assert not np.isin(becomes, sorted(SPECIAL - {MASK})).any()
    weights = batch["mlm_weights"] > 0
    assert np.array_equal(batch["mlm_labels"][weights], was)
    for name in ("mlm_positions", "mlm_labels"):
        assert not batch[name][~weights].any()
    untouched = batch["input_ids"].copy()
    row, slot = np.nonzero(weights)
    untouched[row, batch["mlm_positions"][row, slot]] = was
    assert np.array_equal(untouched, rows["input_ids"])
    # Ascending, each once, the used slots first.
    assert (np.diff(batch["mlm_weights"], axis=1) <= 0).all()
    assert (np.diff(batch["mlm_positions"], axis=1)[weights[:, 1:]] > 0).all()


@pytest.mark.parametrize(("share", "predictions"), [(0.15, 20), (0.15, 12), (0.3, 64)])
def test_share_is_rounded_and_capped_as_in_bert(share: float, predictions: int):
    rows = text_rows(300, 128)
    batch = masked(rows, keys_of(300), MaskingConfig(share=share), predictions)
    totals = rows["lengths"].sum(axis=(1, 2)).tolist()
    expected = [min(predictions, max(1, round(total * share))) for total in totals]
    assert batch["mlm_weights"].sum(axis=1).tolist() == expected
    assert len(set(totals)) > 20


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_to_mask_weighs_nothing(unit: str):
    rows = raw(
        ids=[[], [CLS, SEP, SEP], [CLS, UNK, UNK, SEP]],
        starts=[[], [1, 1, 1], [1, 1, 0, 1]],
        lengths=[[(0, 0)], [(2, 1)], [(4, 0)]],
        length=16,
    )
    batch = masked(rows, keys_of(3), MaskingConfig(unit=unit), 4)
    assert not batch["mlm_weights"].any()
    assert np.array_equal(batch["input_ids"], rows["input_ids"])


@pytest.mark.parametrize("unit", UNITS)
def test_masks_do_not_depend_on_the_batch_around(unit: str):
    rows, keys, config = wild_rows(60, 48, 2, seed=3), keys_of(60), MaskingConfig(unit=unit)
    whole = masked(rows, keys, config, 10)
    order = np.random.default_rng(0).permutation(60)[:20]
    some = masked({name: values[order] for name, values in rows.items()}, keys[order], config, 10)
    for name, values in some.items():
        assert np.array_equal(values, whole[name][order]), name


@pytest.mark.parametrize("unit", UNITS)
def test_seeds_and_epochs_mask_differently_and_each_always_the_same(unit: str):
    rows, config = text_rows(50, 128), MaskingConfig(unit=unit)

    def positions(epoch: int, seed: int) -> np.ndarray:
        return masked(rows, keys_of(50, epoch, seed), config, 20)["mlm_positions"]

    first = positions(0, 1)
    assert np.array_equal(first, positions(0, 1))
    # Two masks of a row that holds 100 tokens agree with a probability far below 1e-9.
    for other in (positions(1, 1), positions(2, 1), positions(0, 2)):
        assert (first != other).any(axis=1).all()


@pytest.mark.parametrize(("length", "slots"), [(1, 1), (40, 1), (50, 4)])
def test_features_of_sequences(length: int, slots: int):
    rows = wild_rows(200, length, slots, seed=2)
    labels = np.random.default_rng(0).integers(0, 3, rows["nsp_labels"].shape).astype(np.uint8)
    batch = masked(rows | {"nsp_labels": labels}, keys_of(200), MaskingConfig(), 1)
    for row, lengths in enumerate(rows["lengths"].tolist()):
        expected: dict[str, list[int]] = {name: [] for name in ("sequence_ids", "token_type_ids", "position_ids")}
        for slot, (first, second) in enumerate(lengths):
            start = len(expected["sequence_ids"])
            expected["sequence_ids"] += [slot + 1] * (first + second)
            expected["token_type_ids"] += [0] * first + [1] * second
            expected["position_ids"] += range(first + second)
            label = int(labels[row, slot])
            labelled = first > 0 and label != NO_LABEL
            assert batch["cls_positions"][row, slot] == (start if first else 0)
            assert batch["nsp_labels"][row, slot] == (label if labelled else 0)
            assert batch["nsp_weights"][row, slot] == (1.0 if labelled else 0.0)
        for name, values in expected.items():
            assert batch[name][row].tolist() == values + [0] * (length - len(values)), name


def test_specials_are_runs():
    assert SPECIALS.runs == ((0, 4), (50, 50), (299, 299))
    ids = tf.range(300)
    assert set(np.flatnonzero(SPECIALS.are(ids).numpy())) == SPECIAL
    drawable = SPECIALS.drawable(tf.range(SPECIALS.num_drawable)).numpy()
    assert np.array_equal(drawable, TEXT_IDS)


def test_a_vocabulary_without_special_ids():
    specials = masking.Specials.of({"size": 5, "mask_id": 4, "special_ids": []})
    assert not specials.are(tf.range(5)).numpy().any()
    assert specials.drawable(tf.range(specials.num_drawable)).numpy().tolist() == [0, 1, 2, 3, 4]


# A row of two sequences and the batch that seed 7, epoch 2, row 0 make of it. Another batch means that runs that are
# resumed with a new version would go on with other masks: it changes on purpose alone, and the changelog says so.
GOLDEN_IDS = [CLS, *range(100, 112), SEP, *range(112, 120), SEP, CLS, *range(120, 128), SEP]
GOLDEN_STARTS = [1] + [1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1] + [1] + [1, 1, 0, 1, 0, 1, 1, 0] + [1, 1] + [1, 0] * 4 + [1]
GOLDEN = {
    "token": {
        "mlm_positions": [4, 6, 14, 15, 18, 20, 21, 28, 29, 31, 0, 0],
        "mlm_labels": [103, 105, 112, 113, 116, 118, 119, 124, 125, 127, 0, 0],
        "changed": [4, 6, 18, 20, 21, 28, 29, 31],
        "changed_to": [4, 4, 4, 4, 4, 4, 4, 292],
    },
    "word": {
        "mlm_positions": [4, 5, 6, 15, 16, 20, 21, 28, 29, 0, 0, 0],
        "mlm_labels": [103, 104, 105, 113, 114, 118, 119, 124, 125, 0, 0, 0],
        "changed": [4, 5, 6, 16, 20, 21, 28, 29],
        "changed_to": [4, 4, 4, 4, 4, 4, 4, 4],
    },
    "span": {
        "mlm_positions": [14, 15, 16, 17, 18, 20, 21, 24, 25, 0, 0, 0],
        "mlm_labels": [112, 113, 114, 115, 116, 118, 119, 120, 121, 0, 0, 0],
        "changed": [16, 17, 18, 20, 21, 25],
        "changed_to": [4, 4, 4, 4, 4, 4],
    },
}


@pytest.mark.parametrize("unit", UNITS)
def test_golden_batch(unit: str):
    rows = raw([GOLDEN_IDS], [GOLDEN_STARTS], [[(14, 9), (10, 0)]], 36, [[1, NO_LABEL]])
    batch = masked(rows, keys_of(1, epoch=2, seed=7), MaskingConfig(unit=unit, share=0.3), 12)
    changed = np.flatnonzero(batch["input_ids"][0] != rows["input_ids"][0])
    found = {
        "mlm_positions": batch["mlm_positions"][0].tolist(),
        "mlm_labels": batch["mlm_labels"][0].tolist(),
        "changed": changed.tolist(),
        "changed_to": batch["input_ids"][0][changed].tolist(),
    }
    assert found == GOLDEN[unit]
