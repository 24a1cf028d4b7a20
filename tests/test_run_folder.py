"""A run's folder: what a run may go on with, and what makes it another run."""

import dataclasses
import pathlib

import pytest

from jaxbert import run_folder
from jaxbert.config import Config, ConfigError, DataConfig, MaskingConfig, MeshConfig, ModelConfig, TrainConfig


def test_the_same_run_goes_on_elsewhere_and_longer(tmp_path: pathlib.Path):
    ran = Config(model=ModelConfig(vocab_size=800, dtype="float32"))
    run_folder.check_same_run(ran, tmp_path)
    run_folder.save(ran, tmp_path, "fingerprint")
    # As the user types it again: vocabulary size and compute type are not given.
    again = Config(mesh=MeshConfig(fsdp=2), train=TrainConfig(num_steps=5, log_every=1), data=DataConfig(workers=3))
    run_folder.check_same_run(again, tmp_path)


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
