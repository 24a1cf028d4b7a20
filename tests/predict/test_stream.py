"""`jaxbert predict`: a line of JSON for every line, in order."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from made_predictors import SENTENCES, WORDS, write_model

from jaxbert.predict.stream import PredictOptions, predict
from jaxbert.predict.texts import PredictError
from jaxbert.tasks.entities import fault, spans
from jaxbert.weights.load import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("bert"), "bert", "BertForPreTraining")


def run(model: pathlib.Path, task: str, lines: list[str], folder: pathlib.Path, **options) -> list[dict]:
    (folder / "in").write_text("".join(f"{line}\n" for line in lines), encoding="utf8", newline="\n")
    given = PredictOptions(str(model), task, str(folder / "in"), str(folder / "out"), **options)  # pyright: ignore
    assert predict(given) == len(lines)
    return [json.loads(line) for line in (folder / "out").read_text(encoding="utf8").splitlines()]


def test_every_task(model: pathlib.Path, tmp_path: pathlib.Path):
    predictor = load(model).predictor()
    masked = [f"the [MASK] {text}" for text in SENTENCES[:30]]
    found = run(model, "fill-mask", masked, tmp_path, top_k=3, lines_at_once=7)
    assert [answer["text"] for answer in found] == masked
    for answer, expected in zip(found, predictor.fill_mask(masked, 3), strict=True):
        assert [c["token"] for c in answer["candidates"]] == [c["token"] for c in expected]
    pairs = [f"{a}\t{b}" for a, b in zip(SENTENCES[:9], SENTENCES[9:18], strict=True)]
    found = run(model, "next-sentence", pairs, tmp_path, lines_at_once=4)
    expected = predictor.next_sentence(SENTENCES[:9], SENTENCES[9:18])
    np.testing.assert_allclose([answer["is_next"] for answer in found], expected, atol=1e-6)
    assert found[2]["first"] == SENTENCES[2]
    # A blank line is a text too, and U+2028 ends no line.
    texts = [*SENTENCES[:5], "", "a cat\u2028a dog"]
    found = run(model, "embed", texts, tmp_path, pooling="max", normalize=True, lines_at_once=2)
    assert [answer["text"] for answer in found] == texts
    vectors = [answer["embedding"] for answer in found]
    np.testing.assert_allclose(vectors, predictor.embed(texts, "max", True), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "scheme"), [(("O", "B-X", "I-X"), "bioes"), (("O", "B-X", "I-X", "E-X", "S-X"), "iob1")]
)
def test_words_with_their_tags_in_any_scheme(tmp_path: pathlib.Path, names: tuple[str, ...], scheme):
    folder = write_model(tmp_path / "model", "bert", "BertForTokenClassification", id2label=dict(enumerate(names)))
    lines = [*SENTENCES[:9], "", "the 机器 cat."]
    plain = run(folder, "tag", lines, tmp_path)
    assert any(one["entities"] for one in plain)
    for line, one, before in zip(lines, run(folder, "tag", lines, tmp_path, tags=scheme), plain, strict=True):
        assert one["entities"] == before["entities"]
        assert "".join(word for word, _ in one["words"]) == line.replace(" ", "")
        tags = [tag for _, tag in one["words"]]
        assert [span.type for span in spans(tags)] == [found["entity_group"] for found in one["entities"]]
        assert all(fault(tag, scheme) is None for tag in tags)


def test_tags_are_for_taggers_of_entities(model: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(PredictError, match="--tags is for --task tag: leave it out for fill-mask"):
        run(model, "fill-mask", ["a [MASK]"], tmp_path, tags="iob2")
    words = write_model(tmp_path / "words", "bert", "BertForTokenClassification", id2label=dict(enumerate("NV")))
    with pytest.raises(PredictError, match="--tags is for models of entities"):
        run(words, "tag", ["a cat"], tmp_path, tags="iob2")


def test_what_a_line_lacks_is_said_with_its_number(model: pathlib.Path, tmp_path: pathlib.Path):
    lines = [f"{text} [MASK]" for text in SENTENCES[:6]]
    lines[4] = "nothing hidden here"
    with pytest.raises(PredictError, match=r"^line 5 has no \[MASK\]"):
        run(model, "fill-mask", lines, tmp_path, lines_at_once=3)
    # What came before is written, beside.
    assert len((tmp_path / "out.partial").read_text().splitlines()) == 4
    assert not (tmp_path / "out").exists()
    with pytest.raises(PredictError, match=r"^line 2 has 0 tabs"):
        run(model, "next-sentence", ["a\tb", "a b"], tmp_path)
    (tmp_path / "in").write_bytes(b"a cat\n\xff\xfe\n")
    with pytest.raises(PredictError, match="line 2 is not UTF-8"):
        predict(PredictOptions(str(model), "embed", str(tmp_path / "in"), str(tmp_path / "out")))
    with pytest.raises(PredictError, match="lines-at-once 0"):
        run(model, "embed", ["a"], tmp_path, lines_at_once=0)


def test_bad_lines_are_reported_where_that_is_wanted(
    model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    good = [f"{text} [MASK]" for text in SENTENCES[:4]]
    expected = run(model, "fill-mask", good, tmp_path)
    too_long = " ".join([*WORDS * 9, "[MASK]"])
    lines = [good[0], "nothing hidden", good[1], "also nothing", too_long, good[2], "", good[3]]
    (tmp_path / "in").write_bytes("\n".join(lines).encode() + b"\n\xff[MASK] a\n")
    given = PredictOptions(
        str(model), "fill-mask", str(tmp_path / "in"), str(tmp_path / "out"), bad_lines="report", lines_at_once=5
    )
    assert predict(given) == 9
    found = [json.loads(line) for line in (tmp_path / "out").read_text(encoding="utf8").splitlines()]
    served = [answer for answer in found if "error" not in answer]
    assert [answer["text"] for answer in served] == good
    for answer, one in zip(served, expected, strict=True):
        assert [c["token"] for c in answer["candidates"]] == [c["token"] for c in one["candidates"]]
    errors = {number: answer["error"] for number, answer in enumerate(found, 1) if "error" in answer}
    no_mask = "it has no [MASK]: put one where a token is to be found"
    assert {number: text for number, text in errors.items() if text == no_mask}.keys() == {2, 4, 7}
    assert errors.keys() == {2, 4, 5, 7, 9}
    assert "behind the 96 tokens" in errors[5]
    assert errors[9] == "it is not UTF-8: convert it"
    assert found[8]["text"] == "\ufffd[MASK] a"
    assert "5 of them could not be served" in capsys.readouterr().err
    # All of them bad is no reason to stop.
    [answer] = run(model, "next-sentence", ["no tab"], tmp_path, bad_lines="report")
    assert answer["error"] == "it has 0 tabs: put one between the two texts"


def test_several_bad_lines_are_counted(model: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(PredictError, match=r"^line 2 has no \[MASK\].* \(2 more lines cannot be served\)$"):
        run(model, "fill-mask", ["a [MASK]", "b", "c", "d"], tmp_path)


def test_where_results_go(model: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "in").write_text("a cat\n")
    (tmp_path / "elsewhere").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    predict(PredictOptions(str(model), "embed", str(tmp_path / "in"), str(tmp_path / "link")))
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "elsewhere").read_text())["text"] == "a cat"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    predict(PredictOptions(str(model), "embed", str(tmp_path / "in"), str(tmp_path / "pipe")))
    reader.join()
    assert json.loads(read[0])["text"] == "a cat"
    assert not (tmp_path / "pipe").is_file()
    faults = {
        "is a folder: name a file": {"output": str(tmp_path)},
        "--top-k 0: at least 1": {"top_k": 0},
        "--prompt is for --task embed": {"prompt": "query: ", "task": "fill-mask"},
    }
    for text, options in faults.items():
        with pytest.raises(PredictError, match=text):
            predict(PredictOptions(**({"model": str(model), "task": "embed", "input": str(tmp_path / "in")} | options)))


def test_a_byte_order_mark_is_no_text(model: pathlib.Path, tmp_path: pathlib.Path):
    [answer] = run(model, "embed", ["\ufeffa cat"], tmp_path)
    assert answer["text"] == "a cat"


def test_a_prompt(model: pathlib.Path, tmp_path: pathlib.Path):
    [answer] = run(model, "embed", ["a cat"], tmp_path, prompt="the dog ")
    np.testing.assert_allclose(answer["embedding"], load(model).predictor().embed("the dog a cat"), atol=1e-6)


def test_a_compute_type(model: pathlib.Path, tmp_path: pathlib.Path):
    [answer] = run(model, "embed", ["a cat"], tmp_path, dtype="bfloat16")
    expected = load(model).predictor(dtype="bfloat16").embed("a cat")
    np.testing.assert_allclose(answer["embedding"], expected, atol=1e-6)
    assert not np.allclose(expected, load(model).predictor().embed("a cat"), atol=1e-6)


def test_results_may_take_the_place_of_the_input(model: pathlib.Path, tmp_path: pathlib.Path):
    path = tmp_path / "texts"
    path.write_text("".join(f"{text}\n" for text in SENTENCES[:9]), encoding="utf8")
    assert predict(PredictOptions(str(model), "embed", str(path), str(path), lines_at_once=2)) == 9
    found = [json.loads(line)["text"] for line in path.read_text(encoding="utf8").splitlines()]
    assert found == SENTENCES[:9]
    # An error leaves what was there.
    with pytest.raises(PredictError, match="line 1 has no"):
        predict(PredictOptions(str(model), "fill-mask", str(path), str(path)))
    assert len(path.read_text(encoding="utf8").splitlines()) == 9


def test_cut_texts_are_counted(model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    run(model, "embed", [" ".join(WORDS * 9), "a cat"] * 2, tmp_path, lines_at_once=1)
    shown = capsys.readouterr().err
    assert "4 texts in" in shown
    assert "2 of them are longer than 96 tokens and were cut; --long-texts window" in shown


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jaxbert", "predict", *arguments]


def test_the_command_reads_and_writes_standard_streams(model: pathlib.Path, repository: pathlib.Path):
    arguments = ("--model", str(model), "--task", "fill-mask", "--top-k", "2")
    done = subprocess.run(
        command(*arguments),
        input="the cat [MASK]\nthe 貓 [MASK]\n",
        cwd=repository,
        capture_output=True,
        encoding="utf8",
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer["candidates"]) for answer in answers] == [2, 2]
    assert "貓" in done.stdout
    bad = subprocess.run(command(*arguments), input="nothing\n", cwd=repository, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.strip().splitlines()[-1].startswith("error: line 1 has no [MASK]")


@pytest.mark.parametrize(("closed", "side"), [("<&-", "input"), (">&-", "output")])
def test_a_closed_stream(model: pathlib.Path, repository: pathlib.Path, closed: str, side: str):
    line = " ".join(command("--model", str(model), "--task", "embed")) + f" {closed}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=repository, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"error: standard {side} is closed: name a file with --{side}"


def test_a_reader_that_has_enough(model: pathlib.Path, repository: pathlib.Path):
    arguments = " ".join(command("--model", str(model), "--task", "embed", "--lines-at-once", "50"))
    text = "\\n".join(SENTENCES)
    line = f"printf '{text}\\n' | {arguments} | head -n 1"
    done = subprocess.run(["bash", "-c", line], cwd=repository, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr.lower()
