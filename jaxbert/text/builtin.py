"""The built-in corpus: the documentation that this Python installation carries, read from source files with `ast`.

One documented object (module, class, function, pydoc topic) is one document. Nothing that is read gets imported. The
result depends on the versions of Python and of the packages alone: not on paths, times, the locale or the platform.
"""

import ast
import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO

from jaxbert.text.docstrings import count_words, prose
from jaxbert.text.readers import CorpusError

# Module folders and the distributions that they come from. Of the namespace "orbax" only what jaxbert depends on counts.
_PACKAGES = {
    "flax": "flax",
    "jax": "jax",
    "numpy": "numpy",
    "optax": "optax",
    "orbax/checkpoint": "orbax-checkpoint",
    "scipy": "scipy",
}
# Parts of the standard library that some systems package apart, that later Pythons dropped, or that are no documentation.
_LEFT_OUT_MODULES = frozenset(
    "antigravity distutils encodings ensurepip idlelib lib2to3 this tkinter turtle turtledemo venv".split()
)
_LEFT_OUT_FOLDERS = frozenset({"test", "tests", "_vendor", "__pycache__", "site-packages", "dist-packages"})
# Below this a docstring is a label ("Return the name."), and labels repeat from class to class.
_MIN_WORDS = 5
_MAX_PROCESSES = 8


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source file, and the dotted name of its module."""

    path: str
    module: str


def versions() -> list[dict[str, str]]:
    """What the built-in corpus is made of: name and version of Python and of each package."""
    found = [{"name": "builtin:python", "version": platform.python_version()}]
    for distribution in sorted(_PACKAGES.values()):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        found.append({"name": f"builtin:{distribution}", "version": version})
    return found


@functools.cache
def builtin_documents() -> tuple[tuple[str, str], ...]:
    """The built-in corpus as (identity, text) pairs in a fixed order; about 9 MB that stay in memory once read."""
    sources = _sources()
    seen: set[bytes] = set()
    names: dict[str, int] = {}
    kept = []
    for extracted in _extract_in_parallel(sources):
        for name, text in extracted:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            names[name] = names.get(name, 0) + 1
            kept.append((f"builtin:{name}" + (f"#{names[name]}" if names[name] > 1 else ""), text))
    return tuple(kept)


def _sources() -> list[_Source]:
    """Every source file of the corpus, sorted by module name."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    found = []
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT_MODULES):
        if (library / f"{name}.py").is_file():
            found.append(_Source(str(library / f"{name}.py"), name))
        elif (library / name).is_dir():
            found += _walk(library / name, name)
    for folder in _PACKAGES:
        top, _, below = folder.partition("/")
        spec = importlib.util.find_spec(top)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            found += _walk(pathlib.Path(location, below), folder.replace("/", "."))
    return sorted(found, key=lambda source: source.module)


def _walk(folder: pathlib.Path, module: str) -> Iterator[_Source]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        tests = parts[-1] == "conftest" or parts[-1].startswith("test_") or parts[-1].endswith("_test")
        if not tests and not _LEFT_OUT_FOLDERS.intersection(parts):
            yield _Source(str(path), ".".join((module, *parts)).removesuffix(".__init__"))


def _extract_in_parallel(sources: list[_Source]) -> list[list[tuple[str, str]]]:
    """`_extract` of each source, in order, over all cores.

    The helpers are fresh interpreters and no multiprocessing pool: a forked one could hang below TensorFlow's and JAX's
    threads, and a spawned one would first import the caller's main module with all that it needs.
    """
    processes = min(_MAX_PROCESSES, os.cpu_count() or 1) if sys.executable else 1
    # Large files first and dealt round, so that the shares are alike.
    by_size = sorted(range(len(sources)), key=lambda n: (-os.path.getsize(sources[n].path), n))
    shares = [by_size[n::processes] for n in range(processes)]
    helpers = [_start_helper([sources[n] for n in share]) for share in shares[1:]]
    results = _extract_all([sources[n] for n in shares[0]])
    for helper, output in helpers:
        _, errors = helper.communicate()
        if helper.returncode:
            reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise CorpusError(f"builtin: a process that reads docstrings ended with code {helper.returncode}: {reason}")
        output.seek(0)
        results += json.load(output)
        output.close()
    order = [n for share in shares for n in share]
    placed = sorted(zip(order, results, strict=True), key=lambda pair: pair[0])
    return [[(name, text) for name, text in extracted] for _, extracted in placed]


def _start_helper(sources: list[_Source]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    # Files and not pipes on both sides: a full pipe would stop the one while the other is busy with its own share.
    given, output = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    given.write(json.dumps([dataclasses.astuple(source) for source in sources]).encode())
    given.seek(0)
    command = [sys.executable, "-c", "from jaxbert.text.builtin import serve; serve()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    helper = subprocess.Popen(command, stdin=given, stdout=output, stderr=subprocess.PIPE, env=environment)
    given.close()
    return helper, output


def serve() -> None:
    """Extract the sources that standard input lists as JSON, and write the results to standard output as JSON."""
    json.dump(_extract_all([_Source(*pair) for pair in json.load(sys.stdin)]), sys.stdout)


def _extract_all(sources: list[_Source]) -> list[list[tuple[str, str]]]:
    # Syntax trees are many small objects without cycles: collecting in between doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [_extract(source) for source in sources]
    finally:
        if collecting:
            gc.enable()


def _extract(source: _Source) -> list[tuple[str, str]]:
    """(Dotted name, prose) of each documented object in a file; none where the file is no valid Python."""
    content = pathlib.Path(source.path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's files
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError):
            return []
    documented = _topics(tree) if source.module == "pydoc_data.topics" else _docstrings(tree, source.module)
    cleaned = ((name, prose(docstring)) for name, docstring in documented)
    return [(name, text) for name, text in cleaned if count_words(text) >= _MIN_WORDS]


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in sorted(ast.literal_eval(node.value).items()):
                yield f"pydoc_data.topics.{name}", text


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """The docstrings in a tree, outer objects first."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
    # Only statements hold definitions; expressions are most of a tree.
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.Expr):
                yield from _added_docs(child.value, name)
            elif isinstance(child, ast.stmt | ast.ExceptHandler):
                inner = getattr(child, "name", None) if not isinstance(child, ast.ExceptHandler) else None
                yield from _docstrings(child, f"{name}.{inner}" if inner else name)


def _added_docs(node: ast.expr, module: str) -> Iterator[tuple[str, str]]:
    """Docstrings that numpy and scipy hand to their compiled objects: add_newdoc(..., name, text or (name, text))."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "add_newdoc":
        return
    *names, last = node.args
    labels = [part.value for part in names if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    for item in last.elts if isinstance(last, ast.List) else [last]:
        texts = [
            part.value for part in ast.walk(item) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if texts:
            *more, text = sorted(texts, key=len)
            yield ".".join([module, *labels, *more]), text
