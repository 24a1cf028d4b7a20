"""BERT's masking in slow, plain Python: one row at a time, as create_pretraining_data.py walks through a sequence.

The draws are those that jaxbert documents (a 64-bit hash for each token, keyed by row); all else is written anew.
"""

from collections.abc import Sequence

from jaxbert.config import MaskingConfig

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def draw(key: int, number: int, stream: int = 0) -> int:
    """Number `number` (from 0) of a stream: SplitMix64."""
    x = (key + (number + 1 + (stream << 32)) * GOLDEN) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def span_words(key: int, position: int, max_words: int) -> int:
    """The words of a span that begins here: n with probability proportional to 1/n."""
    uniform = draw(key, position, stream=1) >> 40
    weights = [1 / n for n in range(1, max_words + 1)]
    return 1 + sum(uniform >= round(sum(weights[:n]) / sum(weights) * 2**24) for n in range(1, max_words))


def units_of(
    ids: Sequence[int],
    starts: Sequence[bool],
    key: int,
    first: int,
    last: int,
    config: MaskingConfig,
    special: set[int],
) -> list[list[int]]:
    """The positions first .. last - 1 of one sequence, as BERT's cand_indexes: one list for each unit."""
    units: list[list[int]] = []
    words_left, inside = 0, False
    for position in range(first, last):
        if ids[position] in special:
            words_left, inside = 0, False
            continue
        begins_word = config.unit == "token" or starts[position] or not inside
        inside = True
        if not begins_word:
            units[-1].append(position)
        elif words_left:
            units[-1].append(position)
            words_left -= 1
        else:
            units.append([position])
            words_left = span_words(key, position, config.max_span_words) - 1 if config.unit == "span" else 0
    return units


def chosen_positions(
    ids: Sequence[int],
    starts: Sequence[bool],
    lengths: Sequence[tuple[int, int]],
    key: int,
    config: MaskingConfig,
    max_predictions: int,
    special: set[int],
) -> list[int]:
    """create_masked_lm_predictions for each sequence of a row, up to what becomes of the chosen tokens."""
    # A place in the order: the highest bits of the first token's hash; the earlier of two equal ones goes first.
    order_bits = min(22, 31 - (len(lengths) - 1).bit_length() - len(ids).bit_length())
    chosen: list[int] = []
    first = 0
    room = max_predictions
    for total in map(sum, lengths):
        units = units_of(ids, starts, key, first, first + total, config, special)
        units.sort(key=lambda unit: (draw(key, unit[0]) >> (64 - order_bits), unit[0]))
        num_to_predict = min(max_predictions, max(1, round(total * config.share))) if total else 0
        num_to_predict = min(num_to_predict, room)
        room -= num_to_predict
        masked: list[int] = []
        for unit in units:
            if len(masked) >= num_to_predict:
                break
            if len(masked) + len(unit) > num_to_predict:
                continue
            masked += unit
        chosen += masked
        first += total
    return sorted(chosen)
