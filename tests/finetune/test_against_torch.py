"""Fine-tuning beside a loop of a few lines on torch: from the same parameters, in the same order, to the same losses and parameters."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_runs import LABELS, reviews, write_table

from jaxbert.config import OptimizerConfig, TrackingConfig, VocabularyConfig
from jaxbert.data.features import Feature
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    SpanConfig,
    TaggingConfig,
    TaskConfig,
)
from jaxbert.finetune.examples import read_all, training_features
from jaxbert.finetune.run import finetune
from jaxbert.finetune.source import find_source
from jaxbert.finetune.training import Training
from jaxbert.tasks.registry import make_task
from jaxbert.text.vocabulary import Vocabulary, save_tokenizer, train_tokenizer
from jaxbert.train.optimizer import make_schedule
from jaxbert.weights.tokenizer import open_tokenizer

TEXTS = [text for text, _ in reviews(60, 0)]
CLASSES = {
    "classification": transformers.BertForSequenceClassification,
    "tagging": transformers.BertForTokenClassification,
    "span": transformers.BertForQuestionAnswering,
}


def write_examples(kind: str, folder: pathlib.Path) -> tuple[TaskConfig, pathlib.Path, tuple[str, ...]]:
    """What is to be learnt, its file, and its labels in an order that is not ours; texts have 6 words and more, in order to be of several lengths."""
    words = [[*text.split(), *text.split()[: n % 5]] for n, text in enumerate(TEXTS)]
    if kind == "classification":
        write_table(
            folder / "a.tsv", [(" ".join(w), label) for w, (_, label) in zip(words, reviews(60, 0), strict=True)]
        )
        return ClassificationConfig(), folder / "a.tsv", (*LABELS[1:], LABELS[0])
    if kind == "tagging":
        blocks = ["\n".join(f"{word}\t{'B-N' if word.isdigit() else 'O'}" for word in w) for w in words]
        (folder / "a.conll").write_text("\n\n".join(blocks) + "\n", encoding="utf8")
        return TaggingConfig(), folder / "a.conll", ("I-N", "O", "B-N")
    rows = [
        {
            "context": " ".join(w),
            "qas": [
                {
                    "id": str(n),
                    "question": f"which {w[1]} ?",
                    "answers": [{"text": w[2], "answer_start": len(f"{w[0]} {w[1]} ")}],
                }
            ],
        }
        for n, w in enumerate(words)
    ]
    content = {"version": "1.1", "data": [{"title": "made up", "paragraphs": rows}]}
    (folder / "a.json").write_text(json.dumps(content), encoding="utf8")
    return SpanConfig(stride=8, max_question_length=16), folder / "a.json", ("LABEL_0", "LABEL_1")


def write_model(kind: str, labels: tuple[str, ...], folder: pathlib.Path) -> pathlib.Path:
    """A model of transformers' with a head, all parameters as they are drawn there, and its tokenizer."""
    torch.manual_seed(0)
    save_tokenizer(train_tokenizer(TEXTS, VocabularyConfig(size=200)), folder, 64)
    config = transformers.BertConfig(
        vocab_size=Vocabulary.of(open_tokenizer(folder)).size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )
    CLASSES[kind](config).save_pretrained(folder)
    return folder


def padded(rows: list[Any], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def batch_of(kind: str, features: list[Feature], order: list[int]) -> dict[str, torch.Tensor]:
    """A batch for transformers' models. `order`: torch's number of each of our labels."""
    arrays = {
        "input_ids": padded([one.input_ids for one in features], 0),
        "token_type_ids": padded([one.token_type_ids for one in features], 0),
        "attention_mask": padded([[1] * len(one.input_ids) for one in features], 0),
    }
    if kind == "span":
        spans = torch.tensor([one.positions["span"] for one in features])
        return {**arrays, "start_positions": spans[:, 0], "end_positions": spans[:, 1]}
    if kind == "classification":
        return {**arrays, "labels": torch.tensor([order[int(one.values["label"])] for one in features])}
    tags = [
        [
            order[tag] if weight else -100
            for tag, weight in zip(one.tokens["tag"], one.tokens["tag_weight"], strict=True)
        ]
        for one in features
    ]
    return {**arrays, "labels": padded(tags, -100)}


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if "labels" in batch:
        return model(**batch).loss
    # transformers takes padding for a place where an answer may be: there the loss changes with what is in the batch.
    starts, ends = batch.pop("start_positions"), batch.pop("end_positions")
    found, padding = model(**batch), batch["attention_mask"] == 0
    sides = ((found.start_logits, starts), (found.end_logits, ends))
    return sum(
        torch.nn.functional.cross_entropy(logits.masked_fill(padding, -1e9), targets) / 2 for logits, targets in sides
    )  # pyright: ignore[reportReturnType]


def on_torch(kind: str, config: FinetuneConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps and the parameters after the last one."""
    task = make_task(config.task)
    examples = read_all(task, config.data)
    run = Training(config, task, examples, find_source(config, (), pathlib.Path(config.workdir)))
    features = training_features(run.bound, examples.train)
    model = CLASSES[kind].from_pretrained(str(config.model)).train()
    order = [model.config.label2id[label] for label in run.bound.labels]
    plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for p in model.parameters() if all(p is not other for other in plain)]
    settings, steps = config.optimizer, round(config.train.epochs * run.batches.num_batches)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    schedule, losses = make_schedule(settings, steps), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        loss = loss_of(model, batch_of(kind, [features[i] for i in run.batches.indices(step).tolist()], order))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("kind", list(CLASSES))
def test_losses_and_parameters_are_torchs(kind: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    task, path, labels = write_examples(kind, tmp_path)
    model = write_model(kind, labels, tmp_path / "model")
    config = FinetuneConfig(
        name=kind,
        workdir=str(tmp_path / "run"),
        model=str(model),
        task=task,
        data=ExamplesConfig(train=(str(path),), dev=(str(path),), max_length=64),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_share=0.1, epsilon=1e-6, weight_decay=0.1),
        train=FinetuneTrainConfig(epochs=6, batch_size=16, evaluations=1 / 6, log_every=1),
        tracking=TrackingConfig(tensorboard=False),
    )
    result = finetune(config)
    assert f"the head of {model} is kept" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in lines if line["split"] == "train"]
    losses, theirs = on_torch(kind, config)
    assert len(losses) == 24
    np.testing.assert_allclose(ours, losses, rtol=1e-4)
    # Otherwise there is little to compare.
    assert losses[-1] < 0.9 * losses[0]
    exported = CLASSES[kind].from_pretrained(result.model)
    order = [labels.index(exported.config.id2label[n]) for n in range(len(labels))]
    for name, array in exported.state_dict().items():
        expected = theirs[name][order] if name.startswith("classifier.") else theirs[name]
        # Adam makes steps of the rounding errors that are the gradient of a span head's bias.
        atol = 1e-3 if name == "qa_outputs.bias" else 1e-4
        np.testing.assert_allclose(array, expected, atol=atol, rtol=1e-3, err_msg=name)
