"""Sequences cut from documents: labels, lengths, and where every token went."""

import dataclasses
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxbert.text.instances import IS_NEXT, IS_RANDOM, NO_LABEL, make_full_sentences, make_pairs
from jaxbert.text.packing import pack
from jaxbert.text.tokens import SegmenterError, SentenceTokenizer, Tokens, gather_ranges, tokenise


def make_tokens(documents: list[list[int]], origins: list[int] | None = None) -> Tokens:
    """Documents given as the number of tokens in each sentence; every token id is its own position."""
    lengths = [n for document in documents for n in document]
    ids = np.arange(sum(lengths), dtype=np.uint32)
    sentence_offsets = np.cumsum([0, *lengths])
    return Tokens(
        ids=ids,
        word_starts=(ids % 3 != 1) | np.isin(ids, sentence_offsets),
        sentence_offsets=sentence_offsets,
        document_offsets=np.cumsum([0, *map(len, documents)]),
        origins=np.array(range(len(documents)) if origins is None else origins),
    )


def novel_like(num_documents: int = 8, sentences: int = 800, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(3, 45, sentences).tolist() for _ in range(num_documents)]
    return make_tokens(documents)


def document_of(tokens: Tokens, positions: np.ndarray) -> np.ndarray:
    starts = tokens.sentence_offsets[tokens.document_offsets]
    return np.searchsorted(starts, positions, side="right") - 1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def within_binomial_bounds(successes: int, trials: int, share: float) -> bool:
    return abs(successes - trials * share) < 5 * math.sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_share_of_random_next(share: float):
    pairs = make_pairs(novel_like(), 128, rng(), second="nsp", random_next_share=share).pair_counts()
    labelled = pairs["next"] + pairs["random"]
    assert labelled > 1000
    assert within_binomial_bounds(pairs["random"], labelled, share)
    assert pairs["none"] <= 8
    assert pairs["without_donor"] == 0


def test_short_documents_do_not_skew_the_labels():
    lengths = np.random.default_rng(1).integers(4, 30, (3000, 2)).tolist()
    tokens = make_tokens([sentences[: 1 + i % 2] for i, sentences in enumerate(lengths)])
    pairs = make_pairs(tokens, 128, rng(), second="nsp").pair_counts()
    assert within_binomial_bounds(pairs["random"], pairs["next"] + pairs["random"], 0.5)
    assert pairs["none"] > 1500


def test_random_segment_is_never_from_the_same_document():
    # Documents 2 and 3, 5 and 6 are pieces of one; every second sentence starts a pair.
    origins = [0, 1, 2, 2, 3, 4, 4, 5]
    tokens = make_tokens([[9] * 60 for _ in origins], origins)
    pairs = make_pairs(tokens, 32, rng(), second="nsp")
    a, b = (np.array(origins)[document_of(tokens, p)] for p in (pairs.a_start, pairs.b_start))
    random = pairs.labels == IS_RANDOM
    assert random.sum() > 50
    assert (a[random] != b[random]).all()
    follows = pairs.labels == IS_NEXT
    assert (a[follows] == b[follows]).all()
    # Every other document gives its share.
    assert set(b[random]) == set(origins)


@pytest.mark.parametrize("num_documents", [3, 400])
def test_random_segment_starts_at_a_later_sentence_of_another_document(num_documents: int):
    # Three pieces of one document and a document of one piece, and so on; nothing gets truncated.
    tokens = make_tokens([[9, 8, 7]] * 4 * num_documents, [i // 4 * 2 + (i % 4 == 3) for i in range(4 * num_documents)])
    for seed in range(400 // num_documents):
        pairs = make_pairs(tokens, 64, rng(seed), second="nsp", short_share=0.0)
        follows, random = pairs.labels == IS_NEXT, pairs.labels == IS_RANDOM
        assert (pairs.b_start[follows] == pairs.a_end[follows]).all()
        assert np.isin(pairs.b_start[random], tokens.sentence_offsets).all()
        assert not np.isin(pairs.b_start[random], tokens.sentence_offsets[tokens.document_offsets]).any()
        a, b = (tokens.origins[document_of(tokens, p)] for p in (pairs.a_start[random], pairs.b_start[random]))
        assert (a != b).all()


def test_sentences_left_over_by_a_random_segment_start_the_next_pair():
    tokens = make_tokens([[5] * 40, [5] * 40])
    pairs = make_pairs(tokens, 23, rng(), second="nsp", random_next_share=1.0, short_share=0.0)
    of_first = document_of(tokens, pairs.a_start) == 0
    assert (pairs.a_start[of_first][1:] == pairs.a_end[of_first][:-1]).all()
    assert pairs.pair_counts()["next"] == 0


def test_a_unit_without_a_donor_makes_true_nexts_and_counts_them():
    tokens = make_tokens([[6] * 100, [6] * 100], origins=[7, 7])
    pairs = make_pairs(tokens, 32, rng(), second="nsp").pair_counts()
    assert pairs["random"] == 0
    assert within_binomial_bounds(pairs["without_donor"], pairs["next"], 0.5)


def test_share_of_short_sequences():
    tokens = make_tokens([[1] * 60_000, [1] * 60_000])
    lengths = make_pairs(tokens, 103, rng(), second="sop", short_share=0.1).lengths()
    # Uniform from 2 to 100 text tokens: 98 of 99 short targets are below the full one.
    assert within_binomial_bounds(int((lengths < 103).sum()), len(lengths), 0.1 * 98 / 99)
    short = lengths[lengths < 103] - 3
    assert short.min() == 2
    assert abs(short.mean() - 50.5) < 5
    assert (make_pairs(tokens, 103, rng(), second="sop", short_share=0.0).lengths()[:-2] == 103).mean() > 0.99


def reference_truncation(a: int, b: int, room: int) -> tuple[int, int]:
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


@pytest.mark.parametrize("sentences", [(40, 50), (50, 40), (3, 61), (61, 3), (45, 45), (30, 31), (31, 30)])
def test_truncation_takes_from_the_longer_segment_at_random_ends(sentences: tuple[int, int]):
    tokens = make_tokens([list(sentences)] * 300)
    pairs = make_pairs(tokens, 64, rng(), second="nsp", random_next_share=0.0, short_share=0.0)
    a, b = pairs.a_end - pairs.a_start, pairs.b_end - pairs.b_start
    expected = reference_truncation(*sentences, 61)
    assert len(a) == 300
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == {expected}
    starts = tokens.sentence_offsets[:-1].reshape(300, 2)
    for segment, first in ((0, pairs.a_start), (1, pairs.b_start)):
        off = sentences[segment] - expected[segment]
        assert within_binomial_bounds(int((first - starts[:, segment]).sum()), 300 * off, 0.5) or off == 0
        assert first.min() >= starts[0, segment]
    assert pairs.truncated_tokens == 300 * (sum(sentences) - sum(expected))


@pytest.mark.parametrize("second", ["nsp", "sop"])
@pytest.mark.parametrize("max_length", [32, 128])
def test_every_token_of_the_text_is_accounted_for(second: str, max_length: int):
    tokens = make_tokens([[1], [1, 1], [400], [30] * 20, [2, 70, 5, 900, 1, 1], [1], [300, 300]])
    pairs = make_pairs(tokens, max_length, rng(3), second=second)
    own_b = pairs.labels != IS_RANDOM if second == "nsp" else np.ones(len(pairs.labels), bool)
    used = [gather_ranges(pairs.a_start, pairs.a_end - pairs.a_start)]
    used.append(gather_ranges(pairs.b_start[own_b], (pairs.b_end - pairs.b_start)[own_b]))
    positions = np.concatenate(used)
    assert len(np.unique(positions)) == len(positions)
    assert len(positions) + pairs.truncated_tokens + pairs.dropped_tokens == len(tokens.ids)
    # The two documents of one token, and what a random segment may leave over at a document's end.
    assert 2 <= pairs.dropped_tokens <= 4
    assert pairs.lengths().max() <= max_length


def test_sop_swaps_half_and_both_segments_are_neighbours():
    tokens = novel_like()
    pairs = make_pairs(tokens, 4096, rng(), second="sop", short_share=0.3)
    full = (pairs.lengths() < 4096) & (pairs.labels != NO_LABEL)
    swapped = full & (pairs.labels == IS_RANDOM)
    straight = full & (pairs.labels == IS_NEXT)
    assert (pairs.b_end[swapped] == pairs.a_start[swapped]).all()
    assert (pairs.a_end[straight] == pairs.b_start[straight]).all()
    counts = make_pairs(tokens, 64, rng(), second="sop").pair_counts()
    assert within_binomial_bounds(counts["random"], counts["next"] + counts["random"], 0.5)


def test_full_sentences_fill_sequences_of_one_document_without_labels():
    tokens = novel_like(3)
    sequences = make_full_sentences(tokens, 128, rng())
    assert (sequences.labels == NO_LABEL).all()
    assert (sequences.lengths_b() == 0).all()
    # End to end, only at sentence ends, and never with room for the next sentence of the document.
    assert (sequences.a_start[1:] == sequences.a_end[:-1]).all()
    assert np.isin(sequences.a_end, tokens.sentence_offsets).all()
    assert (document_of(tokens, sequences.a_start) == document_of(tokens, sequences.a_end - 1)).all()
    following = tokens.sentence_offsets[np.searchsorted(tokens.sentence_offsets, sequences.a_end[:-1]) + 1]
    same = document_of(tokens, sequences.a_start[:-1]) == document_of(tokens, following - 1)
    assert (following - sequences.a_start[:-1] > 126)[same].all()
    assert sequences.a_end[-1] == len(tokens.ids)


def test_full_sentences_with_fill_end_at_words_and_leave_no_room():
    tokens = novel_like(2)
    sequences = make_full_sentences(tokens, 128, rng(), fill=True)
    lengths = sequences.lengths()
    assert (sequences.a_start[1:] == sequences.a_end[:-1]).all()
    assert tokens.word_starts[sequences.a_start].all()
    assert (lengths < 127).sum() <= 2
    assert lengths.max() == 128


def test_a_long_sentence_is_cut_at_words_and_not_dropped():
    tokens = make_tokens([[1000]])
    sequences = make_full_sentences(tokens, 64, rng())
    assert (sequences.a_end - sequences.a_start).sum() == 1000
    assert tokens.word_starts[sequences.a_start].all()
    pairs = make_pairs(tokens, 64, rng(), second="nsp", short_share=0.0)
    assert pairs.truncated_tokens < 0.05 * 1000
    # A single word that is longer than a sequence is cut through.
    one_word = dataclasses.replace(tokens, word_starts=tokens.ids == 0)
    assert make_full_sentences(one_word, 64, rng()).lengths().tolist() == [64] * 16 + [10]


def test_same_key_same_sequences():
    first, again, other = (make_pairs(novel_like(2, 50), 64, rng(seed), second="nsp") for seed in (1, 1, 2))
    assert np.array_equal(first.b_start, again.b_start)
    assert not np.array_equal(first.b_start, other.b_start)


def test_no_documents_and_empty_documents():
    for documents in ([], [[]], [[], [5, 5], []]):
        assert len(make_pairs(make_tokens(documents), 32, rng(), second="nsp").labels) == (
            1 if len(documents) == 3 else 0
        )
        assert len(make_full_sentences(make_tokens(documents), 32, rng()).labels) == (1 if len(documents) == 3 else 0)


def row_sizes(row_of: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(row_of, weights=lengths), np.bincount(row_of)


@pytest.mark.parametrize(("max_length", "tokens"), [(512, novel_like(8, 3000)), (128, novel_like(4000, 3))])
def test_packing_fills_98_percent_of_the_positions(max_length: int, tokens: Tokens):
    lengths = make_pairs(tokens, max_length, rng(), second="nsp").lengths()
    used, count = row_sizes(pack(lengths, max_length, 8), lengths)
    assert used.max() <= max_length
    assert count.max() <= 8
    assert used.sum() / (len(used) * max_length) >= 0.98


def test_packing_small_cases():
    assert pack(np.array([], np.int64), 8, 2).tolist() == []
    assert pack(np.array([3, 5, 8]), 8, 2).tolist() == [1, 1, 0]
    # Best fit: 3 joins 5, not 4.
    assert pack(np.array([4, 5, 3]), 8, 8).tolist() == [1, 0, 0]
    assert pack(np.array([1, 1, 1, 1, 1]), 8, 2).tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="does not fit into 8"):
        pack(np.array([9]), 8, 2)


NASTY = [
    "The cafés' naïve “résumé” cost $3.50, didn't it?",
    "他说：“你好，世界！” 然后 he left\u3000quickly。",
    "😀😃 emoji🎉party \u200d joiners e\u0301 accents ǅ İstanbul ΑΣ",
    "form\x0cfeed vertical\x0btab next\x85line unit\x1fseparator bell\x07 zero\u200bwidth nbsp\u00a0here \ufffd",
    "[CLS] a [MASK] is text here [SEP] [PAD]",
    "supercalifragilisticexpialidocious " * 3,
    "",
    "\u0301 combining first",
    "한국어 텍스트 भारत ",
]


@pytest.fixture(scope="module")
def bert_tokenizer() -> Tokenizer:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "cafe",
        "naive",
        "resume",
        "left",
        "quick",
        "##ly",
        "你",
        "好",
    ]
    characters = sorted({c for text in NASTY for c in text.lower() if not c.isspace()})
    vocabulary = dict.fromkeys([*words, *characters, *("##" + c for c in characters)])
    tokenizer = Tokenizer(
        models.WordPiece(
            {word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]", max_input_chars_per_word=100
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def continuation_table(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.id_to_token(i).startswith("##") for i in range(tokenizer.get_vocab_size())])


def test_chunks_encode_as_whole_sentences_do(bert_tokenizer: Tokenizer):
    plain = Tokenizer.from_str(bert_tokenizer.to_str())
    plain.encode_special_tokens = True
    encode = SentenceTokenizer(bert_tokenizer, continuation_table(bert_tokenizer))
    assert encode._chunks is not None
    for _ in range(2):
        ids, starts, counts = encode(NASTY)
        expected = [plain.encode(text, add_special_tokens=False).ids for text in NASTY]
        assert counts.tolist() == [len(e) for e in expected]
        assert ids.tolist() == [i for e in expected for i in e]
        assert (starts == ~continuation_table(bert_tokenizer)[ids]).all()
    # Special tokens in the text are text.
    assert bert_tokenizer.token_to_id("[MASK]") not in ids


def test_other_tokenizers_encode_sentence_by_sentence(bert_tokenizer: Tokenizer):
    other = Tokenizer.from_str(bert_tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer()])
    encode = SentenceTokenizer(other, continuation_table(other))
    assert encode._chunks is None
    cached = SentenceTokenizer(bert_tokenizer, continuation_table(bert_tokenizer))
    for one, two in zip(encode(NASTY), cached(NASTY), strict=True):
        assert np.array_equal(one, two)


def test_byte_level_pieces_keep_the_space_between_sentences():
    """What is before the first sentence of a document is no space, nor is what is between Chinese ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["This is hello. This is text."], trainer)
    table = np.zeros(tokenizer.get_vocab_size(), bool)
    documents = [["This is hello.", "This is text.", "你好。", "再见。", "Done.", "Well."], ["This is new."]]
    for segment in (None, lambda text: [text]):
        tokens = tokenise(documents, [0, 1], SentenceTokenizer(tokenizer, table, segment))
        assert tokenizer.decode(tokens.ids) == "This is hello. This is text.你好。再见。Done. Well.This is new."
        assert (np.diff(tokens.sentence_offsets) > 0).all()
        assert tokens.word_starts[tokens.sentence_offsets[:-1]].all()


def test_tokenise_leaves_out_sentences_without_tokens(bert_tokenizer: Tokenizer):
    encode = SentenceTokenizer(bert_tokenizer, continuation_table(bert_tokenizer))
    tokens = tokenise([["left", "\x07", "quickly"], [" "], [], ["naive cafe"]], [0, 1, 2, 2], encode)
    assert tokens.sentence_offsets.tolist() == [0, 1, 3, 5]
    assert tokens.document_offsets.tolist() == [0, 2, 2, 2, 3]
    assert tokens.word_starts.tolist() == [True, True, False, True, True]


def test_a_segmenter_decides_where_words_start(bert_tokenizer: Tokenizer):
    table = continuation_table(bert_tokenizer)
    text = "你好 quickly"
    _, starts, _ = SentenceTokenizer(bert_tokenizer, table)([text])
    assert starts.tolist() == [True, True, True, False]
    encode = SentenceTokenizer(bert_tokenizer, table, lambda text: ["你好", " ", "quickly"])
    _, starts, counts = encode([text, "", text])
    assert starts.tolist() == [True, False, True, False] * 2
    assert counts.tolist() == [4, 0, 4]
    with pytest.raises(SegmenterError, match="do not add up"):
        SentenceTokenizer(bert_tokenizer, table, lambda text: ["你"])([text])
