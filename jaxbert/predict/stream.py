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

from jaxbert.config import ComputeType, Pooling
from jaxbert.predict.predictor import Predictor
from jaxbert.predict.tasks import CUT, Task, default_task
from jaxbert.predict.texts import LongTexts, PredictError, TextError
from jaxbert.tasks.entities import Scheme, Span, are_of_entities, tagged_words
from jaxbert.weights.load import load

# Bytes that are no UTF-8 arrive as lone surrogates, so that the line is known that they are in.
_KEEP_BYTES = "surrogateescape"
# Tabs that a line may have.
_TABS = {"next-sentence": range(1, 2), "answer": range(1, 2), "classify": range(2), "choose": range(2, sys.maxsize)}
_TOP_K = 5
_TOP_KS = ("fill-mask", "answer")


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Lines of text in, a line of JSON out for each, in their order."""

    model: str
    """A folder that jaxbert.load takes (a run, a Hugging Face folder, ...), or a model's name on the hub."""
    task: Task | None = None
    """None: what the model was fine-tuned for, else fill-mask, or embed where there is no head for it. fill-mask; embed; classify; tag; relate (entities marked <e1>..</e1>, <e2>..</e2>); and, of lines with tabs between
    their texts, next-sentence, answer (question, context), classify of pairs, choose (context, choice, choice, ...; of SWAG's, whose choices
    were trained behind the beginning of a sentence, with that before each choice)."""
    input: str = "-"
    """File with a text on each line. -: standard input."""
    output: str = "-"
    """File for the results, in place when all are there (FILE.partial until then). -: standard output."""
    top_k: int | None = None
    """fill-mask: candidates for each mask (None: 5); answer: answers to each question (None: 1)."""
    tags: Scheme | None = None
    """tag: beside the entities, every word with its tag in this scheme ("words": [[word, tag], ...])."""
    pooling: Pooling | None = None
    """embed: cls, mean or max. None: what the model's folder says, else mean."""
    normalize: bool | None = None
    """embed: scale vectors to length 1. None: what the model's folder says, else not."""
    max_length: int | None = None
    """Tokens of the longest text that is read whole. None: as many as it was fine-tuned with, or as the model reads."""
    long_texts: LongTexts = "truncate"
    """What becomes of longer ones: truncate, or window (read in windows that overlap; of a pair, the window where they meet)."""
    dtype: ComputeType = "auto"
    """Compute type. "auto": bfloat16 on GPU and TPU, float32 on CPU, where bfloat16 is faster if it has AMX (Intel's Xeon Scalable since the 4th generation)."""
    prompt: str | None = None
    """embed: what is put before every text ("query: "). None: what the model's folder says, else nothing."""
    bad_lines: Literal["stop", "report"] = "stop"
    """A line that cannot be served (no mask, not UTF-8): stop at the first one, or report each ({"text", "error"} is its result)."""
    lines_at_once: int = 2048
    """Lines that are read, sorted by length, and written together."""
    base: str | None = None
    """Of adapters: the model that they are for. None: the one that they name."""


def predict(options: PredictOptions) -> int:
    """Run the whole input; the number of its lines. Raises PredictError, naming the line, for one that cannot be served."""
    _check(options)
    loaded = load(options.model, base=options.base)
    if options.task is None:
        options = dataclasses.replace(options, task=default_task(loaded))
        _check(options)
    predictor = loaded.predictor(
        options.task, max_length=options.max_length, long_texts=options.long_texts, dtype=options.dtype
    )
    if options.tags is not None and not are_of_entities(predictor.labels):
        raise PredictError(
            "--tags is for models of entities, and each word has a tag of its own in this one: leave it out"
        )
    started, done, bad = time.monotonic(), 0, 0
    with _opened(options.input, "r") as lines, _opened(options.output, "w") as results, _progress() as advance:
        while chunk := _read(lines, options.lines_at_once, done):
            with warnings.catch_warnings():
                # Counted, and said once at the end.
                warnings.filterwarnings("ignore", message=".* were cut", category=UserWarning)
                answers, faults = _served(predictor, options, chunk)
            served = answers[: min(faults)] if faults and options.bad_lines == "stop" else answers
            results.writelines(_line(answer) for answer in served)
            results.flush()
            if len(served) < len(answers):
                raise TextError({done + number + 1: what for number, what in faults.items()}, "line")
            done += len(chunk)
            bad += len(faults)
            advance(len(chunk))
    seconds = time.monotonic() - started
    _say(f"{done:,} texts in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f}/s)")
    if bad:
        _say(f'{bad:,} of them could not be served: their results have an "error"')
    if predictor.num_truncated:
        _say(
            f"{predictor.num_truncated:,} of them are longer than {predictor.max_length} tokens and were cut"
            + ("; --long-texts window reads them whole" if options.task not in ("next-sentence", *CUT) else "")
        )
    return done


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _check(options: PredictOptions) -> None:
    """What can be said of the options before the model is read."""
    for name in ("lines_at_once", "top_k"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise PredictError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if options.output != "-" and pathlib.Path(options.output).is_dir():
        raise PredictError(f"--output {options.output}: is a folder: name a file")
    if options.task is None:
        return
    given = [name for name in ("pooling", "normalize", "prompt") if getattr(options, name) is not None]
    if given and options.task != "embed":
        raise PredictError(f"--{given[0]} is for --task embed: leave it out for {options.task}")
    if options.tags is not None and options.task != "tag":
        raise PredictError(f"--tags is for --task tag: leave it out for {options.task}")
    if options.top_k is not None and options.task not in _TOP_KS:
        raise PredictError(f"--top-k is for --task {' and '.join(_TOP_KS)}: leave it out for {options.task}")


def _served(
    predictor: Predictor, options: PredictOptions, lines: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The result of each line, and what is wrong with the bad ones, by number from 0."""
    faults: dict[int, str] = {}
    while True:
        good = [number for number in range(len(lines)) if number not in faults]
        try:
            found = iter(_answers(predictor, options, [lines[number] for number in good]))
        except TextError as error:
            faults |= {good[number]: what for number, what in error.faults.items()}
            continue
        results = [
            {"text": line.encode("utf8", _KEEP_BYTES).decode("utf8", "replace"), "error": f"it {faults[number]}"}
            if number in faults
            else next(found)
            for number, line in enumerate(lines)
        ]
        return results, faults


def _line(answer: dict[str, Any]) -> str:
    # Some readers take these for ends of lines; in JSON they stand in strings alone.
    text = json.dumps(answer, ensure_ascii=False)
    return text.translate({0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}) + "\n"


def _answers(predictor: Predictor, options: PredictOptions, lines: Sequence[str]) -> list[dict[str, Any]]:
    """The result of each line. Raises TextError for lines that cannot be served."""
    tabs = _TABS.get(options.task or "")
    faults = {n: _line_fault(line, tabs) for n, line in enumerate(lines)}
    if any(faults.values()):
        raise TextError({n: fault for n, fault in faults.items() if fault})
    if options.task == "fill-mask":
        found = predictor.fill_mask(lines, options.top_k or _TOP_K)
        return [{"text": text, "candidates": one} for text, one in zip(lines, found, strict=True)]
    if options.task == "embed":
        vectors = predictor.embed(lines, options.pooling, options.normalize, options.prompt)
        # Nine digits tell every float32 from its neighbours.
        rounded = [[float(f"{x:.9g}") for x in vector] for vector in vectors.tolist()]
        return [{"text": text, "embedding": vector} for text, vector in zip(lines, rounded, strict=True)]
    if options.task == "classify":
        texts: list[Any] = [tuple(line.split("\t")) if "\t" in line else line for line in lines]
        return [{"text": line, **one} for line, one in zip(lines, predictor.classify(texts), strict=True)]
    if options.task == "tag":
        return [_tagged(text, one, options.tags) for text, one in zip(lines, predictor.tag(lines), strict=True)]
    if options.task == "relate":
        return [{"text": text, **one} for text, one in zip(lines, predictor.relate(lines), strict=True)]
    if options.task == "choose":
        texts = [line.split("\t") for line in lines]
        found = predictor.choose([context for context, *_ in texts], [choices for _, *choices in texts])
        return [{"context": one[0], "choices": one[1:], **best} for one, best in zip(texts, found, strict=True)]
    first, second = ([line.split("\t")[side] for line in lines] for side in (0, 1))
    if options.task == "answer":
        answers = predictor.answer(first, second, options.top_k or 1)
        return [{"question": a, "context": b, "answers": one} for a, b, one in zip(first, second, answers, strict=True)]
    probabilities = predictor.next_sentence(first, second)
    return [{"first": a, "second": b, "is_next": p} for a, b, p in zip(first, second, probabilities, strict=True)]


def _tagged(text: str, found: Sequence[Any], scheme: Scheme | None) -> dict[str, Any]:
    result = {"text": text, "entities": found}
    if scheme is None:
        return result
    spans = [Span(one["start"], one["end"], one["entity_group"]) for one in found]
    return result | {"words": tagged_words(text, spans, scheme)}


def _line_fault(line: str, tabs: range | None) -> str | None:
    if not _is_text(line):
        return "is not UTF-8: convert it"
    count = line.count("\t")
    if tabs is None or count in tabs:
        return None
    return f"has {count} tabs: put one between " + ("its texts" if tabs.stop > 2 else "the two texts")


def _is_text(line: str) -> bool:
    try:
        return line.isascii() or bool(line.encode())
    except UnicodeEncodeError:
        return False


def _read(lines: TextIO, count: int, done: int) -> list[str]:
    found = [line.removesuffix("\n").removesuffix("\r") for line in itertools.islice(lines, count)]
    # Some editors begin a file with a byte order mark, which is no text.
    return [found[0].removeprefix("\ufeff"), *found[1:]] if found and not done else found


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
            reconfigure(encoding="utf8", errors=_KEEP_BYTES if mode == "r" else "strict", newline="\n")
        yield stream
        return
    if mode == "r":
        with open(name, encoding="utf8", errors=_KEEP_BYTES, newline="\n") as file:
            yield file
        return
    # A link stays one; a pipe or a device is written to.
    path = pathlib.Path(name).resolve()
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf8", newline="\n") as file:
            yield file
        return
    # What was there stays until the last line is written; what was written before an error stays in the partial file.
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf8", newline="\n") as file:
        yield file
    partial.replace(path)


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
