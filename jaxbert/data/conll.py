"""Files with a word and its tags on each line, as records."""

from collections.abc import Iterator

from jaxbert.data.records import OnBad, Record, lines, text_fault
from jaxbert.finetune.config import ExamplesConfig


def read_conll(path: str, config: ExamplesConfig, on_bad: OnBad) -> Iterator[Record]:
    """Sentences, which blank lines separate; columns are separated by tabs, or else by spaces."""
    sentence: list[list[str]] = []
    start, fault = 1, None

    def ended() -> Iterator[Record]:
        if fault:
            on_bad(*fault)
        elif sentence:
            yield Record({"columns": tuple(sentence)}, f"{path}:{start}")

    for number, line in lines(path):
        line = line.rstrip("\r\n")
        if line.startswith("-DOCSTART-") or not line.strip(" \t"):
            yield from ended()
            sentence, fault = [], None
            continue
        if not sentence:
            start = number
        # Other spaces may stand in a word.
        columns = line.split("\t") if "\t" in line else line.split(" ")
        columns = [part for part in columns if part]
        problem = text_fault(line)
        if problem is None and sentence and len(columns) != len(sentence[0]):
            problem = f"has {len(columns)} columns and the line before {len(sentence[-1])}"
        if problem and fault is None:
            fault = f"{path}:{number}", problem
        sentence.append(columns)
    yield from ended()
