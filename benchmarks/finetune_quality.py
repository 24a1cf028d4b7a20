"""Fine-tuning MiniLM on real data: quality and speed beside transformers on torch, with the same weights, order, recipe and seeds.

    python benchmarks/finetune_quality.py --data FOLDER [--model FOLDER] [--only sst2 wnut17 semeval squad banking77 cluener] [--seeds N]

Both sides start from the same parameters, the new head as transformers draws it (for relations, which transformers has no class for,
each side draws its own), read the same tokens and are scored by the same code; the peer is transformers' class for the task, SDPA
attention, AdamW with linear warm-up and decay, batches padded to their longest sequence. Seconds count from the call to the last
training step: reading, compiling and all; the peer is handed its tokens. Seeds of both sides are trained in turn.
cluener has no peer: it is tagged from a short pretraining on Chinese text, and without.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from embed import default_model
from measure import Measurement, parser, show, versions

from jaxbert.allocator import keep_freed_memory
from jaxbert.command_line import load as load_config
from jaxbert.config import Config, MeshConfig, OptimizerConfig, VocabularyConfig
from jaxbert.data.examples import TrainingBatches, layout_of
from jaxbert.data.features import Feature
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    RelationConfig,
    SpanConfig,
    TaggingConfig,
    TaskConfig,
)
from jaxbert.finetune.examples import read_all, training_features
from jaxbert.finetune.head import find_head
from jaxbert.finetune.run import finetune
from jaxbert.finetune.source import find_source
from jaxbert.model.classifiers import SpanOutput
from jaxbert.run import pretrain
from jaxbert.tasks.registry import make_task
from jaxbert.tasks.task import BoundTask, Encoder

CONFIGS = Path(__file__).parent.parent / "configs"
_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A data set, and how it is learnt."""

    title: str
    measure: str
    task: TaskConfig
    data: ExamplesConfig
    epochs: float
    learning_rate: float = 5e-5
    seeds: int = 1
    faster: float | None = None
    """How many times the peer's examples per second are promised."""


def recipes(folder: Path) -> dict[str, Recipe]:
    """Everything but cluener; `folder` has the data sets' own folders."""

    def files(name: str, train: str, dev: str, **options: Any) -> ExamplesConfig:
        return ExamplesConfig(train=(str(folder / name / train),), dev=(str(folder / name / dev),), **options)

    return {
        "sst2": Recipe(
            "SST-2, 8,000 rows, 2 epochs",
            "accuracy",
            ClassificationConfig(text="sentence"),
            files("sst2", "train.tsv", "dev.tsv", max_length=64, max_train_examples=8000),
            epochs=2,
            seeds=3,
            faster=1.5,
        ),
        "wnut17": Recipe(
            "WNUT-17, 3 epochs, test",
            "f1",
            TaggingConfig(),
            files("wnut17", "wnut17train.conll", "emerging.test.annotated"),
            epochs=3,
            seeds=3,
        ),
        "semeval": Recipe(
            "SemEval-2010 Task 8, 3 epochs",
            "macro_f1",
            RelationConfig(),
            files("semeval2010-task8", "train.tsv", "test.tsv", columns=("label", "text")),
            epochs=3,
        ),
        "squad": Recipe(
            "SQuAD dev, 38 / 10 articles, 2 epochs",
            "f1",
            SpanConfig(stride=64),
            files("squad", "train.json", "dev.json", max_length=256),
            epochs=2,
        ),
        "banking77": Recipe(
            "banking77, 5 epochs",
            "accuracy",
            ClassificationConfig(label="category"),
            files("banking77", "train.csv", "test.csv"),
            epochs=5,
            learning_rate=1e-4,
        ),
    }


def configuration(recipe: Recipe, model: Path, workdir: Path, seed: int) -> FinetuneConfig:
    """The run of ours; there is one evaluation, at the end, so that the last step is what counts on both sides."""
    return FinetuneConfig(
        name=recipe.title,
        workdir=str(workdir),
        seed=seed,
        model=str(model),
        task=recipe.task,
        data=recipe.data,
        optimizer=OptimizerConfig(
            peak_learning_rate=recipe.learning_rate, warmup_share=0.1, epsilon=1e-8, weight_decay=0.01
        ),
        train=FinetuneTrainConfig(epochs=recipe.epochs, batch_size=32, evaluations=1 / recipe.epochs),
    )


def ours(config: FinetuneConfig) -> tuple[dict[str, float], float]:
    """Measures, and seconds from the call to the last step."""
    started = time.time()
    result = finetune(config)
    lines = [json.loads(line) for line in (Path(config.workdir) / "metrics.jsonl").read_text().splitlines()]
    seconds = max(line["time"] for line in lines if line["split"] == "train") - started
    return dict(result.dev), seconds


class Peer:
    """The same run on torch. `folder`: where what it starts from is written to, for ours to start from too."""

    def __init__(self, config: FinetuneConfig, folder: Path):
        self.config = config
        task = make_task(config.task)
        self.examples = read_all(task, config.data)
        source = find_source(config, (), Path(config.workdir))
        encoder = Encoder(source.config, source.family, source.tokenizer, config.data.max_length)
        self.bound: BoundTask[Any, Any] = task.bind(self.examples.labels, self.examples.train, encoder)
        self.features = training_features(self.bound, self.examples.train)
        self.batches = TrainingBatches(self.features, config.train.batch_size, layout_of(self.features, 1), config.seed)
        self.start: str = str(config.model)
        if self.bound.architecture in _AUTO:
            torch.manual_seed(config.seed)
            peer_model(self.bound, self.start).save_pretrained(folder)
            for file in source.tokenizer_folder.iterdir():
                if file.name in _OF_TOKENIZERS:
                    shutil.copy(file, folder)
            self.start = str(folder)

    def run(self) -> tuple[dict[str, float], float]:
        """Measures, and seconds from loading the weights to the last step."""
        started = time.time()
        torch.manual_seed(self.config.seed)
        model = peer_model(self.bound, self.start)
        steps = round(self.config.train.epochs * self.batches.num_batches)
        optimizer, schedule = self._optimizer(model, steps)
        model.train()
        for step in range(steps):
            features = [self.features[i] for i in self.batches.indices(step).tolist()]
            loss = model(**inputs_of(features), **targets_of(self.bound, features)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.optimizer.max_grad_norm)
            optimizer.step()
            schedule.step()
        seconds = time.time() - started
        return self._measured(model), seconds

    def _optimizer(self, model: torch.nn.Module, steps: int) -> tuple[Any, Any]:
        c = self.config.optimizer
        kept = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
        same = {id(p) for p in kept}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in same], "weight_decay": c.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=c.peak_learning_rate, betas=(c.beta1, c.beta2), eps=c.epsilon)
        warmup = c.num_warmup_steps(steps)
        return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)

    def _measured(self, model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        examples = self.examples.dev
        features = self.bound.features(examples)
        outputs: list[dict[str, np.ndarray]] = [{} for _ in features]
        order = sorted(range(len(features)), key=lambda i: len(features[i].input_ids))
        with torch.no_grad():
            for first in range(0, len(order), _AT_ONCE):
                some = order[first : first + _AT_ONCE]
                found = model(
                    **inputs_of([features[i] for i in some]), **places_of(self.bound, [features[i] for i in some])
                )
                for i, one in zip(some, outputs_of(self.bound, found, [features[i] for i in some]), strict=True):
                    outputs[i] = one
        return self.bound.score(examples, self.bound.decode(examples, features, outputs))


class RelationModel(torch.nn.Module):
    """transformers' encoder with our head: both entities' first tokens, dropout, a dense layer."""

    def __init__(self, path: str, labels: int):
        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(path)
        config = self.encoder.config
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.dense = torch.nn.Linear(2 * config.hidden_size, labels)
        torch.nn.init.normal_(self.dense.weight, std=config.initializer_range)
        torch.nn.init.zeros_(self.dense.bias)

    def forward(self, entities: torch.Tensor, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> Any:
        hidden = self.encoder(**inputs).last_hidden_state
        both = hidden[torch.arange(len(hidden))[:, None], entities].flatten(1)
        logits = self.dense(self.dropout(both))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)  # pyright: ignore


def peer_model(bound: BoundTask[Any, Any], path: str) -> Any:
    """transformers' class for a task, with a new head."""
    if bound.architecture == "ForRelationClassification":
        return RelationModel(path, len(bound.labels))
    names = dict(enumerate(bound.labels))
    options = {"id2label": names, "label2id": {label: n for n, label in names.items()}}
    return getattr(transformers, f"Auto{_AUTO[bound.architecture]}").from_pretrained(path, **options)


_AUTO = {
    "ForSequenceClassification": "ModelForSequenceClassification",
    "ForTokenClassification": "ModelForTokenClassification",
    "ForQuestionAnswering": "ModelForQuestionAnswering",
}

_OF_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def inputs_of(features: Sequence[Feature]) -> dict[str, torch.Tensor]:
    """What every model of transformers reads."""
    return {
        "input_ids": _padded([one.input_ids for one in features], 0),
        "token_type_ids": _padded([one.token_type_ids for one in features], 0),
        "attention_mask": _padded([[1] * len(one.input_ids) for one in features], 0),
    }


def places_of(bound: BoundTask[Any, Any], features: Sequence[Feature]) -> dict[str, torch.Tensor]:
    """What a model of relations reads beside them."""
    if bound.architecture != "ForRelationClassification":
        return {}
    return {"entities": torch.tensor([one.positions["entities"] for one in features])}


def targets_of(bound: BoundTask[Any, Any], features: Sequence[Feature]) -> dict[str, torch.Tensor]:
    """What its loss compares with; -100 is no target."""
    if bound.architecture == "ForTokenClassification":
        tags = [
            [tag if weight else -100 for tag, weight in zip(one.tokens["tag"], one.tokens["tag_weight"], strict=True)]
            for one in features
        ]
        return {"labels": _padded(tags, -100)}  # pyright: ignore[reportArgumentType]
    if bound.architecture == "ForQuestionAnswering":
        spans = torch.tensor([one.positions["span"] for one in features])
        return {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}
    return {"labels": torch.tensor([one.values["label"] for one in features]), **places_of(bound, features)}


def outputs_of(bound: BoundTask[Any, Any], found: Any, features: Sequence[Feature]) -> Iterator[dict[str, np.ndarray]]:
    """torch's logits as our `decode` takes them."""
    if bound.architecture == "ForQuestionAnswering":
        readable = bound.readable(SpanOutput(jnp.asarray(found.start_logits), jnp.asarray(found.end_logits)))
    elif bound.architecture == "ForTokenClassification":
        readable = bound.readable(jnp.asarray(found.logits))
    else:
        readable = bound.readable(jnp.asarray(found.logits)[:, None])
    for n, one in enumerate(features):
        of_sequence = {name: np.asarray(values)[n, 0] for name, values in readable.sequences.items()}
        yield of_sequence | {
            name: np.asarray(values)[n, : len(one.input_ids)] for name, values in readable.tokens.items()
        }


def compare(recipe: Recipe, model: Path, folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Both sides, seed by seed."""
    found: dict[str, list[tuple[dict[str, float], float]]] = {"ours": [], "peer": []}
    examples = 0
    for seed in range(recipe.seeds):
        config = configuration(recipe, model, folder / f"seed-{seed}", seed)
        peer = Peer(config, folder / f"start-{seed}")
        config = dataclasses.replace(config, model=peer.start)
        source = find_source(config, (), Path(config.workdir))
        if peer.bound.architecture in _AUTO and not find_head(config, source, peer.bound).params:
            raise SystemExit(f"{recipe.title}: ours would not start with the peer's head")
        sides: dict[str, Callable[[], tuple[dict[str, float], float]]] = {
            "ours": lambda c=config: ours(c),
            "peer": peer.run,
        }
        # Each goes first in turn.
        for name in ("ours", "peer") if seed % 2 == 0 else ("peer", "ours"):
            found[name].append(sides[name]())
            measures, seconds = found[name][-1]
            print(
                f"{recipe.title}, seed {seed}, {name}: {recipe.measure} {measures[recipe.measure]:.4f} in {seconds:.0f} s"
            )
        examples = len(peer.examples.train)
    rates = {
        name: statistics.median(examples * recipe.epochs / seconds for _, seconds in runs)
        for name, runs in found.items()
    }
    scores = {name: [measures[recipe.measure] for measures, _ in runs] for name, runs in found.items()}
    means = {name: statistics.mean(values) for name, values in scores.items()}
    seeds = f", mean of {recipe.seeds} seeds" if recipe.seeds > 1 else ""
    lines = [
        Measurement(f"{recipe.title}: {recipe.measure}{seeds}", means["ours"], means["peer"], ""),
        Measurement(f"{recipe.title}: speed", rates["ours"], rates["peer"], "examples/s", recipe.faster),
    ]
    return lines, {
        "title": recipe.title,
        "measure": recipe.measure,
        "scores": scores,
        "standard_deviations": {n: statistics.stdev(v) if len(v) > 1 else None for n, v in scores.items()},
        "measures": {name: [measures for measures, _ in runs] for name, runs in found.items()},
        "seconds": {name: [seconds for _, seconds in runs] for name, runs in found.items()},
        "examples": examples,
    }


def split_squad(source: Path, folder: Path) -> None:
    """The first 38 articles of SQuAD's dev set to train on, the last 10 to measure on."""
    content = json.loads(source.read_text(encoding="utf8"))
    for name, articles in (("train", content["data"][:38]), ("dev", content["data"][38:])):
        (folder / f"{name}.json").write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf8")


def chinese(data: Path, folder: Path, quick: bool) -> tuple[list[Measurement], dict[str, Any]]:
    """CLUENER from a short pretraining on reviews and the training text with BERT's Chinese vocabulary, and from new parameters."""
    labelled = data / "labelled" / "cluener2020"
    texts = folder / "train.txt"
    rows = [json.loads(line)["text"] for line in (labelled / "train.jsonl").read_text(encoding="utf8").splitlines()]
    texts.write_text("\n".join(rows) + "\n", encoding="utf8")
    small = load_config(CONFIGS / "tiny.py", Config)
    config = dataclasses.replace(
        small,
        name="chinese",
        workdir=str(folder / "pretrained"),
        data=dataclasses.replace(
            small.data,
            text=(*map(str, sorted((data / "text" / "zh-reviews").glob("*"))), str(texts)),
            # A review a line, as the examples are.
            document_split="line",
            vocabulary=VocabularyConfig(path=str(data / "vocab" / "bert-base-chinese-vocab.txt")),
        ),
        train=dataclasses.replace(small.train, num_steps=50) if quick else small.train,
    )
    pretrain(config)
    result = finetune(
        FinetuneConfig(
            name="cluener",
            workdir=str(folder / "tagged"),
            model=config.workdir,
            compare_untrained=True,
            task=TaggingConfig(spans="label", inclusive_ends=True),
            data=ExamplesConfig(train=(str(labelled / "train.jsonl"),), dev=(str(labelled / "dev.jsonl"),)),
            optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_share=0.1, epsilon=1e-8),
            train=FinetuneTrainConfig(epochs=0.1 if quick else 3),
            mesh=MeshConfig(cpu_devices=2),
        )
    )
    line = Measurement("CLUENER: f1, with and without (peer) pretraining", result.dev["f1"], result.untrained["f1"], "")
    return [line], {"title": "CLUENER", "pretrained": dict(result.dev), "without": dict(result.untrained)}


def run(options: argparse.Namespace, folder: Path) -> None:
    """All that is asked for; the JSON is written after each data set, and keeps what it has of others."""
    labelled = options.data / "labelled"
    (folder / "data").mkdir()
    for name in ("sst2", "wnut17", "semeval2010-task8", "banking77"):
        (folder / "data" / name).symlink_to((labelled / name).absolute())
    (folder / "data" / "squad").mkdir()
    split_squad(labelled / "squad-v1.1" / "dev-v1.1.json", folder / "data" / "squad")
    known = recipes(folder / "data")
    measurements = []
    for name in options.only or [*known, "cluener"]:
        (folder / name).mkdir()
        if name == "cluener":
            lines, detail = chinese(options.data, folder / name, options.quick)
        else:
            recipe = known[name]
            recipe = dataclasses.replace(recipe, seeds=options.seeds or recipe.seeds)
            if options.quick:
                few = dataclasses.replace(recipe.data, max_train_examples=64)
                recipe = dataclasses.replace(recipe, data=few, seeds=2, epochs=1)
            lines, detail = compare(recipe, options.model or default_model(), folder / name)
        measurements += lines
        if options.json:
            before = json.loads(options.json.read_text(encoding="utf8")) if options.json.exists() else {}
            content = before | {name: {"versions": versions()} | detail}
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    show(measurements, None)


def main() -> None:
    """Measure and show."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder with labelled/ and text/")
    options.add_argument("--model", type=Path, help="folder of the encoder to start from")
    options.add_argument("--only", nargs="+", choices=[*recipes(Path()), "cluener"], help="some of the data sets")
    options.add_argument("--seeds", type=int, help="so many seeds, not as many as the recipe says")
    chosen = options.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # As finetune.py does; it serves both sides.
    keep_freed_memory()
    # As XLA does, in every thread that comes from here on. The moments of words that do not come again become so small that CPUs are
    # slow with them.
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        run(chosen, Path(folder))


if __name__ == "__main__":
    main()
