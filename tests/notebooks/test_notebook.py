"""The notebook runs from a clean kernel, from raw text to a folder that it hands out."""

import copy
import json
import os
import pathlib
import re
import tomllib
import zipfile

import nbclient
import nbformat
import pytest

# What every runtime has that has a notebook with pictures, and what the notebook must leave as it is or asks for by itself.
NOT_INSTALLED = {"jax", "numpy", "scipy", "matplotlib", "tensorflow", "tensorflow-cpu"}


@pytest.fixture(scope="module")
def notebook(repository: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(repository / "notebooks" / "jaxbert.ipynb", as_version=4)


def outputs(cell: nbformat.NotebookNode) -> str:
    """The text of all outputs of a cell, and the kinds of the others."""
    shown = [json.dumps(output.get("data", {})) for output in cell.outputs]
    return "\n".join([*shown, *(output.get("text", "") for output in cell.outputs)])


# pyzmq and jupyter_client warn of event loops and of folders of other versions: not ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_the_whole_journey(notebook: nbformat.NotebookNode, repository: pathlib.Path, tmp_path: pathlib.Path):
    at = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    short = nbformat.v4.new_code_cell("steps, epochs, max_examples = 60, 0.5, 400")
    ours = copy.deepcopy(notebook)
    ours.cells.insert(at + 1, short)
    client = nbclient.NotebookClient(ours, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    # One device, as most who open it have, not the eight of the other tests.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    client.execute(env=environment | {"PYTHONPATH": str(repository)})

    by_text = {cell.source: outputs(cell) for cell in ours.cells if cell.cell_type == "code"}
    found = next(text for source, text in by_text.items() if "pretrain(config)" in source)
    assert "<progress value='60' max='60'>" in found
    assert "held-out" in found
    assert sum("image/png" in text for text in by_text.values()) == 2
    assert next(text for source, text in by_text.items() if "fill_mask" in source).count("return the") == 3
    assert len(re.findall(r"0\.\d\d  ", next(text for source, text in by_text.items() if "classifier" in source))) == 3
    with zipfile.ZipFile(tmp_path / "jaxbert-model.zip") as archive:
        assert {"config.json", "model.safetensors", "README.md"} <= set(archive.namelist())


def test_it_installs_what_is_needed_and_leaves_jax_alone(notebook: nbformat.NotebookNode, repository: pathlib.Path):
    with (repository / "pyproject.toml").open("rb") as file:
        needed = {re.split(r"[<>=;\[ ]", line)[0] for line in tomllib.load(file)["project"]["dependencies"]}
    line = next(line for cell in notebook.cells for line in cell.source.splitlines() if "kept.txt chex" in line)
    assert set(line.split("kept.txt ")[-1].split()) == needed - NOT_INSTALLED
    assert sum(cell.source.count("pip install") for cell in notebook.cells) == 3


def test_it_is_kept_without_outputs(notebook: nbformat.NotebookNode):
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
