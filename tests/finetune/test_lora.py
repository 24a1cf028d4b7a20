"""Low-rank adapters: what is trained and kept of a run with them, the same on every mesh, and what comes out, in transformers and peft."""

import dataclasses
import json
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from made_runs import LABELS, reviews, small, write_table
from safetensors.numpy import load_file, save_file

from jaxbert import load
from jaxbert.config import ConfigError, MeshConfig, ModelConfig, OptimizerConfig, VocabularyConfig
from jaxbert.finetune import lora
from jaxbert.finetune.config import ExamplesConfig, FinetuneConfig, FinetuneTrainConfig, LoraConfig, SimilarityConfig
from jaxbert.finetune.run import FinetuneResult, finetune
from jaxbert.finetune.validation import validate
from jaxbert.model.bert import BertForPreTraining
from jaxbert.model.lora import init_adapters, merge
from jaxbert.predict.stream import PredictOptions, predict
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.text.vocabulary import Vocabulary, save_tokenizer
from jaxbert.text.wordpiece import train_tokenizer
from jaxbert.train import session
from jaxbert.train.freezing import Adapted
from jaxbert.train.sharding import path_name, unbox
from jaxbert.weights import huggingface
from jaxbert.weights.names import WeightsError
from jaxbert.weights.tokenizer import open_tokenizer

ALL = ("query", "key", "value", "attention_output", "intermediate", "feed_forward_output")
TINY = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    initializer_range=0.2,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """train.tsv, dev.tsv, and base/, a pretrained model with a pooler."""
    folder = tmp_path_factory.mktemp("lora")
    write_table(folder / "train.tsv", reviews(64, 0))
    write_table(folder / "dev.tsv", reviews(24, 1))
    tokenizer = train_tokenizer((text for text, _ in reviews(64, 0)), VocabularyConfig(size=300))
    save_tokenizer(tokenizer, folder / "tokenizer", 64)
    config = dataclasses.replace(TINY, vocab_size=Vocabulary.of(tokenizer).size)
    one = np.ones((1, 1), np.int32)
    params = unbox(BertForPreTraining(config).init(jax.random.key(3), one, one, one)["params"])
    huggingface.save(folder / "base", config, params, folder / "tokenizer")
    return folder


def run_of(place: pathlib.Path, workdir: pathlib.Path, **changes: Any) -> FinetuneConfig:
    settings = {
        "model": str(place / "base"),
        "lora": LoraConfig(rank=4, targets=ALL),
        "optimizer": OptimizerConfig(peak_learning_rate=2e-2, warmup_share=0.1, weight_decay=0.1),
        "train": FinetuneTrainConfig(epochs=8, batch_size=8, evaluations=0.25, log_every=1),
    }
    return small(place, workdir, **(settings | changes))


@pytest.fixture(scope="module")
def separate(place: pathlib.Path) -> tuple[FinetuneConfig, FinetuneResult]:
    """A finished run over eight simulated devices, with adapters in peft's format."""
    config = run_of(place, place / "separate", lora=LoraConfig(rank=4, targets=ALL, export="separate"))
    return config, finetune(config)


@pytest.fixture(scope="module")
def merged(place: pathlib.Path) -> tuple[FinetuneConfig, FinetuneResult]:
    """The same run, exported whole."""
    config = run_of(place, place / "merged")
    return config, finetune(config)


def torch_logits(model: Any, folder: pathlib.Path) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([text for text, _ in reviews(24, 1)], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def our_scores(folder: pathlib.Path, **options: Any) -> np.ndarray:
    found = load(folder, **options).predictor("classify").classify([text for text, _ in reviews(24, 1)])
    return np.array([[one["scores"][label] for label in LABELS] for one in found])


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fresh_adapters_change_nothing_and_have_the_shapes_and_sizes_of_peft(scan_layers: bool):
    config = dataclasses.replace(TINY, scan_layers=scan_layers)
    task = PretrainingTask(config)
    adapted = Adapted(task, 3, 2.0, ALL)
    key = jax.random.key(0)
    params = unbox(adapted.init(key))
    for before, after in zip(
        jax.tree.leaves(unbox(task.init(key))), jax.tree.leaves(adapted.merged(params)), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    inputs = {
        "query": 16,
        "key": 16,
        "value": 16,
        "attention_output": 16,
        "intermediate": 16,
        "feed_forward_output": 32,
    }
    for block in params["lora"].values():
        for name, adapter in block.items():
            a = np.asarray(adapter["a"])
            assert a.shape[-1] == 3
            assert a.size == inputs[name] * 3 * (2 if scan_layers else 1)
            assert not np.any(adapter["b"])
            # torch's kaiming_uniform with a = sqrt(5) is uniform within 1 / sqrt(inputs).
            assert 0.8 / np.sqrt(inputs[name]) < np.abs(a).max() <= 1 / np.sqrt(inputs[name])
    # No two are alike.
    firsts = [np.ravel(a)[0] for block in params["lora"].values() for a in (one["a"] for one in block.values())]
    assert len(set(map(float, firsts))) == len(firsts)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_merging_is_the_formula(scan_layers: bool):
    task = PretrainingTask(dataclasses.replace(TINY, scan_layers=scan_layers))
    boxed = task.init(jax.random.key(0))["encoder"]
    encoder = unbox(boxed)
    generator = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32),
        unbox(init_adapters(jax.random.key(1), boxed, 3, ALL)),
    )
    found = merge(encoder, adapters, 0.5)
    if scan_layers:
        encoder, found, adapters = (
            jax.tree.map(lambda leaf: leaf[1], tree["layers"]) for tree in (encoder, found, adapters)
        )
    else:
        encoder, found, adapters = (tree["layers_1"] for tree in (encoder, found, adapters))
    for module, name, adapter in (
        ("attention", "query", adapters["query"]),
        ("attention", "output", adapters["attention_output"]),
        ("feed_forward", "output", adapters["feed_forward_output"]),
    ):
        kernel = np.asarray(encoder[module][name]["kernel"])
        product = adapter["a"].reshape(-1, 3) @ adapter["b"].reshape(3, -1)
        expected = kernel + 0.5 * product.reshape(kernel.shape)
        np.testing.assert_allclose(found[module][name]["kernel"], expected, atol=1e-5)
    np.testing.assert_array_equal(encoder["attention"]["query"]["bias"], found["attention"]["query"]["bias"])


def final_state(config: FinetuneConfig, step: int) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(pathlib.Path(config.workdir).absolute() / f"checkpoints/{step}/default")


def test_only_adapters_and_head_move_and_have_moments(
    merged: tuple[FinetuneConfig, FinetuneResult], place: pathlib.Path
):
    config, result = merged
    state = final_state(config, result.step)
    base = load(place / "base").params
    for group in ("encoder", "pooler"):
        for (path, before), after in zip(
            jax.tree_util.tree_leaves_with_path(base[group]), jax.tree.leaves(state["params"][group]), strict=True
        ):
            np.testing.assert_array_equal(before, after, err_msg=path_name(path))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"]["lora"]):
        assert np.any(leaf), path_name(path)
    arrays = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if np.ndim(leaf)]
    moved = [leaf for name in ("lora", "sequence") for leaf in jax.tree.leaves(state["params"][name])]
    assert sum(leaf.size for leaf in arrays) == 2 * sum(leaf.size for leaf in moved)
    # Of three classes, on 24 examples.
    assert result.dev["accuracy"] > 0.5


def test_a_pooler_that_the_base_has_not_is_trained(place: pathlib.Path, tmp_path: pathlib.Path):
    loaded = load(place / "base", heads=("mlm",))
    huggingface.save(tmp_path / "base", **(loaded.export_arguments() | {"architecture": "BertForMaskedLM"}))
    config = run_of(
        place,
        tmp_path / "run",
        model=str(tmp_path / "base"),
        lora=LoraConfig(rank=1, export="separate"),
        train=FinetuneTrainConfig(epochs=0.5, batch_size=16),
    )
    result = finetune(config)
    assert result.model is not None
    names = load_file(result.model / "adapter_model.safetensors").keys()
    assert {"base_model.model.bert.pooler.dense.weight", "base_model.model.classifier.weight"} <= names
    assert json.loads((result.model / "adapter_config.json").read_text())["modules_to_save"] == ["classifier", "pooler"]
    assert load(result.model).groups == ("pooler", "sequence")


def test_the_merged_model_says_the_same_in_transformers(merged: tuple[FinetuneConfig, FinetuneResult]):
    folder = merged[1].model
    peer, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = softmax(torch_logits(peer, folder))
    np.testing.assert_allclose(our_scores(folder), theirs, rtol=0, atol=1e-5)
    assert np.mean(theirs.argmax(1) == [LABELS.index(label) for _, label in reviews(24, 1)]) == pytest.approx(
        merged[1].dev["accuracy"]
    )


def test_adapters_alone_are_the_merged_model(
    merged: tuple[FinetuneConfig, FinetuneResult], separate: tuple[FinetuneConfig, FinetuneResult]
):
    whole, parts = load(merged[1].model), load(separate[1].model)
    assert (whole.config, whole.labels, whole.architecture) == (parts.config, parts.labels, parts.architecture)
    assert whole.extra["id2label"] == parts.extra["id2label"]
    assert jax.tree.structure(whole.params) == jax.tree.structure(parts.params)
    for ours, theirs in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # The run's folder is as good as its model's.
    np.testing.assert_allclose(our_scores(separate[1].workdir), our_scores(merged[1].model), atol=1e-5)
    held = sum(path.stat().st_size for path in separate[1].model.glob("*.safetensors"))
    assert held < sum(path.stat().st_size for path in merged[1].model.glob("*.safetensors"))


# peft asks transformers for a name that transformers 5 calls old.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_say_the_same_in_peft(separate: tuple[FinetuneConfig, FinetuneResult], place: pathlib.Path):
    peft = pytest.importorskip("peft")
    folder = separate[1].model
    base = transformers.BertForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    model = peft.PeftModel.from_pretrained(base, folder)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapted) == TINY.num_layers * len(ALL)
    theirs = torch_logits(model, folder)
    loaded = load(folder)
    found = softmax(theirs)
    np.testing.assert_allclose(our_scores(folder), found, rtol=0, atol=1e-5)
    assert loaded.config.num_layers == 2
    # What peft writes of it comes in as well, without our own file.
    model.save_pretrained(place / "by_peft")
    open_tokenizer(folder).save(str(place / "by_peft" / "tokenizer.json"))
    again = load(place / "by_peft", base=place / "base")
    assert (again.architecture, again.labels) == ("BertForSequenceClassification", 3)
    for ours, others in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(ours, others, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_embedders_adapters_in_sentence_transformers(place: pathlib.Path, tmp_path: pathlib.Path):
    peft = pytest.importorskip("peft")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = [text for text, _ in reviews(16, 2)]
    rows = [f"{one}\t{other}" for one, other in zip(texts[::2], texts[1::2], strict=True)]
    (tmp_path / "train.tsv").write_text("anchor\tpositive\n" + "\n".join(rows) + "\n")
    config = run_of(
        place,
        tmp_path / "run",
        task=SimilarityConfig(pooling="cls"),
        data=ExamplesConfig(train=(str(tmp_path / "train.tsv"),), dev=(str(tmp_path / "train.tsv"),), max_length=24),
        lora=LoraConfig(rank=4, targets=ALL, export="separate"),
        train=FinetuneTrainConfig(epochs=4, batch_size=8),
    )
    folder = finetune(config).model
    assert folder is not None
    assert not (folder / "model.safetensors").exists()
    loaded = load(folder)
    assert loaded.embedder is not None
    assert (loaded.embedder.pooling, loaded.embedder.normalize, loaded.embedder.max_length) == ("cls", True, 24)
    ours = loaded.predictor().embed(texts)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    # peft on the encoder's own class.
    model = peft.PeftModel.from_pretrained(transformers.BertModel.from_pretrained(place / "base"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        first = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(first), rtol=0, atol=1e-5)
    # The adapters are in it: the base says something else.
    before = load(place / "base").predictor("embed").embed(texts, pooling="cls", normalize=True)
    assert np.abs(ours - before).max() > 1e-2
    assert "SentenceTransformer" in (folder / "README.md").read_text(encoding="utf8")


def lines(workdir: str) -> list[dict[str, Any]]:
    clock = {"time", "tokens_per_second", "input_wait_share"}
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def test_resume_is_bitwise(
    merged: tuple[FinetuneConfig, FinetuneResult], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    whole, result = merged
    config = dataclasses.replace(whole, workdir=str(tmp_path / "run"))
    real = session.make_trackers

    class Interrupt:
        def log(self, step: int, metrics: Any, split: str = "train") -> None:
            if step == 3 and split == "train":
                signal.raise_signal(signal.SIGTERM)

        def close(self) -> None:
            pass

    def interrupting(*arguments: Any, **keywords: Any) -> Any:
        trackers = real(*arguments, **keywords)
        trackers._trackers.append(Interrupt())
        return trackers

    monkeypatch.setattr(session, "make_trackers", interrupting)
    first = finetune(config)
    assert first.model is None
    monkeypatch.setattr(session, "make_trackers", real)
    second = finetune(config)
    assert (second.step, second.dev) == (result.step, result.dev)
    assert lines(config.workdir) == lines(whole.workdir)
    ours, theirs = (jax.tree.leaves(final_state(one, result.step)) for one in (config, whole))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_sharded_mesh_and_microbatches_change_nothing(place: pathlib.Path, tmp_path: pathlib.Path):
    train = FinetuneTrainConfig(epochs=1, batch_size=16, log_every=1)
    plain = run_of(place, tmp_path / "plain", dropout=0.0, train=train)
    train = dataclasses.replace(train, accumulation_steps=2)
    split = run_of(place, tmp_path / "split", dropout=0.0, train=train, mesh=MeshConfig(fsdp=2, tensor=2))
    results = [finetune(config) for config in (plain, split)]
    expected, found = ([line["loss"] for line in lines(config.workdir)] for config in (plain, split))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    before, after = (load_file(result.model / "model.safetensors") for result in results if result.model)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=1e-3, err_msg=name)


WRONG = [
    ({"lora": LoraConfig(rank=0)}, "lora.rank is 0: it must be at least 1"),
    ({"lora": LoraConfig(rank=2, alpha=0.0)}, "lora.alpha is 0.0: it must be a number above 0"),
    ({"lora": LoraConfig(rank=2, targets=())}, "lora.targets is empty: choose of query, key"),
    ({"lora": LoraConfig(rank=2, targets=("key", "key"))}, "lora.targets names a projection twice"),
    ({"lora": LoraConfig(rank=2, targets=("querry",))}, "lora.targets has 'querry': choose of query, key"),  # pyright: ignore[reportArgumentType]
    ({"lora": LoraConfig(export="separate")}, 'lora.export is "separate" and there are no adapters: set lora.rank'),
    ({"optimizer": OptimizerConfig(freeze_layers=1)}, "optimizer.freeze_layers does not go with lora.rank"),
    ({"optimizer": OptimizerConfig(freeze_embeddings=True)}, "optimizer.freeze_embeddings does not go with lora.rank"),
    ({"optimizer": OptimizerConfig(layer_decay=0.9)}, "optimizer.layer_decay does not go with lora.rank"),
    ({"train": FinetuneTrainConfig(reinit_layers=1)}, "train.reinit_layers does not go with lora.rank"),
    ({"compare_untrained": True}, "compare_untrained does not go with lora.rank"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_each_contradiction_is_named(changes: dict[str, Any], message: str):
    config = FinetuneConfig(**({"lora": LoraConfig(rank=2)} | changes))
    with pytest.raises(ConfigError) as caught:
        validate(config, 8)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_adapters_of_nothing_are_refused(place: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^lora.rank adapts a model, and a new small encoder has learnt nothing yet"):
        finetune(run_of(place, tmp_path / "run", model=None))


def changed(folder: pathlib.Path, target: pathlib.Path, **settings: Any) -> pathlib.Path:
    """A copy of an adapter with other settings."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "adapter_config.json").read_text()) | settings
    (target / "adapter_config.json").write_text(json.dumps(values))
    return target


def test_the_base_is_found_from_other_folders(
    separate: tuple[FinetuneConfig, FinetuneResult],
    merged: tuple[FinetuneConfig, FinetuneResult],
    place: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(place)
    assert lora._base("base") == str(place / "base")
    # Of a run of fine-tuning the model, which peft and transformers can open.
    assert lora._base(pathlib.Path(merged[0].workdir).name) == str(merged[1].model)
    assert lora._base("google/electra-small") == "google/electra-small"
    folder = separate[1].model
    assert folder is not None
    moved = changed(folder, tmp_path / "moved", base_model_name_or_path="gone")
    (tmp_path / "texts").write_text("great book, great\n")
    texts, out = str(tmp_path / "texts"), tmp_path / "out"
    with pytest.raises(WeightsError, match=r"or name it with base= \(--base\)"):
        predict(PredictOptions(str(moved), "classify", texts, str(out)))
    assert predict(PredictOptions(str(moved), "classify", texts, str(out), base=str(place / "base"))) == 1
    assert json.loads(out.read_text())["label"] == "good"


def test_adapters_without_their_base_are_refused_in_one_line(
    separate: tuple[FinetuneConfig, FinetuneResult], place: pathlib.Path, tmp_path: pathlib.Path
):
    folder = separate[1].model
    assert folder is not None
    moved = changed(folder, tmp_path / "moved", base_model_name_or_path=str(tmp_path / "gone"))
    loaded = load(place / "base")
    deeper = dataclasses.replace(loaded.config, num_layers=1)
    params = loaded.params | {"encoder": {k: v for k, v in loaded.params["encoder"].items() if k != "layers_1"}}
    huggingface.save(tmp_path / "shallow", deeper, params, loaded.tokenizer)
    bare = changed(folder, tmp_path / "bare")
    (bare / "merged_config.json").unlink()
    narrow = changed(folder, tmp_path / "narrow")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("query.lora_A.weight"))
    save_file(tensors | {name: np.ascontiguousarray(tensors[name][:, 1:])}, str(narrow / "adapter_model.safetensors"))
    for path, options, message in (
        (moved, {}, "gone: no such file or folder.*, or name it with base="),
        (moved, {"base": folder}, "is an adapter itself: name a whole model"),
        (moved, {"base": tmp_path / "shallow"}, "was trained on a base of num_layers 2, and .* has 1: .* base="),
        (bare, {"base": tmp_path / "shallow"}, "layer.1.attention.* has no counterpart in .*: name the model"),
        (narrow, {}, r"the adapter of .*query.weight is \[4, 15\] and \[16, 4\], and its kernel in .* \[16, 16\]"),
        (changed(folder, tmp_path / "dora", use_dora=True), {}, "use_dora True is another computation"),
        (changed(folder, tmp_path / "nan", lora_alpha=float("nan")), {}, "lora_alpha nan are no rank and no number"),
        (changed(folder, tmp_path / "infinite", lora_alpha=float("inf")), {}, "lora_alpha inf are no rank and no"),
        (
            changed(folder, tmp_path / "rank", r=999),
            {},
            r"r is 999, and \S+lora_A.weight is \[4, \d+\] in adapter_model",
        ),
        (changed(folder, tmp_path / "none", base_model_name_or_path=None), {}, "names no base: name the model"),
        (place / "base", {"base": folder}, "is no adapter, and needs no base"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)
    load(moved, base=place / "base")
    again = run_of(place, tmp_path / "run", model=str(folder), lora=LoraConfig(rank=2, export="separate"))
    with pytest.raises(ConfigError, match='is an adapter itself: use "merged"'):
        finetune(again)


def test_peft_finds_the_last_kernel_of_a_block_alone(place: pathlib.Path, tmp_path: pathlib.Path):
    """ "output.dense" is the end of two modules' names."""
    config = run_of(
        place,
        tmp_path / "run",
        lora=LoraConfig(rank=1, targets=("feed_forward_output",), export="separate"),
        train=FinetuneTrainConfig(epochs=0.5, batch_size=16),
    )
    settings = json.loads((finetune(config).model / "adapter_config.json").read_text())  # pyright: ignore
    assert settings["target_modules"] == ["layer.0.output.dense", "layer.1.output.dense"]
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (1, 16.0, "SEQ_CLS")
