"""The fine-tuning configuration: what contradicts itself, the command line, config.json, and what makes another run."""

import dataclasses
import json
import os
import pathlib

import pytest

from jaxbert import run_folder, validation
from jaxbert.command_line import load, parse, save
from jaxbert.config import Config, ConfigError, MeshConfig, OptimizerConfig
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    LoraConfig,
    SpanConfig,
    TaggingConfig,
)
from jaxbert.finetune.validation import validate

BASE = FinetuneConfig()
OTHER = FinetuneConfig(
    task=TaggingConfig(scheme="bioes", labels=("PER", "LOC")), data=ExamplesConfig(columns=("a", "b")), dropout=0.2
)


def change(path: str, value) -> FinetuneConfig:
    """The default with one field of it changed: "train.epochs"."""
    room, _, name = path.rpartition(".")
    if not room:
        return dataclasses.replace(BASE, **{name: value})
    return dataclasses.replace(BASE, **{room: dataclasses.replace(getattr(BASE, room), **{name: value})})


def test_defaults_and_every_shipped_configuration_are_valid(repository: pathlib.Path):
    validate(BASE, 8)
    files = sorted((repository / "configs" / "finetune").glob("*.py"))
    assert files
    for file in files:
        validate(load(file, FinetuneConfig), 8)


def test_a_tracker_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    wanted = change("tracking.wandb", True)
    monkeypatch.setattr(validation, "installed", lambda package: True)
    validate(wanted, 8)
    monkeypatch.setattr(validation, "installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"^tracking.wandb is on[^\n]*jaxbert\[wandb\][^\n]*$"):
        validate(wanted, 8)


WRONG = [
    ("data.dev_share", 1.5, "data.dev_share is 1.5: it is a share"),
    ("data.dev_share", 0.0, "data.dev_share is 0 and data.dev is empty"),
    ("data.train", (), "data.train is empty"),
    ("data.columns", ("a", "a"), "data.columns names a column twice"),
    ("data.max_length", 7, "a sequence needs at least 8 tokens"),
    ("data.max_train_examples", 0, "data.max_train_examples is 0"),
    ("dropout", -0.1, "dropout is -0.1"),
    ("dtype", "float16", "dtype is 'float16': choose one of auto, float32, bfloat16"),
    (
        "attention_backend",
        "tpu_flash",
        "attention_backend is 'tpu_flash': choose one of explicit, xla, gpu_flash, cudnn",
    ),
    ("seed", -1, "seed is -1"),
    ("seeds", 0, "seeds is 0: it must be a number above 0"),
    ("workdir", "", "workdir is empty"),
    ("optimizer.warmup_share", 1.1, "optimizer.warmup_share is 1.1"),
    ("optimizer.layer_decay", float("nan"), "optimizer.layer_decay is nan"),
    ("optimizer.peak_learning_rate", 0.0, "optimizer.peak_learning_rate is 0.0"),
    ("optimizer.freeze_layers", -1, "optimizer.freeze_layers is -1"),
    ("optimizer.beta2", 1.0, "optimizer.beta2 is 1.0"),
    ("train.epochs", 0.0, "train.epochs is 0.0"),
    ("train.epochs", float("inf"), "train.epochs is inf"),
    ("train.reinit_layers", -1, "train.reinit_layers is -1"),
    ("train.evaluations", 0.0, "train.evaluations is 0.0"),
    ("task", ClassificationConfig(labels=("a", "a")), "task.labels names a label twice"),
    ("task", ClassificationConfig(label_smoothing=1.0), "task.label_smoothing is 1.0"),
    ("task", ClassificationConfig(threshold=0.0), "task.threshold is 0.0"),
    ("task", ClassificationConfig(target="regression", class_weights="balanced"), 'task.class_weights "balanced"'),
    ("task", ClassificationConfig(target="regression", label_smoothing=0.1), "task.label_smoothing 0.1 is for classes"),
    ("task", ClassificationConfig(target="regression", threshold=0.4), 'task.threshold 0.4 .* and it is "regression"'),
    ("task", ClassificationConfig(threshold=0.4), 'task.threshold 0.4 is for a target of several classes, .* "class"'),
    ("task", ClassificationConfig(positive="a", labels=("a", "b", "c")), "task.positive 'a' .* with 3 classes"),
    ("task", ClassificationConfig(positive="a", target="multi-label"), "task.positive 'a' .* target \"multi-label\""),
    ("lora", LoraConfig(alpha=8.0), "lora.alpha is 8.0 and there are no adapters: set lora.rank"),
    ("lora", LoraConfig(targets=("key",)), "lora.targets are key and there are no adapters: set lora.rank"),
    ("task", TaggingConfig(word_column=1, tag_column=1), "task.word_column and task.tag_column are both 1"),
    ("task", SpanConfig(n_best=0), "task.n_best is 0"),
    ("task", TaggingConfig(tags="iob1"), "task.tags is 'iob1': choose one of iob2, bioes"),  # pyright: ignore
    ("task", TaggingConfig(scheme="xx"), "task.scheme is 'xx': choose one of iob2, iob1, bioes, words"),  # pyright: ignore
    ("task", TaggingConfig(scheme="words", tags="bioes"), 'task.tags "bioes" is for entities'),
    ("task", SpanConfig(stride=100), "leave no room in data.max_length"),
    ("mesh", MeshConfig(fsdp=3), r"does not make the number of devices \(8\)"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_each_contradiction_is_named(path: str, value, message: str):
    with pytest.raises(ConfigError, match=message):
        validate(change(path, value), 8)


def test_attention_without_dropout_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r'^attention_backend "xla" has no dropout: set dropout \(0.2\) to 0'):
        validate(dataclasses.replace(BASE, attention_backend="xla", dropout=0.2))
    validate(dataclasses.replace(BASE, attention_backend="xla"))
    with pytest.raises(ConfigError, match=r'^attention_backend "cudnn" has no float32: set dtype to "bfloat16"'):
        validate(dataclasses.replace(BASE, attention_backend="cudnn", dtype="float32"))


def test_all_contradictions_are_named_at_once():
    wrong = dataclasses.replace(
        BASE,
        seed=-1,
        task=ClassificationConfig(labels=("a", "a")),
        data=ExamplesConfig(dev_share=2.0),
        optimizer=OptimizerConfig(freeze_layers=-2),
        train=FinetuneTrainConfig(batch_size=0),
        mesh=MeshConfig(tensor=5),
    )
    with pytest.raises(ConfigError) as caught:
        validate(wrong, 8)
    lines = str(caught.value).splitlines()
    fields = ("data.dev_share", "train.batch_size", "optimizer.freeze_layers", "seed", "task.labels", "mesh.data")
    assert [next(line for line in lines if line.startswith(field)) for field in fields]
    assert len(lines) == 6


def read(*arguments: str) -> FinetuneConfig:
    return parse(arguments, FinetuneConfig, "Fine-tune BERT.")


def test_the_command_line_sets_fields_of_the_task(repository: pathlib.Path):
    assert read() == BASE
    config = read("--task.text", "sentence", "--task.text-pair", "other", "--task.labels", "b", "a", "--dropout", "0.1")
    assert config.task == ClassificationConfig(text="sentence", text_pair="other", labels=("b", "a"))
    assert config.dropout == 0.1
    file = str(repository / "configs/finetune/classification.py")
    config = read("--config", file, "--data.dev", "x.tsv", "y.tsv", "--optimizer.freeze-layers", "3")
    assert config.name == "classification"
    assert (config.data.dev, config.optimizer.freeze_layers) == (("x.tsv", "y.tsv"), 3)


@pytest.mark.parametrize("config", [BASE, OTHER, dataclasses.replace(BASE, task=SpanConfig(stride=9))])
def test_json_round_trip_keeps_the_kind_of_task(tmp_path: pathlib.Path, config: FinetuneConfig):
    path = tmp_path / "config.json"
    save(config, path)
    assert load(path, FinetuneConfig) == config
    assert read("--config", str(path)) == config


BROKEN = [
    ({"task": {"kind": "tagging", "text": "a", "schem": "iob2"}}, "task.schem: there is no such field; did you mean"),
    (
        {"task": {"kind": "nonsense"}},
        "task.kind is 'nonsense': it must be one of classification, tagging, relation, span",
    ),
    ({"task": 3}, "task.kind is None"),
    ({"optimizer": {"warmup_share": "x"}}, "optimizer.warmup_share is 'x': it must be float"),
    ({"data": {"train": "a.tsv"}}, "data.train is 'a.tsv': it must be tuple"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_broken_json_is_named(tmp_path: pathlib.Path, values: dict, message: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": values}))
    with pytest.raises(ConfigError) as caught:
        load(path, FinetuneConfig)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_configuration_of_pretraining_is_refused(repository: pathlib.Path):
    with pytest.raises(
        ConfigError, match=r"has no get_config\(\) that returns a jaxbert.finetune.config.FinetuneConfig"
    ):
        read("--config", str(repository / "configs/bert_base.py"))


def begun(config: FinetuneConfig, workdir: pathlib.Path, trained: str = "metrics.jsonl") -> None:
    """A folder in which something was trained."""
    run_folder.save_finetuning(config, workdir, "examples", run_folder.Start("a model"))
    (workdir / trained).parent.mkdir(parents=True, exist_ok=True)
    (workdir / trained).write_text("{}\n")


@pytest.mark.parametrize(
    "trained",
    [
        "checkpoints_sha256/3.json",
        "metrics.jsonl",
        "untrained/checkpoints_sha256/3.json",
        "seed-4/metrics.jsonl",
        "seed-4/untrained/checkpoints_sha256/3.json",
        "trial-0002/metrics.jsonl",
    ],
)
def test_a_folder_in_which_nothing_was_trained_binds_nobody(tmp_path: pathlib.Path, trained: str):
    """What a refused start, or one that ended before its first step, has left."""
    begun(BASE, tmp_path, trained)
    other = dataclasses.replace(BASE, seed=1)
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        run_folder.check_same_finetuning(other, "examples", tmp_path)
    assert run_folder.started_from(tmp_path) == run_folder.Start("a model")
    (tmp_path / trained).write_text("")
    for config, examples in ((other, "examples"), (dataclasses.replace(BASE, seeds=3), "examples"), (BASE, "others")):
        run_folder.check_same_finetuning(config, examples, tmp_path)
    assert run_folder.started_from(tmp_path) is None


def test_a_run_goes_on_elsewhere_and_with_another_test_set(tmp_path: pathlib.Path):
    run_folder.check_same_finetuning(BASE, "examples", tmp_path)
    begun(BASE, tmp_path)
    again = dataclasses.replace(
        BASE,
        workdir="elsewhere",
        mesh=MeshConfig(fsdp=2),
        compare_untrained=True,
        data=ExamplesConfig(test=("test.tsv",)),
        train=FinetuneTrainConfig(log_every=1, accumulation_steps=2),
    )
    run_folder.check_same_finetuning(again, "examples", tmp_path)


def test_another_run_is_refused_with_every_difference(tmp_path: pathlib.Path):
    begun(BASE, tmp_path)
    other = dataclasses.replace(
        BASE, seed=1, model="somebody's", data=ExamplesConfig(train=("a", "b")), train=FinetuneTrainConfig(epochs=4.0)
    )
    with pytest.raises(ConfigError) as caught:
        run_folder.check_same_finetuning(other, "examples", tmp_path)
    text = str(caught.value)
    for part in (
        "seed was 0 and is 1",
        'model was None and is "somebody\'s"',
        "data.train was ['builtin'] and is ['a', 'b']",
        "train.epochs was 3.0 and is 4.0",
    ):
        assert part in text
    assert "\n" not in text
    with pytest.raises(ConfigError, match=r"on other examples: what data.train or data.dev names has changed since"):
        run_folder.check_same_finetuning(BASE, "changed", tmp_path)


def test_a_folder_of_another_task_or_of_pretraining_is_refused(tmp_path: pathlib.Path):
    begun(OTHER, tmp_path / "tags")
    with pytest.raises(ConfigError, match=r"task.kind was 'tagging' and is 'classification'"):
        run_folder.check_same_finetuning(BASE, "examples", tmp_path / "tags")
    run_folder.save(Config(), tmp_path / "pretraining", "rows")
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        run_folder.check_same_finetuning(BASE, "examples", tmp_path / "pretraining")


def test_several_seeds_are_another_folder_and_how_many_may_change(tmp_path: pathlib.Path):
    begun(BASE, tmp_path / "one")
    with pytest.raises(ConfigError, match="holds a run of one seed"):
        run_folder.check_same_finetuning(change("seeds", 2), "examples", tmp_path / "one")
    begun(change("seeds", 3), tmp_path / "several", "seed-0/metrics.jsonl")
    run_folder.check_same_finetuning(change("seeds", 5), "examples", tmp_path / "several")
    with pytest.raises(ConfigError, match="holds runs of several seeds"):
        run_folder.check_same_finetuning(BASE, "examples", tmp_path / "several")


def test_the_last_seed_is_a_seed():
    validate(dataclasses.replace(BASE, seed=2**32 - 2, seeds=2), 8)
    with pytest.raises(ConfigError, match="the last seed must be below"):
        validate(dataclasses.replace(BASE, seed=2**32 - 2, seeds=3), 8)


def test_free_fields_exist():
    def names(value, prefix=""):
        for field in dataclasses.fields(value):
            yield prefix + field.name
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                yield from names(inner, prefix + field.name + ".")

    assert set(run_folder.FREE_IN_FINETUNING) <= set(names(BASE))


def test_what_can_be_read_once_is_not_read_again(tmp_path: pathlib.Path):
    """A pipe that nobody writes to any more would be waited for without end."""
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for source in ("-", pipe):
        validate(FinetuneConfig(data=ExamplesConfig(train=(source,), format="tsv")), 1)
        for data in (
            ExamplesConfig(train=(source,), format="tsv", streaming=True),
            ExamplesConfig(train=(source,), dev=(source,), format="tsv"),
        ):
            with pytest.raises(ConfigError, match="can be read once"):
                validate(FinetuneConfig(data=data), 1)
