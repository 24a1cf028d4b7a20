"""Labelled files: every form from small hand-written files, and what is said of those that are wrong."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest

from jaxbert.data.labelled import read_records
from jaxbert.data.records import Counting, ExamplesError, Record
from jaxbert.finetune.config import ExamplesConfig

CONFIG = ExamplesConfig()
SKIP = ExamplesConfig(bad_rows="skip")
TABLE = b"text\tlabel\nA film.\tgood\nNo film.\tbad\n"
ROWS = [{"text": "A film.", "label": "good"}, {"text": "No film.", "label": "bad"}]


def write(folder: pathlib.Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf8"))
    return str(path)


def read(source: str, config: ExamplesConfig = CONFIG) -> list[Record]:
    return list(read_records(source, config, Counting(config)))


def values(source: str, config: ExamplesConfig = CONFIG) -> list[dict[str, Any]]:
    return [dict(record.values) for record in read(source, config)]


def places(source: str, config: ExamplesConfig = CONFIG) -> list[str]:
    """The parts of the places after the file's name."""
    return [record.place.removeprefix(source) for record in read(source, config)]


def error_of(source: str, config: ExamplesConfig = CONFIG) -> str:
    with pytest.raises(ExamplesError) as caught:
        read(source, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def skipped(source: str, config: ExamplesConfig = SKIP) -> tuple[list[Record], Counting]:
    """The records that are left, and what was counted."""
    counting = Counting(config)
    return list(read_records(source, config, counting)), counting


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tsv", content)
    return file.getvalue()


# Name of the file, its content, the same table each time.
TABLES = [
    ("a.tsv", TABLE),
    ("a.TSV", TABLE),
    ("bom.tsv", b"\xef\xbb\xbf" + TABLE),
    ("crlf.tsv", TABLE.replace(b"\n", b"\r\n")),
    ("no_line_end.tsv", TABLE.rstrip()),
    ("returns.tsv", TABLE.replace(b"\n", b"\r")),
    ("blank_lines.tsv", TABLE.replace(b"\n", b"\n\n")),
    ("blank_first.tsv", b"\n\n" + TABLE),
    ("spaces.tsv", TABLE.replace(b"text\tlabel", b" text \tlabel ")),
    ("a.tsv.gz", gzip.compress(TABLE)),
    ("a.tsv.bz2", bz2.compress(TABLE)),
    ("a.csv", b'"text",label\nA film.,good\n"No film.",bad\n'),
    ("returns.csv", b'"text",label\rA film.,good\r\r"No film.",bad\r'),
    ("mixed.csv", b'"text",label\r\nA film.,good\r"No film.",bad\n'),
    ("bom.csv", b'\xef\xbb\xbf"text",label\r\nA film.,good\r\n\r\n"No film.",bad\r\n'),
    ("a.jsonl", b'{"text": "A film.", "label": "good"}\n\n{"label": "bad", "text": "No film."}'),
    ("a.ndjson", b'\xef\xbb\xbf{"text": "A film.", "label": "good"}\r\n{"label": "bad", "text": "No film."}\r\n'),
]


@pytest.mark.parametrize(("name", "content"), TABLES, ids=[name for name, _ in TABLES])
def test_the_same_table_in_every_form(tmp_path: pathlib.Path, name: str, content: bytes):
    assert values(write(tmp_path, name, content)) == ROWS


def test_a_quotation_mark_in_tsv_is_one(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"Open, never shut\tx\nHe said ""no""\ty\n')
    assert [row["text"] for row in values(path)] == ['"Open, never shut', 'He said ""no""']


def test_what_unicode_calls_a_line_end_is_text(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.tsv", "text\tlabel\none\u2028two\x0bthree\x85four\t1\nfive\t2\n")
    assert places(path) == [":2", ":3"]
    assert values(path)[0] == {"text": "one\u2028two\x0bthree\x85four", "label": "1"}


def test_empty_cells_stay(tmp_path: pathlib.Path):
    assert values(write(tmp_path, "a.tsv", "text\tlabel\n\tx\ny\t\n")) == [
        {"text": "", "label": "x"},
        {"text": "y", "label": ""},
    ]


def test_csv_fields_of_several_lines(tmp_path: pathlib.Path):
    content = 'text,label\n"first\nsecond, with ""quotes""\n",a\nlast,b\n'
    path = write(tmp_path, "a.csv", content)
    assert values(path) == [
        {"text": 'first\nsecond, with "quotes"\n', "label": "a"},
        {"text": "last", "label": "b"},
    ]
    # A record stands where it begins.
    assert places(path) == [":2", ":5"]
    returns = write(tmp_path, "returns.csv", content.replace("\n", "\r"))
    assert values(returns)[0]["text"] == 'first\rsecond, with "quotes"\r'
    assert places(returns) == [":2", ":5"]
    assert error_of(write(tmp_path, "b.csv", content + "x,y,z\n")).startswith(
        f"{tmp_path / 'b.csv'}:6: has 3 columns where there should be 2 (text, label)"
    )


@pytest.mark.parametrize(("rest", "line"), [('"open,a\nb,c\n', 4), ('ok,a\n"shut"again,a\n', 5)])
def test_wrong_quotes_of_csv_stop_even_where_rows_may_be_skipped(tmp_path: pathlib.Path, rest: str, line: int):
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines",x\n' + rest)
    assert error_of(path, SKIP).startswith(f"{path}:{line}: ")
    assert "mend the quotes" in error_of(path, SKIP)


def test_csv_fields_may_be_long(tmp_path: pathlib.Path):
    long = "word " * 100_000
    assert values(write(tmp_path, "a.csv", f"text,label\n{long},a\n"))[0]["text"] == long


@pytest.mark.parametrize(("name", "content"), [("a.tsv", " Label\ttext \n1\tone\n"), ("a.csv", "label,text\n1,one\n")])
def test_a_header_that_was_said_not_to_be_there(tmp_path: pathlib.Path, name: str, content: str):
    path = write(tmp_path, name, content)
    named = {"columns": ("label", "text")}
    assert error_of(path, dataclasses.replace(CONFIG, **named)).startswith(
        f"{path}:1: has the names of data.columns: leave that out, which is for files without such a line"
    )
    left, counting = skipped(path, dataclasses.replace(SKIP, **named))
    assert ([record.values for record in left], counting.count) == ([{"label": "1", "text": "one"}], 1)
    # Further down it is a row like any other.
    assert len(values(write(tmp_path, "b.tsv", "1\tone\nlabel\ttext\n"), dataclasses.replace(CONFIG, **named))) == 2


def test_columns_of_a_file_without_a_header(tmp_path: pathlib.Path):
    config = dataclasses.replace(CONFIG, columns=("label", "text"))
    for name, content in {"a.tsv": "1\tone\n2\ttwo\n", "a.csv": "1,one\n2,two\n"}.items():
        path = write(tmp_path, name, content)
        assert values(path, config) == [{"label": "1", "text": "one"}, {"label": "2", "text": "two"}]
        assert places(path, config) == [":1", ":2"]
    path = write(tmp_path, "b.tsv", "1\tone\tmore\n")
    assert ":1: has 3 columns where there should be 2 (label, text)" in error_of(path, config)


def test_a_header_that_names_a_column_twice(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.tsv", "text\ttext \na\tb\n")
    assert error_of(path) == f"{path}: its first line names a column twice: name them with data.columns"
    assert len(values(path, dataclasses.replace(CONFIG, columns=("a", "b")))) == 2


# A name, a table whose third line is wrong beside two that are right, and what is said of it.
BAD_ROWS = [
    ("few.tsv", b"text\tlabel\na\tx\nb\nc\ty\n", "has 1 columns where there should be 2 (text, label)"),
    ("many.tsv", b"text\tlabel\na\tx\nb\tx\tx\nc\ty\n", "has 3 columns where there should be 2 (text, label)"),
    ("many.csv", b"text,label\na,x\nb,x,x\nc,y\n", "has 3 columns where there should be 2 (text, label)"),
    ("latin1.tsv", "text\tlabel\na\tx\nné\tx\nc\ty\n".encode("latin1"), "is not UTF-8"),
    ("latin1.csv", "text,label\na,x\nné,x\nc,y\n".encode("latin1"), "is not UTF-8"),
    ("nul.tsv", b"text\tlabel\na\tx\nb\0\tx\nc\ty\n", "holds a NUL character"),
    ("nul.csv", b"text,label\na,x\nb\0,x\nc,y\n", "holds a NUL character"),
    ("cut.jsonl", b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n', "is not JSON ("),
    ("list.jsonl", b'{"text": "a"}\n\n["b"]\n{"text": "c"}\n', "is no JSON object"),
    ("deep.jsonl", b'{"text": "a"}\n\n' + b"[" * 100_000 + b'\n{"text": "c"}\n', "is not JSON ("),
    ("latin1.jsonl", '{"text": "a"}\n\n{"text": "é"}\n{}\n'.encode("latin1"), "is not UTF-8"),
    ("nul.jsonl", b'{"text": "a"}\n\n{"text": "\0"}\n{}\n', "holds a NUL character"),
    ("columns.conll", b"\nb\tO\nc\tO\tO\n\na O\n\nd O\n", "has 3 columns and the line before 2"),
    ("latin1.conll", "a O\n\né O\nc O\n\nd O\n".encode("latin1"), "is not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD_ROWS, ids=[name for name, _, _ in BAD_ROWS])
def test_a_bad_row_stops_with_file_line_and_reason_or_is_counted(
    tmp_path: pathlib.Path, name: str, content: bytes, reason: str
):
    path = write(tmp_path, name, content)
    error = error_of(path)
    assert error.startswith(f"{path}:3: {reason}")
    assert error.endswith("(--data.bad-rows skip leaves such rows out and counts them)")
    left, counting = skipped(path)
    assert counting.count == 1
    assert counting.first[0].startswith(f"{path}:3: {reason}")
    assert len(left) == 2


def test_only_the_first_reasons_are_kept_and_all_are_counted(tmp_path: pathlib.Path):
    left, counting = skipped(write(tmp_path, "a.tsv", "text\tlabel\n" + "bad\n" * 10 + "a\tb\n"))
    assert len(left) == 1
    assert counting.count == 10
    assert [reason.split(":")[1] for reason in counting.first] == ["2", "3", "4"]


@pytest.mark.parametrize("escaped", ["\\u0000", "\\ud800"])
def test_what_json_escapes_is_text_too(tmp_path: pathlib.Path, escaped: str):
    """A NUL or half a surrogate pair that the file spells with a backslash: a tokenizer takes neither."""
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b' + escaped + '"}\n')
    assert error_of(path).startswith(f"{path}:2: ")


def test_jsonl_values_stay_what_they_are(tmp_path: pathlib.Path):
    content = {"text": "机器", "label": ["a", "b"], "score": 1.5, "none": None, "flag": True}
    assert values(write(tmp_path, "a.jsonl", json.dumps(content))) == [content]


def test_a_line_of_jsonl_has_its_own_columns(tmp_path: pathlib.Path):
    """But for the first, which stands for the file; a row of a table has those of its header."""
    path = write(tmp_path, "a.jsonl", '[]\n{"a": 1}\n{"b": 2}\n{"a": 3}\n')
    found = skipped(path)[0]
    assert [record.own_columns for record in found] == [True] * 3
    assert [record.first for record in found] == [True, False, False]
    assert not any(record.own_columns or record.first for record in read(write(tmp_path, "a.tsv", "a\n1\n2\n")))


def test_parquet(tmp_path: pathlib.Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": f"text {n}", "label": n % 2, "many": ["a", "b"][: n % 3], "none": None} for n in range(5)]
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    assert values(path) == rows
    assert places(path) == [f":{n}" for n in range(1, 6)]
    content = pathlib.Path(path).read_bytes()
    assert "a.parquet: cannot be read (" in error_of(write(tmp_path, "a.parquet", content[:-9]))
    parquet.write_table(pyarrow.Table.from_pylist(rows).slice(0, 0), path)
    assert error_of(path) == f"{path}: has no examples: name another file"


CONLL = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

Peter NNP I-NP B-PER


"""


@pytest.mark.parametrize("form", ["spaces", "tabs", "crlf", "bom", "no end"])
def test_conll_sentences(tmp_path: pathlib.Path, form: str):
    content = {
        "spaces": CONLL,
        "tabs": CONLL.replace(" ", "\t"),
        "crlf": CONLL.replace("\n", "\r\n"),
        "bom": "\ufeff" + CONLL.partition("\n\n")[2],
        "no end": CONLL.rstrip(),
    }[form]
    path = write(tmp_path, "a.conll", content)
    first, second = ([list(columns) for columns in row["columns"]] for row in values(path))
    assert first == [["EU", "NNP", "I-NP", "B-ORG"], ["rejects", "VBZ", "I-VP", "O"]]
    assert second == [["Peter", "NNP", "I-NP", "B-PER"]]
    assert places(path) == ([":1", ":4"] if form == "bom" else [":3", ":6"])


@pytest.mark.parametrize("suffix", ["txt", "iob", "iob2", "bio", "bioes", "annotated", "conll.gz"])
def test_conll_is_known_by_its_suffixes(tmp_path: pathlib.Path, suffix: str):
    content = CONLL.encode()
    assert len(read(write(tmp_path, f"a.{suffix}", gzip.compress(content) if "gz" in suffix else content))) == 2


def test_a_word_of_conll_with_a_space_in_a_file_of_tabs(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.conll", "New York\tB-LOC\n\u3000\tO\n\t\n. \tO\n")
    assert [[*map(list, row["columns"])] for row in values(path)] == [
        [["New York", "B-LOC"], ["\u3000", "O"]],
        [[". ", "O"]],
    ]


@pytest.mark.parametrize("word", ["\u3000", "\u2009", "New\u00a0York"])
def test_only_the_space_itself_separates_columns_of_conll(tmp_path: pathlib.Path, word: str):
    """Chinese sets have such characters as tokens of their own."""
    path = write(tmp_path, "a.conll", f"上 O\n{word} B-LOC\n海 O\n")
    assert [list(columns) for columns in values(path)[0]["columns"]] == [["上", "O"], [word, "B-LOC"], ["海", "O"]]


def test_a_document_of_conll_ends_a_sentence(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.conll", "a O\n-DOCSTART- O\nb O\n")
    assert [len(row["columns"]) for row in values(path)] == [1, 1]


def squad(**changes) -> dict[str, Any]:
    """SQuAD 2.0 with a question that has an answer and one that has none."""
    answered = {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], "is_impossible": False}
    unanswered = {"id": 2, "question": "Why?", "answers": [], "plausible_answers": [], "is_impossible": True}
    paragraph = {"context": "Ann ran.", "qas": [answered | changes, unanswered]}
    return {"version": "v2.0", "data": [{"title": "Runs", "paragraphs": [paragraph]}]}


def test_squad_2(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.json", json.dumps(squad(), indent=1))
    assert values(path) == [
        {
            "id": "q1",
            "question": "Who?",
            "context": "Ann ran.",
            "answers": [("Ann", 0)],
            "impossible": False,
            "title": "Runs",
        },
        {"id": "2", "question": "Why?", "context": "Ann ran.", "answers": [], "impossible": True, "title": "Runs"},
    ]
    assert places(path) == [":q1", ":2"]


def test_squad_1(tmp_path: pathlib.Path):
    answers = [{"text": "Ann", "answer_start": 0}, {"text": "Ann ran", "answer_start": 0}]
    paragraph = {"context": "Ann ran.", "qas": [{"id": "q", "question": "Who?", "answers": answers}]}
    content = {"version": "1.1", "data": [{"title": "Runs", "paragraphs": [paragraph]}]}
    (row,) = values(write(tmp_path, "a.json", "\ufeff" + json.dumps(content)))
    assert row["answers"] == [("Ann", 0), ("Ann ran", 0)]
    assert row["impossible"] is False


BAD_QUESTIONS = [
    ({"answers": [{"text": "Ann"}]}, "an answer has no text or no answer_start"),
    ({"answers": ["Ann"]}, "an answer has no text or no answer_start"),
    ({"answers": {"text": ["Ann"], "answer_start": [0]}}, "its answers are no list"),
    ({"answers": None}, "has no answers, and is_impossible does not say that there are none"),
    ({"question": None}, "its question or context is no text"),
    ({"answers": [{"text": "Ann", "answer_start": "0"}]}, "an answer has no text or no answer_start"),
    ({"answers": [{"text": None, "answer_start": 0}]}, "an answer has no text or no answer_start"),
    ({"question": "Who\0?"}, "holds a NUL character"),
    ({"question": "Who\ud800?"}, "is not UTF-8"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_QUESTIONS)
def test_a_bad_question_is_named_or_counted(tmp_path: pathlib.Path, changes: dict, reason: str):
    path = write(tmp_path, "a.json", json.dumps(squad(**changes)))
    left, counting = skipped(path)
    assert [record.values["id"] for record in left] == ["2"]
    assert counting.first == [f"{path}:q1: {reason}"]
    assert error_of(path).startswith(f"{path}:q1: {reason} (--data.bad-rows skip")


def test_a_question_without_its_id_is_named_by_its_article(tmp_path: pathlib.Path):
    content = squad(answers=[])
    del content["data"][0]["paragraphs"][0]["qas"][0]["id"]
    path = write(tmp_path, "a.json", json.dumps(content))
    left, counting = skipped(path)
    assert [record.values["id"] for record in left] == ["2"]
    assert counting.first == [f"{path}:Runs, question 1: has no id"]


def test_a_question_without_answers_is_not_one_that_has_none(tmp_path: pathlib.Path):
    content = squad()
    answered, unanswered = content["data"][0]["paragraphs"][0]["qas"]
    del answered["answers"], unanswered["answers"]
    path = write(tmp_path, "a.json", json.dumps(content))
    left, counting = skipped(path)
    assert [(record.values["id"], record.values["answers"]) for record in left] == [("2", [])]
    assert counting.first == [f"{path}:q1: has no answers, and is_impossible does not say that there are none"]


@pytest.mark.parametrize("content", ['{"text": "a"}', '{"data": [1]}', '{"data": [{"paragraphs": [{}]}]}', "{"])
def test_other_json_is_no_squad(tmp_path: pathlib.Path, content: str):
    path = write(tmp_path, "a.json", content)
    assert error_of(path).startswith(f"{path}: is no SQuAD file (")
    assert error_of(path).endswith("other JSON is read as .jsonl")


def test_a_list_of_json_says_how_it_is_written(tmp_path: pathlib.Path):
    path = write(tmp_path, "a.json", '[{"text": "a"}]')
    assert error_of(path) == f"{path}: is a list, and no SQuAD file: write an object on each line, as .jsonl"
    path = write(tmp_path, "a.jsonl", '[{"text": "a"}]')
    assert error_of(path).startswith(f"{path}:1: is no JSON object: write one on each line")


@pytest.mark.parametrize("form", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told(tmp_path: pathlib.Path, form: str):
    """What some programs call Unicode text; without a mark it is only seen by its NUL characters."""
    path = write(tmp_path, "a.tsv", TABLE.decode().encode(form))
    expected = f"{path}: is UTF-16: save it as UTF-8" if form == "utf-16" else f"{path}:"
    assert error_of(path).startswith(expected)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.conll"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_named(tmp_path: pathlib.Path, name: str, content: bytes):
    path = write(tmp_path, name, content)
    assert error_of(path) == f"{path}: has no examples: name another file"


def test_a_file_of_a_header_alone_and_one_of_bad_rows_alone_have_no_examples(tmp_path: pathlib.Path):
    assert "has no examples" in error_of(write(tmp_path, "a.tsv", "text\tlabel\n"))
    assert "has no examples" in error_of(write(tmp_path, "a.json", '{"data": []}'))
    assert "has no examples" in error_of(write(tmp_path, "b.tsv", "text\tlabel\na\n"), SKIP)


def test_sources_that_are_not_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert error_of("gone.tsv") == f"gone.tsv: no such file (relative paths start at {tmp_path}): check the path"
    assert "no such file" in error_of("*.tsv")
    assert error_of(str(tmp_path)) == f"{tmp_path}: is a folder: name its files, or a glob"
    assert "is empty: name a file" in error_of("")
    assert error_of("nonsense://a.tsv").startswith("nonsense://a.tsv: cannot be looked up (")


def test_globs_take_files_in_order_and_each_must_have_rows(tmp_path: pathlib.Path):
    for name in "ba":
        write(tmp_path, f"{name}.tsv", f"text\tlabel\n{name}\tx\n")
    write(tmp_path, "[1].tsv", TABLE)
    assert [row["text"] for row in values(str(tmp_path / "?.tsv"))] == ["a", "b"]
    assert places(str(tmp_path / "[1].tsv")) == [":2", ":3"]
    write(tmp_path, "c.tsv", "")
    assert error_of(str(tmp_path / "?.tsv")) == f"{tmp_path / 'c.tsv'}: has no examples: name another file"


def test_a_form_that_the_suffix_does_not_say(tmp_path: pathlib.Path):
    for name in ("a", "a.data", "a.gz"):
        path = write(tmp_path, name, gzip.compress(TABLE) if name == "a.gz" else TABLE)
        assert error_of(path) == f"{path}: its form is not known by its suffix: say it with data.format"
        assert values(path, dataclasses.replace(CONFIG, format="tsv")) == ROWS


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_gz_is_named(tmp_path: pathlib.Path, damage: str):
    text = "".join(f"text {n * 7919 % 1000}\t{n}\n" for n in range(2000))
    content = bytearray(gzip.compress(f"text\tlabel\n{text}".encode(), mtime=0))
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        # Right after gzip's header: a block of a kind that there is not.
        content[10:30] = b"\xff" * 20
    else:
        content = bytearray(TABLE)
    path = write(tmp_path, "a.tsv.gz", bytes(content))
    error = error_of(path)
    assert error.startswith(f"{path}: cannot be read (")
    assert error.endswith("get the file again")


@pytest.fixture(scope="module")
def tiny_labelled_set(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small tensorflow-datasets data set on disk, with a class, one that is hidden, a number and a list; its folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    folder = tmp_path_factory.mktemp("tfds_labelled")
    with registered.skip_registration():

        class JaxbertLabelled(tfds.core.GeneratorBasedBuilder):
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain", version="1.0.0")]  # noqa: RUF012

            def _info(self):
                features = {
                    "sentence": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["bad", "good"]),
                    "score": tfds.features.Scalar(np.float32),
                    "tags": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(3)}

            def _generate_examples(self, count):
                for n in range(count):
                    yield n, {"sentence": f"Text {n} 好。", "label": n - 1, "score": n / 2, "tags": [*range(n)]}

        JaxbertLabelled(config="plain", data_dir=folder).download_and_prepare()
    tfds.core.add_data_dir(folder)
    return folder


def test_the_sets_that_come_with_tensorflow_datasets_are_known(tmp_path: pathlib.Path):
    """Their code lies in packages, which it looks up by other means than the set of this file."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("glue/sst2", data_dir=tmp_path)
    assert sorted(builder.info.features) == ["idx", "label", "sentence"]


@pytest.mark.parametrize(("suffix", "pack"), [("xz", lzma.compress), ("bz2", bz2.compress), ("zip", zipped)])
def test_damaged_files_of_other_kinds_are_named(tmp_path: pathlib.Path, suffix: str, pack):
    lines = [f"text {np.random.default_rng(n).random()}\ta" for n in range(2000)]
    content = pack(("text\tlabel\n" + "\n".join(lines)).encode())
    assert len(read(write(tmp_path, f"good.tsv.{suffix}", content))) == 2000
    for name, damaged in (("cut", content[: len(content) // 2]), ("random", b"BZPK" + b"\x93" * 400)):
        path = write(tmp_path, f"{name}.tsv.{suffix}", damaged)
        error = error_of(path)
        assert error.startswith(f"{path}: cannot be read (")
        assert error.endswith("): get the file again")
        assert "\n" not in error


def test_tfds_gives_texts_and_the_names_of_classes(tiny_labelled_set: pathlib.Path):
    source = "tfds:jaxbert_labelled/plain:train"
    rows = sorted(values(source), key=lambda row: row["sentence"])
    assert rows == [
        {"sentence": "Text 0 好。", "label": "", "score": 0.0, "tags": []},
        {"sentence": "Text 1 好。", "label": "bad", "score": 0.5, "tags": [0]},
        {"sentence": "Text 2 好。", "label": "good", "score": 1.0, "tags": [0, 1]},
    ]
    assert places(source) == [":0", ":1", ":2"]
    assert len(values(f"{source}[:2]")) == 2
    assert sorted(values("tfds:jaxbert_labelled/plain"), key=lambda row: row["sentence"]) == rows


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds::train", "is not of the form tfds:NAME/CONFIG or tfds:NAME/CONFIG:SPLIT"),
        ("tfds:jaxbert_labelled/plain:nope", "Unknown split 'nope'"),
        ("tfds:jaxbert_missing:train", "not found"),
    ],
)
def test_tfds_errors(tiny_labelled_set: pathlib.Path, source: str, message: str):
    assert error_of(source).startswith(f"{source}: ")
    assert message in error_of(source)
