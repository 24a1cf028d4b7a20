"""Which weights a folder holds, and what lies outside it."""

import json
import os
import pathlib

import pytest

from jaxbert.weights.folder import find, inside, shard_names
from jaxbert.weights.names import WeightsError


def touch(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "kind", "path"),
    [
        (["config.json", "model.safetensors"], "huggingface", "model.safetensors"),
        (["config.json", "flax_model.msgpack", "pytorch_model.bin"], "flax", "flax_model.msgpack"),
        (["bert_config.json", "bert_model.ckpt.index", "bert_model.ckpt.data-0"], "tensorflow", "bert_model.ckpt"),
        (["config.json", "checkpoints/1", "checkpoints_sha256/1.json"], "run", ""),
    ],
)
def test_the_kind_is_told_by_the_contents(tmp_path: pathlib.Path, names: list[str], kind: str, path: str):
    found = find(touch(tmp_path, *names))
    assert (found.kind, found.path, found.folder) == (kind, tmp_path / path, tmp_path)


def test_a_file_may_be_named_itself(tmp_path: pathlib.Path):
    touch(tmp_path, "model.safetensors", "flax_model.msgpack", "a.ckpt-5.index", "b.ckpt-9.index")
    for name, kind in {"flax_model.msgpack": "flax", "model.safetensors": "huggingface"}.items():
        assert find(tmp_path / name).kind == kind
    for name in ("a.ckpt-5", "a.ckpt-5.index"):
        assert find(tmp_path / name).path == tmp_path / "a.ckpt-5"


@pytest.mark.parametrize("second", ["flax_model.msgpack", "model-2.safetensors", "bert_model.ckpt.index"])
def test_two_weight_files_are_refused_by_name(tmp_path: pathlib.Path, second: str):
    touch(tmp_path, "model.safetensors", second)
    with pytest.raises(WeightsError, match="holds several weight files") as caught:
        find(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert second.removesuffix(".index") in str(caught.value)


def test_none_and_a_pickle_alone(tmp_path: pathlib.Path):
    with pytest.raises(WeightsError, match="holds no weights"):
        find(touch(tmp_path, "config.json"))
    touch(tmp_path, "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(WeightsError, match=r"pytorch_model.bin: is a torch pickle.*convert it .*save_pretrained"):
            find(path)


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "x/a.safetensors",
        "a\\b.safetensors",
        "a.bin",
        7,
        "a\nb.safetensors",
        "\ud800.safetensors",
        f"{'a' * 300}.safetensors",
    ],
)
def test_shard_names_that_are_paths_are_refused(tmp_path: pathlib.Path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError, match="is no name of a shard in its folder") as caught:
        shard_names(index, tmp_path)
    assert str(caught.value).isprintable()


def test_an_index_of_a_hundred_thousand_shards_is_refused(tmp_path: pathlib.Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(100_000)}}))
    with pytest.raises(WeightsError, match="names 100000 shards, of 10000 at most: get the file again"):
        shard_names(index, tmp_path)


def test_an_index_and_a_whole_file_are_two(tmp_path: pathlib.Path):
    touch(tmp_path, "model.safetensors", "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="several weight files"):
        find(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert find(tmp_path).path.name == "model.safetensors.index.json"


def test_links_may_not_leave_the_folder(tmp_path: pathlib.Path):
    folder = touch(tmp_path / "in", "file")
    touch(tmp_path, "secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "within").symlink_to(folder / "file")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    assert inside(folder / "within", folder) == folder / "within"
    for name, message in {
        "out": "is a link out of its folder",
        "loop": "no such file",
        "gone": "no such file",
        "sub": "is no file",
        "pipe": "is no file",
    }.items():
        with pytest.raises(WeightsError, match=message):
            inside(folder / name, folder)


def test_the_hubs_cache_is_made_of_links(tmp_path: pathlib.Path):
    touch(tmp_path, "blobs/abc", "secret")
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "a").symlink_to("../../blobs/abc")
    (snapshot / "b").symlink_to(pathlib.Path("/etc/hostname"))
    assert inside(snapshot / "a", snapshot)
    with pytest.raises(WeightsError, match="link out of its folder"):
        inside(snapshot / "b", snapshot)
    (snapshot / "0_Transformer").mkdir()
    (snapshot / "0_Transformer" / "c").symlink_to("../../../blobs/abc")
    assert inside(snapshot / "0_Transformer" / "c", snapshot / "0_Transformer")
