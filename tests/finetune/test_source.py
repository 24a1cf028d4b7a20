"""What a fine-tuning run starts from, in folders of runs that are made by hand; and what is said where that is another now."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from jaxbert import run_folder
from jaxbert.config import Config, ConfigError
from jaxbert.finetune import source
from jaxbert.finetune.config import FinetuneConfig
from jaxbert.finetune.source import NEW, find_start
from jaxbert.run_folder import Start
from jaxbert.train.checkpoint_record import CHECKPOINTS, RECORDS, Record, format_record

FOLDER = pathlib.Path("finetuned")
CONFIG = FinetuneConfig(workdir=str(FOLDER))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def pretrained(name: str, step: int, content: str = "a") -> str:
    """A run of pretraining with a checkpoint."""
    folder = pathlib.Path("runs", name)
    checkpoint(folder, step, content)
    run_folder.save(Config(), folder, "rows")
    return str(folder)


def checkpoint(folder: pathlib.Path, step: int, content: str = "a") -> None:
    for name in (CHECKPOINTS, RECORDS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    record = Record(step, {"arrays": {"bytes": 1, "sha256": content}})
    (folder / RECORDS / f"{step}.json").write_text(format_record(record))


def started(config: FinetuneConfig = CONFIG) -> Start:
    """A run that has just begun, as `finetune` has it."""
    start = find_start(config)
    run_folder.save_finetuning(config, FOLDER, "examples", start)
    return start


def test_a_run_that_has_come_since_is_said(capsys: pytest.CaptureFixture[str]):
    """python finetune.py, train.py, finetune.py: the run in the folder goes on from what it started from."""
    assert started() == Start(NEW)
    checkpoint(FOLDER, 10)
    assert find_start(CONFIG) == Start(NEW)
    assert capsys.readouterr().out == ""
    pretrained("tiny", 5)
    assert find_start(CONFIG) == Start(NEW)
    assert capsys.readouterr().out == (
        "warning: finetuned started from a new small encoder, and the newest run is runs/tiny now: to start from there, choose "
        "another --workdir, or remove finetuned\n"
    )


@pytest.mark.parametrize("model", [None, "runs/tiny"])
@pytest.mark.parametrize(
    ("step", "content", "what"),
    [(2600, "b", "which was at step 500 and is at step 2,600 now"), (500, "b", "which has been trained anew since")],
)
def test_a_checkpoint_that_has_come_since_is_said(
    capsys: pytest.CaptureFixture[str], model: str | None, step: int, content: str, what: str
):
    config = dataclasses.replace(CONFIG, model=model)
    pretrained("tiny", 500)
    first = started(config)
    assert first[:2] == ("runs/tiny", 500)
    checkpoint(FOLDER, 10)
    assert find_start(config) == first
    assert capsys.readouterr().out == ""
    pretrained("tiny", step, content)
    assert find_start(config) == first
    warning = f"warning: finetuned started from runs/tiny, {what}: to start from there, choose another --workdir, or remove finetuned\n"
    assert capsys.readouterr().out == warning
    # Seeds that were not trained yet start from what there is now.
    several = dataclasses.replace(config, seeds=3)
    assert find_start(several) == first
    assert f"{what}, where runs that are still to come begin: to start" in capsys.readouterr().out
    seed = dataclasses.replace(config, workdir="finetuned/seed-2")
    now = find_start(seed, first.name)
    assert now == source.state_of("runs/tiny")
    assert now != first
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("left", ["untrained/metrics.jsonl", "metrics.jsonl"])
def test_a_run_without_a_checkpoint_starts_from_what_there_is_now(capsys: pytest.CaptureFixture[str], left: str):
    """It has trained its comparison alone, or was killed before it saved anything."""
    pretrained("tiny", 500)
    started()
    (FOLDER / left).parent.mkdir(exist_ok=True)
    (FOLDER / left).write_text("{}\n")
    pretrained("tiny", 2600)
    again = started()
    assert (again.name, again.step) == ("runs/tiny", 2600)
    checkpoint(FOLDER, 10)
    assert find_start(CONFIG) == again
    assert capsys.readouterr().out == ""


def test_an_older_folder_knows_the_name_alone(capsys: pytest.CaptureFixture[str]):
    pretrained("tiny", 500)
    started()
    checkpoint(FOLDER, 10)
    path = FOLDER / "config.json"
    record = json.loads(path.read_text())
    del record["started_from_step"], record["started_from_checkpoint"]
    path.write_text(json.dumps(record))
    pretrained("tiny", 2600)
    assert started() == find_start(CONFIG) == Start("runs/tiny")
    # What is gone is said by whatever loads it.
    shutil.rmtree("runs")
    assert find_start(CONFIG) == Start("runs/tiny")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["org/model", "x" * 300, "~nobody-of-this-name/model"])
def test_what_is_no_run_has_no_step(name: str):
    assert source.state_of(name) == Start(name)


def test_a_damaged_record_says_nothing():
    name = pretrained("tiny", 500)
    pathlib.Path(name, RECORDS, "600.json").write_text("{}")
    assert source.state_of(name) == Start(name)


def test_texts_that_no_vocabulary_can_be_learnt_from(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(
        ConfigError, match="too few to learn a vocabulary from: name a model to start from with --model"
    ):
        source._new(["a"], tmp_path, keep_tokenizer=False)
    assert source._new(["ab ab"] * 3, tmp_path, keep_tokenizer=False).name == source.NEW
    assert not caplog.records
