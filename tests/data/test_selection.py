"""Which tokens are chosen: the same as BERT's greedy walk in plain Python, on rows of every kind."""

import itertools
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from made_rows import SPECIAL, SPECIALS, keys_of, masked, raw, text_rows, wild_rows
from reference import chosen_positions, units_of
from scipy import stats

from jaxbert.config import MaskingConfig
from jaxbert.data import masking, selection


def starts_of(rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.unpackbits(rows["word_starts"], axis=1, count=rows["input_ids"].shape[1], bitorder="little").astype(bool)


def chosen_of(batch: dict[str, np.ndarray]) -> list[list[int]]:
    pairs = zip(batch["mlm_positions"], batch["mlm_weights"], strict=True)
    return [positions[weights > 0].tolist() for positions, weights in pairs]


def expected_of(
    rows: dict[str, np.ndarray], keys: np.ndarray, config: MaskingConfig, predictions: int
) -> list[list[int]]:
    ids, starts, lengths = rows["input_ids"].tolist(), starts_of(rows).tolist(), rows["lengths"].tolist()
    return [
        chosen_positions(*row, key, config, predictions, set(SPECIAL))
        for *row, key in zip(ids, starts, lengths, keys.tolist(), strict=True)
    ]


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize(("length", "slots"), [(1, 1), (9, 2), (70, 1), (64, 8), (130, 3), (200, 20)])
@pytest.mark.parametrize("share", [0.15, 0.6])
def test_greedy_walk_is_berts(unit: str, length: int, slots: int, share: float):
    config = MaskingConfig(unit=unit, share=share, max_span_words=3)
    for seed, predictions in ((1, length), (2, max(1, length // 8))):
        rows, keys = wild_rows(120, length, slots, seed), keys_of(120, epoch=seed)
        expected = expected_of(rows, keys, config, predictions)
        assert chosen_of(masked(rows, keys, config, predictions)) == expected
    assert length == 1 or any(expected)


@pytest.mark.parametrize("max_span_words", [1, 2, 7, 20])
def test_spans_of_other_lengths(max_span_words: int):
    config = MaskingConfig(unit="span", share=0.4, max_span_words=max_span_words)
    rows, keys = wild_rows(100, 60, 2, seed=3), keys_of(100)
    assert chosen_of(masked(rows, keys, config, 60)) == expected_of(rows, keys, config, 60)


def test_a_long_row_with_words_that_rarely_fit():
    # Words of 3 to 40 tokens: the walk has to pass over many before one fits.
    rng = np.random.default_rng(0)
    length = 512
    starts = np.zeros((16, length), int)
    for row in starts:
        row[np.cumsum(rng.choice((3, 25, 31, 40), 200)).clip(max=length - 1)] = 1
    rows = raw(np.full((16, length), 60), starts, [[(length, 0)]] * 16, length)
    config = MaskingConfig(unit="word")
    expected = expected_of(rows, keys_of(16), config, 77)
    assert chosen_of(masked(rows, keys_of(16), config, 77)) == expected
    assert len(set(map(len, expected))) > 2


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_compiled_is_the_same(unit: str):
    rows, keys, config = wild_rows(64, 40, 3, seed=4), keys_of(64), MaskingConfig(unit=unit)
    compiled = masking.compiled(masking.BatchShape(64, 40, 3, 12), config, SPECIALS)
    batch = compiled({name: tf.constant(values) for name, values in rows.items()}, tf.constant(keys))
    expected = masked(rows, keys, config, 12)
    assert set(batch) == set(expected)
    for name, values in expected.items():
        assert np.array_equal(batch[name].numpy(), values), name
        assert batch[name].dtype == values.dtype


def test_budgets_are_pythons_rounding():
    # round(10 x 0.25) is 2 and round(30 x 0.25) is 8: halves go to the even number, as in BERT's int(round(...)).
    totals = tf.constant([[0], [1], [2], [3], [10], [30], [100], [128]])
    found = selection.budgets(totals, length=128, slots=1, share=0.25, max_predictions=20)
    assert found.numpy()[:, 0].tolist() == [0, 1, 1, 1, 2, 8, 20, 20]


def test_packed_sequences_share_the_predictions():
    totals = tf.constant([[20, 20, 20, 0], [0, 0, 0, 0], [60, 10, 4, 2]])
    found = selection.budgets(totals, length=80, slots=4, share=0.15, max_predictions=7)
    assert found.numpy().tolist() == [[3, 3, 1, 0], [0, 0, 0, 0], [7, 0, 0, 0]]


@pytest.mark.parametrize("length", [1, 7, 8, 13, 64])
def test_unpack_bits(length: int):
    bits = np.random.default_rng(0).random((30, length)) < 0.5
    packed = np.packbits(bits, axis=1, bitorder="little")
    assert np.array_equal(selection.unpack_bits(tf.constant(packed), length).numpy(), bits)


def test_whole_words_only():
    rows = text_rows(300, 128, slots=2, seed=5)
    batch = masked(rows, keys_of(300), MaskingConfig(unit="word"), 24)
    starts, several = starts_of(rows), 0
    for ids, row_starts, positions in zip(rows["input_ids"], starts, chosen_of(batch), strict=True):
        chosen = np.zeros(len(ids) + 1, bool)
        chosen[positions] = True
        continues = ~row_starts & ~np.isin(ids, sorted(SPECIAL))
        inside = np.flatnonzero(continues)
        assert np.array_equal(chosen[inside], chosen[inside - 1])
        several += chosen[inside].sum()
    assert several > 1000


def test_span_lengths_are_inverse_to_their_number():
    max_words, keys = 4, keys_of(2000)
    lengths = selection.span_lengths(tf.constant(keys), 60, max_words).numpy()
    counts = np.bincount(lengths.ravel(), minlength=max_words + 1)[1:]
    expected = 1 / np.arange(1, max_words + 1)
    expected *= counts.sum() / expected.sum()
    # Beyond this with a probability of 1e-6; the draw is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(1e-6, max_words - 1)


def test_masked_spans_follow_the_drawn_lengths():
    # One long segment of words of one token: 6/11, 3/11 and 2/11 of the chosen spans have 1, 2 and 3 words.
    num_rows, length = 250, 512
    rows = raw(np.full((num_rows, length), 60), np.ones((num_rows, length)), [[(length, 0)]] * num_rows, length)
    config, keys = MaskingConfig(unit="span"), keys_of(num_rows)
    counts: Counter[int] = Counter()
    for positions, key in zip(chosen_of(masked(rows, keys, config, 77)), keys.tolist(), strict=True):
        spans = units_of([60] * length, [True] * length, key, 0, length, config, set(SPECIAL))
        chosen = set(positions)
        # The row's end cuts the last span.
        counts.update(len(span) for span in spans[:-1] if chosen.issuperset(span))
    total = counts.total()
    assert total > 10_000
    for words, share in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
        # The end of a budget, where only short spans fit, shifts a share by less than 1 in 77; and 5 deviations.
        assert abs(counts[words] / total - share) < 1 / 77 + 5 * (share * (1 - share) / total) ** 0.5


def test_every_maskable_token_has_its_chance():
    # 40 maskable tokens of 42, 6 chosen: in 8,000 epochs each of them about 1,200 times.
    ids = [2, *range(60, 80), 3, *range(80, 100), 3][:42]
    num_rows = 8_000
    rows = raw([ids] * num_rows, [[1] * 42] * num_rows, [[(22, 20)]] * num_rows, 42)
    chosen = list(itertools.chain.from_iterable(chosen_of(masked(rows, keys_of(num_rows), MaskingConfig(), 7))))
    counts = np.bincount(chosen, minlength=42)
    assert counts.sum() == 6 * num_rows
    maskable = np.flatnonzero(~np.isin(ids, sorted(SPECIAL)))
    assert set(np.flatnonzero(counts)) == set(maskable)
    share = 6 / len(maskable)
    # 40 counts, each beyond 5 standard deviations with a probability of 6e-7; the draw is fixed.
    assert np.abs(counts[maskable] - num_rows * share).max() < 5 * (num_rows * share * (1 - share)) ** 0.5
