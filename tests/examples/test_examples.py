"""The examples that the README shows do what they say."""

import dataclasses
import pathlib

import frozen_encoder
import jax
import nnx_encoder
import numpy as np
import own_head
import own_module
import own_task
import pytest
import torch
import transformers

import jaxbert
from jaxbert import command_line
from jaxbert.config import ConfigError, VocabularyConfig
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.run import finetune
from jaxbert.text.vocabulary import save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(own_module.TEXTS * 5, VocabularyConfig(size=180, min_frequency=1))
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 32)
    return folder


def test_the_encoder_in_a_module_of_ones_own(model: pathlib.Path):
    losses = own_module.main(str(model))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


def test_a_head_of_ones_own_in_our_step(model: pathlib.Path):
    losses = own_head.main(str(model))
    assert losses[0] > 0.6
    assert np.mean(losses[-5:]) < 0.5


def test_a_frozen_encoder_over_a_stream(model: pathlib.Path):
    found = frozen_encoder.main(str(model))
    expected = jaxbert.load(model).predictor("embed").embed(frozen_encoder.TEXTS, normalize=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_encoder_in_nnx(model: pathlib.Path):
    loaded = jaxbert.load(model, heads=())
    scores, gradient = nnx_encoder.main(str(model))
    assert scores.shape == (2,)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == len(jax.tree.leaves(loaded.params)) + 2
    ids = np.arange(16, dtype=np.int32).reshape(2, 8)
    expected = jaxbert.BertEncoder(loaded.config).apply({"params": loaded.params["encoder"]}, ids, ids * 0, ids * 0 + 1)
    np.testing.assert_allclose(nnx_encoder.encoder_of(loaded)(ids, ids * 0, ids * 0 + 1), expected, atol=1e-6)


def test_a_task_of_ones_own(model: pathlib.Path, tmp_path: pathlib.Path):
    rows = [f"{text}\t{text.split()[-1]}" for text in ("it is good", "all was bad", "good", "so bad") * 12]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    arguments = f"--config {own_task.__file__} --model {model} --workdir {tmp_path / 'run'} --data.train {tmp_path / 'train.tsv'}"
    # Measured once, at the end: the best checkpoint may be one that has not learnt all.
    arguments += f" --data.dev {tmp_path / 'train.tsv'} --task.gamma 1 --train.epochs 12 --train.evaluations 0.08"
    arguments += " --optimizer.peak-learning-rate 3e-3"
    config = command_line.parse(arguments.split(), FinetuneConfig, "")
    # The file was run, and its classes are new ones.
    assert dataclasses.asdict(config.task) == dataclasses.asdict(own_task.FocalConfig(gamma=1.0))
    result = finetune(config)
    assert result.dev["worst_recall"] > 0.9
    assert jaxbert.load(result.model).predictor("classify").classify("all was bad")["label"] == "bad"
    with pytest.raises(SystemExit):
        command_line.parse([*arguments.split(), "--task.gama", "1"], FinetuneConfig, "")
    # The run's own config.json says the same again, after the file that has its classes.
    saved = f"--config {own_task.__file__} --config {result.workdir / 'config.json'}"
    again = command_line.parse(saved.split(), FinetuneConfig, "")
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    assert type(again.task).__name__ == "FocalConfig"
    with pytest.raises(ConfigError, match=r"task.kind is 'focal': .*--config own.py --config config.json"):
        command_line.parse(saved.split()[2:], FinetuneConfig, "")


def test_the_readme_shows_the_task_as_it_is(repository: pathlib.Path):
    shown = (repository / "README.md").read_text(encoding="utf8")
    code = (
        pathlib.Path(own_task.__file__)
        .read_text(encoding="utf8")
        .replace("  # pyright: ignore[reportIncompatibleVariableOverride]", "")
    )
    assert code[code.index("@dataclasses.dataclass") :] in shown
