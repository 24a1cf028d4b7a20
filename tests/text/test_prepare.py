"""Preparation: the same bytes for any number of workers, interruptions, what is found again, two sides that never mix."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import numpy as np
import pytest

from jaxbert.config import Config, DataConfig, LongPhase, TrainConfig, UserError, VocabularyConfig
from jaxbert.text import units, workers
from jaxbert.text.corpus import CorpusError
from jaxbert.text.instances import IS_NEXT, IS_RANDOM
from jaxbert.text.prepare import Prepared, prepare
from jaxbert.text.rows import Rows, RowsError
from jaxbert.text.vocabulary import load_tokenizer, save_tokenizer, train_tokenizer

WORDS = "old rain town cat mat house people walk home slow day king river snow long road".split()
NUM_DOCUMENTS, NUM_SENTENCES = 120, 8


def make_corpus() -> list[str]:
    """Documents whose every sentence holds a word, d0 to d119, that says which document it is from."""
    draw = random.Random(0)
    return [
        " ".join(f"D{n} {' '.join(draw.choices(WORDS, k=draw.randint(3, 12)))} d{n}." for _ in range(NUM_SENTENCES))
        for n in range(NUM_DOCUMENTS)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The corpus in a file, and beside it a vocabulary in which each d0 to d119 is one token."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = make_corpus()
    (folder / "text.txt").write_text("\n\n".join(documents))
    names = [f"d{n}" for n in range(NUM_DOCUMENTS)]
    tokenizer = train_tokenizer(documents, VocabularyConfig(size=900))
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    assert set(names + WORDS) <= pieces.keys()
    save_tokenizer(tokenizer, folder / "vocabulary", 32)
    return folder


@pytest.fixture
def config(corpus: pathlib.Path, tmp_path: pathlib.Path) -> Config:
    """About ten units, rows of 32, in this process."""
    data = DataConfig(
        text=(str(corpus / "text.txt"),),
        vocabulary=VocabularyConfig(path=str(corpus / "vocabulary")),
        heldout_share=0.2,
        max_length=32,
        unit_megabytes=0.005,
        workers=1,
    )
    return Config(workdir=str(tmp_path / "run"), data=data, train=TrainConfig(num_steps=10))


def changed(config: Config, **data) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def elsewhere(config: Config, folder: str) -> Config:
    return dataclasses.replace(config, workdir=str(pathlib.Path(config.workdir).with_name(folder)))


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def messages_of(config: Config) -> tuple[Prepared, list[str]]:
    messages: list[str] = []
    return prepare(config, messages.append), messages


def all_rows(prepared: Prepared, split, length: int = 32) -> dict[str, np.ndarray]:
    rows = Rows.open(prepared.stores[split, length], verify="hash")
    return rows.read(np.arange(len(rows)))


def error_of(config: Config, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        prepare(config)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_there_afterwards(config: Config):
    prepared, messages = messages_of(config)
    assert set(files_of(prepared.directory)) == {
        *(
            f"{split}-32/{name}"
            for split in ("train", "heldout")
            for name in ("manifest.json", "rows-00000.bin", "token_counts.npy")
        ),
        *(
            f"tokenizer/{name}"
            for name in ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
        ),
        "prepared.json",
        "heldout_samples.jsonl",
        "rejected.jsonl",
    }
    assert prepared.stores.keys() == {("train", 32), ("heldout", 32)}
    documents = prepared.report["documents"]
    assert documents["train"] + documents["heldout"] == NUM_DOCUMENTS
    for (split, _), store in prepared.stores.items():
        manifest = Rows.open(store, verify="hash").manifest
        assert manifest["fingerprint"] == prepared.report["fingerprint"]
        assert manifest["num_documents"] == documents[split]
        assert manifest["vocabulary"]["size"] == prepared.vocabulary.size
        assert manifest["settings"]["seed"] == 0
        assert sum(manifest["pairs"][kind] for kind in ("next", "random", "none")) == manifest["num_sequences"]
    assert sum(message.startswith("rows: ") for message in messages) >= 2
    samples = [json.loads(line)["text"] for line in prepared.samples.read_text().splitlines()]
    assert samples
    assert len(set(samples)) == len(samples)


def names_in(prepared: Prepared) -> dict[int, int]:
    """The token that names a document -> the document's number."""
    pieces = load_tokenizer(prepared.tokenizer_directory).get_vocab()
    return {pieces[f"d{n}"]: n for n in range(NUM_DOCUMENTS)}


def document_of(row: np.ndarray, names: dict[int, int]) -> set[int]:
    return {names[token] for token in row.tolist() if token in names}


@pytest.mark.parametrize("pairs", ["nsp", "sop", "none"])
@pytest.mark.parametrize("packing", [False, True])
def test_sides_never_mix(config: Config, pairs: str, packing: bool):
    prepared = prepare(changed(config, pairs=pairs, packing=packing, passes=2))
    names = names_in(prepared)
    seen = {split: document_of(all_rows(prepared, split)["input_ids"].ravel(), names) for split in ("train", "heldout")}
    assert not seen["train"] & seen["heldout"]
    assert seen["train"] | seen["heldout"] == set(range(NUM_DOCUMENTS))
    assert {split: len(found) for split, found in seen.items()} == prepared.report["documents"]
    samples = [json.loads(line)["text"] for line in prepared.samples.read_text().splitlines()]
    assert {int(text.split()[0][1:]) for text in samples} <= seen["heldout"]


def test_pairs_of_rows(config: Config):
    # A next segment is of the same document, a random one never.
    prepared = prepare(changed(config, passes=3))
    names = names_in(prepared)
    rows = all_rows(prepared, "train")
    counts = {IS_NEXT: 0, IS_RANDOM: 0}
    for ids, ((length_a, length_b),), (label,) in zip(
        rows["input_ids"], rows["lengths"], rows["nsp_labels"], strict=True
    ):
        a, b = document_of(ids[:length_a], names), document_of(ids[length_a : length_a + length_b], names)
        assert max(len(a), len(b)) <= 1
        if label in counts and a and b:
            counts[int(label)] += 1
            assert (a == b) == (label == IS_NEXT)
    total = sum(counts.values())
    assert total > 300
    assert abs(counts[IS_RANDOM] - total / 2) < 5 * (total / 4) ** 0.5


def test_text_to_evaluate_on_never_trains(config: Config, tmp_path: pathlib.Path):
    documents = make_corpus()
    # Some of it stands in the training text too, with other line ends.
    (tmp_path / "heldout.txt").write_text("\r\n\r\n".join(documents[:30]) + "\r\n")
    prepared = prepare(changed(config, heldout_text=(str(tmp_path / "heldout.txt"),)))
    assert prepared.report["documents"] == {"train": NUM_DOCUMENTS - 30, "heldout": 30}
    names = names_in(prepared)
    assert document_of(all_rows(prepared, "train")["input_ids"].ravel(), names) == set(range(30, NUM_DOCUMENTS))
    assert document_of(all_rows(prepared, "heldout")["input_ids"].ravel(), names) == set(range(30))


@pytest.fixture(scope="module")
def with_vocabulary_learnt(corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Prepared]:
    """Two lengths, packed, with a vocabulary of its own; made by one worker."""
    data = DataConfig(
        text=(str(corpus / "text.txt"),),
        vocabulary=VocabularyConfig(size=400),
        heldout_share=0.2,
        max_length=32,
        packing=True,
        unit_megabytes=0.004,
        workers=1,
    )
    train = TrainConfig(num_steps=10, long_phase=LongPhase(num_steps=2, max_length=64))
    config = Config(workdir=str(tmp_path_factory.mktemp("one") / "run"), data=data, train=train)
    return config, prepare(config)


@pytest.mark.parametrize("count", [2, 8])
def test_any_number_of_workers_writes_the_same_bytes(with_vocabulary_learnt, tmp_path: pathlib.Path, count: int):
    config, one = with_vocabulary_learnt
    many = prepare(dataclasses.replace(changed(config, workers=count), workdir=str(tmp_path)))
    assert many.directory.name == one.directory.name
    assert files_of(many.directory) == files_of(one.directory)
    assert len(one.stores) == 4


def test_other_seeds_and_settings_have_other_rows(config: Config):
    first = prepare(config)
    others = {
        "seed": dataclasses.replace(config, seed=1),
        "pairs": changed(config, pairs="sop"),
        "max_length": changed(config, max_length=16),
        "unit": changed(config, unit_megabytes=0.006),
        "split": changed(config, document_split="line"),
        "share": changed(config, heldout_share=0.3),
    }
    for name, other in others.items():
        prepared, messages = messages_of(other)
        assert prepared.directory != first.directory, name
        assert not any("found" in message for message in messages), name
    assert prepare(config).directory == first.directory


def times_of(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_finished_rows_are_found_and_not_redone(config: Config, monkeypatch: pytest.MonkeyPatch):
    first = prepare(config)
    before = times_of(first.directory)
    monkeypatch.setattr(workers, "run_unit", lambda *_: pytest.fail("a unit was worked on again"))
    # Neither the number of workers nor the folder's way of being named is part of the rows.
    again, messages = messages_of(changed(config, workers=8, rows=str(first.directory.parent)))
    assert again.directory == first.directory
    assert times_of(first.directory) == before
    assert messages == [f"rows: found in {first.directory}"]
    assert again.report == first.report


def test_changed_text_is_prepared_anew(config: Config, tmp_path: pathlib.Path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(make_corpus()))
    config = changed(config, text=(str(text),))
    first = prepare(config)
    text.write_text("\n\n".join(make_corpus()[:100]))
    second = prepare(config)
    assert second.directory != first.directory
    assert sum(second.report["documents"].values()) == 100


def test_a_vocabulary_with_capitals_keeps_them(config: Config, corpus: pathlib.Path, tmp_path: pathlib.Path):
    pieces = (corpus / "vocabulary" / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, *(f"D{n}" for n in range(NUM_DOCUMENTS))]) + "\n")
    for lowercase, kept in ((None, False), (True, True)):
        vocabulary = VocabularyConfig(path=str(tmp_path / "vocab.txt"), lowercase=lowercase)
        prepared = prepare(changed(config, vocabulary=vocabulary))
        assert prepared.vocabulary.lowercase == kept
        assert (all_rows(prepared, "train")["input_ids"] >= len(pieces)).any() != kept


def test_another_tokenizer_beside_the_rows_is_found(config: Config):
    prepared = prepare(config)
    path = prepared.tokenizer_directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"d0"', '"e0"'))
    assert "is not the tokenizer that the rows were made with" in error_of(config)


def test_rows_serve_where_the_vocabulary_is_not(config: Config, corpus: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(corpus / "vocabulary", tmp_path / "vocabulary")
    config = changed(config, vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")))
    first = prepare(config)
    for path in (tmp_path / "vocabulary").iterdir():
        path.write_text("no tokenizer")
    assert str(tmp_path / "vocabulary") in error_of(config)
    shutil.rmtree(tmp_path / "vocabulary")
    again, messages = messages_of(config)
    assert again.directory == first.directory
    assert "data.vocabulary.path is not on this machine" in messages[0]
    assert "vocabulari" in error_of(changed(config, vocabulary=VocabularyConfig(path=str(tmp_path / "vocabularies"))))


def test_rows_serve_where_the_text_is_not(config: Config, tmp_path: pathlib.Path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(make_corpus()))
    config = changed(config, text=(str(text),))
    first = prepare(config)
    text.unlink()
    with pytest.raises(CorpusError, match=r"tex\.txt"):
        prepare(changed(config, text=(str(tmp_path / "tex.txt"),)))
    again, messages = messages_of(config)
    assert again.directory == first.directory
    assert "not on this machine" in messages[0]
    assert error_of(changed(config, pairs="sop")).startswith(f"{text}: no such file or directory")


RUN = """
import json, os, signal, sys
from jaxbert.config import *
from jaxbert.text import prepare, workers
config = Config(**{{**json.loads(sys.argv[1]), "train": TrainConfig(num_steps=10)}})
data = {{**config.data, "vocabulary": VocabularyConfig(**config.data["vocabulary"])}}
config = dataclasses.replace(config, data=DataConfig(**data))
{patch}
prepare.prepare(config)
"""


def start(config: Config, patch: str) -> subprocess.Popen[bytes]:
    """Prepare in a process of its own."""
    said = json.dumps({"workdir": config.workdir, "data": dataclasses.asdict(config.data)})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RUN.format(patch=textwrap.dedent(patch)), said]
    return subprocess.Popen(command, env=environment)


KILLED_AFTER_UNITS = """
done = workers.run_unit
def run_unit(*arguments):
    done(*arguments)
    run_unit.count += 1
    if run_unit.count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
run_unit.count = 0
workers.run_unit = run_unit
"""
KILLED_WHILE_WRITING_A_UNIT = """
import numpy
def savez(file, **arrays):
    savez.count += 1
    if savez.count == 3:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)
save, savez.count = numpy.savez, 0
numpy.savez = savez
"""
KILLED_WHILE_MERGING = """
from jaxbert.text.rows import RowWriter
RowWriter.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("patch", "units_kept"),
    [(KILLED_AFTER_UNITS, 2), (KILLED_WHILE_WRITING_A_UNIT, 2), (KILLED_WHILE_MERGING, None)],
    ids=["between units", "in a unit", "while merging"],
)
def test_a_killed_run_goes_on_where_it_was(
    config: Config, monkeypatch: pytest.MonkeyPatch, patch: str, units_kept: int | None
):
    whole = prepare(elsewhere(config, "whole"))
    assert start(config, patch).wait(60) == -signal.SIGKILL
    (folder,) = (pathlib.Path(config.workdir) / "rows").iterdir()
    assert not (folder / "prepared.json").exists()
    kept = sorted((folder / "units").glob("*.npz"))
    worked: list[str] = []

    def run_unit(unit, settings, directory):
        worked.append(unit.file_name(settings))
        done(unit, settings, directory)

    done = workers.run_unit
    monkeypatch.setattr(workers, "run_unit", run_unit)
    prepared, messages = messages_of(config)
    assert f"rows: {len(kept)} units were there from an earlier call" in messages
    assert not {path.name for path in kept} & set(worked)
    assert len(kept) == units_kept if units_kept else not worked
    assert files_of(prepared.directory) == files_of(whole.directory)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_workers_end_with_a_killed_coordinator(config: Config, tmp_path: pathlib.Path):
    whole = prepare(elsewhere(config, "whole"))
    # Each worker says who it is; from the third unit on they take their time, so that they are killed at work.
    (tmp_path / "jaxbert_slow.py").write_text(
        "import os, pathlib, time\n"
        "from jaxbert.text import units, workers\n"
        "done = workers.run_unit\n"
        "def run_unit(unit, settings, folder):\n"
        "    pathlib.Path(os.environ['SEEN'], str(os.getpid())).touch()\n"
        "    if len(list(folder.glob('*.npz'))) >= 2: time.sleep(0.5)\n"
        "    done(unit, settings, folder)\n"
        "workers.run_unit = run_unit\n"
    )
    seen = tmp_path / "seen"
    seen.mkdir()
    patch = f"""
    sys.path.insert(0, {str(tmp_path)!r})
    os.environ["SEEN"] = {str(seen)!r}
    workers._SERVE = "import jaxbert_slow; " + workers._SERVE
    """
    coordinator = start(changed(config, workers=2), patch)
    rows = pathlib.Path(config.workdir) / "rows"
    wait_for(lambda: len(list(rows.glob("*/units/*.npz"))) >= 2 and len(list(seen.iterdir())) == 2)
    coordinator.kill()
    assert coordinator.wait(60) == -signal.SIGKILL
    pids = [int(path.name) for path in seen.iterdir()]
    wait_for(lambda: not any(is_running(pid) for pid in pids))
    prepared, messages = messages_of(changed(config, workers=2))
    assert any("units were there from an earlier call" in message for message in messages)
    assert files_of(prepared.directory) == files_of(whole.directory)


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


FAILING_JIEBA = """
def setLogLevel(level): pass
def lcut(text):
    {body}
"""


@pytest.fixture
def failing(config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A configuration whose word segmenter, in whatever process it runs, does this."""

    def failing(body: str, count: int) -> Config:
        (tmp_path / "jieba.py").write_text(FAILING_JIEBA.format(body=body))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "jieba", raising=False)
        units._sentence_tokenizer.cache_clear()
        return changed(config, segmenter="jieba", workers=count)

    yield failing
    sys.modules.pop("jieba", None)
    units._sentence_tokenizer.cache_clear()


@pytest.mark.parametrize("count", [1, 3])
def test_a_unit_that_fails_is_named_in_one_line(failing, count: int):
    message = error_of(failing("raise RuntimeError('it broke\\nin two lines')", count))
    assert "failed: RuntimeError: it broke in two lines; run again to go on from there" in message
    assert message.startswith("unit ")
    assert " of the " in message


@pytest.mark.parametrize("count", [1, 3])
def test_a_users_error_in_a_worker_keeps_its_text(failing, count: int):
    assert error_of(failing("return ['x']", count)).startswith("the segmenter's words do not add up to the text: ")


def test_a_worker_that_dies_is_named(failing):
    message = error_of(failing("import os; os._exit(7)", 2))
    assert message.startswith("unit ")
    assert "failed: its process ended with code 7" in message


def test_a_worker_that_can_not_start_is_named(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_SERVE", "raise SystemExit(9)")
    assert "failed: its process ended with code 9" in error_of(changed(config, workers=2))


def test_after_a_failure_the_other_units_are_kept(failing, config: Config):
    # Fails at a document that is in one of the later units.
    body = "assert ' d100' not in text\n    return [text]"
    error_of(failing(body, 1))
    (folder,) = (pathlib.Path(config.workdir) / "rows").iterdir()
    assert list((folder / "units").glob("*.npz"))
    _, messages = messages_of(failing("return [text]", 1))
    assert any("units were there" in message for message in messages)


def test_a_damaged_unit_and_damaged_rows(config: Config):
    assert start(config, KILLED_WHILE_MERGING).wait(60) == -signal.SIGKILL
    (folder,) = (pathlib.Path(config.workdir) / "rows").iterdir()
    unit = min((folder / "units").glob("*.npz"))
    content = bytearray(unit.read_bytes())
    content[len(content) // 2] ^= 0xFF
    unit.write_bytes(content)
    assert error_of(config).startswith(f"{unit}: damaged (")
    unit.unlink()
    prepared = prepare(config)
    shard = prepared.stores["train", 32] / "rows-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    prepare(config)
    with pytest.raises(RowsError, match=f"sha256.*delete {folder} first"):
        prepare(config, verify="hash")
    shard.write_bytes(whole[:-10])
    assert error_of(config).endswith(f"prepare the rows again (delete {folder} first)")
    (folder / "prepared.json").write_text("{")
    assert error_of(config) == f"{folder}/prepared.json: damaged: delete {folder} and prepare the rows again"


def test_rejected_documents_are_sampled_also_when_they_stop_the_run(config: Config, tmp_path: pathlib.Path):
    text = tmp_path / "bad.txt"
    text.write_bytes("\n\n".join(make_corpus()).encode() + b"\n\nbad \xff one\n\nzero \0 byte")
    bad = changed(config, text=(str(text),), max_rejected_share=0.05)
    prepared = prepare(bad)
    samples = [json.loads(line) for line in (prepared.directory / "rejected.jsonl").read_text().splitlines()]
    assert [(s["source"], s["reason"]) for s in samples] == [(f"{text}#120", "not UTF-8"), (f"{text}#121", "NUL")]
    stopped = elsewhere(changed(bad, max_rejected_share=0.01), "stopped")
    assert error_of(stopped).startswith("2 of 122 documents are rejected, above data.max_rejected_share 0.01")
    (folder,) = (pathlib.Path(stopped.workdir) / "rows").iterdir()
    assert len((folder / "rejected.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("One sentence. And one more.", {}, "the only document is not held out: name data.heldout_text"),
        ("Same text.\n\n" * 50, {}, "none of the 50 documents is held out: raise data.heldout_share"),
        ("One sentence. And one more.", {"heldout_share": 1.0}, "no document is left to train on, all are held out: "),
        ("\x07\x01\n\n\u200b\n\n\x02\n\n\u200d", {"heldout_share": 0.5}, "documents give no sequence of 32 tokens"),
        (" \n\n\t", {}, "the corpus is empty: no document in it has any text"),
    ],
)
def test_too_little_text(config: Config, tmp_path: pathlib.Path, text: str, settings: dict, message: str):
    (tmp_path / "text.txt").write_text(text)
    small = changed(config, text=(str(tmp_path / "text.txt"),), **settings)
    assert message in error_of(small)


def test_no_document_to_learn_a_vocabulary_from(config: Config):
    learning = changed(config, heldout_share=1.0, vocabulary=VocabularyConfig(size=300))
    assert error_of(learning).startswith("no document is left to train on")


def test_a_folder_that_can_not_be_written(config: Config, tmp_path: pathlib.Path):
    (tmp_path / "rows").write_text("a file")
    message = error_of(changed(config, rows=str(tmp_path / "rows")))
    assert "set data.rows to a folder that can be written" in message


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(f"Only sentence {n} here." for n in range(100)),
        "\n\n".join(WORDS * 10 + [f"w{n}" for n in range(100)]),
        "\n\n".join(f"今天天气很好{n}。我们去公园！" for n in range(100)),
        "\n\n".join(f"😀😃 hey 👍🏽. ok 🇨🇳! {n}" for n in range(100)),
        "\n\n".join([f"{n} long one: " + "x" * 5000 for n in range(40)]),
        "\n".join(f"Title {n}\n\n\n\t indented text.\r\n" for n in range(100)),
    ],
    ids=["one sentence", "one word", "chinese", "emoji", "no space", "odd space"],
)
def test_odd_texts_become_rows(config: Config, tmp_path: pathlib.Path, text: str):
    (tmp_path / "text.txt").write_text(text, newline="")
    odd = changed(config, text=(str(tmp_path / "text.txt"),), vocabulary=VocabularyConfig(size=300))
    prepared = prepare(odd)
    for split in ("train", "heldout"):
        rows = all_rows(prepared, split)
        tokens = rows["lengths"].sum(axis=(1, 2))
        assert (rows["input_ids"][:, 0] == prepared.vocabulary.cls_id).all()
        assert tokens.min() >= 4
        assert tokens.max() <= 32


def test_a_unit_without_other_documents_says_so(config: Config):
    _, messages = messages_of(changed(config, unit_megabytes=1e-5))
    assert any("their unit has no other document to take from: raise data.unit_megabytes" in m for m in messages)


@pytest.mark.parametrize(("pairs", "length"), [("nsp", 128), ("nsp", 512), ("none", 512)])
def test_packed_rows_of_real_text_are_98_percent_full(
    shared_data: pathlib.Path, tmp_path: pathlib.Path, pairs, length: int
):
    novels = sorted((shared_data / "text" / "novels").glob("*.txt.gz"), key=lambda path: path.stat().st_size)
    assert len(novels) > 50
    vocabulary = VocabularyConfig(path=str(shared_data / "vocab" / "bert-base-uncased-vocab.txt"))
    data = DataConfig(
        text=tuple(map(str, novels[8:11])),
        heldout_text=tuple(map(str, novels[11:13])),
        vocabulary=vocabulary,
        document_split="file",
        max_length=length,
        pairs=pairs,
        packing=True,
        workers=1,
    )
    prepared = prepare(Config(workdir=str(tmp_path), data=data, train=TrainConfig(num_steps=1)))
    for split in ("train", "heldout"):
        rows = all_rows(prepared, split, length)
        tokens = rows["lengths"].sum(dtype=np.int64)
        assert tokens / rows["input_ids"].size >= 0.98
        assert tokens > 50_000
