"""Raw text to rows on one core: MB of text a second, and peak memory, which does not grow with the corpus.

The text is the built-in corpus once, twice and eight times over, or --text. The vocabulary is learnt beforehand; its
time stands on a line of its own. The peer tokenises the same file with `tokenizers` and makes no rows at all. Every
figure is from a fresh process that is held on one core, and covers the reading of the text up to the finished stores.
A second is one of that core's, as the process's own clock counts them; the wall clock, which also counts what other
programs take of the core, has a line of its own.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from measure import Measurement, parser, show

from jaxbert.config import Config, DataConfig, TrainConfig, VocabularyConfig
from jaxbert.text.builtin import builtin_documents
from jaxbert.text.corpus import Rejects, documents
from jaxbert.text.prepare import prepare
from jaxbert.text.vocabulary import load_tokenizer, save_tokenizer, train_tokenizer

_BATCH_LINES = 1000


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a measurement took."""

    core_seconds: float
    wall_seconds: float
    peak_mb: float
    """Resident memory of the process at its highest, in MB (1e6 bytes)."""


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new interpreter: its memory is its own, its caches are empty."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def on_one_core(work: Callable[[], object]) -> Cost:
    """Seconds and peak memory of some work on the first core that this process may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    core, wall = time.process_time(), time.perf_counter()
    work()
    seconds = time.process_time() - core, time.perf_counter() - wall
    status = pathlib.Path("/proc/self/status").read_text()
    # getrusage would give the parent's memory, where that was larger when it started this process.
    return Cost(*seconds, int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


def make_rows(text: tuple[str, ...], vocabulary: str, settings: dict[str, Any]) -> Cost:
    """Rows from text, with a vocabulary that is there."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(text=text, vocabulary=VocabularyConfig(path=vocabulary), workers=1, **settings)
        config = Config(workdir=folder, data=data, train=TrainConfig(num_steps=1))
        return on_one_core(lambda: prepare(config))


def learn_vocabulary(text: tuple[str, ...], folder: str) -> Cost:
    """A vocabulary of BERT's size from the text."""

    def work() -> None:
        texts = (document.text for document in documents(text, DataConfig(), Rejects()))
        save_tokenizer(train_tokenizer(texts, VocabularyConfig()), folder, max_length=128)

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return on_one_core(work)


def only_tokenise(text: tuple[str, ...], vocabulary: str) -> Cost:
    """The peer: the documents through encode_batch_fast, a thousand lines at a time; nothing is kept."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(vocabulary)

    def work() -> None:
        lines: list[str] = []
        for document in documents(text, DataConfig(), Rejects()):
            lines += document.text.split("\n")
            if len(lines) >= _BATCH_LINES:
                tokenizer.encode_batch_fast(lines, add_special_tokens=False)
                lines = []
        tokenizer.encode_batch_fast(lines, add_special_tokens=False)

    return on_one_core(work)


def write_builtin(file: pathlib.Path, times: int) -> float:
    """The built-in corpus, some times over, as a text file; returns its size in MB."""
    blocks = "\n\n".join(text for _, text in builtin_documents()).encode() + b"\n\n"
    with file.open("wb") as output:
        for _ in range(times):
            output.write(blocks)
    return file.stat().st_size / 1e6


def size_of(text: Sequence[str]) -> float:
    """MB of text in UTF-8, compression taken off."""
    return sum(len(document.text.encode()) for document in documents(text, DataConfig(), Rejects())) / 1e6


def measure(name: str, text: tuple[str, ...], megabytes: float, vocabulary: str, rounds: int) -> list[Measurement]:
    """Rate and memory on one text, and its rate in packed rows of 512."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(in_fresh_process(make_rows, text, vocabulary, {}))
        peer.append(in_fresh_process(only_tokenise, text, vocabulary))
    packed = in_fresh_process(make_rows, text, vocabulary, {"packing": True, "max_length": 512})

    def rate(costs: Sequence[Cost], clock: str = "core_seconds") -> float:
        return megabytes / statistics.median(getattr(cost, clock) for cost in costs)

    memory = max(cost.peak_mb for cost in [*ours, packed])
    return [
        Measurement(f"rows of 128 from {name}", rate(ours), rate(peer), "MB of text/s", 1.5),
        Measurement(
            f"rows of 128 from {name}, by the wall clock",
            rate(ours, "wall_seconds"),
            rate(peer, "wall_seconds"),
            "MB of text/s",
        ),
        Measurement(f"packed rows of 512 from {name}", rate([packed]), rate(peer), "MB of text/s", 1.5),
        Measurement(f"peak memory, {name} (below 1000)", memory, None, "MB resident"),
    ]


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--text", nargs="+", help="files, directories or globs instead of the built-in corpus")
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        texts: dict[str, tuple[tuple[str, ...], float]] = {}
        if chosen.text:
            megabytes = size_of(chosen.text)
            texts[f"{megabytes:.0f} MB"] = (tuple(chosen.text), megabytes)
        else:
            for times in (1,) if chosen.quick else (1, 2, 8):
                file = pathlib.Path(folder, f"builtin-{times}.txt")
                megabytes = in_fresh_process(write_builtin, file, times)
                texts[f"{megabytes:.0f} MB (builtin x {times})"] = ((str(file),), megabytes)
        first, megabytes = next(iter(texts.values()))
        vocabulary = f"{folder}/vocabulary"
        learnt = in_fresh_process(learn_vocabulary, first, vocabulary)
        measurements = [
            Measurement("learning 30,522 pieces beforehand", learnt.core_seconds, None, f"s for {megabytes:.0f} MB"),
            Measurement("peak memory of learning them", learnt.peak_mb, None, "MB resident"),
        ]
        for name, (text, megabytes) in texts.items():
            measurements += measure(name, text, megabytes, vocabulary, rounds)
    show(measurements, chosen.json)


if __name__ == "__main__":
    main()
