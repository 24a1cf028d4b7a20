"""A configuration from the command line, and to and from JSON.

    --config FILE            a Python file with get_config(), or the config.json of an earlier run
    --data.text PATH ...     and so on: any field of the configuration, by its name

A config.json has values and no classes. That of a run whose settings are of somebody's own class comes after the file that has
the class: --config own_task.py --config runs/own/config.json

Reading a configuration file that is named on the command line runs it, as Python runs a script that is named there.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from jaxbert.config import Config, ConfigError

# Whose versions decide what a run computes.
PACKAGES = (
    "jaxbert jax jaxlib flax optax orbax-checkpoint numpy scipy tensorflow-cpu tensorflow tensorflow-datasets pyarrow tokenizers "
    "jieba transformers safetensors"
).split()
T = TypeVar("T")


def parse(arguments: Sequence[str], default: Callable[[], T], description: str) -> T:
    """The configuration that `--config` names (or `default()`), with the fields that the other arguments set.

    Prints the help, or what is wrong with the arguments and the nearest field names, and exits where tyro does.
    Raises `ConfigError` when the configuration file is not one.
    """
    import tyro

    files, rest = _take_configs(list(arguments))
    base = default()
    cls = type(base)
    for n, file in enumerate(files):
        base = load(Path(file), cls, base if n else None)
    usage = f"{description}\n\n--config FILE: a Python file with get_config(), or the config.json of an earlier run."
    options, default_options = _with_own_settings(base)
    found = tyro.cli(
        options, default=default_options, args=rest, description=usage, config=(tyro.conf.AvoidSubcommands,)
    )
    return cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(cls)})  # pyright: ignore[reportArgumentType]


def _with_own_settings(base: Any) -> tuple[type[Any], Any]:
    """The class and values for the command line, where settings of somebody's own class are options like all others."""
    kinds, values = typing.get_type_hints(type(base)), {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    own = [
        (name, type(value), dataclasses.field(default=value))
        for name, value in values.items()
        if dataclasses.is_dataclass(value) and type(value) not in (kinds[name], *typing.get_args(kinds[name]))
    ]
    if not own:
        return type(base), base
    cls = dataclasses.make_dataclass(type(base).__name__, own, bases=(type(base),), frozen=True)
    return cls, cls(**values)


def load(path: Path, cls: type[T] = Config, like: T | None = None) -> T:
    """The configuration in a .py or .json file. Raises `ConfigError` when it holds none of this class.

    like: a configuration whose settings of somebody's own classes are known in a .json file too, by their "kind".
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: --config takes a .py file with get_config(), or a run's config.json")
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file{_nearby(path)}")
    if path.suffix == ".json":
        return _from_json_file(path, cls, like)
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a configuration is a .py file with get_config(), or a config.json")
    try:
        get_config = getattr(run_file(path), "get_config", None)
        config = get_config() if callable(get_config) else None
    except Exception as error:  # whatever the user's program raises
        raise ConfigError(
            f"{path}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if not isinstance(config, cls):
        found = f", but a {type(config).__name__}" if dataclasses.is_dataclass(config) else ""
        raise ConfigError(f"{path}: has no get_config() that returns a {cls.__module__}.{cls.__name__}{found}")
    return config


def run_file(path: Path) -> types.ModuleType:
    """What a Python file defines that the user named on the command line. Raises what the file raises."""
    # Known by a name, so that the docstrings of its own settings are found for the help.
    name = f"configuration_{path.stem}"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    # Not the import system's loader: it may take a file that was changed within the same second for the one it knows.
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def save(config: Any, path: Path, **also: Any) -> None:
    """Write the configuration, the versions of everything that decides its result, and `also`. A kill leaves the old file."""
    record = {"config": dataclasses.asdict(config), "versions": versions(), **also}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
    partial.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide what a run computes."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def from_dict(cls: type[T], values: Any, where: str = "", like: T | None = None) -> T:
    """A frozen dataclass from what `dataclasses.asdict` and JSON made of it. `like`: as in `load`.

    Raises `ConfigError` for an unknown field, naming the nearest one, and for a value of another type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where.removesuffix('.') or 'config'} is {values!r}: it must be an object of fields")
    types_by_name = typing.get_type_hints(cls)
    for name in values:
        if name not in types_by_name:
            close = difflib.get_close_matches(name, types_by_name, n=1)
            hint = f"; did you mean {where}{close[0]}?" if close else ""
            raise ConfigError(f"{where}{name}: there is no such field{hint}")
    kinds = {name: _own_kind(getattr(like, name, None), value) or types_by_name[name] for name, value in values.items()}
    return cls(**{name: _convert(kinds[name], value, where + name) for name, value in values.items()})


def _own_kind(own: Any, value: Any) -> type[Any] | None:
    """The class of settings that are known, where a value is of their kind."""
    kind = getattr(own, "kind", None)
    return type(own) if kind is not None and isinstance(value, dict) and value.get("kind") == kind else None


def with_fields(config: T, values: Mapping[str, Any]) -> T:
    """The configuration with other values of some fields, which are named as on the command line ("train.batch_size").

    Raises `ConfigError` for a field that there is not, and for a value of another type.
    """
    for name, value in values.items():
        config = _with_field(config, name.split("."), value, name)
    return config


def _with_field(config: Any, names: Sequence[str], value: Any, where: str) -> Any:
    # What is inside of a plain value has no fields.
    kinds = typing.get_type_hints(type(config)) if hasattr(config, "__dataclass_fields__") else {}
    name, *rest = names
    if name not in kinds:
        close = difflib.get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {where.removesuffix('.'.join(names))}{'.'.join([close[0], *rest])}?" if close else ""
        raise ConfigError(f"{where}: there is no such field{hint}")
    inner = _with_field(getattr(config, name), rest, value, where) if rest else _convert(kinds[name], value, where)
    return dataclasses.replace(config, **{name: inner})


def read_record(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises `ConfigError` for another file."""
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}): bring it back, or delete it") from error
    if not isinstance(record, dict) or "config" not in record:
        raise ConfigError(f'{path}: not a run\'s config.json (it has no "config")')
    return record


def _from_json_file(path: Path, cls: type[T], like: T | None) -> T:
    record = read_record(path)
    try:
        return from_dict(cls, record["config"], like=like)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, where + ".")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(inner[0], item, where) for item in value)
    if origin is typing.Literal and value in inner:
        return value
    # Literal[...] | None is typing's, str | None is not, up to Python 3.13.
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        options = [option for option in inner if option is not types.NoneType]
        return _convert(options[0] if len(options) == 1 else _of_kind(options, value, where), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool) == isinstance(value, bool):
        return value
    wanted = f"one of {', '.join(map(repr, inner))}" if origin is typing.Literal else getattr(kind, "__name__", kind)
    raise ConfigError(f"{where} is {value!r}: it must be {wanted}")


def _of_kind(options: Sequence[Any], value: Any, where: str) -> Any:
    """The one of several dataclasses that the field "kind" names."""
    kind = value.get("kind") if isinstance(value, dict) else None
    for option in options:
        if option.kind == kind:
            return option
    kinds = ", ".join(option.kind for option in options)
    raise ConfigError(
        f"{where}.kind is {kind!r}: it must be one of {kinds}, or that of a Python file which stands before it: "
        "--config own.py --config config.json"
    )


def _take_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The files that `--config` names, in order, and the other arguments."""
    files, rest = [], []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--config":
            if not arguments:
                raise ConfigError("--config needs a file: configs/NAME.py, or the config.json of an earlier run")
            files.append(arguments.pop(0))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if len(files) > 1 and [Path(file).suffix for file in files] != [".py", ".json"]:
        raise ConfigError(
            f"--config names {', '.join(files)}: give one file, or a .py file with settings of your own and then the config.json "
            "of a run with them"
        )
    return files, rest


def _nearby(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
