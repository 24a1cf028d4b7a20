"""Whole runs, from text files to a report: in one process, interrupted and resumed, and in two processes."""

import dataclasses
import json
import pathlib
import random
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

from jaxbert import run
from jaxbert.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LongPhase,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
    UserError,
    VocabularyConfig,
)
from jaxbert.model.bert import BertForPreTraining
from jaxbert.train import session
from jaxbert.train.checkpoint import Checkpoints
from jaxbert.weights.load import load

STEPS = 9


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Documents of made-up sentences: a noun decides the verb, so there is something to learn."""
    pairs = [("dog", "barks"), ("cat", "sleeps"), ("bird", "sings"), ("fish", "swims"), ("horse", "gallops")]
    draw = random.Random(0)
    documents = []
    for _ in range(150):
        lines = []
        for _ in range(draw.randint(3, 9)):
            noun, verb = draw.choice(pairs)
            lines.append(f"The {draw.choice(['old', 'young', 'small', 'quick'])} {noun} {verb} near the river today.")
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text("\n\n".join(documents), encoding="utf8")
    return path


def small(text: pathlib.Path, workdir: pathlib.Path, **train) -> Config:
    """A run of a few seconds, with every kind of dropout."""
    settings = {"num_steps": STEPS, "batch_size": 8, "log_every": 1, "evaluate_every": 4, "evaluate_batches": 2} | train
    return Config(
        name="small",
        workdir=str(workdir),
        model=ModelConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_position_embeddings=64),
        data=DataConfig(
            text=(str(text),),
            heldout_share=0.2,
            max_length=32,
            packing=True,
            max_sequences=3,
            workers=1,
            vocabulary=VocabularyConfig(size=200),
            rows=str(text.parent / "rows"),
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=2),
        train=TrainConfig(**settings),
        checkpoint=CheckpointConfig(every=100),
        tracking=TrackingConfig(tensorboard=False),
    )


def lines(workdir: str | pathlib.Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    clock = {"time", "tokens_per_second", "input_wait_share"}
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def final_arrays(workdir: str | pathlib.Path) -> list[np.ndarray]:
    """Every array of the last checkpoint, as it lies on disk."""
    import orbax.checkpoint as ocp

    folder = pathlib.Path(workdir).resolve() / "checkpoints" / str(STEPS) / "default"
    with ocp.StandardCheckpointer() as reader:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(reader.restore(folder))]


@pytest.fixture(scope="session")
def uninterrupted(text_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run over eight simulated devices."""
    config = small(text_file, tmp_path_factory.mktemp("runs") / "whole")
    result = run.pretrain(config)
    assert result.finished
    assert result.step == STEPS
    return config


def test_a_run_leaves_what_it_promises(uninterrupted: Config):
    workdir = pathlib.Path(uninterrupted.workdir)
    steps = [line["step"] for line in lines(workdir) if line["split"] == "heldout"]
    assert steps == [4, 8, 9]
    assert [line["step"] for line in lines(workdir) if line["split"] == "train"] == list(range(1, STEPS + 1))
    for line in lines(workdir):
        assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"} <= set(line)
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
    page = (workdir / "report.md").read_text(encoding="utf8")
    for part in ("held-out MLM perplexity", "held-out NSP accuracy", "curves.png", "hidden: **"):
        assert part in page
    assert page.count("hidden: **") == 5
    saved = json.loads((workdir / "config.json").read_text())["config"]
    assert saved["model"]["vocab_size"] > 104
    assert saved["model"]["dtype"] == "float32"


def test_the_exported_model_computes_the_same_in_transformers(uninterrupted: Config):
    folder = pathlib.Path(uninterrupted.workdir) / "model"
    peer, report = transformers.BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = {k: np.asarray(v) for k, v in tokenizer([["the dog barks .", "a cat"]], return_tensors="np").items()}
    with torch.no_grad():
        theirs = peer.eval()(**{name: torch.from_numpy(values) for name, values in batch.items()})
    trained = load(uninterrupted.workdir)
    ours: Any = BertForPreTraining(trained.config).apply(
        {"params": trained.params}, batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    )
    vocabulary = theirs.prediction_logits.shape[-1]
    np.testing.assert_allclose(ours.mlm_logits_BxPxV[..., :vocabulary], theirs.prediction_logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.nsp_logits_BxSx2[:, 0], theirs.seq_relationship_logits, rtol=0, atol=1e-5)
    assert "steps" in (folder / "README.md").read_text(encoding="utf8")


def test_the_exported_model_fills_masks_as_transformers_does(uninterrupted: Config):
    workdir = pathlib.Path(uninterrupted.workdir)
    pipeline = transformers.pipeline("fill-mask", str(workdir / "model"))
    for source in (workdir, workdir / "model"):
        predictor = load(source).predictor("fill-mask")
        for text in ("the [MASK] barks .", "a cat sees the [MASK]"):
            for ours, theirs in zip(predictor.fill_mask(text), pipeline(text), strict=True):
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
                assert [ours[k] for k in ("token", "token_str", "sequence")] == [
                    theirs[k] for k in ("token", "token_str", "sequence")
                ]


class Interrupt:
    """A tracker that sends SIGTERM once a step is logged."""

    def __init__(self, at: int):
        self.at = at

    def log(self, step, metrics, split="train"):
        if step == self.at and split == "train":
            signal.raise_signal(signal.SIGTERM)

    def close(self):
        pass


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_resume_is_bitwise(
    uninterrupted: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
):
    config = dataclasses.replace(uninterrupted, workdir=str(tmp_path / "run"))
    real = session.make_trackers

    def interrupting(*arguments, **keywords):
        trackers = real(*arguments, **keywords)
        trackers._trackers.append(Interrupt(stop_at))
        return trackers

    monkeypatch.setattr(session, "make_trackers", interrupting)
    first = run.pretrain(config)
    assert not first.finished
    assert stop_at <= first.step < STEPS
    monkeypatch.setattr(session, "make_trackers", real)
    second = run.pretrain(config)
    assert second.finished
    assert lines(config.workdir) == lines(uninterrupted.workdir)
    for ours, theirs in zip(final_arrays(config.workdir), final_arrays(uninterrupted.workdir), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_finished_run_is_only_reported_again(uninterrupted: Config, capsys: pytest.CaptureFixture[str]):
    before = lines(uninterrupted.workdir)
    result = run.pretrain(uninterrupted)
    assert result.finished
    assert lines(uninterrupted.workdir) == before
    assert "going on from step 9" in capsys.readouterr().out
    assert result.metrics["loss"] == pytest.approx(before[-1]["loss"])


def test_fewer_steps_than_were_trained_are_refused(uninterrupted: Config):
    shorter = dataclasses.replace(uninterrupted, train=dataclasses.replace(uninterrupted.train, num_steps=5))
    with pytest.raises(UserError, match=r"is of step 9, beyond train.num_steps \(5\)"):
        run.pretrain(shorter)


def test_two_phases_of_length(text_file: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    losses = {1: 0.2, 2: 0.1, 3: 0.3, 4: 0.4}
    real = run.evaluate

    def evaluate(eval_step, state, *arguments, **keywords):
        return {**real(eval_step, state, *arguments, **keywords), "loss": losses[int(state.step)]}

    monkeypatch.setattr(run, "evaluate", evaluate)
    phase = LongPhase(num_steps=2, max_length=64)
    config = small(text_file, tmp_path / "run", num_steps=4, evaluate_every=1, long_phase=phase)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(every=1, keep_last=1))
    assert run.pretrain(config).finished
    assert [line["step"] for line in lines(config.workdir) if line["split"] == "train"] == [1, 2, 3, 4]
    # Step 2, the last at the other length, has the lowest loss of all; with the end compare those of the long rows.
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 4]


def test_another_configuration_does_not_touch_the_run(uninterrupted: Config):
    other = dataclasses.replace(uninterrupted, seed=1)
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        run.pretrain(other)


def test_best_checkpoint_is_known(uninterrupted: Config):
    with Checkpoints(uninterrupted.workdir, uninterrupted.checkpoint) as checkpoints:
        assert checkpoints.best_step() == STEPS


PROCESS = """
import sys, json, os
number, port, text, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import dataclasses, pathlib
sys.path.insert(0, sys.argv[5])
from test_run import small
from jaxbert.config import DistributedConfig
from jaxbert.run import pretrain
config = small(pathlib.Path(text), pathlib.Path(workdir))
config = dataclasses.replace(config, distributed=DistributedConfig(True, f"localhost:{port}", 2, number))
result = pretrain(config)
assert result.finished
"""


def test_two_processes_train_the_same_model(uninterrupted: Config, text_file: pathlib.Path, tmp_path: pathlib.Path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    folder = str(pathlib.Path(__file__).parent)
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen([*command, str(number), port, str(text_file), str(tmp_path / "run"), folder])
        for number in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    ours, theirs = lines(tmp_path / "run"), lines(uninterrupted.workdir)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("split") == other.pop("split")
        assert mine == pytest.approx(other, rel=2e-4, abs=1e-6)


def test_errors_are_one_line(text_file: pathlib.Path, tmp_path: pathlib.Path, repository: pathlib.Path):
    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / "train.py"), "--workdir", str(tmp_path / "w"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    missing = train("--data.text", str(tmp_path / "nothing*.txt"))
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: ")
    assert "nothing*.txt" in missing.stderr.splitlines()[-1]
    assert "Traceback" not in missing.stderr
    contradictory = train("--model.num-heads", "3", "--data.max-length", "4096")
    assert contradictory.returncode == 2
    assert "model.num_heads" in contradictory.stderr
    assert "data.max_length" in contradictory.stderr
