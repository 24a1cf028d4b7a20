"""Raw text -> tokenizer and row stores: the coordinator over work units.

What is prepared lies under ROWS/<fingerprint>/, where ROWS is data.rows or WORKDIR/rows and the fingerprint is that of
everything that decides the rows: settings, tokenizer and the corpus' listing. Other settings have another folder, so
stale rows are never taken for fresh ones, and nobody's rows are deleted.

    tokenizer/                    a Hugging Face tokenizer folder
    train-128/, heldout-128/ ...  a row store (rows.py) for each split and each length of the run
    heldout_samples.jsonl         held-out sentences as text, for the report's examples
    rejected.jsonl                samples of the documents that were rejected
    units/                        finished units, while the preparation is under way
    prepared.json                 written last: the fingerprint, its ingredients, what came out
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import tokenizers

from jaxbert.config import Config, VocabularyConfig
from jaxbert.text import vocabulary as vocabularies
from jaxbert.text.corpus import CorpusError, Document, Rejects, documents, is_heldout, listing
from jaxbert.text.merge import NOT_IN_FINGERPRINT, merge, store_folder, summary
from jaxbert.text.rows import FORMAT_VERSION, Rows, RowsError, atomic_file, write_json
from jaxbert.text.units import NUM_SAMPLES, SPLITS, Split, Unit, UnitCutter, UnitSettings, smallest_by_hash
from jaxbert.text.vocabulary import Vocabulary, VocabularyError
from jaxbert.text.workers import run_units

PREPARED, SAMPLES, REJECTED, TOKENIZER, UNITS = (
    "prepared.json",
    "heldout_samples.jsonl",
    "rejected.jsonl",
    "tokenizer",
    "units",
)
_SECONDS_BETWEEN_MESSAGES = 10
_NOTHING_TO_TRAIN_ON = "no document is left to train on, all are held out: lower data.heldout_share or add to data.text"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` made or found."""

    directory: pathlib.Path
    tokenizer_directory: pathlib.Path
    stores: dict[tuple[Split, int], pathlib.Path]
    """(split, max_length) -> the folder that Rows.open takes."""
    vocabulary: Vocabulary
    samples: pathlib.Path
    """Held-out sentences, one {"text": ...} a line."""
    report: dict[str, Any]
    """prepared.json: fingerprint and its ingredients, counts of documents, the stores' manifests without their shards."""


def prepare(
    config: Config,
    on_progress: Callable[[str], None] = lambda message: None,
    verify: Literal["size", "hash"] = "size",
) -> Prepared:
    """Make the run's tokenizer and rows, or find them made; go on where an earlier call was interrupted.

    What was made before is checked by its files' sizes, or, which reads all of it, by their sha256.
    CorpusError, VocabularyError, RowsError: one line that names the thing and the way out.
    """
    root = pathlib.Path(config.data.rows or pathlib.Path(config.workdir) / "rows")
    ingredients = _settings(config)
    try:
        ingredients |= _vocabulary_ingredients(config.data.vocabulary)
        ingredients |= _listings(config)
    except (CorpusError, VocabularyError) as error:
        vocabulary = config.data.vocabulary.path
        if isinstance(error, VocabularyError) and vocabulary is not None and pathlib.Path(vocabulary).exists():
            # It is there and damaged: rows that were made with a sound one do not stand in for it.
            raise
        # The rows may have come from a machine that has the text, and the vocabulary's file.
        moved = _made_elsewhere(root, ingredients, _named(config))
        if moved is None:
            raise
        what = "data.text" if "vocabulary" in ingredients else "data.vocabulary.path"
        on_progress(f"rows: {what} is not on this machine; taking those in {moved}, whose settings are the same")
        return _found(moved, verify)
    fingerprint = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    folder = root / fingerprint[:12]
    if not (folder / PREPARED).is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RowsError(f"{folder}: {error.strerror}: set data.rows to a folder that can be written") from error
        with _locked(folder, on_progress):
            if not (folder / PREPARED).is_file():
                report = {"fingerprint": fingerprint, "ingredients": ingredients, "named": _named(config)}
                _make(config, folder, report, on_progress)
    else:
        on_progress(f"rows: found in {folder}")
    return _found(folder, verify)


def _settings(config: Config) -> dict[str, Any]:
    """Everything that decides the rows, but the text and the vocabulary."""
    data = config.data
    settings = {k: v for k, v in dataclasses.asdict(data).items() if k not in NOT_IN_FINGERPRINT}
    return {
        "format_version": FORMAT_VERSION,
        "seed": config.seed,
        "lengths": _lengths(config),
        "settings": settings,
    }


def _listings(config: Config) -> dict[str, Any]:
    """The text that decides the rows, by its listing: nothing is read."""
    data = config.data
    return {
        "text": listing(data.text, data),
        "heldout_text": listing(data.heldout_text, data) if data.heldout_text else [],
    }


def _named(config: Config) -> dict[str, Any]:
    """The text, and the vocabulary's file, as the settings name them."""
    data = config.data
    return {"text": list(data.text), "heldout_text": list(data.heldout_text), "vocabulary": data.vocabulary.path}


def _made_elsewhere(root: pathlib.Path, settings: dict[str, Any], named: dict[str, Any]) -> pathlib.Path | None:
    """The one finished folder that was made with these settings from what has these names; None where there is not one."""
    # As they look after a turn through JSON.
    settings = json.loads(json.dumps(settings))
    reports = {path.parent: _report(path.parent) for path in sorted(root.glob(f"*/{PREPARED}"))}
    matching = [
        folder
        for folder, report in reports.items()
        if settings.items() <= report["ingredients"].items() and report["named"] == named
    ]
    return matching[0] if len(matching) == 1 else None


def _vocabulary_ingredients(config: VocabularyConfig) -> dict[str, Any]:
    if config.path is None:
        return {"vocabulary": dataclasses.asdict(config) | {"lowercase": config.lowercase is not False}}
    tokenizer = vocabularies.load_tokenizer(config.path, config.lowercase)
    return {"vocabulary": {"fingerprint": vocabularies.fingerprint(tokenizer)}}


def _lengths(config: Config) -> tuple[int, ...]:
    return tuple(sorted({phase.max_length for phase in config.phases()}))


@contextmanager
def _locked(folder: pathlib.Path, on_progress: Callable[[str], None]) -> Iterator[None]:
    """Keeps two preparations of the same rows apart; the lock ends with its process."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(f"rows: another process is preparing {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # File systems without locks have none here either.
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise
        yield


def _report(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads((folder / PREPARED).read_text(encoding="utf8"))
    except ValueError as error:
        raise RowsError(f"{folder / PREPARED}: damaged: delete {folder} and prepare the rows again") from error


def _found(folder: pathlib.Path, verify: Literal["size", "hash"]) -> Prepared:
    report = _report(folder)
    stores: dict[tuple[Split, int], pathlib.Path] = {
        (split, n): store_folder(folder, split, n) for split in SPLITS for n in report["ingredients"]["lengths"]
    }
    for store in stores.values():
        try:
            Rows.open(store, verify)
        except RowsError as error:
            raise RowsError(f"{error} (delete {folder} first)") from error
    tokenizer = vocabularies.load_tokenizer(str(folder / TOKENIZER))
    if report["tokenizer"] != vocabularies.fingerprint(tokenizer):
        raise RowsError(
            f"{folder / TOKENIZER}: is not the tokenizer that the rows were made with: bring it back, or delete {folder} and prepare "
            "the rows again"
        )
    return Prepared(folder, folder / TOKENIZER, stores, Vocabulary.of(tokenizer), folder / SAMPLES, report)


def _make(config: Config, folder: pathlib.Path, report: dict[str, Any], on_progress: Callable[[str], None]) -> None:
    tokenizer = _tokenizer(config, folder, on_progress)
    settings = UnitSettings(tokenizer.to_str(), Vocabulary.of(tokenizer), config.data, _lengths(config), config.seed)
    units = folder / UNITS
    units.mkdir(exist_ok=True)
    names, counts, rejected = _work(config, folder, settings, on_progress)
    manifests, samples = {}, set()
    for split in SPLITS:
        described = {"fingerprint": report["fingerprint"], "num_documents": counts[split]}
        merged, found = merge([units / name for name in names[split]], folder, split, settings, described)
        manifests |= merged
        samples |= found
    with atomic_file(folder / SAMPLES) as file:
        for sentence in smallest_by_hash(samples, NUM_SAMPLES, config.seed):
            file.write(json.dumps({"text": sentence}, ensure_ascii=False).encode() + b"\n")
    stores = {name: {k: v for k, v in m.items() if k != "shards"} for name, m in manifests.items()}
    made = {"tokenizer": vocabularies.fingerprint(tokenizer), "documents": dict(counts), "rejected": rejected}
    write_json(folder / PREPARED, report | made | {"stores": stores})
    shutil.rmtree(units)
    for name, manifest in manifests.items():
        on_progress(summary(name, manifest, config))


def _tokenizer(config: Config, folder: pathlib.Path, on_progress: Callable[[str], None]) -> tokenizers.Tokenizer:
    """Load the run's tokenizer, or learn it from the training documents; it lies in the folder afterwards."""
    place, vocabulary = folder / TOKENIZER, config.data.vocabulary
    if not place.is_dir():
        if vocabulary.path is None:
            on_progress(f"vocabulary: learning {vocabulary.size} tokens")
            rejects = Rejects()
            with _noted(rejects, folder):
                tokenizer = vocabularies.train_tokenizer(_training_texts(config, rejects), vocabulary)
        else:
            tokenizer = vocabularies.load_tokenizer(vocabulary.path, vocabulary.lowercase)
        temporary = folder / f".{TOKENIZER}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        vocabularies.save_tokenizer(tokenizer, temporary, max(_lengths(config)))
        temporary.rename(place)
    # Always as it was saved: a second call gets the same.
    return vocabularies.load_tokenizer(str(place))


def _training_texts(config: Config, rejects: Rejects) -> Iterator[str]:
    found = False
    for split, document in _split_documents(config, rejects):
        if split == "train":
            found = True
            yield document.text
    if not found:
        raise CorpusError(_NOTHING_TO_TRAIN_ON)


@contextmanager
def _noted(rejects: Rejects, folder: pathlib.Path) -> Iterator[None]:
    """Write the rejected documents down, above all when they are so many that they stop the run."""
    try:
        yield
    finally:
        rejects.write(folder / REJECTED)


def _split_documents(config: Config, rejects: Rejects) -> Iterator[tuple[Split, Document]]:
    """Every document with its side. What heldout_text holds never trains, even where `text` holds it too."""
    data = config.data
    heldout_digests = set()
    for document in documents(data.heldout_text, data, rejects) if data.heldout_text else ():
        heldout_digests.add(document.first_bytes_digest)
        yield "heldout", document
    for document in documents(data.text, data, rejects):
        if data.heldout_text:
            if document.first_bytes_digest not in heldout_digests:
                yield "train", document
        else:
            yield "heldout" if is_heldout(document, data.heldout_share, config.seed) else "train", document


def _work(
    config: Config, folder: pathlib.Path, settings: UnitSettings, on_progress: Callable[[str], None]
) -> tuple[dict[Split, list[str]], Counter[str], int]:
    """Cut the corpus into units and have those made that are missing.

    The names of all, in order; documents on each side; rejected documents.
    """
    rejects = Rejects()
    names: dict[Split, list[str]] = {split: [] for split in SPLITS}
    counts: Counter[str] = Counter()
    found = done = 0
    spoken = time.monotonic()

    def missing_units() -> Iterator[Unit]:
        nonlocal found
        for unit in _units(config, rejects, counts):
            name = unit.file_name(settings)
            names[unit.split].append(name)
            if (folder / UNITS / name).is_file():
                found += 1
            else:
                yield unit

    def on_done(unit: Unit) -> None:
        nonlocal done, spoken
        done += 1
        if time.monotonic() - spoken > _SECONDS_BETWEEN_MESSAGES:
            spoken = time.monotonic()
            on_progress(f"rows: {found + done} units of about {config.data.unit_megabytes:g} MB done")

    # Only Linux tells which cores are ours.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = config.data.workers or cores or 1
    with _noted(rejects, folder):
        run_units(missing_units(), settings, folder / UNITS, workers, on_done)
    if found:
        on_progress(f"rows: {found} units were there from an earlier call")
    if rejects.rejected:
        on_progress(f"rows: {rejects.rejected:,} documents are rejected; samples are in {folder / REJECTED}")
    _check_both_sides(counts)
    return names, counts, rejects.rejected


def _units(config: Config, rejects: Rejects, counts: Counter[str]) -> Iterator[Unit]:
    """The corpus as units; `counts` gets the number of documents on each side, pieces of one document as one."""
    cutters = {split: UnitCutter(split, config.data.unit_megabytes * 1e6) for split in SPLITS}
    last = ""
    for split, document in _split_documents(config, rejects):
        counts[split] += document.identity != last
        last = document.identity
        unit = cutters[split].add(document)
        if unit:
            yield unit
    for cutter in cutters.values():
        unit = cutter.finish()
        if unit:
            yield unit


def _check_both_sides(counts: Counter[str]) -> None:
    if not counts["train"]:
        raise CorpusError(_NOTHING_TO_TRAIN_ON)
    if not counts["heldout"]:
        several = counts["train"] > 1
        number = f"none of the {counts['train']} documents is" if several else "the only document is not"
        more = "raise data.heldout_share, " if several else ""
        raise CorpusError(
            f"{number} held out: {more}name data.heldout_text, or cut the text finer (data.document_split)"
        )
