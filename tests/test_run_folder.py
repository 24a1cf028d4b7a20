"""A run's folder: what a run may go on with, and what makes it another run."""

import dataclasses
import json
import pathlib

import pytest

from jaxbert import command_line, run_folder
from jaxbert.config import (
    Config,
    ConfigError,
    DataConfig,
    LongPhase,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
)
from jaxbert.finetune.config import FinetuneConfig


def test_the_same_run_goes_on_elsewhere_and_longer(tmp_path: pathlib.Path):
    ran = Config(model=ModelConfig(vocab_size=800, dtype="float32"))
    run_folder.check_same_run(ran, tmp_path)
    run_folder.save(ran, tmp_path, "fingerprint")
    # As the user types it again: vocabulary size and compute type are not given.
    again = Config(mesh=MeshConfig(fsdp=2), train=TrainConfig(num_steps=5, log_every=1), data=DataConfig(workers=3))
    run_folder.check_same_run(again, tmp_path)


def phased(num_steps: int, long_steps: int) -> Config:
    return Config(train=TrainConfig(num_steps=num_steps, long_phase=LongPhase(num_steps=long_steps)))


SWITCHES = [
    # Steps trained; steps in all and in the long phase, before and now; what is said.
    (950, (1000, 100), (1200, 100), "begins at step 1,100 instead of 900: set train.long_phase.num_steps to 300,"),
    (950, (1000, 100), (1000, 40), "begins at step 960 instead of 900: set train.long_phase.num_steps to 100,"),
    (850, (1000, 100), (900, 100), "begins at step 800 instead of 900: leave train.num_steps at 1000,"),
    (200, (200, 0), (300, 100), "train.long_phase.num_steps was 0 and is 100"),
    (950, (1000, 100), (1200, 300), None),
    (950, (1000, 100), (960, 60), None),
    (900, (1000, 100), (1200, 100), None),
    (800, (1000, 100), (900, 100), None),
    (1000, (1000, 0), (2000, 0), None),
    (1000, (1000, 0), (500, 0), None),
    (0, (1000, 100), (500, 200), None),
]


@pytest.mark.parametrize(("trained", "before", "now", "message"), SWITCHES)
def test_steps_that_were_trained_keep_their_length(tmp_path: pathlib.Path, trained: int, before, now, message):
    run_folder.save(phased(*before), tmp_path, "fingerprint")
    records = tmp_path / "checkpoints_sha256"
    records.mkdir()
    for step in (100, trained) if trained else ():
        (records / f"{step}.json").touch()
    if message is None:
        run_folder.check_same_run(phased(*now), tmp_path)
        return
    with pytest.raises(ConfigError) as caught:
        run_folder.check_same_run(phased(*now), tmp_path)
    assert message in str(caught.value)
    assert "train.num_steps" in str(caught.value) or trained == 200
    assert "\n" not in str(caught.value)


def test_another_run_is_refused_with_every_difference(tmp_path: pathlib.Path):
    run_folder.save(Config(), tmp_path, "fingerprint")
    other = Config(seed=1, data=DataConfig(max_length=64), train=TrainConfig(alpha=0.5))
    with pytest.raises(ConfigError) as caught:
        run_folder.check_same_run(other, tmp_path)
    text = str(caught.value)
    for part in ("seed was 0 and is 1", "data.max_length was 128 and is 64", "train.alpha was 1.0 and is 0.5"):
        assert part in text
    assert "--workdir" in text
    assert "\n" not in text


def test_a_value_where_there_was_none_is_another_run(tmp_path: pathlib.Path):
    run_folder.save(Config(), tmp_path, "fingerprint")
    other = Config(data=DataConfig(max_sequences=3), masking=MaskingConfig(max_predictions=1))
    with pytest.raises(
        ConfigError, match=r"data.max_sequences was None and is 3.*masking.max_predictions was None and is 1"
    ):
        run_folder.check_same_run(other, tmp_path)


def test_other_rows_are_refused(tmp_path: pathlib.Path):
    run_folder.check_same_rows("first", tmp_path)
    run_folder.save(Config(), tmp_path, "first")
    run_folder.check_same_rows("first", tmp_path)
    with pytest.raises(
        ConfigError, match=r"on other rows \(first, now second\): the text behind data.text has changed"
    ):
        run_folder.check_same_rows("second", tmp_path)


def test_a_kill_while_saving_leaves_the_old_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    run_folder.save(Config(seed=1), tmp_path, "rows")
    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_folder.save(Config(seed=2), tmp_path, "rows")
    run_folder.check_same_run(Config(seed=1), tmp_path)


SAVES = {
    "pretraining": lambda folder: run_folder.save(Config(), folder, "rows"),
    "finetuning": lambda folder: run_folder.save_finetuning(
        FinetuneConfig(), folder, "examples", run_folder.Start("a model")
    ),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES.keys())
def test_the_versions_of_the_first_start_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], save
):
    def start(**versions: str) -> tuple[dict, str]:
        monkeypatch.setattr(
            command_line, "versions", lambda: {"jax": "1.0", "jaxlib": "1.0", "numpy": "2.0"} | versions
        )
        save(tmp_path)
        return json.loads((tmp_path / "config.json").read_text()), capsys.readouterr().out

    start(jax="0.9")
    # Nothing was trained with those.
    record, said = start()
    assert "began_with" not in record
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    record, said = start()
    assert "began_with" not in record
    assert said == ""
    record, said = start(numpy="2.1")
    assert (record["began_with"]["numpy"], record["versions"]["numpy"], said) == ("2.0", "2.1", "")
    record, said = start(jax="1.1")
    assert (record["began_with"]["jax"], record["versions"]["jax"]) == ("1.0", "1.1")
    assert said.count("\n") == 1
    assert "began with jax 1.0 and goes on with jax 1.1: its numbers may differ in the last bits" in said
    # What was trained in between was trained with others.
    record, said = start()
    assert record["began_with"] == record["versions"]
    assert said == ""


def test_two_runs_are_not_in_one_folder(tmp_path: pathlib.Path):
    refused = pytest.raises(ConfigError, match="another run is training in it")
    with run_folder.locked(tmp_path / "run"), refused, run_folder.locked(tmp_path / "run"):
        pass
    with run_folder.locked(tmp_path / "run"):
        pass


def test_free_fields_exist():
    def names(value, prefix=""):
        for field in dataclasses.fields(value):
            yield prefix + field.name
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                yield from names(inner, prefix + field.name + ".")

    assert set(run_folder.FREE) <= set(names(Config()))


def test_a_file_is_no_workdir(tmp_path: pathlib.Path):
    (tmp_path / "w").write_text("")
    with pytest.raises(ConfigError, match="is a file: name a folder"), run_folder.locked(tmp_path / "w"):
        pass
