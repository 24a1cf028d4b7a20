"""What a finished fine-tuning run leaves: the model for others, and the report."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxbert.finetune import lora, report
from jaxbert.finetune.result import FinetuneResult, Untrained
from jaxbert.finetune.training import Outcome, Training
from jaxbert.model.encoder import compute_dtype
from jaxbert.tasks.task import LENGTH, OF_A_TASK, TASK
from jaxbert.text.vocabulary import Vocabulary
from jaxbert.train.processes import barrier, say
from jaxbert.weights.configuration import CLASS_PREFIX
from jaxbert.weights.model_card import model_card


def finish(
    run: Training, outcome: Outcome, untrained: Untrained, started: float, of_a_search: bool = False
) -> FinetuneResult:
    """Export the best checkpoint, evaluate it once more on everything that is held out, and report.

    of_a_search: the search says which model stays.
    """
    workdir = Path(run.config.workdir)
    dev = run.evaluate(outcome.state, run.dev)
    test = run.evaluate(outcome.state, run.test) if run.test.features else None
    assert dev is not None
    model = _export(run, outcome, dev[0], workdir / "model")
    diverged = [] if untrained.diverged is None else [f"without pretraining it diverged: {untrained.diverged}"]
    if jax.process_index() == 0:
        splits = {"dev": (run.dev.examples, *dev)} | ({"test": (run.test.examples, *test)} if test else {})
        report.write(
            workdir,
            run.config.name,
            run.bound,
            splits,
            untrained=untrained.dev,
            facts=_facts(run, outcome, time.monotonic() - started),
            warnings=(*run.examples.warnings, *run.warnings, *diverged),
        )
    if run.config.lora.export == "separate":
        kind = "adapters for peft"
    elif run.bound.architecture == "ForRelationClassification":
        kind = "model (to transformers, which has no such class, an encoder)"
    else:
        kind = "model for transformers"
    if not of_a_search:
        say(f"{kind}: {model}")
    say(f"report: {workdir / 'report.md'}   curves: {workdir / 'curves.png'}   in {time.monotonic() - started:.0f} s")
    # No process names a folder that is not there yet.
    barrier("jaxbert_written")
    measures = dev[0], test[0] if test else {}, untrained.dev
    return FinetuneResult(
        workdir, model, outcome.step, *measures, run.bound.metric, untrained_diverged=untrained.diverged
    )


def _facts(run: Training, outcome: Outcome, seconds: float) -> dict[str, str]:
    sizes = {"train": run.examples.train, "dev": run.examples.dev, "test": run.examples.test}
    return {
        "started from": run.source.name + (", with its head" if run.head.params else ""),
        "parameters": f"{run.session.num_parameters:,}",
        "examples": ", ".join(f"{len(split):,} {name}" for name, split in sizes.items() if split),
        "epochs": f"{run.config.train.epochs:g}",
        "steps": f"{outcome.result.step:,}, the best checkpoint is of step {outcome.step:,}",
        "batch": f"{run.config.train.batch_size} sequences in rows of {run.layout.row_length} tokens",
        "peak learning rate": f"{run.config.optimizer.peak_learning_rate:g}",
        "seed": f"{run.config.seed}",
        "computed in": f"{compute_dtype(run.model_config).name}, attention {run.model_config.attention_backend}",
        **({"low-rank adapters": _adapters(run)} if run.adapted else {}),
        "time of this start": f"{seconds:.0f} s",
    }


def _adapters(run: Training) -> str:
    settings = run.config.lora
    return (
        f"rank {settings.rank}, alpha {settings.alpha:g}, on {', '.join(settings.targets)}; "
        f"{run.session.num_trained:,} parameters trained"
    )


def _export(run: Training, outcome: Outcome, metrics: Mapping[str, float], folder: Path) -> Path:
    params = multihost_utils.process_allgather(outcome.state.params, tiled=True)
    if jax.process_index() != 0:
        return folder
    architecture = CLASS_PREFIX[run.source.family] + run.bound.architecture
    card = model_card(
        run.config.name,
        architecture,
        # A path is nobody's business.
        data=f"Fine-tuned from `{Path(run.source.name).name}` on "
        + ", ".join(f"`{Path(source).name}`" for source in run.config.data.train)
        + ".",
        steps=outcome.step,
        settings={
            "batch": run.config.train.batch_size,
            "peak learning rate": run.config.optimizer.peak_learning_rate,
            "epochs": run.config.train.epochs,
            "seed": run.config.seed,
            **({"low-rank adapters": _adapters(run)} if run.adapted else {}),
        },
        metrics={f"dev {name}": value for name, value in metrics.items() if math.isfinite(value)},
        embedder=run.bound.embedder is not None,
        adapter=run.config.lora.export == "separate",
    )
    # A run's encoder and a new one come without a config.json that says it, and transformers would take 0.
    extra = {"pad_token_id": Vocabulary.of(run.source.tokenizer).pad_id}
    extra |= {key: value for key, value in run.source.extra.items() if key not in OF_A_TASK}
    # What it was trained and measured with, for predictions to be those of the report.
    extra |= {LENGTH: min(run.config.data.max_length, run.model_config.max_position_embeddings)}
    keep = {
        "config": run.model_config,
        "tokenizer": run.source.tokenizer_folder,
        "architecture": architecture,
        "card": card,
        "extra": extra | run.bound.configuration() | {TASK: dataclasses.asdict(run.config.task)},
        "labels": len(run.bound.labels),
        "unused_positions": run.source.unused_positions,
        "overwrite": True,
    }
    return lora.save(folder, run.config, run.adapted, run.source, params, keep, run.bound.embedder)
