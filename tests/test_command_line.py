"""The command line and config.json: overrides, help, misspelt fields, and the way back from JSON."""

import dataclasses
import json
import pathlib
import types

import pytest

from jaxbert.cli import main
from jaxbert.command_line import from_dict, load, parse, save
from jaxbert.config import Config, ConfigError, DataConfig, LongPhase, TrainConfig

SMALL = Config(data=DataConfig(text=("a", "b")), train=TrainConfig(num_steps=7, long_phase=LongPhase(2)))


def read(*arguments: str) -> Config:
    return parse(arguments, lambda: SMALL, "Pretrain BERT.")


def test_defaults_and_overrides():
    assert read() == SMALL
    config = read("--train.batch-size", "64", "--data.text", "x/**/*.gz", "builtin", "--data.packing", "--seed", "3")
    assert (config.train.batch_size, config.data.text, config.seed) == (64, ("x/**/*.gz", "builtin"), 3)
    assert config.data.packing
    assert config.train.num_steps == 7


def test_a_configuration_file_and_overrides(repository: pathlib.Path):
    config = read("--config", str(repository / "configs/bert_base.py"), "--workdir", "w", "--train.batch-size", "32")
    assert (config.name, config.workdir, config.train.batch_size) == ("bert_base", "w", 32)
    assert config.train.long_phase.num_steps == 100_000
    assert read(f"--config={repository / 'configs/bert_large.py'}").model.num_layers == 24


def test_help_lists_every_field_with_its_text(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out

    def leaves(value, prefix=""):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            name = prefix + field.name.replace("_", "-")
            if dataclasses.is_dataclass(inner):
                yield from leaves(inner, name + ".")
            else:
                yield name

    for name in leaves(SMALL):
        assert f"--{name}" in text, name
    assert "Rows in the global batch" in text
    assert "--config FILE" in text


def test_a_misspelt_field_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        read("--train.batch-siz", "3")
    assert stopped.value.code != 0
    assert "--train.batch-size" in capsys.readouterr().err


def test_a_value_of_the_wrong_type_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read("--train.batch-size", "many")
    assert "many" in capsys.readouterr().err


def test_json_round_trip(tmp_path: pathlib.Path):
    path = tmp_path / "run" / "config.json"
    save(SMALL, path)
    assert load(path) == SMALL
    assert read("--config", str(path)) == SMALL
    versions = json.loads(path.read_text())["versions"]
    assert {"python", "jax", "flax", "optax", "numpy"} <= set(versions)
    # These decide the rows, or the weights that come in.
    assert {"scipy", "tensorflow-datasets", "pyarrow", "safetensors"} <= set(versions)


BROKEN = [
    ({"train": {"batch_siz": 3}}, "train.batch_siz: there is no such field; did you mean train.batch_size?"),
    ({"nonsense_": 1}, "nonsense_: there is no such field"),
    ({"train": {"batch_size": "3"}}, "train.batch_size is '3': it must be int"),
    ({"train": {"batch_size": True}}, "train.batch_size is True: it must be int"),
    ({"data": {"packing": 1}}, "data.packing is 1: it must be bool"),
    ({"data": {"pairs": "mlm"}}, "data.pairs is 'mlm': it must be one of 'nsp', 'sop', 'none'"),
    ({"data": {"text": "builtin"}}, "data.text is 'builtin': it must be tuple"),
    ({"train": 3}, "train is 3: it must be an object of fields"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_broken_json_is_named(tmp_path: pathlib.Path, values: dict, message: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": values}))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_integers_serve_as_floats_and_none_as_none():
    config = from_dict(Config, {"train": {"alpha": 2}, "model": {"vocab_size": None}})
    assert isinstance(config.train.alpha, float)
    assert config.model.vocab_size is None


def test_prepare_takes_what_train_takes(monkeypatch: pytest.MonkeyPatch, repository: pathlib.Path):
    seen = []
    monkeypatch.setattr(
        "jaxbert.text.prepare.prepare", lambda config, **_: seen.append(config) or types.SimpleNamespace(stores={})
    )
    assert main(["prepare", "--workdir", "w"]) == 0
    assert main(["prepare", "--config", str(repository / "configs/bert_mini.py")]) == 0
    assert seen[0] == dataclasses.replace(load(repository / "configs/tiny.py"), workdir="w")
    assert seen[1] == load(repository / "configs/bert_mini.py")


def test_files_that_hold_no_configuration(tmp_path: pathlib.Path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"config": {')
    (tmp_path / "text.toml").write_text("")
    for name, message in {
        "empty.py": "has no get_config()",
        "other.json": "not a run's config.json",
        "cut.json": "not readable as JSON",
        "text.toml": "a configuration is a .py file",
        "emty.py": f"no such configuration file; did you mean {tmp_path / 'empty.py'}?",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--config needs a file"):
        read("--config")
    for files in (("a.json", "b.json"), ("a.py", "b.py"), ("a.py", "b.json", "c.json")):
        with pytest.raises(ConfigError, match=f"--config names {', '.join(files)}: give one file, or"):
            read(*(argument for file in files for argument in ("--config", file)))
