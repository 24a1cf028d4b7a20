"""load: paths, names of the hub, and the arguments that reach every kind of file."""

import dataclasses
import pathlib

import numpy as np
import pytest
from made_models import torch_model, write_folder

from jaxbert.weights.huggingface import save
from jaxbert.weights.load import load
from jaxbert.weights.names import WeightsError


def test_a_path_that_is_not_there(tmp_path: pathlib.Path):
    for path in (
        tmp_path / "gone",
        str(tmp_path / "gone"),
        "./gone",
        "a/b/c",
        "",
        "~nobody/x",
        f"./{'a' * 300}",
        "./a\0",
    ):
        with pytest.raises(WeightsError, match=r"^\S.*: no such file or folder") as caught:
            load(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", [None, 5, b"abc"])
def test_what_is_no_path(path):
    with pytest.raises(WeightsError, match=r"is no path: name a file or folder, or a model on the hub"):
        load(path)


def test_a_name_without_a_network_and_without_a_copy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"nobody/nothing: .* could not be fetched from the hub") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)
    assert "name a folder" in str(caught.value)


def test_fresh_heads_over_an_encoder_are_said(tmp_path: pathlib.Path):
    folder = write_folder(tmp_path / "m", torch_model("BertModel"))
    assert load(folder).groups == ("pooler",)
    loaded = load(folder, fresh=("mlm", "nsp"))
    assert {path.split("/")[0] for path in loaded.fresh} == {"mlm", "nsp"}
    target = save(tmp_path / "out", **(loaded.export_arguments() | {"architecture": "BertForPreTraining"}))
    again = load(target)
    assert again.fresh == ()
    np.testing.assert_array_equal(again.params["mlm"]["dense"]["kernel"], loaded.params["mlm"]["dense"]["kernel"])


def test_what_the_named_class_must_have_is_required(tmp_path: pathlib.Path):
    folder = write_folder(tmp_path / "m", torch_model("BertModel"))
    path = folder / "config.json"
    path.write_text(path.read_text().replace("BertModel", "BertForMaskedLM"))
    with pytest.raises(WeightsError, match=r"5 missing \(cls.predictions.*fresh=\('mlm',\)"):
        load(folder)
    assert load(folder, heads=()).groups == ()


def test_the_layout_of_layers_is_the_callers_choice(tmp_path: pathlib.Path):
    folder = write_folder(tmp_path / "m")
    stacked, single = load(folder, scan_layers=True), load(folder)
    assert stacked.config == dataclasses.replace(single.config, scan_layers=True)
    kernel = stacked.params["encoder"]["layers"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(kernel[1], single.params["encoder"]["layers_1"]["attention"]["key"]["kernel"])
