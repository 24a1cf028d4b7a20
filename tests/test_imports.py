"""Who may import whom: the rooms' walls, read from the source with ast."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

FORBIDDEN = {
    "jaxbert/config.py": ("jaxbert",),
    "jaxbert/text": ("jax", "flax", "optax", "orbax", "tensorflow", "jaxbert.data", "jaxbert.model", "jaxbert.train"),
    "jaxbert/data": ("jax", "flax", "optax", "orbax", "jaxbert.model", "jaxbert.train", "jaxbert.tasks"),
    "jaxbert/model": ("tensorflow", "jaxbert.text", "jaxbert.data", "jaxbert.train", "jaxbert.tasks"),
    "jaxbert/train": ("tensorflow", "jaxbert.text", "jaxbert.data", "jaxbert.tasks"),
    "jaxbert/weights": (
        "transformers",
        "torch",
        "jaxbert.data",
        "jaxbert.tasks",
        "jaxbert.train.loop",
        "jaxbert.train.state",
        "jaxbert.train.step",
        "jaxbert.train.optimizer",
    ),
    "jaxbert/predict": ("tensorflow", "torch", "jaxbert.train"),
    "jaxbert/tasks": ("tensorflow", "jaxbert.text"),
}


def imported_modules(source: str) -> set[str]:
    """Absolute names of everything that the source imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is entered"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, forbidden: tuple[str, ...]) -> set[str]:
    """Imported names that lie in a forbidden package."""
    return {n for n in imported_modules(source) if any(n == bad or n.startswith(bad + ".") for bad in forbidden)}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_only_what_it_may(repository: pathlib.Path, room: str):
    place = repository / room
    files = [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
    assert files, f"{room} is empty"
    found = {str(file): violations(file.read_text(encoding="utf8"), FORBIDDEN[room]) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_check_sees_a_violation():
    source = "import numpy\ndef f():\n    from tensorflow import data\n"
    assert violations(source, ("tensorflow",)) == {"tensorflow", "tensorflow.data"}
    assert violations("import jaxtyping", ("jax",)) == set()


def test_import_is_light(repository: pathlib.Path):
    code = (
        "import sys, jaxbert, jaxbert.config, jaxbert.validation, jaxbert.command_line\n"
        "heavy = {'tensorflow', 'transformers', 'torch', 'matplotlib', 'jax._src.xla_bridge'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_fine_tuning_needs_no_tensorflow(repository: pathlib.Path):
    code = (
        "import sys, jaxbert.finetune.run\n"
        "heavy = {'tensorflow', 'transformers', 'torch', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_every_public_name_loads(repository: pathlib.Path):
    code = (
        "import sys, jaxbert\n"
        "assert set(jaxbert.__all__) == set(jaxbert._HOMES) == set(dir(jaxbert))\n"
        "for name in jaxbert.__all__: getattr(jaxbert, name)\n"
        "try: jaxbert.no_such_name\n"
        "except AttributeError as error: assert 'no_such_name' in str(error)\n"
        "else: raise SystemExit('a missing name must raise')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_top_level_is_what_users_know(repository: pathlib.Path):
    for name in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "train.py",
        "finetune.py",
        ".ci/run",
        "jaxbert/py.typed",
    ):
        assert (repository / name).exists(), name
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "torch" not in " ".join(project["dependencies"])
    assert "http" not in (repository / "constraints.txt").read_text(encoding="utf8")
    # No file is named after what it is not about.
    assert not list((repository / "jaxbert").rglob("utils.py"))
