"""Whole fine-tuning runs, from labelled files to a report and a folder for transformers; interrupted, resumed, refused."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from made_runs import LABELS, reviews, small, write_table
from safetensors.numpy import load_file

from jaxbert import load, run_folder
from jaxbert.config import Config, ConfigError, OptimizerConfig, UserError
from jaxbert.data.records import ExamplesError
from jaxbert.finetune import run, source
from jaxbert.finetune.config import (
    ClassificationConfig,
    ExamplesConfig,
    FinetuneConfig,
    FinetuneTrainConfig,
    SimilarityConfig,
)
from jaxbert.finetune.examples import read_all
from jaxbert.finetune.run import FinetuneResult, _finetune_once, finetune
from jaxbert.finetune.training import Training
from jaxbert.model import attention, encoder
from jaxbert.predict.texts import PredictError
from jaxbert.tasks.classification import BoundClassification
from jaxbert.tasks.registry import make_task
from jaxbert.train import session
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.train.loop import NonFiniteError

TRAIN, DEV, STEPS = 160, 50, 50


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of train.tsv and dev.tsv."""
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "train.tsv", reviews(TRAIN, 0))
    write_table(folder / "dev.tsv", reviews(DEV, 1))
    return folder


@pytest.fixture(scope="session")
def finished(tables: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneConfig, FinetuneResult]:
    """A finished run over eight simulated devices."""
    folder = tmp_path_factory.mktemp("finetuned")
    config = small(tables, folder / "whole")
    with pytest.MonkeyPatch.context() as patched:
        # Where there is no runs/, the encoder is a new one.
        patched.chdir(folder)
        return config, finetune(config)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def lines(workdir: str | pathlib.Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    clock = {"time", "tokens_per_second", "input_wait_share"}
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def report_of(config: FinetuneConfig) -> dict[str, Any]:
    return json.loads((pathlib.Path(config.workdir) / "report.json").read_text(encoding="utf8"))


def test_words_that_decide_the_class_are_learnt(finished: tuple[FinetuneConfig, FinetuneResult]):
    config, result = finished
    assert result.dev["accuracy"] > 0.9
    assert {"accuracy", "macro_f1", "micro_f1", "matthews", "loss"} <= set(result.dev)
    assert result.test == result.untrained == {}
    assert [line["step"] for line in lines(config.workdir) if line["split"] == "train"] == list(range(1, STEPS + 1))
    evaluated = {line["step"]: line["accuracy"] for line in lines(config.workdir) if line["split"] == "heldout"}
    assert list(evaluated) == [10, 20, 30, 40, 50]
    # The best, and of equal ones the newest.
    assert result.step == max(evaluated, key=lambda step: (evaluated[step], step))
    assert result.dev["accuracy"] == evaluated[result.step]


def test_a_run_leaves_what_it_promises(finished: tuple[FinetuneConfig, FinetuneResult]):
    config, result = finished
    workdir = pathlib.Path(config.workdir)
    for name in ("curves.png", "confusion.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    report = report_of(config)
    assert report["measures"]["dev"] == dict(result.dev)
    assert report["confusion"]["labels"] == list(LABELS)
    assert np.sum(report["confusion"]["counts"]) == DEV
    assert report["mistakes"]["count"] == DEV - np.trace(report["confusion"]["counts"])
    assert report["facts"]["started from"] == "a new small encoder"
    assert report["facts"]["examples"] == f"{TRAIN} train, {DEV} dev"
    page = (workdir / "report.md").read_text(encoding="utf8")
    for part in ("# small", "| accuracy |", "confusion.png", "curves.png", "## By class (dev)"):
        assert part in page
    assert report["warnings"] == []
    assert json.loads((workdir / "model" / "config.json").read_text())["pad_token_id"] == 0


def test_the_exported_model_says_the_same_in_transformers(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path
):
    config, result = finished
    folder = result.model
    peer, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(peer).__name__ == "BertForSequenceClassification"
    assert peer.config.id2label == dict(enumerate(LABELS))
    assert peer.config.label2id == {label: n for n, label in enumerate(LABELS)}
    assert peer.config.problem_type == "single_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for text, _ in reviews(DEV, 1)]
    with torch.no_grad():
        theirs = peer.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    task = make_task(config.task)
    examples = read_all(task, config.data)
    run = Training(config, task, examples, source.find_source(config, texts, pathlib.Path(config.workdir)))
    with Checkpoints(config.workdir, config.checkpoint, highest="accuracy") as checkpoints:
        state = checkpoints.restore(result.step, run.session.abstract)
    found = run.evaluate(state, run.dev)
    assert found is not None
    ours = np.stack([one.scores for one in found[1]])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.max(axis=1).min() < 1 - 1e-4 or theirs.std() > 0.1


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_predictions_read_as_much_as_was_measured(tables: pathlib.Path, tmp_path: pathlib.Path):
    data = dataclasses.replace(small(tables, tmp_path).data, max_length=9)
    train = FinetuneTrainConfig(epochs=1, batch_size=16, evaluations=1)
    result = finetune(small(tables, tmp_path / "run", data=data, train=train))
    loaded = load(result.workdir)
    assert loaded.predictor().max_length == 9
    assert loaded.predictor(max_length=12).max_length == 12
    texts, labels = zip(*reviews(DEV, 1), strict=True)
    found = [one["label"] for one in loaded.predictor().classify(list(texts))]
    assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) == pytest.approx(result.dev["accuracy"])
    # What is trained from there has a length of its own; a length that is none is told.
    again = dataclasses.replace(data, max_length=20)
    result = finetune(small(tables, tmp_path / "again", data=again, train=train, model=str(result.model)))
    assert load(result.workdir).predictor().max_length == 20
    assert result.model is not None
    file = result.model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"jaxbert_max_length": "long"}))
    with pytest.raises(PredictError, match="max_length long: the model reads 3 to 128 tokens"):
        load(result.model).predictor()


class Interrupt:
    """A tracker that sends SIGTERM once a step is logged."""

    def __init__(self, at: int):
        self.at = at

    def log(self, step, metrics, split="train"):
        if step == self.at and split == "train":
            signal.raise_signal(signal.SIGTERM)

    def close(self):
        pass


def final_arrays(workdir: str) -> list[np.ndarray]:
    """Every array of the last checkpoint, as it lies on disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return [
            np.asarray(leaf)
            for leaf in jax.tree.leaves(reader.restore(pathlib.Path(workdir) / f"checkpoints/{STEPS}/default"))
        ]


def test_resume_is_bitwise(
    finished: tuple[FinetuneConfig, FinetuneResult], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    whole, result = finished
    config = dataclasses.replace(whole, workdir=str(tmp_path / "run"))
    real = session.make_trackers

    def interrupting(*arguments, **keywords):
        trackers = real(*arguments, **keywords)
        trackers._trackers.append(Interrupt(14))
        return trackers

    monkeypatch.setattr(session, "make_trackers", interrupting)
    first = finetune(config)
    assert first.model is None
    assert 14 <= first.step < STEPS
    assert not (tmp_path / "run" / "report.md").exists()
    monkeypatch.setattr(session, "make_trackers", real)
    # It may go on with its examples on disk, which changes nothing.
    second = finetune(dataclasses.replace(config, data=dataclasses.replace(config.data, streaming=True)))
    assert (second.step, second.dev) == (result.step, result.dev)
    assert lines(config.workdir) == lines(whole.workdir)
    for ours, theirs in zip(final_arrays(config.workdir), final_arrays(whole.workdir), strict=True):
        np.testing.assert_array_equal(ours, theirs)


PROCESS = """
import sys, json, os
number, port, tables, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import dataclasses, pathlib
sys.path.insert(0, sys.argv[5])
from made_runs import small
from jaxbert.config import DistributedConfig
from jaxbert.finetune.run import finetune
config = small(pathlib.Path(tables), pathlib.Path(workdir), distributed=DistributedConfig(True, f"localhost:{port}", 2, number))
result = finetune(config)
assert result.model.is_dir()
print(json.dumps([result.step, dict(result.dev)]))
"""


def test_two_processes_train_the_same_model(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path, tmp_path: pathlib.Path
):
    whole, result = finished
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    arguments = [port, str(tables), str(tmp_path / "run"), str(pathlib.Path(__file__).parent)]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(number), *arguments], stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Both know the same of how good it is.
    first, second = (json.loads(text.splitlines()[-1]) for text in said)
    assert first == second
    assert first[0] == result.step
    assert first[1] == pytest.approx(dict(result.dev), rel=1e-3)
    ours, theirs = lines(tmp_path / "run"), lines(whole.workdir)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("split") == other.pop("split")
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
    name = "classifier.weight"
    here, there = (
        load_file(folder / "model" / "model.safetensors")[name] for folder in (tmp_path / "run", result.workdir)
    )
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-3)


def test_frozen_blocks_stay_to_the_bit_and_those_that_start_anew_do_not(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path, tmp_path: pathlib.Path
):
    folder = finished[1].model
    assert folder is not None
    rate = 1e-4
    config = small(
        tables,
        tmp_path / "run",
        model=str(folder),
        optimizer=OptimizerConfig(peak_learning_rate=rate, warmup_share=0.0, weight_decay=0.1, freeze_layers=1),
        train=FinetuneTrainConfig(epochs=1, reinit_layers=1),
    )
    result = finetune(config)
    assert result.model is not None
    # What is said on the screen is in the report.
    reinit = f"the head of {folder} starts anew: train.reinit_layers has blocks under it start anew"
    assert report_of(config)["warnings"] == [reinit]
    assert f"- warning: {reinit}\n" in (tmp_path / "run" / "report.md").read_text()
    before, after = (load_file(path / "model.safetensors") for path in (folder, result.model))
    assert before.keys() == after.keys()
    kinds = {"same": 0, "moved": 0, "anew": 0}
    for name, was in before.items():
        distance = np.abs(after[name] - was).max()
        if ".embeddings." in name or ".layer.0." in name:
            kinds["same"] += 1
            assert distance == 0, name
        elif ".pooler." in name:
            kinds["moved"] += 1
            # A step moves a parameter by about the learning rate at most.
            assert 0 < distance < 3 * 10 * rate, name
        elif ".layer.1." in name and name.endswith("dense.weight"):
            kinds["anew"] += 1
            assert distance > 0.02, name
    assert all(kinds.values())


def test_another_setting_or_other_examples_are_refused(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path
):
    config, _ = finished
    for changes, message in (
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"task": ClassificationConfig(label_smoothing=0.1)}, "task.label_smoothing was 0.0 and is 0.1"),
        ({"optimizer": OptimizerConfig()}, "optimizer.peak_learning_rate was 0.005 and is 0.0001"),
        ({"dropout": 0.5}, "dropout was None and is 0.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune(dataclasses.replace(config, **changes))
    table = pathlib.Path(config.data.train[0])
    content = table.read_text()
    try:
        table.write_text(content.replace("\tgood\n", "\tbad\n", 1))
        with pytest.raises(
            ConfigError, match=r"on other examples: what data.train or data.dev names has changed since"
        ):
            finetune(config)
    finally:
        table.write_text(content)


def test_a_setting_that_an_older_folder_has_not_was_at_its_default(finished: tuple[FinetuneConfig, FinetuneResult]):
    config, _ = finished
    path = pathlib.Path(config.workdir) / "config.json"
    whole = path.read_text(encoding="utf8")
    record = json.loads(whole)
    del record["config"]["train"]["reinit_head"]
    try:
        path.write_text(json.dumps(record), encoding="utf8")
        run_folder.check_same_finetuning(config, record["examples"], path.parent)
        changed = dataclasses.replace(config, train=dataclasses.replace(config.train, reinit_head=True))
        with pytest.raises(ConfigError, match=r"train.reinit_head was False and is True"):
            run_folder.check_same_finetuning(changed, record["examples"], path.parent)
    finally:
        path.write_text(whole, encoding="utf8")


def test_a_finished_run_is_measured_on_a_longer_test_set(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path, tmp_path: pathlib.Path
):
    """data.test may be given later; no row of train or dev is as long as its texts."""
    config, result = finished
    long = [(f"{text} {'and so on ' * 30}", label) for text, label in reviews(20, 2)]
    test = write_table(tmp_path / "test.tsv", [*reviews(20, 3), *long])
    data = dataclasses.replace(config.data, test=(test,))
    again = finetune(dataclasses.replace(config, data=data))
    # Rows of another length add up in another order.
    assert again.dev == pytest.approx(result.dev, abs=1e-5)
    assert again.step == result.step
    assert again.test["accuracy"] > 0.4
    assert set(report_of(config)["measures"]) == {"dev", "test"}


def test_a_run_without_a_model_goes_on_from_its_own(
    finished: tuple[FinetuneConfig, FinetuneResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A pretraining run that has come since is not what it started from: its tokenizer is another one. It is said."""
    config, result = finished
    monkeypatch.setattr(source, "newest_run", lambda: result.model)
    finetune(config)
    assert report_of(config)["facts"]["started from"] == "a new small encoder"
    assert f"the newest run is {result.model} now: to start from there, choose another" in capsys.readouterr().out
    record = json.loads((pathlib.Path(config.workdir) / "config.json").read_text())
    assert record["started_from"] == "a new small encoder"


def training(config: FinetuneConfig) -> Training:
    task = make_task(config.task)
    examples = read_all(task, config.data)
    found = source.find_source(config, map(task.text, examples.train), pathlib.Path(config.workdir), None)
    return Training(config, task, examples, found)


def test_a_model_of_the_task_goes_on_with_its_head(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path, tmp_path: pathlib.Path
):
    """A rate that moves nothing: what is measured is the head that came."""
    _, result = finished
    still = OptimizerConfig(peak_learning_rate=1e-12)
    train = FinetuneTrainConfig(epochs=0.2)
    again = finetune(small(tables, tmp_path / "run", model=str(result.model), optimizer=still, train=train))
    assert again.dev == pytest.approx(result.dev, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "anew", "why"),
    [
        (("so so", "mixed"), 0, "its labels are not the task's (the task has mixed)"),
        (("so so", "fine"), 1, "train.reinit_layers has blocks under it start anew"),
    ],
)
def test_a_head_that_cannot_serve_starts_anew_and_it_is_said(
    finished: tuple[FinetuneConfig, FinetuneResult],
    tables: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    row: tuple[str, str],
    anew: int,
    why: str,
):
    _, result = finished
    table = write_table(tmp_path / "train.tsv", [*reviews(TRAIN, 0), row])
    data = ExamplesConfig(train=(table,), dev=(str(tables / "dev.tsv"),), max_length=128)
    train = FinetuneTrainConfig(reinit_layers=anew)
    started = training(small(tables, tmp_path / "run", model=str(result.model), data=data, train=train)).start()
    assert f"warning: the head of {result.model} starts anew: {why}\n" in capsys.readouterr().out
    assert set(started or {}) == {"encoder", "pooler"}


class Trained(Exception):
    """All checks were passed."""


def stop(*_, **__):
    raise Trained


REFUSED = [
    ({"task": ClassificationConfig(metric="accurracy")}, {}),
    ({"task": ClassificationConfig(positive="goood")}, {}),
    ({"optimizer": OptimizerConfig(freeze_layers=99)}, {}),
    ({"seeds": 3, "model": "gone"}, {"seeds": 3}),
    ({"seeds": 3, "optimizer": OptimizerConfig(freeze_layers=99)}, {}),
    ({"search": "search.py", "optimizer": OptimizerConfig(freeze_layers=99)}, {"search": "search.py"}),
]


@pytest.mark.parametrize(("wrong", "mended"), REFUSED)
def test_a_start_that_was_refused_leaves_the_folder_free(
    tables: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, wrong: dict, mended: dict
):
    draws = "def suggest(trial):\n    return {'train.batch_size': trial.suggest_categorical('batch', [8, CHOICE])}\n"
    (tmp_path / "search.py").write_text(draws.replace("CHOICE", "16"))
    with pytest.raises(UserError):
        finetune(small(tables, tmp_path / "run", **wrong))
    assert (tmp_path / "run" / "config.json").is_file()
    # What the refused trial drew from is no reason to refuse either.
    (tmp_path / "search.py").write_text(draws.replace("CHOICE", "32"))
    monkeypatch.setattr(Training, "train", stop)
    with pytest.raises(Trained):
        finetune(small(tables, tmp_path / "run", **mended))


def test_a_vocabulary_that_no_run_has_learnt_from_is_not_kept(
    tables: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that was never trained has left it: its texts may have been others."""
    found = []

    def record(config: FinetuneConfig, task: Any, examples: Any, source: source.Source):
        found.append(source.tokenizer.token_to_id("film"))
        raise Trained

    monkeypatch.setattr(run, "Training", record)
    table = write_table(tmp_path / "train.tsv", [(f"elsewhere {n} words", "ab"[n % 2]) for n in range(40)])
    for data in (ExamplesConfig(train=(table,)), small(tables, tmp_path).data):
        with pytest.raises(Trained):
            finetune(small(tables, tmp_path / "run", data=data))
    assert found[0] is None
    assert found[1] is not None
    # That of a run that goes on is its own, whatever it is.
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    kept = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    monkeypatch.setattr(source, "train_tokenizer", stop)
    with pytest.raises(Trained):
        finetune(small(tables, tmp_path / "run"))
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes() == kept
    assert len(found) == 3


def test_a_look_at_the_data_leaves_nothing(
    tables: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    result = finetune(small(tables, tmp_path / "run", check_data=True, seeds=3))
    assert result.model is None
    assert "train: 160 examples" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_the_data_is_free_of_the_folder(
    finished: tuple[FinetuneConfig, FinetuneResult], capsys: pytest.CaptureFixture[str]
):
    """It may hold another run, which may be training at this moment."""
    config, _ = finished
    workdir = pathlib.Path(config.workdir)
    with run_folder.locked(workdir):
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        for changes in ({"seed": 1}, {"seeds": 3}, {"data": dataclasses.replace(config.data, max_length=32)}):
            finetune(dataclasses.replace(config, check_data=True, **changes))
            assert "train: 160 examples" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_look_at_the_data_finds_what_would_stop_the_run(tmp_path: pathlib.Path):
    write_table(tmp_path / "train.tsv", [(f"a {n}", f"b {n}") for n in range(8)])
    data = ExamplesConfig((str(tmp_path / "train.tsv"),), (str(tmp_path / "train.tsv"),))
    task = SimilarityConfig(anchor="text", positive="label", score="score")
    with pytest.raises(ExamplesError, match=r"data.dev has rows without a column 'score'"):
        finetune(small(tmp_path, tmp_path / "run", task=task, data=data, check_data=True))


@pytest.mark.parametrize(("dropout", "refused"), [(None, True), (0.1, False)])
def test_a_text_that_would_be_the_same_twice_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dropout: float | None, refused: bool
):
    """As configs/tiny.py makes models: without dropout."""
    without = dataclasses.replace(source.SMALL, hidden_dropout=0.0, attention_dropout=0.0)
    monkeypatch.setattr(source, "SMALL", without)
    (tmp_path / "train.tsv").write_text("anchor\n" + "".join(f"text {n}\n" for n in range(8)))
    (tmp_path / "dev.tsv").write_text("anchor\tpositive\n" + "".join(f"a {n}\tb {n}\n" for n in range(8)))
    config = small(tmp_path, tmp_path / "run", task=SimilarityConfig(target="dropout"), dropout=dropout)
    message = r"task.target is \"dropout\" and a new small encoder has none: .*; set --dropout 0.1$"
    with pytest.raises(ConfigError, match=message) if refused else contextlib.nullcontext():
        training(config)


def test_the_encoder_is_computed_as_is_asked_for(
    tables: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    seen = set()

    def attend(query, *arrays, backend, **options):
        # Parameters are made with one token, whatever the backend.
        if query.shape[1] > 1:
            seen.add((query.dtype.name, backend))
        return attention.attend(query, *arrays, backend=backend, **options)

    monkeypatch.setattr(encoder, "attend", attend)
    config = small(tables, tmp_path / "run", dtype="bfloat16", attention_backend="xla", dropout=0.0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=3))
    assert finetune(config).dev["accuracy"] > 0.9
    assert seen == {("bfloat16", "xla")}
    assert "| computed in | bfloat16, attention xla |" in (tmp_path / "run" / "report.md").read_text()
    # Weights are float32 whatever they are computed in.
    assert transformers.AutoConfig.from_pretrained(tmp_path / "run" / "model").dtype == torch.float32


def test_attention_that_the_models_own_dropout_rules_out_is_refused(tables: pathlib.Path, tmp_path: pathlib.Path):
    message = r'^attention_backend "xla" has no dropout: set dropout \(0.1\) to 0, or use "explicit" or "gpu_flash"$'
    with pytest.raises(ConfigError, match=message):
        training(small(tables, tmp_path / "run", attention_backend="xla"))


@pytest.mark.parametrize(
    ("frozen", "anew", "message"),
    [
        (0, 5, "train.reinit_layers is 5, and the model has 2 blocks"),
        (3, 0, "optimizer.freeze_layers is 3, and the model has 2 blocks"),
        (1, 2, r"optimizer.freeze_layers \(1\) and train.reinit_layers \(2\) meet in a model of 2 blocks"),
    ],
)
def test_blocks_that_are_not_there_or_both_frozen_and_new_are_refused(
    tables: pathlib.Path, tmp_path: pathlib.Path, frozen: int, anew: int, message: str
):
    config = small(tables, tmp_path / "run", train=FinetuneTrainConfig(reinit_layers=anew))
    config = dataclasses.replace(config, optimizer=OptimizerConfig(freeze_layers=frozen))
    with pytest.raises(ConfigError, match=message):
        training(config)


def test_a_head_that_no_folder_is_written_for_is_refused_before_training(
    tables: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(BoundClassification, "architecture", "ForPoetry")
    with pytest.raises(
        ConfigError, match=r"is 'ForPoetry', and bert has no such class: put the task on one of .*, ForSeq"
    ):
        training(small(tables, tmp_path / "run"))


def test_settings_that_make_no_task_are_refused():
    with pytest.raises(ConfigError, match=r"^OptimizerConfig makes no task: give it a method make_task$"):
        make_task(OptimizerConfig())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("lacking", "files"), [("dev", "data.dev"), ("test", "data.test")])
def test_files_without_scores_are_named_before_anything_is_trained(tmp_path: pathlib.Path, lacking: str, files: str):
    for name in ("train", "dev", "test"):
        rows = "anchor\tpositive\n" if name == lacking else "anchor\tpositive\tscore\n"
        rows += "".join(f"a {n}\tb {n}\t{n}\n" for n in range(8)) if name != lacking else "a\tb\n"
        (tmp_path / f"{name}.tsv").write_text(rows)
    data = {name: (str(tmp_path / f"{name}.tsv"),) for name in ("train", "dev", "test")}
    config = small(tmp_path, tmp_path / "run", task=SimilarityConfig(score="score"), data=ExamplesConfig(**data))
    with pytest.raises(ExamplesError, match=f"{files} has rows without a column 'score'"):
        training(config)


def test_a_plateau_ends_a_run_with_patience(
    tables: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Values of an epoch each: the second is the best, and none of the three after it is above it."""
    values = iter([0.4, 0.5, 0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr(Training, "evaluate", lambda *_: ({"loss": 1.0, "accuracy": next(values)}, []))
    monkeypatch.setattr(Training, "_check_measure", lambda *_: None)
    config = small(tables, tmp_path / "run", train=FinetuneTrainConfig(epochs=6, batch_size=80, patience=3))
    outcome = training(config).train()
    every = outcome.result.step // 5
    assert [line["step"] for line in lines(tmp_path / "run") if line["split"] == "heldout"] == [
        every * n for n in range(1, 6)
    ]
    assert next(values) == 0.9
    # Of equal checkpoints the newest stays.
    assert outcome.step == outcome.result.step


def test_what_is_hopeless_ends_without_a_model(tables: pathlib.Path, tmp_path: pathlib.Path):
    """As a search ends a trial: asked after each evaluation but the last, with what it measured."""
    asked = []

    def hopeless(number: int, value: float) -> bool:
        asked.append((number, value))
        return number == 2

    config = small(tables, tmp_path / "run")
    result = _finetune_once(config, read_all(make_task(config.task), config.data), None, hopeless)
    evaluated = [line for line in lines(config.workdir) if line["split"] == "heldout"]
    assert [line["step"] for line in evaluated] == [10, 20]
    assert asked == [(n, line["accuracy"]) for n, line in enumerate(evaluated, 1)]
    assert (result.model, result.step) == (None, 20)
    assert result.dev["accuracy"] == evaluated[-1]["accuracy"]
    assert not (tmp_path / "run" / "report.md").exists()


def test_what_pretraining_buys(
    finished: tuple[FinetuneConfig, FinetuneResult], tables: pathlib.Path, tmp_path: pathlib.Path
):
    """The same encoder without its parameters is trained beside it, and both are in the report."""
    few = FinetuneTrainConfig(epochs=1, batch_size=16, log_every=1)
    config = small(tables, tmp_path / "run", model=str(finished[1].model), compare_untrained=True, train=few)
    result = finetune(config)
    # The one has learnt the task before.
    assert result.untrained["accuracy"] < 0.9 < result.dev["accuracy"]
    alone = lines(tmp_path / "run" / "untrained")
    assert result.untrained["accuracy"] == max(line["accuracy"] for line in alone if line["split"] == "heldout")
    report = report_of(config)
    assert report["untrained"] == dict(result.untrained)
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf8")
    assert f"| accuracy | {result.dev['accuracy']:.4f} | {result.untrained['accuracy']:.4f} |" in page


def test_a_comparison_that_diverges_stops_nothing(
    finished: tuple[FinetuneConfig, FinetuneResult],
    tables: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """It says nothing of the model that was pretrained."""
    real = Training.train

    def train(self: Training, *arguments):
        if self.source.params is None:
            raise NonFiniteError("loss or gradient is not finite at step 7")
        return real(self, *arguments)

    monkeypatch.setattr(Training, "train", train)
    few = FinetuneTrainConfig(epochs=0.2)
    config = small(tables, tmp_path / "run", model=str(finished[1].model), compare_untrained=True, train=few)
    result = finetune(config)
    assert result.model is not None
    assert (result.untrained, result.untrained_diverged) == ({}, "loss or gradient is not finite at step 7")
    assert report_of(config)["warnings"] == [
        "without pretraining it diverged: loss or gradient is not finite at step 7"
    ]
    assert report_of(config)["untrained"] == {}


def test_the_newest_run_is_started_from(tmp_path: pathlib.Path):
    """Of those that pretraining made, the one with the newest checkpoint; fine-tuned models lie in the same folder.

    Rows may be elsewhere (data.rows), so that they tell nothing.
    """
    assert source.newest_run() is None
    assert source.start_of(FinetuneConfig()) == source.NEW
    for age, (name, parts) in enumerate(
        {
            "old": ("rows", "checkpoints", "metrics/1.json"),
            "new": ("checkpoints", "metrics/2.json"),
            "started": ("rows", "checkpoints"),
            "finetuned": ("checkpoints", "metrics/9.json"),
            "nobodys": ("rows", "checkpoints", "metrics/9.json"),
        }.items()
    ):
        for part in parts:
            path = tmp_path / "runs" / name / part.replace("metrics", source.RECORDS)
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("{}")
                os.utime(path, (age, age))
        if name == "finetuned":
            run_folder.save_finetuning(
                FinetuneConfig(), tmp_path / "runs" / name, "examples", run_folder.Start("a model")
            )
        elif name != "nobodys":
            run_folder.save(Config(), tmp_path / "runs" / name, "fingerprint")
    assert source.newest_run() == pathlib.Path("runs/new")
    assert source.start_of(FinetuneConfig()) == "runs/new"
    # A run goes on from what it started from; what was named counts most.
    assert source.start_of(FinetuneConfig(), "runs/old") == "runs/old"
    assert source.start_of(FinetuneConfig(model="there"), "runs/old") == "there"


def test_a_measure_that_there_is_not_is_refused(tables: pathlib.Path, tmp_path: pathlib.Path):
    config = small(
        tables,
        tmp_path / "run",
        task=ClassificationConfig(metric="accurracy"),
        train=FinetuneTrainConfig(epochs=0.1, log_every=1),
    )
    with pytest.raises((ConfigError, ExamplesError), match="accurracy"):
        finetune(config)


def test_help_needs_no_jax(repository: pathlib.Path, tmp_path: pathlib.Path):
    code = (
        "import runpy, sys; sys.argv = ['finetune.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv.pop(0) and FILE, run_name='__main__')\n"
        "except SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)\n"
    ).replace("sys.argv.pop(0) and FILE", repr(str(repository / "finetune.py")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for field in (
        "--task.text",
        "--data.train",
        "--optimizer.layer-decay",
        "--train.reinit-layers",
        "--compare-untrained",
    ):
        assert field in done.stdout, field


def test_errors_are_one_line(repository: pathlib.Path, tmp_path: pathlib.Path):
    command = [sys.executable, str(repository / "finetune.py"), "--workdir", "w", "--data.train", "gone.tsv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: gone.tsv: no such file")
    assert "Traceback" not in done.stderr
