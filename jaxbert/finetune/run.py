"""A fine-tuning run from labelled files to a report: what `finetune.py` and a notebook call.

Nothing is decided here that a room below decides; this file is the order in which they are asked.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbert import run_folder
from jaxbert.finetune.check import describe
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.examples import Examples, Tables, over_tables, read_all
from jaxbert.finetune.finish import finish
from jaxbert.finetune.head import find_head
from jaxbert.finetune.result import FinetuneResult, Untrained
from jaxbert.finetune.search import Hopeless, load_suggest, search
from jaxbert.finetune.seeds import finetune_seeds
from jaxbert.finetune.source import Source, find_source, find_start
from jaxbert.finetune.study import STUDY
from jaxbert.finetune.training import Training, check_measurable, encoder_of, oddities
from jaxbert.finetune.validation import validate
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import Task
from jaxbert.train.loop import NonFiniteError
from jaxbert.train.processes import initialize, process_0_first, say


def finetune(config: FinetuneConfig, tables: Tables | None = None) -> FinetuneResult:
    """Read the examples, train, evaluate, save and report, or go on with the run that `config.workdir` holds.

    tables: rows in place of the files of data.train, data.dev or data.test, by "train", "dev", "test": mappings as JSONL would have
    them, from anything that can be gone through again (with data.streaming they are gone through several times).
    With `config.seeds` above 1 it is a `SeedsResult`.
    Raises `UserError` with a text of one line for what the user can mend.
    """
    initialize(config.mesh, config.distributed)
    tables = {} if tables is None else tables
    config = dataclasses.replace(config, data=over_tables(config.data, tables))
    validate(config, jax.device_count())
    workdir = Path(config.workdir)
    examples = read_all(make_task(config.task), config.data, tables)
    if config.check_data:
        return _check_data(config, examples)
    for warning in examples.warnings:
        say(f"warning: {warning}")
    if config.seeds == 1 and config.search is None:
        return _finetune_once(config, examples, None)
    suggest = None if config.search is None else load_suggest(config.search)
    with _folder_of(config, examples):
        # What the newest run is may change between two of them.
        start = find_start(config)
        before = start.name
        if jax.process_index() == 0:
            if not run_folder.is_begun(workdir):
                # Of trials that were refused: draws must not be held against others after the file was mended.
                (workdir / STUDY).unlink(missing_ok=True)
            run_folder.save_finetuning(config, workdir, examples.fingerprint, start)
        if suggest is None:
            return finetune_seeds(config, lambda one: _finetune_once(one, examples, before))

        def train(one: FinetuneConfig, hopeless: Hopeless) -> FinetuneResult:
            same = (one.task, one.data) == (config.task, config.data)
            own = examples if same else read_all(make_task(one.task), one.data, tables)
            return _finetune_once(one, own, before, hopeless)

        return search(config, suggest, train)


@contextlib.contextmanager
def _folder_of(config: FinetuneConfig, examples: Examples) -> Iterator[None]:
    """The folder of a run, which is this run's own as long as it is entered."""
    workdir = Path(config.workdir)
    with run_folder.locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        run_folder.check_same_finetuning(config, examples.fingerprint, workdir)
        yield


def _check_data(config: FinetuneConfig, examples: Examples) -> FinetuneResult:
    """Say what the data is like, as a new run would read it. The run's folder is neither looked at nor written to."""
    task = make_task(config.task)
    with tempfile.TemporaryDirectory() as folder:
        source = process_0_first(
            lambda: find_source(config, map(task.text, examples.train), Path(folder)), "jaxbert_source"
        )
    encoder = encoder_of(config, source)
    bound = task.bind(examples.labels, examples.train, encoder)
    check_measurable(config, bound, examples)
    warnings = oddities(config, source, bound, find_head(config, source, bound))
    say("\n".join(describe(task, bound, examples, encoder, warnings)))
    return FinetuneResult(Path(config.workdir), None, 0, {}, {}, {}, bound.metric)


def _finetune_once(
    config: FinetuneConfig, examples: Examples, before: str | None, hopeless: Hopeless | None = None
) -> FinetuneResult:
    """One run in its folder, which ends without a model where it is `hopeless`. `before`: as in `find_start`."""
    started = time.monotonic()
    workdir = Path(config.workdir)
    task = make_task(config.task)
    with _folder_of(config, examples):
        start = find_start(config, before)
        # That of a run which was never trained may be of other texts.
        own_tokenizer = run_folder.is_begun(workdir) or jax.process_index() != 0
        source = process_0_first(
            lambda: find_source(config, map(task.text, examples.train), workdir, start.name, own_tokenizer),
            "jaxbert_source",
        )
        if jax.process_index() == 0:
            run_folder.save_finetuning(config, workdir, examples.fingerprint, start)
        untrained: Untrained | None = Untrained()
        if config.compare_untrained and source.params is not None:
            untrained = _compare(config, task, examples, source)
        if untrained is None:
            return FinetuneResult(workdir, None, 0, {}, {}, {}, "")
        say(f"starting from {source.name}:")
        run = Training(config, task, examples, source)
        outcome = run.train(hopeless)
        if outcome.result.interrupted or outcome.given_up:
            if not outcome.given_up:
                say(f"stopped at step {outcome.result.step:,}; the same command goes on from there")
            dev = outcome.result.evaluation or {}
            return FinetuneResult(workdir, None, outcome.result.step, dev, {}, untrained.dev, run.bound.metric)
        return finish(run, outcome, untrained, started, of_a_search=hopeless is not None)


def _compare(config: FinetuneConfig, task: Task[Any, Any], examples: Examples, source: Source) -> Untrained | None:
    """Train the same encoder from random parameters; None where a signal ended that."""
    say(f"without the pretraining of {source.name}:")
    workdir = str(Path(config.workdir) / "untrained")
    alone = dataclasses.replace(config, workdir=workdir, name=f"{config.name}, untrained")
    try:
        outcome = Training(alone, task, examples, dataclasses.replace(source, params=None)).train()
    except NonFiniteError as error:
        # It says nothing of the model that was pretrained, which is what is asked for.
        say(f"warning: without pretraining it diverged: {error}")
        return Untrained(diverged=str(error))
    return None if outcome.result.interrupted else Untrained(outcome.best)
