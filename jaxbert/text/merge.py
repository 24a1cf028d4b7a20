"""Finished units -> row stores, and a line on each."""

import dataclasses
import pathlib
from collections import Counter
from typing import Any

from jaxbert.config import Config
from jaxbert.text.rows import PAIRS, RowsError, RowWriter
from jaxbert.text.units import NUM_SAMPLES, Split, UnitSettings, load_unit, smallest_by_hash

NOT_IN_FINGERPRINT = ("rows", "workers", "max_rejected_share", "text", "heldout_text", "vocabulary", "max_length")
"""Fields of DataConfig that are no settings of the rows, or are told elsewhere."""


def store_folder(folder: pathlib.Path, split: Split, max_length: int) -> pathlib.Path:
    """Where the rows of a split at a length lie."""
    return folder / f"{split}-{max_length}"


def merge(
    files: list[pathlib.Path], folder: pathlib.Path, split: Split, settings: UnitSettings, described: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Join a split's units into its stores, in order; the manifests by store name, and the sample sentences."""
    vocabulary = settings.vocabulary
    writers = {
        n: RowWriter(store_folder(folder, split, n), settings.layout(n), vocabulary.pad_id) for n in settings.lengths
    }
    counts: dict[int, Counter[str]] = {n: Counter() for n in settings.lengths}
    samples: set[str] = set()
    for path in files:
        result = load_unit(path, settings)
        samples = set(smallest_by_hash(samples.union(result.samples), NUM_SAMPLES, settings.seed))
        for length, writer in writers.items():
            writer.write(result.rows[length])
            counts[length].update(result.counts[length])
    ids = ("size", "pad_id", "unk_id", "cls_id", "sep_id", "mask_id", "special_ids")
    described = described | {"vocabulary": {name: getattr(vocabulary, name) for name in ids}}
    data = dataclasses.asdict(settings.data)
    described["settings"] = {k: v for k, v in data.items() if k not in NOT_IN_FINGERPRINT} | {"seed": settings.seed}
    manifests = {}
    for length, writer in writers.items():
        pairs = {kind: counts[length].pop(kind, 0) for kind in PAIRS}
        manifest = writer.finish(
            **described, pairs=pairs, **{k: counts[length][k] for k in ("truncated_tokens", "dropped_tokens")}
        )
        if not manifest["num_rows"]:
            side = "training" if split == "train" else "held-out"
            raise RowsError(f"the {side} documents give no sequence of {length} tokens: they hold too little text")
        manifests[store_folder(folder, split, length).name] = manifest
    return manifests, samples


def summary(name: str, manifest: dict[str, Any], config: Config) -> str:
    """A line on a store, with what a user may want to change."""
    pairs, per_row = manifest["pairs"], manifest["num_sequences"] / manifest["num_rows"]
    line = (
        f"rows: {name}: {manifest['num_rows']:,} rows, {manifest['num_tokens']:,} tokens, "
        f"{manifest['fill']:.1%} filled, {per_row:.2f} sequences a row"
    )
    if pairs["next"] + pairs["random"]:
        line += f", {pairs['random'] / (pairs['next'] + pairs['random']):.1%} of the pairs random or swapped"
    elif config.data.pairs != "none":
        line += "; no document has two sentences, so there are no pairs and NSP learns nothing"
    if pairs["without_donor"] > 0.01 * manifest["num_sequences"]:
        line += (
            f"; {pairs['without_donor']:,} more were to be random, but their unit has no other document to take from: "
            "raise data.unit_megabytes"
        )
    most = manifest["max_sequences"]
    if config.data.packing and manifest["fill"] < 0.98 and per_row > 0.5 * most:
        line += f"; rows end at data.max_sequences ({most}) before they are full: raise it"
    return line
