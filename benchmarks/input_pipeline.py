"""Masked batches of 512 tokens from prepared rows, on one core, against transformers' DataCollatorForLanguageModeling.

    python benchmarks/input_pipeline.py [--rows FOLDER ...]

Ours is all that `train.py` does between the rows on disk and a batch in NumPy: order, reading, masking, positions,
labels. The peer gets the same rows, already in memory with their special tokens marked, and its best settings (lists
or arrays in, NumPy or torch out, 32 or 256 rows at a time); "its masking alone" is the peer without collation, on
arrays. Its whole-word variant gets offsets that say where words start. Real tokens are counted, no padding, in
millions a second.

Without --rows the rows are made of the built-in corpus: unpacked from its documents strung together (most are far shorter
than 512 tokens), packed from the documents as they are. The process keeps to one core; preparing the rows does not.
"""

import argparse
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from measure import Measurement, alternate, parser, show

from jaxbert.config import Config, DataConfig, MaskingConfig, VocabularyConfig
from jaxbert.text.builtin import builtin_documents
from jaxbert.text.prepare import prepare
from jaxbert.text.rows import Rows

Unit = Literal["token", "word", "span"]
UNITS: tuple[Unit, ...] = ("token", "word", "span")
LENGTH, ROWS_IN_BATCH = 512, 256
PROMISED: dict[Unit, float] = {"token": 15.0, "word": 6.0}
"""Millions of real tokens per second, of unpacked rows."""
DOCUMENTS_STRUNG_TOGETHER = 200


@dataclasses.dataclass(frozen=True)
class Side:
    """One thing to time: `run` handles so many millions of real tokens."""

    run: Callable[[], object]
    megatokens: float


def main() -> None:
    """Prepare or open rows, keep to one core, and measure."""
    options = parser(__doc__)
    options.add_argument("--rows", type=Path, nargs="+", metavar="FOLDER", help="prepared rows (train-512) to measure")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stores = arguments.rows or builtin_rows(Path(folder), arguments.quick)
        # Before TensorFlow and torch start, which size their thread pools by the cores that they may use.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        measurements = [line for store in stores for line in measure(Rows.open(store), arguments)]
    show(measurements, arguments.json)


def builtin_rows(folder: Path, quick: bool) -> list[Path]:
    """Unpacked and packed rows of the built-in corpus."""
    # A blank line ends a document.
    texts = ["\n".join(filter(str.strip, text.splitlines())) for _, text in builtin_documents()]
    (folder / "heldout.txt").write_text("\n\n".join(texts[:100]), encoding="utf8")
    texts = texts[100 : 4000 if quick else None]
    stores, vocabulary = [], VocabularyConfig(size=8192 if quick else 30522)
    for name, together in (("strung.txt", DOCUMENTS_STRUNG_TOGETHER), ("documents.txt", 1)):
        groups = ("\n".join(texts[i : i + together]) for i in range(0, len(texts), together))
        (folder / name).write_text("\n\n".join(groups), encoding="utf8")
        data = DataConfig(
            text=(str(folder / name),),
            heldout_text=(str(folder / "heldout.txt"),),
            max_length=LENGTH,
            packing=together == 1,
            vocabulary=vocabulary,
        )
        prepared = prepare(Config(workdir=str(folder / f"{name}.run"), data=data), on_progress=print)
        stores.append(prepared.stores["train", LENGTH])
        vocabulary = VocabularyConfig(path=str(prepared.tokenizer_directory))
    return stores


def measure(rows: Rows, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """A line for each unit, and for the promised ones a line of our figure alone."""
    rounds = 3 if arguments.quick else 9
    packed = rows.max_sequences > 1
    kind = (
        f"{rows.manifest['num_sequences'] / rows.manifest['num_rows']:.1f} sequences a row"
        if packed
        else "one sequence a row"
    )
    for unit in UNITS:
        name = f"{unit}s, {kind}, {rows.manifest['fill']:.0%} filled"
        sides = [our_side(rows, unit, 3 if arguments.quick else 20)]
        peers = {} if packed or unit == "span" else peer_sides(rows, unit == "word", arguments.quick)
        sides += peers.values()
        ours, *others = rates(sides, rounds)
        yield Measurement(name, ours, None, "M tokens/s", None if packed else PROMISED.get(unit))
        for peer, rate in zip(peers, others, strict=True):
            yield Measurement(f"{name}: {peer}", ours, rate, "M tokens/s")


def rates(sides: list[Side], rounds: int) -> list[float]:
    """Millions of tokens per second of each side, measured in turn."""
    seconds = alternate([side.run for side in sides], rounds)
    return [side.megatokens / s for side, s in zip(sides, seconds, strict=True)]


def our_side(rows: Rows, unit: Unit, num_batches: int) -> Side:
    """The next batches of an endless run, one thread."""
    from jaxbert.data.pretraining import PretrainingBatches

    data = DataConfig(max_length=LENGTH, packing=rows.max_sequences > 1, max_sequences=rows.max_sequences)
    predictions = Config(data=data).phases()[0].max_predictions
    batches = PretrainingBatches(rows, MaskingConfig(unit=unit), predictions, ROWS_IN_BATCH, seed=0)
    # Without prefetching: a batch that was made while the peer was timed would be free.
    steps = batches.dataset(0, 1 << 40, prefetch=0).as_numpy_iterator()

    def run() -> None:
        for _ in range(num_batches):
            next(steps)

    return Side(run, num_batches * ROWS_IN_BATCH * rows.manifest["num_tokens"] / len(rows) / 1e6)


def peer_sides(rows: Rows, whole_words: bool, quick: bool) -> dict[str, Side]:
    """The collator at its best settings on a batch of these rows, and its masking alone."""
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    torch.set_num_threads(1)
    # It says that it never draws random tokens for whole words, which saves it time.
    warnings.filterwarnings("ignore", message="Random token replacement")
    tokenizer = AutoTokenizer.from_pretrained(rows.directory.parent / "tokenizer")
    candidates: dict[str, list[Side]] = {"collator": [], "its masking alone": []}
    for tensors in ("np", "pt"):
        for count in (32, 256):
            collator = DataCollatorForLanguageModeling(
                tokenizer, whole_word_mask=whole_words, return_tensors=tensors, seed=0
            )
            arrays, megatokens = examples(rows, count, whole_words)
            for convert in (np.ndarray.tolist, np.asarray):
                rows_given = [{name: convert(values[i]) for name, values in arrays.items()} for i in range(count)]
                candidates["collator"].append(Side(collate(collator, rows_given), megatokens))
            candidates["its masking alone"].append(Side(mask_alone(collator, arrays, tensors), megatokens))
    best = {}
    for name, sides in candidates.items():
        tried = rates(sides, 1 if quick else 3)
        best[name] = sides[int(np.argmax(tried))]
    return best


def examples(rows: Rows, count: int, whole_words: bool) -> tuple[dict[str, np.ndarray], float]:
    """The first rows as the collator wants them, and their millions of real tokens."""
    raw = rows.read(np.arange(count))
    ids = raw["input_ids"].astype(np.int64)
    real = np.arange(LENGTH) < raw["lengths"].sum(axis=(1, 2))[:, None]
    special = np.isin(ids, rows.manifest["vocabulary"]["special_ids"]) | ~real
    arrays: dict[str, Any] = {"input_ids": ids, "attention_mask": real * 1, "special_tokens_mask": special * 1}
    if whole_words:
        # As of characters: a token of one character, and a space before each word.
        starts = np.unpackbits(raw["word_starts"], axis=1, count=LENGTH, bitorder="little")
        ends = np.cumsum(1 + starts.astype(np.int64), axis=1)
        arrays["offset_mapping"] = np.stack([ends - 1, ends], axis=2)
    return arrays, real.sum() / 1e6


def collate(collator: Any, rows: list[dict[str, Any]]) -> Callable[[], object]:
    return lambda: collator(rows)


def mask_alone(collator: Any, arrays: dict[str, np.ndarray], tensors: str) -> Callable[[], object]:
    """The masking on arrays that need no collation; a copy of the ids, since it writes into them."""
    import torch

    if collator.seed is not None:
        collator.create_rng()
    convert = torch.from_numpy if tensors == "pt" else np.asarray
    mask = collator.torch_mask_tokens if tensors == "pt" else collator.numpy_mask_tokens
    given = {name: convert(values) for name, values in arrays.items() if name not in ("input_ids", "attention_mask")}
    return lambda: mask(convert(arrays["input_ids"].copy()), **given)


if __name__ == "__main__":
    main()
