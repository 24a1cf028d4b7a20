"""A fine-tuning run from labelled files to a report: what `finetune.py` and a notebook call.

Nothing is decided here that a room below decides; this file is the order in which they are asked.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from jaxbert import run_folder
from jaxbert.finetune.check import describe
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.examples import Examples, Tables, over_tables, read_all
from jaxbert.finetune.finish import finish
from jaxbert.finetune.head import find_head
from jaxbert.finetune.result import FinetuneResult
from jaxbert.finetune.search import Hopeless, load_suggest, search
from jaxbert.finetune.seeds import finetune_seeds
from jaxbert.finetune.source import Source, find_source, start_of
from jaxbert.finetune.training import Training, encoder_of, oddities
from jaxbert.finetune.validation import validate
from jaxbert.tasks.registry import make_task
from jaxbert.train.processes import barrier, initialize, say


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
    for warning in () if config.check_data else examples.warnings:
        say(f"warning: {warning}")
    if config.check_data or (config.seeds == 1 and config.search is None):
        return _finetune_once(config, examples, run_folder.started_from(workdir))
    suggest = None if config.search is None else load_suggest(config.search)
    with _folder_of(config, examples):
        # What the newest run is may change between two of them.
        before = start_of(config, run_folder.started_from(workdir))
        if jax.process_index() == 0:
            run_folder.save_finetuning(config, workdir, examples.fingerprint, before)
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


def _finetune_once(
    config: FinetuneConfig, examples: Examples, before: str | None, hopeless: Hopeless | None = None
) -> FinetuneResult:
    """One run in its folder, which ends without a model where it is `hopeless`. `before`: as in `find_source`."""
    started = time.monotonic()
    workdir = Path(config.workdir)
    task = make_task(config.task)
    with _folder_of(config, examples):
        source = _on_process_0_first(lambda: find_source(config, map(task.text, examples.train), workdir, before))
        if config.check_data:
            encoder = encoder_of(config, source)
            bound = task.bind(examples.labels, examples.train, encoder)
            warnings = oddities(config, source, bound, find_head(config, source, bound))
            say("\n".join(describe(task, bound, examples, encoder, warnings)))
            return FinetuneResult(workdir, None, 0, {}, {}, {}, bound.metric)
        if jax.process_index() == 0:
            run_folder.save_finetuning(config, workdir, examples.fingerprint, source.name)
        untrained: Mapping[str, float] = {}
        if config.compare_untrained and source.params is not None:
            say(f"without the pretraining of {source.name}:")
            alone = dataclasses.replace(config, workdir=str(workdir / "untrained"), name=f"{config.name}, untrained")
            outcome = Training(alone, task, examples, dataclasses.replace(source, params=None)).train()
            if outcome.result.interrupted:
                return FinetuneResult(workdir, None, outcome.result.step, {}, {}, {}, "")
            untrained = outcome.best
        say(f"starting from {source.name}:")
        run = Training(config, task, examples, source)
        outcome = run.train(hopeless)
        if outcome.result.interrupted or outcome.given_up:
            if not outcome.given_up:
                say(f"stopped at step {outcome.result.step:,}; the same command goes on from there")
            dev = outcome.result.evaluation or {}
            return FinetuneResult(workdir, None, outcome.result.step, dev, {}, untrained, run.bound.metric)
        return finish(run, outcome, untrained, started)


def _on_process_0_first(make: Callable[[], Source]) -> Source:
    if jax.process_index() == 0:
        found = make()
        barrier("jaxbert_source")
        return found
    barrier("jaxbert_source")
    return make()
