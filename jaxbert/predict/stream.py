"""Lines of text in, lines of JSON out: what `jaxbert predict` does."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TextIO

from jaxbert.predict.predictor import Predictor, Task
from jaxbert.predict.texts import LongTexts, PredictError, TextError
from jaxbert.weights.embedder import Pooling
from jaxbert.weights.load import load


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Lines of text in, a line of JSON out for each, in their order."""

    model: str
    """A folder that jaxbert.load takes (a run, a Hugging Face folder, ...), or a model's name on the hub."""
    task: Task
    """fill-mask; next-sentence, of lines with a tab between the two texts; or embed."""
    input: str = "-"
    """File with a text on each line. -: standard input."""
    output: str = "-"
    """File for the results, in place when all are there (FILE.partial until then). -: standard output."""
    top_k: int = 5
    """fill-mask: candidates for each mask."""
    pooling: Pooling | None = None
    """embed: cls, mean or max. None: what the model's folder says, else mean."""
    normalize: bool | None = None
    """embed: scale vectors to length 1. None: what the model's folder says, else not."""
    max_length: int | None = None
    """Tokens of the longest text that is read whole. None: as many as the model reads."""
    long_texts: LongTexts = "truncate"
    """What becomes of longer ones: truncate, or window (read in windows that overlap)."""
    lines_at_once: int = 2048
    """Lines that are read, sorted by length, and written together."""


def predict(options: PredictOptions) -> int:
    """Run the whole input; the number of its lines. Raises PredictError, naming the line, for one that cannot be served."""
    if options.lines_at_once < 1:
        raise PredictError(f"--lines-at-once {options.lines_at_once}: at least 1")
    predictor = load(options.model).predictor(
        options.task, max_length=options.max_length, long_texts=options.long_texts
    )
    started, done = time.monotonic(), 0
    with _opened(options.input, "r") as lines, _opened(options.output, "w") as results, _progress() as advance:
        while chunk := _read(lines, options.lines_at_once, done):
            try:
                with warnings.catch_warnings():
                    # Counted, and said once at the end.
                    warnings.filterwarnings("ignore", message=".* were cut", category=UserWarning)
                    answers = _answers(predictor, options, chunk)
            except TextError as error:
                raise PredictError(f"line {done + error.number + 1} {error.what}") from None
            results.writelines(_line(answer) for answer in answers)
            results.flush()
            done += len(chunk)
            advance(len(chunk))
    seconds = time.monotonic() - started
    print(f"{done:,} texts in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)", file=sys.stderr)
    if predictor.num_truncated:
        print(
            f"{predictor.num_truncated:,} of them are longer than {predictor.max_length} tokens and were cut; "
            "--long-texts window reads them whole",
            file=sys.stderr,
        )
    return done


def _line(answer: dict[str, Any]) -> str:
    # Some readers take these for ends of lines; in JSON they stand in strings alone.
    text = json.dumps(answer, ensure_ascii=False)
    return text.translate({0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}) + "\n"


def _answers(predictor: Predictor, options: PredictOptions, lines: Sequence[str]) -> list[dict[str, Any]]:
    if options.task == "fill-mask":
        found = predictor.fill_mask(lines, options.top_k)
        return [{"text": text, "candidates": one} for text, one in zip(lines, found, strict=True)]
    if options.task == "next-sentence":
        pairs = [_pair(number, line) for number, line in enumerate(lines)]
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        probabilities = predictor.next_sentence(first, second)
        return [{"first": a, "second": b, "is_next": p} for (a, b), p in zip(pairs, probabilities, strict=True)]
    vectors = predictor.embed(lines, options.pooling, options.normalize)
    # Nine digits tell every float32 from its neighbours.
    rounded = [[float(f"{x:.9g}") for x in vector] for vector in vectors.tolist()]
    return [{"text": text, "embedding": vector} for text, vector in zip(lines, rounded, strict=True)]


def _pair(number: int, line: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise TextError(number, f"has {len(parts) - 1} tabs: put one between the two texts")
    return parts[0], parts[1]


def _read(lines: TextIO, count: int, done: int) -> list[str]:
    try:
        return [line.removesuffix("\n").removesuffix("\r") for line in itertools.islice(lines, count)]
    except UnicodeDecodeError as error:
        raise PredictError(
            f"the input is not UTF-8, after line {done:,}: {error.reason}: convert it to UTF-8"
        ) from None


@contextlib.contextmanager
def _opened(name: str, mode: Literal["r", "w"]) -> Iterator[TextIO]:
    if name == "-":
        stream = sys.stdin if mode == "r" else sys.stdout
        # Lines end at \\n alone: what else Unicode calls a line end may stand in a text.
        if stream is None:
            side = "input" if mode == "r" else "output"
            raise PredictError(f"standard {side} is closed: name a file with --{side}")
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf8", errors="strict", newline="\n")
        yield stream
        return
    if mode == "r":
        with open(name, encoding="utf8", newline="\n") as file:
            yield file
        return
    # What was there stays until the last line is written; what was written before an error stays in the partial file.
    partial = pathlib.Path(f"{name}.partial")
    with partial.open("w", encoding="utf8", newline="\n") as file:
        yield file
    partial.replace(name)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """What to call with the number of texts that are done: a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.completed:,.0f} texts  {task.speed:,.0f}/s"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.advance(task, count)
