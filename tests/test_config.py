"""The configuration tree: its documentation, its phases, and every contradiction that `validate` must find."""

import ast
import dataclasses
import inspect
import pathlib

import pytest

from jaxbert import config as config_module
from jaxbert import validation
from jaxbert.command_line import load
from jaxbert.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LongPhase,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
    VocabularyConfig,
)
from jaxbert.validation import validate

SHIPPED = "tiny bert_mini bert_small bert_medium bert_base bert_large bert_base_chinese roberta_base".split()


def test_every_field_has_a_docstring():
    tree = ast.parse(inspect.getsource(config_module))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "LongPhase")):
            continue
        for field, text in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(field.target)} has no docstring"


def test_the_tree_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.batch_size = 1  # pyright: ignore


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_sound(repository: pathlib.Path, name: str):
    config = load(repository / "configs" / f"{name}.py")
    validate(config, num_devices=1)
    assert config.name == name


def test_published_sizes(repository: pathlib.Path):
    published = {  # layers, width, heads; Turc et al. 2019 table 1, Devlin et al. 2018 section 3
        "bert_mini": (4, 256, 4), "bert_small": (4, 512, 8), "bert_medium": (8, 512, 8),
        "bert_base": (12, 768, 12), "bert_large": (24, 1024, 16), "roberta_base": (12, 768, 12),
    }  # fmt: skip
    for name, size in published.items():
        model = load(repository / "configs" / f"{name}.py").model
        assert (model.num_layers, model.hidden_size, model.num_heads) == size
        assert model.intermediate_size == 4 * model.hidden_size


def test_base_runs_two_phases_with_the_published_predictions(repository: pathlib.Path):
    short, long = load(repository / "configs/bert_base.py").phases()
    assert (short.first_step, short.last_step, short.max_length, short.max_predictions) == (0, 900_000, 128, 20)
    assert (long.first_step, long.last_step, long.max_length, long.max_predictions) == (900_000, 1_000_000, 512, 77)
    assert short.batch_size == long.batch_size == 256


def test_a_run_of_the_long_phase_alone():
    (phase,) = Config(train=TrainConfig(num_steps=100_000, long_phase=LongPhase(num_steps=100_000))).phases()
    assert (phase.first_step, phase.last_step, phase.max_length) == (0, 100_000, 512)


def model(**fields) -> Config:
    return Config(model=ModelConfig(**fields))


def data(**fields) -> Config:
    return Config(data=DataConfig(**fields))


def train(**fields) -> Config:
    return Config(train=TrainConfig(**fields))


CONTRADICTIONS = [
    (model(num_heads=5), "model.num_heads (5) does not divide model.hidden_size (768)"),
    (model(hidden_dropout=1.5), "model.hidden_dropout is 1.5: it is a share, from 0 to 1"),
    (model(attention_dropout=1.0), "model.attention_dropout is 1.0: it must be below 1"),
    (model(num_layers=0), "model.num_layers is 0: it must be a number above 0"),
    (model(layer_norm_epsilon=float("nan")), "model.layer_norm_epsilon is nan: it must be a number above 0"),
    (model(attention_backend="xla"), 'model.attention_backend "xla" has no dropout'),
    (
        model(attention_backend="flash"),
        "model.attention_backend is 'flash': choose one of explicit, xla, gpu_flash, cudnn, tpu_flash",
    ),
    (model(dtype="half"), "model.dtype is 'half': choose one of auto, float32, bfloat16"),
    (
        model(attention_backend="gpu_flash", num_heads=16),
        'model.attention_backend "gpu_flash" takes heads of 16, 32, 64, 128, and model.hidden_size (768) / model.num_heads (16) is 48',
    ),
    (model(type_vocab_size=1), 'data.pairs "nsp" needs a model.type_vocab_size (1) of at least 2'),
    (data(max_length=1024), "data.max_length (1024) is beyond model.max_position_embeddings (512)"),
    (data(max_length=4), "data.max_length is 4: a row needs at least 8 tokens"),
    (data(text=()), "data.text is empty"),
    (data(heldout_share=0.0), "data.heldout_share is 0 and data.heldout_text is empty"),
    (data(heldout_share=1.0), "data.heldout_share is 1.0: it must be below 1"),
    (data(pairs="none"), 'data.pairs "none" has no NSP labels: set train.alpha (1.0) to 0'),
    (data(vocabulary=VocabularyConfig(path="")), "data.vocabulary.path is empty"),
    (data(vocabulary=VocabularyConfig(size=104)), "data.vocabulary.size (104) must be above the 104 reserved tokens"),
    (data(workers=-1), "data.workers is -1: it must not be negative"),
    (Config(masking=MaskingConfig(mask_share=0.8, random_share=0.3)), "add up to more than 1"),
    (Config(masking=MaskingConfig(max_predictions=200)), "masking.max_predictions (200) must be from 1 to"),
    (Config(optimizer=OptimizerConfig(beta2=1.0)), "optimizer.beta2 is 1.0: it must be below 1"),
    (train(num_steps=100), "optimizer.warmup_steps (10000) is more than train.num_steps (100)"),
    (train(accumulation_steps=3), "train.batch_size (256) is not divisible by train.accumulation_steps (3)"),
    (train(long_phase=LongPhase(num_steps=2_000_000)), "train.long_phase.num_steps (2000000) is more than"),
    (train(long_phase=LongPhase(5, max_length=640)), "train.long_phase.max_length (640) is beyond"),
    (train(long_phase=LongPhase(5, max_predictions=0)), "train.long_phase.max_predictions (0) must be from 1"),
    (train(long_phase=LongPhase(5, batch_size=9), accumulation_steps=2), "train.long_phase.batch_size (9) is not"),
    (Config(checkpoint=CheckpointConfig(every=0)), "checkpoint.every is 0: it must be a number above 0"),
    (Config(mesh=MeshConfig(data=0)), "mesh.data is 0: it must be at least 1, or -1"),
    (Config(seed=-1), "seed is -1: it must not be negative"),
    (Config(seed=2**32), "seed is 4294967296: it must be below 2**32"),
    (Config(workdir=""), "workdir is empty"),
    (Config(masking=MaskingConfig(share=0.0)), "masking.share is 0: there would be nothing to predict"),
    (
        Config(optimizer=OptimizerConfig(peak_learning_rate=float("inf"))),
        "peak_learning_rate is inf: it must be a number",
    ),
    (Config(optimizer=OptimizerConfig(beta1=-1.0)), "optimizer.beta1 is -1.0: it must not be negative"),
    (train(long_phase=LongPhase(5, batch_size=0)), "train.long_phase.batch_size is 0: it must be a number above 0"),
    (data(max_document_bytes=1), "data.max_document_bytes is 1: pieces of a document need 100 bytes or more"),
    (model(vocab_size=30523), "model.vocab_size (30523) is more than the data.vocabulary.size (30522) tokens"),
    (
        model(attention_backend="cudnn", attention_dropout=0.0, dtype="float32"),
        'model.attention_backend "cudnn" has no float32: set model.dtype to "bfloat16"',
    ),
    (
        dataclasses.replace(model(attention_backend="tpu_flash"), data=DataConfig(max_length=96)),
        "data.max_length (96) is no multiple of 128",
    ),
    (
        dataclasses.replace(
            train(long_phase=LongPhase(5, max_length=500)), model=ModelConfig(attention_backend="tpu_flash")
        ),
        "train.long_phase.max_length (500) is no multiple of 128",
    ),
]


@pytest.mark.parametrize(("config", "message"), CONTRADICTIONS, ids=[m[:40] for _, m in CONTRADICTIONS])
def test_contradiction_is_named(config: Config, message: str):
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert message in str(caught.value)


def test_what_may_come_out_is_no_contradiction():
    """A text may have fewer tokens than were to be learnt; the other vocabulary and the other phase are not there."""
    validate(model(vocab_size=800))
    validate(dataclasses.replace(data(vocabulary=VocabularyConfig(path="vocab.txt", size=105)), model=ModelConfig(800)))
    validate(model(attention_backend="gpu_flash"))
    flash = ModelConfig(attention_backend="tpu_flash", attention_dropout=0.0)
    validate(dataclasses.replace(train(long_phase=LongPhase(0, max_length=500)), model=flash))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    wanted = Config(
        workdir=str(tmp_path / "run"), data=DataConfig(segmenter="jieba"), tracking=TrackingConfig(wandb=True)
    )
    monkeypatch.setattr(validation, "installed", lambda package: True)
    validate(wanted, num_devices=1)
    monkeypatch.setattr(validation, "installed", lambda package: False)
    with pytest.raises(ConfigError) as caught:
        validate(wanted, num_devices=1)
    jieba, wandb = str(caught.value).splitlines()
    assert 'data.segmenter "jieba"' in jieba
    assert "jaxbert[chinese]" in jieba
    assert "tracking.wandb" in wandb
    assert "jaxbert[wandb]" in wandb
    # Rows that were prepared elsewhere are trained on without jieba, and rows are prepared without wandb.
    (tmp_path / "run" / "rows").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"^tracking.wandb is on[^\n]*$"):
        validate(wanted, num_devices=1)
    validate(wanted)


def test_a_folder_is_no_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    (tmp_path / "folder_of_runs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not validation.installed("folder_of_runs")
    assert not validation.installed("there_is_no_such_package")
    assert validation.installed("numpy")


MESHES = [
    (
        MeshConfig(fsdp=3),
        {},
        "mesh.data (-1) x mesh.fsdp (3) x mesh.tensor (1) does not make the number of devices (8)",
    ),
    (MeshConfig(data=2), {}, "mesh.data (2) x mesh.fsdp (1) x mesh.tensor (1) does not make the number of devices (8)"),
    (
        MeshConfig(),
        {"batch_size": 12},
        "train.batch_size (12) is not divisible by the devices that share the batch (8)",
    ),
    (MeshConfig(), {"batch_size": 8, "accumulation_steps": 2}, "x train.accumulation_steps (2)"),
    (MeshConfig(tensor=8), {}, "model.num_heads (12) is not divisible by mesh.tensor (8)"),
]


@pytest.mark.parametrize(("mesh", "fields", "message"), MESHES)
def test_contradiction_with_the_devices_is_named(mesh: MeshConfig, fields: dict, message: str):
    config = dataclasses.replace(train(**fields), mesh=mesh)
    validate(config)
    with pytest.raises(ConfigError) as caught:
        validate(config, num_devices=8)
    assert message in str(caught.value)


def test_all_contradictions_come_at_once():
    config = Config(
        model=ModelConfig(num_heads=5), data=DataConfig(max_length=1024), train=TrainConfig(accumulation_steps=3)
    )
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert len(str(caught.value).splitlines()) == 3


def test_a_value_out_of_range_hides_no_contradiction():
    config = Config(model=ModelConfig(num_heads=0), data=DataConfig(max_length=1024), masking=MaskingConfig(share=-1.0))
    with pytest.raises(ConfigError) as caught:
        validate(config, num_devices=8)
    text = str(caught.value)
    for name in ("model.num_heads is 0", "data.max_length (1024)", "masking.share is -1.0"):
        assert name in text
    assert text.count("masking.share is") == 1
