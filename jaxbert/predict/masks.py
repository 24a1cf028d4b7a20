"""The masks of a text, and what is found for them."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from tokenizers import Encoding

from jaxbert.predict.texts import Encoded, TextEncoder


class Candidate(TypedDict):
    """One filling of a mask, with the keys of transformers' fill-mask pipeline."""

    score: float
    """Probability, 0 to 1."""
    token: int
    token_str: str
    sequence: str
    """What was read of the text (a window, where it is a long one), with the mask filled."""


def find_masks(encoder: TextEncoder, encoded: Encoded) -> list[tuple[Encoding, int]]:
    """Each mask of a text: the window that shows most of what is around it, and its position there."""
    best: dict[tuple[int, int], tuple[int, Encoding, int]] = {}
    for window in encoded.windows:
        for position, token in enumerate(window.ids):
            if token == encoder.vocabulary.mask_id:
                around = min(position, len(window) - 1 - position)
                place = window.offsets[position]
                if place not in best or around > best[place][0]:
                    best[place] = (around, window, position)
    return [best[place][1:] for place in sorted(best)]


def mask_fault(encoder: TextEncoder, text: str, encoded: Encoded, masks: Sequence[object]) -> str | None:
    """Why not every mask of a text can be filled."""
    mask = encoder.tokenizer.id_to_token(encoder.vocabulary.mask_id) or ""
    if encoded.truncated and text.count(mask) > len(masks):
        return f'has a {mask} behind the {encoder.max_length} tokens that are read of it: long_texts="window" reads all'
    return None if masks else f"has no {mask}: put one where a token is to be found"


def candidates(
    encoder: TextEncoder,
    window: Encoding,
    position: int,
    scores: np.ndarray,
    tokens: np.ndarray,
    top_k: int,
    masks: int,
) -> list[Candidate]:
    """The first `top_k` tokens for a mask at this position; `masks`: how many the text has."""
    decode, ids, found = encoder.tokenizer.decode, list(window.ids), []
    for score, token in zip(scores[:top_k].tolist(), tokens[:top_k].tolist(), strict=True):
        ids[position] = token
        sequence = decode(ids, skip_special_tokens=masks == 1)
        found.append(Candidate(score=score, token=token, token_str=decode([token], False), sequence=sequence))
    return found
