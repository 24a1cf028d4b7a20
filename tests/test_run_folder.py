"""A run's folder: what a run may go on with, and what makes it another run."""

import dataclasses
import pathlib

import pytest

from jaxbert import run_folder
from jaxbert.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, TrainConfig


def test_the_same_run_goes_on_elsewhere_and_longer(tmp_path: pathlib.Path):
    ran = Config(model=ModelConfig(vocab_size=800, dtype="float32"))
    run_folder.check_same_run(ran, tmp_path)
    run_folder.save(ran, tmp_path)
    # As the user types it again: vocabulary size and compute type are not given.
    again = Config(mesh=MeshConfig(fsdp=2), train=TrainConfig(num_steps=5, log_every=1), data=DataConfig(workers=3))
    run_folder.check_same_run(again, tmp_path)


def test_another_run_is_refused_with_every_difference(tmp_path: pathlib.Path):
    run_folder.save(Config(), tmp_path)
    other = Config(seed=1, data=DataConfig(max_length=64), train=TrainConfig(alpha=0.5))
    with pytest.raises(ConfigError) as caught:
        run_folder.check_same_run(other, tmp_path)
    text = str(caught.value)
    for part in ("seed was 0 and is 1", "data.max_length was 128 and is 64", "train.alpha was 1.0 and is 0.5"):
        assert part in text
    assert "--workdir" in text
    assert "\n" not in text


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
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        run_folder.check_same_run(Config(), tmp_path / "w")
